//! Many streams between two proxies: as many as peers serve, beside readers that stall, and dials that are given up.

use crate::agent::Agent;
use crate::cluster::{Cluster, PATIENCE, Proxy, check_echo, request};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use wayleave_net::{Stream, connect_tls, write_message};
use wayleave_vocab::HostId;

/// Streams to one peer at the same time.
const STREAMS: usize = 2000;
/// Of which so many are opened at once: what is tested are the streams, not how fast this machine shakes hands.
const HANDSHAKES: usize = 200;
/// Clients that never read.
const STALLED: usize = 50;
/// What each of them sends, far more than windows and queues on the way hold.
const STALLED_BYTES: usize = 256 * 1024 * 1024;
/// Round trips beside them.
const ROUND_TRIPS: usize = 500;
/// Dials that are given up, each with a connection of its own.
const GIVEN_UP: usize = 100_000;
/// At the same time.
const CALLERS: usize = 64;

fn node() -> HostId {
    HostId::from_random([9; 16])
}

async fn roomy(cluster: &Cluster, id: u8) -> Proxy {
    let mut config = cluster.config(id);
    config.connections_max = 2 * STREAMS;
    cluster.proxy_with(config, |service| service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_streams_go_to_one_peer_at_the_same_time() {
    let cluster = Arc::new(Cluster::start().await);
    cluster.auth.add_node(node(), "web-1");
    let (home, ingress) = (roomy(&cluster, 1).await, Arc::new(roomy(&cluster, 2).await));
    let agent = Agent::connect(&cluster, &home.web, node()).await;
    drop(cluster.reach(&ingress, "web-1").await);
    let (mut opening, handshakes) = (JoinSet::new(), Arc::new(Semaphore::new(HANDSHAKES)));
    for _ in 0..STREAMS {
        let (cluster, ingress, handshakes) = (cluster.clone(), ingress.clone(), handshakes.clone());
        opening.spawn(async move {
            let _turn = handshakes.acquire().await;
            cluster.dial(&ingress, "web-1").await.expect("no dial is refused")
        });
    }
    let opened = tokio::time::timeout(PATIENCE, opening.join_all()).await;
    let mut streams = opened.expect("every dial ends in time");
    assert!(agent.tunnel.stream_count() >= STREAMS);
    for stream in &mut streams {
        check_echo(&mut **stream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stall_hold_up_nobody_else() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let (home, ingress) = (roomy(&cluster, 1).await, roomy(&cluster, 2).await);
    let _agent = Agent::connect(&cluster, &home.web, node()).await;
    let mut good = cluster.reach(&ingress, "web-1").await;
    let sent = Arc::new(AtomicUsize::new(0));
    let mut stalled = JoinSet::new();
    for _ in 0..STALLED {
        let mut stream = cluster.dial(&ingress, "web-1").await.unwrap();
        let sent = sent.clone();
        stalled.spawn(async move { send_without_reading(&mut *stream, &sent).await });
    }
    for _ in 0..ROUND_TRIPS {
        check_echo(&mut *good).await;
        check_echo(&mut *cluster.dial(&ingress, "web-1").await.unwrap()).await;
    }
    assert!(stalled.try_join_next().is_none(), "nobody on the way keeps all that, and nobody is cut off");
    assert!(sent.load(Ordering::Relaxed) < STALLED * STALLED_BYTES / 8);
}

async fn send_without_reading(stream: &mut dyn Stream, sent: &AtomicUsize) {
    let chunk = vec![7; 64 * 1024];
    for _ in 0..STALLED_BYTES / chunk.len() {
        if stream.write_all(&chunk).await.is_err() {
            return;
        }
        sent.fetch_add(chunk.len(), Ordering::Relaxed);
    }
}

/// An agent with two tunnels, so that dials race; connections between peers last through all of it.
#[tokio::test(flavor = "multi_thread")]
async fn dials_that_are_given_up_cost_no_connection_between_peers() {
    let cluster = Arc::new(Cluster::start().await);
    cluster.auth.add_node(node(), "web-1");
    let homes = [roomy(&cluster, 1).await, roomy(&cluster, 2).await];
    let ingress = roomy(&cluster, 3).await;
    let mut agents = Vec::new();
    for home in &homes {
        agents.push(Agent::connect(&cluster, &home.web, node()).await);
    }
    // Over every connection that the pool of a peer has, however dials are spread.
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(cluster.reach(&ingress, "web-1").await);
    }
    let tls = cluster.dial_tls(&cluster.authorities.user("alice"));
    let left = Arc::new(AtomicUsize::new(GIVEN_UP));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (left, tls, web) = (left.clone(), tls.clone(), ingress.web.clone());
        callers.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                let mut stream = connect_tls(&web, tls.clone()).await.unwrap();
                write_message(&mut stream, &request("web-1")).await.unwrap();
                stream.flush().await.unwrap();
                // At another moment of the dial each time.
                for _ in 0..caller {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    let _done = callers.join_all().await;
    for stream in &mut held {
        check_echo(&mut **stream).await;
    }
    check_echo(&mut *cluster.dial(&ingress, "web-1").await.unwrap()).await;
}
