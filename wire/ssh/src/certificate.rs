//! OpenSSH certificates (PROTOCOL.certkeys): parse, verify, build and sign.
//!
//! [`Certificate::parse`] accepts only the form; [`Certificate::verify`] decides whether it counts.

use crate::encoding::{DecodeError, Put, Reader};
use crate::key::{KEY_BLOB_BYTES_MAX, KeyType, ParseKeyError, PublicKey, split_openssh};
use crate::private_key::KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use thiserror::Error;
use wayleave_vocab::Wall;

/// Largest certificate taken, in bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 32 * 1024;
/// Most principals in one certificate, as in OpenSSH.
pub const PRINCIPALS_MAX: usize = 256;
/// Most critical options, and most extensions, in one certificate.
pub const OPTIONS_MAX: usize = 256;
/// Longest principal, key id or option name, in bytes.
const NAME_BYTES_MAX: usize = 1024;
/// Longest nonce.
const NONCE_BYTES_MAX: usize = 64;
/// Most networks in one `source-address`.
const SOURCE_NETWORKS_MAX: usize = 256;
/// The critical option that this module itself decodes.
const SOURCE_ADDRESS: &str = "source-address";

/// Whom a certificate names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CertType {
    /// A user who logs in.
    User,
    /// A host that is logged in to.
    Host,
}

impl CertType {
    const fn code(self) -> u32 {
        match self {
            Self::User => 1,
            Self::Host => 2,
        }
    }
}

/// Critical options or extensions: names to raw values (the inner `string` is already unwrapped).
pub type Options = BTreeMap<String, String>;

/// A well-formed OpenSSH certificate. That it is well-formed says nothing about trust: see [`Self::verify`].
#[derive(Clone)]
pub struct Certificate {
    blob: Arc<[u8]>,
    signed_bytes: usize,
    fields: Arc<Fields>,
}

#[derive(PartialEq, Eq)]
struct Fields {
    key: PublicKey,
    serial: u64,
    kind: CertType,
    key_id: String,
    principals: Vec<String>,
    valid_after_secs: u64,
    valid_before_secs: u64,
    critical_options: Options,
    extensions: Options,
    signer: Signer,
    signature: Vec<u8>,
}

/// Who signed: a key, or (never acceptable) another certificate.
#[derive(PartialEq, Eq)]
enum Signer {
    Key(PublicKey),
    Certificate,
}

/// A network of `source-address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceNetwork {
    address: IpAddr,
    prefix_bits: u8,
}

impl SourceNetwork {
    /// Whether the address lies inside. An IPv4-mapped IPv6 address counts as its IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, true),
            IpAddr::V6(v6) => (u128::from(v6), false),
        };
        let ((mine, mine_is_v4), (given, given_is_v4)) = (bits(self.address), bits(address.to_canonical()));
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix_bits)).unwrap_or(0);
        mine_is_v4 == given_is_v4 && (mine ^ given) & mask == 0
    }
}

/// What a verified certificate leaves for the caller to enforce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// When set, the peer's address must be in one of these networks.
    pub source_networks: Option<Vec<SourceNetwork>>,
    /// The CA key that signed.
    pub authority: PublicKey,
}

/// Why a well-formed certificate does not count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// A host certificate where a user's is wanted, or the reverse.
    #[error("certificate is of the wrong type")]
    WrongType,
    /// Signed by a key that is not among the trusted ones.
    #[error("certificate is signed by an untrusted authority")]
    UntrustedAuthority,
    /// The signing key is itself a certificate, which PROTOCOL.certkeys forbids.
    #[error("certificate is signed by a certificate")]
    SignedByCertificate,
    /// The signature does not verify.
    #[error("certificate signature is wrong")]
    BadSignature,
    /// `valid after` is in the future.
    #[error("certificate is not yet valid")]
    NotYetValid,
    /// `valid before` has passed.
    #[error("certificate has expired")]
    Expired,
    /// No principals at all: OpenSSH once took that for "any"; here it names nobody.
    #[error("certificate names no principal")]
    NoPrincipals,
    /// The wanted principal is not listed.
    #[error("certificate does not name the principal")]
    PrincipalNotListed,
    /// A critical option that the caller does not know.
    #[error("certificate has the unknown critical option {0:?}")]
    UnknownCriticalOption(String),
    /// A known critical option whose value cannot be read.
    #[error("certificate has a malformed critical option {0:?}")]
    MalformedCriticalOption(String),
}

