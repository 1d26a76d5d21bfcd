//! What SSH notes, into the journal of this process.

use futures::future::BoxFuture;
use std::sync::Arc;
use wayleave_adapter_ssh::{AuditError, AuditSink};
use wayleave_audit::Event;
use wayleave_instance::EventJournal;
use wayleave_runtime::Clock;

/// Writes events into the journal.
pub(crate) struct JournalSink {
    events: EventJournal,
    clock: Arc<dyn Clock>,
}

impl JournalSink {
    pub(crate) fn new(events: EventJournal, clock: Arc<dyn Clock>) -> Self {
        Self { events, clock }
    }
}

impl AuditSink for JournalSink {
    fn record(&self, event: Event) -> BoxFuture<'_, Result<(), AuditError>> {
        Box::pin(async move {
            self.events.record(event, self.clock.wall()).await.map_err(|error| {
                let cause = &error as &dyn std::error::Error;
                tracing::warn!(error = cause, "an event cannot be noted: what it tells of is refused");
                AuditError(error.to_string())
            })
        })
    }
}
