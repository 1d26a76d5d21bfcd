//! How a decision came about: every role that was considered, what matched and what did not, and what decided.
//!
//! The verdict is always that of the decision itself; the trace says why, and is never consulted for it.

use crate::denial::{Denial, DenialReason, DenyKey};
use crate::expression::{Expression, Scope};
use crate::options::SessionOptions;
use crate::policy::{AdminQuestion, Context, NodeView, Policy, ResourceView, check_rules};
use crate::role::{CompiledRole, CompiledRule, Conditions, KeyMatcher};
use crate::subject::Subject;
use serde::Serialize;
use std::collections::BTreeSet;
use wayleave_identity::UserPrincipal;
use wayleave_resource::{AdminVerb, RuleTarget};
use wayleave_vocab::{Labels, Login, NodeName, RoleName, UserName, Wall};

/// The trace of one SSH decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Who.
    pub user: UserName,
    /// As whom.
    pub login: Login,
    /// Where.
    pub node: NodeName,
    /// The verdict.
    pub permitted: bool,
    /// Why not, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denial: Option<DenialReason>,
    /// One sentence for people.
    pub summary: String,
    /// The role and key that decided, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<DecidedBy>,
    /// Every role of the user, in order of name.
    pub roles: Vec<RoleTrace>,
    /// The merged options of the session; absent when a role is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<SessionOptions>,
}

/// What decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DecidedBy {
    /// The role.
    pub role: RoleName,
    /// Where in it.
    pub section: Section,
    /// The key, such as `node_labels`, or the entry of `logins`.
    pub key: String,
}

/// `allow` or `deny`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// `spec.allow`.
    Allow,
    /// `spec.deny`.
    Deny,
}

/// What one role says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoleTrace {
    /// The role.
    pub role: RoleName,
    /// Whether it could be considered.
    pub state: RoleState,
    /// What its denials say; absent unless considered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny: Option<SectionTrace>,
    /// What its allowances say; absent unless considered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<SectionTrace>,
}

/// Whether a role could be considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleState {
    /// It was.
    Considered,
    /// It does not exist, or has expired.
    Unknown,
    /// It does not compile here.
    Broken,
}

/// What one section of a role says about a node and a login.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SectionTrace {
    /// `node_labels`.
    pub node_labels: Finding,
    /// `node_labels_expression`.
    pub node_labels_expression: Finding,
    /// `logins`.
    pub logins: Finding,
}

/// What one key says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", content = "detail", rename_all = "snake_case")]
pub enum Finding {
    /// The role does not have the key.
    NotSet,
    /// It matches, by this.
    Matched(String),
    /// It does not match, because of this.
    NotMatched(String),
    /// It cannot be answered: under `deny` that denies, under `allow` it does not allow.
    Unanswerable,
}

/// The trace of one decision of the admin API.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdminExplanation {
    /// Who.
    pub user: UserName,
    /// What.
    pub verb: AdminVerb,
    /// With which kind.
    pub kind: &'static str,
    /// The verdict.
    pub permitted: bool,
    /// Why not, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denial: Option<DenialReason>,
    /// One sentence for people.
    pub summary: String,
    /// Every role of the user with a rule about the question.
    pub roles: Vec<AdminRoleTrace>,
}

/// The rules of one role about a question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdminRoleTrace {
    /// The role.
    pub role: RoleName,
    /// Its rules.
    pub rules: Vec<RuleTrace>,
}

/// One rule about a question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleTrace {
    /// Where it stands.
    pub section: Section,
    /// Its place there, from 0.
    pub index: usize,
    /// What its `where` says.
    pub predicate: Finding,
}

impl Policy {
    /// A principal as the user's next certificate would state it, to ask about somebody who is not here.
    ///
    /// # Errors
    /// When a role of the user does not exist or is broken.
    pub fn principal_of(&self, subject: Subject<'_>, now: Wall) -> Result<UserPrincipal, Denial> {
        Ok(UserPrincipal {
            name: subject.name.clone(),
            cluster: self.cluster().clone(),
            roles: subject.roles.clone(),
            logins: self.allowed_logins(subject, now)?,
            traits: subject.traits.clone(),
            local_admin: false,
            not_after: now.after(self.settings().default_session_ttl.0),
        })
    }

