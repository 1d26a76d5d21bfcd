//! Watching: a cursor over the history, woken by each commit.
//!
//! Nothing is queued for a watcher. It holds the revision it has seen and pulls what is behind it,
//! first from the recent changes in memory, or from the backend when it is further behind. So a slow
//! watcher costs nothing, misses nothing, and is told `Compacted` only when history has gone.

use crate::backend::Revision;
use crate::error::StoreError;
use crate::history::{Change, Event};
use crate::key::Key;
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Why a watch ended. It does not go on after an error, except after `Store` with a transient one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The revision to go on from is no longer in the history, or never was in this backend (it was
    /// restored from an older copy): list again and watch from the page's revision.
    #[error("the history behind revision {from} is not kept any more: list again and watch from there")]
    Compacted {
        /// Where the watch stood.
        from: Revision,
    },
    /// The backend was closed.
    #[error("the backend is closed")]
    Closed,
    /// The history could not be read; calling again goes on where the watch stood.
    #[error("the history could not be read")]
    Store(#[source] StoreError),
}

impl From<StoreError> for WatchError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => Self::Closed,
            other => Self::Store(other),
        }
    }
}

/// A running watch. Dropping it ends it.
pub struct Watch {
    source: Box<dyn Source>,
}

/// Where a watch takes its changes from.
pub(crate) trait Source: Send {
    /// The next change, waiting for it; a dropped future loses nothing.
    fn next(&mut self) -> BoxFuture<'_, Result<Change, WatchError>>;
    /// Everything up to here has been delivered or does not concern the prefix.
    fn cursor(&self) -> Revision;
    /// What is watched.
    fn prefix(&self) -> &Key;
}

impl Watch {
    pub(crate) fn over(source: impl Source + 'static) -> Self {
        Self { source: Box::new(source) }
    }

    /// The next change, waiting for it. Cancel safe: a dropped future loses nothing.
    pub async fn next(&mut self) -> Result<Change, WatchError> {
        self.source.next().await
    }

    /// Everything up to here has been delivered or does not concern the prefix: a later watch from
    /// this revision goes on without a gap.
    pub fn revision(&self) -> Revision {
        self.source.cursor()
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch({} after {})", self.source.prefix(), self.source.cursor())
    }
}

/// A part of the history, read from the backend's own storage.
#[derive(Debug)]
pub(crate) struct Past {
    /// Changes behind the cursor that concern the prefix.
    pub(crate) changes: Vec<Change>,
    /// How far the history was read.
    pub(crate) upto: Revision,
}

/// Where changes are found that are no longer in memory.
pub(crate) trait Archive: Send + Sync {
    /// What lies behind `cursor` and not behind `newest`, or `Compacted`.
    fn past(
        &self,
        prefix: &Key,
        cursor: Revision,
        newest: Revision,
    ) -> BoxFuture<'_, Result<Past, WatchError>>;
}

/// What the hub knows of a cursor.
enum Scan {
    /// The next change.
    Found(Change),
    /// Nothing up to this revision, which is the newest.
    UpToDate(Revision),
    /// Not in memory.
    Older,
    /// A revision that has not been given yet.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    revision: Revision,
    closed: bool,
    /// How often other data has taken the place of what was followed.
    lives: u64,
}

#[derive(Debug)]
struct Recent {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// Everything behind this revision is in `changes`.
    floor: Revision,
}

/// The recent changes, and the bell that wakes watchers.
pub(crate) struct Hub {
    recent: Mutex<Recent>,
    head: watch::Sender<Head>,
    changes_max: usize,
    bytes_max: usize,
}

impl Hub {
    pub(crate) fn new(revision: Revision, changes_max: usize, bytes_max: usize) -> Self {
        let recent = Recent { changes: VecDeque::new(), bytes: 0, floor: revision };
        let (head, _) = watch::channel(Head { revision, closed: false, lives: 0 });
        Self { recent: Mutex::new(recent), head, changes_max, bytes_max }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.head.borrow().revision
    }

    /// Adds committed changes in the order of their revisions, then wakes the watchers.
    pub(crate) fn publish(&self, changes: Vec<Change>) {
        let Some(last) = changes.last().map(|change| change.revision) else {
            return;
        };
        let mut recent = self.recent();
        for change in changes {
            recent.bytes = recent.bytes.saturating_add(change.bytes());
            recent.changes.push_back(Arc::new(change));
        }
        while recent.changes.len() > self.changes_max || recent.bytes > self.bytes_max {
            recent.drop_oldest();
        }
        // Under the lock, so that nobody finds a change ahead of the head.
        self.head.send_modify(|head| head.revision = last);
    }

