//! How an agent that slept through rotations of the policy key finds its way to the present one: each key is signed by
//! its predecessor.

use crate::gate::VerifySignature;
use serde::{Deserialize, Serialize};
use wayleave_vocab::{ClusterName, Wall};

/// Most links that are followed.
pub const SUCCESSIONS_MAX: usize = 64;
/// Largest link in bytes.
const SUCCESSION_BYTES_MAX: usize = 8 * 1024;
/// Said before every succession that is signed, so that a signature is good for nothing else.
const CONTEXT: &[u8] = b"wayleave policy succession 1\n";

/// One key follows another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Succession {
    /// The cluster.
    pub cluster: ClusterName,
    /// The key that goes: SubjectPublicKeyInfo in PEM.
    pub previous: String,
    /// The key that comes: SubjectPublicKeyInfo in PEM.
    pub next: String,
    /// When.
    pub time: Wall,
}

/// A succession as it travels: its exact bytes, and the signature of the key that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedSuccession {
    /// The succession's JSON.
    pub bytes: Vec<u8>,
    /// The signature over [`SignedSuccession::message`].
    pub signature: Vec<u8>,
}

/// A chain that leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionError {
    /// Too many links, or one that is too long.
    #[error("at most {SUCCESSIONS_MAX} links of {SUCCESSION_BYTES_MAX} bytes")]
    TooMuch,
    /// A link cannot be read.
    #[error("link {0} cannot be read")]
    Malformed(usize),
    /// A link is of another cluster.
    #[error("link {0} is of another cluster")]
    OtherCluster(usize),
    /// The last key is not reached from a key that is trusted.
    #[error("no key that is trusted leads to the last key")]
    LeadsNowhere,
}

impl Succession {
    /// The bytes that are signed and sent.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps of strings always serialise")
    }
}

impl SignedSuccession {
    /// What the signature is over.
    pub fn message(bytes: &[u8]) -> Vec<u8> {
        [CONTEXT, bytes].concat()
    }
}

/// The keys that may be trusted after following the chain, oldest link first: those that were, and their successors.
///
/// # Errors
/// When a link is misshapen or of another cluster, or the last key is not reached from a trusted one.
pub fn follow(
    keys: &[String],
    chain: &[SignedSuccession],
    cluster: &ClusterName,
    verify: &dyn VerifySignature,
) -> Result<Vec<String>, SuccessionError> {
    if chain.len() > SUCCESSIONS_MAX || chain.iter().any(|link| link.bytes.len() > SUCCESSION_BYTES_MAX) {
        return Err(SuccessionError::TooMuch);
    }
    let mut keys = keys.to_vec();
    for (index, link) in chain.iter().enumerate() {
        let message = SignedSuccession::message(&link.bytes);
        let signer = keys.iter().find(|key| verify.verify(key, &message, &link.signature)).cloned();
        let parsed: Succession =
            serde_json::from_slice(&link.bytes).map_err(|_| SuccessionError::Malformed(index))?;
        if parsed.cluster != *cluster {
            return Err(SuccessionError::OtherCluster(index));
        }
        // Links from before the agent's time are signed by keys that it does not know, and are passed over.
        if signer.is_some_and(|signer| signer == parsed.previous) && !keys.contains(&parsed.next) {
            keys.push(parsed.next.clone());
        }
        if index + 1 == chain.len() && !keys.contains(&parsed.next) {
            return Err(SuccessionError::LeadsNowhere);
        }
    }
    Ok(keys)
}