    /// How [`Policy::decide_ssh`] decides, and why.
    pub fn explain_ssh(
        &self,
        principal: &UserPrincipal,
        node: &NodeView<'_>,
        login: &Login,
        context: &Context<'_>,
        now: Wall,
    ) -> Explanation {
        let verdict = self.decide_ssh(principal, node, login, context, now);
        let held = self.held(principal, now);
        let subject = Subject { roles: &held, ..Subject::from(principal) };
        let scope = Scope::of_node(subject, node.labels);
        let roles: Vec<RoleTrace> =
            subject.roles.iter().map(|name| self.trace_role(name, login, &scope, now)).collect();
        let decided_by = match &verdict {
            Ok(_) => self.allowing(subject, login, &scope, now),
            Err(denial) => denying(denial, &scope, login, &self.roles_of(subject, now).unwrap_or_default()),
        };
        let summary = match (&verdict, &decided_by) {
            (Ok(_), Some(by)) => format!("permitted by role {} ({})", by.role, by.key),
            (Ok(_), None) => "permitted".to_owned(),
            (Err(denial), _) => denial.to_string(),
        };
        Explanation {
            user: principal.name.clone(),
            login: login.clone(),
            node: node.name.clone(),
            permitted: verdict.is_ok(),
            denial: verdict.err().map(|denial| denial.reason),
            summary,
            decided_by,
            roles,
            options: self.session_options(subject, now).ok(),
        }
    }

    /// How [`Policy::decide_resource`] decides, and why.
    #[expect(clippy::too_many_arguments, reason = "a question, its circumstances and the time")]
    pub fn explain_resource(
        &self,
        principal: &UserPrincipal,
        verb: AdminVerb,
        target: &RuleTarget,
        resource: Option<ResourceView<'_>>,
        context: &Context<'_>,
        now: Wall,
    ) -> AdminExplanation {
        let verdict = self.decide_resource(principal, verb, target, resource, context, now);
        let held = self.held(principal, now);
        let subject = Subject { roles: &held, ..Subject::from(principal) };
        let scope = Scope {
            subject,
            labels: resource.map(|resource| resource.labels),
            resource_name: resource.map(|resource| resource.name.as_str()),
            resource_kind: Some(target.as_str()),
        };
        let trace = |section, rules: &[CompiledRule]| -> Vec<RuleTrace> {
            let about = rules.iter().enumerate().filter(|(_, rule)| rule.is_about(verb, target));
            about
                .map(|(index, rule)| {
                    let predicate = rule.predicate.as_ref().map_or(Finding::NotSet, |p| find(p, &scope));
                    RuleTrace { section, index, predicate }
                })
                .collect()
        };
        let roles = self.roles_of(subject, now).unwrap_or_default();
        let roles = roles
            .into_iter()
            .map(|role| AdminRoleTrace {
                role: role.name.clone(),
                rules: [trace(Section::Deny, &role.deny.rules), trace(Section::Allow, &role.allow.rules)]
                    .concat(),
            })
            .filter(|trace| !trace.rules.is_empty())
            .collect();
        let summary = match &verdict {
            Ok(_) if principal.local_admin => "permitted to the administrator of the Auth host".to_owned(),
            Ok(_) => "permitted".to_owned(),
            Err(denial) => denial.to_string(),
        };
        AdminExplanation {
            user: principal.name.clone(),
            verb,
            kind: target.as_str(),
            permitted: verdict.is_ok(),
            denial: verdict.err().map(|denial| denial.reason),
            summary,
            roles,
        }
    }

