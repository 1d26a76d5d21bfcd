//! `spec.allow` and `spec.deny` of a role.

use crate::kind::Kind;
use crate::reader::{At, Fields, near_miss};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Longest expression in bytes (labels and `where`).
const EXPRESSION_BYTES_MAX: usize = 4096;
/// Longest entry of a list in bytes (logins, label values).
const ENTRY_BYTES_MAX: usize = 1024;

/// Label keys and what their values may be: keys AND, values OR. A value is a literal, a glob with `*`, or a regular
/// expression from `^` to `$`. Kept as written; `core/policy` compiles it.
pub type LabelSelector = BTreeMap<String, Vec<String>>;

/// Conditions that allow, or that deny.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RoleConditions {
    /// Accounts of the target's operating system, or templates for them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logins: Vec<String>,
    /// Nodes by label.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: LabelSelector,
    /// Nodes by an expression over their labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_labels_expression: Option<String>,
    /// TCP applications by label.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub app_labels: LabelSelector,
    /// TCP applications by an expression over their labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_labels_expression: Option<String>,
    /// What may be done with resources through the admin API.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Conditions for what is not served yet: kept and shown, they grant nothing. Empty in `deny`, where a condition
    /// that cannot be enforced is refused.
    #[serde(flatten)]
    pub later: BTreeMap<String, serde_json::Value>,
}

/// A rule about resources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Which kinds.
    pub resources: Vec<RuleTarget>,
    /// Which verbs.
    pub verbs: Vec<AdminVerb>,
    /// A predicate that must hold as well.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub where_: Option<String>,
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleTarget {
    /// Every kind.
    Any,
    /// A kind that this build stores.
    Kind(Kind),
    /// A kind of the field that has no resources here yet, such as `session` or `event`.
    Other(&'static str),
}

/// What a rule allows or denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminVerb {
    /// Every verb (only in rules).
    #[serde(rename = "*")]
    Any,
    /// See that they exist.
    List,
    /// Read one.
    Read,
    /// Read one without what is secret in it.
    ReadNoSecrets,
    /// Write one that does not exist.
    Create,
    /// Write one that exists.
    Update,
    /// Remove one.
    Delete,
    /// Use one.
    Use,
    /// Rotate one.
    Rotate,
}

/// Kinds of the field that rules may name although nothing of the kind is stored here yet.
const OTHER_KINDS: &[&str] = &[
    "access_list",
    "access_monitoring_rule",
    "access_request",
    "app",
    "app_server",
    "audit_query",
    "auth_connector",
    "auth_server",
    "billing",
    "bot",
    "bot_instance",
    "cluster_alert",
    "cluster_audit_config",
    "cluster_maintenance_config",
    "cluster_name",
    "connection_diagnostic",
    "crown_jewel",
    "database_object",
    "database_object_import_rule",
    "db",
    "db_server",
    "db_service",
    "device",
    "discovery_config",
    "event",
    "git_server",
    "github",
    "health_check_config",
    "host_cert",
    "identity_center_account",
    "instance",
    "integration",
    "kube_cluster",
    "kube_server",
    "license",
    "login_rule",
    "mfa_device",
    "network_restrictions",
    "notification",
    "oidc",
    "plugin",
    "remote_cluster",
    "saml",
    "saml_idp_service_provider",
    "security_report",
    "session",
    "session_recording_config",
    "session_tracker",
    "ssh_session",
    "tunnel_connection",
    "ui_config",
    "user_group",
    "user_task",
    "web_session",
    "web_token",
    "windows_desktop",
    "windows_desktop_service",
    "workload_identity",
];

/// Conditions of the field for what is not served yet, or not built.
const LATER: &[&str] = &[
    "account_assignments",
    "aws_role_arns",
    "azure_identities",
    "cluster_labels",
    "cluster_labels_expression",
    "db_labels",
    "db_labels_expression",
    "db_names",
    "db_permissions",
    "db_roles",
    "db_service_labels",
    "db_service_labels_expression",
    "db_users",
    "desktop_groups",
    "gcp_service_accounts",
    "github_permissions",
    "group_labels",
    "group_labels_expression",
    "host_groups",
    "host_sudoers",
    "impersonate",
    "join_sessions",
    "kubernetes_groups",
    "kubernetes_labels",
    "kubernetes_labels_expression",
    "kubernetes_resources",
    "kubernetes_users",
    "linux_desktop_labels",
    "linux_desktop_labels_expression",
    "linux_desktop_logins",
    "mcp",
    "request",
    "review_requests",
    "spiffe",
    "windows_desktop_labels",
    "windows_desktop_labels_expression",
    "windows_desktop_logins",
    "workload_identity_labels",
    "workload_identity_labels_expression",
];

/// Conditions that restrict even under `allow`.
const RESTRICTING: &[&str] = &["require_session_join"];

impl AdminVerb {
    /// Every verb, in the order of declaration.
    pub const ALL: [Self; 9] = [
        Self::Any,
        Self::List,
        Self::Read,
        Self::ReadNoSecrets,
        Self::Create,
        Self::Update,
        Self::Delete,
        Self::Use,
        Self::Rotate,
    ];

    /// The word in `verbs:`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "*",
            Self::List => "list",
            Self::Read => "read",
            Self::ReadNoSecrets => "readnosecrets",
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Use => "use",
            Self::Rotate => "rotate",
        }
    }
}

