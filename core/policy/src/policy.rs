//! Decisions. Deny wins, nothing is allowed by default, what is not known is refused.

use crate::denial::{Denial, DenialReason, DenyKey};
use crate::expression::Scope;
use crate::lock::{LOCKS_STALE_AFTER, LockSet};
use crate::options::{SessionOptions, Settings};
use crate::permit::{AdminPermit, AppPermit, Permit};
use crate::role::{CompiledRole, LoginMatcher, RoleError};
use crate::subject::Subject;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wayleave_identity::UserPrincipal;
use wayleave_resource::{AdminVerb, Kind, Role, RuleTarget};
use wayleave_vocab::{
    ClusterName, HostId, Labels, Login, NodeName, ResourceName, RoleName, Ttl, UserName, Wall,
};

/// Most logins in one certificate; the rest, in order of the alphabet, is left out.
pub const LOGINS_MAX: usize = 256;

/// The roles and settings of one cluster, compiled.
#[derive(Debug, Clone)]
pub struct Policy {
    cluster: ClusterName,
    settings: Settings,
    /// Sorted by name.
    roles: Vec<Entry>,
    errors: Vec<RoleError>,
    /// Roles that users no longer hold until then, whatever their certificates say.
    withdrawn: BTreeMap<UserName, BTreeMap<RoleName, Wall>>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: RoleName,
    /// Absent: the role does not compile, and whoever holds it is refused.
    role: Option<Box<CompiledRole>>,
}

/// A node as decisions see it.
#[derive(Debug, Clone, Copy)]
pub struct NodeView<'a> {
    /// What people call it.
    pub name: &'a NodeName,
    /// Its id.
    pub host_id: &'a HostId,
    /// Static labels and those of commands.
    pub labels: &'a Labels,
}

/// A resource as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct ResourceView<'a> {
    /// Its name.
    pub name: &'a ResourceName,
    /// Its labels.
    pub labels: &'a Labels,
}

/// A question of the admin API.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdminQuestion<'a> {
    pub(crate) verb: AdminVerb,
    pub(crate) target: RuleTarget,
    pub(crate) resource: Option<ResourceView<'a>>,
}

/// The circumstances of a question.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The locks that are known.
    pub locks: &'a LockSet,
    /// How long ago Auth last confirmed that these are the locks. Zero at Auth itself.
    pub locks_age: Duration,
}

