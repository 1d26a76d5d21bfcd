//! What agents must believe, as one signed value: authorities, roles, locks, settings.
//!
//! A head names the revision, the digest of the snapshot's bytes and the time; only heads are signed. A snapshot or a
//! delta is believed when what results has the digest of a believed head, so it needs no signature of its own.

use crate::digest::Digest;
use crate::withdrawal::Withdrawal;
use serde::{Deserialize, Serialize};
use wayleave_resource::{
    CertAuthority, ClusterAuthPreference, ClusterNetworkingConfig, Kind, Lock, LockTarget, Resource, Role,
};
use wayleave_vocab::{ClusterName, HostId, PolicyRevision, ResourceName, RoleName, Wall};

/// Largest snapshot in bytes; Auth refuses the write that would exceed it.
pub const SNAPSHOT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest head in bytes.
pub const HEAD_BYTES_MAX: usize = 4 * 1024;
/// Said before every head that is signed, so that a signature is good for nothing else.
const HEAD_CONTEXT: &[u8] = b"wayleave policy head 1\n";

/// What a snapshot is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotParts {
    /// Orders snapshots.
    pub revision: PolicyRevision,
    /// The cluster.
    pub cluster: ClusterName,
    /// When Auth made it.
    pub issued: Wall,
    /// All authorities.
    pub cas: Vec<CertAuthority>,
    /// All roles.
    pub roles: Vec<Role>,
    /// All locks, those that have run out included.
    pub locks: Vec<Lock>,
    /// Roles that users no longer hold, whatever their certificates say.
    pub withdrawn: Vec<Withdrawal>,
    /// Logins and sessions.
    pub auth_preference: ClusterAuthPreference,
    /// Tunnels and timeouts.
    pub networking: ClusterNetworkingConfig,
}

/// A snapshot, in canonical order.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    parts: SnapshotParts,
    /// Roles that this build cannot read: whoever holds one is refused.
    unreadable_roles: Vec<RoleName>,
}

/// Bytes that are no snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeSnapshotError {
    /// More than the bound.
    #[error("the snapshot has {0} bytes, at most {SNAPSHOT_BYTES_MAX}")]
    TooLong(usize),
    /// Not of a shape that this build knows.
    #[error("the snapshot cannot be read: {0}")]
    Malformed(String),
    /// The delta is for another snapshot.
    #[error("the delta is for revision {wanted}, the snapshot here is {here}")]
    OtherBase {
        /// What the delta builds on.
        wanted: PolicyRevision,
        /// What is here.
        here: PolicyRevision,
    },
    /// A snapshot with roles that cannot be read here cannot be built upon.
    #[error("the snapshot here has roles that this build cannot read: the whole snapshot is needed")]
    NeedsWhole,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Encoded<R> {
    v: u8,
    revision: PolicyRevision,
    cluster: ClusterName,
    issued: Wall,
    cas: Vec<CertAuthority>,
    roles: Vec<R>,
    locks: Vec<Lock>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    withdrawn: Vec<Withdrawal>,
    auth_preference: ClusterAuthPreference,
    networking: ClusterNetworkingConfig,
}

/// The version of the encoding.
const VERSION: u8 = 1;

impl Snapshot {
    /// Brings the parts into canonical order and drops the backend's revisions.
    pub fn new(mut parts: SnapshotParts) -> Self {
        parts.cas.sort_by_key(|authority| authority.spec.ca_type);
        parts.roles.sort_by(|a, b| a.name.cmp(&b.name));
        parts.locks.sort_by(|a, b| a.name.cmp(&b.name));
        parts.withdrawn.sort();
        parts.cas.iter_mut().for_each(|authority| authority.metadata.revision = None);
        parts.roles.iter_mut().for_each(|role| role.metadata.revision = None);
        parts.locks.iter_mut().for_each(|lock| lock.metadata.revision = None);
        parts.auth_preference.metadata.revision = None;
        parts.networking.metadata.revision = None;
        Self { parts, unreadable_roles: Vec::new() }
    }

