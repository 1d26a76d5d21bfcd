//! Proxies that die, hang, leave and come back, and an Auth Service that is away: who is reached, and when again.

use std::time::{Duration, Instant};
use wayleave_scenario::{Cluster, Running, check_all, wait_until};

/// How long a way round may take after a proxy died.
const WAY_ROUND: Duration = Duration::from_secs(20);

#[test]
fn proxies_come_and_go() {
    let mut cluster = Cluster::builder("peering")
        .proxies(2)
        .nodes(&["web-1", "db-1"])
        .peering(1)
        .instance_lines(&["shutdown_timeout: 30s"])
        .start();
    check_all!(&mut cluster;
        sessions_and_new_ones_go_on_without_auth,
        a_killed_ingress_proxy_is_gone_round,
        a_killed_home_proxy_is_left_for_another,
        g_a_home_proxy_that_hangs_costs_seconds,
        an_agent_that_hangs_is_offline_in_seconds,
        a_drained_proxy_lets_sessions_finish,
        a_drain_ends_after_its_time,
        a_change_of_strategy_is_followed_both_ways,
    );
}

fn enters(cluster: &Cluster, proxy: usize, node: &str) -> bool {
    cluster
        .ssh(&cluster.identity(), proxy)
        .run(node, &[], "true")
        .limit(Duration::from_secs(90))
        .output()
        .code
        == Some(0)
}

fn session(cluster: &Cluster, proxy: usize, node: &str) -> Running {
    let mut running = cluster.ssh(&cluster.identity(), proxy).run(node, &[], "echo begun; cat").start();
    running.wait_for_stdout("begun");
    running
}

#[track_caller]
fn assert_carries(running: &mut Running, text: &str) {
    running.write(format!("{text}\n"));
    running.wait_for_stdout(text);
}

/// The one proxy that holds the tunnel of a node, and the other.
fn home_and_other(cluster: &Cluster, node: &str) -> (usize, usize) {
    let mut found = Vec::new();
    wait_until("one proxy to hold the tunnel", || {
        found = cluster.holders(node);
        found.len() == 1
    });
    (found[0], 1 - found[0])
}

#[track_caller]
fn wait_enters(cluster: &Cluster, proxy: usize, node: &str, limit: Duration) {
    let begin = Instant::now();
    wait_until(&format!("{node} through proxy {proxy}"), || enters(cluster, proxy, node));
    assert!(begin.elapsed() < limit, "{node} through proxy {proxy} took {:?}", begin.elapsed());
}

fn sessions_and_new_ones_go_on_without_auth(cluster: &mut Cluster) {
    let mut running = session(cluster, 0, "web-1");
    cluster.auth.kill();
    assert_carries(&mut running, "without auth");
    for proxy in 0..2 {
        assert!(enters(cluster, proxy, "web-1") && enters(cluster, proxy, "db-1"));
    }
    let asked = cluster.way(&cluster.identity(), 0).arg("ls").limit(Duration::from_secs(90)).output();
    let _unreachable = asked.ended_with(5);
    let asked = cluster.admin().arg("status").limit(Duration::from_secs(90)).output();
    let _unreachable = asked.ended_with(5);
    cluster.auth.start();
    cluster.wait_auth();
    assert_carries(&mut running, "with auth again");
    assert!(enters(cluster, 0, "web-1"));
    cluster.wait_listed("web-1", true);
}

fn a_killed_ingress_proxy_is_gone_round(cluster: &mut Cluster) {
    let (home, ingress) = home_and_other(cluster, "web-1");
    assert!(enters(cluster, ingress, "web-1"));
    cluster.proxies[ingress].daemon.kill();
    let begin = Instant::now();
    assert!(enters(cluster, home, "web-1"));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    // Nobody is left without a tunnel.
    wait_enters(cluster, home, "db-1", WAY_ROUND);
    let told = cluster.way(&cluster.identity(), ingress).args(["proxy", "ssh", "root@web-1:22"]).output();
    let _unreachable = told.ended_with(5);
    cluster.proxies[ingress].daemon.start();
    wait_enters(cluster, ingress, "web-1", WAY_ROUND);
    wait_enters(cluster, ingress, "db-1", WAY_ROUND);
}

fn a_killed_home_proxy_is_left_for_another(cluster: &mut Cluster) {
    let (home, other) = home_and_other(cluster, "web-1");
    cluster.proxies[home].daemon.kill();
    wait_enters(cluster, other, "web-1", WAY_ROUND);
    assert_eq!(cluster.holders("web-1").into_iter().filter(|holder| *holder == other).count(), 1);
    // The same id in a new incarnation, at once.
    cluster.proxies[home].daemon.start();
    wait_enters(cluster, home, "web-1", WAY_ROUND);
    wait_enters(cluster, home, "db-1", WAY_ROUND);
    wait_enters(cluster, other, "db-1", WAY_ROUND);
}

