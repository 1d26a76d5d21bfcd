//! The backend in a PostgreSQL database (13 or newer), for clusters with several Auth instances.
//!
//! Writes go through a bounded queue to one task, which commits all that is waiting as one transaction under the lock of
//! one row, and answers when PostgreSQL has made it durable. Reads have their own connections. Changes are read from a
//! log table, for which a notification is only the wake-up. Deadlines of leases are kept by the server's clock, so that
//! any instance can end the leases of one that died. See `tables` for the layout, `connect` for connections and their
//! loss, `fault` for what the server's errors mean.

mod address;
mod connect;
mod draft;
mod fault;
mod tables;
mod tail;
mod writer;

pub use address::{PostgresAddress, PostgresAddressError};

use crate::backend::{
    Backend, Committed, Condition, Item, Operation, Page, RANGE_BYTES_MAX, Revision, StoreFuture,
    checked_limit,
};
use crate::error::StoreError;
use crate::history::HistoryLimits;
use crate::key::Key;
use crate::lease::{LeaseId, checked_ttl};
use crate::plan::Batch;
use crate::server_tls::ServerTlsError;
use crate::watch::{Follower, Hub, Watch};
use connect::{Connector, Lane, Purpose, Session, lane};
use fault::Faults;
use futures::future::{BoxFuture, FutureExt as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tables::{Head, SCHEMA, SCHEMA_LOCK, SCHEMA_VERSION, signed};
use tail::{Reader, Tables, Tail};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_postgres::Client;
use wayleave_runtime::{Clock, TaskGroup, random_bytes};
use writer::{Done, Request, Room, Write, Writer};

/// Most writes that wait; one more is answered [`StoreError::Busy`].
const WRITES_QUEUED_MAX: usize = 1024;
/// Most bytes of values that wait to be written.
const WRITE_BYTES_QUEUED_MAX: usize = 128 << 20;
/// Connections for reading.
const READERS: usize = 2;
/// Changes kept in memory unless set otherwise.
const RECENT_CHANGES_MAX: usize = 4096;
/// Most bytes of values in them.
const RECENT_BYTES_MAX: usize = 32 << 20;
/// How long a new watch waits until what has happened before is known.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(10);
/// How long what is under way may take when the backend closes.
const CLOSE_DEADLINE: Duration = Duration::from_secs(20);

/// Which database, and how much history it keeps.
#[derive(Clone)]
pub struct PostgresOptions {
    /// The server and database.
    pub address: PostgresAddress,
    /// For watches to resume from. All instances should say the same.
    pub history: HistoryLimits,
    /// How many changes are also kept in memory, so that a watch that keeps up reads no table.
    pub recent_changes_max: usize,
}

impl PostgresOptions {
    /// The default history in this database.
    pub fn new(address: PostgresAddress) -> Self {
        Self { address, history: HistoryLimits::default(), recent_changes_max: RECENT_CHANGES_MAX }
    }
}

/// Why the backend was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresOpenError {
    /// The server does not answer, or lets us not in.
    #[error("{server} cannot be used: check that it runs, and the user and password")]
    Connect {
        /// Which.
        server: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its tables cannot be made or read.
    #[error(
        "the tables in {server} cannot be {doing}: the user needs the right to create tables in its schema"
    )]
    Tables {
        /// Which.
        server: String,
        /// Made, or read.
        doing: &'static str,
        /// Why not.
        source: tokio_postgres::Error,
    },
    /// Text is not kept as UTF-8.
    #[error("{server} keeps text as {encoding}: create the database with ENCODING 'UTF8'")]
    Encoding {
        /// Which.
        server: String,
        /// How.
        encoding: String,
    },
    /// Written by another release.
    #[error(
        "the tables in {server} have version {found}, this release knows {SCHEMA_VERSION}: run a release that knows it"
    )]
    Version {
        /// Which.
        server: String,
        /// Its version.
        found: i32,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] ServerTlsError),
}

/// A backend in a PostgreSQL database. [`Backend::close`] waits for the accepted writes; dropping it gives them up.
pub struct PostgresBackend {
    server: Arc<str>,
    writes: Mutex<Option<mpsc::Sender<Write>>>,
    queued_bytes: Arc<AtomicUsize>,
    reader: Reader,
    listening: Lane,
    hub: Arc<Hub>,
    bell: Arc<Notify>,
    /// The writer alone, which ends with its queue.
    writing: TaskGroup,
    tasks: TaskGroup,
}

