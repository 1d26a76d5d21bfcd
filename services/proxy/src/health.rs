//! What keeps this proxy from its work, or will.

use crate::service::Shared;
use std::sync::Arc;
use std::time::Duration;
use wayleave_runtime::Clock;
use wayleave_telemetry::{Finding, Health};

/// A policy that Auth has not confirmed for this long is worth a word; heads come every 15 s.
const POLICY_AGE_MAX: Duration = Duration::from_secs(120);

pub(crate) fn register(health: &Health, shared: &Arc<Shared>) {
    let shared = Arc::downgrade(shared);
    health.check(move || shared.upgrade().map(|shared| findings(&shared)).unwrap_or_default());
}

fn findings(shared: &Shared) -> Vec<Finding> {
    let mut found = Vec::new();
    if shared.draining.is_requested() {
        found.push(Finding::unready("draining", "the proxy is ending: agents and clients go elsewhere"));
    }
    if !*shared.cluster.ready.borrow() {
        let text = "the proxy has not learned yet what the cluster looks like: it waits for Auth";
        found.push(Finding::unready("cluster_unknown", text));
    } else if !shared.cluster.is_following() {
        let text = "Auth does not answer: what is known stays in use, logins and changes wait";
        found.push(Finding::degraded("auth_unreachable", text));
    } else if !shared.routes.is_published() {
        let text = "Auth does not keep this proxy's routes now: peers are told directly";
        found.push(Finding::degraded("routes_unpublished", text));
    }
    if let Some(age) = shared.policy.age(shared.clock.wall()).filter(|age| *age > POLICY_AGE_MAX) {
        let text = format!(
            "no word of Auth on the policy for {} s: check Auth, and the clocks here and there",
            age.as_secs()
        );
        found.push(Finding::degraded("policy_stale", text));
    }
    let peers = shared.problems();
    found
        .extend(peers.into_iter().map(|problem| Finding::degraded(problem.kind.code(), problem.to_string())));
    found
}
