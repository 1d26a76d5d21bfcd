//! Public keys: parse, print, verify. Private keys are in `private_key`, certificates in `certificate`.

use crate::algorithm::SignatureAlgorithm;
use crate::encoding::{DecodeError, Put, Reader};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use std::fmt;
use thiserror::Error;

/// Largest RSA modulus taken, in bytes (8192 bits).
const RSA_MODULUS_BYTES_MAX: usize = 1024;
/// Smallest RSA modulus taken, in bits.
const RSA_MODULUS_BITS_MIN: usize = 2048;
/// Largest RSA exponent taken, in bytes.
const RSA_EXPONENT_BYTES_MAX: usize = 8;
/// Longest application name of a security key.
const APPLICATION_BYTES_MAX: usize = 256;
/// Largest public key blob taken.
pub(crate) const KEY_BLOB_BYTES_MAX: usize = 4096;
/// Longest text line of a public key taken.
const KEY_TEXT_BYTES_MAX: usize = 16 * 1024;
/// Flag of a security key: the user touched it.
const FLAG_USER_PRESENT: u8 = 0x01;
/// Flag of a security key: the user was verified (PIN, fingerprint).
const FLAG_USER_VERIFIED: u8 = 0x04;

/// A public key that signatures are verified with.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum PublicKey {
    /// `ssh-ed25519`.
    Ed25519([u8; 32]),
    /// `ecdsa-sha2-nistp256`, an uncompressed point.
    EcdsaP256([u8; 65]),
    /// `ecdsa-sha2-nistp384`, an uncompressed point.
    EcdsaP384([u8; 97]),
    /// `ssh-rsa`: exponent and modulus, big-endian without leading zeros.
    Rsa {
        /// Public exponent.
        e: Vec<u8>,
        /// Modulus of 2048 to 8192 bits.
        n: Vec<u8>,
    },
    /// `sk-ssh-ed25519@openssh.com`: in a FIDO authenticator.
    SkEd25519 {
        /// The key.
        key: [u8; 32],
        /// Usually `ssh:`.
        application: String,
    },
    /// `sk-ecdsa-sha2-nistp256@openssh.com`: in a FIDO authenticator.
    SkEcdsaP256 {
        /// An uncompressed point.
        point: [u8; 65],
        /// Usually `ssh:`.
        application: String,
    },
}

/// What a FIDO authenticator said beside its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecurityKeyAssertion {
    /// The user touched the authenticator.
    pub user_present: bool,
    /// The authenticator verified the user, by PIN or fingerprint.
    pub user_verified: bool,
    /// The authenticator's signature counter.
    pub counter: u32,
}

/// The signature does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// The blob cannot be read.
    #[error("signature is malformed: {0}")]
    Malformed(#[from] DecodeError),
    /// Made by another algorithm than the key or the negotiation calls for (SHA-1 included).
    #[error("signature algorithm does not fit")]
    Algorithm,
    /// It does not verify.
    #[error("signature does not verify")]
    Wrong,
}

/// Text that is no OpenSSH public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ParseKeyError {
    /// The line is not `algorithm base64 [comment]`.
    #[error("not an OpenSSH public key line")]
    Text,
    /// The blob is not a key that is supported.
    #[error("public key: {0}")]
    Blob(#[from] DecodeError),
}

impl PublicKey {
    /// Reads the binary form (RFC 4253 section 6.6). A certificate is not a key: it is refused here.
    ///
    /// # Errors
    /// When the blob is truncated, too long, of an unsupported algorithm, or an RSA modulus is out of range.
    pub fn from_blob(blob: &[u8]) -> Result<Self, DecodeError> {
        if blob.len() > KEY_BLOB_BYTES_MAX {
            return Err(DecodeError::TooLong("public key"));
        }
        let mut reader = Reader::new(blob);
        let name = reader.string()?;
        let key = Self::read_fields(key_type(name).ok_or(DecodeError::Invalid("key type"))?, &mut reader)?;
        reader.end()?;
        Ok(key)
    }

