//! What a write of roles and users would change: who gains what, and who loses it. Nothing is written.

use crate::auth_core::AuthCore;
use crate::node_list::{Seen, explained};
use crate::request_error::RequestError;
use std::collections::{BTreeMap, BTreeSet};
use wayleave_api::auth::ExplainResponse;
use wayleave_identity::UserPrincipal;
use wayleave_policy::{Access, Comparison, NodeView, Policy, Subject, compare};
use wayleave_resource::{AdminVerb, Kind, Resource, Role, RuleTarget, User};
use wayleave_vocab::{RoleName, UserName};

/// Most users times nodes that are compared.
const PAIRS_MAX: usize = 200_000;
/// Most gains, and most losses, that are told.
const TOLD_MAX: usize = 1_000;

/// Users as they are, and as they would be.
type Users = BTreeMap<UserName, (User, User)>;

impl AuthCore {
    /// Who would gain and lose what if these roles and users were written. Locks are not considered.
    pub(crate) fn preview(
        &self,
        caller: &UserPrincipal,
        resources_json: &[String],
    ) -> Result<ExplainResponse, RequestError> {
        let (now, view) = (self.clock.wall(), self.mirror.policy());
        for (verb, kind) in
            [(AdminVerb::Read, Kind::User), (AdminVerb::Read, Kind::Role), (AdminVerb::List, Kind::Node)]
        {
            view.decide(caller, verb, &RuleTarget::Kind(kind), None, now)?;
        }
        let (roles, users) = self.planned(resources_json)?;
        let after =
            Policy::new(view.policy.cluster().clone(), view.policy.settings().clone(), roles.values());
        let seen = self.nodes();
        if users.len().saturating_mul(seen.len().max(1)) > PAIRS_MAX {
            return Err(RequestError::Invalid(format!(
                "{} users on {} nodes are too many to be compared at once",
                users.len(),
                seen.len()
            )));
        }
        let nodes: Vec<NodeView<'_>> = seen.iter().map(Seen::view).collect();
        let subjects = users.values().map(|(old, new)| (Subject::from(old), Subject::from(new)));
        let mut comparison = compare(&view.policy, &after, subjects, &nodes, now);
        let summary = told(&comparison);
        comparison.truncated |= comparison.gains.len().max(comparison.losses.len()) > TOLD_MAX;
        comparison.gains.truncate(TOLD_MAX);
        comparison.losses.truncate(TOLD_MAX);
        explained(true, &summary, &comparison)
    }

    /// All roles as they would be, and the users whom that may concern.
    fn planned(&self, resources_json: &[String]) -> Result<(BTreeMap<RoleName, Role>, Users), RequestError> {
        let (mut roles, mut users) = (self.stored_roles(), self.stored_users());
        let mut changed_roles = BTreeSet::new();
        let mut changed_users = BTreeSet::new();
        for json in resources_json {
            let resource =
                Resource::parse_json(json).map_err(|error| RequestError::Invalid(error.to_string()))?;
            self.check_writable(&resource)?;
            match resource {
                Resource::Role(role) => {
                    changed_roles.insert(role.name.clone());
                    roles.insert(role.name.clone(), *role);
                }
                Resource::User(user) => {
                    changed_users.insert(user.name.clone());
                    let before = users.remove(&user.name).map_or_else(|| nobody(&user), |(stored, _)| stored);
                    users.insert(user.name.clone(), (before, user));
                }
                other => {
                    let kind = other.kind();
                    return Err(RequestError::Invalid(format!(
                        "it cannot be told beforehand what a {kind} changes: only roles and users are compared"
                    )));
                }
            }
        }
        let holds = |user: &User| !user.spec.roles.is_disjoint(&changed_roles);
        users.retain(|name, (old, new)| changed_users.contains(name) || holds(old) || holds(new));
        Ok((roles, users))
    }

    fn stored_roles(&self) -> BTreeMap<RoleName, Role> {
        let role = |resource: &Resource| match resource {
            Resource::Role(role) => Some((role.name.clone(), Role::clone(role))),
            _ => None,
        };
        self.mirror.all(Kind::Role).iter().filter_map(|mirrored| role(&mirrored.resource)).collect()
    }

    fn stored_users(&self) -> Users {
        let user = |resource: &Resource| match resource {
            Resource::User(user) => Some((user.name.clone(), (user.clone(), user.clone()))),
            _ => None,
        };
        self.mirror.all(Kind::User).iter().filter_map(|mirrored| user(&mirrored.resource)).collect()
    }
}

/// Who does not exist yet may do nothing.
fn nobody(user: &User) -> User {
    let mut nobody = user.clone();
    nobody.spec.roles.clear();
    nobody
}

/// A line for each gain and loss, for people.
fn told(comparison: &Comparison) -> String {
    let mut text = String::new();
    for (mark, word, list) in [('+', "gained", &comparison.gains), ('-', "lost", &comparison.losses)] {
        let more = if comparison.truncated { " or more" } else { "" };
        text.push_str(&format!("{}{more} {word}\n", list.len()));
        for access in list.iter().take(TOLD_MAX) {
            text.push_str(&format!("{mark} {}\n", line(access)));
        }
    }
    text
}

fn line(access: &Access) -> String {
    match access {
        Access::Ssh { user, login, node } => format!("{user}: ssh {login}@{node}"),
        Access::Admin { user, verb, kind } => format!("{user}: {verb} {kind}"),
    }
}