impl Policy {
    /// Compiles the roles. A role that does not compile is kept as broken: whoever holds it is refused, because what it
    /// denies is not known. See [`Policy::errors`].
    pub fn new<'r>(
        cluster: ClusterName,
        settings: Settings,
        roles: impl IntoIterator<Item = &'r Role>,
    ) -> Self {
        let mut errors = Vec::new();
        let mut compiled: Vec<Entry> = roles
            .into_iter()
            .map(|role| Entry {
                name: role.name.clone(),
                role: CompiledRole::compile(role).map_err(|found| errors.extend(found)).ok().map(Box::new),
            })
            .collect();
        compiled.sort_by(|a, b| a.name.cmp(&b.name));
        compiled.dedup_by(|a, b| {
            // Two roles of one name: which one is meant is not known.
            let same = a.name == b.name;
            if same {
                b.role = None;
            }
            same
        });
        Self { cluster, settings, roles: compiled, errors, withdrawn: BTreeMap::new() }
    }

    /// The same with roles that exist and cannot be read here, such as those of a newer version: whoever holds one is
    /// refused.
    #[must_use]
    pub fn with_broken_roles(mut self, names: impl IntoIterator<Item = RoleName>) -> Self {
        for name in names {
            match self.roles.binary_search_by(|entry| entry.name.cmp(&name)) {
                Ok(index) => {
                    if let Some(entry) = self.roles.get_mut(index) {
                        entry.role = None;
                    }
                }
                Err(index) => self.roles.insert(index, Entry { name, role: None }),
            }
        }
        self
    }

    /// The same with roles that were taken from users, each until no certificate with it is valid: in decisions about
    /// such a user, the role is not among those held.
    #[must_use]
    pub fn with_withdrawn_roles(
        mut self,
        withdrawn: impl IntoIterator<Item = (UserName, RoleName, Wall)>,
    ) -> Self {
        for (user, role, until) in withdrawn {
            let ends = self.withdrawn.entry(user).or_default().entry(role).or_insert(until);
            *ends = until.max(*ends);
        }
        self
    }

    /// The roles that a principal still holds.
    pub(crate) fn held<'p>(&self, principal: &'p UserPrincipal, now: Wall) -> Cow<'p, BTreeSet<RoleName>> {
        let Some(withdrawn) = self.withdrawn.get(&principal.name) else {
            return Cow::Borrowed(&principal.roles);
        };
        let is_held = |role: &&RoleName| withdrawn.get(*role).is_none_or(|until| *until <= now);
        Cow::Owned(principal.roles.iter().filter(is_held).cloned().collect())
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What is wrong with the roles that do not compile.
    pub fn errors(&self) -> &[RoleError] {
        &self.errors
    }

    /// The names of all roles, broken ones included.
    pub fn role_names(&self) -> impl Iterator<Item = &RoleName> {
        self.roles.iter().map(|entry| &entry.name)
    }

    /// May this user enter this node as this login?
    ///
    /// # Errors
    /// The first reason found, in the order of [`DenialReason`].
    pub fn decide_ssh(
        &self,
        principal: &UserPrincipal,
        node: &NodeView<'_>,
        login: &Login,
        context: &Context<'_>,
        now: Wall,
    ) -> Result<Permit, Denial> {
        let deny = |reason| Denial::new(reason, format!("{} as {login} on {}", principal.name, node.name));
        self.check_certificate(principal, now).map_err(deny)?;
        let held = self.held(principal, now);
        let subject = Subject { roles: &held, ..Subject::from(principal) };
        let roles = self.roles_of(subject, now).map_err(deny)?;
        let options = SessionOptions::merge(roles.iter().map(|role| &role.options), &self.settings);
        if let Some(lock) = context.locks.on_session(subject, node.host_id, login, now) {
            return Err(deny(DenialReason::Locked { lock }));
        }
        check_staleness(&options, context).map_err(deny)?;
        let scope = Scope::of_node(subject, node.labels);
        check_node_and_login(&roles, login, &scope).map_err(deny)?;
        if !principal.logins.contains(login) {
            return Err(deny(DenialReason::LoginNotInCertificate));
        }
        Ok(Permit::new(principal, node, login, options))
    }

    /// May this user connect to this TCP application?
    ///
    /// # Errors
    /// The first reason found, in the order of [`DenialReason`].
    pub fn decide_app(
        &self,
        principal: &UserPrincipal,
        app: &NodeView<'_>,
        context: &Context<'_>,
        now: Wall,
    ) -> Result<AppPermit, Denial> {
        let deny = |reason| Denial::new(reason, format!("{} to application {}", principal.name, app.name));
        self.check_certificate(principal, now).map_err(deny)?;
        let held = self.held(principal, now);
        let subject = Subject { roles: &held, ..Subject::from(principal) };
        let roles = self.roles_of(subject, now).map_err(deny)?;
        let options = SessionOptions::merge(roles.iter().map(|role| &role.options), &self.settings);
        if let Some(lock) =
            context.locks.on_subject(subject, now).or_else(|| context.locks.on_host(app.host_id, now))
        {
            return Err(deny(DenialReason::Locked { lock }));
        }
        check_staleness(&options, context).map_err(deny)?;
        let scope = Scope::of_node(subject, app.labels);
        for role in &roles {
            if let Some(key) = role.deny.apps.deny(&scope) {
                return Err(deny(DenialReason::DeniedByRole { role: role.name.clone(), key }));
            }
        }
        if !roles.iter().any(|role| role.allow.apps.allow(&scope)) {
            return Err(deny(DenialReason::NoRoleAllowsApp));
        }
        let user = principal.name.clone();
        Ok(AppPermit { user, app: app.name.clone(), options, certificate_ends: principal.not_after })
    }

    /// May this user do this with this kind of resource, or with this resource, through the admin API?
    ///
    /// Lists are asked resource by resource: with `resource` absent, a predicate about a resource does not allow, and
    /// one under `deny` denies. The local administrator of the Auth host may do everything, also when locked out.
    ///
    /// # Errors
    /// The first reason found.
    #[expect(clippy::too_many_arguments, reason = "a question, its circumstances and the time")]
    pub fn decide_resource(
        &self,
        principal: &UserPrincipal,
        verb: AdminVerb,
        target: &RuleTarget,
        resource: Option<ResourceView<'_>>,
        context: &Context<'_>,
        now: Wall,
    ) -> Result<AdminPermit, Denial> {
        let kind = target.as_str();
        let deny = |reason| Denial::new(reason, format!("{} to {verb} {kind}", principal.name));
        self.check_certificate(principal, now).map_err(deny)?;
        let permit = || AdminPermit {
            user: principal.name.clone(),
            verb,
            kind,
            resource: resource.map(|resource| resource.name.clone()),
        };
        if principal.local_admin {
            return Ok(permit());
        }
        let held = self.held(principal, now);
        let subject = Subject { roles: &held, ..Subject::from(principal) };
        let roles = self.roles_of(subject, now).map_err(deny)?;
        if let Some(lock) = context.locks.on_subject(subject, now) {
            return Err(deny(DenialReason::Locked { lock }));
        }
        let options = SessionOptions::merge(roles.iter().map(|role| &role.options), &self.settings);
        check_staleness(&options, context).map_err(deny)?;
        let question = AdminQuestion { verb, target: *target, resource };
        check_rules(&roles, &question, subject).map_err(deny)?;
        Ok(permit())
    }

    /// The nodes, of those given, that the user may know of: where some login of the certificate is allowed, and where
    /// a role allows the node's labels and a rule allows to list nodes.
    pub fn visible_nodes<'n, T>(
        &self,
        principal: &UserPrincipal,
        nodes: impl IntoIterator<Item = (NodeView<'n>, T)>,
        context: &Context<'_>,
        now: Wall,
    ) -> Vec<T> {
        let held = self.held(principal, now);
        let subject = Subject { roles: &held, ..Subject::from(principal) };
        let Ok(roles) = self.roles_of(subject, now) else { return Vec::new() };
        if self.check_certificate(principal, now).is_err() || context.locks.on_subject(subject, now).is_some()
        {
            return Vec::new();
        }
        // Whatever does not depend on the node is found once.
        let by_user = Scope::of_user(subject);
        let denied =
            |login: &Login| roles.iter().any(|role| role.deny.login_matches(login.as_str(), &by_user));
        let logins: Vec<&Login> = principal.logins.iter().filter(|login| !denied(login)).collect();
        let enters = |role: &CompiledRole| {
            logins.iter().any(|login| role.allow.login_matches(login.as_str(), &by_user))
        };
        let entering: Vec<&CompiledRole> = roles.iter().copied().filter(|role| enters(role)).collect();
        let target = RuleTarget::Kind(Kind::Node);
        let lists =
            roles.iter().flat_map(|r| &r.allow.rules).any(|rule| rule.is_about(AdminVerb::List, &target));
        let mut visible = Vec::new();
        for (node, value) in nodes {
            let scope = Scope::of_node(subject, node.labels);
            let by_login = || entering.iter().any(|role| role.allow.allows_node(&scope));
            let by_rule = || lists && may_list(&roles, &node, &scope);
            if (by_login() || by_rule()) && node_denial(&roles, &scope).is_none() {
                visible.push(value);
            }
        }
        visible
    }

    /// The logins that a certificate for this user names: what his roles allow on any node, without what they deny.
    ///
    /// # Errors
    /// When a role does not exist or is broken.
    pub fn allowed_logins(&self, subject: Subject<'_>, now: Wall) -> Result<BTreeSet<Login>, Denial> {
        let roles = self
            .roles_of(subject, now)
            .map_err(|reason| Denial::new(reason, format!("logins of {}", subject.name)))?;
        let scope = Scope::of_user(subject);
        let mut logins = BTreeSet::new();
        for entry in roles.iter().flat_map(|role| &role.allow.logins) {
            if let LoginMatcher::Template(template) = &entry.matcher {
                logins.extend(template.expand(&scope).into_iter().filter_map(|text| Login::parse(text).ok()));
            }
        }
        logins.retain(|login| !roles.iter().any(|role| role.deny.login_matches(login.as_str(), &scope)));
        Ok(logins.into_iter().take(LOGINS_MAX).collect())
    }

    /// Options merged over the user's roles and the cluster's settings.
    ///
    /// # Errors
    /// When a role does not exist or is broken.
    pub fn session_options(&self, subject: Subject<'_>, now: Wall) -> Result<SessionOptions, Denial> {
        let roles = self
            .roles_of(subject, now)
            .map_err(|reason| Denial::new(reason, format!("options of {}", subject.name)))?;
        Ok(SessionOptions::merge(roles.iter().map(|role| &role.options), &self.settings))
    }

    /// How long a stream of this user waits for its client after the connection under it was lost; zero is not at all.
    ///
    /// # Errors
    /// The first reason found why the user may have no such stream now.
    pub fn max_detached(
        &self,
        principal: &UserPrincipal,
        context: &Context<'_>,
        now: Wall,
    ) -> Result<Duration, Denial> {
        let deny = |reason| Denial::new(reason, format!("{} to keep a stream", principal.name));
        self.check_certificate(principal, now).map_err(deny)?;
        let subject = Subject::from(principal);
        let options = self.session_options(subject, now)?;
        if let Some(lock) = context.locks.on_subject(subject, now) {
            return Err(deny(DenialReason::Locked { lock }));
        }
        check_staleness(&options, context).map_err(deny)?;
        Ok(options.max_detached.0)
    }

    /// The longest life of a certificate that the user's roles allow; absent when none says.
    ///
    /// # Errors
    /// When a role does not exist or is broken.
    pub fn max_session_ttl(&self, subject: Subject<'_>, now: Wall) -> Result<Option<Ttl>, Denial> {
        self.session_options(subject, now).map(|options| options.max_session_ttl)
    }

    pub(crate) fn check_certificate(&self, principal: &UserPrincipal, now: Wall) -> Result<(), DenialReason> {
        if principal.cluster != self.cluster {
            return Err(DenialReason::OtherCluster { cluster: principal.cluster.clone() });
        }
        if principal.not_after <= now {
            return Err(DenialReason::CertificateExpired { not_after: principal.not_after });
        }
        Ok(())
    }

    /// The roles of the user, in order of name. Both lists are sorted, so one pass finds all.
    pub(crate) fn roles_of<'p>(
        &'p self,
        subject: Subject<'_>,
        now: Wall,
    ) -> Result<Vec<&'p CompiledRole>, DenialReason> {
        let mut found = Vec::with_capacity(subject.roles.len());
        let mut rest = self.roles.as_slice();
        for name in subject.roles {
            // Users with most roles of the cluster are found without a search.
            let index = match rest.first() {
                Some(entry) if entry.name == *name => Ok(0),
                Some(_) | None => rest.binary_search_by(|entry| entry.name.cmp(name)),
            };
            let Some((entry, tail)) =
                index.ok().and_then(|index| rest.get(index..)).and_then(<[_]>::split_first)
            else {
                return Err(DenialReason::UnknownRole { role: name.clone() });
            };
            rest = tail;
            let Some(role) = &entry.role else {
                return Err(DenialReason::BrokenRole { role: name.clone() });
            };
            if role.expires.is_some_and(|expires| expires <= now) {
                return Err(DenialReason::UnknownRole { role: name.clone() });
            }
            found.push(role.as_ref());
        }
        Ok(found)
    }
}

