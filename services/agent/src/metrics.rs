//! What this agent counts, and what keeps it from its work.

use crate::service::AgentStatus;
use wayleave_telemetry::{Counter, Diagnostics, Finding, Gauge, Registry};

/// The counters of tunnels and streams.
pub(crate) struct AgentMetrics {
    pub(crate) dials: Counter,
    pub(crate) dials_failed: Counter,
    pub(crate) tunnels_lost: Counter,
    pub(crate) streams: Gauge,
    pub(crate) streams_taken: Counter,
    pub(crate) streams_refused: Counter,
}

impl AgentMetrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let dials = |result: &str| {
            let help = "Attempts to bring up a tunnel to a proxy.";
            registry.counter("agent_tunnel_dials_total", help, &[("result", result)])
        };
        let taken = |result: &str| {
            let help = "Streams that proxies opened.";
            registry.counter("agent_streams_total", help, &[("result", result)])
        };
        Self {
            dials: dials("ok"),
            dials_failed: dials("failed"),
            tunnels_lost: registry.counter("agent_tunnels_lost_total", "Tunnels that ended.", &[]),
            streams: registry.gauge("agent_streams", "Streams that are served now.", &[]),
            streams_taken: taken("ok"),
            streams_refused: taken("refused"),
        }
    }
}

/// Shows the tunnels that are up; without any the agent is of no use to anybody.
pub(crate) fn register(diagnostics: &Diagnostics, status: AgentStatus) {
    let shown = status.clone();
    let help = "Proxies to which a tunnel is up.";
    diagnostics.metrics.computed_gauge("agent_tunnels_connected", help, &[], move || {
        Some(u32::try_from(shown.tunnels()).map_or(f64::MAX, f64::from))
    });
    diagnostics.health.check(move || {
        let text = "no tunnel to any proxy is up: check the address of the proxies and the network to them; the log \
                    says why each attempt failed";
        let is_cut_off = status.tunnels() == 0;
        is_cut_off.then(|| Finding::unready("no_tunnels", text)).into_iter().collect()
    });
}
