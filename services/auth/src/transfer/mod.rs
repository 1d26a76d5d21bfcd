//! Copies of a backend: into a file while the cluster runs, out of it, and from one backend to another.
//!
//! A copy is exact at one revision: everything is listed, and then what changed meanwhile is told as well. What hangs on
//! a lease is left out; it belongs to processes that say it again. What was copied out of a file or another backend is
//! another life of the cluster: its generation is raised, so that its policy outranks what agents and proxies hold.

mod file;
mod load;
mod source;

pub use file::{BackupFile, BackupHeader};
pub use load::Existing;

use crate::audit_events;
use crate::auth_core::AuthCore;
use crate::bootstrap::ClusterRecord;
use crate::keys;
use crate::records::decode;
use crate::request_error::RequestError;
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use source::Running;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wayleave_store::{Backend, Condition, Key, Operation, StoreError, WatchError};
use wayleave_vocab::{ClusterName, Wall};

/// One step of a copy; later ones win over earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    Put(Key, Bytes),
    Delete(Key),
}

/// That the backend is a copy, for the next Auth to note.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoredRecord {
    pub(crate) v: u8,
    pub(crate) generation: u64,
    pub(crate) at: Wall,
}

impl AuthCore {
    /// Notes once that the backend is a copy: whoever made it could not, because Auth did not run.
    pub(crate) async fn note_restored(&self) {
        let key = keys::restored();
        let noted = async {
            let Some(stored) = self.records.read::<RestoredRecord>(&key).await? else { return Ok(()) };
            let condition = Condition::RevisionIs(key.clone(), stored.revision);
            let delete = Operation::Delete { key: key.clone() };
            let event = audit_events::restored(stored.value.generation);
            let done = self.commit_audited(vec![condition], vec![delete], vec![event]).await;
            match done {
                // Another instance was there first.
                Ok(_) | Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => Ok(()),
                Err(error) => Err(RequestError::store("note the restore")(error)),
            }
        };
        if let Err(error) = noted.await {
            tracing::warn!(%error, "the audit log does not tell yet that the cluster was restored");
        }
    }
}

/// Where records come from.
pub(crate) trait Records: Send {
    /// The next record, none at the end.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Record>, TransferError>>;
}

/// Told about now and then: how many records were copied.
pub type Progress<'a> = &'a mut (dyn FnMut(u64) + Send);

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its generation afterwards.
    pub generation: u64,
    /// Records, repeated ones included.
    pub records: u64,
}

/// Why a copy failed. The source is as it was; a target that was begun says so when Auth starts on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// There is no cluster in the source.
    #[error("there is no cluster to copy: the source is empty, or Auth has never started on it")]
    NoCluster,
    /// An earlier copy into the source did not end.
    #[error("the source was never restored to its end: restore it first")]
    HalfRestored,
    /// The target holds something.
    #[error("the target holds {what} already: choose an empty one, or say --replace to delete what it holds")]
    NotEmpty {
        /// A cluster, or something else.
        what: String,
    },
    /// Auth runs on the target.
    #[error("{0} Auth Services run on the target: stop them first (one that crashed counts for 20 s)")]
    InUse(usize),
    /// A value is larger than the target takes.
    #[error("{key} has {bytes} bytes, the target takes {max}: it cannot hold this cluster")]
    TooLarge {
        /// Which.
        key: Key,
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        max: usize,
    },
    /// History was forgotten while it was copied.
    #[error("the cluster changed faster than it could be copied: try again when less is going on")]
    Overtaken,
    /// A backend failed.
    #[error("the {which} failed")]
    Store {
        /// Source or target.
        which: &'static str,
        /// Why.
        source: StoreError,
    },
    /// The file cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no backup, or is damaged.
    #[error("{} is no usable backup: {reason}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl TransferError {
    fn source(source: StoreError) -> Self {
        Self::Store { which: "source", source }
    }

    fn target(source: StoreError) -> Self {
        Self::Store { which: "target", source }
    }
}

impl From<WatchError> for TransferError {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Store(source) => Self::source(source),
            WatchError::Closed => Self::source(StoreError::Closed),
            _ => Self::Overtaken,
        }
    }
}

/// Writes what a backend holds to a new file with mode 0600, while Auth may run on it.
///
/// # Errors
/// See [`TransferError`]; a file that is there already is kept. Nothing is left of one that was begun.
pub async fn backup(
    backend: Arc<dyn Backend>,
    path: &Path,
    now: Wall,
    progress: Progress<'_>,
) -> Result<Copied, TransferError> {
    let cluster = cluster_of(&*backend).await?;
    let header = BackupHeader::new(&cluster, now);
    let mut file = file::Writer::create(path, &header)?;
    let mut records = Running::new(backend);
    while let Some(record) = records.next().await? {
        file.write(&record)?;
        progress(file.records());
    }
    let records = file.finish()?;
    Ok(Copied { cluster: cluster.name, generation: cluster.generation, records })
}

/// Fills a backend from a file that was verified whole before ([`BackupFile::open`]).
///
/// # Errors
/// See [`TransferError`].
pub async fn restore(
    file: BackupFile,
    target: &dyn Backend,
    existing: Existing,
    now: Wall,
    progress: Progress<'_>,
) -> Result<Copied, TransferError> {
    load::load(&mut file.records()?, target, existing, now, progress).await
}

/// Fills a backend from another one. What Auth writes to the source from now on is not in the target.
///
/// # Errors
/// See [`TransferError`].
pub async fn clone_backend(
    source: Arc<dyn Backend>,
    target: &dyn Backend,
    existing: Existing,
    now: Wall,
    progress: Progress<'_>,
) -> Result<Copied, TransferError> {
    cluster_of(&*source).await?;
    load::load(&mut Running::new(source), target, existing, now, progress).await
}

/// The cluster that a backend holds.
async fn cluster_of(backend: &dyn Backend) -> Result<ClusterRecord, TransferError> {
    if backend.get(&keys::restoring()).await.map_err(TransferError::source)?.is_some() {
        return Err(TransferError::HalfRestored);
    }
    let item = backend.get(&keys::cluster()).await.map_err(TransferError::source)?;
    let item = item.ok_or(TransferError::NoCluster)?;
    decode::<ClusterRecord>(&item).map(|stored| stored.value).map_err(|_| TransferError::NoCluster)
}
