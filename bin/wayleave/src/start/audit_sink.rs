//! What SSH notes, into the journal of this process.

use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wayleave_adapter_ssh::{AuditError, AuditSink};
use wayleave_audit::Event;
use wayleave_instance::EventJournal;
use wayleave_runtime::Clock;
use wayleave_telemetry::{Counter, Diagnostics, Finding};

/// Writes events into the journal.
pub(crate) struct JournalSink {
    events: EventJournal,
    clock: Arc<dyn Clock>,
    noted: Counter,
    not_noted: Counter,
    sessions_begun: Counter,
    sessions_ended: Counter,
    refused: Counter,
    is_failing: Arc<AtomicBool>,
}

impl JournalSink {
    pub(crate) fn new(events: EventJournal, clock: Arc<dyn Clock>, diagnostics: &Diagnostics) -> Self {
        let counter = |name, help| diagnostics.metrics.counter(name, help, &[]);
        let is_failing: Arc<AtomicBool> = Arc::default();
        let failing = is_failing.clone();
        diagnostics.health.check(move || {
            let text = "the last audit event could not be written to the journal, so nobody is let in: check the disk \
                        of wayleave.data_dir";
            let is_failing = failing.load(Ordering::Relaxed);
            is_failing.then(|| Finding::unready("journal_failing", text)).into_iter().collect()
        });
        Self {
            events,
            clock,
            noted: counter("audit_journal_events_total", "Audit events that were written to the journal."),
            not_noted: counter(
                "audit_failed_journal_events_total",
                "Audit events that could not be written: what they tell of was refused.",
            ),
            sessions_begun: counter("ssh_sessions_begun_total", "SSH sessions that began."),
            sessions_ended: counter("ssh_sessions_ended_total", "SSH sessions that ended."),
            refused: counter(
                "ssh_refused_total",
                "Logins, sessions and forwards over SSH that were refused.",
            ),
            is_failing,
        }
    }

    fn count(&self, event: &Event) {
        match event {
            Event::SessionStart { .. } => self.sessions_begun.increment(),
            Event::SessionEnd { .. } => self.sessions_ended.increment(),
            Event::AuthAttempt { .. } | Event::SessionRejected { .. } | Event::AccessDenied { .. } => {
                self.refused.increment();
            }
            _ => {}
        }
    }
}

impl AuditSink for JournalSink {
    fn record(&self, event: Event) -> BoxFuture<'_, Result<(), AuditError>> {
        Box::pin(async move {
            self.count(&event);
            let recorded = self.events.record(event, self.clock.wall()).await;
            self.is_failing.store(recorded.is_err(), Ordering::Relaxed);
            match &recorded {
                Ok(()) => self.noted.increment(),
                Err(_) => self.not_noted.increment(),
            }
            recorded.map_err(|error| {
                let cause = &error as &dyn std::error::Error;
                tracing::warn!(error = cause, "an event cannot be noted: what it tells of is refused");
                AuditError(error.to_string())
            })
        })
    }
}
