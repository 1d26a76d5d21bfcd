//! Follows the log for the watches of this process, and reads it for those that are behind.
//!
//! A notification is only a wake-up: what has happened is read from the log, and it is looked there in any case once in
//! a while.

use super::connect::{Lane, Session};
use super::fault::Faults;
use super::tables::{self, Head, PAST_BYTES_MAX, PAST_ROWS_MAX, first_row, unsigned};
use crate::backend::Revision;
use crate::error::StoreError;
use crate::history::Change;
use crate::key::Key;
use crate::lease::LeaseId;
use crate::watch::{Archive, Hub, Past, WatchError};
use futures::future::{BoxFuture, FutureExt as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use wayleave_runtime::Shutdown;

/// How often the log is looked at without a notification.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Reads with a deadline, on one of the lanes.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) lanes: Arc<[Lane]>,
    pub(super) faults: Faults,
    pub(super) turn: Arc<std::sync::atomic::AtomicUsize>,
}

/// Longer than the server takes to give up by itself.
const READ_DEADLINE: Duration = Duration::from_secs(12);
/// A read whose connection broke is asked again on the next one.
const READ_ATTEMPTS: usize = 2;

impl Reader {
    /// Asks; `read` may be called twice.
    pub(super) async fn read<T, F>(&self, read: impl Fn(Arc<Session>) -> F + Send) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, tokio_postgres::Error>> + Send,
    {
        let mut attempt = 1;
        loop {
            let turn = self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let lane = self.lanes.get(turn % self.lanes.len().max(1)).ok_or(StoreError::Closed)?;
            let session = lane.session("read").await?;
            let answer = tokio::time::timeout(READ_DEADLINE, read(session.clone())).await;
            match answer {
                Ok(Ok(value)) => return Ok(value),
                // Without a code it is the connection that failed.
                Ok(Err(error)) if error.code().is_none() && attempt < READ_ATTEMPTS => {
                    session.give_up();
                    attempt += 1;
                }
                Ok(Err(error)) => return Err(self.faults.of("read", error)),
                Err(_) => {
                    session.give_up();
                    return Err(self.faults.slow_read());
                }
            }
        }
    }

    /// Where the backend stands.
    pub(super) async fn head(&self) -> Result<Head, StoreError> {
        let read =
            |session: Arc<Session>| async move { session.db.query_one(&session.statements.head, &[]).await };
        tables::head(&self.read(read).await?).map_err(|error| self.faults.damaged(error))
    }

    /// What lies behind `cursor`: of one prefix, or everything.
    async fn piece(&self, prefix: Option<&Key>, cursor: Revision) -> Result<Piece, StoreError> {
        let first = first_row(cursor.next());
        let key = prefix.map(|prefix| prefix.as_str().to_owned());
        let (low, high) = prefix.map(Key::below).unwrap_or_default();
        let rows = self
            .read(|session: Arc<Session>| {
                let (key, low, high) = (key.clone(), low.clone(), high.clone());
                async move {
                    let past = &session.statements.past;
                    let parameters: [&(dyn ToSql + Sync); 6] =
                        [&first, &key, &low, &high, &PAST_ROWS_MAX, &PAST_BYTES_MAX];
                    session.db.query(past, &parameters).await
                }
            })
            .await?;
        piece(&rows, cursor).map_err(|error| self.faults.damaged(error))
    }
}

/// A piece of history.
struct Piece {
    head: Head,
    changes: Vec<Change>,
    /// How far it reaches.
    upto: Revision,
}

fn piece(rows: &[Row], cursor: Revision) -> Result<Piece, tables::DamagedRow> {
    let mut piece = Piece {
        head: Head {
            revision: Revision::ZERO,
            floor: Revision::ZERO,
            lease_last: LeaseId(0),
            life: String::new(),
        },
        changes: Vec::<Change>::new(),
        upto: cursor,
    };
    let mut is_cut = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= PAST_ROWS_MAX;
    // At the bound of rows, the last revision may have more of them.
    let mut whole_before = None;
    for row in rows {
        piece.head.revision = Revision(unsigned(row.try_get(0)?));
        piece.head.floor = Revision(unsigned(row.try_get(1)?));
        piece.head.life = row.try_get(2)?;
        if row.try_get::<_, Option<i64>>(3)?.is_none() {
            break;
        }
        if !row.try_get::<_, bool>("fits")? {
            is_cut = true;
            whole_before = None;
            break;
        }
        let event = tables::event(row)?;
        let revision = match &event {
            crate::history::Event::Put(item) => item.revision,
            crate::history::Event::Delete { revision, .. } => *revision,
        };
        match piece.changes.last_mut() {
            Some(change) if change.revision == revision => change.events.push(event),
            Some(_) | None => {
                piece.changes.push(Change { revision, events: vec![event] });
                whole_before = is_cut.then_some(revision);
            }
        }
    }
    if whole_before.is_some() {
        piece.changes.pop();
    }
    piece.upto = match piece.changes.last() {
        Some(change) if is_cut => change.revision,
        Some(_) | None => piece.head.revision,
    };
    Ok(piece)
}

/// The history in the tables.
pub(super) struct Tables {
    pub(super) reader: Reader,
}

impl Archive for Tables {
    fn past(
        &self,
        prefix: &Key,
        cursor: Revision,
        newest: Revision,
    ) -> BoxFuture<'_, Result<Past, WatchError>> {
        let prefix = prefix.clone();
        async move {
            let mut piece = self.reader.piece(Some(&prefix), cursor).await?;
            if cursor < piece.head.floor {
                return Err(WatchError::Compacted { from: cursor });
            }
            // What the hub has not published yet comes from the hub.
            piece.changes.retain(|change| change.revision <= newest);
            Ok(Past { changes: piece.changes, upto: piece.upto.min(newest) })
        }
        .boxed()
    }
}

/// Brings changes from the log to the hub.
pub(super) struct Tail {
    pub(super) reader: Reader,
    pub(super) hub: Arc<Hub>,
    pub(super) bell: Arc<Notify>,
    pub(super) life: String,
    pub(super) at: Revision,
}

impl Tail {
    /// Follows until shutdown.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let mut failing = false;
        while !shutdown.is_requested() {
            let Some(caught_up) = shutdown.until(self.catch_up()).await else { break };
            let pause = match &caught_up {
                Ok(true) => POLL_INTERVAL,
                Ok(false) => Duration::ZERO,
                Err(StoreError::Closed) => break,
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "changes of the backend cannot be followed now");
                    }
                    RETRY_PAUSE
                }
            };
            failing = caught_up.is_err();
            if failing {
                // A notification says nothing about whether the next attempt will succeed.
                let _ = shutdown.until(tokio::time::sleep(pause)).await;
            } else if !pause.is_zero() {
                let _ = shutdown.until(tokio::time::timeout(pause, self.bell.notified())).await;
            }
        }
        self.hub.close();
    }

    /// Publishes the next piece; true if there is no more.
    async fn catch_up(&mut self) -> Result<bool, StoreError> {
        let piece = self.reader.piece(None, self.at).await?;
        let Head { revision, floor, life, .. } = piece.head;
        if life != self.life || revision < self.at {
            tracing::warn!("the backend holds other data than before: everything is read again");
            self.life = life;
            self.at = revision;
            self.hub.restart(revision);
            return Ok(true);
        }
        if self.at < floor {
            // So far behind that the log does not reach back: watches read what is there, or start over.
            self.at = revision;
            self.hub.restart(revision);
            return Ok(true);
        }
        self.at = piece.upto;
        self.hub.publish(piece.changes);
        self.hub.forget(floor);
        Ok(piece.upto >= revision)
    }
}
