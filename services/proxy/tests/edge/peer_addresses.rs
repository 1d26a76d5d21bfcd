//! Peer addresses that are not one proxy's own: behind a balancer, given twice, or answered by nobody; and what a proxy
//! shows of itself.

use crate::agent::Agent;
use crate::cluster::{Cluster, check_echo, until};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use wayleave_runtime::{Shutdown, TaskGroup};
use wayleave_telemetry::{Diagnostics, State};
use wayleave_vocab::{HostId, HostPort};

/// A balancer that gives each connection to the next of its targets.
async fn balancer(targets: Arc<std::sync::Mutex<Vec<HostPort>>>, tasks: &TaskGroup) -> HostPort {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = HostPort::from_socket(listener.local_addr().unwrap());
    let (group, next) = (tasks.clone(), AtomicUsize::new(0));
    tasks.spawn("balancer", async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let target = {
                let targets = targets.lock().unwrap();
                targets.get(number % targets.len().max(1)).cloned()
            };
            let Some(target) = target else { continue };
            group.spawn_many(async move {
                if let Ok(mut far) = TcpStream::connect((target.host(), target.port())).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    address
}

fn codes(diagnostics: &Diagnostics) -> Vec<&'static str> {
    diagnostics.health.readiness().reasons.iter().map(|finding| finding.code).collect()
}

fn problems(cluster: &Cluster) -> Vec<String> {
    cluster.auth.proxies().into_iter().flat_map(|proxy| proxy.problems).collect()
}

#[tokio::test]
async fn a_peer_address_behind_a_balancer_is_named() {
    let cluster = Cluster::start().await;
    let targets = Arc::default();
    let balanced = balancer(Arc::clone(&targets), &cluster.tasks).await;
    let diagnostics = Diagnostics::default();
    diagnostics.health.started();
    let one = cluster.proxy(1).await;
    let mut config = cluster.config(2);
    config.peer_listen = std::net::SocketAddr::from(([127, 0, 0, 1], free_port().await));
    let own = HostPort::from_socket(config.peer_listen);
    config.peer_public = Some(balanced.clone());
    *targets.lock().unwrap() = vec![own, one.peer.clone()];
    let shown = diagnostics.clone();
    let two = cluster.proxy_with(config, |service| service.diagnostics(&shown)).await;
    // The proxy itself finds out, the other one too, and Auth is told.
    until(|| codes(&diagnostics).contains(&"peer_address_not_its_own")).await;
    assert_eq!(diagnostics.health.readiness().status, State::Degraded, "it goes on working");
    until(|| {
        let told = problems(&cluster);
        let of = |part: &str| told.iter().filter(|text| text.contains(part)).count();
        of(&balanced.to_string()) >= 2 && of(&two.id.to_string()) >= 2 && of(&one.id.to_string()) >= 1
    })
    .await;
}

#[tokio::test]
async fn a_peer_address_that_two_proxies_give_is_named() {
    let cluster = Cluster::start().await;
    let one = cluster.proxy(1).await;
    let diagnostics = Diagnostics::default();
    let mut config = cluster.config(2);
    config.peer_public = Some(one.peer.clone());
    let shown = diagnostics.clone();
    let two = cluster.proxy_with(config, |service| service.diagnostics(&shown)).await;
    until(|| codes(&diagnostics).contains(&"peer_address_duplicate")).await;
    until(|| {
        problems(&cluster).iter().any(|text| {
            [one.id.to_string(), two.id.to_string(), one.peer.to_string(), "peer_public_addr".to_owned()]
                .iter()
                .all(|part| text.contains(part))
        })
    })
    .await;
}

#[tokio::test]
async fn a_proxy_shows_tunnels_dials_and_peers() {
    let cluster = Cluster::start().await;
    let node = HostId::from_random([9; 16]);
    cluster.auth.add_node(node, "web-1");
    let diagnostics = Diagnostics::default();
    let shown = diagnostics.clone();
    let home = cluster.proxy_with(cluster.config(1), |service| service.diagnostics(&shown)).await;
    let other_diagnostics = Diagnostics::default();
    let shown = other_diagnostics.clone();
    let other = cluster.proxy_with(cluster.config(2), |service| service.diagnostics(&shown)).await;
    let _agent = Agent::connect(&cluster, &home.web, node).await;
    let mut direct = cluster.reach(&home, "web-1").await;
    check_echo(&mut *direct).await;
    let mut through = cluster.reach(&other, "web-1").await;
    check_echo(&mut *through).await;
    let shows = |diagnostics: &Diagnostics, line: &str| {
        diagnostics.metrics.render().lines().any(|found| found == line)
    };
    for line in [
        "wayleave_reverse_tunnels_connected 1",
        "wayleave_connected_agents 1",
        "wayleave_reverse_tunnel_streams 2",
        "proxy_client_streams 1",
        "dials_total{way=\"tunnel\",result=\"ok\"} 1",
        "dial_seconds_count{way=\"tunnel\"} 1",
        "proxy_peer_server_dials_total{result=\"ok\"} 1",
        "proxy_peer_client_connections{state=\"READY\"} 1",
        "proxy_stream_bytes_total{direction=\"from_client\"} 13",
        "proxy_stream_bytes_total{direction=\"to_client\"} 13",
        "proxy_connections_total{protocol=\"tunnel\"} 1",
        "proxy_auth_connected{stream=\"cluster\"} 1",
    ] {
        until(|| shows(&diagnostics, line)).await;
    }
    for line in [
        "wayleave_reverse_tunnels_connected 0",
        "dials_total{way=\"peer-tunnel\",result=\"ok\"} 1",
        "proxy_routes{state=\"fresh\"} 1",
    ] {
        until(|| shows(&other_diagnostics, line)).await;
    }
    assert!(codes(&diagnostics).is_empty(), "{:?}", codes(&diagnostics));
    home.shutdown.request();
    until(|| codes(&diagnostics).contains(&"draining")).await;
    assert!(!diagnostics.metrics.render().contains("web-1"), "no names in metrics");
}

/// What leads to a peer and loses everything, from some moment on.
async fn blackhole(target: HostPort, silent: Shutdown, tasks: &TaskGroup) -> HostPort {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = HostPort::from_socket(listener.local_addr().unwrap());
    let group = tasks.clone();
    tasks.spawn("blackhole", async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (target, silent) = (target.clone(), silent.clone());
            group.spawn_many(async move {
                let Ok(mut far) = TcpStream::connect((target.host(), target.port())).await else { return };
                let _ = silent.until(tokio::io::copy_bidirectional(&mut near, &mut far)).await;
                // Both stay open, and nobody reads them.
                std::future::pending::<()>().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn g_a_peer_that_answers_nothing_any_more_is_noticed_within_seconds() {
    let cluster = Cluster::start().await;
    let diagnostics = Diagnostics::default();
    let shown = diagnostics.clone();
    let _one = cluster.proxy_with(cluster.config(1), |service| service.diagnostics(&shown)).await;
    let mut config = cluster.config(2);
    config.peer_listen = std::net::SocketAddr::from(([127, 0, 0, 1], free_port().await));
    let silent = Shutdown::new();
    let led = blackhole(HostPort::from_socket(config.peer_listen), silent.clone(), &cluster.tasks).await;
    config.peer_public = Some(led);
    let _two = cluster.proxy_with(config, |service| service).await;
    let is_ready = || {
        let ready = "proxy_peer_client_connections{state=\"READY\"} 1";
        diagnostics.metrics.render().lines().any(|found| found == ready)
    };
    until(is_ready).await;
    silent.request();
    let began = std::time::Instant::now();
    until(|| !is_ready()).await;
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}
