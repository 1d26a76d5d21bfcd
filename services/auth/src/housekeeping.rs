//! What has to be done from time to time: leases run out, expired things go, nodes that nobody reaches are forgotten, the
//! audit chain gets a signed checkpoint.
//!
//! Every round looks at what is there and is safe to run twice, on several instances, and after a crash.

use crate::auth_core::AuthCore;
use crate::join::HostRecord;
use crate::keys;
use crate::records::{decode, put};
use crate::request_error::RequestError;
use crate::users::InviteRecord;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use wayleave_audit::{Chain, Checkpoint, SignedCheckpoint};
use wayleave_resource::{Kind, Resource};
use wayleave_runtime::Shutdown;
use wayleave_store::{Condition, Operation, StoreError};
use wayleave_vocab::Wall;

/// How often leases are looked at.
const LEASE_INTERVAL: Duration = Duration::from_secs(1);
/// Rounds of leases between two rounds of everything else.
const LEASE_ROUNDS: u32 = 30;
/// Rounds of leases between two checkpoints of the audit chain, and between two looks at processes that are gone.
const CHECKPOINT_ROUNDS: u32 = 300;
const HOST_ROUNDS: u32 = 3600;
/// A process whose certificates ran out so long ago must join again.
const HOST_FORGOTTEN_AFTER: Duration = Duration::from_secs(90 * 24 * 3600);
/// A proxy that has not published routes for so long is forgotten; it registers again when it starts.
const PROXY_FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// A checkpoint of the audit chain, as stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointRecord {
    #[serde(with = "crate::base64_bytes")]
    bytes: Vec<u8>,
    #[serde(with = "crate::base64_bytes")]
    signature: Vec<u8>,
}

impl CheckpointRecord {
    /// As it was signed.
    pub(crate) fn signed(self) -> SignedCheckpoint {
        SignedCheckpoint { bytes: self.bytes, signature: self.signature }
    }
}

