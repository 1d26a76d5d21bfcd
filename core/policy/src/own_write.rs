//! Nobody's own write widens what he may do (SECURITY E).
//!
//! Somebody who may write roles or users could write the roles that he holds, or his own user. These functions compare
//! the documents, not their effects on today's nodes, and are conservative: what is not plainly as narrow as before
//! counts as wider, and takes another administrator (or `way -c` on the Auth host).

use crate::options::MAX_DETACHED;
use wayleave_resource::{LabelSelector, Role, RoleConditions, RoleOptions, Rule, User};
use wayleave_vocab::Wall;

/// What makes a write wider, as a key of the document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this would widen what you may do yourself: {key}; another administrator can do it")]
pub struct Widening {
    /// The key, such as `spec.allow.logins`.
    pub key: &'static str,
}

/// A user writes his own user resource.
///
/// # Errors
/// When roles, traits or labels change (dropping a role drops its denials), or it lives longer.
pub fn widens_own_user(old: &User, new: &User) -> Result<(), Widening> {
    require("spec.roles", old.spec.roles == new.spec.roles)?;
    require("spec.traits", old.spec.traits == new.spec.traits)?;
    require("status", old.status == new.status)?;
    require("metadata.labels", old.metadata.labels == new.metadata.labels)?;
    require("metadata.expires", no_later(new.metadata.expires, old.metadata.expires))
}

/// A user writes a role that he holds.
///
/// # Errors
/// When the new role allows more, denies less, or is laxer in an option.
pub fn widens_own_role(old: &Role, new: &Role) -> Result<(), Widening> {
    require("metadata.labels", old.metadata.labels == new.metadata.labels)?;
    require("metadata.expires", no_later(new.metadata.expires, old.metadata.expires))?;
    options(&old.spec.options, &new.spec.options)?;
    allow(&old.spec.allow, &new.spec.allow)?;
    deny(&old.spec.deny, &new.spec.deny)
}

fn require(key: &'static str, holds: bool) -> Result<(), Widening> {
    if holds { Ok(()) } else { Err(Widening { key }) }
}

fn no_later(new: Option<Wall>, old: Option<Wall>) -> bool {
    no_more(new, old)
}

/// Absence is no limit.
fn no_more<T: Ord>(new: Option<T>, old: Option<T>) -> bool {
    match (new, old) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(new), Some(old)) => new <= old,
    }
}

fn options(old: &RoleOptions, new: &RoleOptions) -> Result<(), Widening> {
    let granted = |value: Option<bool>, default| value.unwrap_or(default);
    require("spec.options.max_session_ttl", no_more(new.max_session_ttl, old.max_session_ttl))?;
    require("spec.options.client_idle_timeout", no_more(new.client_idle_timeout, old.client_idle_timeout))?;
    require("spec.options.max_sessions", no_more(new.max_sessions, old.max_sessions))?;
    require("spec.options.max_connections", no_more(new.max_connections, old.max_connections))?;
    require(
        "spec.options.max_detached",
        // Absence gives the default where no other role says, and leaves it to the others where one does.
        no_more(new.max_detached, old.max_detached)
            && new.max_detached.unwrap_or(MAX_DETACHED) <= old.max_detached.unwrap_or(MAX_DETACHED),
    )?;
    require(
        "spec.options.forward_agent",
        granted(new.forward_agent, false) <= granted(old.forward_agent, false),
    )?;
    require(
        "spec.options.port_forwarding",
        granted(new.port_forwarding, true) <= granted(old.port_forwarding, true),
    )?;
    require(
        "spec.options.ssh_file_copy",
        granted(new.ssh_file_copy, true) <= granted(old.ssh_file_copy, true),
    )?;
    require(
        "spec.options.permit_x11_forwarding",
        granted(new.permit_x11_forwarding, false) <= granted(old.permit_x11_forwarding, false),
    )?;
    require(
        "spec.options.disconnect_expired_cert",
        granted(new.disconnect_expired_cert, false) >= granted(old.disconnect_expired_cert, false),
    )?;
    require("spec.options.lock", new.lock.unwrap_or_default() >= old.lock.unwrap_or_default())?;
    require("spec.options.record_session", new.record_session == old.record_session)
}

/// A selector and an expression of one section.
struct Selected<'a>(&'a LabelSelector, &'a Option<String>);

impl Selected<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty() && self.1.is_none()
    }

    /// Under `allow` both must match when both are set, so setting one more narrows, and leaving one out widens.
    fn allows_no_more_than(&self, old: &Self) -> bool {
        let labels = old.0.is_empty() || (!self.0.is_empty() && selects_no_more(self.0, old.0));
        self.is_empty() || (!old.is_empty() && (old.1.is_none() || old.1 == self.1) && labels)
    }

    /// Under `deny` labels and expression deny each by itself.
    fn denies_no_less_than(&self, old: &Self) -> bool {
        let labels = old.0.is_empty() || (!self.0.is_empty() && selects_no_more(old.0, self.0));
        (old.1.is_none() || old.1 == self.1) && labels
    }
}

fn nodes(conditions: &RoleConditions) -> Selected<'_> {
    Selected(&conditions.node_labels, &conditions.node_labels_expression)
}

fn apps(conditions: &RoleConditions) -> Selected<'_> {
    Selected(&conditions.app_labels, &conditions.app_labels_expression)
}

fn allow(old: &RoleConditions, new: &RoleConditions) -> Result<(), Widening> {
    require("spec.allow.logins", new.logins.iter().all(|login| old.logins.contains(login)))?;
    require("spec.allow.node_labels", nodes(new).allows_no_more_than(&nodes(old)))?;
    require("spec.allow.app_labels", apps(new).allows_no_more_than(&apps(old)))?;
    let within = |rule: &Rule| old.rules.iter().any(|old| rule_within(rule, old));
    require("spec.allow.rules", new.rules.iter().all(within))?;
    let kept = new.later.iter().all(|(key, value)| old.later.get(key) == Some(value));
    require("spec.allow (what is not served yet)", kept)
}

fn deny(old: &RoleConditions, new: &RoleConditions) -> Result<(), Widening> {
    require("spec.deny.logins", old.logins.iter().all(|login| new.logins.contains(login)))?;
    require("spec.deny.node_labels", nodes(new).denies_no_less_than(&nodes(old)))?;
    require("spec.deny.app_labels", apps(new).denies_no_less_than(&apps(old)))?;
    require("spec.deny.rules", old.rules.iter().all(|rule| new.rules.contains(rule)))
}

/// True if whatever matches `narrow` matches `broad`, as far as the texts show it.
fn selects_no_more(narrow: &LabelSelector, broad: &LabelSelector) -> bool {
    broad.iter().all(|(key, values)| {
        key == "*"
            || narrow.get(key).is_some_and(|narrow| {
                narrow.iter().all(|value| values.contains(value)) || values.iter().any(|value| value == "*")
            })
    })
}

/// True if the rule is about no more than the old one.
fn rule_within(rule: &Rule, old: &Rule) -> bool {
    let targets = rule.resources.iter().all(|target| old.resources.contains(target));
    let verbs = rule.verbs.iter().all(|verb| old.verbs.contains(verb));
    targets && verbs && (old.where_.is_none() || old.where_ == rule.where_)
}
