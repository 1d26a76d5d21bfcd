//! What a process believes of the policy when its disk does not take it, and when two tunnels bring it at once (letter O).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use wayleave_ca::{
    CaKeys, CaType, CertAuthority, CertAuthoritySpec, Digest, Head, RotationPhase, SignedHead,
};
use wayleave_ca::{Snapshot, SnapshotParts};
use wayleave_keystore::{IdentityDir, PolicyKeeper, PolicySigner, TrustStore};
use wayleave_vocab::{ClusterName, PolicyRevision, Wall};

struct Published {
    snapshot: Vec<u8>,
    head: Vec<u8>,
    signature: Vec<u8>,
}

fn cluster() -> ClusterName {
    ClusterName::parse("demo").unwrap()
}

fn revision(counter: u64) -> PolicyRevision {
    PolicyRevision { generation: 1, counter }
}

/// Revision `counter` of the policy, and a head that says so at second `at`.
fn published(signer: &PolicySigner, counter: u64, at: u64) -> Published {
    let keys = CaKeys { signing_public_key_pem: Some(signer.public_key_pem()), ..CaKeys::default() };
    let spec = CertAuthoritySpec {
        ca_type: CaType::Policy,
        cluster: cluster(),
        phase: RotationPhase::Standby,
        active: vec![keys],
        trusted: Vec::new(),
    };
    let snapshot = Snapshot::new(SnapshotParts {
        revision: revision(counter),
        cluster: cluster(),
        issued: Wall::from_secs(counter),
        cas: vec![CertAuthority { metadata: Default::default(), spec }],
        roles: Vec::new(),
        locks: Vec::new(),
        withdrawn: vec![],
        auth_preference: Default::default(),
        networking: Default::default(),
    })
    .encode();
    let head = Head {
        cluster: cluster(),
        revision: revision(counter),
        digest: Digest::of(&snapshot),
        time: Wall::from_secs(at),
    }
    .encode();
    let signature = signer.sign(&SignedHead::message(&head));
    Published { snapshot, head, signature }
}

fn open(directory: &Path, signer: &PolicySigner) -> PolicyKeeper {
    let directory = IdentityDir::open(directory).unwrap();
    PolicyKeeper::open(directory, cluster(), vec![signer.public_key_pem()], TrustStore::empty()).unwrap()
}

fn take(keeper: &PolicyKeeper, published: &Published, at: u64) {
    let Published { snapshot, head, signature } = published;
    keeper.accept_snapshot(snapshot, head, signature, Wall::from_secs(at)).unwrap();
}

fn in_use(keeper: &PolicyKeeper) -> PolicyRevision {
    keeper.watch().borrow().as_ref().map(|snapshot| snapshot.parts().revision).unwrap_or_default()
}

#[test]
fn o_a_disk_that_takes_nothing_keeps_no_lock_from_counting() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("private");
    let signer = PolicySigner::from_seed(&[7; 32]).unwrap();
    let keeper = open(&path, &signer);
    take(&keeper, &published(&signer, 1, 100), 100);
    // Nothing can be written where there is no directory.
    fs::remove_dir_all(&path).unwrap();
    take(&keeper, &published(&signer, 2, 200), 200);
    assert_eq!((in_use(&keeper), keeper.revision()), (revision(2), revision(2)));
    // There is room again: the next head brings what is missing to disk.
    fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
    let Published { head, signature, .. } = published(&signer, 2, 215);
    assert!(!keeper.accept_head(&head, &signature, Wall::from_secs(215)).unwrap());
    assert_eq!(in_use(&open(&path, &signer)), revision(2));
}

#[test]
fn o_a_restart_brings_no_older_policy_back() {
    let root = tempfile::tempdir().unwrap();
    let signer = PolicySigner::from_seed(&[7; 32]).unwrap();
    take(&open(&root.path().join("private"), &signer), &published(&signer, 2, 200), 200);
    let keeper = open(&root.path().join("private"), &signer);
    let Published { snapshot, head, signature } = published(&signer, 1, 300);
    assert!(keeper.accept_snapshot(&snapshot, &head, &signature, Wall::from_secs(300)).is_err());
    assert_eq!(in_use(&keeper), revision(2));
}

#[test]
fn o_of_policies_that_come_at_once_the_newest_stays() {
    let root = tempfile::tempdir().unwrap();
    let signer = PolicySigner::from_seed(&[7; 32]).unwrap();
    let keeper = Arc::new(open(&root.path().join("private"), &signer));
    let all: Vec<Published> = (1..=24).map(|counter| published(&signer, counter, 100 + counter)).collect();
    std::thread::scope(|scope| {
        for published in &all {
            let keeper = keeper.clone();
            scope.spawn(move || {
                let Published { snapshot, head, signature } = published;
                // Late ones are refused: something newer was seen.
                let _late = keeper.accept_snapshot(snapshot, head, signature, Wall::from_secs(200));
            });
        }
    });
    assert_eq!((in_use(&keeper), keeper.revision()), (revision(24), revision(24)));
}