impl Certificate {
    /// Reads the binary form, strictly: no trailing bytes, no duplicate or unsorted options, bounded counts.
    ///
    /// # Errors
    /// When any field is malformed, too long or of an unsupported key type.
    pub fn parse(blob: &[u8]) -> Result<Self, DecodeError> {
        if blob.len() > CERTIFICATE_BYTES_MAX {
            return Err(DecodeError::TooLong("certificate"));
        }
        let mut reader = Reader::new(blob);
        let name = reader.string()?;
        let key_type = KeyType::ALL
            .into_iter()
            .find(|k| k.certificate_name().as_bytes() == name)
            .ok_or(DecodeError::Invalid("certificate type"))?;
        reader.string_max(NONCE_BYTES_MAX, "nonce")?;
        let key = PublicKey::read_fields(key_type, &mut reader)?;
        let serial = reader.u64()?;
        let kind = match reader.u32()? {
            1 => CertType::User,
            2 => CertType::Host,
            _ => return Err(DecodeError::Invalid("certificate type")),
        };
        let key_id = reader.text(NAME_BYTES_MAX, "key id")?.to_owned();
        let principals = read_principals(reader.string()?)?;
        let (valid_after_secs, valid_before_secs) = (reader.u64()?, reader.u64()?);
        let critical_options = read_options(reader.string()?)?;
        let extensions = read_options(reader.string()?)?;
        reader.string_max(0, "reserved")?;
        let signer = read_signer(reader.string_max(KEY_BLOB_BYTES_MAX, "signature key")?)?;
        let signed_bytes = blob.len() - reader.rest().len();
        let signature = reader.string_max(KEY_BLOB_BYTES_MAX, "signature")?.to_vec();
        reader.end()?;
        let fields = Fields {
            key,
            serial,
            kind,
            key_id,
            principals,
            valid_after_secs,
            valid_before_secs,
            critical_options,
            extensions,
            signer,
            signature,
        };
        Ok(Self { blob: blob.into(), signed_bytes, fields: Arc::new(fields) })
    }

    /// Decides whether this certificate counts.
    ///
    /// `principal` is the login or host name that must be listed; `None` leaves that to the caller,
    /// though a certificate without principals is refused all the same. `critical_options_known`
    /// are the names that the caller enforces; `source-address` is always known and comes back in
    /// [`Verified`].
    ///
    /// # Errors
    /// The first reason for which it does not count.
    pub fn verify(
        &self,
        authorities: &[PublicKey],
        kind: CertType,
        principal: Option<&str>,
        critical_options_known: &[&str],
        now: Wall,
    ) -> Result<Verified, CertificateError> {
        let fields = &*self.fields;
        if fields.kind != kind {
            return Err(CertificateError::WrongType);
        }
        let Signer::Key(signer) = &fields.signer else {
            return Err(CertificateError::SignedByCertificate);
        };
        if !authorities.contains(signer) {
            return Err(CertificateError::UntrustedAuthority);
        }
        let signed = self.blob.get(..self.signed_bytes).unwrap_or_default();
        signer.verify_any(signed, &fields.signature).map_err(|_| CertificateError::BadSignature)?;
        if now.as_secs() < fields.valid_after_secs {
            return Err(CertificateError::NotYetValid);
        }
        if now.as_secs() >= fields.valid_before_secs {
            return Err(CertificateError::Expired);
        }
        if fields.principals.is_empty() {
            return Err(CertificateError::NoPrincipals);
        }
        if principal.is_some_and(|wanted| !fields.principals.iter().any(|p| p == wanted)) {
            return Err(CertificateError::PrincipalNotListed);
        }
        let source_networks = self.check_critical_options(critical_options_known)?;
        Ok(Verified { source_networks, authority: signer.clone() })
    }

