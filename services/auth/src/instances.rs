//! Which Auth instances run on this backend: each keeps an entry under a lease, so that a restore can tell that somebody
//! would go on with what it replaces.

use crate::auth_core::AuthCore;
use crate::keys;
use crate::records::encode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use wayleave_runtime::Shutdown;
use wayleave_store::{LeaseId, StoreError};
use wayleave_vocab::{NodeName, Wall};

/// How long an instance counts without a sign of life.
const LEASE_TTL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long taking the entry away may hold up the end.
const LEAVE_DEADLINE: Duration = Duration::from_secs(2);

/// What is known of an instance.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuthInstanceRecord {
    pub(crate) v: u8,
    pub(crate) hostname: NodeName,
    pub(crate) address: String,
    pub(crate) version: String,
    pub(crate) started: Wall,
}

/// Keeps the entry of this instance until shutdown, then takes it away.
pub(crate) async fn run(core: Arc<AuthCore>, address: String, shutdown: Shutdown) {
    let record = AuthInstanceRecord {
        v: 1,
        hostname: core.config.hostname.clone(),
        address,
        version: core.config.version.clone(),
        started: core.clock.wall(),
    };
    let mut lease = None;
    let mut tick = tokio::time::interval(KEEP_ALIVE_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.until(tick.tick()).await.is_some() {
        let Some(kept) = shutdown.until(keep(&core, &record, lease)).await else { break };
        match kept {
            Ok(id) => lease = Some(id),
            Err(StoreError::LeaseNotFound { .. }) => {
                lease = None;
                tick.reset_immediately();
            }
            Err(StoreError::Closed) => return,
            Err(error) => tracing::debug!(%error, "the entry of this Auth Service cannot be kept"),
        }
    }
    if let Some(lease) = lease {
        // Otherwise it runs out by itself.
        let _ = tokio::time::timeout(LEAVE_DEADLINE, core.records.backend().lease_revoke(lease)).await;
    }
}

async fn keep(
    core: &AuthCore,
    record: &AuthInstanceRecord,
    lease: Option<LeaseId>,
) -> Result<LeaseId, StoreError> {
    let backend = core.records.backend();
    if let Some(lease) = lease {
        backend.lease_keep_alive(lease).await?;
        return Ok(lease);
    }
    let lease = backend.lease_grant(LEASE_TTL).await?;
    backend.put(&keys::auth_instance(core.host_id), encode(record), Some(lease)).await?;
    Ok(lease)
}