pub(crate) fn check_staleness(options: &SessionOptions, context: &Context<'_>) -> Result<(), DenialReason> {
    use wayleave_resource::LockingMode;
    match options.lock {
        LockingMode::Strict if context.locks_age > LOCKS_STALE_AFTER => {
            Err(DenialReason::LocksStale { age_secs: context.locks_age.as_secs() })
        }
        LockingMode::Strict | LockingMode::BestEffort => Ok(()),
    }
}

/// Deny first, by labels, expression or login of any role; then one role must allow both the node and the login.
pub(crate) fn check_node_and_login(
    roles: &[&CompiledRole],
    login: &Login,
    scope: &Scope<'_>,
) -> Result<(), DenialReason> {
    for role in roles {
        let key = denying_key(role, scope)
            .or_else(|| role.deny.login_matches(login.as_str(), scope).then_some(DenyKey::Logins));
        if let Some(key) = key {
            return Err(DenialReason::DeniedByRole { role: role.name.clone(), key });
        }
    }
    let mut others = Vec::new();
    for role in roles {
        if !role.allow.login_matches(login.as_str(), scope) {
            others.push(role);
        } else if role.allow.allows_node(scope) {
            return Ok(());
        }
    }
    // Roles that name the login do not allow the node, so only the others can.
    if others.iter().any(|role| role.allow.allows_node(scope)) {
        return Err(DenialReason::LoginNotAllowed);
    }
    Err(DenialReason::NoRoleAllowsNode)
}