    /// The fields after the type name, as they stand in keys and in certificates.
    pub(crate) fn read_fields(kind: KeyType, reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match kind {
            KeyType::Ed25519 => Self::Ed25519(fixed(reader.string()?, "ed25519 key")?),
            KeyType::EcdsaP256 => Self::EcdsaP256(point(reader, b"nistp256")?),
            KeyType::EcdsaP384 => Self::EcdsaP384(point(reader, b"nistp384")?),
            KeyType::Rsa => rsa(reader)?,
            KeyType::SkEd25519 => Self::SkEd25519 {
                key: fixed(reader.string()?, "ed25519 key")?,
                application: reader.text(APPLICATION_BYTES_MAX, "application")?.to_owned(),
            },
            KeyType::SkEcdsaP256 => Self::SkEcdsaP256 {
                point: point(reader, b"nistp256")?,
                application: reader.text(APPLICATION_BYTES_MAX, "application")?.to_owned(),
            },
        })
    }

    /// The binary form.
    pub fn to_blob(&self) -> Vec<u8> {
        let mut blob = Vec::with_capacity(64);
        blob.put_string(self.type_name().as_bytes());
        self.put_fields(&mut blob);
        blob
    }

    pub(crate) fn put_fields(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ed25519(key) => out.put_string(key),
            Self::EcdsaP256(point) => {
                out.put_string(b"nistp256");
                out.put_string(point);
            }
            Self::EcdsaP384(point) => {
                out.put_string(b"nistp384");
                out.put_string(point);
            }
            Self::Rsa { e, n } => {
                out.put_mpint(e);
                out.put_mpint(n);
            }
            Self::SkEd25519 { key, application } => {
                out.put_string(key);
                out.put_string(application.as_bytes());
            }
            Self::SkEcdsaP256 { point, application } => {
                out.put_string(b"nistp256");
                out.put_string(point);
                out.put_string(application.as_bytes());
            }
        }
    }

    /// The type name, as in the first word of an `authorized_keys` line.
    pub const fn type_name(&self) -> &'static str {
        self.key_type().name()
    }

    pub(crate) const fn key_type(&self) -> KeyType {
        match self {
            Self::Ed25519(_) => KeyType::Ed25519,
            Self::EcdsaP256(_) => KeyType::EcdsaP256,
            Self::EcdsaP384(_) => KeyType::EcdsaP384,
            Self::Rsa { .. } => KeyType::Rsa,
            Self::SkEd25519 { .. } => KeyType::SkEd25519,
            Self::SkEcdsaP256 { .. } => KeyType::SkEcdsaP256,
        }
    }

    /// Whether signatures of this key may be made by that algorithm.
    pub const fn takes(&self, algorithm: SignatureAlgorithm) -> bool {
        matches!(
            (self, algorithm),
            (Self::Ed25519(_), SignatureAlgorithm::Ed25519)
                | (Self::EcdsaP256(_), SignatureAlgorithm::EcdsaP256)
                | (Self::EcdsaP384(_), SignatureAlgorithm::EcdsaP384)
                | (Self::Rsa { .. }, SignatureAlgorithm::RsaSha256 | SignatureAlgorithm::RsaSha512)
                | (Self::SkEd25519 { .. }, SignatureAlgorithm::SkEd25519)
                | (Self::SkEcdsaP256 { .. }, SignatureAlgorithm::SkEcdsaP256)
        )
    }

    /// Reads an OpenSSH line: `ssh-ed25519 AAAA… comment`. The comment is dropped.
    ///
    /// # Errors
    /// When the line is not of that shape, or its two type names differ.
    pub fn from_openssh(line: &str) -> Result<Self, ParseKeyError> {
        let (name, blob) = split_openssh(line)?;
        let key = Self::from_blob(&blob)?;
        if key.type_name() == name { Ok(key) } else { Err(ParseKeyError::Text) }
    }

    /// The OpenSSH line without a comment and without a line end.
    pub fn to_openssh(&self) -> String {
        format!("{} {}", self.type_name(), STANDARD.encode(self.to_blob()))
    }

    /// `SHA256:…` as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(digest(&SHA256, &self.to_blob())))
    }

    /// Verifies a signature blob (`string algorithm || string signature …`) over `message`, made by
    /// exactly `algorithm`.
    ///
    /// Returns what a FIDO authenticator asserted; `None` for other keys. The caller decides whether
    /// an assertion without touch is enough.
    ///
    /// # Errors
    /// When the blob is malformed, of another algorithm, or does not verify.
    pub fn verify(
        &self,
        algorithm: SignatureAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<Option<SecurityKeyAssertion>, SignatureError> {
        let mut reader = Reader::new(signature);
        let name = reader.string()?;
        if name != algorithm.name().as_bytes() || !self.takes(algorithm) {
            return Err(SignatureError::Algorithm);
        }
        let value = reader.string_max(RSA_MODULUS_BYTES_MAX, "signature")?;
        let assertion = match self {
            Self::Ed25519(_) | Self::EcdsaP256(_) | Self::EcdsaP384(_) | Self::Rsa { .. } => {
                self.verify_plain(algorithm, message, value)?;
                None
            }
            Self::SkEd25519 { application, .. } | Self::SkEcdsaP256 { application, .. } => {
                let (flags, counter) = (reader.u8()?, reader.u32()?);
                let mut signed = Vec::with_capacity(69);
                signed.put_raw(digest(&SHA256, application.as_bytes()).as_ref());
                signed.put_byte(flags);
                signed.put_uint(counter);
                signed.put_raw(digest(&SHA256, message).as_ref());
                self.verify_plain(algorithm, &signed, value)?;
                Some(SecurityKeyAssertion {
                    user_present: flags & FLAG_USER_PRESENT != 0,
                    user_verified: flags & FLAG_USER_VERIFIED != 0,
                    counter,
                })
            }
        };
        reader.end()?;
        Ok(assertion)
    }

    /// Verifies with whatever algorithm the blob names, as far as this key takes it.
    pub(crate) fn verify_any(
        &self,
        message: &[u8],
        signature: &[u8],
    ) -> Result<Option<SecurityKeyAssertion>, SignatureError> {
        let name = Reader::new(signature).string()?;
        let algorithm = SignatureAlgorithm::from_name(name).ok_or(SignatureError::Algorithm)?;
        self.verify(algorithm, message, signature)
    }

    fn verify_plain(
        &self,
        algorithm: SignatureAlgorithm,
        message: &[u8],
        value: &[u8],
    ) -> Result<(), SignatureError> {
        let result = match self {
            Self::Ed25519(key) | Self::SkEd25519 { key, .. } => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, value)
            }
            Self::EcdsaP256(point) | Self::SkEcdsaP256 { point, .. } => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, &fixed_ecdsa::<32>(value)?)
            }
            Self::EcdsaP384(point) => UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point)
                .verify(message, &fixed_ecdsa::<48>(value)?),
            Self::Rsa { e, n } => {
                let parameters = if algorithm == SignatureAlgorithm::RsaSha256 {
                    &signature::RSA_PKCS1_2048_8192_SHA256
                } else {
                    &signature::RSA_PKCS1_2048_8192_SHA512
                };
                if value.len() > n.len() {
                    return Err(SignatureError::Wrong);
                }
                let mut padded = vec![0; n.len() - value.len()];
                padded.put_raw(value);
                RsaPublicKeyComponents { n, e }.verify(parameters, message, &padded)
            }
        };
        result.map_err(|_| SignatureError::Wrong)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.type_name(), self.fingerprint())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_openssh())
    }
}

