//! A login that is proven to somebody who was not there.

use crate::pair::{Pair, client_config, server_config, user_authority};
use crate::support::{credential, key};
use proptest::prelude::*;
use wayleave_ssh::{CertType, LoginProof, LoginProofs, ProofError, SignatureError};

const COOKIE: [u8; 16] = [7; 16];

/// The proof of one login on a connection whose server was given a cookie.
fn proof() -> LoginProof {
    let mut server = server_config();
    server.proofs = LoginProofs::Kept { cookie: Some(COOKIE) };
    let mut pair = Pair::new(&client_config(), &server);
    pair.settle();
    assert!(pair.server.connection.is_open());
    pair.server.proof.expect("the server keeps proofs")
}

#[test]
fn o_a_proof_says_who_logged_in_as_what_where_and_when() {
    let read = LoginProof::decode(&proof().encode()).unwrap();
    let proven = read.verify().unwrap();
    let user = credential(4, &user_authority(), CertType::User, "alice").certificate.unwrap();
    assert_eq!((proven.user.as_str(), proven.cookie), ("alice", COOKIE));
    assert_eq!(*proven.certificate.key(), *user.key());
    let host = server_config().host_keys[0].certificate.clone().unwrap();
    assert_eq!(proven.host_key, host.as_blob());
}

#[test]
fn a_server_that_does_not_keep_proofs_has_none() {
    let mut pair = Pair::new(&client_config(), &server_config());
    pair.settle();
    assert!(pair.server.proof.is_none());
}

#[test]
fn o_whatever_is_changed_in_a_proof_breaks_it() {
    let bytes = proof().encode();
    let wrong = Err(ProofError::Signature(SignatureError::Wrong));
    let changed = |find: &[u8], put: u8| {
        let at = bytes.windows(find.len()).position(|part| part == find).unwrap();
        let mut bytes = bytes.to_vec();
        bytes[at] = put;
        LoginProof::decode(&bytes).and_then(|proof| proof.verify())
    };
    // The login, the cookie, the host key, the version of a side.
    assert_eq!(changed(b"alice", b'b'), wrong);
    assert_eq!(changed(&COOKIE, 8), wrong);
    assert_eq!(changed(&key(3).public_key().to_blob()[19..], 0), wrong);
    assert_eq!(changed(b"SSH-2.0-Wayleave", b'T'), wrong);
}

proptest! {
    #[test]
    fn f_arbitrary_proofs_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(proof) = LoginProof::decode(&bytes) {
            let _ = proof.verify();
        }
    }

    #[test]
    fn f_a_damaged_proof_never_holds(at in 0usize..8000, bit in 0u8..8) {
        let mut bytes = proof().encode().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(LoginProof::decode(&bytes).and_then(|proof| proof.verify()).is_err());
    }
}