/// Runs the rounds until shutdown.
pub(crate) async fn run(core: Arc<AuthCore>, shutdown: Shutdown) {
    let started = core.clock.wall();
    let mut tick = tokio::time::interval(LEASE_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut rounds = 0u32;
    while shutdown.until(tick.tick()).await.is_some() {
        if let Err(error) = core.records.backend().maintain().await {
            match error {
                StoreError::Closed => return,
                error => tracing::warn!(%error, "the backend cannot be maintained"),
            }
        }
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(LEASE_ROUNDS)
            && let Err(error) = core.tidy(started).await
        {
            tracing::warn!(%error, "expired things cannot be deleted now");
        }
        if rounds.is_multiple_of(CHECKPOINT_ROUNDS)
            && let Err(error) = core.checkpoint().await
        {
            tracing::warn!(%error, "the audit log has no new checkpoint");
        }
        if rounds.is_multiple_of(HOST_ROUNDS)
            && let Err(error) = core.tidy_hosts().await
        {
            tracing::warn!(%error, "processes that are gone cannot be forgotten now");
        }
    }
}

impl AuthCore {
    /// Deletes what has expired or is gone. `started` is when this Auth began to see routes.
    pub(crate) async fn tidy(&self, started: Wall) -> Result<(), StoreError> {
        let now = self.clock.wall();
        for kind in [Kind::Token, Kind::User, Kind::Lock, Kind::Role] {
            for mirrored in self.mirror.all(kind) {
                if has_expired(&mirrored.resource, now) {
                    let name = mirrored.resource.name();
                    tracing::info!(%kind, %name, "an expired resource is deleted");
                    self.forget(kind, name.as_str(), mirrored.revision).await?;
                }
            }
        }
        for mirrored in self.mirror.all(Kind::Node) {
            let Resource::Node(node) = &mirrored.resource else { continue };
            let seen = self.routes.last_seen(node.host_id).unwrap_or(started).max(started);
            if !self.routes.is_online(node.host_id) && now.since(seen) > self.config.lifetimes.idle_node {
                tracing::info!(host_id = %node.host_id, "a node without a route is forgotten");
                self.forget(Kind::Node, &node.host_id.to_string(), mirrored.revision).await?;
                self.routes.forget(node.host_id);
            }
        }
        for mirrored in self.mirror.all(Kind::Proxy) {
            let Resource::Proxy(proxy) = &mirrored.resource else { continue };
            let seen = self.routes.proxy_seen(proxy.host_id).unwrap_or(started).max(started);
            if !self.routes.proxy_is_online(proxy.host_id) && now.since(seen) > PROXY_FORGOTTEN_AFTER {
                tracing::info!(host_id = %proxy.host_id, "a proxy that is gone is forgotten");
                self.forget(Kind::Proxy, &proxy.host_id.to_string(), mirrored.revision).await?;
            }
        }
        self.tidy_invites(now).await
    }

    async fn tidy_invites(&self, now: Wall) -> Result<(), StoreError> {
        let (items, _) = self.records.items(&keys::invites()).await?;
        for item in items {
            let expired = decode::<InviteRecord>(&item).is_ok_and(|invite| invite.value.expires <= now);
            if expired {
                let condition = Condition::RevisionIs(item.key.clone(), item.revision);
                ignore_race(
                    self.records.commit(vec![condition], vec![Operation::Delete { key: item.key }]).await,
                )?;
            }
        }
        Ok(())
    }

    /// Signs how long the audit chain is, if it has grown since the last time.
    pub(crate) async fn checkpoint(&self) -> Result<(), RequestError> {
        let Some(head) = self.records.read::<Chain>(&keys::audit_head()).await? else { return Ok(()) };
        let chain = head.value;
        let before = self.records.read::<u64>(&keys::audit_checkpointed()).await?;
        if before.is_some_and(|before| before.value >= chain.length) {
            return Ok(());
        }
        let cluster = self.authorities.cluster().clone();
        let bytes = Checkpoint { cluster, chain, time: self.clock.wall() }.encode();
        let signature = self.authorities.sign_policy(&SignedCheckpoint::message(&bytes));
        let checkpoint = CheckpointRecord { bytes, signature };
        let operations = vec![
            put(keys::audit_checkpoint(chain.length), &checkpoint),
            put(keys::audit_checkpointed(), &chain.length),
        ];
        let written = self.records.commit(Vec::new(), operations).await;
        written.map(|_| ()).map_err(RequestError::store("write a checkpoint"))
    }

    /// Forgets processes whose certificates ran out long ago.
    pub(crate) async fn tidy_hosts(&self) -> Result<(), StoreError> {
        let now = self.clock.wall();
        let (items, _) = self.records.items(&keys::hosts()).await?;
        for item in items {
            let Ok(record) = decode::<HostRecord>(&item) else { continue };
            let ended = record.value.renewed_at.after(self.config.lifetimes.host);
            if now.since(ended) > HOST_FORGOTTEN_AFTER {
                let condition = Condition::RevisionIs(item.key.clone(), item.revision);
                let delete = Operation::Delete { key: item.key };
                ignore_race(self.records.commit(vec![condition], vec![delete]).await)?;
            }
        }
        Ok(())
    }

    /// Deletes a resource and what belongs to it, unless it has changed meanwhile.
    async fn forget(&self, kind: Kind, name: &str, at: wayleave_store::Revision) -> Result<(), StoreError> {
        let Some(key) = keys::resource(kind, name) else { return Ok(()) };
        let mut operations = vec![Operation::Delete { key: key.clone() }];
        operations.extend(self.goes_with(kind, name));
        ignore_race(self.records.commit(vec![Condition::RevisionIs(key, at)], operations).await)
    }
}

fn has_expired(resource: &Resource, now: Wall) -> bool {
    let lock_ends = match resource {
        Resource::Lock(lock) => lock.spec.expires,
        _ => None,
    };
    [resource.metadata().expires, lock_ends].into_iter().flatten().any(|end| end <= now)
}

fn ignore_race(result: Result<wayleave_store::Committed, StoreError>) -> Result<(), StoreError> {
    match result {
        Ok(_) | Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
