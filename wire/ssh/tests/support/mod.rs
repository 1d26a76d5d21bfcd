//! Identities signed by test authorities, entropy, and bytes to send.

use bytes::Bytes;
use std::sync::Arc;
use wayleave_ssh::{CertType, Certificate, CertificateTemplate, Credential, Entropy, KeyPair, Options};
use wayleave_vocab::Wall;

/// Entropy for tests: a counter hashed by nothing, distinct per seed.
pub(crate) fn entropy(seed: u64) -> Box<dyn Entropy + Send> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Box::new(move |out: &mut [u8]| {
        for byte in out {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 24) as u8;
        }
    })
}

pub(crate) fn key(seed: u8) -> Arc<KeyPair> {
    Arc::new(KeyPair::from_seed(&[seed; 32]))
}

pub(crate) fn certify(key: &KeyPair, authority: &KeyPair, kind: CertType, principal: &str) -> Certificate {
    CertificateTemplate {
        key: key.public_key(),
        kind,
        serial: 1,
        key_id: format!("test {principal}"),
        principals: vec![principal.into()],
        valid_after: Wall::from_secs(0),
        valid_before: Wall::from_secs(4_000_000_000),
        critical_options: Options::new(),
        extensions: Options::from([("permit-pty".into(), String::new())]),
    }
    .sign(authority, &[9; 32])
    .unwrap()
}

pub(crate) fn credential(seed: u8, authority: &KeyPair, kind: CertType, principal: &str) -> Credential {
    let key = key(seed);
    let certificate = certify(&key, authority, kind, principal);
    Credential::certified(key, certificate).unwrap()
}

/// Bytes that differ at every position, so that loss and repetition show.
pub(crate) fn pattern(offset: usize, len: usize) -> Bytes {
    (offset..offset + len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect::<Vec<u8>>().into()
}
