//! Explanations and dry-runs.

use crate::support::{NOW, TestNode, lock, node, policy, role, user};
use std::time::Duration;
use wayleave_identity::UserPrincipal;
use wayleave_policy::{
    Access, Context, DenialReason, Explanation, Finding, LockSet, Policy, RoleState, Section, Subject,
    compare, editor,
};
use wayleave_resource::{AdminVerb, Kind, RuleTarget};
use wayleave_vocab::Login;

fn explain(
    policy: &Policy,
    user: &UserPrincipal,
    login: &str,
    node: &TestNode,
    locks: &LockSet,
) -> Explanation {
    let context = Context { locks, locks_age: Duration::ZERO };
    policy.explain_ssh(user, &node.view(), &Login::parse(login).unwrap(), &context, NOW)
}

#[test]
fn every_role_is_named_with_what_matched_and_what_did_not() {
    let policy = policy(&[
        role("dev", "{allow: {logins: [root, '{{internal.logins}}'], node_labels: {env: [dev, 'x*']}}}"),
        role("prod", "{allow: {logins: [ubuntu], node_labels: {env: prod, tier: web}}}"),
        role("no", "{deny: {node_labels: {secret: '*'}, logins: ['r*']}}"),
    ]);
    let nothing = LockSet::default();
    let got =
        explain(&policy, &user(&["dev", "prod"], &["logins=ubuntu"]), "ubuntu", &node("env=xen"), &nothing);
    assert!(got.permitted);
    let by = got.decided_by.unwrap();
    assert_eq!(
        (by.role.as_str(), by.section, by.key.as_str()),
        ("dev", Section::Allow, "logins: {{internal.logins}}")
    );
    assert_eq!(got.summary, "permitted by role dev (logins: {{internal.logins}})");
    assert_eq!(got.roles[0].allow.as_ref().unwrap().node_labels, Finding::Matched("env=xen".into()));
    assert_eq!(
        got.roles[1].allow.as_ref().unwrap().node_labels,
        Finding::NotMatched("the node has env=xen".into())
    );
    assert_eq!(got.roles[1].deny.as_ref().unwrap().logins, Finding::NotSet);
    let got = explain(&policy, &user(&["dev", "no"], &[]), "root", &node("env=dev"), &nothing);
    assert!(!got.permitted);
    let by = got.decided_by.clone().unwrap();
    assert_eq!((by.role.as_str(), by.section, by.key.as_str()), ("no", Section::Deny, "logins: r*"));
    let json = serde_json::to_value(&got).unwrap();
    assert_eq!(json["denial"]["reason"], "denied_by_role");
    assert_eq!(json["roles"][1]["deny"]["node_labels"]["detail"], "the node has no label secret");
    let got = explain(&policy, &user(&["dev", "gone"], &[]), "root", &node("env=dev"), &nothing);
    assert_eq!((got.permitted, got.options), (false, None));
    assert_eq!(
        got.roles.iter().map(|role| role.state).collect::<Vec<_>>(),
        [RoleState::Considered, RoleState::Unknown]
    );
    let locks = LockSet::new(&[lock("{target: {login: root}}")]);
    let got = explain(&policy, &user(&["dev"], &[]), "root", &node("env=dev"), &locks);
    assert!(matches!(got.denial, Some(DenialReason::Locked { .. })), "{got:?}");
}

#[test]
fn somebody_who_is_not_here_is_asked_about_by_his_user() {
    let policy = policy(&[role("dev", "{allow: {logins: [root], node_labels: {env: dev}}}")]);
    let alice = user(&["dev"], &[]);
    let principal = policy.principal_of(Subject::from(&alice), NOW).unwrap();
    assert_eq!(principal.logins.len(), 1);
    assert!(explain(&policy, &principal, "root", &node("env=dev"), &LockSet::default()).permitted);
}

#[test]
fn rules_are_explained() {
    let policy = policy(&[
        editor(),
        role(
            "no",
            "{deny: {rules: [{resources: [role], verbs: [update], where: 'equals(resource.metadata.name, \"x\")'}]}}",
        ),
    ]);
    let locks = LockSet::default();
    let context = Context { locks: &locks, locks_age: Duration::ZERO };
    let target = RuleTarget::Kind(Kind::Role);
    let principal = user(&["editor", "no"], &[]);
    let got = policy.explain_resource(&principal, AdminVerb::Update, &target, None, &context, NOW);
    assert!(!got.permitted);
    assert_eq!(got.roles[1].rules[0].predicate, Finding::Unanswerable);
    assert_eq!(got.summary, "denied: alice to update role: role no denies it by rules");
}

#[test]
fn a_change_is_dry_run() {
    let before = policy(&[role("r", "{allow: {logins: [root], node_labels: {env: dev}}}")]);
    let after = policy(&[role(
        "r",
        "{allow: {logins: [root, ubuntu], node_labels: {env: prod}, rules: [{resources: [node], verbs: [list]}]}}",
    )]);
    let alice = user(&["r"], &[]);
    let (dev, prod) = (node("env=dev"), node("env=prod"));
    let subject = Subject::from(&alice);
    let got = compare(&before, &after, [(subject, subject)], &[dev.view(), prod.view()], NOW);
    let ssh = |login: &str| Access::Ssh {
        user: alice.name.clone(),
        login: Login::parse(login).unwrap(),
        node: prod.name.clone(),
    };
    // Both nodes have the same name here, so root's move from one to the other does not show.
    assert_eq!(
        got.gains,
        [ssh("ubuntu"), Access::Admin { user: alice.name.clone(), verb: AdminVerb::List, kind: Kind::Node }]
    );
    assert_eq!(got.losses, []);
    let reversed = compare(&after, &before, [(subject, subject)], &[dev.view(), prod.view()], NOW);
    assert_eq!((reversed.gains, reversed.losses), (got.losses, got.gains));
}
