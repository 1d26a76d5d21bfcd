//! The tunnels of the agents that are connected here, and the machines that this proxy serves in the place of an agent.
//! This proxy is the only authority on them.

use crate::counted::StreamCount;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use wayleave_api::agent::AgentHello;
use wayleave_net::{Adapter, Tunnel};
use wayleave_vocab::{Capabilities, HostId};

/// Tunnels of one agent at a time: it needs one, two while it replaces it; a machine that was cloned has more.
const TUNNELS_PER_AGENT_MAX: usize = 8;

/// What an agent says of its process.
pub(crate) struct AgentLife {
    /// When it started: a newer life is preferred.
    started_ms: u64,
    capabilities: Arc<Capabilities>,
}

impl AgentLife {
    pub(crate) fn of(hello: &AgentHello) -> Self {
        let capabilities = Arc::new(Capabilities::told(&hello.capabilities));
        Self { started_ms: hello.started_ms, capabilities }
    }
}

/// One tunnel of one agent.
struct Held {
    id: u64,
    life: AgentLife,
    tunnel: Tunnel,
    /// The agent takes no more streams on it.
    is_leaving: bool,
}

/// All tunnels held here, by agent.
pub(crate) struct Registry {
    held: Mutex<Tunnels>,
    /// Streams to machines that this proxy serves itself.
    pub(crate) hosted_streams: StreamCount,
}

/// A machine without an agent that is connected here.
struct HostedHere {
    id: u64,
    adapter: Arc<dyn Adapter>,
    forgotten: watch::Sender<u64>,
}

/// How a host is reached from here.
#[derive(Clone)]
pub(crate) enum Way {
    /// Through its agent's tunnel, if that can do what is needed.
    Tunnel(Tunnel, Arc<Capabilities>),
    /// This proxy serves it.
    Here(Arc<dyn Adapter>),
}

#[derive(Default)]
struct Tunnels {
    by_host: HashMap<HostId, Vec<Held>>,
    hosted: HashMap<HostId, HostedHere>,
    next_id: u64,
}

/// How many agents have how many tunnels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RegistryCounts {
    pub(crate) agents: usize,
    pub(crate) tunnels: usize,
}

/// Keeps a tunnel registered; dropping it removes the tunnel.
pub(crate) struct Registered<'a> {
    registry: &'a Registry,
    host_id: HostId,
    id: u64,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { held: Mutex::default(), hosted_streams: StreamCount::default() }
    }

    /// Registers a tunnel; the agent is reachable through it from now on. One too many closes the oldest.
    pub(crate) fn register(&self, host_id: HostId, life: AgentLife, tunnel: Tunnel) -> Registered<'_> {
        let mut held = self.lock();
        held.next_id += 1;
        let id = held.next_id;
        let tunnels = held.by_host.entry(host_id).or_default();
        tunnels.push(Held { id, life, tunnel, is_leaving: false });
        if tunnels.len() > TUNNELS_PER_AGENT_MAX {
            tracing::warn!(agent = %host_id, "one agent has too many tunnels here: its oldest is closed");
            tunnels.remove(0).tunnel.close();
        }
        Registered { registry: self, host_id, id }
    }

    /// Registers a machine that this proxy serves itself. A number to remove it by, and what changes when the cluster may
    /// have forgotten it.
    pub(crate) fn host(&self, host_id: HostId, adapter: Arc<dyn Adapter>) -> (u64, watch::Receiver<u64>) {
        let mut held = self.lock();
        held.next_id += 1;
        let (id, (forgotten, heard)) = (held.next_id, watch::channel(0));
        held.hosted.insert(host_id, HostedHere { id, adapter, forgotten });
        (id, heard)
    }

    /// Removes such a machine. False when a newer one has its place.
    pub(crate) fn unhost(&self, host_id: HostId, id: u64) -> bool {
        let mut held = self.lock();
        let is_it = held.hosted.get(&host_id).is_some_and(|hosted| hosted.id == id);
        if is_it {
            held.hosted.remove(&host_id);
        }
        is_it
    }

    /// The machines that this proxy serves itself.
    pub(crate) fn hosted(&self) -> Vec<HostId> {
        self.lock().hosted.keys().copied().collect()
    }

    /// The cluster may know such a machine no more.
    pub(crate) fn forget(&self, host_id: HostId) {
        if let Some(hosted) = self.lock().hosted.get(&host_id) {
            hosted.forgotten.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Whether a host is reached from here.
    pub(crate) fn has(&self, host_id: HostId) -> bool {
        self.find(host_id).is_some()
    }

    /// The best way to a host and its number: of an agent's newest life, the tunnel that came last.
    pub(crate) fn find(&self, host_id: HostId) -> Option<(u64, Way)> {
        let held = self.lock();
        if let Some(hosted) = held.hosted.get(&host_id) {
            return Some((hosted.id, Way::Here(hosted.adapter.clone())));
        }
        let tunnels = held.by_host.get(&host_id)?;
        tunnels
            .iter()
            .filter(|h| !h.is_leaving && !h.tunnel.is_ended())
            .max_by_key(|h| (h.life.started_ms, h.id))
            .map(|h| (h.id, Way::Tunnel(h.tunnel.clone(), h.life.capabilities.clone())))
    }

    /// How many there are.
    pub(crate) fn counts(&self) -> RegistryCounts {
        let held = self.lock();
        let tunnels = held.by_host.values().map(Vec::len).sum();
        RegistryCounts { agents: held.by_host.len(), tunnels }
    }

    /// No agent has a tunnel here.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().by_host.is_empty()
    }

    /// Streams that run through tunnels held here, and to machines that are served here.
    pub(crate) fn stream_count(&self) -> usize {
        let through: usize = self.lock().by_host.values().flatten().map(|h| h.tunnel.stream_count()).sum();
        through + self.hosted_streams.get()
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
