//! What this process believes of the policy: verified, remembered on disk, handed to whoever decides.
//!
//! The rules are `core/ca`'s [`SnapshotGate`]; here are the signature, the file that makes a rollback visible after a
//! restart, and the authorities that TLS believes, which follow the policy.

use crate::identity_dir::{IdentityDir, IdentityDirError};
use crate::policy_signer::verify_policy_signature;
use crate::trust::TrustStore;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use wayleave_ca::{
    CaType, DecodeSnapshotError, GateState, HeadOutcome, HeadRefusal, SUCCESSIONS_MAX, SignedHead,
    SignedSuccession, Snapshot, SnapshotGate, SnapshotRefusal, trusted,
};
use wayleave_vocab::{ClusterName, PolicyRevision, Wall};

/// The highest head that was believed.
const STATE_FILE: &str = "policy-state.json";
/// The snapshot that it names, so that a restarted agent serves before it is connected.
const SNAPSHOT_FILE: &str = "policy-snapshot.json";

/// Keeps the verified policy of one process.
pub struct PolicyKeeper {
    inner: Mutex<Inner>,
    trust: TrustStore,
    current: watch::Sender<Option<Arc<Snapshot>>>,
}

struct Inner {
    gate: SnapshotGate,
    directory: IdentityDir,
    /// What could not be written to disk yet.
    unwritten: Unwritten,
}

/// What is believed and not on disk.
#[derive(Default)]
struct Unwritten {
    snapshot: Option<String>,
    state: bool,
}

