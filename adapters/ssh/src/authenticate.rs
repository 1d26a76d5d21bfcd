//! From a certificate whose key the client holds to a user: signed by whom, for whom, until when, from where.
//!
//! What the user may do is not asked here; `core/policy` is.

use std::net::IpAddr;
use wayleave_identity::{DecodePrincipalError, Principal, SSH_EXTENSION, UserPrincipal};
use wayleave_ssh::{CertType, Certificate, CertificateError, PublicKey};
use wayleave_vocab::{ClusterName, Wall};

/// Critical options that are enforced elsewhere: the SSH core checks the authenticator's assertion.
const ENFORCED_OPTIONS: [&str; 1] = ["verify-required"];

/// A user and what the certificate leaves him of SSH.
#[derive(Debug, Clone)]
pub(crate) struct CertifiedUser {
    /// Who; ends with the certificate at the latest.
    pub(crate) principal: UserPrincipal,
    pub(crate) permissions: Permissions,
}

/// The `permit-*` extensions: what is not permitted is refused whatever the roles say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permissions {
    pub(crate) terminal: bool,
    pub(crate) port_forwarding: bool,
    pub(crate) agent_forwarding: bool,
}

/// Whom the certificate must convince.
pub(crate) struct Trust<'a> {
    pub(crate) authorities: &'a [PublicKey],
    pub(crate) cluster: &'a ClusterName,
}

/// Why a certificate makes nobody a user here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthenticateError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the certificate is for other addresses than {}", .0.map_or_else(|| "an unknown one".to_owned(), |a| a.to_string()))]
    SourceAddress(Option<IpAddr>),
    #[error("the certificate carries no identity")]
    NoIdentity,
    #[error(transparent)]
    Identity(#[from] DecodePrincipalError),
    #[error("the certificate is a process's, not a user's")]
    NotAUser,
    #[error("the certificate is of cluster {0}")]
    OtherCluster(ClusterName),
}

impl AuthenticateError {
    /// What the client may read: only what its own certificate says. The authority's signature was checked before
    /// any of these.
    pub(crate) fn user_text(&self) -> Option<String> {
        match self {
            Self::Certificate(CertificateError::Expired) => {
                Some("your certificate has expired by the clock of the machine that you reached: log in again".to_owned())
            }
            Self::Certificate(CertificateError::NotYetValid) => {
                Some("your certificate is not valid yet by the clock of the machine that you reached: compare the clocks".to_owned())
            }
            Self::Certificate(CertificateError::PrincipalNotListed) => {
                Some("access denied: your certificate does not name this login".to_owned())
            }
            Self::SourceAddress(_) => {
                Some("access denied: your certificate is not for your address".to_owned())
            }
            Self::Certificate(_)
            | Self::NoIdentity
            | Self::Identity(_)
            | Self::NotAUser
            | Self::OtherCluster(_) => None,
        }
    }
}

/// Judges a certificate. With `login`, the certificate must name it. `client` is where the client connects
/// from as far as is known: a certificate that is bound to addresses is refused when it is not.
pub(crate) fn authenticate(
    certificate: &Certificate,
    login: Option<&str>,
    trust: &Trust<'_>,
    client: Option<IpAddr>,
    now: Wall,
) -> Result<CertifiedUser, AuthenticateError> {
    let verified = certificate.verify(trust.authorities, CertType::User, login, &ENFORCED_OPTIONS, now)?;
    if let Some(networks) = verified.source_networks {
        let is_inside = client.is_some_and(|address| networks.iter().any(|n| n.contains(address)));
        if !is_inside {
            return Err(AuthenticateError::SourceAddress(client));
        }
    }
    let identity = certificate.extensions().get(SSH_EXTENSION).ok_or(AuthenticateError::NoIdentity)?;
    let Principal::User(mut principal) = Principal::decode(identity.as_bytes())? else {
        return Err(AuthenticateError::NotAUser);
    };
    if principal.cluster != *trust.cluster {
        return Err(AuthenticateError::OtherCluster(principal.cluster));
    }
    principal.not_after = principal.not_after.min(certificate.valid_before());
    let permits = |name| certificate.extensions().contains_key(name);
    let permissions = Permissions {
        terminal: permits("permit-pty"),
        port_forwarding: permits("permit-port-forwarding"),
        agent_forwarding: permits("permit-agent-forwarding"),
    };
    Ok(CertifiedUser { principal, permissions })
}
