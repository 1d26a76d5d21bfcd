//! Who somebody is: one [`Principal`], whichever certificate carried it.
//!
//! An X.509 certificate carries the encoded principal in the extension [`X509_EXTENSION_OID`]; an SSH
//! certificate carries the same bytes in the extension [`SSH_EXTENSION`]. This crate decodes them. It does not
//! verify anything: a certificate must have been verified against the right CA before it is decoded
//! (`platform/keystore` for X.509, `adapters/ssh` for SSH).

mod publisher;

pub use publisher::{PUBLISH_OPTION, Publisher};

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use wayleave_vocab::{ClusterName, HostId, Login, RoleName, SystemRole, Traits, UserName, Wall};

/// Object identifier of the X.509 extension (a 2.25 UUID arc of this project).
pub const X509_EXTENSION_OID: &[u64] = &[2, 25, 7_164_821_930_215_644_771, 1];
/// Name of the extension in SSH certificates.
pub const SSH_EXTENSION: &str = "identity@wayleave";
/// Longest encoding in bytes; more is refused before it is parsed.
pub const ENCODED_BYTES_MAX: usize = 16 * 1024;
/// The version this build writes.
const VERSION: u8 = 1;

/// Somebody whose certificate was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A person or machine user.
    User(UserPrincipal),
    /// A process of the cluster.
    Host(HostPrincipal),
}

/// A user as the certificate states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserPrincipal {
    /// The user's name.
    pub name: UserName,
    /// The cluster that issued the certificate.
    pub cluster: ClusterName,
    /// The roles held when it was issued. What they contain is looked up in the policy.
    pub roles: BTreeSet<RoleName>,
    /// The operating-system accounts that the certificate names.
    pub logins: BTreeSet<Login>,
    /// Traits of the user, for templates in roles.
    #[serde(default)]
    pub traits: Traits,
    /// Set when the local administrator of the Auth host issued it for himself (`way -c`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local_admin: bool,
    /// When the certificate ends.
    pub not_after: Wall,
}

/// A process of the cluster as the certificate states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPrincipal {
    /// The id that Auth assigned at join.
    pub host_id: HostId,
    /// The cluster that issued the certificate.
    pub cluster: ClusterName,
    /// What the process may be.
    pub system_roles: BTreeSet<SystemRole>,
    /// When the certificate ends.
    pub not_after: Wall,
}

/// Bytes that are no principal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodePrincipalError {
    /// The certificate carries more than [`ENCODED_BYTES_MAX`].
    #[error("the identity in the certificate has {0} bytes, at most {ENCODED_BYTES_MAX}")]
    TooLong(usize),
    /// Not an identity of a version this build knows.
    #[error("the identity in the certificate cannot be read: {0}")]
    Malformed(String),
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    v: u8,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Body {
    User(UserPrincipal),
    Host(HostPrincipal),
}

impl Principal {
    /// The bytes that certificates carry (JSON with a version).
    pub fn encode(&self) -> Vec<u8> {
        let body = match self {
            Self::User(user) => Body::User(user.clone()),
            Self::Host(host) => Body::Host(host.clone()),
        };
        serde_json::to_vec(&Envelope { v: VERSION, body }).expect("maps of strings always serialise")
    }

    /// Reads what [`Principal::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are too many, of another version or misshapen.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodePrincipalError> {
        if bytes.len() > ENCODED_BYTES_MAX {
            return Err(DecodePrincipalError::TooLong(bytes.len()));
        }
        let envelope: Envelope =
            serde_json::from_slice(bytes).map_err(|e| DecodePrincipalError::Malformed(e.to_string()))?;
        if envelope.v != VERSION {
            return Err(DecodePrincipalError::Malformed(format!(
                "version {}, this build reads {VERSION}",
                envelope.v
            )));
        }
        Ok(match envelope.body {
            Body::User(user) => Self::User(user),
            Body::Host(host) => Self::Host(host),
        })
    }

    /// The cluster that issued the certificate.
    pub fn cluster(&self) -> &ClusterName {
        match self {
            Self::User(user) => &user.cluster,
            Self::Host(host) => &host.cluster,
        }
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> Wall {
        match self {
            Self::User(user) => user.not_after,
            Self::Host(host) => host.not_after,
        }
    }

    /// The user, if it is one.
    pub fn as_user(&self) -> Option<&UserPrincipal> {
        match self {
            Self::User(user) => Some(user),
            Self::Host(_) => None,
        }
    }

    /// The process, if it is one that holds `role`.
    pub fn as_host_with(&self, role: SystemRole) -> Option<&HostPrincipal> {
        match self {
            Self::Host(host) if host.system_roles.contains(&role) => Some(host),
            Self::Host(_) | Self::User(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn user() -> Principal {
        Principal::User(UserPrincipal {
            name: UserName::parse("alice").unwrap(),
            cluster: ClusterName::parse("demo").unwrap(),
            roles: [RoleName::parse("access").unwrap()].into(),
            logins: [Login::parse("root").unwrap()].into(),
            traits: Traits::from([("team".into(), vec!["infra".into()])]),
            local_admin: false,
            not_after: Wall::from_secs(1_800_000_000),
        })
    }

    fn host() -> Principal {
        Principal::Host(HostPrincipal {
            host_id: HostId::from_random([3; 16]),
            cluster: ClusterName::parse("demo").unwrap(),
            system_roles: [SystemRole::Node].into(),
            not_after: Wall::from_secs(1_800_000_000),
        })
    }

    #[test]
    fn principals_read_back_and_match_their_golden_files() {
        for (principal, golden) in [
            (user(), include_str!("../golden/user_v1.json")),
            (host(), include_str!("../golden/host_v1.json")),
        ] {
            let bytes = principal.encode();
            assert_eq!(std::str::from_utf8(&bytes).unwrap(), golden.trim_end());
            assert_eq!(Principal::decode(&bytes), Ok(principal));
        }
    }

    #[test]
    fn other_versions_and_unknown_fields_are_refused() {
        let text = String::from_utf8(user().encode()).unwrap();
        assert!(Principal::decode(text.replace("\"v\":1", "\"v\":2").as_bytes()).is_err());
        assert!(Principal::decode(text.replace("\"name\"", "\"admin\":true,\"name\"").as_bytes()).is_err());
        assert!(Principal::decode(&vec![b' '; ENCODED_BYTES_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Principal::decode(&bytes);
        }
    }
}
