//! The writing task: group commit, as the SQLite backend has it.
//!
//! All requests that wait are decided one after the other and written in one transaction, in two round trips: lock the
//! head and read what they touch; write and commit. When a transaction fails because the disk is full, each request is
//! tried again alone. A failure after the commit was sent leaves it open whether it was stored, and says so.

use super::connect::{Lane, Session};
use super::draft::{Draft, Standing};
use super::fault::Faults;
use super::tables::{self, Head, first_row, signed, unsigned};
use crate::backend::{BATCH_OPERATIONS_MAX, Operation, Revision};
use crate::error::StoreError;
use crate::history::{Event, HistoryLimits};
use crate::key::Key;
use crate::lease::{LEASES_MAX, LeaseId};
use crate::plan::Batch;
use crate::watch::Hub;
use std::collections::{HashMap, HashSet};
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_postgres::types::ToSql;
use wayleave_runtime::Clock;
use wayleave_vocab::Mono;

/// Most requests of one transaction.
const GROUP_REQUESTS_MAX: usize = 256;
/// A transaction takes no further request when it has this many bytes of values.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// Most keys that one `maintain` deletes.
const MAINTAIN_KEYS_MAX: usize = 4096;
/// Most changes that one transaction forgets.
const FORGET_CHANGES_MAX: u64 = 8192;
/// How often it is looked whether history must be forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);
/// Longer than the server takes to give up by itself.
const STEP_DEADLINE: Duration = Duration::from_secs(15);
/// How long the changes that are forgotten may take to be followed.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(1);
/// After a failure, leases have this time to be kept alive before any is ended.
const LEASE_GRACE: Duration = Duration::from_secs(10);

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

    /// True if it can be decided on what is read beforehand, together with others.
    fn goes_with_others(&self) -> bool {
        match self {
            Self::Batch(_) | Self::LeaseGrant(_) => true,
            Self::LeaseRevoke(_) | Self::Maintain => false,
        }
    }
}

/// A request, who waits for it, and its weight in the queue.
pub(super) struct Write {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Result<Done, StoreError>>,
    pub(super) room: Room,
}

/// Bytes that a request takes in the queue, given back when it is dropped.
pub(super) struct Room {
    pub(super) all: Arc<AtomicUsize>,
    pub(super) bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) revision: Revision,
    pub(super) deleted: usize,
    /// For a grant, the lease.
    pub(super) lease: LeaseId,
}

type Answers = Vec<Result<Done, StoreError>>;

pub(super) struct Writer {
    pub(super) lane: Lane,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) faults: Faults,
    pub(super) history: HistoryLimits,
    pub(super) hub: Arc<Hub>,
    /// Wakes the task that follows the log.
    pub(super) bell: Arc<Notify>,
    /// When writing failed last.
    pub(super) failed_at: Option<Mono>,
    /// The last transaction failed, and that has been logged.
    pub(super) failing: bool,
    pub(super) forgot_at: Option<Mono>,
}