    /// What it is made of.
    pub fn parts(&self) -> &SnapshotParts {
        &self.parts
    }

    /// Roles that this build cannot read: whoever holds one must be refused, because what it denies is not known.
    pub fn unreadable_roles(&self) -> &[RoleName] {
        &self.unreadable_roles
    }

    /// The canonical bytes: the same snapshot always gives the same.
    pub fn encode(&self) -> Vec<u8> {
        let parts = self.parts.clone();
        let encoded = Encoded {
            v: VERSION,
            revision: parts.revision,
            cluster: parts.cluster,
            issued: parts.issued,
            cas: parts.cas,
            roles: parts.roles,
            locks: parts.locks,
            withdrawn: parts.withdrawn,
            auth_preference: parts.auth_preference,
            networking: parts.networking,
        };
        serde_json::to_vec(&encoded).expect("maps of strings always serialise")
    }

    /// Reads what [`Snapshot::encode`] wrote. A role that cannot be read is set aside by name; anything else that
    /// cannot be read fails, because a lock or an authority that is left out would be believed absent.
    ///
    /// # Errors
    /// When the bytes are too many or misshapen.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeSnapshotError> {
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            return Err(DecodeSnapshotError::TooLong(bytes.len()));
        }
        let malformed = |error: &dyn std::fmt::Display| DecodeSnapshotError::Malformed(error.to_string());
        let encoded: Encoded<serde_json::Value> = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
        if encoded.v != VERSION {
            return Err(malformed(&format_args!("version {}, this build reads {VERSION}", encoded.v)));
        }
        let (mut roles, mut unreadable_roles) = (Vec::new(), Vec::new());
        for value in encoded.roles {
            let name = value.pointer("/metadata/name").and_then(|name| name.as_str()).map(RoleName::parse);
            match (serde_json::from_value::<Role>(value), name) {
                (Ok(role), _) => roles.push(role),
                (Err(_), Some(Ok(name))) => unreadable_roles.push(name),
                (Err(error), Some(Err(_)) | None) => return Err(malformed(&error)),
            }
        }
        let mut snapshot = Self::new(SnapshotParts {
            revision: encoded.revision,
            cluster: encoded.cluster,
            issued: encoded.issued,
            cas: encoded.cas,
            roles,
            locks: encoded.locks,
            withdrawn: encoded.withdrawn,
            auth_preference: encoded.auth_preference,
            networking: encoded.networking,
        });
        snapshot.unreadable_roles = unreadable_roles;
        Ok(snapshot)
    }

    /// True if a lock in force shuts a process out. Whoever carries or takes connections of processes asks this, because a
    /// stolen machine does not shut itself out.
    pub fn is_host_locked(&self, host: HostId, now: Wall) -> bool {
        let on_host = |lock: &Lock| matches!(lock.spec.target, LockTarget::ServerId(id) if id == host);
        self.parts.locks.iter().any(|lock| on_host(lock) && lock.spec.is_in_force(now))
    }

    /// What changed from here to a newer snapshot of the same cluster.
    pub fn delta_to(&self, newer: &Self) -> Delta {
        let (old, new) = (self.resources(), newer.resources());
        let key = |resource: &Resource| (resource.kind(), resource.name());
        let put = new.iter().filter(|resource| !old.contains(resource)).cloned().collect();
        let kept: std::collections::BTreeSet<_> = new.iter().map(key).collect();
        let gone = old.iter().map(key).filter(|key| !kept.contains(key)).collect();
        Delta {
            from: self.parts.revision,
            to: newer.parts.revision,
            issued: newer.parts.issued,
            put,
            delete: gone,
            withdrawn: newer.parts.withdrawn.clone(),
        }
    }

    /// The snapshot that results from a delta. Its digest must be that of a believed head before it is used.
    ///
    /// # Errors
    /// When the delta is for another revision, or roles here cannot be read.
    pub fn apply(&self, delta: &Delta) -> Result<Self, DecodeSnapshotError> {
        if delta.from != self.parts.revision {
            return Err(DecodeSnapshotError::OtherBase { wanted: delta.from, here: self.parts.revision });
        }
        if !self.unreadable_roles.is_empty() {
            return Err(DecodeSnapshotError::NeedsWhole);
        }
        let mut parts = self.parts.clone();
        parts.revision = delta.to;
        parts.issued = delta.issued;
        parts.withdrawn = delta.withdrawn.clone();
        for (kind, name) in &delta.delete {
            forget(&mut parts, *kind, name);
        }
        for resource in &delta.put {
            forget(&mut parts, resource.kind(), &resource.name());
            match resource.clone() {
                Resource::Role(role) => parts.roles.push(*role),
                Resource::Lock(lock) => parts.locks.push(lock),
                Resource::CertAuthority(authority) => parts.cas.push(authority),
                Resource::ClusterAuthPreference(preference) => parts.auth_preference = preference,
                Resource::ClusterNetworkingConfig(networking) => parts.networking = networking,
                Resource::User(_) | Resource::Token(_) | Resource::Node(_) | Resource::Proxy(_) => {
                    return Err(DecodeSnapshotError::Malformed(format!(
                        "a {} is no part of policy",
                        resource.kind()
                    )));
                }
            }
        }
        Ok(Self::new(parts))
    }

    fn resources(&self) -> Vec<Resource> {
        let parts = &self.parts;
        let mut all: Vec<Resource> = Vec::new();
        all.extend(parts.cas.iter().cloned().map(Resource::from));
        all.extend(parts.roles.iter().cloned().map(Resource::from));
        all.extend(parts.locks.iter().cloned().map(Resource::from));
        all.push(parts.auth_preference.clone().into());
        all.push(parts.networking.clone().into());
        all
    }
}

