//! The trait that every backend implements, and the values that go in and out.

use crate::error::StoreError;
use crate::key::Key;
use crate::lease::LeaseId;
use crate::watch::Watch;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::fmt;
use std::time::Duration;

/// Largest value in bytes.
pub const VALUE_BYTES_MAX: usize = 64 << 20;
/// Most operations, and most conditions, of one batch.
pub const BATCH_OPERATIONS_MAX: usize = 128;
/// Most bytes of values in one batch.
pub const BATCH_BYTES_MAX: usize = VALUE_BYTES_MAX;
/// Most items of one page.
pub const RANGE_ITEMS_MAX: usize = 1000;
/// A page ends when it holds this many bytes of values; it has at least one item.
pub const RANGE_BYTES_MAX: usize = 16 << 20;

/// How much a backend takes at once. Those of one machine or of PostgreSQL take the most; etcd takes less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Largest value in bytes, at most [`VALUE_BYTES_MAX`].
    pub value_bytes_max: usize,
    /// Most bytes of values in one batch, at most [`BATCH_BYTES_MAX`].
    pub batch_bytes_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { value_bytes_max: VALUE_BYTES_MAX, batch_bytes_max: BATCH_BYTES_MAX }
    }
}

/// What the operations of a [`Backend`] return: boxed, so that the trait can be an object.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Orders the changes of one backend. Each committed batch that changes something takes the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// Before every change.
    pub const ZERO: Self = Self(0);

    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A value with its key and the revision that wrote it.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    /// Where it is kept.
    pub key: Key,
    /// The stored bytes.
    pub value: Bytes,
    /// The change that wrote it last.
    pub revision: Revision,
    /// It is deleted when this lease ends.
    pub lease: Option<LeaseId>,
}

impl fmt::Debug for Item {
    // Values may be secrets and may be large: only their size is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, revision, lease } = self;
        write!(f, "Item({key} @{revision}, {} bytes, lease {lease:?})", value.len())
    }
}

/// A part of a range, in key order, as it was at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The items.
    pub items: Vec<Item>,
    /// The backend's revision when the page was read: a watch from here sees everything later.
    pub revision: Revision,
    /// True if there is more behind the last item; ask again with `after` set to its key.
    pub more: bool,
}

/// What must hold for a batch to be carried out. Conditions see the state before the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key must not exist; otherwise [`StoreError::AlreadyExists`].
    Absent(Key),
    /// The key must exist; otherwise [`StoreError::NotFound`].
    Exists(Key),
    /// The key must stand at this revision; otherwise [`StoreError::Conflict`], or
    /// [`StoreError::NotFound`] if it is not there at all.
    RevisionIs(Key, Revision),
}

impl Condition {
    pub(crate) fn key(&self) -> &Key {
        match self {
            Self::Absent(key) | Self::Exists(key) | Self::RevisionIs(key, _) => key,
        }
    }
}

/// One change of a batch. A batch touches a key once.
#[derive(Clone, PartialEq, Eq)]
pub enum Operation {
    /// Writes the value, whether the key exists or not, and ties it to the lease or to none.
    Put {
        /// Where.
        key: Key,
        /// What, at most [`VALUE_BYTES_MAX`].
        value: Bytes,
        /// Deletes the key when it ends.
        lease: Option<LeaseId>,
    },
    /// Writes the value of a key that must exist and keeps its lease.
    Replace {
        /// Where.
        key: Key,
        /// What, at most [`VALUE_BYTES_MAX`].
        value: Bytes,
    },
    /// Deletes the key if it exists.
    Delete {
        /// Which.
        key: Key,
    },
}

impl Operation {
    /// The key it touches.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Replace { key, .. } | Self::Delete { key } => key,
        }
    }

    pub(crate) fn value_bytes(&self) -> usize {
        match self {
            Self::Put { value, .. } | Self::Replace { value, .. } => value.len(),
            Self::Delete { .. } => 0,
        }
    }
}

impl fmt::Debug for Operation {
    // Values may be secrets and may be large: only their size is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { key, value, lease } => {
                write!(f, "Put({key}, {} bytes, lease {lease:?})", value.len())
            }
            Self::Replace { key, value } => write!(f, "Replace({key}, {} bytes)", value.len()),
            Self::Delete { key } => write!(f, "Delete({key})"),
        }
    }
}

/// What a committed batch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The revision of all its changes; the backend's present one if it changed nothing.
    pub revision: Revision,
    /// How many keys it deleted that existed.
    pub deleted: usize,
}

/// An ordered, watched map with revisions, atomic batches and leases. Used as `Arc<dyn Backend>`.
///
/// An acknowledged write is durable (as far as the backend is) and is seen by every later read.
/// Dropping the future of a write gives up the answer, not the write.
///
/// Somebody must call [`Backend::maintain`] about once a second.
pub trait Backend: Send + Sync {
    /// How much it takes at once.
    fn bounds(&self) -> Bounds {
        Bounds::default()
    }

