//! Where audit events go.

use futures::future::BoxFuture;
use wayleave_audit::Event;

/// The event was not written.
#[derive(Debug, thiserror::Error)]
#[error("the audit event was not written: {0}")]
pub struct AuditError(pub String);

/// Takes events.
pub trait AuditSink: Send + Sync + 'static {
    /// Returns when the event is safe. What it tells of happens only after that, and not when it fails.
    fn record(&self, event: Event) -> BoxFuture<'_, Result<(), AuditError>>;
}
