//! A backend as a source of records: a list, and then the changes since it was begun, up to a mark.

use super::{Record, Records, TransferError};
use crate::keys;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use std::collections::VecDeque;
use std::sync::Arc;
use wayleave_runtime::random_u64;
use wayleave_store::{Backend, Event, Key, RANGE_ITEMS_MAX, Revision, Watch};

/// A backend that others may be writing to.
pub(super) struct Running {
    backend: Arc<dyn Backend>,
    ready: VecDeque<Record>,
    phase: Phase,
}

enum Phase {
    Listing { after: Option<Key>, begun: Option<Revision> },
    Following { watch: Box<Watch>, until: Revision },
    Done,
}

impl Running {
    pub(super) fn new(backend: Arc<dyn Backend>) -> Self {
        let phase = Phase::Listing { after: None, begun: None };
        Self { backend, ready: VecDeque::new(), phase }
    }

    async fn next_record(&mut self) -> Result<Option<Record>, TransferError> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Ok(Some(record));
            }
            match &mut self.phase {
                Phase::Listing { after, begun } => {
                    let page = self.backend.range(&Key::root(), after.as_ref(), RANGE_ITEMS_MAX).await;
                    let page = page.map_err(TransferError::source)?;
                    let begun_at = *begun.get_or_insert(page.revision);
                    *after = page.items.last().map(|item| item.key.clone());
                    let kept = page.items.into_iter().filter(|item| item.lease.is_none());
                    self.ready.extend(
                        kept.filter(|item| is_copied(&item.key))
                            .map(|item| Record::Put(item.key, item.value)),
                    );
                    if !page.more {
                        self.phase = follow(self.backend.clone(), begun_at, page.revision).await?;
                    }
                }
                Phase::Following { watch, until } => {
                    let change = watch.next().await?;
                    if change.revision >= *until {
                        self.phase = Phase::Done;
                        continue;
                    }
                    for event in change.events.into_iter().filter(|event| is_copied(event.key())) {
                        self.ready.push_back(match event {
                            Event::Put(item) if item.lease.is_none() => Record::Put(item.key, item.value),
                            Event::Put(item) => Record::Delete(item.key),
                            Event::Delete { key, .. } => Record::Delete(key),
                        });
                    }
                }
                Phase::Done => return Ok(None),
            }
        }
    }
}

/// What changed while it was listed. Its end is a mark of our own, which comes behind everything before it.
async fn follow(
    backend: Arc<dyn Backend>,
    begun: Revision,
    listed: Revision,
) -> Result<Phase, TransferError> {
    if begun == listed {
        return Ok(Phase::Done);
    }
    let watch = backend.watch(&Key::root(), Some(begun)).await.map_err(TransferError::source)?;
    let mark = keys::copy_mark(random_u64());
    let until = backend.put(&mark, Bytes::new(), None).await.map_err(TransferError::source)?;
    backend.delete(&mark).await.map_err(TransferError::source)?;
    Ok(Phase::Following { watch: Box::new(watch), until })
}

/// False for what copying itself writes.
fn is_copied(key: &Key) -> bool {
    !keys::copy_marks().contains(key) && ![keys::restoring(), keys::restored()].contains(key)
}

impl Records for Running {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Record>, TransferError>> {
        self.next_record().boxed()
    }
}
