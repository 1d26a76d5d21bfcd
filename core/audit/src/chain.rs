//! The hash chain: each entry's hash covers the one before, so that nothing can be changed, removed or put in between
//! without every later hash changing. Signed checkpoints say how long the chain was, so that its end cannot be cut off.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use wayleave_vocab::{ClusterName, Wall};

/// Largest entry in bytes.
pub const ENTRY_BYTES_MAX: usize = crate::envelope::ENVELOPE_BYTES_MAX;
/// Said before everything that is hashed.
const ENTRY_CONTEXT: &[u8] = b"wayleave audit entry 1\n";
/// Said before every checkpoint that is signed.
const CHECKPOINT_CONTEXT: &[u8] = b"wayleave audit checkpoint 1\n";

/// A hash of the chain, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainHash([u8; 32]);

/// Text that is no hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not 64 hexadecimal digits")]
pub struct ParseChainHashError;

/// Where a chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// How many entries there are.
    pub length: u64,
    /// The hash of the last one.
    pub last: ChainHash,
}

/// An entry as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainEntry {
    /// Its place, from 0.
    pub index: u64,
    /// The canonical bytes of the envelope.
    pub bytes: Vec<u8>,
    /// Its hash.
    pub hash: ChainHash,
}

/// A statement of Auth about its chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The cluster.
    pub cluster: ClusterName,
    /// How long the chain was, and its last hash.
    pub chain: Chain,
    /// When.
    pub time: Wall,
}

/// A checkpoint as it is stored: its exact bytes, and a signature over [`SignedCheckpoint::message`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// The checkpoint's JSON.
    pub bytes: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
}

/// Verifies signatures of checkpoints.
pub trait VerifyCheckpoint {
    /// True if a key of the cluster made the signature.
    fn verify(&self, message: &[u8], signature: &[u8]) -> bool;
}

impl<F: Fn(&[u8], &[u8]) -> bool> VerifyCheckpoint for F {
    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self(message, signature)
    }
}

impl Chain {
    /// The chain of a cluster before its first entry. Chains of two clusters have nothing in common.
    pub fn beginning(cluster: &ClusterName) -> Self {
        let hash = Sha256::new().chain_update(ENTRY_CONTEXT).chain_update(cluster.as_str()).finalize();
        Self { length: 0, last: ChainHash(hash.into()) }
    }

    /// The chain with one more entry, and that entry. Nothing is changed until the caller stored both.
    pub fn append(self, bytes: Vec<u8>) -> (Self, ChainEntry) {
        let hash = self.next_hash(&bytes);
        let entry = ChainEntry { index: self.length, bytes, hash };
        (Self { length: self.length.saturating_add(1), last: hash }, entry)
    }

    fn next_hash(&self, bytes: &[u8]) -> ChainHash {
        let hash = Sha256::new()
            .chain_update(ENTRY_CONTEXT)
            .chain_update(self.last.0)
            .chain_update(self.length.to_be_bytes())
            .chain_update(bytes)
            .finalize();
        ChainHash(hash.into())
    }
}

impl Checkpoint {
    /// The bytes that are signed and stored.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps of strings always serialise")
    }
}

impl SignedCheckpoint {
    /// What the signature is over.
    pub fn message(bytes: &[u8]) -> Vec<u8> {
        [CHECKPOINT_CONTEXT, bytes].concat()
    }
}

/// What was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Where the chain stands.
    pub chain: Chain,
    /// How many entries no checkpoint covers yet: whoever holds the backend could replace these.
    pub uncovered: u64,
    /// How many checkpoints were verified.
    pub checkpoints: usize,
}

/// Where and how a chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// An entry is missing, or twice.
    #[error("entry {expected} is missing: {found} comes in its place")]
    Missing {
        /// The index wanted.
        expected: u64,
        /// The index found.
        found: u64,
    },
    /// An entry was changed, or one before it.
    #[error("entry {index} does not follow from those before it")]
    Changed {
        /// Which.
        index: u64,
    },
    /// A checkpoint was signed by nobody who is trusted.
    #[error("checkpoint {number} is not signed by the cluster")]
    BadSignature {
        /// Which, from 0.
        number: usize,
    },
    /// A checkpoint cannot be read, or is of another cluster.
    #[error("checkpoint {number} cannot be read, or is of another cluster")]
    BadCheckpoint {
        /// Which, from 0.
        number: usize,
    },
    /// The chain was another one when the checkpoint was made.
    #[error("checkpoint {number} says another hash after {length} entries")]
    Contradiction {
        /// Which, from 0.
        number: usize,
        /// The length it is about.
        length: u64,
    },
    /// The end is cut off.
    #[error("checkpoint {number} knows {length} entries, there are {present}")]
    Truncated {
        /// Which, from 0.
        number: usize,
        /// The length it is about.
        length: u64,
        /// How many there are.
        present: u64,
    },
}

