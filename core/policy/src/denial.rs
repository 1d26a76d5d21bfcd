//! Why not.

use crate::lock::LockMatch;
use std::fmt;
use wayleave_resource::AdminVerb;
use wayleave_vocab::{ClusterName, RoleName, Wall};

/// A refusal: the reason for operators and the audit log, and a text that the refused may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The reason.
    pub reason: DenialReason,
    /// What was asked: `alice as root on db-1`, `alice to update role`.
    pub(crate) question: String,
}

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum DenialReason {
    /// The certificate is of another cluster.
    OtherCluster {
        /// Which.
        cluster: ClusterName,
    },
    /// The certificate has run out.
    CertificateExpired {
        /// When.
        not_after: Wall,
    },
    /// The certificate names a role that does not exist (any more), so its denials are not known.
    UnknownRole {
        /// Which.
        role: RoleName,
    },
    /// The certificate names a role that this build cannot compile, so its denials are not known.
    BrokenRole {
        /// Which.
        role: RoleName,
    },
    /// A lock is in force.
    Locked {
        /// Which.
        lock: LockMatch,
    },
    /// Strict locking, and what is known about locks is older than five minutes.
    LocksStale {
        /// How old in seconds.
        age_secs: u64,
    },
    /// A role denies it.
    DeniedByRole {
        /// Which.
        role: RoleName,
        /// By what.
        key: DenyKey,
    },
    /// The certificate does not name the login; a newer certificate might.
    LoginNotInCertificate,
    /// No role allows the node.
    NoRoleAllowsNode,
    /// Roles allow the node, none of them with this login.
    LoginNotAllowed,
    /// No role allows the application.
    NoRoleAllowsApp,
    /// No rule allows the verb on the kind.
    NoRuleAllows {
        /// The verb.
        verb: AdminVerb,
        /// The kind.
        kind: &'static str,
    },
}

/// The key under `spec.deny` that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DenyKey {
    /// `node_labels`.
    NodeLabels,
    /// `node_labels_expression`.
    NodeLabelsExpression,
    /// `logins`.
    Logins,
    /// `app_labels`.
    AppLabels,
    /// `app_labels_expression`.
    AppLabelsExpression,
    /// `rules`.
    Rules,
}

impl DenyKey {
    /// The key as the role writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NodeLabels => "node_labels",
            Self::NodeLabelsExpression => "node_labels_expression",
            Self::Logins => "logins",
            Self::AppLabels => "app_labels",
            Self::AppLabelsExpression => "app_labels_expression",
            Self::Rules => "rules",
        }
    }
}

impl Denial {
    pub(crate) fn new(reason: DenialReason, question: String) -> Self {
        Self { reason, question }
    }

    /// What the refused may read: nothing about roles, rules or whether the thing exists.
    pub fn user_text(&self) -> String {
        match &self.reason {
            DenialReason::OtherCluster { .. } => "this certificate is of another cluster".to_owned(),
            DenialReason::CertificateExpired { .. } => {
                "your certificate has expired: log in again".to_owned()
            }
            DenialReason::UnknownRole { .. } | DenialReason::BrokenRole { .. } => {
                "your roles have changed: log in again, or ask an administrator".to_owned()
            }
            DenialReason::Locked { lock } => lock.user_text(),
            DenialReason::LocksStale { .. } => {
                "access is refused while the cluster's locks cannot be checked; try again".to_owned()
            }
            DenialReason::LoginNotInCertificate
            | DenialReason::DeniedByRole { .. }
            | DenialReason::NoRoleAllowsNode
            | DenialReason::LoginNotAllowed
            | DenialReason::NoRoleAllowsApp
            | DenialReason::NoRuleAllows { .. } => format!("access denied: {}", self.question),
        }
    }
}

impl fmt::Display for DenialReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherCluster { cluster } => write!(f, "the certificate is of cluster {cluster}"),
            Self::CertificateExpired { not_after } => {
                write!(f, "the certificate ran out at {} s since 1970", not_after.as_secs())
            }
            Self::UnknownRole { role } => write!(f, "role {role} in the certificate does not exist"),
            Self::BrokenRole { role } => write!(f, "role {role} in the certificate cannot be compiled here"),
            Self::Locked { lock } => write!(f, "lock {} on {}", lock.name, lock.target),
            Self::LocksStale { age_secs } => {
                write!(f, "strict locking, and no word about locks for {age_secs} s")
            }
            Self::DeniedByRole { role, key } => write!(f, "role {role} denies it by {}", key.as_str()),
            Self::LoginNotInCertificate => f.write_str("the certificate does not name the login"),
            Self::NoRoleAllowsNode => f.write_str("no role allows the node"),
            Self::LoginNotAllowed => f.write_str("roles allow the node, none with this login"),
            Self::NoRoleAllowsApp => f.write_str("no role allows the application"),
            Self::NoRuleAllows { verb, kind } => write!(f, "no rule allows {verb} on {kind}"),
        }
    }
}

/// The operator's text.
impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "denied: {}: {}", self.question, self.reason)
    }
}

impl std::error::Error for Denial {}
