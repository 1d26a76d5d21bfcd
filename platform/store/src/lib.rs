//! The cluster's backend: one trait, [`Backend`], and what implements it.
//!
//! A backend is an ordered map from [`Key`] to bytes in which every change has a [`Revision`],
//! with conditions, atomic batches, leases and a watch that resumes from a revision without a gap
//! or a repetition. [`SqliteBackend`] keeps it in one file on one machine; [`MemoryBackend`] keeps it
//! in the process, for tests and simulation. Both pass the suite in [`conformance`], and so must
//! every backend that comes later.
//!
//! What this is not: it knows no resource, no user and no policy (see `core/resource`), and it is
//! not the policy revision that agents believe (that one is data, see `wayleave_vocab::PolicyRevision`).
//! Start reading at [`Backend`].

mod backend;
pub mod conformance;
mod error;
mod history;
mod key;
mod lease;
mod memory;
mod plan;
mod sqlite;
mod watch;

pub use backend::{
    BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, Backend, Committed, Condition, Item, Operation, Page,
    RANGE_BYTES_MAX, RANGE_ITEMS_MAX, Revision, StoreFuture, VALUE_BYTES_MAX,
};
pub use error::StoreError;
pub use history::{Change, Event, HistoryLimits};
pub use key::{KEY_BYTES_MAX, Key, ParseKeyError};
pub use lease::{LEASE_TTL_MAX, LEASES_MAX, LeaseId};
pub use memory::MemoryBackend;
pub use sqlite::{OpenError, SqliteBackend, SqliteOptions};
pub use watch::{Watch, WatchError};
