//! What a decision costs. Prints only: the budget is checked by the benchmarks.

#![expect(clippy::print_stdout, reason = "the numbers are what these tests are for")]

use crate::support::{NOW, TestNode, node, policy, role, user};
use std::time::{Duration, Instant};
use wayleave_policy::{Context, LockSet, Policy};
use wayleave_resource::Role;
use wayleave_vocab::Login;

const ROUNDS: u32 = 2_000;

fn check(policy: &Policy, held: usize, node: &TestNode, allowed: bool) {
    let names: Vec<String> = (0..held).map(|n| format!("role-{:03}", n * (100 / held))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let alice = user(&names, &["logins=root", "team=shop"]);
    let locks = LockSet::default();
    let context = Context { locks: &locks, locks_age: Duration::ZERO };
    let login = Login::parse("root").unwrap();
    let begin = Instant::now();
    for _ in 0..ROUNDS {
        assert_eq!(policy.decide_ssh(&alice, &node.view(), &login, &context, NOW).is_ok(), allowed);
    }
    println!("{held} of 100 roles held, allowed {allowed}: {:?} per decision", begin.elapsed() / ROUNDS);
}

#[test]
fn a_decision_over_100_roles_and_10_labels_is_timed() {
    let roles: Vec<Role> = (0..100)
        .map(|n| {
            let spec = format!(
                "{{allow: {{logins: ['{{{{internal.logins}}}}'], node_labels: {{l{}: [v{n}, 'w*', '{{{{external.team}}}}'], m: '*'}}}}, deny: {{node_labels: {{l1: bad, l2: '^bad-[0-9]+$'}}}}}}",
                n % 9
            );
            role(&format!("role-{n:03}"), &spec)
        })
        .collect();
    let policy = policy(&roles);
    let labels = |value: &str| {
        format!("m=x,{}", (0..9).map(|n| format!("l{n}={value}")).collect::<Vec<_>>().join(","))
    };
    for held in [1, 10, 100] {
        check(&policy, held, &node(&labels("shop")), true);
        check(&policy, held, &node(&labels("other")), false);
    }
}

#[test]
fn a_list_of_10000_nodes_is_timed() {
    let names: Vec<String> = (0..10).map(|n| format!("role-{n:03}")).collect();
    let roles: Vec<Role> = names
        .iter()
        .map(|name| {
            let spec = "{allow: {logins: ['{{internal.logins}}'], node_labels: {l3: [a, 'w*']}}, deny: {node_labels: {l1: bad}}}";
            role(name, spec)
        })
        .collect();
    let policy = policy(&roles);
    let alice = user(&names.iter().map(String::as_str).collect::<Vec<_>>(), &["logins=root,ubuntu"]);
    let labels: Vec<String> = (0..10).map(|n| format!("l{n}=web")).collect();
    let node = node(&labels.join(","));
    let locks = LockSet::default();
    let context = Context { locks: &locks, locks_age: Duration::ZERO };
    let begin = Instant::now();
    let visible = policy.visible_nodes(&alice, (0..10_000).map(|n| (node.view(), n)), &context, NOW);
    println!("10 roles held: {:?} per node listed", begin.elapsed() / 10_000);
    assert_eq!(visible.len(), 10_000);
}
