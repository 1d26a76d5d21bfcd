//! Processes whose clocks are wrong: a little is borne, much is refused with a message that names the clock, and nothing
//! is let in for it.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;
use wayleave_scenario::{Checks, Cluster, Daemon, check_all, skewed, wait_until};

/// Within what certificates are backdated for.
const LITTLE: [&str; 2] = ["+40s", "-40s"];
/// Longer than any certificate lives.
const AHEAD: &str = "+900d";
const BEHIND: &str = "-2d";
/// Longer than the user's certificate lives, shorter than those of processes.
const HOURS_AHEAD: &str = "+3h";

#[test]
fn clocks() {
    let mut cluster = Cluster::builder("clocks").proxies(1).nodes(&["web-1"]).start();
    let mut checks = Checks::default();
    check_all!(checks, &mut cluster;
        seconds_are_borne,
        d_a_process_with_a_wrong_clock_does_not_join,
        d_a_client_with_a_wrong_clock_is_told,
        d_a_node_with_a_wrong_clock_lets_nobody_in,
        d_an_agent_with_a_wrong_clock_is_told,
    );
    checks.end();
}

/// Starts what a configuration file says with a wrong clock.
fn start_skewed(cluster: &Cluster, name: &str, config: &Path, by: &str) -> Daemon {
    let program = skewed(&cluster.scene.start_program(config), by);
    let mut daemon = cluster.scene.daemon_by(name, program);
    daemon.start();
    daemon
}

fn enters(cluster: &Cluster, node: &str) -> bool {
    let ssh = cluster.ssh(&cluster.identity(), 0);
    ssh.run(node, &[], "echo in").output().stdout_text() == "in\n"
}

fn seconds_are_borne(cluster: &mut Cluster) {
    for (name, by) in ["near-1", "near-2"].into_iter().zip(LITTLE) {
        let file = cluster.node_file(name);
        let config = cluster.scene.write(&format!("{name}.yaml"), file.text());
        let mut daemon = start_skewed(cluster, name, &config, by);
        wait_until(name, || enters(cluster, name));
        let way = skewed(&cluster.way(&cluster.identity(), 0), by);
        way.args(["ssh", "root@web-1", "echo in"]).output().succeeded().printed("in");
        assert_eq!(daemon.stop(), Some(0));
    }
}

fn d_a_process_with_a_wrong_clock_does_not_join(cluster: &mut Cluster) {
    let node = cluster.node_file("far-node");
    let proxy = cluster.proxy_file("far-proxy");
    for (name, text) in [("far-node", node.text()), ("far-proxy", proxy.text())] {
        let config = cluster.scene.write(&format!("{name}.yaml"), text);
        for (by, what) in [(AHEAD, "has expired"), (BEHIND, "is not valid yet")] {
            let mut daemon = start_skewed(cluster, name, &config, by);
            daemon.wait_for_log(0, &format!("the other side {what} by the clock of this machine"));
            daemon.wait_for_log(0, "the clocks do not agree");
            assert!(daemon.is_running(), "it goes on when somebody has set the clock");
            assert_eq!(daemon.stop(), Some(1));
        }
    }
    assert_eq!(cluster.known_proxies(), 1);
}

fn d_a_client_with_a_wrong_clock_is_told(cluster: &mut Cluster) {
    let way = cluster.way(&cluster.identity(), 0);
    let proxy = cluster.web(0).to_string();
    let login = cluster.scene.way().env("WAY_HOME", cluster.scene.path("home-skewed"));
    let pin = cluster.pins.join(",");
    let login = login.args(["login", "--proxy", &proxy, "--user", "alice", "--ca-pin", &pin]);
    let login = login.args(["--password-stdin", "--totp", "123456"]).input("irrelevant\n");
    for (by, code) in [(AHEAD, 6), (BEHIND, 5)] {
        for arguments in [&["ls"][..], &["proxy", "ssh", "root@web-1:22"]] {
            let told = skewed(&way, by).args(arguments).output();
            let _told = told.ended_with(code).complaining("clock");
        }
        let _told = skewed(&login, by).output().ended_with(5).complaining("clock");
    }
}

/// Its clock is ahead of the end of the user's certificate, which everybody else takes.
fn d_a_node_with_a_wrong_clock_lets_nobody_in(cluster: &mut Cluster) {
    let file = cluster.node_file("ahead");
    let config = cluster.scene.write("ahead.yaml", file.text());
    let mut daemon = start_skewed(cluster, "ahead", &config, HOURS_AHEAD);
    let ssh = cluster.ssh(&cluster.identity(), 0);
    wait_until("the node to refuse by its clock", || {
        let output = ssh.run("ahead", &[], "echo in").output();
        assert_ne!(output.code, Some(0), "{output}");
        output.stderr_text().contains("by the clock of the machine that you reached")
    });
    assert_eq!(daemon.stop(), Some(0));
    assert!(enters(cluster, "web-1"));
}

/// It joined when its clock was right.
fn d_an_agent_with_a_wrong_clock_is_told(cluster: &mut Cluster) {
    let mut node = cluster.nodes.pop().unwrap();
    assert_eq!(node.daemon.stop(), Some(0));
    cluster.scene.expect_error("the certificates have run out and cannot be renewed");
    let config = cluster.scene.path("web-1.yaml");
    for (by, what) in [(AHEAD, "has expired"), (BEHIND, "is not valid yet")] {
        let name = format!("web-1-{}", if by == AHEAD { "ahead" } else { "behind" });
        let mut daemon = start_skewed(cluster, &name, &config, by);
        daemon.wait_for_log(0, &format!("the other side {what} by the clock of this machine"));
        assert!(!enters(cluster, "web-1"));
        assert_eq!(daemon.stop(), Some(0));
    }
    node.daemon.start();
    cluster.wait_reachable(0, "web-1");
}
