//! The audit log: a hash chain in the backend, written by one task.
//!
//! A change and its events are one batch: what is acknowledged is in the log, and what is in the log has happened.
//! Events of other processes are appended once, by the sequence of their journal. Each entry is stored as its hash, a
//! line end, and the exact bytes of the envelope.

use crate::keys;
use crate::records::{Records, decode, put};
use crate::request_error::RequestError;
use crate::rpc_admin::PAGE_BYTES_MAX;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};
use wayleave_audit::{
    Chain, ChainEntry, Envelope, Event, Intake, IntakeOutcome, Origin, Outcome, ResumptionAction,
};
use wayleave_runtime::{Clock, Shutdown, random_bytes};
use wayleave_store::{Committed, Condition, Item, Key, Operation, Revision, StoreError};
use wayleave_vocab::{ClusterName, HostId, Wall};

/// Writes that may wait for the log.
const WAITING_MAX: usize = 1024;
/// How often an append is tried again when another Auth instance appended at the same time.
const ATTEMPTS_MAX: usize = 16;
/// Events of one process that are appended together.
const EVENTS_TOGETHER_MAX: usize = 100;
/// Most events that one call may send.
const EVENTS_PER_CALL_MAX: usize = 1000;
/// Most events that one search answers.
pub(crate) const SEARCH_RESULTS_MAX: usize = 1000;
/// Entries read at once when the log is searched backwards, and most entries looked at.
const SEARCH_STEP: u64 = 500;
const SEARCH_ENTRIES_MAX: u64 = 200_000;

/// Hands writes to the log's task.
#[derive(Clone)]
pub(crate) struct AuditLog {
    appends: mpsc::Sender<Append>,
    cluster: ClusterName,
    resumptions: Arc<ResumptionCounts>,
}

/// What became of sessions whose connection was lost, since this Auth Service started.
#[derive(Default)]
struct ResumptionCounts {
    lost: AtomicU64,
    resumed: AtomicU64,
    refused: AtomicU64,
    expired: AtomicU64,
}

/// An event to append.
enum NewEvent {
    /// Auth's own: its place in the log is its sequence.
    Own(Box<Event>),
    /// Of another process, as it was journaled there.
    Foreign(Box<Envelope>),
}

/// A change and what is to be noted about it.
struct Append {
    conditions: Vec<Condition>,
    operations: Vec<Operation>,
    events: Vec<NewEvent>,
    answer: oneshot::Sender<Result<Committed, StoreError>>,
}

/// Writes the log.
pub(crate) struct AuditWriter {
    appends: mpsc::Receiver<Append>,
    records: Records,
    clock: Arc<dyn Clock>,
    cluster: ClusterName,
    host_id: HostId,
    head: Option<(Chain, Option<Revision>)>,
}

impl AuditLog {
    pub(crate) fn new(
        records: Records,
        clock: Arc<dyn Clock>,
        cluster: ClusterName,
        host_id: HostId,
    ) -> (Self, AuditWriter) {
        let (sender, appends) = mpsc::channel(WAITING_MAX);
        let log = Self { appends: sender, cluster: cluster.clone(), resumptions: Arc::default() };
        (log, AuditWriter { appends, records, clock, cluster, host_id, head: None })
    }

    /// Writes that wait.
    pub(crate) fn waiting(&self) -> usize {
        WAITING_MAX.saturating_sub(self.appends.capacity())
    }

    /// True while no more can wait.
    pub(crate) fn is_full(&self) -> bool {
        self.appends.capacity() == 0
    }

    /// Carries out a change and appends its events, all or nothing.
    pub(crate) async fn commit(
        &self,
        conditions: Vec<Condition>,
        operations: Vec<Operation>,
        events: Vec<Event>,
    ) -> Result<Committed, StoreError> {
        let events = events.into_iter().map(|event| NewEvent::Own(Box::new(event))).collect();
        self.append(conditions, operations, events).await
    }