/// A policy that was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PolicyKeeperError {
    /// The head is not believed.
    #[error("the policy head is refused")]
    Head(#[source] HeadRefusal),
    /// The snapshot is not believed.
    #[error("the policy snapshot is refused")]
    Snapshot(#[source] SnapshotRefusal),
    /// What was believed before a restart cannot be read.
    #[error("the policy that was kept cannot be read")]
    Keep(#[source] IdentityDirError),
}

impl PolicyKeeper {
    /// Opens what was believed before; `keys` are those that came with joining. `trust` follows the policy.
    ///
    /// # Errors
    /// [`PolicyKeeperError::Keep`] when the files cannot be read.
    pub fn open(
        directory: IdentityDir,
        cluster: ClusterName,
        keys: Vec<String>,
        trust: TrustStore,
    ) -> Result<Self, PolicyKeeperError> {
        let stored: Option<GateState> = directory.read(STATE_FILE).map_err(PolicyKeeperError::Keep)?;
        let state = match stored {
            Some(state) if state.cluster == cluster => state,
            _ => GateState { cluster, keys, highest: None },
        };
        let mut gate = SnapshotGate::new(state);
        let kept: Option<String> = directory.read(SNAPSHOT_FILE).map_err(PolicyKeeperError::Keep)?;
        let snapshot = kept.and_then(|text| gate.handle_snapshot(text.as_bytes()).ok());
        let keeper = Self {
            inner: Mutex::new(Inner { gate, directory, unwritten: Unwritten::default() }),
            trust,
            current: watch::Sender::new(None),
        };
        if let Some(snapshot) = snapshot {
            keeper.publish(snapshot);
        }
        Ok(keeper)
    }

    /// The policy, from now on; `None` before the first one came.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.current.subscribe()
    }

    /// The revision in use; zero before the first.
    pub fn revision(&self) -> PolicyRevision {
        self.lock().gate.current().unwrap_or_default()
    }

    /// True when strict locking must refuse new sessions.
    pub fn is_stale(&self, now: Wall) -> bool {
        self.lock().gate.is_stale(now)
    }

    /// How old the newest confirmation is; `None`: there never was one.
    pub fn age(&self, now: Wall) -> Option<std::time::Duration> {
        self.lock().gate.age(now)
    }

    /// A head came. True when its snapshot is wanted.
    ///
    /// # Errors
    /// See [`PolicyKeeperError`]; nothing changed then.
    pub fn accept_head(
        &self,
        payload: &[u8],
        signature: &[u8],
        now: Wall,
    ) -> Result<bool, PolicyKeeperError> {
        let mut inner = self.lock();
        handle_head(&mut inner, payload, signature, now)?;
        inner.write();
        Ok(inner.gate.wanted().is_some())
    }

    /// The succession of policy keys came, oldest first: each as its bytes and the signature of the key that went. One
    /// that leads nowhere from what is trusted here changes nothing.
    pub fn accept_successions<'a>(&self, links: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) {
        let chain: Vec<SignedSuccession> = links
            .into_iter()
            .take(SUCCESSIONS_MAX + 1)
            .map(|(bytes, signature)| SignedSuccession {
                bytes: bytes.to_vec(),
                signature: signature.to_vec(),
            })
            .collect();
        if chain.is_empty() {
            return;
        }
        let mut inner = self.lock();
        let before = inner.gate.state().keys.clone();
        if let Err(error) = inner.gate.handle_successions(&chain, &verify) {
            tracing::debug!(%error, "the succession of policy keys does not continue what is trusted here");
        }
        if inner.gate.state().keys != before {
            tracing::info!("the policy authority has a new key, which the old one vouches for");
            inner.unwritten.state = true;
            inner.write();
        }
    }

    /// A snapshot came with its head. It is in use when this returns; one that is in use already does nothing.
    ///
    /// # Errors
    /// See [`PolicyKeeperError`]; the old one stays in use then.
    pub fn accept_snapshot(
        &self,
        payload: &[u8],
        head_payload: &[u8],
        head_signature: &[u8],
        now: Wall,
    ) -> Result<(), PolicyKeeperError> {
        let mut inner = self.lock();
        handle_head(&mut inner, head_payload, head_signature, now)?;
        if inner.gate.wanted().is_none() {
            inner.write();
            return Ok(());
        }
        let believed = inner.gate.handle_snapshot(payload).map_err(PolicyKeeperError::Snapshot);
        if believed.is_ok() {
            inner.unwritten =
                Unwritten { snapshot: Some(String::from_utf8_lossy(payload).into_owned()), state: true };
        }
        inner.write();
        // Under the lock: whoever came first is not the one who publishes last.
        self.publish(believed?);
        Ok(())
    }

    /// What changed came, with the head of what results. It is in use when this returns.
    ///
    /// # Errors
    /// See [`PolicyKeeperError`]; the old one stays in use then, and the whole snapshot is needed.
    pub fn accept_delta(
        &self,
        payload: &[u8],
        head_payload: &[u8],
        head_signature: &[u8],
        now: Wall,
    ) -> Result<(), PolicyKeeperError> {
        let mut inner = self.lock();
        handle_head(&mut inner, head_payload, head_signature, now)?;
        if inner.gate.wanted().is_none() {
            inner.write();
            return Ok(());
        }
        // Under the lock: nobody publishes another base meanwhile.
        let base = self.current.borrow().clone();
        let believed = match &base {
            Some(base) => inner.gate.handle_delta(base, payload),
            None => Err(DecodeSnapshotError::NeedsWhole.into()),
        }
        .map_err(PolicyKeeperError::Snapshot);
        if let Ok(snapshot) = &believed {
            let text = String::from_utf8_lossy(&snapshot.encode()).into_owned();
            inner.unwritten = Unwritten { snapshot: Some(text), state: true };
        }
        inner.write();
        self.publish(believed?);
        Ok(())
    }

    fn publish(&self, snapshot: Snapshot) {
        let (mut host, mut user) = (String::new(), String::new());
        for authority in &snapshot.parts().cas {
            let into = match authority.spec.ca_type {
                CaType::Host => &mut host,
                CaType::User => &mut user,
                _ => continue,
            };
            for keys in trusted(&authority.spec) {
                into.push_str(keys.x509_certificate_pem.as_deref().unwrap_or_default());
                into.push('\n');
            }
        }
        self.trust.replace(&snapshot.parts().cluster, &host, &user);
        self.current.send_replace(Some(Arc::new(snapshot)));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Writes what is believed, before anything follows from it. What cannot be written is used all the same, because a
    /// full disk must not keep a lock from counting, and is written as soon as there is room.
    fn write(&mut self) {
        let Self { gate, directory, unwritten } = self;
        if let Some(text) = &unwritten.snapshot
            && wrote(directory.write(SNAPSHOT_FILE, text))
        {
            unwritten.snapshot = None;
        }
        if unwritten.state && wrote(directory.write(STATE_FILE, gate.state())) {
            unwritten.state = false;
        }
    }
}

fn wrote(result: Result<(), IdentityDirError>) -> bool {
    if let Err(error) = &result {
        let error = error as &dyn std::error::Error;
        tracing::error!(error, "the policy is in use and cannot be kept: after a restart it must come anew");
    }
    result.is_ok()
}

fn verify(key: &str, message: &[u8], signature: &[u8]) -> bool {
    verify_policy_signature(key, message, signature).is_ok()
}

/// Believes a head.
fn handle_head(
    inner: &mut Inner,
    payload: &[u8],
    signature: &[u8],
    now: Wall,
) -> Result<(), PolicyKeeperError> {
    let signed = SignedHead { bytes: payload.to_vec(), signature: signature.to_vec() };
    let outcome = inner.gate.handle_head(&signed, &verify, now).map_err(PolicyKeeperError::Head)?;
    inner.unwritten.state |= outcome == HeadOutcome::Newer;
    Ok(())
}
