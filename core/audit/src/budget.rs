//! How many bytes of events each process may add to the log: a bucket that fills slowly and empties with each event.

use std::collections::BTreeMap;
use std::time::Duration;
use wayleave_vocab::{HostId, Mono};

/// How many processes are remembered before those that sent nothing lately are forgotten.
const HOSTS_REMEMBERED: usize = 16_384;

/// How much one process may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventBudget {
    /// Bytes per minute in the long run.
    pub bytes_per_minute: u64,
    /// Bytes at once.
    pub burst_bytes: u64,
}

impl Default for EventBudget {
    /// A minute of 150 sessions a second with six events of 600 bytes each is 32 MiB. A journal of 256 MiB that waited
    /// for Auth is taken within minutes.
    fn default() -> Self {
        Self { bytes_per_minute: 32 << 20, burst_bytes: 128 << 20 }
    }
}

/// A process has sent more than its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this host sends more audit events than are taken, try again in {} s", retry_after.as_secs().max(1))]
pub struct OverBudget {
    /// When there is room again for what was refused.
    pub retry_after: Duration,
}

/// The budgets of all processes.
#[derive(Debug, Default)]
pub struct EventBudgets {
    budget: EventBudget,
    buckets: BTreeMap<HostId, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    free_bytes: u64,
    filled_at: Mono,
}

impl EventBudgets {
    /// Each process with the same budget.
    pub fn new(budget: EventBudget) -> Self {
        Self { budget, buckets: BTreeMap::new() }
    }

    /// Takes bytes off the budget of a process. What is larger than a whole budget is taken from a full one.
    ///
    /// # Errors
    /// When not so many are free: nothing is taken, and the process should wait.
    pub fn admit(&mut self, host: HostId, bytes: u64, now: Mono) -> Result<(), OverBudget> {
        let budget = self.budget;
        if self.buckets.len() >= HOSTS_REMEMBERED && !self.buckets.contains_key(&host) {
            self.buckets.retain(|_, bucket| bucket.filled(budget, now).free_bytes < budget.burst_bytes);
        }
        let full = Bucket { free_bytes: budget.burst_bytes, filled_at: now };
        let bucket = self.buckets.entry(host).or_insert(full);
        *bucket = bucket.filled(budget, now);
        let wanted = bytes.min(budget.burst_bytes);
        match bucket.free_bytes.checked_sub(wanted) {
            Some(rest) => {
                bucket.free_bytes = rest;
                Ok(())
            }
            None => Err(OverBudget { retry_after: bucket.wait(budget, wanted) }),
        }
    }
}

impl Bucket {
    /// The time counts from whole bytes only, so that calls in quick succession lose nothing.
    fn filled(self, budget: EventBudget, now: Mono) -> Self {
        let millis = u64::try_from(now.since(self.filled_at).as_millis()).unwrap_or(u64::MAX);
        let gained = millis.saturating_mul(budget.bytes_per_minute) / 60_000;
        if gained == 0 {
            return self;
        }
        let free_bytes = self.free_bytes.saturating_add(gained).min(budget.burst_bytes);
        Self { free_bytes, filled_at: now }
    }

    fn wait(self, budget: EventBudget, wanted: u64) -> Duration {
        let missing = wanted.saturating_sub(self.free_bytes);
        match missing.saturating_mul(60_000).checked_div(budget.bytes_per_minute) {
            Some(millis) => Duration::from_millis(millis.saturating_add(1)),
            None => Duration::from_hours(1),
        }
    }
}
