//! The backend, with its operations counted and its last failure remembered.

use crate::metrics::FAILURE_SHOWN;
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use wayleave_store::{
    Backend, Bounds, Committed, Condition, Item, Key, LeaseId, Operation, Page, Revision, StoreError,
    StoreFuture, Watch,
};
use wayleave_telemetry::{Counter, Diagnostics, Durations, Finding, Registry};

/// Why operations fail when it is not about what was asked.
const REASONS: [&str; 5] = ["busy", "full", "corrupt", "unavailable", "closed"];

/// Counts what goes to `inner`.
pub(crate) struct MeteredBackend {
    inner: Arc<dyn Backend>,
    read: Durations,
    batch_read: Durations,
    write: Durations,
    batch_write: Durations,
    failures: Vec<(&'static str, Counter)>,
    last_failure: Arc<Mutex<Option<Failure>>>,
}

/// The last failure, while nothing has succeeded since.
struct Failure {
    at: Instant,
    reason: &'static str,
    text: String,
}

impl MeteredBackend {
    /// Wraps a backend; what fails becomes a finding.
    pub(crate) fn new(inner: Arc<dyn Backend>, diagnostics: &Diagnostics) -> Self {
        let registry: &Registry = &diagnostics.metrics;
        let last_failure: Arc<Mutex<Option<Failure>>> = Arc::default();
        let shown = last_failure.clone();
        diagnostics.health.check(move || finding(&shown).into_iter().collect());
        let failure = |reason| {
            let help = "Operations of the backend that failed, by reason.";
            (reason, registry.counter("backend_requests_failed_total", help, &[("reason", reason)]))
        };
        Self {
            inner,
            read: registry.durations("backend_read_seconds", "Reads of one key.", &[]),
            batch_read: registry.durations("backend_batch_read_seconds", "Reads of a range.", &[]),
            write: registry.durations("backend_write_seconds", "Writes of one key.", &[]),
            batch_write: registry.durations("backend_batch_write_seconds", "Atomic batches.", &[]),
            failures: REASONS.map(failure).into(),
            last_failure,
        }
    }

    async fn observed<T>(
        &self,
        durations: &Durations,
        is_write: bool,
        operation: StoreFuture<'_, T>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let done = operation.await;
        durations.observe_since(began);
        match done.as_ref().err().and_then(|error| Some((reason(error)?, error))) {
            Some((reason, error)) => {
                let counters = self.failures.iter().filter(|(known, _)| *known == reason);
                counters.for_each(|(_, counter)| counter.increment());
                let failure = Failure { at: Instant::now(), reason, text: error.to_string() };
                *lock(&self.last_failure) = Some(failure);
            }
            // A full disk can still be read.
            None if is_write => *lock(&self.last_failure) = None,
            None => {}
        }
        done
    }
}

fn reason(error: &StoreError) -> Option<&'static str> {
    match error {
        StoreError::Busy { .. } => Some("busy"),
        StoreError::Full { .. } => Some("full"),
        StoreError::Corrupt { .. } => Some("corrupt"),
        StoreError::Unavailable { .. } => Some("unavailable"),
        StoreError::Closed => Some("closed"),
        _ => None,
    }
}

fn finding(last: &Mutex<Option<Failure>>) -> Option<Finding> {
    let last = lock(last);
    let failure = last.as_ref().filter(|failure| failure.at.elapsed() < FAILURE_SHOWN)?;
    let text = failure.text.clone();
    Some(match failure.reason {
        "busy" => Finding::degraded("backend_busy", text),
        "full" => Finding::unready("backend_full", text),
        "corrupt" => Finding::unready("backend_corrupt", text),
        _ => Finding::unready("backend_unavailable", text),
    })
}

fn lock(last: &Mutex<Option<Failure>>) -> std::sync::MutexGuard<'_, Option<Failure>> {
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend for MeteredBackend {
    fn bounds(&self) -> Bounds {
        self.inner.bounds()
    }

    fn get(&self, key: &Key) -> StoreFuture<'_, Option<Item>> {
        let key = key.clone();
        Box::pin(async move { self.observed(&self.read, false, self.inner.get(&key)).await })
    }

    fn range(&self, prefix: &Key, after: Option<&Key>, limit: usize) -> StoreFuture<'_, Page> {
        let (prefix, after) = (prefix.clone(), after.cloned());
        Box::pin(async move {
            self.observed(&self.batch_read, false, self.inner.range(&prefix, after.as_ref(), limit)).await
        })
    }

    fn batch(&self, conditions: Vec<Condition>, operations: Vec<Operation>) -> StoreFuture<'_, Committed> {
        let durations = if operations.len() > 1 { &self.batch_write } else { &self.write };
        Box::pin(
            async move { self.observed(durations, true, self.inner.batch(conditions, operations)).await },
        )
    }

    fn lease_grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId> {
        self.inner.lease_grant(ttl)
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.inner.lease_keep_alive(lease)
    }

    fn lease_revoke(&self, lease: LeaseId) -> StoreFuture<'_, usize> {
        self.inner.lease_revoke(lease)
    }

    fn watch(&self, prefix: &Key, from: Option<Revision>) -> StoreFuture<'_, Watch> {
        self.inner.watch(prefix, from)
    }

    fn maintain(&self) -> StoreFuture<'_, usize> {
        self.inner.maintain()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wayleave_runtime::SystemClock;
    use wayleave_store::{HistoryLimits, MemoryBackend};
    use wayleave_telemetry::State;

    #[tokio::test]
    async fn operations_are_counted_and_a_failure_is_told_until_a_write_succeeds() {
        let diagnostics = Diagnostics::default();
        diagnostics.health.started();
        let memory = Arc::new(MemoryBackend::new(HistoryLimits::default(), Arc::new(SystemClock::new())));
        let backend = MeteredBackend::new(memory, &diagnostics);
        let key = crate::keys::cluster();
        backend.put(&key, "x".into(), None).await.unwrap();
        backend.get(&key).await.unwrap();
        let text = diagnostics.metrics.render();
        assert!(
            text.contains("backend_read_seconds_count 1\n")
                && text.contains("backend_write_seconds_count 1\n")
        );
        assert_eq!(diagnostics.health.readiness().status, State::Ok);
        let full = Failure { at: Instant::now(), reason: "full", text: "no space left".to_owned() };
        *lock(&backend.last_failure) = Some(full);
        assert_eq!(diagnostics.health.readiness().reasons[0].code, "backend_full");
        backend.get(&key).await.unwrap();
        assert_eq!(diagnostics.health.readiness().status, State::Unready);
        backend.put(&key, "y".into(), None).await.unwrap();
        assert_eq!(diagnostics.health.readiness().status, State::Ok);
        backend.close().await;
        assert!(backend.get(&key).await.is_err());
        assert_eq!(diagnostics.health.readiness().reasons[0].code, "backend_unavailable");
    }
}
