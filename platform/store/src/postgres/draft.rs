//! What the requests of one transaction come to: decided on what was read under the lock, and then written at once.

use super::tables::{Head, first_row, revision_of, signed};
use crate::backend::Revision;
use crate::error::StoreError;
use crate::history::Event;
use crate::key::Key;
use crate::lease::LeaseId;
use crate::plan::{Current, State};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

/// Where an item stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) log_id: i64,
    pub(super) lease: Option<LeaseId>,
}

/// Changes that are not written yet.
pub(super) struct Draft {
    pub(super) head: Head,
    /// Where the history began when the transaction began.
    floor: Revision,
    items: HashMap<Key, Standing>,
    live_leases: HashSet<LeaseId>,
    leases: usize,
    events: Vec<(i64, Event)>,
    /// The last of what happens to each key; none deletes it.
    touched: BTreeMap<Key, Option<(i64, usize)>>,
    /// Rows of the log that nothing needs any more.
    pub(super) unneeded: Vec<i64>,
    pub(super) granted: Vec<(LeaseId, Duration)>,
}

impl Draft {
    pub(super) fn new(
        head: Head,
        items: HashMap<Key, Standing>,
        live_leases: HashSet<LeaseId>,
        leases: usize,
    ) -> Self {
        Self {
            floor: head.floor,
            head,
            items,
            live_leases,
            leases,
            events: Vec::new(),
            touched: BTreeMap::new(),
            unneeded: Vec::new(),
            granted: Vec::new(),
        }
    }

    /// Takes down where an item stands that was read later.
    pub(super) fn know(&mut self, key: Key, standing: Standing) {
        self.items.insert(key, standing);
    }

    /// How many leases there are.
    pub(super) fn leases(&self) -> usize {
        self.leases.saturating_add(self.granted.len())
    }

    pub(super) fn grant(&mut self, ttl: Duration) -> LeaseId {
        let lease = LeaseId(self.head.lease_last.0.saturating_add(1));
        self.head.lease_last = lease;
        self.granted.push((lease, ttl));
        lease
    }

    /// Takes down the events of the next revision.
    pub(super) fn write(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        self.head.revision = self.head.revision.next();
        for (position, event) in (0..).zip(events) {
            let id = first_row(self.head.revision).saturating_add(position);
            let key = event.key().clone();
            let before = match &event {
                Event::Put(item) => {
                    self.touched.insert(key.clone(), Some((id, item.value.len())));
                    self.items.insert(key, Standing { log_id: id, lease: item.lease })
                }
                Event::Delete { .. } => {
                    self.touched.insert(key.clone(), None);
                    self.items.remove(&key)
                }
            };
            let unneeded = before.filter(|standing| revision_of(standing.log_id) <= self.floor);
            self.unneeded.extend(unneeded.map(|standing| standing.log_id));
            self.events.push((id, event));
        }
    }

    pub(super) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The new rows of the log, column by column.
    pub(super) fn log_rows(&self) -> LogRows<'_> {
        let mut rows = LogRows::default();
        for (id, event) in &self.events {
            rows.ids.push(*id);
            rows.keys.push(event.key().as_str());
            rows.bytes.push(i64::try_from(event.bytes()).unwrap_or(i64::MAX));
            match event {
                Event::Put(item) => {
                    rows.leases.push(item.lease.map(|lease| signed(lease.0)));
                    rows.values.push(Some(&item.value));
                }
                Event::Delete { .. } => {
                    rows.leases.push(None);
                    rows.values.push(None);
                }
            }
        }
        rows
    }

    /// The items that are there afterwards, column by column, and the keys that are not.
    pub(super) fn item_rows(&self) -> (ItemRows<'_>, Vec<&str>) {
        let (mut rows, mut gone) = (ItemRows::default(), Vec::new());
        for (key, written) in &self.touched {
            match written {
                None => gone.push(key.as_str()),
                Some((id, bytes)) => {
                    rows.keys.push(key.as_str());
                    rows.ids.push(*id);
                    let lease = self.items.get(key).and_then(|standing| standing.lease);
                    rows.leases.push(lease.map(|lease| signed(lease.0)));
                    rows.bytes.push(i64::try_from(*bytes).unwrap_or(i64::MAX));
                }
            }
        }
        (rows, gone)
    }
}

/// Columns of the log.
#[derive(Default)]
pub(super) struct LogRows<'a> {
    pub(super) ids: Vec<i64>,
    pub(super) keys: Vec<&'a str>,
    pub(super) leases: Vec<Option<i64>>,
    pub(super) bytes: Vec<i64>,
    pub(super) values: Vec<Option<&'a [u8]>>,
}

/// Columns of the items.
#[derive(Default)]
pub(super) struct ItemRows<'a> {
    pub(super) keys: Vec<&'a str>,
    pub(super) ids: Vec<i64>,
    pub(super) leases: Vec<Option<i64>>,
    pub(super) bytes: Vec<i64>,
}

impl State for Draft {
    fn current(&mut self, key: &Key) -> Result<Option<Current>, StoreError> {
        let standing = self.items.get(key);
        Ok(standing.map(|item| Current { revision: revision_of(item.log_id), lease: item.lease }))
    }

    fn lease_is_live(&self, lease: LeaseId) -> bool {
        self.live_leases.contains(&lease) || self.granted.iter().any(|(granted, _)| *granted == lease)
    }
}
