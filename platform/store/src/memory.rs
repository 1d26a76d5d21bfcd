//! The backend in the process's memory: the same semantics, nothing durable. For tests and simulation.

use crate::backend::{
    Backend, Committed, Condition, Item, Operation, Page, RANGE_BYTES_MAX, Revision, StoreFuture,
    checked_limit,
};

use crate::error::StoreError;
use crate::history::{Change, Event, HistoryLimits, Mark, Retention};
use crate::key::Key;
use crate::lease::{LeaseId, Leases, checked_ttl};
use crate::plan::{Batch, Current, State};
use crate::watch::{Archive, Follower, Hub, Past, Watch, WatchError};
use futures::future::{BoxFuture, FutureExt as _, ready};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wayleave_runtime::Clock;
use wayleave_vocab::Mono;

/// A backend without a file. Every operation is done when its future is first polled.
pub struct MemoryBackend {
    clock: Arc<dyn Clock>,
    data: Mutex<Data>,
    hub: Arc<Hub>,
}

struct Data {
    items: BTreeMap<Key, Item>,
    leases: Leases,
    lease_last: u64,
    revision: Revision,
    retention: Retention,
    closed: bool,
}

struct View<'a> {
    data: &'a Data,
    now: Mono,
}

impl State for View<'_> {
    fn current(&mut self, key: &Key) -> Result<Option<Current>, StoreError> {
        let item = self.data.items.get(key);
        Ok(item.map(|item| Current { revision: item.revision, lease: item.lease }))
    }

    fn lease_is_live(&self, lease: LeaseId) -> bool {
        self.data.leases.is_live(lease, self.now)
    }
}

impl MemoryBackend {
    /// An empty backend that keeps `history` for its watches.
    pub fn new(history: HistoryLimits, clock: Arc<dyn Clock>) -> Self {
        // What is forgotten is decided by the retention alone; the hub follows it.
        let hub = Arc::new(Hub::new(Revision::ZERO, usize::MAX, usize::MAX));
        let data = Data {
            items: BTreeMap::new(),
            leases: Leases::default(),
            lease_last: 0,
            revision: Revision::ZERO,
            retention: Retention::new(history),
            closed: false,
        };
        Self { clock, data: Mutex::new(data), hub }
    }

