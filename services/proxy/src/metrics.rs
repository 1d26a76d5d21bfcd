//! What this proxy counts. Names are the field's where it has one for the same thing.

use crate::service::Shared;
use std::sync::{Arc, Weak};
use std::time::Instant;
use wayleave_dial::DialRefusal;
use wayleave_peering::Refusal;
use wayleave_telemetry::{Counter, Durations, Registry};

/// What a connection on a public port turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Auth,
    Tunnel,
    Dial,
    Web,
    Ssh,
}

/// Every one, in the order of [`ProxyMetrics::connections`].
const PROTOCOLS: [(Protocol, &str); 5] = [
    (Protocol::Auth, "auth"),
    (Protocol::Tunnel, "tunnel"),
    (Protocol::Dial, "dial"),
    (Protocol::Web, "web"),
    (Protocol::Ssh, "ssh"),
];

/// How a dial ended, as a label.
const RESULTS: [&str; 9] =
    ["ok", "unknown", "ambiguous", "offline", "not_here", "denied", "unavailable", "invalid", "timed_out"];

/// How a dial of a peer failed, as the field says it.
const PEER_ERRORS: [&str; 5] =
    ["TUNNEL_NOT_FOUND", "TUNNEL_DIAL", "PROXY_UNAVAILABLE", "TUNNEL_TIMED_OUT", "TUNNEL_REFUSED"];

/// The counters that are touched while streams open.
pub(crate) struct ProxyMetrics {
    connections: [Counter; PROTOCOLS.len()],
    pub(crate) refused: Counter,
    pub(crate) handshakes: Durations,
    pub(crate) handshake_waits: Durations,
    pub(crate) handshakes_failed: Counter,
    pub(crate) tunnels_accepted: Counter,
    pub(crate) tunnels_ended: Counter,
    dials_local: [Counter; RESULTS.len()],
    dials_peer: [Counter; RESULTS.len()],
    dial_time_local: Durations,
    dial_time_peer: Durations,
    pub(crate) node_failures: Counter,
    peer_errors: [Counter; PEER_ERRORS.len()],
    served_for_peers: [Counter; RESULTS.len()],
    pub(crate) bytes_from_peers: Counter,
    pub(crate) bytes_to_peers: Counter,
    pub(crate) bytes_from_clients: Counter,
    pub(crate) bytes_to_clients: Counter,
    pub(crate) cluster_interruptions: Counter,
    pub(crate) routes_interruptions: Counter,
}

impl ProxyMetrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let dials = |way: &str| {
            let help = "Dials of clients by the way that was taken and by result.";
            RESULTS.map(|result| registry.counter("dials_total", help, &[("way", way), ("result", result)]))
        };
        let dial_time = |way: &str| {
            let help = "Time from a client's request to the agent's answer, by the way that was taken.";
            registry.durations("dial_seconds", help, &[("way", way)])
        };
        let bytes = |direction: &str| {
            let help = "Bytes of streams of this proxy's clients.";
            registry.counter("proxy_stream_bytes_total", help, &[("direction", direction)])
        };
        let peer_bytes = |direction: &str| {
            let help = "Bytes on connections that peers made to this proxy.";
            registry.counter("proxy_peer_server_bytes_total", help, &[("direction", direction)])
        };
        let interruptions = |stream: &str| {
            let help = "Streams to Auth that broke.";
            registry.counter("proxy_auth_interruptions_total", help, &[("stream", stream)])
        };
        let counter = |name, help| registry.counter(name, help, &[]);
        Self {
            connections: PROTOCOLS.map(|(_, protocol)| {
                let help = "Connections to the public ports, by what they were.";
                registry.counter("proxy_connections_total", help, &[("protocol", protocol)])
            }),
            refused: counter(
                "proxy_connections_refused_total",
                "Connections to the public port that ended with an error.",
            ),
            handshakes: registry.durations("proxy_handshake_seconds", "TLS handshakes that succeeded.", &[]),
            handshake_waits: registry.durations(
                "proxy_handshake_wait_seconds",
                "How long connections wait until their TLS handshake is begun.",
                &[],
            ),
            handshakes_failed: counter("proxy_handshakes_failed_total", "TLS handshakes that failed."),
            tunnels_accepted: counter("reverse_tunnels_accepted_total", "Tunnels of agents that came up."),
            tunnels_ended: counter("reverse_tunnels_ended_total", "Tunnels of agents that ended."),
            dials_local: dials("tunnel"),
            dials_peer: dials("peer-tunnel"),
            dial_time_local: dial_time("tunnel"),
            dial_time_peer: dial_time("peer-tunnel"),
            node_failures: counter(
                "failed_connect_to_node_attempts_total",
                "Dials of clients that reached no agent.",
            ),
            peer_errors: PEER_ERRORS.map(|error| {
                let help = "Attempts through a peer that failed, by reason.";
                registry.counter("proxy_peer_client_dial_error_total", help, &[("error_type", error)])
            }),
            served_for_peers: RESULTS.map(|result| {
                let help = "Dials that peers asked of this proxy, by result.";
                registry.counter("proxy_peer_server_dials_total", help, &[("result", result)])
            }),
            bytes_from_peers: peer_bytes("received"),
            bytes_to_peers: peer_bytes("sent"),
            bytes_from_clients: bytes("from_client"),
            bytes_to_clients: bytes("to_client"),
            cluster_interruptions: interruptions("cluster"),
            routes_interruptions: interruptions("routes"),
        }
    }

    pub(crate) fn connection(&self, protocol: Protocol) {
        let known = PROTOCOLS.iter().zip(&self.connections).find(|((known, _), _)| *known == protocol);
        if let Some((_, counter)) = known {
            counter.increment();
        }
    }

    /// A client's dial has ended; `is_local` when this proxy held, or would have held, the tunnel.
    pub(crate) fn dialled(&self, began: Instant, is_local: bool, refusal: Option<&DialRefusal>) {
        let (dials, time) = match is_local {
            true => (&self.dials_local, &self.dial_time_local),
            false => (&self.dials_peer, &self.dial_time_peer),
        };
        count(&RESULTS, dials, result(refusal));
        match refusal {
            None => time.observe_since(began),
            Some(_) => self.node_failures.increment(),
        }
    }

    pub(crate) fn peer_failed(&self, refusal: Refusal) {
        let error = match refusal {
            Refusal::NotHere { .. } => "TUNNEL_NOT_FOUND",
            Refusal::Unreachable => "TUNNEL_DIAL",
            Refusal::Unavailable => "PROXY_UNAVAILABLE",
            Refusal::TimedOut => "TUNNEL_TIMED_OUT",
            Refusal::Final => "TUNNEL_REFUSED",
        };
        count(&PEER_ERRORS, &self.peer_errors, error);
    }

    pub(crate) fn served_peer(&self, refusal: Option<&DialRefusal>) {
        count(&RESULTS, &self.served_for_peers, result(refusal));
    }

    /// Dials of clients that succeeded and that failed.
    pub(crate) fn dials(&self) -> (u64, u64) {
        let all = self.dials_local.iter().chain(&self.dials_peer).map(Counter::get).sum::<u64>();
        let failed = self.node_failures.get();
        (all.saturating_sub(failed), failed)
    }
}

