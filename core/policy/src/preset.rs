//! The roles that a new cluster begins with.

use wayleave_resource::{
    AdminVerb, Kind, LabelSelector, Metadata, Role, RoleConditions, RoleOptions, RoleSpec, RoleVersion, Rule,
    RuleTarget,
};
use wayleave_vocab::{RoleName, Ttl};

/// Longest life of certificates under the presets.
const MAX_SESSION_TTL: Ttl = Ttl(std::time::Duration::from_secs(30 * 3600));

/// All presets: access, editor, auditor.
pub fn presets() -> [Role; 3] {
    [access(), editor(), auditor()]
}

/// Every node, as the logins of the user's own traits, and every application.
pub fn access() -> Role {
    let every = LabelSelector::from([("*".to_owned(), vec!["*".to_owned()])]);
    let allow = RoleConditions {
        logins: vec!["{{internal.logins}}".to_owned()],
        node_labels: every.clone(),
        app_labels: every,
        ..RoleConditions::default()
    };
    let options = RoleOptions {
        max_session_ttl: Some(MAX_SESSION_TTL),
        forward_agent: Some(true),
        port_forwarding: Some(true),
        ..RoleOptions::default()
    };
    preset(
        "access",
        "Access to every node with the logins of the user, and to every application",
        options,
        allow,
    )
}

/// Changes the cluster's configuration; enters nothing.
pub fn editor() -> Role {
    let write = [AdminVerb::List, AdminVerb::Read, AdminVerb::Create, AdminVerb::Update, AdminVerb::Delete];
    let settings = [
        Kind::Role,
        Kind::User,
        Kind::Token,
        Kind::Lock,
        Kind::ClusterNetworkingConfig,
        Kind::ClusterAuthPreference,
    ];
    let allow = RoleConditions {
        rules: vec![
            rule(settings.map(RuleTarget::Kind), write),
            rule(
                [RuleTarget::Kind(Kind::Node), RuleTarget::Kind(Kind::Proxy)],
                [AdminVerb::List, AdminVerb::Read, AdminVerb::Delete],
            ),
            rule([RuleTarget::Kind(Kind::CertAuthority)], [AdminVerb::List, AdminVerb::ReadNoSecrets]),
        ],
        ..RoleConditions::default()
    };
    preset("editor", "Change the configuration of the cluster", ttl_only(), allow)
}

/// Reads the audit log.
pub fn auditor() -> Role {
    let others = ["event", "session", "session_tracker"].into_iter().filter_map(RuleTarget::other);
    let allow = RoleConditions {
        rules: vec![rule(others, [AdminVerb::List, AdminVerb::Read])],
        ..RoleConditions::default()
    };
    preset("auditor", "Read the audit log", ttl_only(), allow)
}

fn ttl_only() -> RoleOptions {
    RoleOptions { max_session_ttl: Some(MAX_SESSION_TTL), ..RoleOptions::default() }
}

fn rule(resources: impl IntoIterator<Item = RuleTarget>, verbs: impl IntoIterator<Item = AdminVerb>) -> Rule {
    Rule { resources: resources.into_iter().collect(), verbs: verbs.into_iter().collect(), where_: None }
}

fn preset(name: &str, description: &str, options: RoleOptions, allow: RoleConditions) -> Role {
    Role {
        name: RoleName::parse(name).expect("the names of presets are names"),
        version: RoleVersion::V8,
        metadata: Metadata { description: Some(description.to_owned()), ..Metadata::default() },
        spec: RoleSpec { options, allow, deny: RoleConditions::default() },
    }
}
