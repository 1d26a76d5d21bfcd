//! Who may call what: one table for every method of the API.
//!
//! The gate (`gate.rs`) looks a call up here before any handler sees it; a method that is not here is refused, and a
//! test compares the table with the contract. Rules about the resource in the request ([`Rule::UserByResource`]) are
//! completed by the handler, through the policy.

use wayleave_resource::{AdminVerb, Kind, RuleTarget};
use wayleave_vocab::SystemRole;

/// Who may call a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Anybody, within the limits for strangers.
    Anyone(Toll),
    /// A process with one of these system roles, for itself.
    Host(&'static [SystemRole]),
    /// A user who is logged in; what is answered is about himself or filtered by his roles.
    AnyUser,
    /// A user whose roles allow the verb on the target.
    User(RuleTarget, AdminVerb),
    /// A user whose roles allow what the handler asks of the policy for the resource in the request.
    UserByResource,
}

/// Which limit a call of a stranger counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toll {
    /// Tries a secret or costs work.
    Attempt,
    /// A question that costs little.
    Question,
}

/// Roles of the processes that join.
const ANY_HOST: &[SystemRole] = &[
    SystemRole::Proxy,
    SystemRole::Node,
    SystemRole::Kube,
    SystemRole::App,
    SystemRole::Db,
    SystemRole::WindowsDesktop,
    SystemRole::Discovery,
];
const PROXY: &[SystemRole] = &[SystemRole::Proxy];

/// Signing for another user is using the user authority.
pub(crate) const SIGN_USER: (RuleTarget, AdminVerb) = (RuleTarget::Kind(Kind::CertAuthority), AdminVerb::Use);
/// Kind of the audit log in rules.
pub(crate) const EVENT: RuleTarget = RuleTarget::Other("event");

/// The rule of every method, by its path.
pub(crate) const TABLE: &[(&str, Rule)] = &[
    ("/wayleave.auth.v1.Public/Ping", Rule::Anyone(Toll::Question)),
    ("/wayleave.auth.v1.Public/Join", Rule::Anyone(Toll::Attempt)),
    ("/wayleave.auth.v1.Public/Login", Rule::Anyone(Toll::Attempt)),
    ("/wayleave.auth.v1.Public/BeginInvite", Rule::Anyone(Toll::Attempt)),
    ("/wayleave.auth.v1.Public/AcceptInvite", Rule::Anyone(Toll::Attempt)),
    ("/wayleave.auth.v1.Host/Renew", Rule::Host(ANY_HOST)),
    ("/wayleave.auth.v1.Host/ExtendRoles", Rule::Host(ANY_HOST)),
    ("/wayleave.auth.v1.Host/Register", Rule::Host(ANY_HOST)),
    ("/wayleave.auth.v1.Host/EmitEvents", Rule::Host(ANY_HOST)),
    ("/wayleave.auth.v1.Host/BeginIncarnation", Rule::Host(PROXY)),
    ("/wayleave.auth.v1.Host/PublishRoutes", Rule::Host(PROXY)),
    ("/wayleave.auth.v1.Host/ReportStatus", Rule::Host(PROXY)),
    ("/wayleave.auth.v1.Host/WatchCluster", Rule::Host(ANY_HOST)),
    ("/wayleave.auth.v1.Host/Publish", Rule::Host(PROXY)),
    ("/wayleave.auth.v1.Host/Withdraw", Rule::Host(PROXY)),
    ("/wayleave.auth.v1.Host/BeginOpensshLogin", Rule::Host(PROXY)),
    ("/wayleave.auth.v1.Host/SignOpensshLogin", Rule::Host(PROXY)),
    ("/wayleave.auth.v1.Admin/GetStatus", Rule::AnyUser),
    ("/wayleave.auth.v1.Admin/GetResource", Rule::UserByResource),
    ("/wayleave.auth.v1.Admin/ListResources", Rule::UserByResource),
    ("/wayleave.auth.v1.Admin/CreateResource", Rule::UserByResource),
    ("/wayleave.auth.v1.Admin/UpsertResource", Rule::UserByResource),
    ("/wayleave.auth.v1.Admin/DeleteResource", Rule::UserByResource),
    ("/wayleave.auth.v1.Admin/WatchResources", Rule::UserByResource),
    ("/wayleave.auth.v1.Admin/CreateToken", Rule::User(RuleTarget::Kind(Kind::Token), AdminVerb::Create)),
    (
        "/wayleave.auth.v1.Admin/CreateOpensshToken",
        Rule::User(RuleTarget::Kind(Kind::Token), AdminVerb::Create),
    ),
    ("/wayleave.auth.v1.Admin/ForgetHostKey", Rule::User(RuleTarget::Kind(Kind::Node), AdminVerb::Delete)),
    ("/wayleave.auth.v1.Admin/CreateUser", Rule::User(RuleTarget::Kind(Kind::User), AdminVerb::Create)),
    ("/wayleave.auth.v1.Admin/ResetUser", Rule::User(RuleTarget::Kind(Kind::User), AdminVerb::Update)),
    ("/wayleave.auth.v1.Admin/SignUser", Rule::User(SIGN_USER.0, SIGN_USER.1)),
    (
        "/wayleave.auth.v1.Admin/RotateAuthority",
        Rule::User(RuleTarget::Kind(Kind::CertAuthority), AdminVerb::Update),
    ),
    ("/wayleave.auth.v1.Admin/Explain", Rule::AnyUser),
    ("/wayleave.auth.v1.Admin/SearchEvents", Rule::User(EVENT, AdminVerb::List)),
    ("/wayleave.auth.v1.Admin/ListNodes", Rule::AnyUser),
    ("/wayleave.auth.v1.Admin/GetOverview", Rule::User(RuleTarget::Kind(Kind::Proxy), AdminVerb::List)),
    ("/wayleave.auth.v1.Admin/ListRoutes", Rule::User(RuleTarget::Kind(Kind::Node), AdminVerb::List)),
];

/// The rule of a method, none if there is no such method.
pub(crate) fn rule(path: &str) -> Option<&'static Rule> {
    TABLE.iter().find(|(method, _)| *method == path).map(|(_, rule)| rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Every method of the contract, as paths.
    fn contract() -> BTreeSet<String> {
        let files = protox::compile(["auth.proto"], ["../../api/proto/proto"]).unwrap();
        let auth = files.file.iter().find(|file| file.package() == "wayleave.auth.v1").unwrap();
        let path = |service: &str, method: &str| format!("/wayleave.auth.v1.{service}/{method}");
        auth.service
            .iter()
            .flat_map(|service| service.method.iter().map(|method| path(service.name(), method.name())))
            .collect()
    }

    #[test]
    fn c_every_method_has_a_rule_and_every_rule_a_method() {
        let declared: BTreeSet<String> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(declared, contract());
        assert_eq!(declared.len(), TABLE.len(), "a method is declared twice");
    }

    #[test]
    fn c_only_the_public_service_is_for_anyone() {
        for (path, rule) in TABLE {
            let public = path.starts_with("/wayleave.auth.v1.Public/");
            assert_eq!(matches!(rule, Rule::Anyone(_)), public, "{path}");
        }
    }

    #[test]
    fn c_what_is_not_in_the_table_has_no_rule() {
        for path in ["", "/", "/wayleave.auth.v1.Admin/getstatus", "/wayleave.auth.v1.Admin/GetStatus/"] {
            assert_eq!(rule(path), None, "{path:?}");
        }
    }
}
