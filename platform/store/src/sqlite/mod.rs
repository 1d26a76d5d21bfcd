//! The backend in one SQLite file, for one machine: durable before it is acknowledged.
//!
//! Writes go through a bounded queue to one thread, which commits all that is waiting as one
//! transaction and answers when it is on the disk. Reads have their own thread and connection and go
//! on while the disk is full. See `file` for what is opened and refused, `tables` for the layout.

mod file;
mod queue;
mod reader;
mod tables;
mod writer;

pub use file::OpenError;

use crate::backend::{
    Backend, Committed, Condition, Item, Operation, Page, Revision, StoreFuture, checked_limit,
};
use crate::error::StoreError;
use crate::history::HistoryLimits;
use crate::key::Key;
use crate::lease::{LeaseId, Leases, checked_ttl};
use crate::plan::Batch;
use crate::watch::{Archive, Follower, Hub, Past, Watch, WatchError};
use futures::future::{BoxFuture, FutureExt as _, ready};
use queue::Queue;
use reader::{Read, Reader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use wayleave_runtime::Clock;
use writer::{Done, Request, Write, Writer};

/// Most writes that wait; one more is answered [`StoreError::Busy`].
const WRITES_QUEUED_MAX: usize = 1024;
/// Most bytes of values that wait to be written.
const WRITE_BYTES_QUEUED_MAX: usize = 128 << 20;
/// Most reads that wait.
const READS_QUEUED_MAX: usize = 1024;
/// Changes kept in memory unless set otherwise.
const RECENT_CHANGES_MAX: usize = 4096;
/// Most bytes of values in them.
const RECENT_BYTES_MAX: usize = 32 << 20;

/// Where the backend is and how much history it keeps.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// A directory of its own, made with mode 0700 if it is not there. The file in it is `store.db`.
    pub directory: PathBuf,
    /// For watches to resume from.
    pub history: HistoryLimits,
    /// How many changes are also kept in memory, so that a watch that keeps up reads no file.
    pub recent_changes_max: usize,
}

impl SqliteOptions {
    /// The default history in this directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let (directory, history) = (directory.into(), HistoryLimits::default());
        Self { directory, history, recent_changes_max: RECENT_CHANGES_MAX }
    }
}

/// A backend in one SQLite file. Dropping it finishes the accepted writes in the background;
/// [`Backend::close`] waits for that.
pub struct SqliteBackend {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    writes: Queue<Write>,
    reads: Arc<Queue<Read>>,
    leases: Arc<Mutex<Leases>>,
    hub: Arc<Hub>,
    closed: watch::Receiver<bool>,
}

impl SqliteBackend {
    /// Opens the backend, or makes it if the directory is empty, and starts its two threads. Blocks:
    /// it reads the file once to check it. What it refuses is listed at [`OpenError`].
    pub fn open(options: &SqliteOptions, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let files = file::open(&options.directory)?;
        let path = files.path.clone();
        let hub = Arc::new(Hub::new(files.head.revision, options.recent_changes_max, RECENT_BYTES_MAX));
        let mut leases = Leases::default();
        for (lease, ttl) in &files.leases {
            leases.insert(*lease, *ttl, clock.mono());
        }
        let leases = Arc::new(Mutex::new(leases));
        let (writes, writes_waiting) = Queue::new("write", WRITES_QUEUED_MAX, WRITE_BYTES_QUEUED_MAX);
        let (reads, reads_waiting) = Queue::new("read", READS_QUEUED_MAX, usize::MAX);
        let reads = Arc::new(reads);
        let (closed_sender, closed) = watch::channel(false);

        let reader = Reader { path: path.clone(), connection: files.reader };
        let start = |doing| move |source| OpenError::Io { doing, path: options.directory.clone(), source };
        let reading = std::thread::Builder::new()
            .name("store-read".into())
            .spawn(move || reader.run(&reads_waiting))
            .map_err(start("start the reading thread of"))?;
        let writer = Writer {
            path: path.clone(),
            connection: files.writer,
            clock: Arc::clone(&clock),
            leases: Arc::clone(&leases),
            hub: Arc::clone(&hub),
            retention: files.history.into_retention(options.history.clone()),
            head: files.head,
            failing: false,
        };
        let ending = Ending { reads: Arc::clone(&reads), hub: Arc::clone(&hub) };
        let lock = files.lock;
        std::thread::Builder::new()
            .name("store-write".into())
            .spawn(move || {
                let writer = writer.run(&writes_waiting);
                // The reader goes first, so that the last connection to close can fold the log in.
                drop(ending);
                if reading.join().is_err() {
                    tracing::error!("the backend's reading thread had failed");
                }
                writer.finish();
                drop(lock);
                closed_sender.send_replace(true);
            })
            .map_err(start("start the writing thread of"))?;
        Ok(Self { path, clock, writes, reads, leases, hub, closed })
    }