    async fn append(
        &self,
        conditions: Vec<Condition>,
        operations: Vec<Operation>,
        events: Vec<NewEvent>,
    ) -> Result<Committed, StoreError> {
        let (answer, answered) = oneshot::channel();
        let append = Append { conditions, operations, events, answer };
        self.appends.send(append).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Appends events that go with no change.
    pub(crate) async fn note(&self, events: Vec<Event>) -> Result<(), RequestError> {
        self.commit(Vec::new(), Vec::new(), events)
            .await
            .map(|_| ())
            .map_err(RequestError::store("write the audit log"))
    }

    /// Appends what is new among the events that a process sent. Answers the highest sequence that is appended now.
    pub(crate) async fn append_from(
        &self,
        records: &Records,
        sender: HostId,
        events: &[Envelope],
    ) -> Result<u64, RequestError> {
        if events.len() > EVENTS_PER_CALL_MAX {
            return Err(RequestError::Invalid(format!("more than {EVENTS_PER_CALL_MAX} events in one call")));
        }
        let mut acknowledged = 0;
        let bytes_max = records.backend().bounds().batch_bytes_max / 2;
        for together in in_batches(events, bytes_max) {
            acknowledged = self.append_chunk(records, sender, together).await?;
        }
        Ok(acknowledged)
    }

    async fn append_chunk(
        &self,
        records: &Records,
        sender: HostId,
        events: &[Envelope],
    ) -> Result<u64, RequestError> {
        let key = keys::audit_source(sender);
        for _ in 0..ATTEMPTS_MAX {
            let stored = records.read::<u64>(&key).await?;
            let last = stored.as_ref().map_or(0, |stored| stored.value);
            let mut intake = Intake::new(self.cluster.clone(), BTreeMap::from([(sender, last)]));
            let (mut fresh, mut resumptions) = (Vec::new(), Vec::new());
            for envelope in events {
                let outcome = intake
                    .handle_event(sender, envelope)
                    .map_err(|refusal| RequestError::denied(refusal.to_string()))?;
                match outcome {
                    IntakeOutcome::Duplicate => continue,
                    IntakeOutcome::Append => {}
                    IntakeOutcome::AppendAfterGap { missing } => {
                        tracing::warn!(host_id = %sender, missing, "audit events of a process never came");
                    }
                }
                fresh.push(NewEvent::Foreign(Box::new(envelope.clone())));
                resumptions.extend(resumption(&envelope.event));
                intake.appended(envelope);
            }
            if fresh.is_empty() {
                return Ok(last);
            }
            let condition = match stored {
                Some(stored) => Condition::RevisionIs(key.clone(), stored.revision),
                None => Condition::Absent(key.clone()),
            };
            let newest = intake.last(sender);
            match self.append(vec![condition], vec![put(key.clone(), &newest)], fresh).await {
                Ok(_) => {
                    self.resumptions.add(&resumptions);
                    return Ok(newest);
                }
                Err(
                    StoreError::Conflict { .. }
                    | StoreError::AlreadyExists { .. }
                    | StoreError::NotFound { .. },
                ) => {}
                Err(error) => return Err(RequestError::store("write the audit log")(error)),
            }
        }
        Err(RequestError::Conflict("the same events are being sent by another connection".to_owned()))
    }

    /// What became of sessions whose connection was lost.
    pub(crate) fn resumptions(&self) -> wayleave_api::auth::Resumptions {
        let ResumptionCounts { lost, resumed, refused, expired } = &*self.resumptions;
        let [lost, resumed, refused, expired] =
            [lost, resumed, refused, expired].map(|count| count.load(Ordering::Relaxed));
        wayleave_api::auth::Resumptions { lost, resumed, refused, expired }
    }

    /// Events from a time on and before another, newest first.
    pub(crate) async fn search(&self, records: &Records, query: &SearchQuery) -> Result<Found, RequestError> {
        let head = records.read::<Chain>(&keys::audit_head()).await?;
        let length = head.map_or(0, |stored| stored.value.length);
        let mut end = query.before.unwrap_or(length).min(length);
        let stop = end.saturating_sub(SEARCH_ENTRIES_MAX);
        let mut found = Found { json: Vec::new(), next: 0 };
        let mut bytes = 0_usize;
        while end > stop {
            let start = end.saturating_sub(SEARCH_STEP).max(stop);
            let entries =
                read_entries(records, start, end).await.map_err(RequestError::store("read the audit log"))?;
            for (index, envelope) in entries.iter().rev().filter_map(envelope_of) {
                if !query.matches(&envelope) {
                    continue;
                }
                let text = String::from_utf8_lossy(&envelope.encode()).into_owned();
                bytes = bytes.saturating_add(text.len());
                if found.json.len() >= query.limit || (bytes > PAGE_BYTES_MAX && !found.json.is_empty()) {
                    found.next = index.saturating_add(1);
                    return Ok(found);
                }
                found.json.push(text);
            }
            end = start;
        }
        found.next = end;
        Ok(found)
    }
}

/// What an event tells of a resumption, and whether it succeeded.
fn resumption(event: &Event) -> Option<(ResumptionAction, bool)> {
    match event {
        Event::Resumption { action, outcome, .. } => Some((*action, *outcome == Outcome::Success)),
        _ => None,
    }
}

impl ResumptionCounts {
    fn add(&self, resumptions: &[(ResumptionAction, bool)]) {
        for (action, succeeded) in resumptions {
            let count = match (action, succeeded) {
                (ResumptionAction::Detached, _) => &self.lost,
                (ResumptionAction::Resumed, true) => &self.resumed,
                (ResumptionAction::Resumed, false) => &self.refused,
                (ResumptionAction::Expired, _) => &self.expired,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Events in groups that are appended together: few enough, and light enough for one batch of the backend.
fn in_batches(events: &[Envelope], bytes_max: usize) -> Vec<&[Envelope]> {
    let (mut groups, mut rest) = (Vec::new(), events);
    while !rest.is_empty() {
        let mut bytes = 0_usize;
        let fits = rest.iter().take(EVENTS_TOGETHER_MAX).take_while(|envelope| {
            bytes = bytes.saturating_add(envelope.encode().len());
            bytes <= bytes_max
        });
        let (group, later) = rest.split_at(fits.count().max(1));
        groups.push(group);
        rest = later;
    }
    groups
}

/// What a search gives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The events as JSON, newest first.
    pub(crate) json: Vec<String>,
    /// Everything from this entry of the log on was looked at; 0 when there is nothing before.
    pub(crate) next: u64,
}

/// The entries from `start` on and before `end`; a page may hold fewer than are wanted when they are large.
async fn read_entries(records: &Records, start: u64, end: u64) -> Result<Vec<Item>, StoreError> {
    let mut after = start.checked_sub(1).map(keys::audit_event);
    let mut entries: Vec<Item> = Vec::new();
    let wanted = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
    while entries.len() < wanted {
        let left = wanted.saturating_sub(entries.len());
        let page = records.backend().range(&keys::audit_events(), after.as_ref(), left).await?;
        after = page.items.last().map(|item| item.key.clone());
        entries.extend(page.items);
        if !page.more {
            break;
        }
    }
    Ok(entries)
}

/// Which events are wanted.
#[derive(Debug)]
pub(crate) struct SearchQuery {
    pub(crate) from: Wall,
    pub(crate) to: Wall,
    pub(crate) codes: Vec<String>,
    pub(crate) limit: usize,
    /// Only entries of the log before this one.
    pub(crate) before: Option<u64>,
}

impl SearchQuery {
    fn matches(&self, envelope: &Envelope) -> bool {
        envelope.time >= self.from
            && envelope.time < self.to
            && (self.codes.is_empty() || self.codes.iter().any(|code| code == envelope.event.code()))
    }
}

impl AuditWriter {
    /// Writes until shutdown, then finishes what waits.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        loop {
            let append = tokio::select! {
                biased;
                append = self.appends.recv() => append,
                () = shutdown.requested() => {
                    self.appends.close();
                    self.appends.recv().await
                }
            };
            let Some(append) = append else { return };
            let result = self.append(&append).await;
            // Whoever asked may have given up; the write stands.
            let _ = append.answer.send(result);
        }
    }

    async fn append(&mut self, append: &Append) -> Result<Committed, StoreError> {
        if append.events.is_empty() {
            return self.records.commit(append.conditions.clone(), append.operations.clone()).await;
        }
        let head_key = keys::audit_head();
        for _ in 0..ATTEMPTS_MAX {
            let (mut chain, revision) = self.head().await?;
            let mut conditions = append.conditions.clone();
            conditions.push(match revision {
                Some(revision) => Condition::RevisionIs(head_key.clone(), revision),
                None => Condition::Absent(head_key.clone()),
            });
            let mut operations = append.operations.clone();
            for event in &append.events {
                let (next, entry) = chain.append(self.bytes(event, chain.length));
                chain = next;
                operations.push(entry_operation(&entry));
            }
            operations.push(put(head_key.clone(), &chain));
            match self.records.commit(conditions, operations).await {
                Ok(committed) => {
                    self.head = Some((chain, Some(committed.revision)));
                    return Ok(committed);
                }
                Err(error) => {
                    // What stands there now is read again: after an error it is not known.
                    self.head = None;
                    if !is_about(&error, &head_key) {
                        return Err(error);
                    }
                }
            }
        }
        Err(StoreError::Busy { queue: "audit log" })
    }

    fn bytes(&self, event: &NewEvent, index: u64) -> Vec<u8> {
        match event {
            NewEvent::Foreign(envelope) => envelope.encode(),
            NewEvent::Own(event) => {
                let origin = Origin {
                    cluster: self.cluster.clone(),
                    host_id: self.host_id,
                    sequence: index.saturating_add(1),
                };
                Envelope::new(Event::clone(event), origin, random_bytes(), self.clock.wall()).encode()
            }
        }
    }

    async fn head(&mut self) -> Result<(Chain, Option<Revision>), StoreError> {
        if let Some(known) = self.head {
            return Ok(known);
        }
        let item = self.records.backend().get(&keys::audit_head()).await?;
        let head = match item {
            None => (Chain::beginning(&self.cluster), None),
            Some(item) => match decode::<Chain>(&item) {
                Ok(stored) => (stored.value, Some(stored.revision)),
                Err(error) => {
                    tracing::error!(%error, "the audit log cannot be continued");
                    return Err(StoreError::Invalid { reason: "the head of the audit log is damaged" });
                }
            },
        };
        self.head = Some(head);
        Ok(head)
    }
}

fn entry_operation(entry: &ChainEntry) -> Operation {
    let mut value = entry.hash.to_string().into_bytes();
    value.push(b'\n');
    value.extend_from_slice(&entry.bytes);
    Operation::Put { key: keys::audit_event(entry.index), value: value.into(), lease: None }
}

/// The entry of the chain as it was stored.
pub(crate) fn entry_of(item: &Item) -> Option<ChainEntry> {
    let index = item.key.name().parse().ok()?;
    let split = item.value.iter().position(|byte| *byte == b'\n')?;
    let hash = std::str::from_utf8(item.value.get(..split)?).ok()?.parse().ok()?;
    Some(ChainEntry { index, bytes: item.value.get(split.checked_add(1)?..)?.to_vec(), hash })
}

fn envelope_of(item: &Item) -> Option<(u64, Envelope)> {
    let entry = entry_of(item)?;
    Some((entry.index, Envelope::decode(&entry.bytes).ok()?))
}

fn is_about(error: &StoreError, wanted: &Key) -> bool {
    match error {
        StoreError::Conflict { key, .. }
        | StoreError::AlreadyExists { key, .. }
        | StoreError::NotFound { key } => key == wanted,
        _ => false,
    }
}
