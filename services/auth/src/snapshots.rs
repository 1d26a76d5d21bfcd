//! Signed policy: the newest snapshot, appended by compare-and-swap, and a fresh head every 15 s.
//!
//! A head is signed over [`SignedHead::message`]; what agents believe is a snapshot with the digest of a believed head.
//! Of several Auth instances one appends and all serve the same stored bytes.

use crate::authorities::{Authorities, LoadError};
use crate::keys;
use crate::mirror::Mirror;
use crate::records::{Records, decode_resource};
use crate::request_error::RequestError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wayleave_api::auth as wire;
use wayleave_ca::{Digest, Head, SNAPSHOT_BYTES_MAX, SignedHead, Snapshot, SnapshotParts, Withdrawal};
use wayleave_resource::{Kind, Resource, User};
use wayleave_runtime::{Clock, Shutdown};
use wayleave_store::{Bounds, Condition, Item, Operation, StoreError};
use wayleave_vocab::{PolicyRevision, Wall};

/// How often a head is signed.
pub(crate) const HEAD_INTERVAL: Duration = Duration::from_secs(15);
/// Changes that come together make one snapshot.
const COALESCE: Duration = Duration::from_millis(20);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Room for the signature and the message around the snapshot.
const ENVELOPE_BYTES: usize = 64 * 1024;
const ATTEMPTS_MAX: usize = 16;
/// What policy is made of.
const POLICY_KINDS: [Kind; 5] =
    [Kind::Role, Kind::Lock, Kind::CertAuthority, Kind::ClusterAuthPreference, Kind::ClusterNetworkingConfig];

/// How a stored user says that roles were taken from him.
const WITHDRAWALS_KEY: &[u8] = b"\"withdrawn_roles\"";

/// What is published now.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) revision: PolicyRevision,
    /// With the head below in it.
    pub(crate) snapshot: wire::PolicySnapshot,
    pub(crate) head: wire::SignedHead,
    /// The difference to what was published before, for those who hold that.
    pub(crate) delta: Option<Delta>,
}

/// A difference, and the revision that it builds on.
#[derive(Debug, Clone)]
pub(crate) struct Delta {
    pub(crate) from: PolicyRevision,
    pub(crate) wire: wire::PolicyDelta,
}

/// The newest snapshot and head, for whoever serves them.
pub(crate) struct Snapshots {
    newest: watch::Sender<Option<Arc<Published>>>,
    /// Largest snapshot that agents accept and the backend holds.
    bytes_max: usize,
}

impl Snapshots {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let bytes_max = SNAPSHOT_BYTES_MAX.min(bounds.value_bytes_max).saturating_sub(ENVELOPE_BYTES);
        Self { newest: watch::channel(None).0, bytes_max }
    }

    pub(crate) fn follow(&self) -> watch::Receiver<Option<Arc<Published>>> {
        self.newest.subscribe()
    }

    pub(crate) fn current(&self) -> Option<Arc<Published>> {
        self.newest.borrow().clone()
    }

    /// Refuses a write that would make the snapshot larger than agents accept.
    pub(crate) fn check_room(&self, more: usize) -> Result<(), RequestError> {
        let now = self.newest.borrow().as_ref().map_or(0usize, |published| published.snapshot.payload.len());
        if now.saturating_add(more) > self.bytes_max {
            return Err(RequestError::Invalid(format!(
                "the policy of the cluster would exceed {} KiB: delete roles or locks that are not needed",
                self.bytes_max >> 10
            )));
        }
        Ok(())
    }
}

/// Whether a stored user may note roles that were taken from him. There are many users, and few of them do.
fn notes_withdrawals(stored: &[u8]) -> bool {
    stored.windows(WITHDRAWALS_KEY.len()).any(|part| part == WITHDRAWALS_KEY)
}

/// The roles that were taken from a user and that certificates may still name.
fn withdrawals(user: &User, now: Wall) -> impl Iterator<Item = Withdrawal> {
    let in_force = user.status.withdrawn_roles.iter().filter(move |entry| now < entry.until);
    in_force.map(|entry| Withdrawal { user: user.name.clone(), role: entry.role.clone(), until: entry.until })
}

