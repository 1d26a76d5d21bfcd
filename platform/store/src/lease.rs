//! Leases: who is still alive, in memory. Which keys hang on a lease is the backend's data.
//!
//! Only grants and ends are stored durably. The time left is kept here, so keeping a lease alive
//! costs no write, and a restart gives every lease its full time again.

use crate::error::StoreError;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;
use wayleave_vocab::Mono;

/// Most leases of one backend.
pub const LEASES_MAX: usize = 65_536;
/// Longest time to live of a lease.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Names a lease. Never used twice by one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A time to live that a lease can have.
pub(crate) fn checked_ttl(ttl: Duration) -> Result<Duration, StoreError> {
    if ttl < Duration::from_millis(1) {
        return Err(StoreError::Invalid { reason: "a lease lives at least a millisecond" });
    }
    if ttl > LEASE_TTL_MAX {
        let what = "the lease's time to live in seconds";
        return Err(StoreError::TooLarge { what, given: ttl.as_secs(), max: LEASE_TTL_MAX.as_secs() });
    }
    Ok(ttl)
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Mono,
}

/// The leases that exist. One whose deadline has passed is dead at once, though it stays until its
/// keys are deleted.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_id: HashMap<LeaseId, Lease>,
}

impl Leases {
    /// Refuses a further lease, `granted` ones not being inserted yet, when there are too many.
    pub(crate) fn has_room_behind(&self, granted: usize) -> Result<(), StoreError> {
        let count = self.by_id.len().saturating_add(granted);
        if count < LEASES_MAX {
            return Ok(());
        }
        let given = u64::try_from(count).unwrap_or(u64::MAX).saturating_add(1);
        Err(StoreError::TooLarge { what: "the number of leases", given, max: LEASES_MAX as u64 })
    }

    pub(crate) fn insert(&mut self, id: LeaseId, ttl: Duration, now: Mono) {
        self.by_id.insert(id, Lease { ttl, deadline: now.after(ttl) });
    }

    pub(crate) fn remove(&mut self, id: LeaseId) {
        self.by_id.remove(&id);
    }

    pub(crate) fn is_live(&self, id: LeaseId, now: Mono) -> bool {
        self.by_id.get(&id).is_some_and(|lease| lease.deadline > now)
    }

    pub(crate) fn keep_alive(&mut self, id: LeaseId, now: Mono) -> Result<(), StoreError> {
        match self.by_id.get_mut(&id) {
            Some(lease) if lease.deadline > now => {
                lease.deadline = now.after(lease.ttl);
                Ok(())
            }
            Some(_) | None => Err(StoreError::LeaseNotFound { lease: id }),
        }
    }

    /// The leases whose time has run out, oldest id first.
    pub(crate) fn expired(&self, now: Mono) -> Vec<LeaseId> {
        let dead = self.by_id.iter().filter(|(_, lease)| lease.deadline <= now);
        let mut ids: Vec<_> = dead.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }
}