impl Writer {
    /// Writes until the queue ends.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Write>) {
        let mut put_off = None;
        loop {
            let first = match put_off.take() {
                Some(write) => Some(write),
                None => waiting.recv().await,
            };
            let Some(first) = first else { return };
            let mut bytes = first.request.bytes();
            let mut group: Vec<Write> = vec![first];
            let is_open = group.iter().all(|write| write.request.goes_with_others());
            while is_open && group.len() < GROUP_REQUESTS_MAX && bytes < GROUP_BYTES_MAX {
                let Ok(next) = waiting.try_recv() else { break };
                if !next.request.goes_with_others() {
                    put_off = Some(next);
                    break;
                }
                bytes = bytes.saturating_add(next.request.bytes());
                group.push(next);
            }
            self.serve(group).await;
        }
    }

    async fn serve(&mut self, group: Vec<Write>) {
        let requests: Vec<_> = group.iter().map(|write| &write.request).collect();
        let committed = self.commit(&requests).await;
        self.note(committed.as_ref().err());
        let answers = match committed {
            Ok(answers) => answers,
            Err(StoreError::Full { .. }) if requests.len() > 1 => {
                let mut answers = Vec::with_capacity(requests.len());
                for request in &requests {
                    answers.push(self.commit_alone(request).await);
                }
                answers
            }
            Err(error) => requests.iter().map(|_| Err(error.clone())).collect(),
        };
        for (write, answer) in group.into_iter().zip(answers) {
            drop(write.room);
            // The caller may have given up waiting; the write stands all the same.
            let _ = write.reply.send(answer);
        }
    }

    /// Logs when writing begins to fail and when it works again, not each failure.
    fn note(&mut self, failure: Option<&StoreError>) {
        match failure {
            Some(error) if !self.failing => {
                let cause = error.source().map(ToString::to_string);
                tracing::warn!(%error, cause, "writing to the backend fails");
            }
            None if self.failing => {
                tracing::info!(server = %self.faults.server, "writing to the backend works again");
            }
            Some(_) | None => {}
        }
        self.failing = failure.is_some();
        if self.failing {
            self.failed_at = Some(self.clock.mono());
        }
    }

    async fn commit_alone(&mut self, request: &Request) -> Result<Done, StoreError> {
        let mut answers = self.commit(&[request]).await?;
        answers.pop().unwrap_or(Err(StoreError::Invalid { reason: "a request without an answer" }))
    }

    /// One transaction. `Err` if it failed as a whole.
    async fn commit(&mut self, requests: &[&Request]) -> Result<Answers, StoreError> {
        let session = self.lane.session("write").await?;
        let step = async {
            match requests {
                [Request::LeaseRevoke(lease)] => self.revoke(&session, *lease).await.map(|done| vec![done]),
                [Request::Maintain] => self.maintain(&session).await.map(|done| vec![Ok(done)]),
                requests => self.commit_group(&session, requests).await,
            }
        };
        match tokio::time::timeout(STEP_DEADLINE.saturating_mul(2), step).await {
            Ok(done) => done,
            Err(_) => {
                session.give_up();
                Err(self.faults.slow_write())
            }
        }
    }

    async fn commit_group(&self, session: &Session, requests: &[&Request]) -> Result<Answers, StoreError> {
        let mut draft = self.begin(session, requests).await?;
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            answers.push(carry_out(&mut draft, request));
        }
        self.finish(session, draft).await?;
        Ok(answers)
    }

    /// Begins a transaction, locks the head and reads what the requests touch.
    async fn begin(&self, session: &Session, requests: &[&Request]) -> Result<Draft, StoreError> {
        let (db, statements) = (&session.db, &session.statements);
        let (mut keys, mut leases, mut grants) = (HashSet::new(), HashSet::new(), false);
        for request in requests {
            match request {
                Request::Batch(batch) => {
                    keys.extend(batch.keys().map(Key::as_str));
                    leases.extend(batch.operations().iter().filter_map(lease_of));
                }
                Request::LeaseGrant(_) => grants = true,
                Request::LeaseRevoke(_) | Request::Maintain => {}
            }
        }
        let keys: Vec<&str> = keys.into_iter().collect();
        let leases: Vec<i64> = leases.into_iter().collect();
        // Sent together, answered in order.
        let (begun, head, items, live, count) = futures::join!(
            db.batch_execute("BEGIN"),
            db.query_one(&statements.lock_head, &[]),
            async { db.query(&statements.current, &[&keys]).await },
            async { db.query(&statements.live_leases, &[&leases]).await },
            async {
                match grants {
                    true => db.query_one(&statements.count_leases, &[]).await.map(Some),
                    false => Ok(None),
                }
            },
        );
        let read = async {
            let failed = |error| self.faults.of("write", error);
            begun.map_err(failed)?;
            let head = tables::head(&head.map_err(failed)?).map_err(|error| self.faults.damaged(error))?;
            let mut standing = HashMap::new();
            for row in items.map_err(failed)? {
                let key = tables::key(&row, 0).map_err(|error| self.faults.damaged(error))?;
                let (log_id, lease) = (row.try_get(1).map_err(failed)?, row.try_get(2).map_err(failed)?);
                standing.insert(key, Standing { log_id, lease: tables::lease(lease) });
            }
            let mut live_leases = HashSet::new();
            for row in live.map_err(failed)? {
                live_leases.insert(LeaseId(unsigned(row.try_get(0).map_err(failed)?)));
            }
            let count: i64 = match count.map_err(failed)? {
                Some(row) => row.try_get(0).map_err(failed)?,
                None => 0,
            };
            Ok(Draft::new(head, standing, live_leases, usize::try_from(count).unwrap_or_default()))
        };
        match read.await {
            Ok(draft) => Ok(draft),
            Err(error) => {
                self.roll_back(session).await;
                Err(error)
            }
        }
    }

    /// Writes what the draft has and commits, or rolls back if it has nothing.
    async fn finish(&self, session: &Session, draft: Draft) -> Result<(), StoreError> {
        if !draft.has_events() && draft.granted.is_empty() {
            self.roll_back(session).await;
            return Ok(());
        }
        let (db, statements) = (&session.db, &session.statements);
        let at_ms = signed(self.clock.wall().as_ms());
        let log = draft.log_rows();
        let (items, gone) = draft.item_rows();
        let (lease_ids, lease_ttls): (Vec<i64>, Vec<i64>) = draft
            .granted
            .iter()
            .map(|(lease, ttl)| (signed(lease.0), i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)))
            .unzip();
        let Head { revision, floor, lease_last, .. } = &draft.head;
        let (revision, floor, lease_last) = (signed(revision.0), signed(floor.0), signed(lease_last.0));
        let done = futures::join!(
            async {
                let columns: [&(dyn ToSql + Sync); 6] =
                    [&at_ms, &log.ids, &log.keys, &log.leases, &log.bytes, &log.values];
                db.execute(&statements.insert_log, &columns).await
            },
            async {
                let columns: [&(dyn ToSql + Sync); 4] =
                    [&items.keys, &items.ids, &items.leases, &items.bytes];
                db.execute(&statements.put_items, &columns).await
            },
            async { db.execute(&statements.delete_items, &[&gone]).await },
            async { db.execute(&statements.delete_log, &[&draft.unneeded]).await },
            async { db.execute(&statements.insert_leases, &[&lease_ids, &lease_ttls]).await },
            async { db.execute(&statements.set_head, &[&revision, &floor, &lease_last]).await },
            db.query(&statements.wake, &[]),
            db.batch_execute("COMMIT"),
        );
        let (log, items, gone, unneeded, leases, head, woken, committed) = done;
        // The commit of a transaction in which something failed is answered as if it were one.
        let written = log.and(items).and(gone).and(unneeded).and(leases).and(head).and(woken.map(|_| 0));
        if let Err(error) = written.and(committed.map(|()| 0)) {
            if error.code().is_none() {
                session.give_up();
            }
            return Err(self.faults.of("write", error));
        }
        self.bell.notify_one();
        Ok(())
    }

    async fn roll_back(&self, session: &Session) {
        let rolled_back = tokio::time::timeout(STEP_DEADLINE, session.db.batch_execute("ROLLBACK")).await;
        if !matches!(rolled_back, Ok(Ok(()))) {
            session.give_up();
        }
    }

    async fn revoke(
        &self,
        session: &Session,
        lease: LeaseId,
    ) -> Result<Result<Done, StoreError>, StoreError> {
        let mut draft = self.begin(session, &[]).await?;
        let ended = async {
            let live = session.db.query(&session.statements.live_leases, &[&vec![signed(lease.0)]]).await?;
            if live.is_empty() {
                return Ok(None);
            }
            self.end_lease(session, &mut draft, lease, usize::MAX).await.map(Some)
        };
        let ended = self.or_roll_back(session, ended.await).await?;
        let Some(deleted) = ended else {
            self.roll_back(session).await;
            return Ok(Err(StoreError::LeaseNotFound { lease }));
        };
        let revision = draft.head.revision;
        self.finish_ending(session, draft, true).await?;
        Ok(Ok(Done { revision, deleted, lease }))
    }

    /// Ends leases whose time has run out and forgets history beyond its bounds.
    async fn maintain(&mut self, session: &Session) -> Result<Done, StoreError> {
        let now = self.clock.mono();
        let in_grace = self.failed_at.is_some_and(|at| now.since(at) < LEASE_GRACE);
        let may_forget = self.forgot_at.is_none_or(|at| now.since(at) >= FORGET_INTERVAL);
        // Most of the time there is nothing to do, and no lock to take.
        let waiting = session.db.query(&session.statements.ended_leases, &[]).await;
        let is_idle = waiting.map_err(|error| self.faults.of("write", error))?.is_empty() || in_grace;
        if is_idle && !may_forget {
            return Ok(Done { revision: Revision::ZERO, deleted: 0, lease: LeaseId(0) });
        }
        let mut draft = self.begin(session, &[]).await?;
        let floor = draft.head.floor;
        let mut deleted = 0_usize;
        let ended = async {
            if in_grace {
                return Ok(());
            }
            for row in session.db.query(&session.statements.ended_leases, &[]).await? {
                if deleted >= MAINTAIN_KEYS_MAX {
                    break;
                }
                let lease = LeaseId(unsigned(row.try_get(0)?));
                let limit = MAINTAIN_KEYS_MAX.saturating_sub(deleted);
                let count = self.end_lease(session, &mut draft, lease, limit).await?;
                deleted = deleted.saturating_add(count);
            }
            Ok(())
        };
        self.or_roll_back(session, ended.await).await?;
        if may_forget {
            let forgotten = self.forget(session, &mut draft.head).await;
            let more = self.or_roll_back(session, forgotten).await?;
            if !more {
                self.forgot_at = Some(now);
            }
        }
        let done = Done { revision: draft.head.revision, deleted, lease: draft.head.lease_last };
        let forgotten = draft.head.floor;
        let changed = !is_idle || forgotten != floor;
        self.finish_ending(session, draft, changed).await?;
        if forgotten != floor {
            // What is gone from the tables must not be told from memory either, once memory has come so far.
            let _ = tokio::time::timeout(FOLLOWED_WITHIN, self.hub.reached(forgotten)).await;
            self.hub.forget(forgotten);
        }
        Ok(done)
    }

    /// Deletes keys of a lease, at most `limit`, and the lease when none is left.
    async fn end_lease(
        &self,
        session: &Session,
        draft: &mut Draft,
        lease: LeaseId,
        limit: usize,
    ) -> Result<usize, tokio_postgres::Error> {
        let rows_max = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = session.db.query(&session.statements.lease_keys, &[&signed(lease.0), &rows_max]).await?;
        let mut held = Vec::with_capacity(rows.len());
        for row in &rows {
            // What cannot be read is left to whoever reads it: it is no reason to end no lease at all.
            if let Ok(key) = tables::key(row, 0) {
                draft.know(key.clone(), Standing { log_id: row.try_get(1)?, lease: Some(lease) });
                held.push(key);
            }
        }
        for chunk in held.chunks(BATCH_OPERATIONS_MAX) {
            let revision = draft.head.revision.next();
            draft.write(chunk.iter().map(|key| Event::Delete { key: key.clone(), revision }).collect());
        }
        if rows.len() < limit {
            session.db.execute(&session.statements.delete_lease, &[&signed(lease.0)]).await?;
        }
        Ok(held.len())
    }

    /// Forgets what is beyond the bounds; true if there is more of it.
    async fn forget(&self, session: &Session, head: &mut Head) -> Result<bool, tokio_postgres::Error> {
        let statements = &session.statements;
        let oldest_ms = signed(self.clock.wall().before(self.history.age_max).as_ms());
        let bytes_max = i64::try_from(self.history.bytes_max).unwrap_or(i64::MAX);
        let first = first_row(head.floor.next());
        let row = session.db.query_one(&statements.overdue, &[&first, &oldest_ms, &bytes_max]).await?;
        let overdue = unsigned(row.try_get(0)?);
        let changes_max = u64::try_from(self.history.changes_max).unwrap_or(u64::MAX);
        let due = overdue.max(head.revision.0.saturating_sub(changes_max));
        let upto = Revision(due.min(head.floor.0.saturating_add(FORGET_CHANGES_MAX)));
        if upto <= head.floor {
            return Ok(false);
        }
        session.db.execute(&statements.forget, &[&first, &first_row(upto.next())]).await?;
        head.floor = upto;
        Ok(upto.0 < due)
    }

    /// Commits, also when the only thing that changed is a lease or the floor.
    async fn finish_ending(&self, session: &Session, draft: Draft, changed: bool) -> Result<(), StoreError> {
        if draft.has_events() || !changed {
            return self.finish(session, draft).await;
        }
        let Head { revision, floor, lease_last, .. } = &draft.head;
        let (revision, floor, lease_last) = (signed(revision.0), signed(floor.0), signed(lease_last.0));
        let set = session.db.execute(&session.statements.set_head, &[&revision, &floor, &lease_last]).await;
        self.or_roll_back(session, set).await?;
        let committed = session.db.batch_execute("COMMIT").await;
        self.or_roll_back(session, committed).await?;
        self.bell.notify_one();
        Ok(())
    }

    async fn or_roll_back<T>(
        &self,
        session: &Session,
        result: Result<T, tokio_postgres::Error>,
    ) -> Result<T, StoreError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                self.roll_back(session).await;
                Err(self.faults.of("write", error))
            }
        }
    }
}

fn carry_out(draft: &mut Draft, request: &Request) -> Result<Done, StoreError> {
    let lease_last = draft.head.lease_last;
    match request {
        Request::Batch(batch) => {
            let plan = batch.plan(draft.head.revision.next(), draft)?;
            draft.write(plan.events);
            Ok(Done { revision: draft.head.revision, deleted: plan.deleted, lease: lease_last })
        }
        Request::LeaseGrant(ttl) => {
            if draft.leases() >= LEASES_MAX {
                let given = u64::try_from(draft.leases()).unwrap_or(u64::MAX).saturating_add(1);
                let what = "the number of leases";
                return Err(StoreError::TooLarge { what, given, max: LEASES_MAX as u64 });
            }
            let lease = draft.grant(*ttl);
            Ok(Done { revision: draft.head.revision, deleted: 0, lease })
        }
        Request::LeaseRevoke(_) | Request::Maintain => {
            Err(StoreError::Invalid { reason: "this request goes alone" })
        }
    }
}

fn lease_of(operation: &Operation) -> Option<i64> {
    match operation {
        Operation::Put { lease, .. } => lease.map(|lease| signed(lease.0)),
        Operation::Replace { .. } | Operation::Delete { .. } => None,
    }
}
