//! Tells Auth now and then how this proxy is doing, for administrators who look.

use crate::service::Shared;
use std::sync::Arc;
use std::time::Duration;
use wayleave_api::auth::ProxyStatusReport;
use wayleave_api::auth::host_client::HostClient;
use wayleave_runtime::{Clock, Shutdown};

/// Bounds of what Auth may ask for.
const INTERVAL_MIN: Duration = Duration::from_millis(500);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Pause after a report that did not arrive.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Reports until shutdown. A report that is lost is followed by the next one.
pub(crate) async fn run(shared: Arc<Shared>, shutdown: Shutdown) {
    loop {
        let mut auth = HostClient::new(shared.auth.clone());
        let reporting = tokio::time::timeout(REPORT_TIMEOUT, auth.report_status(report(&shared)));
        let pause = match shutdown.until(reporting).await {
            None => return,
            Some(Ok(Ok(answer))) => {
                Duration::from_millis(answer.into_inner().next_ms).clamp(INTERVAL_MIN, INTERVAL_MAX)
            }
            Some(Ok(Err(status))) => {
                tracing::debug!(error = %status.message(), "a report did not arrive");
                RETRY_PAUSE
            }
            Some(Err(_)) => RETRY_PAUSE,
        };
        if shutdown.until(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

fn report(shared: &Shared) -> ProxyStatusReport {
    let (tunnels, peers) = (shared.registry.counts(), shared.peers.counts());
    let routes = shared.routes.with_table(|table| table.route_counts());
    let (dials_ok, dials_failed) = shared.metrics.dials();
    let uptime = shared.clock.mono().since_origin();
    let count = |number: usize| number as u64;
    ProxyStatusReport {
        incarnation: shared.routes.incarnation().0,
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        draining: shared.draining.is_requested(),
        agents: count(tunnels.agents),
        tunnels: count(tunnels.tunnels),
        client_streams: count(shared.client_streams.get()),
        tunnel_streams: count(shared.registry.stream_count()),
        dials_ok,
        dials_failed,
        bytes_from_clients: shared.metrics.bytes_from_clients.get(),
        bytes_to_clients: shared.metrics.bytes_to_clients.get(),
        routes_fresh: count(routes.fresh),
        routes_suspect: count(routes.suspect),
        peers_ready: count(peers.ready),
        peers_connecting: count(peers.connecting),
        peers_failing: count(peers.failing),
    }
}
