//! Which heads and snapshots an agent believes. Pure: bytes and time in, decisions out.
//!
//! The order of checks is the order of trust: size, signature, shape, cluster, revision. What passed is remembered by the
//! caller ([`SnapshotGate::state`]) *before* it is acted upon, so that neither a restart nor a lying proxy can bring an
//! older policy back.

use crate::digest::Digest;
use crate::snapshot::{
    DecodeSnapshotError, Delta, HEAD_BYTES_MAX, Head, SNAPSHOT_BYTES_MAX, SignedHead, Snapshot,
};
use crate::succession::{SignedSuccession, SuccessionError, follow};
use crate::validity::CLOCK_SKEW;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wayleave_resource::CaType;
use wayleave_vocab::{ClusterName, PolicyRevision, Wall};

/// With no newer head than this, the policy is stale.
pub const POLICY_STALE_AFTER: Duration = Duration::from_secs(5 * 60);
/// Most keys of the policy authority that are trusted at once.
const KEYS_MAX: usize = 8;

/// Verifies a signature of the policy authority.
pub trait VerifySignature {
    /// True if `signature` over `message` was made by the key (SubjectPublicKeyInfo in PEM). Keys that cannot be read
    /// verify nothing.
    fn verify(&self, public_key_pem: &str, message: &[u8], signature: &[u8]) -> bool;
}

impl<F: Fn(&str, &[u8], &[u8]) -> bool> VerifySignature for F {
    fn verify(&self, public_key_pem: &str, message: &[u8], signature: &[u8]) -> bool {
        self(public_key_pem, message, signature)
    }
}

/// What must survive a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateState {
    /// The cluster.
    pub cluster: ClusterName,
    /// The keys that are trusted: SubjectPublicKeyInfo in PEM. The first ones come with the join.
    pub keys: Vec<String>,
    /// The highest head that was believed.
    pub highest: Option<SeenHead>,
}

/// A head that was believed, and when it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenHead {
    /// The head.
    pub head: Head,
    /// When it came, by this machine's clock; or when Auth said it again, by a clock that was ahead before.
    pub received: Wall,
}

impl SeenHead {
    /// When Auth said so, as far as this machine can tell: a head from the future counts from when it came.
    fn said(&self) -> Wall {
        self.head.time.min(self.received)
    }

    /// When Auth said the same again although `time` is not later: if a clock was ahead, Auth's or that of this machine,
    /// and has been set right since. Otherwise heads of the right time would confirm nothing until it has come to what
    /// the wrong clock showed.
    fn said_again(&self, time: Wall, now: Wall) -> Option<Wall> {
        let near = now.after(CLOCK_SKEW);
        let was_ahead = self.received > now || self.head.time > near && time > self.said();
        (was_ahead && time <= near).then_some(time.min(now))
    }
}

/// What a head that is believed means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadOutcome {
    /// A newer revision: fetch the snapshot.
    Newer,
    /// The same revision, confirmed once more.
    Confirmed,
    /// The same revision, said earlier than what is known: a late packet.
    Older,
}

/// Why a head is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadRefusal {
    /// More bytes than a head has.
    #[error("the head has {0} bytes, at most {HEAD_BYTES_MAX}")]
    TooLong(usize),
    /// No trusted key signed it. Ask for the succession of keys.
    #[error("the head is not signed by a key that is trusted")]
    BadSignature,
    /// It is signed and cannot be read.
    #[error("the head cannot be read: {0}")]
    Malformed(String),
    /// It is of another cluster.
    #[error("the head is of cluster {0}")]
    OtherCluster(ClusterName),
    /// It is lower than one that was believed: somebody replays, or the backend went back without a new generation.
    #[error("the head says revision {given}, {highest} was seen already")]
    Lower {
        /// What it says.
        given: PolicyRevision,
        /// What was seen.
        highest: PolicyRevision,
    },
    /// The same revision with other contents: two Auth Services write without knowing of each other.
    #[error("the head says revision {0} with another digest than before")]
    Forked(PolicyRevision),
}

/// Why a snapshot is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotRefusal {
    /// No head was believed yet.
    #[error("there is no head to compare the snapshot with")]
    NoHead,
    /// It is not what the head names.
    #[error("the snapshot's digest is not that of revision {0}")]
    OtherDigest(PolicyRevision),
    /// It cannot be read.
    #[error("{0}")]
    Decode(#[from] DecodeSnapshotError),
    /// It is what the head names and says something else about itself.
    #[error("the snapshot contradicts its head")]
    Contradiction,
    /// It names no key that could sign the next head.
    #[error("the snapshot has no policy authority")]
    NoPolicyKeys,
}

