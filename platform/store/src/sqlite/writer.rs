//! The writing thread: group commit.
//!
//! All requests that wait are decided one after the other and written in one transaction, so that
//! they share one flush of the disk. A request is decided before it writes anything, so one that is
//! refused leaves no trace and needs no savepoint. When the transaction fails as a whole, each request
//! is tried again alone, so that a large one on a nearly full disk fails nobody else. Nobody is
//! answered, and no watch sees a change, before it is durable.

use super::queue::{Reply, Room};
use super::tables::{self, Head};
use crate::backend::{BATCH_OPERATIONS_MAX, Revision};
use crate::error::StoreError;
use crate::history::{Change, Event, Mark, Retention};
use crate::key::Key;
use crate::lease::{LeaseId, Leases};
use crate::plan::{Batch, Current, State};
use crate::watch::Hub;
use rusqlite::Connection;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wayleave_runtime::Clock;
use wayleave_vocab::{Mono, Wall};

/// Most requests of one transaction.
const GROUP_REQUESTS_MAX: usize = 256;
/// A transaction takes no further request when it has this many bytes of values.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// Most keys that one `maintain` deletes.
const MAINTAIN_KEYS_MAX: usize = 4096;
/// Most changes that one transaction forgets.
const FORGET_CHANGES_MAX: usize = 1024;

/// What is to be written.
#[derive(Debug)]
pub(super) enum Request {
    Batch(Batch),
    LeaseGrant(Duration),
    LeaseRevoke(LeaseId),
    Maintain,
}

impl Request {
    /// What it weighs in the queue.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.bytes(),
            Self::LeaseGrant(_) | Self::LeaseRevoke(_) | Self::Maintain => 0,
        }
    }
}

/// A request and who waits for it.
pub(super) struct Write {
    pub(super) request: Request,
    pub(super) reply: Reply<Done>,
    pub(super) room: Room,
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) revision: Revision,
    pub(super) deleted: usize,
    /// The newest lease; for a grant, the one granted.
    pub(super) lease_last: LeaseId,
}

pub(super) struct Writer {
    pub(super) path: PathBuf,
    pub(super) connection: Connection,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) leases: Arc<Mutex<Leases>>,
    pub(super) hub: Arc<Hub>,
    pub(super) retention: Retention,
    pub(super) head: Head,
    /// The last transaction failed, and that has been logged.
    pub(super) failing: bool,
}

type Answers = Vec<Result<Done, StoreError>>;

impl Writer {
    /// Writes until the queue ends.
    pub(super) fn run(mut self, waiting: &Receiver<Write>) -> Self {
        while let Ok(first) = waiting.recv() {
            let mut bytes = first.request.bytes();
            let mut group = vec![first];
            while group.len() < GROUP_REQUESTS_MAX && bytes < GROUP_BYTES_MAX {
                let Ok(next) = waiting.try_recv() else {
                    break;
                };
                bytes = bytes.saturating_add(next.request.bytes());
                group.push(next);
            }
            self.serve(group);
        }
        self
    }

    /// Folds the log into the file and closes it.
    pub(super) fn finish(self) {
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(path = %self.path.display(), %error, "the backend's file was not closed cleanly");
        }
    }

    fn serve(&mut self, group: Vec<Write>) {
        let requests: Vec<_> = group.iter().map(|write| &write.request).collect();
        let committed = self.commit(&requests);
        self.log_turn(committed.as_ref().err());
        let answers = match committed {
            Ok(answers) => answers,
            Err(error) if requests.len() == 1 => vec![Err(error)],
            Err(_) => requests.iter().map(|request| self.commit_alone(request)).collect(),
        };
        for (write, answer) in group.into_iter().zip(answers) {
            drop(write.room);
            // The caller may have given up waiting; the write stands all the same.
            let _ = write.reply.send(answer);
        }
    }

    /// Logs when writing begins to fail and when it works again, not each failure.
    fn log_turn(&mut self, failure: Option<&StoreError>) {
        match failure {
            Some(error) if !self.failing => {
                let cause = error.source().map(ToString::to_string);
                tracing::warn!(%error, cause, "writing to the backend fails");
            }
            None if self.failing => {
                tracing::info!(path = %self.path.display(), "writing to the backend works again")
            }
            Some(_) | None => {}
        }
        self.failing = failure.is_some();
    }

    fn commit_alone(&mut self, request: &Request) -> Result<Done, StoreError> {
        let mut answers = self.commit(&[request])?;
        answers.pop().unwrap_or(Err(StoreError::Invalid { reason: "a request without an answer" }))
    }

    /// One transaction. `Err` if it failed as a whole, and then nothing was changed.
    fn commit(&mut self, requests: &[&Request]) -> Result<Answers, StoreError> {
        let fail = |error| tables::store_error(&self.path, "write", error);
        let transaction = self
            .connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(fail)?;
        let mut draft = Draft {
            path: &self.path,
            db: &transaction,
            leases: &self.leases,
            mono: self.clock.mono(),
            wall: self.clock.wall(),
            start: self.head,
            head: self.head,
            changes: Vec::new(),
            granted: Vec::new(),
            ended: Vec::new(),
        };
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            match draft.carry_out(request) {
                // Dropping the transaction takes everything back.
                Err(error) if is_failure(&error) => return Err(error),
                answer => answers.push(answer),
            }
        }
        let marks: Vec<_> = draft.changes.iter().map(|change| draft.mark(change)).collect();
        let forget = self.retention.due(&marks, FORGET_CHANGES_MAX, draft.wall);
        if let Some(upto) = forget {
            tables::forget(draft.db, draft.start.floor, upto).map_err(fail)?;
            draft.head.floor = upto;
        }
        let Draft { head, changes, granted, ended, mono, .. } = draft;
        if head == self.head && ended.is_empty() {
            return Ok(answers);
        }
        tables::set_head(&transaction, head).map_err(fail)?;
        transaction.commit().map_err(fail)?;

        self.head = head;
        self.settle_leases(granted, ended, mono);
        for mark in marks {
            self.retention.push(mark);
        }
        self.hub.publish(changes);
        if let Some(upto) = forget {
            self.retention.forget(upto);
            self.hub.forget(upto);
        }
        Ok(answers)
    }

    fn settle_leases(&self, granted: Vec<(LeaseId, Duration)>, ended: Vec<LeaseId>, now: Mono) {
        let mut leases = lock(&self.leases);
        for (lease, ttl) in granted {
            leases.insert(lease, ttl, now);
        }
        for lease in ended {
            leases.remove(lease);
        }
    }
}

