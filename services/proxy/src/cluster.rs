//! What this proxy knows of the cluster, from Auth: nodes, proxies, networking, policy, and routes of others.

use crate::routes::from_wire;
use crate::service::Shared;
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use wayleave_api::agent::{ClusterView, ProxyToAgent, proxy_to_agent};
use wayleave_api::auth::cluster_event::Event;
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::auth::{
    ClusterEvent, Networking, PolicyDelta, PolicySnapshot, ProxyRecord, ProxyRoutes, SignedHead,
    WatchClusterRequest,
};
use wayleave_keystore::deflate_policy;
use wayleave_peering::{NodeIndex, RouteTable, Source};
use wayleave_runtime::{Clock, Shutdown, random_u64};
use wayleave_vocab::{HostId, HostPort, Incarnation, NodeName, PolicyRevision, TunnelStrategy};

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Longest event: a policy of 64 MiB, its head, and their envelope.
const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024 + 64 * 1024;

/// Control messages for agents, encoded once for all of them.
#[derive(Clone, Default)]
pub(crate) struct Broadcast {
    /// Proxies and networking.
    pub(crate) view: Bytes,
    /// The policy, and its revision; sent to agents that hold an older one.
    pub(crate) snapshot: Option<(Bytes, PolicyRevision)>,
    /// What changed since the revision that it builds on, for agents that hold that one.
    pub(crate) delta: Option<(Bytes, PolicyRevision)>,
    /// The newest head.
    pub(crate) head: Bytes,
}

/// The cluster as this proxy knows it.
pub(crate) struct Cluster {
    state: Mutex<State>,
    /// What agents are told.
    pub(crate) broadcast: watch::Sender<Broadcast>,
    /// The proxies with their addresses, for peering.
    pub(crate) proxies: watch::Sender<BTreeMap<HostId, ProxyRecord>>,
    /// True once the initial state is there.
    pub(crate) ready: watch::Sender<bool>,
    /// Machines that publish themselves here are reached through this proxy only, whatever the strategy.
    is_always_peering: bool,
    /// Proxies reach what is connected here through each other.
    pub(crate) has_peering: watch::Sender<bool>,
    /// Where peers reach this proxy, while it serves them.
    pub(crate) peer_address: watch::Sender<Option<HostPort>>,
    /// Changes whenever Auth turns out not to know this proxy (any more).
    pub(crate) forgotten: watch::Sender<u64>,
    /// Auth tells what changes.
    is_following: AtomicBool,
}

#[derive(Default)]
struct State {
    nodes: NodeIndex,
    proxies: BTreeMap<HostId, ProxyRecord>,
    networking: Option<Networking>,
    /// The life of each proxy that holds a lease on its routes, and when that was told.
    leases: BTreeMap<HostId, (Incarnation, u64)>,
    revision: u64,
}

impl Cluster {
    pub(crate) fn new(is_always_peering: bool) -> Self {
        Self {
            state: Mutex::default(),
            is_always_peering,
            broadcast: watch::Sender::default(),
            proxies: watch::Sender::default(),
            ready: watch::Sender::new(false),
            has_peering: watch::Sender::new(false),
            peer_address: watch::Sender::new(None),
            forgotten: watch::Sender::new(0),
            is_following: AtomicBool::new(false),
        }
    }

    /// True while Auth tells what changes.
    pub(crate) fn is_following(&self) -> bool {
        self.is_following.load(Ordering::Relaxed)
    }

    /// Uses the index of node names.
    pub(crate) fn with_nodes<T>(&self, action: impl FnOnce(&NodeIndex) -> T) -> T {
        action(&self.lock().nodes)
    }

