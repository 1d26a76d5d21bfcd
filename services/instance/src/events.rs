//! Audit events of the process: on its own disk before the effect is acknowledged, then forwarded to Auth at least once.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use tonic::transport::Channel;
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::auth::{AuditRecord, EmitEventsRequest};
use wayleave_audit::{Envelope, Event, Origin};
use wayleave_journal::{Journal, JournalError};
use wayleave_runtime::{Shutdown, random_bytes, random_u64};
use wayleave_vocab::{ClusterName, HostId, Wall};

/// Events that travel together.
const EVENTS_TOGETHER_MAX: usize = 256;
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Takes events of this process. Clones share it.
#[derive(Clone)]
pub struct EventJournal {
    journal: Journal,
    cluster: ClusterName,
    host_id: HostId,
}

/// An event that could not be noted: what it tells of must not happen.
#[derive(Debug, thiserror::Error)]
pub enum EventJournalError {
    /// The journal does not take it.
    #[error("the event cannot be noted")]
    Journal(#[source] JournalError),
    /// The event cannot be written down.
    #[error("the event cannot be written down: {0}")]
    Encode(String),
}

/// An event in the journal. The journal's sequence joins it when it is forwarded.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Noted {
    uid: [u8; 16],
    time: Wall,
    event: Event,
}

impl EventJournal {
    /// Notes into a journal for this process.
    pub fn new(journal: Journal, cluster: ClusterName, host_id: HostId) -> Self {
        Self { journal, cluster, host_id }
    }

    /// Notes an event; it is on disk when this returns.
    ///
    /// # Errors
    /// See [`EventJournalError`].
    pub async fn record(&self, event: Event, now: Wall) -> Result<(), EventJournalError> {
        let noted = Noted { uid: random_bytes(), time: now, event };
        let bytes = serde_json::to_vec(&noted).map_err(|e| EventJournalError::Encode(e.to_string()))?;
        self.journal.append(bytes).await.map(|_| ()).map_err(EventJournalError::Journal)
    }

    fn records_after(&self, sequence: u64) -> Result<Vec<AuditRecord>, JournalError> {
        let read = self.journal.read_after(sequence, EVENTS_TOGETHER_MAX)?;
        let records = read.into_iter().map(|(sequence, bytes)| {
            let origin = Origin { cluster: self.cluster.clone(), host_id: self.host_id, sequence };
            // One that cannot be read any more goes as it is: Auth refuses it by name instead of a gap in the row.
            let event_json = match serde_json::from_slice::<Noted>(&bytes) {
                Ok(noted) => Envelope::new(noted.event, origin, noted.uid, noted.time).encode(),
                Err(_) => bytes,
            };
            AuditRecord { sequence, event_json }
        });
        Ok(records.collect())
    }
}

/// Forwards events to Auth until shutdown; what is left then goes after the next start. `auth` presents a certificate of
/// this process.
pub async fn forward_events(events: EventJournal, auth: Channel, shutdown: Shutdown) {
    let mut last = events.journal.watch();
    let mut forwarded = 0;
    let mut retry = RETRY_MIN;
    while !shutdown.is_requested() {
        last.borrow_and_update();
        match forward_once(&auth, &events, forwarded).await {
            Ok(Some(sequence)) => {
                forwarded = sequence;
                retry = RETRY_MIN;
            }
            Ok(None) => {
                let _ = shutdown.until(last.changed()).await;
            }
            Err(error) => {
                tracing::warn!(%error, "events are not forwarded now; they wait in the journal");
                let pause = retry / 2 + Duration::from_millis(random_u64() % 500);
                retry = (retry * 2).min(RETRY_MAX);
                let _ = shutdown.until(tokio::time::sleep(pause)).await;
            }
        }
    }
}

/// Forwards one batch; gives the last sequence that Auth has, or nothing when there was nothing to do.
async fn forward_once(auth: &Channel, events: &EventJournal, after: u64) -> Result<Option<u64>, String> {
    let records = events.records_after(after).map_err(|e| e.to_string())?;
    if records.is_empty() {
        return Ok(None);
    }
    let answer = HostClient::new(auth.clone())
        .emit_events(EmitEventsRequest { records })
        .await
        .map_err(|status| status.message().to_owned())?;
    let sequence = answer.into_inner().acknowledged_sequence;
    events.journal.acknowledge(sequence).map_err(|e| e.to_string())?;
    Ok(Some(sequence.max(after)))
}
