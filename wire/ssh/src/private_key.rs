//! Ed25519 key pairs and the unencrypted OpenSSH private key file (`openssh-key-v1`).

use crate::algorithm::SignatureAlgorithm;
use crate::encoding::{DecodeError, Put, Reader};
use crate::key::PublicKey;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use thiserror::Error;
use zeroize::Zeroizing;

const PEM_BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const PEM_END: &str = "-----END OPENSSH PRIVATE KEY-----";
const PEM_LINE_CHARS: usize = 70;
/// Longest private key file taken.
const PEM_BYTES_MAX: usize = 16 * 1024;
const MAGIC: &[u8] = b"openssh-key-v1\0";
const BLOCK_BYTES: usize = 8;

/// An Ed25519 key pair. No `Debug` of the secret; it is wiped when dropped.
pub struct KeyPair {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

/// A private key file that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PrivateKeyError {
    /// Not an OpenSSH private key in PEM.
    #[error("not an OpenSSH private key file")]
    Pem,
    /// Encrypted: this implementation keeps keys unencrypted.
    #[error("private key is encrypted, which is not supported")]
    Encrypted,
    /// Not an Ed25519 key, or more than one.
    #[error("private key is not a single Ed25519 key")]
    Unsupported,
    /// The content is malformed.
    #[error("private key file is malformed: {0}")]
    Malformed(#[from] DecodeError),
    /// The public half does not belong to the private half.
    #[error("private and public key do not belong together")]
    Mismatch,
}

impl KeyPair {
    /// From a 32-byte seed, which must be secret and unpredictable.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).expect("32 bytes are always an Ed25519 seed");
        let public = pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes");
        Self { seed: Zeroizing::new(*seed), pair, public }
    }

    /// The public half.
    pub const fn public_key(&self) -> PublicKey {
        PublicKey::Ed25519(self.public)
    }