/// It answers nothing and closes nothing, as behind a firewall that drops.
fn g_a_home_proxy_that_hangs_costs_seconds(cluster: &mut Cluster) {
    let (home, other) = home_and_other(cluster, "web-1");
    cluster.proxies[home].daemon.pause();
    let begin = Instant::now();
    let ssh = cluster.ssh(&cluster.identity(), other);
    let first = ssh.run("web-1", &[], "true").limit(Duration::from_secs(60)).output();
    assert!(begin.elapsed() < Duration::from_secs(45), "{:?}: {first}", begin.elapsed());
    // The agent finds out by itself, and moves.
    wait_enters(cluster, other, "web-1", Duration::from_secs(60));
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    cluster.proxies[home].daemon.resume();
    wait_enters(cluster, home, "web-1", WAY_ROUND);
}

fn an_agent_that_hangs_is_offline_in_seconds(cluster: &mut Cluster) {
    let (home, _) = home_and_other(cluster, "db-1");
    cluster.node("db-1").daemon.pause();
    let begin = Instant::now();
    let refused = cluster.way(&cluster.identity(), home).args(["proxy", "ssh", "root@db-1:22"]);
    let refused = refused.limit(Duration::from_secs(60)).output().ended_with(5);
    assert!(begin.elapsed() < Duration::from_secs(45), "{:?}: {refused}", begin.elapsed());
    cluster.wait_listed("db-1", false);
    cluster.node("db-1").daemon.resume();
    wait_enters(cluster, home, "db-1", Duration::from_secs(60));
}

/// Agents move first; what runs, runs on; nothing new is taken.
fn a_drained_proxy_lets_sessions_finish(cluster: &mut Cluster) {
    let (home, other) = home_and_other(cluster, "web-1");
    let mut through_home = session(cluster, home, "web-1");
    let mut through_other = session(cluster, other, "web-1");
    let mark = cluster.proxies[home].daemon.log_mark();
    cluster.proxies[home].daemon.signal(nix::sys::signal::Signal::SIGTERM);
    cluster.proxies[home].daemon.wait_for_log(mark, "draining");
    wait_enters(cluster, other, "web-1", WAY_ROUND);
    wait_enters(cluster, other, "db-1", WAY_ROUND);
    wait_until("new clients to be refused", || !enters(cluster, home, "web-1"));
    assert_carries(&mut through_home, "still here");
    assert_carries(&mut through_other, "me too");
    assert!(cluster.proxies[home].daemon.is_running());
    for running in [&mut through_home, &mut through_other] {
        running.close_input();
        let _ended = running.wait().succeeded();
    }
    let begin = Instant::now();
    assert_eq!(cluster.proxies[home].daemon.wait_exit(Duration::from_secs(25)), Some(Some(0)));
    assert!(begin.elapsed() < Duration::from_secs(15), "nothing was left to wait for: {:?}", begin.elapsed());
    cluster.proxies[home].daemon.start();
    wait_enters(cluster, home, "web-1", WAY_ROUND);
}

fn a_drain_ends_after_its_time(cluster: &mut Cluster) {
    let mut file = cluster.proxy_file("proxy-3");
    file.instance_lines = vec!["shutdown_timeout: 3s".into()];
    let web = cluster.add_proxy(file).file.web;
    wait_until("the third proxy", || std::net::TcpStream::connect(web).is_ok());
    wait_enters(cluster, 2, "web-1", WAY_ROUND);
    let mut running = session(cluster, 2, "web-1");
    let begin = Instant::now();
    cluster.proxies[2].daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(cluster.proxies[2].daemon.wait_exit(Duration::from_secs(20)), Some(Some(0)));
    assert!(begin.elapsed() >= Duration::from_millis(2900), "{:?}", begin.elapsed());
    // What was still running goes on through another.
    assert_carries(&mut running, "after the drain");
    running.close_input();
    let _ended = running.wait().succeeded();
    cluster.proxies.truncate(2);
    for proxy in 0..2 {
        wait_enters(cluster, proxy, "web-1", WAY_ROUND);
        wait_enters(cluster, proxy, "db-1", WAY_ROUND);
    }
}

/// Agents ask and follow, without a restart of theirs.
fn a_change_of_strategy_is_followed_both_ways(cluster: &mut Cluster) {
    let started: Vec<i32> = cluster.nodes.iter().map(|node| node.daemon.pid()).collect();
    let mut running = session(cluster, 0, "web-1");
    for (strategy, tunnels) in [("type: agent_mesh", 2), ("type: proxy_peering", 1)] {
        let before = cluster.auth_file.lines.clone();
        let change =
            |line: &String| if line.contains("type:") { format!("  {strategy}") } else { line.clone() };
        cluster.auth_file.lines = before.iter().map(change).collect();
        if strategy.contains("mesh") {
            cluster.auth_file.lines.retain(|line| !line.contains("agent_connection_count"));
        } else {
            cluster.auth_file.lines.push("  agent_connection_count: 1".into());
        }
        let _written = cluster.scene.write("auth.yaml", cluster.auth_file.text());
        assert_eq!(cluster.auth.stop(), Some(0));
        cluster.auth.start();
        cluster.wait_auth();
        for node in ["web-1", "db-1"] {
            wait_until(&format!("{node} to have {tunnels} tunnels"), || {
                cluster.holders(node).len() == tunnels
            });
        }
        assert_carries(&mut running, &format!("under {strategy}"));
    }
    assert_eq!(cluster.nodes.iter().map(|node| node.daemon.pid()).collect::<Vec<_>>(), started);
}