/// True if a role allows the node's labels and a rule allows to list it.
fn may_list(roles: &[&CompiledRole], node: &NodeView<'_>, scope: &Scope<'_>) -> bool {
    let Ok(name) = ResourceName::parse(node.host_id.to_string()) else { return false };
    let question = AdminQuestion {
        verb: AdminVerb::List,
        target: RuleTarget::Kind(Kind::Node),
        resource: Some(ResourceView { name: &name, labels: node.labels }),
    };
    roles.iter().any(|role| role.allow.allows_node(scope))
        && check_rules(roles, &question, scope.subject).is_ok()
}

/// The role that denies the node, whatever the login.
fn node_denial<'p>(roles: &[&'p CompiledRole], scope: &Scope<'_>) -> Option<&'p RoleName> {
    roles.iter().find(|role| denying_key(role, scope).is_some()).map(|role| &role.name)
}

/// Deny: labels or expression, either is enough.
pub(crate) fn denying_key(role: &CompiledRole, scope: &Scope<'_>) -> Option<DenyKey> {
    if role.deny.labels_match(scope) {
        return Some(DenyKey::NodeLabels);
    }
    role.deny.expression_denies(scope).then_some(DenyKey::NodeLabelsExpression)
}

pub(crate) fn check_rules(
    roles: &[&CompiledRole],
    question: &AdminQuestion<'_>,
    subject: Subject<'_>,
) -> Result<(), DenialReason> {
    let AdminQuestion { verb, target, resource } = *question;
    let scope = Scope {
        subject,
        labels: resource.map(|resource| resource.labels),
        resource_name: resource.map(|resource| resource.name.as_str()),
        resource_kind: Some(target.as_str()),
    };
    for role in roles {
        let denies = role.deny.rules.iter().filter(|rule| denies_verb(rule, verb, &target)).any(|rule| {
            // A predicate that cannot be answered denies.
            rule.predicate.as_ref().is_none_or(|predicate| predicate.holds(&scope).unwrap_or(true))
        });
        if denies {
            return Err(DenialReason::DeniedByRole { role: role.name.clone(), key: DenyKey::Rules });
        }
    }
    let allowed = roles.iter().flat_map(|role| &role.allow.rules).any(|rule| {
        rule.is_about(verb, &target)
            && rule.predicate.as_ref().is_none_or(|predicate| predicate.holds(&scope).unwrap_or(false))
    });
    if allowed { Ok(()) } else { Err(DenialReason::NoRuleAllows { verb, kind: target.as_str() }) }
}

/// Whoever asks for everything is denied by any rule about anything.
fn denies_verb(rule: &crate::role::CompiledRule, verb: AdminVerb, target: &RuleTarget) -> bool {
    match verb {
        AdminVerb::Any => rule
            .targets
            .iter()
            .any(|own| own == target || *own == RuleTarget::Any || *target == RuleTarget::Any),
        _ => rule.is_about(verb, target),
    }
}