    fn check_critical_options(&self, known: &[&str]) -> Result<Option<Vec<SourceNetwork>>, CertificateError> {
        let mut networks = None;
        for (name, value) in &self.fields.critical_options {
            if name == SOURCE_ADDRESS {
                let list = parse_networks(value)
                    .ok_or_else(|| CertificateError::MalformedCriticalOption(name.clone()))?;
                networks = Some(list);
            } else if !known.contains(&name.as_str()) {
                return Err(CertificateError::UnknownCriticalOption(name.clone()));
            }
        }
        Ok(networks)
    }

    /// The certified key.
    pub fn key(&self) -> &PublicKey {
        &self.fields.key
    }

    /// The serial number.
    pub fn serial(&self) -> u64 {
        self.fields.serial
    }

    /// User or host.
    pub fn kind(&self) -> CertType {
        self.fields.kind
    }

    /// The free text by which the authority names it in logs.
    pub fn key_id(&self) -> &str {
        &self.fields.key_id
    }

    /// Logins or host names.
    pub fn principals(&self) -> &[String] {
        &self.fields.principals
    }

    /// The first moment of validity.
    pub fn valid_after(&self) -> Wall {
        Wall::from_secs(self.fields.valid_after_secs)
    }

    /// The first moment after validity.
    pub fn valid_before(&self) -> Wall {
        Wall::from_secs(self.fields.valid_before_secs)
    }

    /// Options that must be understood.
    pub fn critical_options(&self) -> &Options {
        &self.fields.critical_options
    }

    /// Options that may be ignored.
    pub fn extensions(&self) -> &Options {
        &self.fields.extensions
    }

    /// The key that signed; `None` when it is itself a certificate.
    pub fn authority(&self) -> Option<&PublicKey> {
        match &self.fields.signer {
            Signer::Key(key) => Some(key),
            Signer::Certificate => None,
        }
    }

    /// The binary form.
    pub fn as_blob(&self) -> &[u8] {
        &self.blob
    }

    /// The type name, as in the first word of a `-cert.pub` file.
    pub fn type_name(&self) -> &'static str {
        self.fields.key.key_type().certificate_name()
    }

    /// Reads an OpenSSH line, as in a `-cert.pub` file.
    ///
    /// # Errors
    /// When the line is not of that shape or the certificate is malformed.
    pub fn from_openssh(line: &str) -> Result<Self, ParseKeyError> {
        let (name, blob) = split_openssh(line)?;
        let certificate = Self::parse(&blob)?;
        if certificate.type_name() == name { Ok(certificate) } else { Err(ParseKeyError::Text) }
    }

    /// The OpenSSH line without a comment and without a line end.
    pub fn to_openssh(&self) -> String {
        format!("{} {}", self.type_name(), STANDARD.encode(&self.blob))
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.blob == other.blob
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("kind", &self.kind())
            .field("key_id", &self.key_id())
            .field("serial", &self.serial())
            .field("key", &self.key())
            .finish_non_exhaustive()
    }
}

/// What a new certificate says. The caller decides every field; nothing is filled in.
#[derive(Debug, Clone)]
pub struct CertificateTemplate {
    /// The key to certify.
    pub key: PublicKey,
    /// User or host.
    pub kind: CertType,
    /// Serial number.
    pub serial: u64,
    /// Free text for logs.
    pub key_id: String,
    /// Logins or host names; must not be empty to be of use here.
    pub principals: Vec<String>,
    /// First moment of validity, rounded down to seconds.
    pub valid_after: Wall,
    /// First moment after validity, rounded down to seconds.
    pub valid_before: Wall,
    /// Options that must be understood.
    pub critical_options: Options,
    /// Options that may be ignored, such as `permit-pty`.
    pub extensions: Options,
}

