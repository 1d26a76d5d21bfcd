//! A backend that answers nothing for a full minute, longer than any lease: nobody who lives is shown as offline, then or
//! afterwards, and everybody is reached all the time.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use wayleave_scenario::{Cluster, EtcdServer, PostgresServer, wait_until, wait_until_within};

/// Three times as long as a lease on routes (20 s).
const STALL: Duration = Duration::from_secs(60);
/// How long is looked afterwards: longer than such a lease.
const AFTERWARDS: Duration = Duration::from_secs(25);
const NODES: [&str; 2] = ["web-1", "db-1"];

#[test]
fn nobody_is_offline_because_postgresql_stood_still() {
    let server = PostgresServer::start(&[]);
    let url = format!("  conn_string: {}", server.url("postgres", ""));
    check("backend_stall_postgresql", &["storage:", "  type: postgresql", &url], |signal| {
        server.signal_all(signal);
    });
}

#[test]
fn nobody_is_offline_because_etcd_stood_still() {
    let server = EtcdServer::start(1, &[]);
    let peers = format!("  peers: [{}]", server.urls().join(", "));
    check("backend_stall_etcd", &["storage:", "  type: etcd", &peers], |signal| server.signal(0, signal));
}

fn check(name: &str, storage: &[&str], signal: impl Fn(Signal)) {
    let cluster =
        Cluster::builder(name).proxies(2).nodes(&NODES).peering(1).auth_instance_lines(storage).start();
    NODES.iter().for_each(|node| cluster.wait_listed(node, true));
    signal(Signal::SIGSTOP);
    let began = Instant::now();
    wait_until_within(STALL * 2, "the minute to be over", || {
        look(&cluster);
        began.elapsed() > STALL
    });
    signal(Signal::SIGCONT);
    let (resumed, mut looks) = (Instant::now(), 0);
    wait_until_within(AFTERWARDS * 2, "everybody to have been looked at for long enough", || {
        looks += usize::from(look(&cluster));
        resumed.elapsed() > AFTERWARDS
    });
    assert!(looks > 5, "{looks}");
    // What needs the backend is possible again.
    wait_until("a certificate to be issued", || {
        let sign = ["auth", "sign", "--user", "alice", "--ttl", "1h", "--overwrite", "--out"];
        let sign = cluster.admin().args(sign).arg(cluster.scene.path("again.id"));
        sign.output().code == Some(0)
    });
    for (proxy, node) in [(0, "web-1"), (1, "db-1")] {
        cluster.wait_reachable(proxy, node);
    }
}

/// Everybody is reached through every proxy, and nobody is offline if Auth can say. True when it could.
fn look(cluster: &Cluster) -> bool {
    for (proxy, node) in [0, 1].iter().flat_map(|proxy| NODES.map(|node| (*proxy, node))) {
        let way = cluster.way(&cluster.identity(), proxy).args(["ssh", &format!("root@{node}"), "echo in"]);
        way.output().succeeded().printed("in");
    }
    let listed = cluster.admin().args(["ls", "--format", "json"]).output();
    if listed.code != Some(0) {
        return false;
    }
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), NODES.len());
    assert!(listed.iter().all(|node| node["online"] == true), "{listed:?}");
    true
}