/// The kinds of key, independent of how they sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyType {
    Ed25519,
    EcdsaP256,
    EcdsaP384,
    Rsa,
    SkEd25519,
    SkEcdsaP256,
}

impl KeyType {
    pub(crate) const ALL: [Self; 6] =
        [Self::Ed25519, Self::EcdsaP256, Self::EcdsaP384, Self::Rsa, Self::SkEd25519, Self::SkEcdsaP256];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ssh-ed25519",
            Self::EcdsaP256 => "ecdsa-sha2-nistp256",
            Self::EcdsaP384 => "ecdsa-sha2-nistp384",
            Self::Rsa => "ssh-rsa",
            Self::SkEd25519 => "sk-ssh-ed25519@openssh.com",
            Self::SkEcdsaP256 => "sk-ecdsa-sha2-nistp256@openssh.com",
        }
    }

    pub(crate) const fn certificate_name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ssh-ed25519-cert-v01@openssh.com",
            Self::EcdsaP256 => "ecdsa-sha2-nistp256-cert-v01@openssh.com",
            Self::EcdsaP384 => "ecdsa-sha2-nistp384-cert-v01@openssh.com",
            Self::Rsa => "ssh-rsa-cert-v01@openssh.com",
            Self::SkEd25519 => "sk-ssh-ed25519-cert-v01@openssh.com",
            Self::SkEcdsaP256 => "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
        }
    }
}

fn key_type(name: &[u8]) -> Option<KeyType> {
    KeyType::ALL.into_iter().find(|k| k.name().as_bytes() == name)
}

/// Splits `name base64 [comment]`.
pub(crate) fn split_openssh(line: &str) -> Result<(&str, Vec<u8>), ParseKeyError> {
    if line.len() > KEY_TEXT_BYTES_MAX {
        return Err(ParseKeyError::Text);
    }
    let mut words = line.split_ascii_whitespace();
    let (Some(name), Some(text)) = (words.next(), words.next()) else {
        return Err(ParseKeyError::Text);
    };
    Ok((name, STANDARD.decode(text).map_err(|_| ParseKeyError::Text)?))
}

