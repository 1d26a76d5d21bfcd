//! The chain shows every kind of tampering (SECURITY I).

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use proptest::prelude::*;
use wayleave_audit::{Chain, ChainEntry, ChainFault, Checkpoint, SignedCheckpoint, verify_chain};
use wayleave_vocab::{ClusterName, Wall};

fn cluster() -> ClusterName {
    ClusterName::parse("demo").unwrap()
}

fn verify(message: &[u8], signature: &[u8]) -> bool {
    [b"signed ", message].concat() == signature
}

fn checkpoint(chain: Chain) -> SignedCheckpoint {
    let bytes = Checkpoint { cluster: cluster(), chain, time: Wall::from_secs(1) }.encode();
    SignedCheckpoint { signature: [b"signed ", &*SignedCheckpoint::message(&bytes)].concat(), bytes }
}

/// Entries, with a checkpoint after every second one.
fn chain(texts: &[Vec<u8>]) -> (Vec<ChainEntry>, Vec<SignedCheckpoint>) {
    let mut chain = Chain::beginning(&cluster());
    let (mut entries, mut checkpoints) = (Vec::new(), Vec::new());
    for text in texts {
        let (next, entry) = chain.append(text.clone());
        chain = next;
        entries.push(entry);
        if chain.length.is_multiple_of(2) {
            checkpoints.push(checkpoint(chain));
        }
    }
    (entries, checkpoints)
}

fn check(entries: &[ChainEntry], checkpoints: &[SignedCheckpoint], expected: Result<u64, ChainFault>) {
    let got = verify_chain(&cluster(), entries.iter().cloned(), checkpoints, &verify);
    assert_eq!(got.map(|verified| verified.uncovered), expected);
}

fn texts(count: u8) -> Vec<Vec<u8>> {
    (0..count).map(|n| vec![n]).collect()
}

#[test]
fn i_a_whole_chain_verifies() {
    check(&[], &[], Ok(0));
    let (entries, checkpoints) = chain(&texts(5));
    check(&entries, &checkpoints, Ok(1));
    check(&entries, &[], Ok(5));
}

#[test]
fn i_tampering_shows() {
    let (entries, checkpoints) = chain(&texts(4));
    let mut changed = entries.clone();
    changed[1].bytes = b"other".to_vec();
    check(&changed, &checkpoints, Err(ChainFault::Changed { index: 1 }));
    let mut removed = entries.clone();
    removed.remove(1);
    check(&removed, &checkpoints, Err(ChainFault::Missing { expected: 1, found: 2 }));
    let mut swapped = entries.clone();
    swapped.swap(1, 2);
    check(&swapped, &checkpoints, Err(ChainFault::Missing { expected: 1, found: 2 }));
    check(&entries[..3], &checkpoints, Err(ChainFault::Truncated { number: 1, length: 4, present: 3 }));
    // A whole new chain with right hashes contradicts what was signed.
    let (forged, _) = chain(&[vec![9], vec![9], vec![9], vec![9]]);
    check(&forged, &checkpoints, Err(ChainFault::Contradiction { number: 0, length: 2 }));
    let mut unsigned = checkpoints.clone();
    unsigned[1].signature[3] ^= 1;
    check(&entries, &unsigned, Err(ChainFault::BadSignature { number: 1 }));
    let other = ClusterName::parse("other").unwrap();
    assert!(verify_chain(&other, entries, &[], &verify).is_err());
}

proptest! {
    #[test]
    fn i_any_changed_byte_shows(
        texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..8), 1..8),
        at in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), flip in 1u8..,
    ) {
        let (mut entries, checkpoints) = chain(&texts);
        let entry = at.get(&entries).index as usize;
        let place = byte.index(entries[entry].bytes.len());
        entries[entry].bytes[place] ^= flip;
        prop_assert!(verify_chain(&cluster(), entries, &checkpoints, &verify).is_err());
    }
}
