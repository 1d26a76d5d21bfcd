//! What an error of etcd means to the caller.

use super::link::Call;
use crate::error::StoreError;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::{Code, Status};

/// Whose queue is full when the server is slow.
const SERVER: &str = "etcd";

/// Makes errors about one cluster of etcd.
#[derive(Clone)]
pub(super) struct Faults {
    /// The members and the prefix, for messages.
    pub(super) server: Arc<str>,
}

impl Faults {
    pub(super) fn of(&self, doing: &'static str, status: Status) -> StoreError {
        match status.code() {
            Code::ResourceExhausted if status.message().contains("space exceeded") => {
                StoreError::Full { path: PathBuf::from(&*self.server), source: Arc::new(status) }
            }
            Code::ResourceExhausted => self.busy(),
            Code::DataLoss => {
                StoreError::Corrupt { path: PathBuf::from(&*self.server), source: Arc::new(status) }
            }
            _ => StoreError::Unavailable { doing, source: Arc::new(status) },
        }
    }

    /// What the last of several attempts came to.
    pub(super) fn after(&self, doing: &'static str, call: Call, status: Status) -> StoreError {
        match (call, status.code()) {
            // A read that took too long changed nothing.
            (Call::Read, Code::DeadlineExceeded) => self.busy(),
            _ => self.of(doing, status),
        }
    }

    pub(super) fn busy(&self) -> StoreError {
        StoreError::Busy { queue: SERVER }
    }
}

/// True if the revision that was asked for is not kept any more.
pub(super) fn is_compacted(error: &StoreError) -> bool {
    let StoreError::Unavailable { source, .. } = error else { return false };
    let status = source.downcast_ref::<Status>();
    status.is_some_and(|status| status.code() == Code::OutOfRange && status.message().contains("compacted"))
}

/// True if a lease of the request does not exist.
pub(super) fn is_about_lease(error: &StoreError) -> bool {
    let StoreError::Unavailable { source, .. } = error else { return false };
    let status = source.downcast_ref::<Status>();
    status
        .is_some_and(|status| status.code() == Code::NotFound && status.message().contains("lease not found"))
}
