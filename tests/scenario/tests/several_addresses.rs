//! Several Auth and proxy addresses: nobody depends on the one that stands in his file.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::{Duration, Instant};
use wayleave_scenario::{
    Cluster, Forwarder, Manner, NodeFile, OneTimeCodes, Way, canary, check_all, free_port, wait_until,
};

#[test]
fn several_addresses() {
    let mut cluster = Cluster::builder("several-addresses").proxies(2).nodes(&["web-1"]).peering(2).start();
    check_all!(&mut cluster;
        a_proxy_knows_several_auth_services,
        a_login_outlives_the_proxy_it_was_made_at,
        events_arrive_while_the_configured_proxy_is_down,
        an_agent_starts_while_its_configured_proxy_is_down,
        g_a_configured_proxy_that_hangs_costs_moments,
    );
}

fn enters(cluster: &Cluster, proxy: usize, node: &str) -> bool {
    cluster.ssh(&cluster.identity(), proxy).run(node, &[], "true").output().code == Some(0)
}

/// Whether Auth has an event with this text.
fn is_noted(cluster: &Cluster, text: &str) -> bool {
    let files = std::fs::read_dir(cluster.auth_file.data_dir.join("backend")).unwrap();
    files
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap_or_default())
        .any(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
}

/// The first is closed, the second hangs, the third is it.
fn a_proxy_knows_several_auth_services(cluster: &mut Cluster) {
    let hanging = Forwarder::start(cluster.auth_file.listen);
    hanging.set(Manner::Blackhole);
    let mut file = cluster.proxy_file("proxy-3");
    file.auth_before = vec![free_port(), hanging.address()];
    let mut node: NodeFile = cluster.node_file("db-1");
    node.way = Way::Auths(vec![free_port(), cluster.auth_file.listen]);
    let web = cluster.add_proxy(file).file.web;
    wait_until("the third proxy", || std::net::TcpStream::connect(web).is_ok());
    cluster.add_node(node);
    cluster.wait_reachable(2, "db-1");
    // What it passes on goes to one that answers, too.
    wait_until("Auth to answer through the third proxy", || {
        cluster.way(&cluster.identity(), 2).arg("ls").output().code == Some(0)
    });
}

fn a_login_outlives_the_proxy_it_was_made_at(cluster: &mut Cluster) {
    let invitation = cluster.add_user("bob", "access", "root");
    let way = || cluster.scene.way().env("WAY_HOME", cluster.scene.path("home-bob"));
    let at = cluster.web(0).to_string();
    let shown = way().args(["invite", "show", &invitation.url, "--proxy", &at, "--format", "json"]).json();
    let code = OneTimeCodes::from_uri(shown["totp_uri"].as_str().unwrap()).next_code();
    let accept = way().args([
        "invite",
        "accept",
        &invitation.url,
        "--proxy",
        &at,
        "--password-stdin",
        "--totp",
        &code,
    ]);
    let password = canary("password");
    let _accepted = accept.input(format!("{password}\n")).output().succeeded();
    cluster.proxies[0].daemon.kill();
    let ls = cluster.scene.way().env("WAY_HOME", cluster.scene.path("home-bob")).arg("ls");
    assert!(ls.stdout().contains("web-1"));
    let ssh = cluster.scene.way().env("WAY_HOME", cluster.scene.path("home-bob"));
    ssh.args(["ssh", "root@web-1", "echo in"]).output().succeeded().printed("in");
    cluster.proxies[0].daemon.start();
    cluster.wait_reachable(0, "web-1");
}

fn events_arrive_while_the_configured_proxy_is_down(cluster: &mut Cluster) {
    // web-1 was configured with the first proxy.
    cluster.proxies[0].daemon.kill();
    wait_until("web-1 through the second proxy", || enters(cluster, 1, "web-1"));
    let ssh = cluster.ssh(&cluster.identity(), 1);
    let _entered = ssh.run("web-1", &[], "echo noted-while-down").output().succeeded();
    wait_until("the event to arrive", || is_noted(cluster, "echo noted-while-down"));
}

fn an_agent_starts_while_its_configured_proxy_is_down(cluster: &mut Cluster) {
    assert!(!cluster.proxies[0].daemon.is_running());
    assert_eq!(cluster.node("web-1").daemon.stop(), Some(0));
    cluster.node("web-1").daemon.start();
    cluster.wait_reachable(1, "web-1");
    let ssh = cluster.ssh(&cluster.identity(), 1);
    let _entered = ssh.run("web-1", &[], "echo noted-after-start").output().succeeded();
    wait_until("the event to arrive", || is_noted(cluster, "echo noted-after-start"));
    cluster.proxies[0].daemon.start();
    cluster.wait_reachable(0, "web-1");
}

fn g_a_configured_proxy_that_hangs_costs_moments(cluster: &mut Cluster) {
    cluster.proxies[0].daemon.pause();
    assert_eq!(cluster.node("web-1").daemon.stop(), Some(0));
    let begin = Instant::now();
    cluster.node("web-1").daemon.start();
    cluster.wait_reachable(1, "web-1");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    cluster.proxies[0].daemon.resume();
    cluster.wait_reachable(0, "web-1");
}
