//! Audit events of the process: on its own disk before the effect is acknowledged, then forwarded to Auth at least once.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::auth::{AuditRecord, EmitEventsRequest};
use wayleave_audit::{Envelope, Event, Origin};
use wayleave_journal::{Journal, JournalError};
use wayleave_rpc::Channel;
use wayleave_runtime::{Shutdown, random_bytes, random_u64};
use wayleave_vocab::{ClusterName, HostId, Wall};

/// Events that travel together.
const EVENTS_TOGETHER_MAX: usize = 256;
/// Bytes of events that are sent together; Auth takes no message of 4 MiB.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
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

    /// What is held and not yet with Auth, by whole segments, in bytes.
    pub fn held_bytes(&self) -> u64 {
        self.journal.held_bytes()
    }

    /// True when nothing more is taken.
    pub fn is_full(&self) -> bool {
        self.journal.is_full()
    }

    /// The next events, as many as go together, and the sequence of the last one that was looked at; nothing when there
    /// are none.
    fn batch_after(&self, sequence: u64) -> Result<Option<Batch>, JournalError> {
        let read = self.journal.read_after(sequence, EVENTS_TOGETHER_MAX)?;
        let (mut records, mut bytes, mut last) = (Vec::new(), 0usize, None);
        for (sequence, noted) in read {
            let origin = Origin { cluster: self.cluster.clone(), host_id: self.host_id, sequence };
            match serde_json::from_slice::<Noted>(&noted) {
                Ok(noted) => {
                    let event_json = Envelope::new(noted.event, origin, noted.uid, noted.time).encode();
                    bytes = bytes.saturating_add(event_json.len());
                    if bytes > BATCH_BYTES_MAX && !records.is_empty() {
                        break;
                    }
                    records.push(AuditRecord { sequence, event_json });
                }
                // It would be refused for ever, with everything behind it. Auth notes the gap.
                Err(error) => {
                    tracing::error!(sequence, %error, "an event in the journal cannot be read and is left out");
                }
            }
            last = Some(sequence);
        }
        Ok(last.map(|last| Batch { records, last }))
    }
}

/// Events that go to Auth in one call.
struct Batch {
    records: Vec<AuditRecord>,
    last: u64,
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
    let Some(Batch { records, last }) = events.batch_after(after).map_err(|e| e.to_string())? else {
        return Ok(None);
    };
    if records.is_empty() {
        return Ok(Some(last));
    }
    let answer = HostClient::new(auth.clone())
        .emit_events(EmitEventsRequest { records })
        .await
        .map_err(|status| status.message().to_owned())?;
    let sequence = answer.into_inner().acknowledged_sequence;
    events.journal.acknowledge(sequence).map_err(|e| e.to_string())?;
    Ok(Some(sequence.max(after)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wayleave_audit::Text;

    #[tokio::test]
    async fn i_no_event_stops_those_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), 1 << 30).unwrap();
        let cluster = ClusterName::parse("demo").unwrap();
        let events = EventJournal::new(journal.clone(), cluster, HostId::from_random([1; 16]));
        // Control characters are six times as long in JSON: all of them are more than Auth takes at once.
        let long = || Text::new("\u{1}".repeat(4096));
        for _ in 0..60 {
            let event = Event::AuthAttempt { user: long(), client_addr: None, error: long() };
            events.record(event, Wall::from_secs(1)).await.unwrap();
        }
        journal.append(b"of another release".to_vec()).await.unwrap();
        let event = Event::AuthAttempt { user: long(), client_addr: None, error: long() };
        events.record(event, Wall::from_secs(2)).await.unwrap();
        let (mut after, mut sent) = (0, Vec::new());
        while let Some(Batch { records, last }) = events.batch_after(after).unwrap() {
            let bytes: usize = records.iter().map(|record| record.event_json.len()).sum();
            assert!(bytes <= BATCH_BYTES_MAX && last > after, "{bytes} after {after}");
            sent.extend(records.into_iter().map(|record| record.sequence));
            after = last;
        }
        assert_eq!(sent, (1..=60).chain([62]).collect::<Vec<u64>>());
    }
}
