//! Typed JSON records in the backend.

use crate::request_error::RequestError;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use wayleave_resource::Resource;
use wayleave_store::{
    Backend, Committed, Condition, Item, Key, Operation, RANGE_ITEMS_MAX, Revision, StoreError,
};

/// The backend, spoken to in records.
#[derive(Clone)]
pub(crate) struct Records {
    backend: Arc<dyn Backend>,
}

/// A record and the revision that wrote it.
#[derive(Clone)]
pub(crate) struct Stored<T> {
    pub(crate) value: T,
    pub(crate) revision: Revision,
}

impl Records {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }

    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Reads one record.
    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        key: &Key,
    ) -> Result<Option<Stored<T>>, RequestError> {
        let item = self.backend.get(key).await.map_err(RequestError::store("read"))?;
        item.map(|item| decode(&item)).transpose()
    }

    /// Reads every item below a prefix, page by page.
    pub(crate) async fn items(&self, prefix: &Key) -> Result<(Vec<Item>, Revision), StoreError> {
        let mut items = Vec::new();
        let mut first_revision = None;
        loop {
            let after = items.last().map(|item: &Item| item.key.clone());
            let page = self.backend.range(prefix, after.as_ref(), RANGE_ITEMS_MAX).await?;
            let revision = *first_revision.get_or_insert(page.revision);
            items.extend(page.items);
            if !page.more {
                return Ok((items, revision));
            }
        }
    }

    /// Carries out a batch. Errors are those of the backend: the caller knows what a conflict means.
    pub(crate) async fn commit(
        &self,
        conditions: Vec<Condition>,
        operations: Vec<Operation>,
    ) -> Result<Committed, StoreError> {
        self.backend.batch(conditions, operations).await
    }
}

/// The operation that writes a record.
pub(crate) fn put<T: Serialize>(key: Key, value: &T) -> Operation {
    Operation::Put { key, value: encode(value), lease: None }
}

/// The bytes of a record.
pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("records are structs with text keys, which always serialise").into()
}

/// Reads a record from an item.
pub(crate) fn decode<T: DeserializeOwned>(item: &Item) -> Result<Stored<T>, RequestError> {
    let value = serde_json::from_slice(&item.value)
        .map_err(|e| RequestError::Broken(format!("the record {} is damaged: {e}", item.key)))?;
    Ok(Stored { value, revision: item.revision })
}

/// A stored resource, or none if it cannot be read.
pub(crate) fn decode_resource(item: &Item) -> Option<Resource> {
    Resource::parse_json(std::str::from_utf8(&item.value).ok()?).ok()
}
