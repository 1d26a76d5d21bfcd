//! Builds policies, users and nodes from a few words.

use std::collections::BTreeSet;
use std::time::Duration;
use wayleave_identity::UserPrincipal;
use wayleave_policy::{Context, Denial, LockSet, NodeView, Permit, Policy, Settings};
use wayleave_resource::{Lock, Resource, Role};
use wayleave_vocab::{ClusterName, HostId, Labels, Login, NodeName, RoleName, Traits, UserName, Wall};

pub(crate) const NOW: Wall = Wall::from_secs(1_800_000_000);

/// A role from its spec in YAML flow style.
pub(crate) fn role(name: &str, spec: &str) -> Role {
    let text = format!("kind: role\nversion: v8\nmetadata: {{name: {name}}}\nspec: {spec}");
    match Resource::parse_yaml(&text).unwrap_or_else(|e| panic!("{e}\n{text}")).remove(0) {
        Resource::Role(role) => *role,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn lock(spec: &str) -> Lock {
    let text = format!("kind: lock\nversion: v2\nmetadata: {{name: l}}\nspec: {spec}");
    match Resource::parse_yaml(&text).unwrap_or_else(|e| panic!("{e}\n{text}")).remove(0) {
        Resource::Lock(lock) => lock,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn policy(roles: &[Role]) -> Policy {
    let policy = Policy::new(ClusterName::parse("demo").unwrap(), Settings::default(), roles);
    assert_eq!(policy.errors(), []);
    policy
}

/// A user with these roles, every login of the tests, and traits as `name=value,value`.
pub(crate) fn user(roles: &[&str], traits: &[&str]) -> UserPrincipal {
    UserPrincipal {
        name: UserName::parse("alice").unwrap(),
        cluster: ClusterName::parse("demo").unwrap(),
        roles: roles.iter().map(|name| RoleName::parse(*name).unwrap()).collect(),
        logins: logins(&["root", "ubuntu", "alice", "deploy", "dev-a"]),
        traits: self::traits(traits),
        local_admin: false,
        not_after: NOW.after(Duration::from_secs(3600)),
    }
}

pub(crate) fn logins(names: &[&str]) -> BTreeSet<Login> {
    names.iter().map(|name| Login::parse(*name).unwrap()).collect()
}

pub(crate) fn traits(pairs: &[&str]) -> Traits {
    let pair = |text: &str| {
        let (name, values) = text.split_once('=').unwrap();
        (name.to_owned(), values.split(',').filter(|v| !v.is_empty()).map(str::to_owned).collect())
    };
    pairs.iter().map(|text| pair(text)).collect()
}

/// A node with its parts owned.
pub(crate) struct TestNode {
    pub(crate) name: NodeName,
    pub(crate) host_id: HostId,
    pub(crate) labels: Labels,
}

impl TestNode {
    pub(crate) fn view(&self) -> NodeView<'_> {
        NodeView { name: &self.name, host_id: &self.host_id, labels: &self.labels }
    }
}

pub(crate) fn node(labels: &str) -> TestNode {
    TestNode {
        name: NodeName::parse("web-1").unwrap(),
        host_id: HostId::from_random([1; 16]),
        labels: labels.parse().unwrap(),
    }
}

pub(crate) fn ask(
    policy: &Policy,
    user: &UserPrincipal,
    login: &str,
    node: &TestNode,
) -> Result<Permit, Denial> {
    ask_with(policy, user, login, node, &LockSet::default())
}

pub(crate) fn ask_with(
    policy: &Policy,
    user: &UserPrincipal,
    login: &str,
    node: &TestNode,
    locks: &LockSet,
) -> Result<Permit, Denial> {
    let context = Context { locks, locks_age: Duration::ZERO };
    policy.decide_ssh(user, &node.view(), &Login::parse(login).unwrap(), &context, NOW)
}