/// Builds, signs and stores snapshots.
pub(crate) struct Publisher {
    pub(crate) records: Records,
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) authorities: Arc<Authorities>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) generation: u64,
}

/// Policy could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The backend.
    #[error("the policy snapshot cannot be stored")]
    Store(#[from] StoreError),
    /// The authorities cannot be read.
    #[error("the authorities that sign it cannot be had: {0}")]
    Authorities(String),
    /// What is stored there is damaged.
    #[error("the stored policy snapshot is damaged: {0}")]
    Damaged(String),
    /// Too large.
    #[error("the policy snapshot has {bytes} bytes, at most {bytes_max}")]
    TooLarge {
        /// How many it has.
        bytes: usize,
        /// How many agents and the backend take.
        bytes_max: usize,
    },
    /// Others append all the time.
    #[error("the policy snapshot is being appended by too many at once")]
    Contended,
}

impl From<LoadError> for PublishError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Store(error) => Self::Store(error),
            LoadError::Authorities(_) | LoadError::Successions(_) => Self::Authorities(error.to_string()),
        }
    }
}

impl Publisher {
    /// Publishes what the backend holds: appends a snapshot if it differs from the stored one, and signs a head.
    ///
    /// Not what the mirror holds: that may be behind what another instance has published, and a lock would be lifted
    /// until it has caught up. What is read behind a snapshot is at least as new as what the snapshot was made of, and
    /// it is only appended if no other came in between.
    pub(crate) async fn publish(&self) -> Result<(), PublishError> {
        for _ in 0..ATTEMPTS_MAX {
            let stored = self.stored().await?;
            let resources = self.read_policy().await?;
            // Nobody signs with a key that the snapshot no longer names.
            let specs = resources.iter().filter_map(|resource| match resource {
                Resource::CertAuthority(authority) => Some(authority.spec.clone()),
                _ => None,
            });
            self.authorities.follow(&self.records, specs.collect()).await?;
            let revision = match &stored {
                None => PolicyRevision { generation: self.generation, counter: 1 },
                Some((snapshot, item)) => {
                    let fresh = self.snapshot(&resources, snapshot.parts().revision, snapshot.parts().issued);
                    let same = fresh.encode() == snapshot.encode();
                    let at = snapshot.parts().revision;
                    if same && at.generation >= self.generation {
                        let payload = item.value.to_vec();
                        self.serve(payload, at);
                        return Ok(());
                    }
                    PolicyRevision {
                        generation: self.generation.max(at.generation),
                        counter: if at.generation < self.generation {
                            1
                        } else {
                            at.counter.saturating_add(1)
                        },
                    }
                }
            };
            let payload = self.encoded(&self.snapshot(&resources, revision, self.clock.wall()))?;
            let key = keys::policy_snapshot();
            let condition = match &stored {
                Some((_, item)) => Condition::RevisionIs(key.clone(), item.revision),
                None => Condition::Absent(key.clone()),
            };
            let put = Operation::Put { key, value: payload.clone().into(), lease: None };
            match self.records.commit(vec![condition], vec![put]).await {
                Ok(_) => {
                    self.serve(payload, revision);
                    return Ok(());
                }
                Err(
                    StoreError::Conflict { .. }
                    | StoreError::AlreadyExists { .. }
                    | StoreError::NotFound { .. },
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PublishError::Contended)
    }

    /// Publishes on every change and every [`HEAD_INTERVAL`] until shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut changes = self.mirror.policy_changes();
        loop {
            // A change, or the time for a new head.
            let woken = shutdown.until(tokio::time::timeout(HEAD_INTERVAL, changes.changed())).await;
            match woken {
                None | Some(Ok(Err(_))) => return,
                Some(Ok(Ok(()))) => tokio::time::sleep(COALESCE).await,
                Some(Err(_)) => {}
            }
            changes.mark_unchanged();
            while let Err(error) = self.publish().await {
                tracing::warn!(%error, "policy cannot be published, trying again");
                if shutdown.until(tokio::time::sleep(RETRY_PAUSE)).await.is_none() {
                    return;
                }
            }
        }
    }

    async fn stored(&self) -> Result<Option<(Snapshot, Item)>, PublishError> {
        let Some(item) = self.records.backend().get(&keys::policy_snapshot()).await? else { return Ok(None) };
        let snapshot = Snapshot::decode(&item.value).map_err(|e| PublishError::Damaged(e.to_string()))?;
        Ok(Some((snapshot, item)))
    }

    /// Everything that policy is made of. What cannot be read grants nothing; the mirror has reported it.
    async fn read_policy(&self) -> Result<Vec<Resource>, StoreError> {
        let mut resources = Vec::new();
        for kind in POLICY_KINDS {
            let (items, _) = self.records.items(&keys::resources_of(kind)).await?;
            resources.extend(items.iter().filter_map(decode_resource));
        }
        let (users, _) = self.records.items(&keys::resources_of(Kind::User)).await?;
        let noting = users.iter().filter(|item| notes_withdrawals(&item.value));
        resources.extend(noting.filter_map(decode_resource));
        Ok(resources)
    }

    fn snapshot(&self, resources: &[Resource], revision: PolicyRevision, issued: Wall) -> Snapshot {
        let mut parts = SnapshotParts {
            revision,
            cluster: self.authorities.cluster().clone(),
            issued,
            cas: Vec::new(),
            roles: Vec::new(),
            locks: Vec::new(),
            withdrawn: Vec::new(),
            auth_preference: Default::default(),
            networking: Default::default(),
        };
        for resource in resources {
            match resource.clone() {
                Resource::Role(role) => parts.roles.push(*role),
                Resource::Lock(lock) => parts.locks.push(lock),
                Resource::CertAuthority(authority) => parts.cas.push(authority),
                Resource::ClusterAuthPreference(preference) => parts.auth_preference = preference,
                Resource::ClusterNetworkingConfig(networking) => parts.networking = networking,
                Resource::User(user) => parts.withdrawn.extend(withdrawals(&user, self.clock.wall())),
                Resource::Token(_) | Resource::Node(_) | Resource::Proxy(_) => {}
            }
        }
        Snapshot::new(parts)
    }

    fn encoded(&self, snapshot: &Snapshot) -> Result<Vec<u8>, PublishError> {
        let payload = snapshot.encode();
        let bytes_max = self.snapshots.bytes_max;
        if payload.len() > bytes_max {
            return Err(PublishError::TooLarge { bytes: payload.len(), bytes_max });
        }
        Ok(payload)
    }

    /// Hands on a snapshot with a head of now.
    fn serve(&self, snapshot: Vec<u8>, revision: PolicyRevision) {
        let payload = Head {
            cluster: self.authorities.cluster().clone(),
            revision,
            digest: Digest::of(&snapshot),
            time: self.clock.wall(),
        }
        .encode();
        let signature = self.authorities.sign_policy(&SignedHead::message(&payload));
        let head = wire::SignedHead { payload, signature };
        let held = self.authorities.held();
        let successions = held.successions.0.iter().cloned();
        let successions =
            successions.map(|(payload, signature)| wire::SignedSuccession { payload, signature }).collect();
        let snapshot = wire::PolicySnapshot {
            payload: snapshot,
            head: Some(head.clone()),
            successions,
            deflated_payload: Vec::new(),
        };
        let delta = self.delta(&snapshot, revision);
        self.snapshots.newest.send_replace(Some(Arc::new(Published { revision, snapshot, head, delta })));
    }

    /// What changed since this service last published, unless it is as long as the whole.
    fn delta(&self, now: &wire::PolicySnapshot, revision: PolicyRevision) -> Option<Delta> {
        let before = self.snapshots.current()?;
        let (from, payload) = if before.revision == revision {
            let known = before.delta.as_ref()?;
            (known.from, known.wire.payload.clone())
        } else {
            let old = Snapshot::decode(&before.snapshot.payload).ok()?;
            let new = Snapshot::decode(&now.payload).ok()?;
            (before.revision, old.delta_to(&new).encode())
        };
        let wire = wire::PolicyDelta {
            payload,
            head: now.head.clone(),
            from_generation: from.generation,
            from_counter: from.counter,
            successions: now.successions.clone(),
        };
        (wire.payload.len() < now.payload.len()).then_some(Delta { from, wire })
    }
}