/// Decides which heads and snapshots are believed.
#[derive(Debug, Clone)]
pub struct SnapshotGate {
    state: GateState,
    current: Option<Current>,
}

/// The snapshot in use.
#[derive(Debug, Clone, Copy)]
struct Current {
    revision: PolicyRevision,
    /// When Auth last said that this is the newest one.
    confirmed: Wall,
}

impl SnapshotGate {
    /// A gate after join (no head yet) or after a restart.
    pub fn new(state: GateState) -> Self {
        Self { state, current: None }
    }

    /// What must be stored before what was believed is acted upon.
    pub fn state(&self) -> &GateState {
        &self.state
    }

    /// The revision of the snapshot in use.
    pub fn current(&self) -> Option<PolicyRevision> {
        self.current.map(|current| current.revision)
    }

    /// The head whose snapshot is wanted: it was believed and its snapshot has not come.
    pub fn wanted(&self) -> Option<&Head> {
        let head = &self.state.highest.as_ref()?.head;
        (self.current() != Some(head.revision)).then_some(head)
    }

    /// How long ago Auth last confirmed the snapshot in use; absent: there is none. A head that names a newer snapshot
    /// confirms nothing until that snapshot has come, so withholding it ages the old one.
    pub fn age(&self, now: Wall) -> Option<Duration> {
        self.current.map(|current| now.since(current.confirmed))
    }

    /// True if there is no snapshot, or none that was confirmed within five minutes.
    pub fn is_stale(&self, now: Wall) -> bool {
        self.age(now).is_none_or(|age| age > POLICY_STALE_AFTER)
    }

    /// A head came.
    ///
    /// # Errors
    /// When it is not believed; nothing changed then.
    pub fn handle_head(
        &mut self,
        signed: &SignedHead,
        verify: &dyn VerifySignature,
        now: Wall,
    ) -> Result<HeadOutcome, HeadRefusal> {
        if signed.bytes.len() > HEAD_BYTES_MAX {
            return Err(HeadRefusal::TooLong(signed.bytes.len()));
        }
        let message = SignedHead::message(&signed.bytes);
        if !self.state.keys.iter().any(|key| verify.verify(key, &message, &signed.signature)) {
            return Err(HeadRefusal::BadSignature);
        }
        let head: Head = serde_json::from_slice(&signed.bytes)
            .map_err(|error| HeadRefusal::Malformed(error.to_string()))?;
        if head.cluster != self.state.cluster {
            return Err(HeadRefusal::OtherCluster(head.cluster));
        }
        let outcome = match &self.state.highest {
            None => HeadOutcome::Newer,
            Some(seen) if head.revision > seen.head.revision => HeadOutcome::Newer,
            Some(seen) if head.revision < seen.head.revision => {
                return Err(HeadRefusal::Lower { given: head.revision, highest: seen.head.revision });
            }
            Some(seen) if head.digest != seen.head.digest => return Err(HeadRefusal::Forked(head.revision)),
            Some(seen) if head.time > seen.head.time => HeadOutcome::Confirmed,
            Some(seen) => match seen.said_again(head.time, now) {
                Some(at) => {
                    // The later time stays: what was signed under a clock that was ahead confirms once.
                    self.see(SeenHead { head: seen.head.clone(), received: at });
                    return Ok(HeadOutcome::Confirmed);
                }
                None => return Ok(HeadOutcome::Older),
            },
        };
        self.see(SeenHead { head, received: now });
        Ok(outcome)
    }

    fn see(&mut self, seen: SeenHead) {
        if let Some(current) = self.current.as_mut().filter(|current| current.revision == seen.head.revision)
        {
            current.confirmed = seen.said();
        }
        self.state.highest = Some(seen);
    }

