//! The kinds of resources, and the words that rules use for them.

use crate::reader::near_miss;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A kind of resource that this build stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// What a user may do.
    Role,
    /// A person or machine user.
    User,
    /// A join token (never its secret).
    Token,
    /// A machine that serves SSH.
    Node,
    /// A Proxy Service.
    Proxy,
    /// Who or what is locked out.
    Lock,
    /// Tunnels and timeouts of the whole cluster.
    ClusterNetworkingConfig,
    /// Logins and sessions of the whole cluster.
    ClusterAuthPreference,
    /// The public part of a certificate authority.
    CertAuthority,
}

/// A word that names no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no kind of resource{near}; there are {}", Kind::ALL.map(Kind::as_str).join(", "))]
pub struct ParseKindError {
    given: String,
    near: String,
}

impl Kind {
    /// Every kind, in the order of declaration.
    pub const ALL: [Self; 9] = [
        Self::Role,
        Self::User,
        Self::Token,
        Self::Node,
        Self::Proxy,
        Self::Lock,
        Self::ClusterNetworkingConfig,
        Self::ClusterAuthPreference,
        Self::CertAuthority,
    ];

    /// The word in `kind:`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Role => "role",
            Self::User => "user",
            Self::Token => "token",
            Self::Node => "node",
            Self::Proxy => "proxy",
            Self::Lock => "lock",
            Self::ClusterNetworkingConfig => "cluster_networking_config",
            Self::ClusterAuthPreference => "cluster_auth_preference",
            Self::CertAuthority => "cert_authority",
        }
    }

    /// The only name that a resource of this kind can have, for the kinds of which there is one.
    pub const fn only_name(self) -> Option<&'static str> {
        match self {
            Self::ClusterNetworkingConfig => Some("cluster-networking-config"),
            Self::ClusterAuthPreference => Some("cluster-auth-preference"),
            Self::Role
            | Self::User
            | Self::Token
            | Self::Node
            | Self::Proxy
            | Self::Lock
            | Self::CertAuthority => None,
        }
    }

    /// True for what people write; the others are written by the process that they describe, or by Auth.
    pub const fn is_written_by_people(self) -> bool {
        match self {
            Self::Role
            | Self::User
            | Self::Token
            | Self::Lock
            | Self::ClusterNetworkingConfig
            | Self::ClusterAuthPreference => true,
            Self::Node | Self::Proxy | Self::CertAuthority => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = ParseKindError;

    /// Reads the word, also in the plural and with hyphens, as people type it on a command line.
    fn from_str(s: &str) -> Result<Self, ParseKindError> {
        let word = s.trim().to_ascii_lowercase().replace('-', "_");
        let alias = match word.as_str() {
            "roles" => Some(Self::Role),
            "users" => Some(Self::User),
            "tokens" => Some(Self::Token),
            "nodes" => Some(Self::Node),
            "proxies" => Some(Self::Proxy),
            "locks" => Some(Self::Lock),
            "cap" => Some(Self::ClusterAuthPreference),
            "cnc" | "networking" | "networking_config" => Some(Self::ClusterNetworkingConfig),
            "ca" | "cas" | "cert_authorities" => Some(Self::CertAuthority),
            _ => None,
        };
        Self::ALL.into_iter().find(|kind| kind.as_str() == word).or(alias).ok_or_else(|| ParseKindError {
            given: s.chars().take(64).collect(),
            near: near_miss(&word, Self::ALL.iter().map(|kind| kind.as_str()))
                .map_or_else(String::new, |near| format!(" (did you mean {near}?)")),
        })
    }
}