impl CertificateTemplate {
    /// Signs with an Ed25519 authority. `nonce` must be fresh random bytes.
    ///
    /// # Errors
    /// When a field is longer than [`Certificate::parse`] takes.
    pub fn sign(&self, authority: &KeyPair, nonce: &[u8; 32]) -> Result<Certificate, DecodeError> {
        self.sign_with(&authority.public_key().to_blob(), nonce, |message| authority.sign(message))
    }

    fn sign_with(
        &self,
        signer_blob: &[u8],
        nonce: &[u8],
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Result<Certificate, DecodeError> {
        let mut blob = Vec::with_capacity(1024);
        blob.put_string(self.key.key_type().certificate_name().as_bytes());
        blob.put_string(nonce);
        self.key.put_fields(&mut blob);
        blob.put_long(self.serial);
        blob.put_uint(self.kind.code());
        blob.put_string(self.key_id.as_bytes());
        let mut principals = Vec::new();
        for principal in &self.principals {
            principals.put_string(principal.as_bytes());
        }
        blob.put_string(&principals);
        blob.put_long(self.valid_after.as_secs());
        blob.put_long(self.valid_before.as_secs());
        blob.put_string(&write_options(&self.critical_options));
        blob.put_string(&write_options(&self.extensions));
        blob.put_string(b"");
        blob.put_string(signer_blob);
        let signature = sign(&blob);
        blob.put_string(&signature);
        Certificate::parse(&blob)
    }
}

fn read_principals(bytes: &[u8]) -> Result<Vec<String>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut principals = Vec::new();
    while !reader.is_empty() {
        if principals.len() == PRINCIPALS_MAX {
            return Err(DecodeError::TooLong("principals"));
        }
        principals.push(reader.text(NAME_BYTES_MAX, "principal")?.to_owned());
    }
    Ok(principals)
}

fn read_options(bytes: &[u8]) -> Result<Options, DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut options = Options::new();
    let mut last: Option<&str> = None;
    while !reader.is_empty() {
        if options.len() == OPTIONS_MAX {
            return Err(DecodeError::TooLong("options"));
        }
        let name = reader.text(NAME_BYTES_MAX, "option name")?;
        if last.is_some_and(|last| last >= name) {
            return Err(DecodeError::Invalid("order of options"));
        }
        last = Some(name);
        let data = reader.string()?;
        let value = if data.is_empty() {
            ""
        } else {
            let mut inner = Reader::new(data);
            let value = inner.text(CERTIFICATE_BYTES_MAX, "option value")?;
            inner.end()?;
            value
        };
        options.insert(name.to_owned(), value.to_owned());
    }
    Ok(options)
}

fn write_options(options: &Options) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in options {
        out.put_string(name.as_bytes());
        let mut data = Vec::new();
        if !value.is_empty() {
            data.put_string(value.as_bytes());
        }
        out.put_string(&data);
    }
    out
}

fn read_signer(blob: &[u8]) -> Result<Signer, DecodeError> {
    let name = Reader::new(blob).string()?;
    if KeyType::ALL.iter().any(|k| k.certificate_name().as_bytes() == name) {
        return Ok(Signer::Certificate);
    }
    PublicKey::from_blob(blob).map(Signer::Key)
}

fn parse_networks(list: &str) -> Option<Vec<SourceNetwork>> {
    let networks: Option<Vec<_>> = list.split(',').take(SOURCE_NETWORKS_MAX + 1).map(parse_network).collect();
    networks.filter(|n| n.len() <= SOURCE_NETWORKS_MAX)
}

fn parse_network(text: &str) -> Option<SourceNetwork> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let address: IpAddr = address.parse().ok()?;
    let bits_max = if address.is_ipv4() { 32 } else { 128 };
    let prefix_bits = match prefix {
        None => bits_max,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
    };
    (prefix_bits <= bits_max).then_some(SourceNetwork { address, prefix_bits })
}

#[cfg(test)]
#[path = "certificate_tests.rs"]
mod tests;