/// Verifies a whole chain offline, entry by entry. Only the entries' bytes are trusted to be what they are.
///
/// # Errors
/// The first fault.
pub fn verify_chain(
    cluster: &ClusterName,
    entries: impl IntoIterator<Item = ChainEntry>,
    checkpoints: &[SignedCheckpoint],
    verify: &dyn VerifyCheckpoint,
) -> Result<Verified, ChainFault> {
    let mut verifier = ChainVerifier::new(cluster, checkpoints, verify)?;
    for entry in entries {
        verifier.handle_entry(entry)?;
    }
    verifier.finish()
}

/// Verifies a chain whose entries come one after the other.
#[derive(Debug)]
pub struct ChainVerifier {
    claims: Claims,
    chain: Chain,
    covered: u64,
    checkpoints: usize,
}

impl ChainVerifier {
    /// Before the first entry.
    ///
    /// # Errors
    /// When a checkpoint is none, or contradicts the beginning.
    pub fn new(
        cluster: &ClusterName,
        checkpoints: &[SignedCheckpoint],
        verify: &dyn VerifyCheckpoint,
    ) -> Result<Self, ChainFault> {
        let claims = read_checkpoints(cluster, checkpoints, verify)?.into_iter().peekable();
        let chain = Chain::beginning(cluster);
        let mut verifier = Self { claims, chain, covered: 0, checkpoints: checkpoints.len() };
        verifier.compare()?;
        Ok(verifier)
    }

    /// The chain of the entries until now.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// The next entry.
    ///
    /// # Errors
    /// When it does not follow, or a checkpoint knows another one.
    pub fn handle_entry(&mut self, entry: ChainEntry) -> Result<(), ChainFault> {
        if entry.index != self.chain.length {
            return Err(ChainFault::Missing { expected: self.chain.length, found: entry.index });
        }
        let (next, expected) = self.chain.append(entry.bytes);
        if expected.hash != entry.hash {
            return Err(ChainFault::Changed { index: entry.index });
        }
        self.chain = next;
        self.compare()
    }

    /// There are no more entries.
    ///
    /// # Errors
    /// When a checkpoint knows more.
    pub fn finish(mut self) -> Result<Verified, ChainFault> {
        let Self { chain, covered, checkpoints, .. } = self;
        match self.claims.next() {
            Some((number, claim)) => {
                Err(ChainFault::Truncated { number, length: claim.length, present: chain.length })
            }
            None => Ok(Verified { chain, uncovered: chain.length - covered, checkpoints }),
        }
    }

    /// Compares the chain with every checkpoint about its present length.
    fn compare(&mut self) -> Result<(), ChainFault> {
        while let Some((number, claim)) = self.claims.next_if(|(_, claim)| claim.length == self.chain.length)
        {
            if claim.last != self.chain.last {
                return Err(ChainFault::Contradiction { number, length: claim.length });
            }
            self.covered = self.chain.length;
        }
        Ok(())
    }
}

type Claims = std::iter::Peekable<std::vec::IntoIter<(usize, Chain)>>;

fn read_checkpoints(
    cluster: &ClusterName,
    checkpoints: &[SignedCheckpoint],
    verify: &dyn VerifyCheckpoint,
) -> Result<Vec<(usize, Chain)>, ChainFault> {
    let mut claims = Vec::with_capacity(checkpoints.len());
    for (number, signed) in checkpoints.iter().enumerate() {
        if !verify.verify(&SignedCheckpoint::message(&signed.bytes), &signed.signature) {
            return Err(ChainFault::BadSignature { number });
        }
        let checkpoint: Checkpoint =
            serde_json::from_slice(&signed.bytes).map_err(|_| ChainFault::BadCheckpoint { number })?;
        if checkpoint.cluster != *cluster {
            return Err(ChainFault::BadCheckpoint { number });
        }
        claims.push((number, checkpoint.chain));
    }
    claims.sort_by_key(|(number, claim)| (claim.length, *number));
    Ok(claims)
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ChainHash {
    type Err = ParseChainHashError;

    fn from_str(s: &str) -> Result<Self, ParseChainHashError> {
        let bytes = data_encoding::HEXLOWER.decode(s.as_bytes()).map_err(|_| ParseChainHashError)?;
        bytes.try_into().map(Self).map_err(|_| ParseChainHashError)
    }
}

impl Serialize for ChainHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChainHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
