//! Locks: somebody or something is out, now and in running sessions.

use crate::metadata::{Metadata, optional_time};
use crate::reader::{At, Fields};
use serde::Serialize;
use std::fmt;
use wayleave_vocab::{HostId, Login, ResourceName, RoleName, UserName, Wall};

/// Longest message in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// A lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// The name.
    pub name: ResourceName,
    /// Labels, revision, description.
    pub metadata: Metadata,
    /// What it locks.
    pub spec: LockSpec,
}

/// What is locked, why and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LockSpec {
    /// What is locked.
    pub target: LockTarget,
    /// Shown to whoever is locked out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Until when; absent: until it is removed.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_time")]
    pub expires: Option<Wall>,
    /// When it was set.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_time")]
    pub created_at: Option<Wall>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<UserName>,
}

/// What a lock is about. One thing: two things are two locks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LockTarget {
    /// A user.
    User(UserName),
    /// Everybody who holds a role.
    Role(RoleName),
    /// Sessions as an account of the operating system, on every node.
    Login(Login),
    /// A process: sessions on it, and its own certificates.
    ServerId(HostId),
}

impl fmt::Display for LockTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user {user}"),
            Self::Role(role) => write!(f, "role {role}"),
            Self::Login(login) => write!(f, "login {login}"),
            Self::ServerId(host) => write!(f, "server {host}"),
        }
    }
}

impl LockSpec {
    /// True until it runs out.
    pub fn is_in_force(&self, now: Wall) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let target = fields.required("target", LockTarget::read);
        let message = fields.or_default("message", |at| {
            let text = at.text()?;
            if text.len() > MESSAGE_BYTES_MAX {
                return at.fail(format_args!("has {} bytes, at most {MESSAGE_BYTES_MAX}", text.len()));
            }
            Some(text.to_owned())
        });
        let expires = fields.optional("expires", At::time);
        let created_at = fields.optional("created_at", At::time);
        let created_by = fields.optional("created_by", At::parse);
        Some(Self {
            target: target?,
            message: message?,
            expires: expires?,
            created_at: created_at?,
            created_by: created_by?,
        })
    }
}

impl LockTarget {
    fn read(at: &At<'_>) -> Option<Self> {
        let mut fields = at.fields()?;
        let user = fields.optional("user", |at| at.parse().map(Self::User));
        let role = fields.optional("role", |at| at.parse().map(Self::Role));
        let login = fields.optional("login", |at| at.parse().map(Self::Login));
        let server = fields.optional("server_id", |at| at.parse().map(Self::ServerId));
        fields.refuse("node", |_| false, "use server_id with the node's host id");
        for name in
            ["mfa_device", "windows_desktop", "access_request", "device", "bot_instance_id", "join_token"]
        {
            fields.refuse(name, |_| false, "a lock that nothing here can enforce is refused");
        }
        fields.finish();
        let mut targets = [user?, role?, login?, server?].into_iter().flatten();
        match (targets.next(), targets.next()) {
            (Some(target), None) => Some(target),
            (None, _) => at.fail("name what is locked: user, role, login or server_id"),
            (Some(_), Some(_)) => at.fail("one lock has one target: write a second lock"),
        }
    }
}
