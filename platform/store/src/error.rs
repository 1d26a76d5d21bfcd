//! Why a backend operation failed, by what the caller can do about it.

use crate::backend::Revision;
use crate::key::Key;
use crate::lease::LeaseId;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

/// An error below the store, shared because one failed commit answers many requests.
pub(crate) type Source = Arc<dyn Error + Send + Sync>;

/// Why an operation failed. Nothing was changed, except where `Unavailable` says that it is not known.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operation needs a key that is not there.
    #[error("{key} is not there")]
    NotFound {
        /// The missing key.
        key: Key,
    },
    /// The operation needs the key to be absent.
    #[error("{key} exists already, at revision {revision}")]
    AlreadyExists {
        /// The key.
        key: Key,
        /// Where it stands.
        revision: Revision,
    },
    /// The key has changed since it was read: read it again and decide anew.
    #[error("{key} was changed meanwhile: expected revision {expected}, it is at {actual}")]
    Conflict {
        /// The key.
        key: Key,
        /// What the caller had read.
        expected: Revision,
        /// Where it stands.
        actual: Revision,
    },
    /// No such lease, or its time has run out: grant a new one and write its keys again.
    #[error("lease {lease} does not exist or has expired")]
    LeaseNotFound {
        /// The lease.
        lease: LeaseId,
    },
    /// More than the backend takes.
    #[error("{what} is too large: {given} where {max} is the most")]
    TooLarge {
        /// What is too large, with its unit.
        what: &'static str,
        /// How much was given.
        given: u64,
        /// How much is allowed.
        max: u64,
    },
    /// A request that makes no sense; a defect of the caller.
    #[error("the request is not valid: {reason}")]
    Invalid {
        /// The rule it breaks.
        reason: &'static str,
    },
    /// The bounded queue is full.
    #[error("the backend is busy ({queue} queue full): wait a moment and try again, or send fewer at once")]
    Busy {
        /// Which queue.
        queue: &'static str,
    },
    /// No room on the disk. Reads go on; writes work again as soon as there is room.
    #[error("no space left for {}: free some space there, writing goes on by itself then", path.display())]
    Full {
        /// The backend's file.
        path: PathBuf,
        /// What the database said.
        source: Source,
    },
    /// The stored data is damaged.
    #[error("the backend {} is damaged: stop the service and restore it from a backup", path.display())]
    Corrupt {
        /// The backend's file.
        path: PathBuf,
        /// What the database said.
        source: Source,
    },
    /// The backend cannot answer now. A write that got this may or may not have been stored.
    #[error("the backend could not {doing}")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: Source,
    },
    /// The backend has been closed, or is draining.
    #[error("the backend is closed")]
    Closed,
}

impl StoreError {
    /// True if the same request can succeed later without anybody changing it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Full { .. } | Self::Unavailable { .. } => true,
            Self::NotFound { .. }
            | Self::AlreadyExists { .. }
            | Self::Conflict { .. }
            | Self::LeaseNotFound { .. }
            | Self::TooLarge { .. }
            | Self::Invalid { .. }
            | Self::Corrupt { .. }
            | Self::Closed => false,
        }
    }
}