impl fmt::Display for AdminVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl RuleTarget {
    /// The kind of the field with this name that is not stored here, if there is one.
    pub fn other(name: &str) -> Option<Self> {
        OTHER_KINDS.iter().find(|known| **known == name).map(|known| Self::Other(known))
    }

    /// The word in `resources:`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Any => "*",
            Self::Kind(kind) => kind.as_str(),
            Self::Other(name) => name,
        }
    }

    fn read(at: &At<'_>) -> Option<Self> {
        let text = at.text()?;
        let stored = || Kind::ALL.into_iter().find(|kind| kind.as_str() == text).map(Self::Kind);
        if text == "*" {
            return Some(Self::Any);
        }
        if let Some(target) = stored().or_else(|| Self::other(text)) {
            return Some(target);
        }
        let known = Kind::ALL.iter().map(|kind| kind.as_str()).chain(OTHER_KINDS.iter().copied());
        let near = near_miss(text, known).map_or_else(String::new, |near| format!("; did you mean {near}?"));
        at.fail(format_args!("{:?} is no kind of resource{near}", crate::tree::short(text)))
    }
}

impl Serialize for RuleTarget {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl RoleConditions {
    /// True when nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn read_allow(at: &At<'_>) -> Option<Self> {
        let mut fields = at.fields()?;
        let mut conditions = Self::read_enforced(&mut fields);
        for name in LATER {
            let value = fields.take(name).filter(|at| !at.is_empty());
            if let (Some(value), Some(conditions)) = (value, conditions.as_mut()) {
                conditions.later.insert((*name).to_owned(), value.data());
            }
        }
        for name in RESTRICTING {
            fields.refuse(name, |_| false, "it restricts, and nothing here can enforce it");
        }
        fields.finish();
        conditions
    }

    pub(crate) fn read_deny(at: &At<'_>) -> Option<Self> {
        let mut fields = at.fields()?;
        let conditions = Self::read_enforced(&mut fields);
        for name in LATER.iter().chain(RESTRICTING) {
            fields.refuse(name, |_| false, "a denial that nothing here can enforce is refused");
        }
        fields.finish();
        conditions
    }

    fn read_enforced(fields: &mut Fields<'_>) -> Option<Self> {
        let logins = fields.or_default("logins", |at| at.each_of_one_or_more(entry));
        let node_labels = fields.or_default("node_labels", read_selector);
        let node_labels_expression = fields.optional("node_labels_expression", expression);
        let app_labels = fields.or_default("app_labels", read_selector);
        let app_labels_expression = fields.optional("app_labels_expression", expression);
        let rules = fields.or_default("rules", |at| at.each(Rule::read));
        Some(Self {
            logins: logins?,
            node_labels: node_labels?,
            node_labels_expression: node_labels_expression?.filter(|text| !text.is_empty()),
            app_labels: app_labels?,
            app_labels_expression: app_labels_expression?.filter(|text| !text.is_empty()),
            rules: rules?,
            later: BTreeMap::new(),
        })
    }
}

impl Rule {
    fn read(at: &At<'_>) -> Option<Self> {
        let mut fields = at.fields()?;
        let resources = fields.required("resources", |at| at.each_of_one_or_more(RuleTarget::read));
        let words = AdminVerb::ALL.map(|verb| (verb.as_str(), verb));
        let verbs = fields.required("verbs", |at| at.each_of_one_or_more(|at| at.word(&words)));
        let where_ = fields.optional("where", expression);
        fields.refuse("actions", |_| false, "rules have no actions here");
        fields.finish();
        Some(Self { resources: resources?, verbs: verbs?, where_: where_?.filter(|text| !text.is_empty()) })
    }
}

fn entry(at: &At<'_>) -> Option<String> {
    let text = at.line_of_text()?;
    if text.is_empty() {
        return at.fail("an empty entry");
    }
    if text.len() > ENTRY_BYTES_MAX {
        return at.fail(format_args!("has {} bytes, at most {ENTRY_BYTES_MAX}", text.len()));
    }
    Some(text)
}

fn expression(at: &At<'_>) -> Option<String> {
    let text = at.text()?;
    if text.len() > EXPRESSION_BYTES_MAX {
        return at.fail(format_args!("has {} bytes, at most {EXPRESSION_BYTES_MAX}", text.len()));
    }
    Some(text.trim().to_owned())
}

fn read_selector(at: &At<'_>) -> Option<LabelSelector> {
    let mut selector = LabelSelector::new();
    let mut whole = true;
    for (key, value) in at.pairs()? {
        match value.each_of_one_or_more(label_value) {
            Some(values) => {
                selector.insert(key.to_owned(), values);
            }
            None => whole = false,
        }
    }
    if let Some(values) = selector.get("*")
        && values != &["*"]
    {
        return at.fail("the key '*' means every resource and takes the value '*' only");
    }
    whole.then_some(selector)
}

fn label_value(at: &At<'_>) -> Option<String> {
    let text = at.line_of_text()?;
    if text.len() > ENTRY_BYTES_MAX {
        return at.fail(format_args!("has {} bytes, at most {ENTRY_BYTES_MAX}", text.len()));
    }
    Some(text)
}
