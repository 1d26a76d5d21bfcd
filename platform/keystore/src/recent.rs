//! Chains that were verified a moment ago: who presents one again is who he was.
//!
//! A connection's chain is looked at twice, by the handshake and by whoever serves the connection; and users, proxies and
//! agents connect again and again. What is remembered goes with the authorities that vouched for it.

use crate::trust::Audience;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wayleave_identity::Principal;
use wayleave_vocab::Wall;

/// How many are remembered.
const CHAINS_MAX: usize = 1_024;
/// For how long.
const LIFE: Duration = Duration::from_secs(60);

/// Names a chain and its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ChainId([u8; 32]);

impl ChainId {
    pub(crate) fn new(chain: &[CertificateDer<'_>], audience: Audience) -> Self {
        let mut digest = Sha256::new();
        digest.update([match audience {
            Audience::Client => 0,
            Audience::Server => 1,
        }]);
        for certificate in chain {
            digest.update((certificate.len() as u64).to_be_bytes());
            digest.update(certificate);
        }
        Self(digest.finalize().into())
    }
}

#[derive(Debug)]
struct Verified {
    principal: Principal,
    at: Wall,
    /// The leaf is good until then.
    not_after: Wall,
}

#[derive(Debug, Default)]
struct Chains {
    verified: HashMap<ChainId, Verified>,
    /// The oldest first.
    order: VecDeque<ChainId>,
}

#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Chains>);

impl Recent {
    /// Whose chain this is, if it was verified a moment before `now`.
    pub(crate) fn find(&self, chain: ChainId, now: Wall) -> Option<Principal> {
        let chains = self.lock();
        let found = chains.verified.get(&chain)?;
        let is_good = found.at <= now && now < found.at.after(LIFE) && now <= found.not_after;
        is_good.then(|| found.principal.clone())
    }

    pub(crate) fn add(&self, chain: ChainId, principal: Principal, not_after: Wall, at: Wall) {
        let mut chains = self.lock();
        if chains.verified.insert(chain, Verified { principal, at, not_after }).is_none() {
            chains.order.push_back(chain);
        }
        while chains.order.len() > CHAINS_MAX {
            if let Some(oldest) = chains.order.pop_front() {
                chains.verified.remove(&oldest);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Chains> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
