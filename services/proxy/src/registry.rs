//! The tunnels of the agents that are connected here. This proxy is the only authority on them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use wayleave_net::Tunnel;
use wayleave_vocab::HostId;

/// Tunnels of one agent at a time: it needs one, two while it replaces it; a machine that was cloned has more.
const TUNNELS_PER_AGENT_MAX: usize = 8;

/// One tunnel of one agent.
#[derive(Clone)]
struct Held {
    id: u64,
    /// When the agent's process started: a newer life is preferred.
    started_ms: u64,
    tunnel: Tunnel,
    /// The agent takes no more streams on it.
    is_leaving: bool,
}

/// All tunnels held here, by agent.
pub(crate) struct Registry {
    held: Mutex<Tunnels>,
}

#[derive(Default)]
struct Tunnels {
    by_host: HashMap<HostId, Vec<Held>>,
    next_id: u64,
}

/// Keeps a tunnel registered; dropping it removes the tunnel.
pub(crate) struct Registered<'a> {
    registry: &'a Registry,
    host_id: HostId,
    id: u64,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { held: Mutex::default() }
    }

    /// Registers a tunnel; the agent is reachable through it from now on. One too many closes the oldest.
    pub(crate) fn register(&self, host_id: HostId, started_ms: u64, tunnel: Tunnel) -> Registered<'_> {
        let mut held = self.lock();
        held.next_id += 1;
        let id = held.next_id;
        let tunnels = held.by_host.entry(host_id).or_default();
        tunnels.push(Held { id, started_ms, tunnel, is_leaving: false });
        if tunnels.len() > TUNNELS_PER_AGENT_MAX {
            tracing::warn!(agent = %host_id, "one agent has too many tunnels here: its oldest is closed");
            tunnels.remove(0).tunnel.close();
        }
        Registered { registry: self, host_id, id }
    }

    /// The best tunnel of an agent and its number: of its newest life, the one that came last.
    pub(crate) fn find(&self, host_id: HostId) -> Option<(u64, Tunnel)> {
        let held = self.lock();
        let tunnels = held.by_host.get(&host_id)?;
        tunnels
            .iter()
            .filter(|h| !h.is_leaving && !h.tunnel.is_ended())
            .max_by_key(|h| (h.started_ms, h.id))
            .map(|h| (h.id, h.tunnel.clone()))
    }

    /// No agent has a tunnel here.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().by_host.is_empty()
    }

    /// Streams that run through tunnels held here.
    pub(crate) fn stream_count(&self) -> usize {
        self.lock().by_host.values().flatten().map(|h| h.tunnel.stream_count()).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Tunnels> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registered<'_> {
    /// The agent takes no more streams on this tunnel; those that it has go on.
    pub(crate) fn leave(&self) {
        let mut held = self.registry.lock();
        let tunnels = held.by_host.get_mut(&self.host_id).into_iter().flatten();
        tunnels.filter(|h| h.id == self.id).for_each(|h| h.is_leaving = true);
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut held = self.registry.lock();
        if let Some(tunnels) = held.by_host.get_mut(&self.host_id) {
            tunnels.retain(|h| h.id != self.id);
            if tunnels.is_empty() {
                held.by_host.remove(&self.host_id);
            }
        }
    }
}