    /// A snapshot came. The keys of its policy authority are the trusted ones from now on.
    ///
    /// # Errors
    /// When it is not believed; nothing changed then.
    pub fn handle_snapshot(&mut self, bytes: &[u8]) -> Result<Snapshot, SnapshotRefusal> {
        let seen = self.highest()?.clone();
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            return Err(DecodeSnapshotError::TooLong(bytes.len()).into());
        }
        if Digest::of(bytes) != seen.head.digest {
            return Err(SnapshotRefusal::OtherDigest(seen.head.revision));
        }
        let snapshot = Snapshot::decode(bytes)?;
        self.believe(&snapshot, &seen)?;
        Ok(snapshot)
    }

    /// A delta came for the snapshot in use.
    ///
    /// # Errors
    /// When what results is not believed; nothing changed then, and the whole snapshot is needed.
    pub fn handle_delta(&mut self, base: &Snapshot, bytes: &[u8]) -> Result<Snapshot, SnapshotRefusal> {
        let seen = self.highest()?.clone();
        let snapshot = base.apply(&Delta::decode(bytes)?)?;
        if Digest::of(&snapshot.encode()) != seen.head.digest {
            return Err(SnapshotRefusal::OtherDigest(seen.head.revision));
        }
        self.believe(&snapshot, &seen)?;
        Ok(snapshot)
    }

    /// The succession of keys came, because a head was signed by a key that is not known.
    ///
    /// # Errors
    /// When a link is not believed; nothing changed then.
    pub fn handle_successions(
        &mut self,
        chain: &[SignedSuccession],
        verify: &dyn VerifySignature,
    ) -> Result<(), SuccessionError> {
        let mut keys = follow(&self.state.keys, chain, &self.state.cluster, verify)?;
        let extra = keys.len().saturating_sub(KEYS_MAX);
        self.state.keys = keys.split_off(extra);
        Ok(())
    }

    fn highest(&self) -> Result<&SeenHead, SnapshotRefusal> {
        self.state.highest.as_ref().ok_or(SnapshotRefusal::NoHead)
    }

    fn believe(&mut self, snapshot: &Snapshot, seen: &SeenHead) -> Result<(), SnapshotRefusal> {
        let parts = snapshot.parts();
        if parts.revision != seen.head.revision || parts.cluster != seen.head.cluster {
            return Err(SnapshotRefusal::Contradiction);
        }
        let policy = parts.cas.iter().filter(|authority| authority.spec.ca_type == CaType::Policy);
        let keys: Vec<String> = policy
            .flat_map(|authority| authority.spec.active.iter().chain(&authority.spec.trusted))
            .filter_map(|keys| keys.signing_public_key_pem.clone())
            .take(KEYS_MAX)
            .collect();
        if keys.is_empty() {
            return Err(SnapshotRefusal::NoPolicyKeys);
        }
        self.state.keys = keys;
        self.current = Some(Current { revision: parts.revision, confirmed: seen.said() });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::SnapshotParts;
    use crate::succession::Succession;
    use wayleave_resource::{
        CaKeys, CertAuthority, CertAuthoritySpec, ClusterAuthPreference, ClusterNetworkingConfig, Metadata,
        RotationPhase,
    };

    /// A signature that needs no crypto: whoever knows the key's name signs with it.
    fn sign(key: &str, message: &[u8]) -> Vec<u8> {
        [key.as_bytes(), message].concat()
    }

    fn verify(key: &str, message: &[u8], signature: &[u8]) -> bool {
        sign(key, message) == signature
    }

    fn cluster() -> ClusterName {
        ClusterName::parse("demo").unwrap()
    }

    fn snapshot(generation: u64, counter: u64, keys: &[&str]) -> Snapshot {
        let keys = keys
            .iter()
            .map(|key| CaKeys { signing_public_key_pem: Some((*key).to_owned()), ..CaKeys::default() })
            .collect();
        Snapshot::new(SnapshotParts {
            revision: PolicyRevision { generation, counter },
            cluster: cluster(),
            issued: Wall::from_secs(counter),
            cas: vec![CertAuthority {
                metadata: Metadata::default(),
                spec: CertAuthoritySpec {
                    ca_type: CaType::Policy,
                    cluster: cluster(),
                    phase: RotationPhase::Standby,
                    active: keys,
                    trusted: vec![],
                },
            }],
            roles: vec![],
            locks: vec![],
            withdrawn: vec![],
            auth_preference: ClusterAuthPreference::default(),
            networking: ClusterNetworkingConfig::default(),
        })
    }

    fn head(snapshot: &Snapshot, key: &str, at_secs: u64) -> SignedHead {
        let head = Head {
            cluster: cluster(),
            revision: snapshot.parts().revision,
            digest: Digest::of(&snapshot.encode()),
            time: Wall::from_secs(at_secs),
        };
        let bytes = head.encode();
        SignedHead { signature: sign(key, &SignedHead::message(&bytes)), bytes }
    }

    fn gate() -> SnapshotGate {
        SnapshotGate::new(GateState { cluster: cluster(), keys: vec!["k1".into()], highest: None })
    }

    fn at(secs: u64) -> Wall {
        Wall::from_secs(secs)
    }

    #[test]
    fn a_head_then_its_snapshot_are_believed() {
        let mut gate = gate();
        let one = snapshot(1, 1, &["k1"]);
        assert_eq!(gate.handle_snapshot(&one.encode()), Err(SnapshotRefusal::NoHead));
        assert_eq!(gate.handle_head(&head(&one, "k1", 100), &verify, at(100)), Ok(HeadOutcome::Newer));
        assert!(gate.is_stale(at(100)));
        assert_eq!(gate.handle_snapshot(&one.encode()), Ok(one.clone()));
        assert!(!gate.is_stale(at(400)) && gate.is_stale(at(401)));
        assert_eq!(gate.handle_head(&head(&one, "k1", 300), &verify, at(300)), Ok(HeadOutcome::Confirmed));
        assert!(!gate.is_stale(at(600)));
        assert_eq!(gate.handle_head(&head(&one, "k1", 200), &verify, at(600)), Ok(HeadOutcome::Older));
        assert!(gate.is_stale(at(601)), "a replayed head confirms nothing");
    }

    #[test]
    fn o_a_lying_proxy_cannot_bring_an_old_policy_back() {
        let mut gate = gate();
        let (one, two) = (snapshot(1, 1, &["k1"]), snapshot(1, 2, &["k1"]));
        let old = head(&one, "k1", 100);
        gate.handle_head(&head(&two, "k1", 100), &verify, at(100)).unwrap();
        gate.handle_snapshot(&two.encode()).unwrap();
        let refused = gate.handle_head(&old, &verify, at(101)).unwrap_err();
        assert!(matches!(refused, HeadRefusal::Lower { .. }));
        // Neither after a restart,
        let mut restarted = SnapshotGate::new(gate.state().clone());
        assert_eq!(restarted.handle_head(&old, &verify, at(101)), Err(refused));
        assert!(matches!(restarted.handle_snapshot(&one.encode()), Err(SnapshotRefusal::OtherDigest(_))));
        assert!(restarted.handle_snapshot(&two.encode()).is_ok());
        // nor by a lower counter in an older generation,
        gate.handle_head(&head(&snapshot(2, 0, &["k1"]), "k1", 102), &verify, at(102)).unwrap();
        assert!(gate.handle_head(&head(&snapshot(1, 99, &["k1"]), "k1", 103), &verify, at(103)).is_err());
        // nor by other contents of the same revision, another key, or a changed byte.
        let mut other = snapshot(2, 0, &["k1", "k9"]);
        assert!(matches!(
            gate.handle_head(&head(&other, "k1", 104), &verify, at(104)),
            Err(HeadRefusal::Forked(_))
        ));
        other = snapshot(3, 0, &["k9"]);
        assert_eq!(
            gate.handle_head(&head(&other, "k9", 105), &verify, at(105)),
            Err(HeadRefusal::BadSignature)
        );
        let mut changed = head(&snapshot(3, 0, &["k1"]), "k1", 105);
        changed.bytes[20] ^= 1;
        assert_eq!(gate.handle_head(&changed, &verify, at(105)), Err(HeadRefusal::BadSignature));
    }

    #[test]
    fn o_a_withheld_snapshot_makes_the_old_one_stale() {
        let mut gate = gate();
        let (one, two) = (snapshot(1, 1, &["k1"]), snapshot(1, 2, &["k1"]));
        gate.handle_head(&head(&one, "k1", 100), &verify, at(100)).unwrap();
        gate.handle_snapshot(&one.encode()).unwrap();
        for time in [200, 300, 401] {
            gate.handle_head(&head(&two, "k1", time), &verify, at(time)).unwrap();
            assert_eq!(gate.current(), Some(one.parts().revision));
            assert_eq!(gate.wanted().map(|head| head.revision), Some(two.parts().revision));
        }
        assert!(gate.is_stale(at(401)));
        gate.handle_snapshot(&two.encode()).unwrap();
        assert!(!gate.is_stale(at(401)));
    }

    #[test]
    fn a_head_from_the_future_is_not_fresh_for_ever() {
        let mut gate = gate();
        let one = snapshot(1, 1, &["k1"]);
        gate.handle_head(&head(&one, "k1", 1_000_000), &verify, at(100)).unwrap();
        gate.handle_snapshot(&one.encode()).unwrap();
        assert!(gate.is_stale(at(401)));
    }

    #[test]
    fn a_clock_of_auth_that_was_ahead_is_forgiven_when_it_is_right_again() {
        let mut gate = gate();
        let one = snapshot(1, 1, &["k1"]);
        let hear = |gate: &mut SnapshotGate, says, now| {
            gate.handle_head(&head(&one, "k1", says), &verify, at(now)).unwrap()
        };
        hear(&mut gate, 100, 100);
        gate.handle_snapshot(&one.encode()).unwrap();
        assert_eq!(hear(&mut gate, 3_715, 115), HeadOutcome::Confirmed);
        assert_eq!(hear(&mut gate, 130, 130), HeadOutcome::Confirmed);
        assert_eq!(gate.age(at(131)), Some(Duration::from_secs(1)));
        for replayed in [115, 130, 3_715] {
            assert_eq!(hear(&mut gate, replayed, 140), HeadOutcome::Older);
            assert_eq!(gate.age(at(140)), Some(Duration::from_secs(10)), "a replayed head confirms nothing");
        }
        // Auth may be a little ahead, and what counts then is when it was heard.
        assert_eq!(hear(&mut gate, 160, 150), HeadOutcome::Confirmed);
        assert_eq!(gate.age(at(150)), Some(Duration::ZERO));
        let mut restarted = SnapshotGate::new(gate.state().clone());
        restarted.handle_snapshot(&one.encode()).unwrap();
        assert_eq!(restarted.age(at(160)), Some(Duration::from_secs(10)));
    }

    #[test]
    fn a_clock_of_ones_own_that_was_ahead_is_forgiven_when_it_is_right_again() {
        let mut gate = gate();
        let one = snapshot(1, 1, &["k1"]);
        gate.handle_head(&head(&one, "k1", 3_700), &verify, at(3_700)).unwrap();
        gate.handle_snapshot(&one.encode()).unwrap();
        // Both clocks were ahead, and both are right from now on.
        assert_eq!(gate.handle_head(&head(&one, "k1", 115), &verify, at(116)), Ok(HeadOutcome::Confirmed));
        assert_eq!(gate.age(at(120)), Some(Duration::from_secs(5)));
    }

    #[test]
    fn keys_follow_the_snapshot_and_the_succession() {
        let mut gate = gate();
        let both = snapshot(1, 1, &["k2", "k1"]);
        gate.handle_head(&head(&both, "k1", 1), &verify, at(1)).unwrap();
        gate.handle_snapshot(&both.encode()).unwrap();
        let new = snapshot(1, 2, &["k2"]);
        gate.handle_head(&head(&new, "k2", 2), &verify, at(2)).unwrap();
        gate.handle_snapshot(&new.encode()).unwrap();
        assert_eq!(gate.state().keys, ["k2"]);
        // It sleeps; the key goes from k2 to k3 to k4.
        let link = |previous: &str, next: &str, signer: &str| {
            let bytes =
                Succession { cluster: cluster(), previous: previous.into(), next: next.into(), time: at(3) }
                    .encode();
            SignedSuccession { signature: sign(signer, &SignedSuccession::message(&bytes)), bytes }
        };
        let late = head(&snapshot(1, 9, &["k4"]), "k4", 9);
        assert_eq!(gate.handle_head(&late, &verify, at(9)), Err(HeadRefusal::BadSignature));
        let forged = [link("k2", "k3", "k9"), link("k3", "k4", "k3")];
        assert_eq!(gate.handle_successions(&forged, &verify), Err(SuccessionError::LeadsNowhere));
        let claims_other = [link("k9", "k4", "k2")];
        assert_eq!(gate.handle_successions(&claims_other, &verify), Err(SuccessionError::LeadsNowhere));
        let chain =
            [link("k0", "k1", "k0"), link("k1", "k2", "k1"), link("k2", "k3", "k2"), link("k3", "k4", "k3")];
        assert_eq!(gate.handle_successions(&chain, &verify), Ok(()));
        assert_eq!(gate.handle_head(&late, &verify, at(9)), Ok(HeadOutcome::Newer));
    }

    #[test]
    fn a_snapshot_that_nobody_could_follow_is_refused() {
        let mut gate = gate();
        let none = snapshot(1, 1, &[]);
        gate.handle_head(&head(&none, "k1", 1), &verify, at(1)).unwrap();
        assert_eq!(gate.handle_snapshot(&none.encode()), Err(SnapshotRefusal::NoPolicyKeys));
        assert_eq!(gate.current(), None);
    }
}