    fn trace_role(&self, name: &RoleName, login: &Login, scope: &Scope<'_>, now: Wall) -> RoleTrace {
        let only = BTreeSet::from([name.clone()]);
        let found = self.roles_of(Subject { roles: &only, ..scope.subject }, now);
        let state = match &found {
            Ok(_) => RoleState::Considered,
            Err(DenialReason::BrokenRole { .. }) => RoleState::Broken,
            Err(_) => RoleState::Unknown,
        };
        let role = found.ok().and_then(|roles| roles.first().copied());
        RoleTrace {
            role: name.clone(),
            state,
            deny: role.map(|role| trace_section(&role.deny, login, scope)),
            allow: role.map(|role| trace_section(&role.allow, login, scope)),
        }
    }

    fn allowing(
        &self,
        subject: Subject<'_>,
        login: &Login,
        scope: &Scope<'_>,
        now: Wall,
    ) -> Option<DecidedBy> {
        self.roles_of(subject, now).ok()?.into_iter().find_map(|role| {
            let entry = role.allow.login_entry(login.as_str(), scope)?;
            role.allow.allows_node(scope).then(|| DecidedBy {
                role: role.name.clone(),
                section: Section::Allow,
                key: format!("logins: {}", entry.text),
            })
        })
    }

    /// The verbs that the user may use on every resource of the kind, whatever it is called.
    pub(crate) fn verbs_on(&self, subject: Subject<'_>, target: RuleTarget, now: Wall) -> Vec<AdminVerb> {
        let Ok(roles) = self.roles_of(subject, now) else { return Vec::new() };
        let may = |verb: &AdminVerb| {
            check_rules(&roles, &AdminQuestion { verb: *verb, target, resource: None }, subject).is_ok()
        };
        AdminVerb::ALL.into_iter().filter(|verb| *verb != AdminVerb::Any).filter(may).collect()
    }
}

fn denying(denial: &Denial, scope: &Scope<'_>, login: &Login, roles: &[&CompiledRole]) -> Option<DecidedBy> {
    let DenialReason::DeniedByRole { role: name, key } = &denial.reason else { return None };
    let entry = roles
        .iter()
        .find(|role| role.name == *name && *key == DenyKey::Logins)
        .and_then(|role| role.deny.login_entry(login.as_str(), scope));
    let key = match entry {
        Some(entry) => format!("logins: {}", entry.text),
        None => key.as_str().to_owned(),
    };
    Some(DecidedBy { role: name.clone(), section: Section::Deny, key })
}

fn trace_section(conditions: &Conditions, login: &Login, scope: &Scope<'_>) -> SectionTrace {
    let logins = match conditions.login_entry(login.as_str(), scope) {
        Some(entry) => Finding::Matched(entry.text.to_string()),
        None if conditions.logins.is_empty() => Finding::NotSet,
        None => {
            let texts: Vec<&str> = conditions.logins.iter().map(|entry| &*entry.text).collect();
            Finding::NotMatched(texts.join(", "))
        }
    };
    SectionTrace {
        node_labels: trace_labels(conditions, scope),
        node_labels_expression: conditions.expression.as_ref().map_or(Finding::NotSet, |e| find(e, scope)),
        logins,
    }
}

fn trace_labels(conditions: &Conditions, scope: &Scope<'_>) -> Finding {
    let nothing = Labels::default();
    let labels = scope.labels.unwrap_or(&nothing);
    if conditions.labels.is_empty() {
        return Finding::NotSet;
    }
    let mut matched = Vec::new();
    for key in &conditions.labels {
        let name = match key {
            KeyMatcher::Every => {
                matched.push("every node".to_owned());
                continue;
            }
            KeyMatcher::Key { key, .. } => key,
        };
        match labels.get(name) {
            None => return Finding::NotMatched(format!("the node has no label {name}")),
            Some(value) if key.matches(labels, scope) => matched.push(format!("{name}={value}")),
            Some(value) => return Finding::NotMatched(format!("the node has {name}={value}")),
        }
    }
    Finding::Matched(matched.join(", "))
}

fn find(expression: &Expression, scope: &Scope<'_>) -> Finding {
    match expression.holds(scope) {
        Ok(true) => Finding::Matched("the expression holds".to_owned()),
        Ok(false) => Finding::NotMatched("the expression does not hold".to_owned()),
        Err(_) => Finding::Unanswerable,
    }
}