    /// Forgets the changes up to a revision, itself included.
    pub(crate) fn forget(&self, upto: Revision) {
        let mut recent = self.recent();
        while recent.changes.front().is_some_and(|change| change.revision <= upto) {
            recent.drop_oldest();
        }
        recent.floor = recent.floor.max(upto);
    }

    /// Goes on at a revision of other data: who watches must start over.
    pub(crate) fn restart(&self, revision: Revision) {
        let mut recent = self.recent();
        *recent = Recent { changes: VecDeque::new(), bytes: 0, floor: revision };
        self.head.send_modify(|head| {
            head.revision = revision;
            head.lives = head.lives.saturating_add(1);
        });
    }

    /// Completes when everything up to `revision` is published, or when it is closed.
    pub(crate) async fn reached(&self, revision: Revision) {
        let mut head = self.head.subscribe();
        // An error says that nobody publishes any more.
        let _ = head.wait_for(|head| head.closed || head.revision >= revision).await;
    }

    /// Ends all watches, once they have delivered what is there.
    pub(crate) fn close(&self) {
        self.head.send_modify(|head| head.closed = true);
    }

    fn scan(&self, prefix: &Key, cursor: Revision) -> Scan {
        let recent = self.recent();
        let newest = self.revision();
        if cursor > newest {
            return Scan::Unknown;
        }
        if cursor < recent.floor {
            return Scan::Older;
        }
        let start = recent.changes.partition_point(|change| change.revision <= cursor);
        for change in recent.changes.range(start..) {
            let concerned = |event: &&Event| prefix.contains(event.key());
            let events: Vec<_> = change.events.iter().filter(concerned).cloned().collect();
            if !events.is_empty() {
                return Scan::Found(Change { revision: change.revision, events });
            }
        }
        Scan::UpToDate(newest)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn drop_oldest(&mut self) {
        if let Some(change) = self.changes.pop_front() {
            self.bytes = self.bytes.saturating_sub(change.bytes());
            self.floor = change.revision;
        }
    }
}

/// A watch over a hub and an archive.
pub(crate) struct Follower {
    hub: Arc<Hub>,
    archive: Arc<dyn Archive>,
    head: watch::Receiver<Head>,
    prefix: Key,
    cursor: Revision,
    life: u64,
    past: VecDeque<Change>,
    /// Where the cursor goes when `past` is used up.
    past_upto: Revision,
}

impl Follower {
    pub(crate) fn watch(
        hub: &Arc<Hub>,
        archive: Arc<dyn Archive>,
        prefix: &Key,
        from: Option<Revision>,
    ) -> Watch {
        let head = hub.head.subscribe();
        let (now, life) = {
            let head = head.borrow();
            (head.revision, head.lives)
        };
        let cursor = from.unwrap_or(now);
        let hub = Arc::clone(hub);
        let past = VecDeque::new();
        let prefix = prefix.clone();
        Watch::over(Self { hub, archive, head, prefix, cursor, life, past, past_upto: cursor })
    }

    async fn next_change(&mut self) -> Result<Change, WatchError> {
        loop {
            if let Some(change) = self.past.pop_front() {
                self.cursor = change.revision;
                return Ok(change);
            }
            self.cursor = self.cursor.max(self.past_upto);
            // Seen before looking: a commit in between rings again.
            let Head { closed, lives, .. } = *self.head.borrow_and_update();
            if lives != self.life {
                return Err(WatchError::Compacted { from: self.cursor });
            }
            match self.hub.scan(&self.prefix, self.cursor) {
                Scan::Found(change) => {
                    self.cursor = change.revision;
                    return Ok(change);
                }
                Scan::Older => {
                    // Never ahead of what is published: the scan would take that for a foreign revision.
                    let newest = self.hub.revision();
                    let past = self.archive.past(&self.prefix, self.cursor, newest).await?;
                    self.past = past.changes.into();
                    self.past_upto = past.upto;
                    continue;
                }
                Scan::Unknown => return Err(WatchError::Compacted { from: self.cursor }),
                Scan::UpToDate(revision) => self.cursor = revision,
            }
            if closed || self.head.changed().await.is_err() {
                return Err(WatchError::Closed);
            }
        }
    }
}

impl Source for Follower {
    fn next(&mut self) -> BoxFuture<'_, Result<Change, WatchError>> {
        Box::pin(self.next_change())
    }

    fn cursor(&self) -> Revision {
        self.cursor
    }

    fn prefix(&self) -> &Key {
        &self.prefix
    }
}