/// What the requests of one transaction have come to so far.
struct Draft<'a> {
    path: &'a Path,
    db: &'a Connection,
    leases: &'a Mutex<Leases>,
    mono: Mono,
    wall: Wall,
    /// Where the file stood before.
    start: Head,
    head: Head,
    changes: Vec<Change>,
    granted: Vec<(LeaseId, Duration)>,
    ended: Vec<LeaseId>,
}

impl Draft<'_> {
    fn carry_out(&mut self, request: &Request) -> Result<Done, StoreError> {
        let deleted = match request {
            Request::Batch(batch) => {
                let plan = batch.plan(self.head.revision.next(), self)?;
                self.write(plan.events)?;
                plan.deleted
            }
            Request::LeaseGrant(ttl) => self.grant(*ttl)?,
            Request::LeaseRevoke(lease) => {
                if !self.lease_is_live(*lease) {
                    return Err(StoreError::LeaseNotFound { lease: *lease });
                }
                self.end_lease(*lease, usize::MAX)?
            }
            Request::Maintain => self.end_expired()?,
        };
        Ok(Done { revision: self.head.revision, deleted, lease_last: self.head.lease_last })
    }

    fn write(&mut self, events: Vec<Event>) -> Result<(), StoreError> {
        if events.is_empty() {
            return Ok(());
        }
        self.head.revision = self.head.revision.next();
        let change = Change { revision: self.head.revision, events };
        let written = tables::write(self.db, &change, self.start.floor, self.wall);
        written.map_err(|error| self.failed(error))?;
        self.changes.push(change);
        Ok(())
    }

    fn grant(&mut self, ttl: Duration) -> Result<usize, StoreError> {
        lock(self.leases).has_room_behind(self.granted.len())?;
        let lease = LeaseId(self.head.lease_last.0.saturating_add(1));
        tables::insert_lease(self.db, lease, ttl).map_err(|error| self.failed(error))?;
        self.head.lease_last = lease;
        self.granted.push((lease, ttl));
        Ok(0)
    }

    fn end_expired(&mut self) -> Result<usize, StoreError> {
        let expired = lock(self.leases).expired(self.mono);
        let mut deleted = 0_usize;
        for lease in expired {
            if deleted >= MAINTAIN_KEYS_MAX {
                break;
            }
            if !self.ended.contains(&lease) {
                deleted = deleted.saturating_add(self.end_lease(lease, MAINTAIN_KEYS_MAX - deleted)?);
            }
        }
        Ok(deleted)
    }

    /// Deletes keys of a lease, at most `limit`, and the lease when none is left.
    fn end_lease(&mut self, lease: LeaseId, limit: usize) -> Result<usize, StoreError> {
        let keys = tables::lease_keys(self.db, lease, limit).map_err(|error| self.failed(error))?;
        for chunk in keys.chunks(BATCH_OPERATIONS_MAX) {
            let revision = self.head.revision.next();
            let events = chunk.iter().map(|key| Event::Delete { key: key.clone(), revision });
            self.write(events.collect())?;
        }
        if keys.len() < limit {
            tables::delete_lease(self.db, lease).map_err(|error| self.failed(error))?;
            self.ended.push(lease);
        }
        Ok(keys.len())
    }

    fn mark(&self, change: &Change) -> Mark {
        Mark { revision: change.revision, at: self.wall, bytes: change.bytes() }
    }

    fn failed(&self, error: rusqlite::Error) -> StoreError {
        tables::store_error(self.path, "write", error)
    }
}

impl State for Draft<'_> {
    fn current(&mut self, key: &Key) -> Result<Option<Current>, StoreError> {
        tables::current(self.db, key).map_err(|error| self.failed(error))
    }

    fn lease_is_live(&self, lease: LeaseId) -> bool {
        !self.ended.contains(&lease) && lock(self.leases).is_live(lease, self.mono)
    }
}

/// True for an error of the file, which concerns the whole transaction, not one request.
fn is_failure(error: &StoreError) -> bool {
    matches!(error, StoreError::Full { .. } | StoreError::Corrupt { .. } | StoreError::Unavailable { .. })
}

fn lock(leases: &Mutex<Leases>) -> MutexGuard<'_, Leases> {
    leases.lock().unwrap_or_else(PoisonError::into_inner)
}
