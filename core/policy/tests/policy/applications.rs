//! Who may connect to TCP applications.

use crate::support::{NOW, lock, node, policy, role, user};
use std::time::Duration;
use wayleave_policy::{Context, DenialReason, DenyKey, LockSet, access, editor, widens_own_role};
use wayleave_resource::{Lock, Role};

fn ask(roles: &[Role], labels: &str, locks: &[Lock]) -> Result<(), DenialReason> {
    let policy = policy(roles);
    let names: Vec<String> = roles.iter().map(|role| role.name.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let set = LockSet::new(locks);
    let context = Context { locks: &set, locks_age: Duration::ZERO };
    let app = node(labels);
    policy
        .decide_app(&user(&names, &["team=shop"]), &app.view(), &context, NOW)
        .map(|permit| assert_eq!(permit.app().as_str(), "web-1"))
        .map_err(|denial| denial.reason)
}

fn check(spec: &str, labels: &str, expected: bool) {
    let got = ask(&[role("r", spec)], labels, &[]);
    assert_eq!(got.is_ok(), expected, "{spec} {labels}: {got:?}");
}

#[test]
fn labels_of_applications_are_asked_and_nothing_else() {
    check("{allow: {app_labels: {env: dev}}}", "env=dev", true);
    check("{allow: {app_labels: {env: dev}}}", "env=prod", false);
    check("{allow: {app_labels: {'*': '*'}}}", "", true);
    check("{allow: {app_labels: {team: '{{external.team}}'}}}", "team=shop", true);
    check("{allow: {app_labels_expression: 'labels[\"t\"] == \"x\"'}}", "t=x", true);
    check("{allow: {app_labels: {a: b}, app_labels_expression: 'labels[\"t\"] == \"x\"'}}", "t=x", false);
    // Nodes are other things.
    check("{allow: {logins: [root], node_labels: {'*': '*'}}}", "env=dev", false);
    check("{allow: {app_labels: {'*': '*'}}, deny: {node_labels: {env: dev}}}", "env=dev", true);
    assert_eq!(ask(&[access()], "env=dev", &[]), Ok(()));
    assert_eq!(ask(&[editor()], "env=dev", &[]), Err(DenialReason::NoRoleAllowsApp));
}

#[test]
fn deny_and_locks_win() {
    let deny =
        role("no", "{deny: {app_labels: {env: prod}, app_labels_expression: 'labels[\"t\"] == \"x\"'}}");
    let denied = |key| Err(DenialReason::DeniedByRole { role: deny.name.clone(), key });
    let ask = |labels, locks: &[Lock]| ask(&[access(), deny.clone()], labels, locks);
    assert_eq!(ask("env=dev", &[]), Ok(()));
    assert_eq!(ask("env=prod", &[]), denied(DenyKey::AppLabels));
    assert_eq!(ask("t=x", &[]), denied(DenyKey::AppLabelsExpression));
    let host = "{target: {server_id: 01010101-0101-4101-8101-010101010101}}";
    for spec in ["{target: {user: alice}}", "{target: {role: access}}", host] {
        assert!(matches!(ask("env=dev", &[lock(spec)]), Err(DenialReason::Locked { .. })), "{spec}");
    }
}

#[test]
fn e_nobody_gives_himself_applications() {
    let one = role("r", "{allow: {app_labels: {env: dev}}, deny: {app_labels: {a: b}}}");
    let widens = |spec: &str| widens_own_role(&one, &role("r", spec)).is_err();
    assert!(!widens("{allow: {app_labels: {env: dev, x: y}}, deny: {app_labels: {a: b}}}"));
    assert!(!widens("{allow: {}, deny: {app_labels: {a: b}}}"));
    assert!(widens("{allow: {app_labels: {'*': '*'}}, deny: {app_labels: {a: b}}}"));
    assert!(widens("{allow: {app_labels: {env: dev}}}"));
    assert!(widens("{allow: {app_labels_expression: 'labels[\"t\"] == \"x\"'}, deny: {app_labels: {a: b}}}"));
}