fn fixed<const N: usize>(bytes: &[u8], what: &'static str) -> Result<[u8; N], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::Invalid(what))
}

fn point<const N: usize>(reader: &mut Reader<'_>, curve: &[u8]) -> Result<[u8; N], DecodeError> {
    if reader.string()? != curve {
        return Err(DecodeError::Invalid("curve"));
    }
    let point: [u8; N] = fixed(reader.string()?, "point")?;
    // Uncompressed only; that it lies on the curve is checked when a signature is verified.
    if point.first() == Some(&4) { Ok(point) } else { Err(DecodeError::Invalid("point")) }
}

fn rsa(reader: &mut Reader<'_>) -> Result<PublicKey, DecodeError> {
    let e = reader.mpint(RSA_EXPONENT_BYTES_MAX, "RSA exponent")?;
    let n = reader.mpint(RSA_MODULUS_BYTES_MAX, "RSA modulus")?;
    let bits = n.len() * 8 - n.first().map_or(0, |b| b.leading_zeros() as usize);
    let is_odd = |bytes: &[u8]| bytes.last().is_some_and(|b| b % 2 == 1);
    if bits < RSA_MODULUS_BITS_MIN || !is_odd(n) || !is_odd(e) || e == [1] {
        return Err(DecodeError::Invalid("RSA key"));
    }
    Ok(PublicKey::Rsa { e: e.to_vec(), n: n.to_vec() })
}

/// `mpint r || mpint s` to two numbers of `N` bytes each.
fn fixed_ecdsa<const N: usize>(value: &[u8]) -> Result<Vec<u8>, SignatureError> {
    let mut reader = Reader::new(value);
    let mut fixed = Vec::with_capacity(2 * N);
    for what in ["r", "s"] {
        let number = reader.mpint(N, what)?;
        // `mpint` allows one byte more than asked for, for the sign.
        let zeros = N.checked_sub(number.len()).ok_or(SignatureError::Wrong)?;
        fixed.resize(fixed.len() + zeros, 0);
        fixed.put_raw(number);
    }
    reader.end()?;
    Ok(fixed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_form_survives() {
        let key = PublicKey::Ed25519([9; 32]);
        assert_eq!(PublicKey::from_openssh(&key.to_openssh()), Ok(key.clone()));
        assert_eq!(PublicKey::from_openssh(&format!("{key} me@here")), Ok(key.clone()));
        let renamed = key.to_openssh().replacen("ssh-ed25519 ", "ssh-rsa ", 1);
        assert_eq!(PublicKey::from_openssh(&renamed), Err(ParseKeyError::Text));
    }

    #[test]
    fn small_or_even_rsa_is_refused() {
        for (n_bytes, last, ok) in [(256, 1, true), (255, 1, false), (256, 2, false), (1025, 1, false)] {
            let mut n = vec![0x80; n_bytes];
            n[n_bytes - 1] = last;
            let blob = PublicKey::Rsa { e: vec![1, 0, 1], n }.to_blob();
            assert_eq!(PublicKey::from_blob(&blob).is_ok(), ok, "{n_bytes} {last}");
        }
    }

    proptest! {
        #[test]
        fn f_arbitrary_blobs_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0usize..6) {
            let mut blob = Vec::new();
            blob.put_string(KeyType::ALL[kind].name().as_bytes());
            blob.put_raw(&bytes);
            let _ = PublicKey::from_blob(&blob);
            let _ = PublicKey::from_blob(&bytes);
        }

        #[test]
        fn f_arbitrary_signatures_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let keys = [
                PublicKey::Ed25519([1; 32]),
                PublicKey::EcdsaP256([4; 65]),
                PublicKey::Rsa { e: vec![3], n: vec![0x81; 256] },
                PublicKey::SkEcdsaP256 { point: [4; 65], application: "ssh:".into() },
            ];
            for key in keys {
                for algorithm in SignatureAlgorithm::ALL {
                    let mut blob = Vec::new();
                    blob.put_string(algorithm.name().as_bytes());
                    blob.put_string(&bytes);
                    prop_assert!(key.verify(algorithm, b"m", &blob).is_err());
                    let _ = key.verify(algorithm, b"m", &bytes);
                }
            }
        }
    }
}
