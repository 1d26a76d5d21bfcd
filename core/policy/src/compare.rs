//! A change of roles, dry-run: who gains, who loses.

use crate::expression::Scope;
use crate::policy::{NodeView, Policy, check_node_and_login};
use crate::subject::Subject;
use serde::Serialize;
use std::collections::BTreeSet;
use wayleave_resource::{AdminVerb, Kind, RuleTarget};
use wayleave_vocab::{Login, NodeName, UserName, Wall};

/// Most gains, and most losses, that are listed.
pub const COMPARISON_MAX: usize = 10_000;

/// Something that somebody may do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Access {
    /// Enter a node.
    Ssh {
        /// Who.
        user: UserName,
        /// As whom.
        login: Login,
        /// Where.
        node: NodeName,
    },
    /// Do something with every resource of a kind.
    Admin {
        /// Who.
        user: UserName,
        /// What.
        verb: AdminVerb,
        /// With which kind.
        kind: Kind,
    },
}

/// What a change does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Possible after, not before.
    pub gains: Vec<Access>,
    /// Possible before, not after.
    pub losses: Vec<Access>,
    /// True when there are more than [`COMPARISON_MAX`] of either.
    pub truncated: bool,
}

/// Compares two policies for each user (before, after) on each node. Locks are not considered, and of the admin rules
/// only what holds for every resource of a kind, whatever its name and labels.
pub fn compare<'a>(
    before: &Policy,
    after: &Policy,
    users: impl IntoIterator<Item = (Subject<'a>, Subject<'a>)>,
    nodes: &[NodeView<'_>],
    now: Wall,
) -> Comparison {
    let mut comparison = Comparison::default();
    for (old, new) in users {
        let (old_access, new_access) = (access(before, old, nodes, now), access(after, new, nodes, now));
        note(&mut comparison.gains, new_access.difference(&old_access), &mut comparison.truncated);
        note(&mut comparison.losses, old_access.difference(&new_access), &mut comparison.truncated);
        if comparison.truncated {
            return comparison;
        }
    }
    comparison
}

fn note<'a>(list: &mut Vec<Access>, found: impl Iterator<Item = &'a Access>, truncated: &mut bool) {
    for access in found {
        if list.len() >= COMPARISON_MAX {
            *truncated = true;
            return;
        }
        list.push(access.clone());
    }
}

/// Everything that one user may do.
fn access(policy: &Policy, subject: Subject<'_>, nodes: &[NodeView<'_>], now: Wall) -> BTreeSet<Access> {
    let mut found = BTreeSet::new();
    let (Ok(roles), Ok(logins)) = (policy.roles_of(subject, now), policy.allowed_logins(subject, now)) else {
        return found;
    };
    for node in nodes {
        let scope = Scope::of_node(subject, node.labels);
        for login in logins.iter().filter(|login| check_node_and_login(&roles, login, &scope).is_ok()) {
            found.insert(Access::Ssh {
                user: subject.name.clone(),
                login: login.clone(),
                node: node.name.clone(),
            });
        }
    }
    for kind in Kind::ALL {
        for verb in policy.verbs_on(subject, RuleTarget::Kind(kind), now) {
            found.insert(Access::Admin { user: subject.name.clone(), verb, kind });
        }
    }
    found
}
