//! Roles: what their holders may and may not do.

mod conditions;
mod options;

pub use conditions::{AdminVerb, LabelSelector, RoleConditions, Rule, RuleTarget};
pub use options::{LockingMode, RecordSession, RecordingMode, RoleOptions};

use crate::metadata::Metadata;
use crate::reader::{At, Fields};
use serde::Serialize;
use wayleave_vocab::RoleName;

/// A role. Nothing in it is compiled: `wayleave_policy::CompiledRole` does that, and must be asked at write.
#[derive(Debug, Clone, PartialEq)]
pub struct Role {
    /// The name that users and certificates carry.
    pub name: RoleName,
    /// Which defaults the author had in mind.
    pub version: RoleVersion,
    /// Labels, expiry, revision, description.
    pub metadata: Metadata,
    /// What it says.
    pub spec: RoleSpec,
}

/// Versions of the role document. They differ in defaults for Kubernetes only, from v5 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RoleVersion {
    /// Labels default to none; `kubernetes_resources` defaults to every pod.
    V5,
    /// As v5; `kubernetes_resources` defaults to none.
    V6,
    /// As v6; `kubernetes_resources` defaults to everything.
    V7,
    /// As v7; `kubernetes_resources` names API groups.
    V8,
}

impl RoleVersion {
    /// The word in `version:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V5 => "v5",
            Self::V6 => "v6",
            Self::V7 => "v7",
            Self::V8 => "v8",
        }
    }

    pub(crate) fn read(at: &At<'_>) -> Option<Self> {
        match at.text()? {
            "v5" => Some(Self::V5),
            "v6" => Some(Self::V6),
            "v7" => Some(Self::V7),
            "v8" => Some(Self::V8),
            "v1" | "v2" | "v3" => at.fail(
                "role versions up to v3 allow every node as soon as logins are given; write v8 and the node_labels \
                 that are meant ('*': '*' for every node)",
            ),
            "v4" => at.fail("role version v4 is not read; v5 to v8 mean the same for SSH: write v8"),
            "v9" => at.fail("role version v9 is newer than this build reads: write v8"),
            other => at.fail(format_args!("{other:?} is no version of a role; there are v5, v6, v7, v8")),
        }
    }
}

/// What a role says: options of sessions, what is allowed, what is denied. Deny wins.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RoleSpec {
    /// How sessions of holders behave.
    #[serde(skip_serializing_if = "RoleOptions::is_empty")]
    pub options: RoleOptions,
    /// What holders may do.
    pub allow: RoleConditions,
    /// What holders may not do, whatever else they hold.
    #[serde(skip_serializing_if = "RoleConditions::is_empty")]
    pub deny: RoleConditions,
}

impl RoleSpec {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let options = fields.or_default("options", RoleOptions::read);
        let allow = fields.or_default("allow", RoleConditions::read_allow);
        let deny = fields.or_default("deny", RoleConditions::read_deny);
        Some(Self { options: options?, allow: allow?, deny: deny? })
    }
}
