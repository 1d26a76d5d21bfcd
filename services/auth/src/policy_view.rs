//! The policy of the cluster as Auth itself applies it: compiled from the mirror at every change.

use crate::connection::Identity;
use crate::request_error::RequestError;
use std::sync::Arc;
use std::time::Duration;
use wayleave_identity::UserPrincipal;
use wayleave_policy::{
    AdminExplanation, Context, Denial, DenialReason, Explanation, LockMatch, LockSet, Policy, ResourceView,
    Settings, Subject,
};
use wayleave_resource::{
    AdminVerb, AuthPreferenceSpec, Lock, NetworkingSpec, Resource, Role, RuleTarget, User,
};
use wayleave_vocab::{ClusterName, HostId, Wall};

/// Roles, locks and settings, compiled.
pub(crate) struct PolicyView {
    pub(crate) policy: Policy,
    pub(crate) locks: LockSet,
    pub(crate) networking: NetworkingSpec,
    pub(crate) preference: AuthPreferenceSpec,
}

impl PolicyView {
    /// Compiles what the resources say.
    pub(crate) fn compile<'r>(
        cluster: &ClusterName,
        resources: impl Iterator<Item = &'r Resource> + Clone,
    ) -> Arc<Self> {
        let networking = resources
            .clone()
            .find_map(|resource| match resource {
                Resource::ClusterNetworkingConfig(config) => Some(config.spec.clone()),
                _ => None,
            })
            .unwrap_or_default();
        let preference = resources
            .clone()
            .find_map(|resource| match resource {
                Resource::ClusterAuthPreference(preference) => Some(preference.spec.clone()),
                _ => None,
            })
            .unwrap_or_default();
        let roles = resources.clone().filter_map(|resource| match resource {
            Resource::Role(role) => Some::<&Role>(role),
            _ => None,
        });
        let policy = Policy::new(cluster.clone(), Settings::new(&preference, &networking), roles);
        for error in policy.errors() {
            tracing::warn!(%error, "a stored role does not compile: whoever holds it is refused");
        }
        let locks = resources.filter_map(|resource| match resource {
            Resource::Lock(lock) => Some::<&Lock>(lock),
            _ => None,
        });
        Arc::new(Self { policy, locks: LockSet::new(locks), networking, preference })
    }

    pub(crate) fn context(&self) -> Context<'_> {
        Context { locks: &self.locks, locks_age: Duration::ZERO }
    }

    /// Refuses a caller on whom a lock is in force.
    pub(crate) fn check_locks(&self, identity: &Identity, now: Wall) -> Result<(), RequestError> {
        let lock = match identity {
            Identity::Stranger => None,
            Identity::User(user) if user.local_admin => None,
            Identity::User(user) => self.locks.on_subject(Subject::from(user), now),
            Identity::Host(host) => self.locks.on_host(&host.host_id, now),
        };
        refuse_locked(lock)
    }

    /// Refuses what is about a machine on which a lock is in force.
    pub(crate) fn check_host_lock(&self, host: &HostId, now: Wall) -> Result<(), RequestError> {
        refuse_locked(self.locks.on_host(host, now))
    }

    /// True when a lock on this user, or on a role that he holds, is in force.
    pub(crate) fn user_is_locked(&self, user: &User, now: Wall) -> Result<(), RequestError> {
        match self.locks.on_subject(Subject::from(user), now) {
            None => Ok(()),
            Some(lock) => {
                let reason = format!("lock {} on {}", lock.name, lock.target);
                Err(RequestError::Denied { told: "access is locked".to_owned(), reason })
            }
        }
    }

    /// May the caller do this with resources of a kind, or with one?
    pub(crate) fn decide(
        &self,
        user: &UserPrincipal,
        verb: AdminVerb,
        target: &RuleTarget,
        resource: Option<&Resource>,
        now: Wall,
    ) -> Result<(), RequestError> {
        let name = resource.map(Resource::name);
        let view = match (resource, &name) {
            (Some(resource), Some(name)) => Some(ResourceView { name, labels: &resource.metadata().labels }),
            _ => None,
        };
        self.policy
            .decide_resource(user, verb, target, view, &self.context(), now)
            .map(|_| ())
            .map_err(|denial| refused(&denial))
    }

    /// Nodes, of those given, that the caller may know of.
    pub(crate) fn visible<'n, T>(
        &self,
        user: &UserPrincipal,
        nodes: impl IntoIterator<Item = (wayleave_policy::NodeView<'n>, T)>,
        now: Wall,
    ) -> Vec<T> {
        self.policy.visible_nodes(user, nodes, &self.context(), now)
    }

    /// Whether a user may enter a node, and what decides.
    pub(crate) fn explain(
        &self,
        user: &UserPrincipal,
        node: &wayleave_policy::NodeView<'_>,
        login: &wayleave_vocab::Login,
        now: Wall,
    ) -> Explanation {
        self.policy.explain_ssh(user, node, login, &self.context(), now)
    }

    /// Whether a user may do something with every resource of a kind, and what his roles say of it.
    pub(crate) fn explain_admin(
        &self,
        user: &UserPrincipal,
        verb: AdminVerb,
        target: &RuleTarget,
        now: Wall,
    ) -> AdminExplanation {
        self.policy.explain_resource(user, verb, target, None, &self.context(), now)
    }

    /// May the user enter this node with this login?
    pub(crate) fn may_enter(
        &self,
        user: &UserPrincipal,
        node: &wayleave_policy::NodeView<'_>,
        login: &wayleave_vocab::Login,
        now: Wall,
    ) -> bool {
        self.policy.decide_ssh(user, node, login, &self.context(), now).is_ok()
    }

    /// May the user connect to the TCP ports that are published under this name?
    pub(crate) fn may_reach(
        &self,
        user: &UserPrincipal,
        app: &wayleave_policy::NodeView<'_>,
        now: Wall,
    ) -> bool {
        self.policy.decide_app(user, app, &self.context(), now).is_ok()
    }
}

fn refuse_locked(lock: Option<LockMatch>) -> Result<(), RequestError> {
    let Some(lock) = lock else { return Ok(()) };
    let told = lock.user_text();
    Err(RequestError::Denied { told, reason: format!("lock {} on {}", lock.name, lock.target) })
}

/// A denial of the policy as an answer.
pub(crate) fn refused(denial: &Denial) -> RequestError {
    match &denial.reason {
        DenialReason::CertificateExpired { .. } => RequestError::Unauthenticated(denial.user_text()),
        reason => RequestError::Denied { told: denial.user_text(), reason: reason.to_string() },
    }
}
