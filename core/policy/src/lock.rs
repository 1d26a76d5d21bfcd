//! Locks in force, found without walking all of them.

use crate::Subject;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;
use wayleave_resource::{Lock, LockTarget};
use wayleave_vocab::{HostId, Login, ResourceName, RoleName, UserName, Wall};

/// With no newer word from Auth than this, what is known about locks is stale.
pub const LOCKS_STALE_AFTER: Duration = Duration::from_secs(5 * 60);

/// The locks of a cluster.
#[derive(Debug, Clone, Default)]
pub struct LockSet {
    users: HashMap<UserName, Vec<LockEntry>>,
    roles: HashMap<RoleName, Vec<LockEntry>>,
    logins: HashMap<Login, Vec<LockEntry>>,
    hosts: HashMap<HostId, Vec<LockEntry>>,
}

#[derive(Debug, Clone)]
struct LockEntry {
    name: ResourceName,
    target: LockTarget,
    message: String,
    expires: Option<Wall>,
}

/// A lock that is in force.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LockMatch {
    /// The name of the lock.
    pub name: ResourceName,
    /// What it locks.
    pub target: LockTarget,
    /// What whoever is locked out may read.
    pub message: String,
}

impl LockMatch {
    /// What whoever is locked out is told.
    pub fn user_text(&self) -> String {
        match self.message.as_str() {
            "" => "access is locked".to_owned(),
            message => format!("access is locked: {message}"),
        }
    }
}

impl LockSet {
    /// The locks, those that have run out included: they are passed over when asked.
    pub fn new<'l>(locks: impl IntoIterator<Item = &'l Lock>) -> Self {
        let mut sorted: Vec<&Lock> = locks.into_iter().collect();
        // The same lock is named whatever the order of the list.
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut set = Self::default();
        for lock in sorted {
            let entry = LockEntry {
                name: lock.name.clone(),
                target: lock.spec.target.clone(),
                message: lock.spec.message.clone(),
                expires: lock.spec.expires,
            };
            match &lock.spec.target {
                LockTarget::User(user) => set.users.entry(user.clone()).or_default().push(entry),
                LockTarget::Role(role) => set.roles.entry(role.clone()).or_default().push(entry),
                LockTarget::Login(login) => set.logins.entry(login.clone()).or_default().push(entry),
                LockTarget::ServerId(host) => set.hosts.entry(*host).or_default().push(entry),
            }
        }
        set
    }

    /// A lock on the user, or on one of the roles held.
    pub fn on_subject(&self, subject: Subject<'_>, now: Wall) -> Option<LockMatch> {
        find(&self.users, subject.name, now).or_else(|| {
            let any = !self.roles.is_empty();
            any.then(|| subject.roles.iter().find_map(|role| find(&self.roles, role, now))).flatten()
        })
    }

    /// A lock on a process: its certificates and sessions on it.
    pub fn on_host(&self, host: &HostId, now: Wall) -> Option<LockMatch> {
        find(&self.hosts, host, now)
    }

    /// A lock on anything that a session consists of.
    pub fn on_session(
        &self,
        subject: Subject<'_>,
        host: &HostId,
        login: &Login,
        now: Wall,
    ) -> Option<LockMatch> {
        self.on_subject(subject, now)
            .or_else(|| find(&self.logins, login, now))
            .or_else(|| self.on_host(host, now))
    }
}

fn find<K: Eq + Hash>(locks: &HashMap<K, Vec<LockEntry>>, key: &K, now: Wall) -> Option<LockMatch> {
    if locks.is_empty() {
        return None;
    }
    let entry = locks.get(key)?.iter().find(|entry| entry.expires.is_none_or(|expires| now < expires))?;
    Some(LockMatch { name: entry.name.clone(), target: entry.target.clone(), message: entry.message.clone() })
}