fn count(labels: &[&str], counters: &[Counter], label: &str) {
    if let Some((_, counter)) = labels.iter().zip(counters).find(|(known, _)| **known == label) {
        counter.increment();
    }
}

fn result(refusal: Option<&DialRefusal>) -> &'static str {
    refusal.map_or("ok", refusal_kind)
}

/// A refusal in one word.
pub(crate) fn refusal_kind(refusal: &DialRefusal) -> &'static str {
    match refusal {
        DialRefusal::UnknownTarget { .. } => "unknown",
        DialRefusal::Ambiguous { .. } => "ambiguous",
        DialRefusal::Offline { .. } => "offline",
        DialRefusal::NotHere { .. } => "not_here",
        DialRefusal::Denied { .. } => "denied",
        DialRefusal::Unavailable { .. } => "unavailable",
        DialRefusal::Invalid { .. } => "invalid",
        DialRefusal::TimedOut { .. } => "timed_out",
    }
}

/// Registers what is known anyway and asked for when somebody reads.
pub(crate) fn register_computed(registry: &Registry, shared: &Arc<Shared>) {
    let gauge = |name, help, labels: &[(&'static str, &str)], read: fn(&Shared) -> usize| {
        let shared: Weak<Shared> = Arc::downgrade(shared);
        registry.computed_gauge(name, help, labels, move || shared.upgrade().map(|s| number(read(&s))));
    };
    gauge("wayleave_reverse_tunnels_connected", "Tunnels of agents that are held here.", &[], |shared| {
        shared.registry.counts().tunnels
    });
    gauge("wayleave_connected_agents", "Agents with a tunnel here.", &[], |s| s.registry.counts().agents);
    let help = "Streams through tunnels that are held here, those of `ssh -R` included.";
    gauge("wayleave_reverse_tunnel_streams", help, &[], |shared| shared.registry.stream_count());
    gauge("proxy_client_streams", "Streams of this proxy's clients.", &[], |s| s.client_streams.get());
    let help = "Connections of peers that are served now.";
    gauge("proxy_peer_server_connections", help, &[], |shared| shared.peers_served.get());
    let help = "Known routes of all proxies, by what they are worth.";
    gauge("proxy_routes", help, &[("state", "fresh")], |s| s.routes.with_table(|t| t.route_counts().fresh));
    gauge("proxy_routes", help, &[("state", "suspect")], |shared| {
        shared.routes.with_table(|table| table.route_counts().suspect)
    });
    let help = "Peers of this proxy, by how the connection stands.";
    let peers = |state, read| gauge("proxy_peer_client_connections", help, &[("state", state)], read);
    peers("READY", |shared| shared.peers.counts().ready);
    peers("CONNECTING", |shared| shared.peers.counts().connecting);
    peers("TRANSIENT_FAILURE", |shared| shared.peers.counts().failing);
    let help = "Problems with the addresses and identities of peers.";
    gauge("proxy_peer_problems", help, &[], |shared| shared.problems().len());
    let help = "1 while Auth tells this proxy what the cluster looks like.";
    gauge("proxy_auth_connected", help, &[("stream", "cluster")], |s| usize::from(s.cluster.is_following()));
    gauge("proxy_auth_connected", help, &[("stream", "routes")], |s| usize::from(s.routes.is_published()));
    let tasks = shared.tasks.clone();
    let help = "Tasks of this proxy that panicked, which is a bug.";
    registry.computed_counter("proxy_task_panics_total", help, &[], move || Some(number(tasks.panics())));
}

fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}