fn forget(parts: &mut SnapshotParts, kind: Kind, name: &ResourceName) {
    match kind {
        Kind::Role => parts.roles.retain(|role| role.name.as_str() != name.as_str()),
        Kind::Lock => parts.locks.retain(|lock| lock.name != *name),
        Kind::CertAuthority => parts.cas.retain(|ca| ca.spec.ca_type.as_str() != name.as_str()),
        Kind::User
        | Kind::Token
        | Kind::Node
        | Kind::Proxy
        | Kind::ClusterNetworkingConfig
        | Kind::ClusterAuthPreference => {}
    }
}

/// The difference between two snapshots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// What it builds on.
    pub from: PolicyRevision,
    /// What results.
    pub to: PolicyRevision,
    /// When Auth made what results.
    pub issued: Wall,
    /// Resources that are new or changed.
    pub put: Vec<Resource>,
    /// Resources that are gone.
    pub delete: Vec<(Kind, ResourceName)>,
    /// All withdrawals of what results: they are few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withdrawn: Vec<Withdrawal>,
}

impl Delta {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps of strings always serialise")
    }

    /// Reads what [`Delta::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are too many or misshapen. Then the whole snapshot is needed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeSnapshotError> {
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            return Err(DecodeSnapshotError::TooLong(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(|error| DecodeSnapshotError::Malformed(error.to_string()))
    }
}

/// The newest revision at a point in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The cluster.
    pub cluster: ClusterName,
    /// The revision.
    pub revision: PolicyRevision,
    /// The digest of the snapshot's bytes.
    pub digest: Digest,
    /// When Auth said so.
    pub time: Wall,
}

/// A head as it travels: its exact bytes, and a signature over [`SignedHead::message`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHead {
    /// The head's JSON. Nothing else may be parsed from it before the signature is verified.
    pub bytes: Vec<u8>,
    /// The signature by a key of the policy authority.
    pub signature: Vec<u8>,
}

impl Head {
    /// The bytes that are signed and sent.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps of strings always serialise")
    }
}

impl SignedHead {
    /// What the signature is over.
    pub fn message(head_bytes: &[u8]) -> Vec<u8> {
        [HEAD_CONTEXT, head_bytes].concat()
    }
}