impl PostgresBackend {
    /// Connects, makes the tables if the database has none, and starts what follows them.
    ///
    /// # Errors
    /// See [`PostgresOpenError`]. A server that does not answer at the start is an error; later it is waited for.
    pub async fn open(options: PostgresOptions, clock: Arc<dyn Clock>) -> Result<Self, PostgresOpenError> {
        let server: Arc<str> = options.address.to_string().into();
        let bell = Arc::new(Notify::new());
        let connector = Connector::new(options.address.clone(), bell.clone())?;
        let head = prepare(&connector, &server).await?;
        let hub = Arc::new(Hub::new(head.revision, options.recent_changes_max, RECENT_BYTES_MAX));
        let (tasks, writing) = (TaskGroup::new(), TaskGroup::new());
        let start = |purpose| {
            let (lane, keeper) = lane(&connector, purpose);
            tasks.spawn("postgresql connection", keeper.run(tasks.shutdown()));
            lane
        };
        let faults = Faults { server: server.clone() };
        let lanes: Vec<Lane> = (0..READERS).map(|_| start(Purpose::Read)).collect();
        let reader = Reader { lanes: lanes.into(), faults: faults.clone(), turn: Arc::default() };
        let (sender, waiting) = mpsc::channel(WRITES_QUEUED_MAX);
        let writer = Writer {
            lane: start(Purpose::Write),
            clock,
            faults,
            history: options.history,
            hub: hub.clone(),
            bell: bell.clone(),
            failed_at: None,
            failing: false,
            forgot_at: None,
        };
        writing.spawn("postgresql writer", writer.run(waiting));
        let tail = Tail {
            reader: reader.clone(),
            hub: hub.clone(),
            bell: bell.clone(),
            life: head.life,
            at: head.revision,
        };
        tasks.spawn("postgresql log", tail.run(tasks.shutdown()));
        let listening = start(Purpose::Listen);
        let writes = Mutex::new(Some(sender));
        let queued_bytes = Arc::default();
        Ok(Self { server, writes, queued_bytes, reader, listening, hub, bell, writing, tasks })
    }

    /// The server and the database, without user and password.
    pub fn server(&self) -> &str {
        &self.server
    }

    async fn write(&self, request: Result<Request, StoreError>) -> Result<Done, StoreError> {
        let request = request?;
        let room = self.reserve(request.bytes()).ok_or(StoreError::Busy { queue: "write" })?;
        let (reply, answer) = oneshot::channel();
        let sender = self.writes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sender = sender.ok_or(StoreError::Closed)?;
        sender.try_send(Write { request, reply, room }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy { queue: "write" },
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })?;
        drop(sender);
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// One request always fits into an empty queue, however large it is.
    fn reserve(&self, bytes: usize) -> Option<Room> {
        let fits = |used: usize| {
            let sum = used.checked_add(bytes)?;
            (used == 0 || sum <= WRITE_BYTES_QUEUED_MAX).then_some(sum)
        };
        self.queued_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Room { all: self.queued_bytes.clone(), bytes })
    }

    fn check_open(&self) -> Result<(), StoreError> {
        let is_open = self.writes.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if is_open { Ok(()) } else { Err(StoreError::Closed) }
    }

    async fn read_page(&self, prefix: &Key, after: Option<Key>, limit: usize) -> Result<Page, StoreError> {
        self.check_open()?;
        let limit = checked_limit(limit)?;
        let (low, high) = prefix.below();
        let limit_rows = i64::try_from(limit).unwrap_or(i64::MAX);
        let bytes_max = i64::try_from(RANGE_BYTES_MAX).unwrap_or(i64::MAX);
        let rows = self
            .reader
            .read(|session: Arc<Session>| {
                let (prefix, low, high) = (prefix.clone(), low.clone(), high.clone());
                let after = after.as_ref().map(|after| after.as_str().to_owned());
                async move {
                    let range = &session.statements.range;
                    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                        [&prefix.as_str(), &low, &high, &after, &limit_rows, &bytes_max];
                    session.db.query(range, &parameters).await
                }
            })
            .await?;
        let failed = |error| self.reader.faults.of("read", error);
        let mut page = Page { items: Vec::with_capacity(rows.len()), revision: Revision::ZERO, more: false };
        for row in &rows {
            page.revision = Revision(tables::unsigned(row.try_get(0).map_err(failed)?));
            match row.try_get::<_, Option<bool>>("fits").map_err(failed)? {
                Some(true) => {
                    let item = tables::item(row, 1).map_err(|error| self.reader.faults.damaged(error))?;
                    page.items.push(item);
                }
                Some(false) if row.try_get::<_, Option<&str>>(1).map_err(failed)?.is_some() => {
                    page.more = true;
                }
                Some(false) | None => {}
            }
        }
        Ok(page)
    }

    /// A watch whose beginning is certain: the hub may be behind the tables.
    async fn begin_watch(&self, prefix: &Key, from: Option<Revision>) -> Result<Watch, StoreError> {
        self.check_open()?;
        let now = self.reader.head().await?.revision;
        self.bell.notify_one();
        let caught_up = tokio::time::timeout(CATCH_UP_DEADLINE, self.hub.reached(now)).await;
        caught_up.map_err(|_| self.reader.faults.slow_read())?;
        let archive = Arc::new(Tables { reader: self.reader.clone() });
        Ok(Follower::watch(&self.hub, archive, prefix, Some(from.unwrap_or(now))))
    }
}

