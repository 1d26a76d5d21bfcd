//! Secrets of which only the hash is stored: join tokens and invitations.
//!
//! They are 128 random bits, so one salted SHA-256 is enough at rest; comparison takes constant time.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use wayleave_runtime::random_bytes;
use wayleave_vocab::Secret;

const SALT_BYTES: usize = 16;
const SECRET_BYTES: usize = 16;

/// A new random secret, 32 hexadecimal digits.
pub(crate) fn generate() -> Secret {
    Secret::new(HEXLOWER.encode(&random_bytes::<SECRET_BYTES>()))
}

/// A secret as it is stored.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretHash {
    #[serde(with = "crate::base64_bytes")]
    salt: Vec<u8>,
    #[serde(with = "crate::base64_bytes")]
    hash: Vec<u8>,
}

impl SecretHash {
    pub(crate) fn of(secret: &Secret) -> Self {
        let salt = random_bytes::<SALT_BYTES>().to_vec();
        let hash = digest(&salt, secret);
        Self { salt, hash }
    }

    pub(crate) fn matches(&self, secret: &Secret) -> bool {
        verify_slices_are_equal(&digest(&self.salt, secret), &self.hash).is_ok()
    }
}

fn digest(salt: &[u8], secret: &Secret) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    context.update(salt);
    context.update(secret.expose_secret().as_bytes());
    context.finish().as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m_the_stored_form_matches_and_does_not_hold_the_secret() {
        let secret = generate();
        let hash = SecretHash::of(&secret);
        assert!(hash.matches(&secret));
        assert!(!hash.matches(&generate()));
        assert!(!serde_json::to_string(&hash).unwrap().contains(secret.expose_secret()));
    }
}