    /// The hello's view.
    pub(crate) fn view(&self) -> ClusterView {
        let state = self.lock();
        ClusterView { proxies: state.proxies.values().cloned().collect(), revision: state.revision }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A proxy that Auth does not know is no peer of anybody: it has to register again.
    fn note_if_forgotten(&self, own: HostId) {
        if !self.lock().proxies.contains_key(&own) {
            self.forgotten.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Tells agents and peering what has changed.
    fn publish(&self) {
        let (proxies, has_peering) = {
            let state = self.lock();
            let is_asked_for = state.networking.as_ref().is_some_and(has_peering);
            (state.proxies.clone(), self.is_always_peering || is_asked_for)
        };
        self.has_peering.send_if_modified(|known| std::mem::replace(known, has_peering) != has_peering);
        let view = encode(proxy_to_agent::Message::View(self.view()));
        self.broadcast.send_if_modified(|broadcast| {
            let changed = broadcast.view != view;
            broadcast.view = view;
            changed
        });
        self.proxies.send_if_modified(|known| {
            let changed = *known != proxies;
            *known = proxies;
            changed
        });
    }
}

pub(crate) fn encode(message: proxy_to_agent::Message) -> Bytes {
    Bytes::from(ProxyToAgent { message: Some(message) }.encode_to_vec())
}

/// Follows Auth until shutdown. A lost stream is resumed; what is known stays in use meanwhile.
pub(crate) async fn follow(shared: Arc<Shared>, shutdown: Shutdown) {
    let mut retry = RETRY_MIN;
    while !shutdown.is_requested() {
        let ended = shutdown.until(follow_once(&shared)).await;
        if shared.cluster.is_following.swap(false, Ordering::Relaxed) {
            shared.metrics.cluster_interruptions.increment();
        }
        match ended {
            None => return,
            Some(Ok(())) => retry = RETRY_MIN,
            Some(Err(status)) => {
                tracing::warn!(error = %status.message(), "following the cluster was interrupted, trying again");
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
        let pause = retry / 2 + Duration::from_millis(random_u64() % 200);
        let _ = shutdown.until(tokio::time::sleep(pause)).await;
    }
}

async fn follow_once(shared: &Arc<Shared>) -> Result<(), tonic::Status> {
    let held = shared.policy.revision();
    let request = WatchClusterRequest { policy_generation: held.generation, policy_counter: held.counter };
    let mut client = HostClient::new(shared.auth.clone()).max_decoding_message_size(EVENT_BYTES_MAX);
    let mut events = client.watch_cluster(request).await?.into_inner();
    // What is not mentioned until the initial state is complete does not exist any more.
    let mut initial = Some(State::default());
    let hosted = shared.registry.hosted();
    while let Some(event) = events.message().await? {
        // Heads and routes come often, and change nothing of what is told to all.
        let is_for_all = matches!(
            event.event,
            Some(
                Event::InitialStateSent(_)
                    | Event::ProxyPut(_)
                    | Event::ProxyDeletedHostId(_)
                    | Event::Networking(_)
            )
        );
        let was_initial = initial.is_some();
        let is_deletion = matches!(event.event, Some(Event::ProxyDeletedHostId(_)));
        handle(shared, event, &mut initial)?;
        if initial.is_none() && (was_initial || is_deletion) {
            shared.cluster.note_if_forgotten(shared.config.host_id);
        }
        if was_initial && initial.is_none() {
            let is_gone = |id: &&HostId| shared.cluster.with_nodes(|nodes| nodes.name(**id).is_none());
            hosted.iter().filter(is_gone).for_each(|id| shared.registry.forget(*id));
        }
        if initial.is_none() && is_for_all {
            shared.cluster.publish();
        }
        if initial.is_none() {
            shared.cluster.is_following.store(true, Ordering::Relaxed);
            shared.cluster.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        }
    }
    Ok(())
}

/// The networking settings as they are stored ask for peering.
fn has_peering(networking: &Networking) -> bool {
    match serde_json::from_str(&networking.tunnel_strategy_json) {
        Ok(TunnelStrategy::ProxyPeering { .. }) => true,
        Ok(TunnelStrategy::AgentMesh) => false,
        Err(error) => {
            tracing::warn!(%error, "the cluster's tunnel strategy is not understood");
            false
        }
    }
}

/// Fails when the watch must start over.
fn handle(
    shared: &Arc<Shared>,
    event: ClusterEvent,
    initial: &mut Option<State>,
) -> Result<(), tonic::Status> {
    let cluster = &shared.cluster;
    match event.event {
        Some(Event::InitialStateSent(_)) => {
            if let Some(state) = initial.take() {
                let state = State { revision: event.revision.max(state.revision), ..state };
                let mut leases = std::mem::take(&mut cluster.lock().leases);
                leases.retain(|proxy, _| !state.leases.contains_key(proxy));
                *cluster.lock() = state;
                for (proxy, (incarnation, told)) in leases {
                    lease_lost(shared, proxy, incarnation, event.revision.max(told));
                }
            }
        }
        Some(Event::Routes(routes)) => {
            if let Some((proxy, life)) = routes_changed(shared, &routes, event.revision) {
                cluster.lock().leases.insert(proxy, (life, event.revision));
                if let Some(state) = initial {
                    state.leases.insert(proxy, (life, event.revision));
                }
            }
        }
        Some(Event::RoutesLeaseLostProxyId(proxy)) => {
            if let Ok(proxy) = proxy.parse::<HostId>() {
                let held = cluster.lock().leases.remove(&proxy);
                if let Some((incarnation, _)) = held {
                    lease_lost(shared, proxy, incarnation, event.revision);
                }
            }
        }
        Some(Event::Snapshot(snapshot)) => policy_changed(shared, snapshot),
        Some(Event::Head(head)) => head_changed(shared, head),
        Some(Event::NodeDeletedHostId(id)) if initial.is_none() => {
            if let Ok(id) = id.parse::<HostId>() {
                shared.registry.forget(id);
            }
            change(&mut cluster.lock(), Event::NodeDeletedHostId(id), event.revision);
        }
        Some(Event::Delta(delta)) => delta_came(shared, delta)?,
        Some(other) => match initial {
            Some(state) => change(state, other, event.revision),
            None => change(&mut cluster.lock(), other, event.revision),
        },
        None => {}
    }
    Ok(())
}

fn change(state: &mut State, event: Event, revision: u64) {
    // What a proxy tells administrators only changes nothing here, and agents need not hear of it.
    if let Event::ProxyPut(proxy) = &event
        && proxy.host_id.parse().is_ok_and(|id: HostId| state.proxies.get(&id) == Some(proxy))
    {
        return;
    }
    state.revision = state.revision.max(revision);
    match event {
        Event::NodePutJson(json) => match node_names(&json) {
            Some((host, name)) => {
                if let Err(error) = state.nodes.insert(host, name) {
                    tracing::warn!(%error, "a node is not known by its name");
                }
            }
            None => tracing::warn!("Auth sent a node that cannot be read"),
        },
        Event::NodeDeletedHostId(id) => {
            if let Ok(id) = id.parse() {
                state.nodes.remove(id);
            }
        }
        Event::ProxyPut(proxy) => {
            if let Ok(id) = proxy.host_id.parse() {
                state.proxies.insert(id, proxy);
            }
        }
        Event::ProxyDeletedHostId(id) => {
            if let Ok(id) = id.parse::<HostId>() {
                state.proxies.remove(&id);
            }
        }
        Event::Networking(networking) => state.networking = Some(networking),
        Event::InitialStateSent(_)
        | Event::Routes(_)
        | Event::RoutesLeaseLostProxyId(_)
        | Event::Snapshot(_)
        | Event::Delta(_)
        | Event::Head(_) => {}
    }
}

/// The host id and the name under which a node is dialled.
fn node_names(json: &str) -> Option<(HostId, NodeName)> {
    let node: serde_json::Value = serde_json::from_str(json).ok()?;
    let id = node.pointer("/metadata/name")?.as_str()?.parse().ok()?;
    let name = node.pointer("/spec/hostname")?.as_str()?.parse().ok()?;
    Some((id, name))
}

/// Takes routes of another proxy; gives the life whose lease they show.
fn routes_changed(
    shared: &Arc<Shared>,
    routes: &ProxyRoutes,
    revision: u64,
) -> Option<(HostId, Incarnation)> {
    let now = shared.clock.mono();
    let (proxy, update) = routes.proxy_id.parse::<HostId>().ok().zip(routes.update.as_ref())?;
    if proxy == shared.config.host_id {
        return None;
    }
    let Some(update) = from_wire(proxy, update) else {
        tracing::warn!(%proxy, "Auth sent routes that cannot be read");
        return None;
    };
    let incarnation = update.incarnation;
    let taken = shared.routes.with_table(|table| {
        table.handle_update(Source::Watch, update, now)?;
        table.handle_lease(proxy, incarnation, true, revision, now)
    });
    if let Err(error) = taken {
        tracing::warn!(%proxy, %error, "routes are refused");
    }
    shared.routes.note_learned();
    Some((proxy, incarnation))
}

fn lease_lost(shared: &Shared, proxy: HostId, incarnation: Incarnation, revision: u64) {
    let now = shared.clock.mono();
    let lost = |table: &mut RouteTable| table.handle_lease(proxy, incarnation, false, revision, now);
    if let Err(error) = shared.routes.with_table(lost) {
        tracing::warn!(%proxy, %error, "a lost lease cannot be noted");
    }
}

fn policy_changed(shared: &Arc<Shared>, snapshot: PolicySnapshot) {
    let Some(head) = snapshot.head.clone() else { return };
    let now = shared.clock.wall();
    shared.policy.accept_successions(snapshot.links());
    let accepted = shared.policy.accept_snapshot(&snapshot.payload, &head.payload, &head.signature, now);
    if let Err(error) = accepted {
        tracing::warn!(error = &error as &dyn std::error::Error, "Auth sent a policy that is refused");
        return;
    }
    relay(shared, snapshot, None);
}

/// A delta that does not lead to what Auth signed makes the watch start over, which brings the whole policy.
fn delta_came(shared: &Arc<Shared>, delta: PolicyDelta) -> Result<(), tonic::Status> {
    let Some(head) = delta.head.clone() else { return Ok(()) };
    let now = shared.clock.wall();
    shared.policy.accept_successions(delta.links());
    shared
        .policy
        .accept_delta(&delta.payload, &head.payload, &head.signature, now)
        .map_err(|error| tonic::Status::data_loss(format!("a change of policy does not fit: {error}")))?;
    let Some(whole) = shared.policy.watch().borrow().clone() else { return Ok(()) };
    let snapshot = PolicySnapshot {
        payload: whole.encode(),
        head: Some(head),
        successions: delta.successions.clone(),
        deflated_payload: Vec::new(),
    };
    relay(shared, snapshot, Some(delta));
    Ok(())
}

/// Encodes once what all agents are told: the whole for those who are further behind, what changed for the others.
fn relay(shared: &Arc<Shared>, mut snapshot: PolicySnapshot, delta: Option<PolicyDelta>) {
    let revision = shared.policy.revision();
    tracing::debug!(%revision, "the policy has changed");
    match deflate_policy(&snapshot.payload) {
        Ok(deflated) => {
            snapshot.deflated_payload = deflated;
            snapshot.payload.clear();
        }
        Err(error) => tracing::warn!(%error, "the policy is relayed as it is"),
    }
    let message = encode(proxy_to_agent::Message::Snapshot(snapshot));
    let delta = delta.map(|delta| {
        let from = PolicyRevision { generation: delta.from_generation, counter: delta.from_counter };
        (encode(proxy_to_agent::Message::Delta(delta)), from)
    });
    shared.cluster.broadcast.send_modify(|broadcast| {
        broadcast.snapshot = Some((message, revision));
        broadcast.delta = delta;
    });
}

fn head_changed(shared: &Arc<Shared>, head: SignedHead) {
    let now = shared.clock.wall();
    if let Err(error) = shared.policy.accept_head(&head.payload, &head.signature, now) {
        tracing::warn!(error = &error as &dyn std::error::Error, "Auth sent a policy head that is refused");
        return;
    }
    let message = encode(proxy_to_agent::Message::Head(head));
    shared.cluster.broadcast.send_modify(|broadcast| broadcast.head = message);
}
