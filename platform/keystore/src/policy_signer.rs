//! The key that signs policy snapshots (Ed25519): its own authority, so that whoever relays policy cannot forge it.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use wayleave_vocab::SecretBytes;

/// SubjectPublicKeyInfo of an Ed25519 key up to the 32 key bytes (RFC 8410 section 4).
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

const PEM_BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const PEM_END: &str = "-----END PUBLIC KEY-----";

/// Signs what agents must believe.
pub struct PolicySigner {
    key: Ed25519KeyPair,
    seed: SecretBytes,
}

/// A policy key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicySignerError {
    /// The stored seed is not 32 bytes of an Ed25519 key.
    #[error("the stored policy key is damaged")]
    Stored,
    /// The signature does not belong to the payload and the key.
    #[error("the signature is not of the policy key")]
    Signature,
    /// The public key is not an Ed25519 SubjectPublicKeyInfo.
    #[error("the policy key is not an Ed25519 key")]
    PublicKey,
}

impl PolicySigner {
    /// A signer from its 32-byte seed (random for a new one).
    ///
    /// # Errors
    /// [`PolicySignerError::Stored`] when it is no seed.
    pub fn from_seed(seed: &[u8]) -> Result<Self, PolicySignerError> {
        let key = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| PolicySignerError::Stored)?;
        Ok(Self { key, seed: SecretBytes::new(seed.to_vec()) })
    }

    /// The seed, to store.
    pub fn seed(&self) -> &SecretBytes {
        &self.seed
    }

    /// Signs a payload (64 bytes).
    pub fn sign(&self, payload: &[u8]) -> Vec<u8> {
        self.key.sign(payload).as_ref().to_vec()
    }

    /// The public key, SPKI DER.
    pub fn spki_der(&self) -> Vec<u8> {
        let mut out = ED25519_SPKI_PREFIX.to_vec();
        out.extend_from_slice(self.key.public_key().as_ref());
        out
    }

    /// The public key, SPKI in PEM, as agents keep it.
    pub fn public_key_pem(&self) -> String {
        let base64 = data_encoding::BASE64.encode(&self.spki_der());
        format!("{PEM_BEGIN}\n{base64}\n{PEM_END}\n")
    }
}

/// Checks a signature made by [`PolicySigner::sign`] with the key that [`PolicySigner::public_key_pem`] gave.
///
/// # Errors
/// When the key is not Ed25519 or the signature is not its.
pub fn verify_policy_signature(
    public_key_pem: &str,
    payload: &[u8],
    signature: &[u8],
) -> Result<(), PolicySignerError> {
    let base64: String = public_key_pem
        .trim()
        .strip_prefix(PEM_BEGIN)
        .and_then(|rest| rest.strip_suffix(PEM_END))
        .ok_or(PolicySignerError::PublicKey)?
        .split_ascii_whitespace()
        .collect();
    let spki = data_encoding::BASE64.decode(base64.as_bytes()).map_err(|_| PolicySignerError::PublicKey)?;
    let key = spki.strip_prefix(&ED25519_SPKI_PREFIX).ok_or(PolicySignerError::PublicKey)?;
    UnparsedPublicKey::new(&ED25519, key).verify(payload, signature).map_err(|_| PolicySignerError::Signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o_only_the_signer_of_this_key_is_believed() {
        let signer = PolicySigner::from_seed(&[7; 32]).unwrap();
        let other = PolicySigner::from_seed(&[8; 32]).unwrap();
        let signature = signer.sign(b"policy");
        assert!(verify_policy_signature(&signer.public_key_pem(), b"policy", &signature).is_ok());
        assert!(verify_policy_signature(&other.public_key_pem(), b"policy", &signature).is_err());
        assert!(verify_policy_signature(&signer.public_key_pem(), b"polics", &signature).is_err());
        assert!(verify_policy_signature("", b"policy", &signature).is_err());
    }
}