impl Backend for PostgresBackend {
    fn get(&self, key: &Key) -> StoreFuture<'_, Option<Item>> {
        let key = key.clone();
        async move {
            self.check_open()?;
            let row = self.reader.read(|session: Arc<Session>| {
                let key = key.clone();
                async move { session.db.query_opt(&session.statements.get, &[&key.as_str()]).await }
            });
            let item = row.await?.map(|row| tables::item(&row, 0)).transpose();
            item.map_err(|error| self.reader.faults.damaged(error))
        }
        .boxed()
    }

    fn range(&self, prefix: &Key, after: Option<&Key>, limit: usize) -> StoreFuture<'_, Page> {
        let (prefix, after) = (prefix.clone(), after.cloned());
        async move { self.read_page(&prefix, after, limit).await }.boxed()
    }

    fn batch(&self, conditions: Vec<Condition>, operations: Vec<Operation>) -> StoreFuture<'_, Committed> {
        let request = Batch::new(conditions, operations).map(Request::Batch);
        async move {
            let Done { revision, deleted, .. } = self.write(request).await?;
            Ok(Committed { revision, deleted })
        }
        .boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId> {
        async move { Ok(self.write(checked_ttl(ttl).map(Request::LeaseGrant)).await?.lease) }.boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        async move {
            self.check_open()?;
            let session = self.listening.session("keep a lease alive").await?;
            let id = signed(lease.0);
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&id];
            let kept = session.db.execute(&session.statements.keep_alive, &parameters);
            match tokio::time::timeout(CATCH_UP_DEADLINE, kept).await {
                Ok(Ok(0)) => Err(StoreError::LeaseNotFound { lease }),
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(self.reader.faults.of("keep a lease alive", error)),
                Err(_) => Err(self.reader.faults.slow_read()),
            }
        }
        .boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> StoreFuture<'_, usize> {
        async move { Ok(self.write(Ok(Request::LeaseRevoke(lease))).await?.deleted) }.boxed()
    }

    fn watch(&self, prefix: &Key, from: Option<Revision>) -> StoreFuture<'_, Watch> {
        let prefix = prefix.clone();
        async move { self.begin_watch(&prefix, from).await }.boxed()
    }

    fn maintain(&self) -> StoreFuture<'_, usize> {
        async move { Ok(self.write(Ok(Request::Maintain)).await?.deleted) }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.writes.lock().unwrap_or_else(PoisonError::into_inner).take();
            // The writer ends with its queue; only then the connections go.
            if !self.writing.drained(CLOSE_DEADLINE).await {
                tracing::warn!("writes to the backend did not end in time");
            }
            self.tasks.finish(CLOSE_DEADLINE).await;
            self.hub.close();
        }
        .boxed()
    }
}

impl Drop for PostgresBackend {
    // Whoever drops it without closing it has nobody left to answer to; the connections must not stay.
    fn drop(&mut self) {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.tasks.shutdown().request();
    }
}

/// Makes the tables if there are none, and reads where they stand.
async fn prepare(connector: &Connector, server: &str) -> Result<Head, PostgresOpenError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| PostgresOpenError::Connect {
        server: server.to_owned(),
        source,
    };
    let (db, mut driver) = connector.connect().await.map_err(|error| failed(error.into()))?;
    tokio::select! {
        head = set_up(&db, server) => head,
        ended = &mut driver => {
            let reason = ended.map_or_else(|| "the connection ended".to_owned(), |error| error.to_string());
            Err(failed(reason.into()))
        }
    }
}

async fn set_up(db: &Client, server: &str) -> Result<Head, PostgresOpenError> {
    let tables = |doing| move |source| PostgresOpenError::Tables { server: server.to_owned(), doing, source };
    let made = tables("made");
    let encoding = db.query_one("SHOW server_encoding", &[]).await.map_err(&made)?;
    let encoding: String = encoding.try_get(0).map_err(&made)?;
    if encoding != "UTF8" {
        return Err(PostgresOpenError::Encoding { server: server.to_owned(), encoding });
    }
    let exists = db.query_one("SELECT to_regclass('wayleave_head') IS NOT NULL", &[]).await.map_err(&made)?;
    let exists: bool = exists.try_get(0).map_err(&made)?;
    if !exists {
        let life = data_life();
        db.batch_execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({SCHEMA_LOCK});"))
            .await
            .map_err(&made)?;
        db.batch_execute(SCHEMA).await.map_err(&made)?;
        let insert = "INSERT INTO wayleave_head VALUES (1, $1, $2, 0, 0, 0) ON CONFLICT DO NOTHING";
        db.execute(insert, &[&SCHEMA_VERSION, &life]).await.map_err(&made)?;
        db.batch_execute("COMMIT").await.map_err(&made)?;
    }
    let read = tables("read");
    let query = "SELECT revision, floor, lease_last, life, schema_version FROM wayleave_head";
    let row = db.query_one(query, &[]).await.map_err(&read)?;
    let found: i32 = row.try_get(4).map_err(&read)?;
    if found != SCHEMA_VERSION {
        return Err(PostgresOpenError::Version { server: server.to_owned(), found });
    }
    tables::head(&row)
        .map_err(|error| PostgresOpenError::Connect { server: server.to_owned(), source: error.into() })
}

/// A name for data that is made now.
fn data_life() -> String {
    random_bytes::<16>().iter().map(|byte| format!("{byte:02x}")).collect()
}
