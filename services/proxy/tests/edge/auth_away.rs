//! What happens at Auth while a proxy cannot hear it, and what it makes of that afterwards.

use crate::agent::Agent;
use crate::cluster::{Cluster, check_echo, until};
use wayleave_telemetry::Diagnostics;
use wayleave_vocab::HostId;

fn node() -> HostId {
    HostId::from_random([9; 16])
}

fn is_known(cluster: &Cluster, id: HostId) -> bool {
    let is_it = |known: &wayleave_api::auth::ProxyRecord| {
        known.host_id == id.to_string() && !known.peer_address.is_empty()
    };
    cluster.auth.proxies().iter().any(is_it)
}

#[tokio::test]
async fn a_proxy_that_auth_forgot_registers_again() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let (home, ingress) = (cluster.proxy(1).await, cluster.proxy(2).await);
    let _agent = Agent::connect(&cluster, &home.web, node()).await;
    check_echo(&mut *cluster.reach(&ingress, "web-1").await).await;
    cluster.auth.forget_proxy(home.id);
    until(|| is_known(&cluster, home.id)).await;
    check_echo(&mut *cluster.reach(&ingress, "web-1").await).await;
    // The same while it does not hear what Auth tells.
    cluster.auth.forget_proxy_unseen(home.id);
    until(|| is_known(&cluster, home.id)).await;
    check_echo(&mut *cluster.reach(&ingress, "web-1").await).await;
}

#[tokio::test]
async fn a_lease_that_was_lost_while_nobody_listened_makes_routes_suspect() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    // What is known of its routes elsewhere came by Auth, and with it the lease.
    let config = wayleave_proxy::ProxyConfig { pushes_routes: false, ..cluster.config(1) };
    let home = cluster.proxy_with(config, |service| service).await;
    let diagnostics = Diagnostics::default();
    let shown = diagnostics.clone();
    let _ingress = cluster.proxy_with(cluster.config(2), |service| service.diagnostics(&shown)).await;
    let _agent = Agent::connect(&cluster, &home.web, node()).await;
    let shows = |line: &str| diagnostics.metrics.render().lines().any(|found| found == line);
    until(|| shows("proxy_routes{state=\"fresh\"} 1")).await;
    // Those who start over are told of no routes: no proxy holds a lease any more.
    cluster.auth.interrupt_watches();
    until(|| shows("proxy_routes{state=\"suspect\"} 1")).await;
}
