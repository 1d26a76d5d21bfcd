//! Whether the audit log of a backend is whole: its chain, and the checkpoints that Auth signed of it. For whoever holds
//! a backend or a copy of it; Auth need not run.

use crate::audit_log::entry_of;
use crate::authorities::{Authorities, LoadError, Successions};
use crate::bootstrap::ClusterRecord;
use crate::housekeeping::CheckpointRecord;
use crate::keys;
use crate::records::{Records, decode};
use crate::request_error::RequestError;
use std::sync::Arc;
use wayleave_audit::{Chain, ChainFault, ChainVerifier, Checkpoint, SignedCheckpoint, Verified};
use wayleave_ca::{SignedSuccession, Succession};
use wayleave_keystore::verify_policy_signature;
use wayleave_store::{Backend, RANGE_ITEMS_MAX, StoreError};
use wayleave_vocab::{ClusterName, Wall};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditVerdict {
    /// The cluster whose log it is.
    pub cluster: ClusterName,
    /// How long the log is and what is signed of it, or where it is broken first.
    pub log: Result<Verified, AuditFault>,
    /// When the newest checkpoint was signed.
    pub last_checkpoint: Option<Wall>,
}

/// Where the log is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditFault {
    /// The chain does not hold.
    #[error(transparent)]
    Chain(#[from] ChainFault),
    /// Something stands where an entry should be.
    #[error("{key} is no entry of the log")]
    NoEntry {
        /// Where.
        key: String,
    },
    /// The log ends otherwise than Auth noted.
    #[error("{noted} entries were written, {present} are there, or the last one is another")]
    OtherEnd {
        /// How many entries Auth wrote.
        noted: u64,
        /// How many there are.
        present: u64,
    },
}

/// Why nothing can be said of a log.
#[derive(Debug, thiserror::Error)]
pub enum VerifyAuditError {
    /// There is no cluster.
    #[error("there is no cluster: the backend is empty, or Auth has never started on it")]
    NoCluster,
    /// The backend failed.
    #[error("the backend cannot be read")]
    Store(#[from] StoreError),
    /// Something else that it holds cannot be read.
    #[error("the backend holds what cannot be read: {0}")]
    Damaged(String),
}

impl From<RequestError> for VerifyAuditError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Unavailable { source, .. } => Self::Store(source),
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl From<LoadError> for VerifyAuditError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Store(source) => Self::Store(source),
            other => Self::Damaged(other.to_string()),
        }
    }
}

/// Verifies the whole log of a backend, which others may be writing to: what is appended meanwhile is left out.
///
/// # Errors
/// When it cannot be read; that it is broken is a verdict.
pub async fn verify_audit_log(backend: Arc<dyn Backend>) -> Result<AuditVerdict, VerifyAuditError> {
    let records = Records::new(backend);
    let cluster = records.read::<ClusterRecord>(&keys::cluster()).await?;
    let cluster = cluster.ok_or(VerifyAuditError::NoCluster)?.value.name;
    // Checkpoints before the head, and the head before the entries: each is about what is read after it.
    let checkpoints = read_checkpoints(&records).await?;
    let head = records.read::<Chain>(&keys::audit_head()).await?.map(|stored| stored.value);
    let signers = signers(&records, &cluster).await?;
    let last_checkpoint = checkpoints.iter().filter_map(checkpoint_time).max();
    let log = match ChainVerifier::new(&cluster, &checkpoints, &|message: &[u8], signature: &[u8]| {
        signers.iter().any(|key| verify_policy_signature(key, message, signature).is_ok())
    }) {
        Ok(verifier) => verify_entries(&records, &cluster, verifier, head).await?,
        Err(fault) => Err(fault.into()),
    };
    Ok(AuditVerdict { cluster, log, last_checkpoint })
}

async fn verify_entries(
    records: &Records,
    cluster: &ClusterName,
    mut verifier: ChainVerifier,
    head: Option<Chain>,
) -> Result<Result<Verified, AuditFault>, VerifyAuditError> {
    let head = head.unwrap_or_else(|| Chain::beginning(cluster));
    let mut after = None;
    while verifier.chain().length < head.length {
        let page = records.backend().range(&keys::audit_events(), after.as_ref(), RANGE_ITEMS_MAX).await?;
        for item in &page.items {
            if verifier.chain().length == head.length {
                break;
            }
            let Some(entry) = entry_of(item) else {
                return Ok(Err(AuditFault::NoEntry { key: item.key.to_string() }));
            };
            if let Err(fault) = verifier.handle_entry(entry) {
                return Ok(Err(fault.into()));
            }
        }
        after = page.items.last().map(|item| item.key.clone()).or(after);
        if !page.more {
            break;
        }
    }
    let chain = verifier.chain();
    let verified = verifier.finish();
    if verified.is_ok() && chain != head {
        return Ok(Err(AuditFault::OtherEnd { noted: head.length, present: chain.length }));
    }
    Ok(verified.map_err(AuditFault::Chain))
}

async fn read_checkpoints(records: &Records) -> Result<Vec<SignedCheckpoint>, VerifyAuditError> {
    let (items, _) = records.items(&keys::audit_checkpoints()).await?;
    let read = items.iter().map(|item| Ok(decode::<CheckpointRecord>(item)?.value.signed()));
    read.collect()
}

fn checkpoint_time(signed: &SignedCheckpoint) -> Option<Wall> {
    serde_json::from_slice::<Checkpoint>(&signed.bytes).ok().map(|checkpoint| checkpoint.time)
}

/// The policy keys of now, and those before them that say who followed.
async fn signers(records: &Records, cluster: &ClusterName) -> Result<Vec<String>, VerifyAuditError> {
    let authorities = Authorities::load(records, cluster).await?;
    let mut keys = authorities.policy_keys();
    let held = authorities.held();
    let Successions(links) = &held.successions;
    for (bytes, signature) in links.iter().rev() {
        let Ok(link) = serde_json::from_slice::<Succession>(bytes) else { continue };
        let message = SignedSuccession::message(bytes);
        if keys.contains(&link.next) && verify_policy_signature(&link.previous, &message, signature).is_ok() {
            keys.push(link.previous);
        }
    }
    Ok(keys)
}
