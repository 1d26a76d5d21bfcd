//! The cluster's backend: one trait, [`Backend`], and what implements it.
//!
//! A backend is an ordered map from [`Key`] to bytes in which every change has a [`Revision`],
//! with conditions, atomic batches, leases and a watch that resumes from a revision without a gap
//! or a repetition. [`SqliteBackend`] keeps it in one file on one machine; [`PostgresBackend`] and
//! [`EtcdBackend`] keep it in servers that several Auth instances share; [`MemoryBackend`] keeps it in the process, for
//! tests and simulation. All pass the suite in [`conformance`], and so must every backend that comes later.
//!
//! What this is not: it knows no resource, no user and no policy (see `core/resource`), and it is
//! not the policy revision that agents believe (that one is data, see `wayleave_vocab::PolicyRevision`).
//! Start reading at [`Backend`].

mod backend;
pub mod conformance;
mod error;
mod etcd;
mod history;
mod key;
mod lease;
mod memory;
mod plan;
mod postgres;
mod server_tls;
mod sqlite;
mod watch;

pub use backend::{
    BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, Backend, Bounds, Committed, Condition, Item, Operation, Page,
    RANGE_BYTES_MAX, RANGE_ITEMS_MAX, Revision, StoreFuture, VALUE_BYTES_MAX,
};
pub use error::StoreError;
pub use etcd::{EtcdBackend, EtcdLogin, EtcdOpenError, EtcdOptions};
pub use history::{Change, Event, HistoryLimits};
pub use key::{KEY_BYTES_MAX, Key, ParseKeyError};
pub use lease::{LEASE_TTL_MAX, LEASES_MAX, LeaseId};
pub use memory::MemoryBackend;
pub use postgres::{
    PostgresAddress, PostgresAddressError, PostgresBackend, PostgresOpenError, PostgresOptions,
};
pub use server_tls::{ClientFiles, ServerTls, ServerTlsError};
pub use sqlite::{OpenError, SqliteBackend, SqliteOptions};
pub use watch::{Watch, WatchError};
