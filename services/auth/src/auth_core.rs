//! What every part of the Auth Service shares: settings, clock, backend, authorities, mirror, log.

use crate::audit_log::AuditLog;
use crate::authorities::Authorities;
use crate::config::AuthConfig;
use crate::metrics::AuthMetrics;
use crate::mirror::Mirror;
use crate::overview::Reports;
use crate::password::PasswordHasher;
use crate::rate_limit::RateLimiter;
use crate::records::Records;
use crate::request_error::RequestError;
use crate::routes::Routes;
use crate::snapshots::Snapshots;
use crate::token_secret::{SecretHash, generate};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use wayleave_api::auth::AuditRecord;
use wayleave_audit::{Event, EventBudgets};
use wayleave_runtime::Clock;
use wayleave_store::{Committed, Condition, Operation, StoreError};
use wayleave_vocab::{HostId, SystemRole};

/// The parts of a running Auth Service.
pub(crate) struct AuthCore {
    pub(crate) config: AuthConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) records: Records,
    pub(crate) authorities: Arc<Authorities>,
    /// Raised when the backend was restored or cloned.
    pub(crate) generation: u64,
    /// This Auth Service as a process of the cluster.
    pub(crate) host_id: HostId,
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) audit: AuditLog,
    pub(crate) metrics: AuthMetrics,
    pub(crate) reports: Reports,
    pub(crate) passwords: PasswordHasher,
    pub(crate) attempts: RateLimiter,
    pub(crate) questions: RateLimiter,
    /// How many refusals of known callers go to the audit log.
    pub(crate) noted_denials: RateLimiter,
    /// How much each process may add to the log.
    pub(crate) event_budgets: Mutex<EventBudgets>,
    pub(crate) static_tokens: Vec<HashedToken>,
    /// Compared with when there is no token of a name, so that the answer takes as long.
    pub(crate) no_secret: SecretHash,
}

/// A static token as it is kept in memory.
pub(crate) struct HashedToken {
    pub(crate) roles: BTreeSet<SystemRole>,
    pub(crate) hash: SecretHash,
}

impl HashedToken {
    pub(crate) fn all(config: &AuthConfig) -> Vec<Self> {
        config
            .static_tokens
            .iter()
            .map(|token| Self {
                roles: token.system_roles.iter().copied().collect(),
                hash: SecretHash::of(&token.secret),
            })
            .collect()
    }
}

impl AuthCore {
    /// Takes the events of a process off its budget.
    pub(crate) fn check_event_budget(
        &self,
        sender: HostId,
        records: &[AuditRecord],
    ) -> Result<(), RequestError> {
        let bytes = records.iter().map(|record| record.event_json.len() as u64).sum();
        let mut budgets = self.event_budgets.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(budgets.admit(sender, bytes, self.clock.mono())?)
    }

    /// Carries out a change and appends its events, all or nothing.
    pub(crate) async fn commit_audited(
        &self,
        conditions: Vec<Condition>,
        operations: Vec<Operation>,
        events: Vec<Event>,
    ) -> Result<Committed, StoreError> {
        let count = events.len() as u64;
        let committed = self.audit.commit(conditions, operations, events).await;
        match &committed {
            Ok(_) => self.metrics.events.add(count),
            // Somebody else was first: the caller tries again or tells.
            Err(
                StoreError::Conflict { .. } | StoreError::AlreadyExists { .. } | StoreError::NotFound { .. },
            ) => {}
            Err(_) => self.metrics.events_failed.add(count),
        }
        committed
    }
}

/// The hash of a secret that nobody knows.
pub(crate) fn unknown_secret() -> SecretHash {
    SecretHash::of(&generate())
}