    /// The item at a key, or none.
    fn get(&self, key: &Key) -> StoreFuture<'_, Option<Item>>;

    /// The items at and below `prefix` (see [`Key::contains`]) behind `after`, in key order, at most
    /// `limit` and at most [`RANGE_ITEMS_MAX`]; fewer when they are large ([`RANGE_BYTES_MAX`]).
    fn range(&self, prefix: &Key, after: Option<&Key>, limit: usize) -> StoreFuture<'_, Page>;

    /// Carries out all operations at one revision if all conditions hold, otherwise none of them.
    /// At most [`BATCH_OPERATIONS_MAX`] of each; a key appears in one operation only.
    fn batch(&self, conditions: Vec<Condition>, operations: Vec<Operation>) -> StoreFuture<'_, Committed>;

    /// A new lease. It ends when `ttl` passes without [`Backend::lease_keep_alive`]; then its keys go.
    /// Opening a backend again that nobody else has open may give every lease its full time anew.
    fn lease_grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId>;

    /// Gives a lease its full time again. [`StoreError::LeaseNotFound`] once it has ended. Takes no revision.
    fn lease_keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()>;

    /// Ends a lease and deletes its keys, with events. Returns how many keys there were.
    fn lease_revoke(&self, lease: LeaseId) -> StoreFuture<'_, usize>;

    /// The changes at and below `prefix`: everything after `from` without gap or repetition, or
    /// everything from now on. To list and follow, watch from [`Page::revision`] of the first page.
    /// A `from` that is too old is answered by the watch with `Compacted`.
    fn watch(&self, prefix: &Key, from: Option<Revision>) -> StoreFuture<'_, Watch>;

    /// Ends leases whose time has run out and forgets history beyond its bounds. Idempotent; call it
    /// about once a second. Returns how many keys of ended leases this call deleted; bounded, so a large
    /// number is spread over several calls. Where the server ends leases by itself that is none.
    fn maintain(&self) -> StoreFuture<'_, usize>;

    /// Refuses new requests, finishes those accepted, ends watches and releases what is held.
    /// Returns when that is done; may be called again.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// Writes a value, whether the key exists or not. Without a lease the key stays until deleted.
    fn put(&self, key: &Key, value: Bytes, lease: Option<LeaseId>) -> StoreFuture<'_, Revision> {
        let write = Operation::Put { key: key.clone(), value, lease };
        revision_of(self.batch(Vec::new(), vec![write]))
    }

    /// Writes a value at a key that must not exist: [`StoreError::AlreadyExists`] otherwise.
    fn create(&self, key: &Key, value: Bytes, lease: Option<LeaseId>) -> StoreFuture<'_, Revision> {
        let write = Operation::Put { key: key.clone(), value, lease };
        revision_of(self.batch(vec![Condition::Absent(key.clone())], vec![write]))
    }

    /// Replaces the value that was read at revision `expected`; the key keeps its lease.
    /// [`StoreError::Conflict`] if it has changed, [`StoreError::NotFound`] if it is gone.
    fn compare_and_swap(&self, key: &Key, expected: Revision, value: Bytes) -> StoreFuture<'_, Revision> {
        let condition = Condition::RevisionIs(key.clone(), expected);
        revision_of(self.batch(vec![condition], vec![Operation::Replace { key: key.clone(), value }]))
    }

    /// Deletes a key. True if it existed.
    fn delete(&self, key: &Key) -> StoreFuture<'_, bool> {
        let done = self.batch(Vec::new(), vec![Operation::Delete { key: key.clone() }]);
        Box::pin(async move { Ok(done.await?.deleted > 0) })
    }

    /// Deletes a key that was read at revision `expected`. [`StoreError::Conflict`] if it has
    /// changed, [`StoreError::NotFound`] if it is gone.
    fn compare_and_delete(&self, key: &Key, expected: Revision) -> StoreFuture<'_, Revision> {
        let condition = Condition::RevisionIs(key.clone(), expected);
        revision_of(self.batch(vec![condition], vec![Operation::Delete { key: key.clone() }]))
    }
}

fn revision_of(done: StoreFuture<'_, Committed>) -> StoreFuture<'_, Revision> {
    Box::pin(async move { Ok(done.await?.revision) })
}

/// A page's bound on items.
pub(crate) fn checked_limit(limit: usize) -> Result<usize, StoreError> {
    match limit {
        0 => Err(StoreError::Invalid { reason: "a page has room for at least one item" }),
        some => Ok(some.min(RANGE_ITEMS_MAX)),
    }
}
