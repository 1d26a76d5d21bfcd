//! Whom a process believes: the cluster's X.509 authorities, exchangeable while it runs.

use crate::recent::{ChainId, Recent};
use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use wayleave_identity::{DecodePrincipalError, Principal, X509_EXTENSION_OID};
use wayleave_vocab::{ClusterName, Wall};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The authorities of the cluster for TLS. Clones share; [`TrustStore::replace`] changes it for all.
#[derive(Clone, Default)]
pub struct TrustStore(Arc<ArcSwap<Anchors>>);

#[derive(Default)]
struct Anchors {
    cluster: Option<ClusterName>,
    host: Vec<CertificateDer<'static>>,
    user: Vec<CertificateDer<'static>>,
    /// Whom they vouched for.
    recent: Recent,
}

/// Which end of a connection a certificate is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// It authenticates a TLS client.
    Client,
    /// It authenticates a TLS server.
    Server,
}

/// A certificate that identifies nobody here.
#[derive(Debug, thiserror::Error)]
pub enum IdentifyError {
    /// There is none.
    #[error("no certificate was presented")]
    Missing,
    /// Neither the user nor the host authority of the cluster vouches for it.
    #[error("the certificate is not from this cluster, not for this use, or has run out")]
    Untrusted(#[source] webpki::Error),
    /// It carries no identity of ours.
    #[error("the certificate carries no identity of this cluster")]
    NoIdentity,
    /// Its identity cannot be read.
    #[error("the identity in the certificate is unreadable")]
    Identity(#[source] DecodePrincipalError),
    /// The authority that signed it may not vouch for such an identity.
    #[error("the certificate is signed by an authority of another purpose")]
    WrongAuthority,
    /// It belongs to another cluster.
    #[error("the certificate is of the cluster {0}")]
    OtherCluster(ClusterName),
}

impl TrustStore {
    /// Trusts nobody yet.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Trusts these authorities from now on (PEM, any number of certificates each).
    pub fn replace(&self, cluster: &ClusterName, host_ca_pem: &str, user_ca_pem: &str) {
        self.0.store(Arc::new(Anchors {
            cluster: Some(cluster.clone()),
            host: crate::tls::certificates_from_pem(host_ca_pem),
            user: crate::tls::certificates_from_pem(user_ca_pem),
            recent: Recent::default(),
        }));
    }

    /// The cluster whose authorities these are.
    pub fn cluster(&self) -> Option<ClusterName> {
        self.0.load().cluster.clone()
    }

    /// Pins of the host authorities, as a process that joins wants them.
    pub fn host_pins(&self) -> Vec<String> {
        self.0.load().host.iter().filter_map(|der| pin_of_certificate(der)).collect()
    }

    /// Who a certificate chain (leaf first) belongs to, after verifying it at `now` for `audience`.
    ///
    /// A user is believed from the user authority only, a process from the host authority only.
    ///
    /// # Errors
    /// See [`IdentifyError`].
    pub fn identify(
        &self,
        chain: &[CertificateDer<'_>],
        audience: Audience,
        now: Wall,
    ) -> Result<Principal, IdentifyError> {
        let (leaf, intermediates) = chain.split_first().ok_or(IdentifyError::Missing)?;
        let anchors = self.0.load();
        let id = ChainId::new(chain, audience);
        if let Some(principal) = anchors.recent.find(id, now) {
            return Ok(principal);
        }
        let (principal, not_after) = read_certificate(leaf)?;
        let roots = match &principal {
            Principal::User(_) => &anchors.user,
            Principal::Host(_) => &anchors.host,
        };
        if let Err(error) = verify(leaf, intermediates, roots, audience, now) {
            let others = match &principal {
                Principal::User(_) => &anchors.host,
                Principal::Host(_) => &anchors.user,
            };
            return Err(match verify(leaf, intermediates, others, audience, now) {
                Ok(()) => IdentifyError::WrongAuthority,
                Err(_) => IdentifyError::Untrusted(error),
            });
        }
        match &anchors.cluster {
            Some(cluster) if cluster == principal.cluster() => {
                anchors.recent.add(id, principal.clone(), not_after, now);
                Ok(principal)
            }
            _ => Err(IdentifyError::OtherCluster(principal.cluster().clone())),
        }
    }
}

impl fmt::Debug for TrustStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let anchors = self.0.load();
        write!(f, "TrustStore({} host, {} user)", anchors.host.len(), anchors.user.len())
    }
}

/// Verifies a chain against roots, for one use, at one time.
fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[CertificateDer<'static>],
    audience: Audience,
    now: Wall,
) -> Result<(), webpki::Error> {
    let anchors: Vec<TrustAnchor<'_>> =
        roots.iter().map(anchor_from_trusted_cert).collect::<Result<_, _>>()?;
    let usage = match audience {
        Audience::Client => KeyUsage::client_auth(),
        Audience::Server => KeyUsage::server_auth(),
    };
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()));
    EndEntityCert::try_from(leaf)?
        .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, intermediates, time, usage, None, None)
        .map(|_| ())
}