    /// The secret seed. Grep for this name to see every place that touches it.
    pub fn expose_seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// An SSH signature blob over `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let mut blob = Vec::with_capacity(4 + 11 + 4 + 64);
        blob.put_string(SignatureAlgorithm::Ed25519.name().as_bytes());
        blob.put_string(self.pair.sign(message).as_ref());
        blob
    }

    /// The file that `ssh -i` reads: PEM, unencrypted, with a comment. Keep it at mode 0600.
    pub fn to_openssh(&self, comment: &str) -> Zeroizing<String> {
        let public = self.public_key().to_blob();
        let mut secret = Zeroizing::new(Vec::with_capacity(256 + comment.len()));
        // The two check integers only have to be equal in an unencrypted file.
        secret.put_uint(0);
        secret.put_uint(0);
        secret.put_string(b"ssh-ed25519");
        secret.put_string(&self.public);
        secret.put_uint(64);
        secret.put_raw(self.seed.as_slice());
        secret.put_raw(&self.public);
        secret.put_string(comment.as_bytes());
        let mut pad = 0;
        while !secret.len().is_multiple_of(BLOCK_BYTES) {
            pad += 1;
            secret.put_byte(pad);
        }
        let mut file = Zeroizing::new(Vec::with_capacity(256 + secret.len()));
        file.put_raw(MAGIC);
        file.put_string(b"none");
        file.put_string(b"none");
        file.put_string(b"");
        file.put_uint(1);
        file.put_string(&public);
        file.put_string(&secret);
        let text = Zeroizing::new(STANDARD.encode(file.as_slice()));
        let mut pem = Zeroizing::new(String::with_capacity(text.len() * 2));
        pem.push_str(PEM_BEGIN);
        for line in text.as_bytes().chunks(PEM_LINE_CHARS) {
            pem.push('\n');
            pem.extend(line.iter().map(|b| char::from(*b)));
        }
        pem.push('\n');
        pem.push_str(PEM_END);
        pem.push('\n');
        pem
    }

    /// Reads the file that `ssh-keygen -t ed25519 -N ''` or [`Self::to_openssh`] wrote.
    ///
    /// # Errors
    /// When it is another format, encrypted, of another key type, or inconsistent.
    pub fn from_openssh(pem: &str) -> Result<Self, PrivateKeyError> {
        if pem.len() > PEM_BYTES_MAX {
            return Err(PrivateKeyError::Pem);
        }
        let body = pem
            .trim()
            .strip_prefix(PEM_BEGIN)
            .and_then(|rest| rest.strip_suffix(PEM_END))
            .ok_or(PrivateKeyError::Pem)?;
        let text: Zeroizing<String> =
            Zeroizing::new(body.chars().filter(|c| !c.is_ascii_whitespace()).collect());
        let file = Zeroizing::new(STANDARD.decode(text.as_bytes()).map_err(|_| PrivateKeyError::Pem)?);
        let mut reader = Reader::new(file.strip_prefix(MAGIC).ok_or(PrivateKeyError::Pem)?);
        let (cipher, kdf, options) = (reader.string()?, reader.string()?, reader.string()?);
        if cipher != b"none" || kdf != b"none" || !options.is_empty() {
            return Err(PrivateKeyError::Encrypted);
        }
        if reader.u32()? != 1 {
            return Err(PrivateKeyError::Unsupported);
        }
        let public = reader.string()?;
        let secret = reader.string()?;
        reader.end()?;
        let pair = Self::read_secret(secret)?;
        if pair.public_key().to_blob() == public { Ok(pair) } else { Err(PrivateKeyError::Mismatch) }
    }

    fn read_secret(secret: &[u8]) -> Result<Self, PrivateKeyError> {
        let mut reader = Reader::new(secret);
        if reader.u32()? != reader.u32()? {
            return Err(PrivateKeyError::Malformed(DecodeError::Invalid("check integers")));
        }
        if reader.string()? != b"ssh-ed25519" {
            return Err(PrivateKeyError::Unsupported);
        }
        let public = reader.string()?;
        let (seed, public_again) = reader
            .string()?
            .split_first_chunk::<32>()
            .ok_or(PrivateKeyError::Malformed(DecodeError::Truncated))?;
        reader.string()?;
        let padding_holds = (1..).zip(reader.rest()).all(|(want, got): (u8, &u8)| want == *got);
        if !padding_holds || reader.rest().len() >= BLOCK_BYTES {
            return Err(PrivateKeyError::Malformed(DecodeError::Invalid("padding")));
        }
        let pair = Self::from_seed(seed);
        if pair.public == public && public == public_again {
            Ok(pair)
        } else {
            Err(PrivateKeyError::Mismatch)
        }
    }
}

impl Clone for KeyPair {
    fn clone(&self) -> Self {
        Self::from_seed(&self.seed)
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.public_key().fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_file_survives() {
        let pair = KeyPair::from_seed(&[5; 32]);
        let again = KeyPair::from_openssh(&pair.to_openssh("me@here")).unwrap();
        assert_eq!(again.expose_seed(), pair.expose_seed());
        assert_eq!(again.public_key(), pair.public_key());
    }

    #[test]
    fn signatures_verify_with_the_public_half_only() {
        let pair = KeyPair::from_seed(&[5; 32]);
        let signature = pair.sign(b"message");
        let algorithm = SignatureAlgorithm::Ed25519;
        assert_eq!(pair.public_key().verify(algorithm, b"message", &signature), Ok(None));
        let other = KeyPair::from_seed(&[6; 32]).public_key();
        for (key, message) in [(&pair.public_key(), &b"massage"[..]), (&other, b"message")] {
            assert!(key.verify(algorithm, message, &signature).is_err());
        }
    }

    #[test]
    fn m_debug_shows_no_secret() {
        let pair = KeyPair::from_seed(&[5; 32]);
        assert_eq!(format!("{pair:?}"), format!("KeyPair({})", pair.public_key().fingerprint()));
    }

    proptest! {
        #[test]
        fn f_arbitrary_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut file = MAGIC.to_vec();
            file.extend(&bytes);
            let pem = format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", STANDARD.encode(&file));
            prop_assert!(KeyPair::from_openssh(&pem).is_err());
            let _ = KeyPair::from_openssh(&String::from_utf8_lossy(&bytes));
        }
    }
}