    fn open(&self) -> Result<MutexGuard<'_, Data>, StoreError> {
        let data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        if data.closed { Err(StoreError::Closed) } else { Ok(data) }
    }

    fn batch_now(&self, batch: &Batch) -> Result<Committed, StoreError> {
        let mut data = self.open()?;
        let revision = data.revision.next();
        let plan = batch.plan(revision, &mut View { data: &data, now: self.clock.mono() })?;
        let deleted = plan.deleted;
        self.apply(&mut data, plan.events);
        Ok(Committed { revision: data.revision, deleted })
    }

    fn range_now(&self, prefix: &Key, after: Option<Key>, limit: usize) -> Result<Page, StoreError> {
        let data = self.open()?;
        let limit = checked_limit(limit)?;
        let mut page = Page { items: Vec::new(), revision: data.revision, more: false };
        let start = match &after {
            Some(after) if after > prefix => Bound::Excluded(after),
            Some(after) if after == prefix => Bound::Excluded(prefix),
            Some(_) | None => Bound::Included(prefix),
        };
        let end = prefix.below().1;
        let candidates = data.items.range::<Key, _>((start, Bound::Unbounded));
        let candidates = candidates.take_while(|(key, _)| key.as_str() < end.as_str());
        let mut bytes = 0_usize;
        for (_, item) in candidates.filter(|(key, _)| prefix.contains(key)) {
            if page.items.len() >= limit || bytes >= RANGE_BYTES_MAX {
                page.more = true;
                break;
            }
            bytes = bytes.saturating_add(item.value.len());
            page.items.push(item.clone());
        }
        Ok(page)
    }

    fn grant_now(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let mut data = self.open()?;
        let ttl = checked_ttl(ttl)?;
        data.leases.has_room_behind(0)?;
        data.lease_last = data.lease_last.saturating_add(1);
        let id = LeaseId(data.lease_last);
        data.leases.insert(id, ttl, self.clock.mono());
        Ok(id)
    }

    fn revoke_now(&self, lease: LeaseId) -> Result<usize, StoreError> {
        let mut data = self.open()?;
        if !data.leases.is_live(lease, self.clock.mono()) {
            return Err(StoreError::LeaseNotFound { lease });
        }
        Ok(self.end_lease(&mut data, lease))
    }

    fn maintain_now(&self) -> Result<usize, StoreError> {
        let mut data = self.open()?;
        let expired = data.leases.expired(self.clock.mono());
        let deleted = expired.into_iter().map(|lease| self.end_lease(&mut data, lease)).sum();
        self.forget_old(&mut data);
        Ok(deleted)
    }

    fn end_lease(&self, data: &mut Data, lease: LeaseId) -> usize {
        let held = data.items.values().filter(|item| item.lease == Some(lease));
        let keys: Vec<_> = held.map(|item| item.key.clone()).collect();
        for chunk in keys.chunks(crate::backend::BATCH_OPERATIONS_MAX) {
            let revision = data.revision.next();
            let events = chunk.iter().map(|key| Event::Delete { key: key.clone(), revision });
            self.apply(data, events.collect());
        }
        data.leases.remove(lease);
        keys.len()
    }

    fn apply(&self, data: &mut Data, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        for event in &events {
            match event {
                Event::Put(item) => data.items.insert(item.key.clone(), item.clone()),
                Event::Delete { key, .. } => data.items.remove(key),
            };
        }
        data.revision = data.revision.next();
        let change = Change { revision: data.revision, events };
        let mark = Mark { revision: data.revision, at: self.clock.wall(), bytes: change.bytes() };
        data.retention.push(mark);
        self.hub.publish(vec![change]);
        self.forget_old(data);
    }

    fn forget_old(&self, data: &mut Data) {
        if let Some(upto) = data.retention.due(&[], usize::MAX, self.clock.wall()) {
            data.retention.forget(upto);
            self.hub.forget(upto);
        }
    }
}

impl Backend for MemoryBackend {
    fn get(&self, key: &Key) -> StoreFuture<'_, Option<Item>> {
        let key = key.clone();
        async move { Ok(self.open()?.items.get(&key).cloned()) }.boxed()
    }

    fn range(&self, prefix: &Key, after: Option<&Key>, limit: usize) -> StoreFuture<'_, Page> {
        let (prefix, after) = (prefix.clone(), after.cloned());
        async move { self.range_now(&prefix, after, limit) }.boxed()
    }

    fn batch(&self, conditions: Vec<Condition>, operations: Vec<Operation>) -> StoreFuture<'_, Committed> {
        async move { self.batch_now(&Batch::new(conditions, operations)?) }.boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId> {
        async move { self.grant_now(ttl) }.boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        async move { self.open()?.leases.keep_alive(lease, self.clock.mono()) }.boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> StoreFuture<'_, usize> {
        async move { self.revoke_now(lease) }.boxed()
    }

    fn watch(&self, prefix: &Key, from: Option<Revision>) -> StoreFuture<'_, Watch> {
        let watch = self.open().map(|_| Follower::watch(&self.hub, Arc::new(Forgotten), prefix, from));
        ready(watch).boxed()
    }

    fn maintain(&self) -> StoreFuture<'_, usize> {
        async move { self.maintain_now() }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.data.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
            self.hub.close();
        }
        .boxed()
    }
}

/// All the history there is lies in the hub.
struct Forgotten;

impl Archive for Forgotten {
    fn past(
        &self,
        _prefix: &Key,
        cursor: Revision,
        _newest: Revision,
    ) -> BoxFuture<'_, Result<Past, WatchError>> {
        ready(Err(WatchError::Compacted { from: cursor })).boxed()
    }
}