/// Verifies a server chain against one authority certificate only.
pub(crate) fn verify_server_with_root(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    root: &CertificateDer<'static>,
    now: Wall,
) -> Result<(), webpki::Error> {
    verify(leaf, intermediates, std::slice::from_ref(root), Audience::Server, now)
}

/// The principal in a certificate. The certificate must have been verified, or be verified before the result is used.
///
/// # Errors
/// [`IdentifyError::NoIdentity`] or [`IdentifyError::Identity`].
pub fn principal_from_certificate(der: &[u8]) -> Result<Principal, IdentifyError> {
    read_certificate(der).map(|(principal, _)| principal)
}

/// The principal in a certificate, and the last second that the certificate is good for.
fn read_certificate(der: &[u8]) -> Result<(Principal, Wall), IdentifyError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentifyError::NoIdentity)?;
    let mut found = None;
    for extension in certificate.extensions() {
        let is_ours = extension.oid.iter().is_some_and(|arcs| X509_EXTENSION_OID.iter().copied().eq(arcs));
        if is_ours && found.replace(extension.value).is_some() {
            return Err(IdentifyError::NoIdentity);
        }
    }
    let bytes = found.ok_or(IdentifyError::NoIdentity)?;
    let principal = Principal::decode(bytes).map_err(IdentifyError::Identity)?;
    let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
    Ok((principal, Wall::from_secs(not_after)))
}

/// The first moment at which a certificate (DER) is good.
pub fn certificate_begins(der: &[u8]) -> Option<Wall> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    u64::try_from(certificate.validity().not_before.timestamp()).ok().map(Wall::from_secs)
}

/// `sha256:<hex>` over the SubjectPublicKeyInfo of a certificate (DER).
pub fn pin_of_certificate(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let digest = Sha256::digest(certificate.public_key().raw);
    Some(format!("sha256:{}", data_encoding::HEXLOWER.encode(&digest)))
}

/// Pins of host authorities: what a process that trusts nobody yet accepts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins(Vec<String>);

/// Text that is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is no CA pin: it is sha256: and 64 hexadecimal digits, as `way status` prints under ca_pins"
)]
pub struct ParsePinsError {
    /// What was given, cut to 96 characters.
    pub given: String,
}

impl Pins {
    /// True when a certificate's public key is pinned.
    pub fn contains(&self, der: &[u8]) -> bool {
        pin_of_certificate(der).is_some_and(|pin| self.0.contains(&pin))
    }

    /// True when both have one and the same pin.
    pub fn shares_one_with(&self, other: &Self) -> bool {
        self.0.iter().any(|pin| other.0.contains(pin))
    }

    /// No pin at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Pins {
    type Err = ParsePinsError;

    /// One or several pins, with white space or commas between them.
    fn from_str(s: &str) -> Result<Self, ParsePinsError> {
        let mut pins = Vec::new();
        for pin in s.split(|c: char| c.is_whitespace() || c == ',').filter(|p| !p.is_empty()) {
            let lower = pin.to_ascii_lowercase();
            let digits = lower
                .strip_prefix("sha256:")
                .filter(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_hexdigit()));
            if digits.is_none() {
                return Err(ParsePinsError { given: pin.chars().take(96).collect() });
            }
            pins.push(lower);
        }
        Ok(Self(pins))
    }
}