    /// Copies a backend as it is at one moment into an empty directory, also while another process has it open. Blocks.
    ///
    /// # Errors
    /// See [`OpenError`]; a directory without a backend is one of them.
    pub fn copy(directory: &Path, into: &Path) -> Result<(), OpenError> {
        file::copy(directory, into)
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, request: Result<Request, StoreError>) -> StoreFuture<'_, Done> {
        async move {
            let request = request?;
            let (reply, answer) = oneshot::channel();
            let bytes = request.bytes();
            self.writes.push(bytes, |room| Write { request, reply, room })?;
            answer.await.map_err(|_| StoreError::Closed)?
        }
        .boxed()
    }
}

impl Backend for SqliteBackend {
    fn get(&self, key: &Key) -> StoreFuture<'_, Option<Item>> {
        let key = key.clone();
        self.reads.ask(|reply| Read::Get { key, reply })
    }

    fn range(&self, prefix: &Key, after: Option<&Key>, limit: usize) -> StoreFuture<'_, Page> {
        match checked_limit(limit) {
            Ok(limit) => {
                let (prefix, after) = (prefix.clone(), after.cloned());
                let read = self.reads.ask(move |reply| Read::Range { prefix, after, limit, reply });
                async move {
                    let page: Page = read.await?;
                    // A commit can be read before it is published, and a watch from there would be ahead.
                    self.hub.reached(page.revision).await;
                    Ok(page)
                }
                .boxed()
            }
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn batch(&self, conditions: Vec<Condition>, operations: Vec<Operation>) -> StoreFuture<'_, Committed> {
        let done = self.write(Batch::new(conditions, operations).map(Request::Batch));
        async move { done.await.map(|Done { revision, deleted, .. }| Committed { revision, deleted }) }
            .boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId> {
        let done = self.write(checked_ttl(ttl).map(Request::LeaseGrant));
        async move { done.await.map(|done| done.lease_last) }.boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        async move {
            if self.writes.has_ended() {
                return Err(StoreError::Closed);
            }
            let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
            leases.keep_alive(lease, self.clock.mono())
        }
        .boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> StoreFuture<'_, usize> {
        let done = self.write(Ok(Request::LeaseRevoke(lease)));
        async move { done.await.map(|done| done.deleted) }.boxed()
    }

    fn watch(&self, prefix: &Key, from: Option<Revision>) -> StoreFuture<'_, Watch> {
        let watch = if self.writes.has_ended() {
            Err(StoreError::Closed)
        } else {
            let archive = Arc::new(FileArchive { reads: Arc::clone(&self.reads) });
            Ok(Follower::watch(&self.hub, archive, prefix, from))
        };
        ready(watch).boxed()
    }

    fn maintain(&self) -> StoreFuture<'_, usize> {
        let done = self.write(Ok(Request::Maintain));
        async move { done.await.map(|done| done.deleted) }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.writes.end();
            // An error says that the thread is gone, which is what is waited for.
            let _ = self.closed.clone().wait_for(|closed| *closed).await;
        }
        .boxed()
    }
}

/// When the writing thread ends, in whatever way, nobody must wait for it.
struct Ending {
    reads: Arc<Queue<Read>>,
    hub: Arc<Hub>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.reads.end();
        self.hub.close();
    }
}

/// The history in the file.
struct FileArchive {
    reads: Arc<Queue<Read>>,
}

impl Archive for FileArchive {
    fn past(
        &self,
        prefix: &Key,
        cursor: Revision,
        newest: Revision,
    ) -> BoxFuture<'_, Result<Past, WatchError>> {
        let prefix = prefix.clone();
        let answer = self.reads.ask(move |reply| Read::Past { prefix, cursor, newest, reply });
        async move { answer.await?.ok_or(WatchError::Compacted { from: cursor }) }.boxed()
    }
}
