//! What an adapter decides by: the verified policy in the shape that decisions need.

use crate::limits::Keepalive;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wayleave_policy::{LockSet, Policy};
use wayleave_ssh::PublicKey;
use wayleave_vocab::{ClusterName, PolicyRevision, Wall};

/// One revision of the policy, compiled.
#[derive(Debug, Clone)]
pub struct PolicyView {
    revision: PolicyRevision,
    user_authorities: Vec<PublicKey>,
    host_authorities: Vec<PublicKey>,
    policy: Policy,
    locks: LockSet,
}

impl PolicyView {
    /// Joins the parts of a snapshot that was verified. `user_authorities` are the trusted SSH keys of the user
    /// authority, as `authorized_keys` writes them; those that cannot be read are left out, so that nobody is
    /// believed on their word.
    pub fn new<'k>(
        revision: PolicyRevision,
        user_authorities: impl IntoIterator<Item = &'k str>,
        policy: Policy,
        locks: LockSet,
    ) -> Self {
        let keys = user_authorities.into_iter().filter_map(|line| PublicKey::from_openssh(line).ok());
        let host_authorities = Vec::new();
        Self { revision, user_authorities: keys.collect(), host_authorities, policy, locks }
    }

    /// The same with the trusted SSH keys of the host authority, for whoever believes what it signed.
    #[must_use]
    pub fn with_host_authorities<'k>(mut self, lines: impl IntoIterator<Item = &'k str>) -> Self {
        let keys = lines.into_iter().filter_map(|line| PublicKey::from_openssh(line).ok());
        self.host_authorities = keys.collect();
        self
    }

    /// The revision.
    pub fn revision(&self) -> PolicyRevision {
        self.revision
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        self.policy.cluster()
    }

    /// Keys that sign user certificates.
    pub(crate) fn user_authorities(&self) -> &[PublicKey] {
        &self.user_authorities
    }

    /// Keys that sign certificates of hosts and of publishers.
    pub(crate) fn host_authorities(&self) -> &[PublicKey] {
        &self.host_authorities
    }

    /// Roles and settings.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// How silent clients are probed.
    pub(crate) fn keepalive(&self) -> Keepalive {
        Keepalive::of(self.policy.settings())
    }

    /// Locks.
    pub(crate) fn locks(&self) -> &LockSet {
        &self.locks
    }
}

/// Where the policy comes from.
pub trait PolicySource: Send + Sync + 'static {
    /// The policy in use and every later one; `None` before the first is verified: nobody is let in then.
    fn views(&self) -> watch::Receiver<Option<Arc<PolicyView>>>;

    /// How long ago Auth last confirmed that this is the policy.
    fn locks_age(&self, now: Wall) -> Duration;
}
