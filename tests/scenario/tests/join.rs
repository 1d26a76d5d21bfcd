//! Joining: what lets a process in, what does not and what it is told, and joining again.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use wayleave_scenario::{Checks, Cluster, Daemon, NodeFile, Way, canary, check_all, note_canary, wait_until};

#[test]
fn joining() {
    let mut cluster = Cluster::builder("join").proxies(1).nodes(&["web-1"]).start();
    let mut checks = Checks::default();
    check_all!(checks, &cluster;
        a_token_that_nobody_made_is_refused,
        a_token_with_a_wrong_secret_is_refused,
        an_expired_token_is_refused,
        a_removed_token_is_refused,
        a_token_for_another_role_is_refused,
        a_process_without_a_token_says_what_is_missing,
        a_process_without_a_pin_trusts_nobody,
        a_process_with_a_wrong_pin_trusts_nobody,
        the_operator_reads_why_and_the_caller_only_what_he_may_know,
        m_secrets_are_on_no_command_line,
    );
    check_all!(checks, &mut cluster;
        a_token_is_good_for_several_machines,
        tokens_and_pins_may_stand_in_files,
        one_right_pin_among_others_is_enough,
        an_agent_may_join_at_auth_itself,
        a_joined_process_needs_no_token,
        joining_again_under_the_same_name_works_at_once,
        a_name_that_two_live_nodes_share_is_ambiguous,
        joining_for_another_role_keeps_the_host_id,
    );
    checks.end();
}

/// Starts a process by a file that must not get it in; gives its whole log.
#[track_caller]
fn refused(cluster: &Cluster, name: &str, change: impl FnOnce(&mut NodeFile)) -> String {
    let mut file = cluster.node_file(name);
    change(&mut file);
    let config = cluster.scene.write(&format!("{name}.yaml"), file.text());
    let mut daemon = cluster.scene.daemon(name, &config);
    daemon.start();
    let code = daemon.wait_failure();
    assert_eq!(code, 1, "{}", daemon.tail());
    assert!(!cluster.list().iter().any(|listed| listed["name"] == name), "{name} is a node now");
    assert!(!file.data_dir.join("identity").join("process.json").exists(), "{name} has an identity now");
    daemon.log_text()
}

#[track_caller]
fn assert_says(log: &str, parts: &[&str]) {
    let log = log.to_lowercase();
    for part in parts {
        assert!(log.contains(&part.to_lowercase()), "{part:?} not in\n{log}");
    }
}

fn a_token_that_nobody_made_is_refused(cluster: &Cluster) {
    let token = canary("unknown-token");
    let log = refused(cluster, "unknown-token", |file| file.token = token);
    assert_says(&log, &["token"]);
    let token = format!("no-such-name.{}", canary("unknown-token"));
    let log = refused(cluster, "unknown-name", |file| file.token = token);
    assert_says(&log, &["token"]);
}

fn a_token_with_a_wrong_secret_is_refused(cluster: &Cluster) {
    let token = cluster.add_token("node", "10m");
    let (name, _) = token.rsplit_once('.').unwrap();
    let wrong = format!("{name}.{}", canary("wrong-secret"));
    let log = refused(cluster, "wrong-secret", |file| file.token = wrong);
    assert_says(&log, &["token"]);
}

fn an_expired_token_is_refused(cluster: &Cluster) {
    let begin = Instant::now();
    let token = cluster.add_token("node", "1s");
    wait_until("the token to expire", || begin.elapsed() > Duration::from_millis(1200));
    let log = refused(cluster, "expired-token", |file| file.token = token);
    assert_says(&log, &["token"]);
}

fn a_removed_token_is_refused(cluster: &Cluster) {
    let token = cluster.add_token("node", "10m");
    let (name, _) = token.rsplit_once('.').unwrap();
    let _removed = cluster.admin().args(["tokens", "rm", name]).output().succeeded();
    let log = refused(cluster, "removed-token", |file| file.token = token);
    assert_says(&log, &["token"]);
}

fn a_token_for_another_role_is_refused(cluster: &Cluster) {
    let token = cluster.add_token("proxy", "10m");
    let log = refused(cluster, "wrong-role", |file| file.token = token);
    assert_says(&log, &["token"]);
}

fn a_process_without_a_token_says_what_is_missing(cluster: &Cluster) {
    let log = refused(cluster, "no-token", |file| file.token.clear());
    assert_says(&log, &["token", "tokens add"]);
}

/// The proxy's web certificate is of the cluster's own authority: without a pin nobody vouches for it.
fn a_process_without_a_pin_trusts_nobody(cluster: &Cluster) {
    let log = refused(cluster, "no-pin", |file| file.pins.clear());
    assert_says(&log, &["ca_pin"]);
    let log = refused(cluster, "no-pin-at-auth", |file| {
        file.pins.clear();
        file.way = Way::Auth(cluster.auth_file.listen);
    });
    assert_says(&log, &["ca_pin"]);
}

fn a_process_with_a_wrong_pin_trusts_nobody(cluster: &Cluster) {
    let pin = format!("sha256:{}", "0f".repeat(32));
    let log = refused(cluster, "wrong-pin", |file| file.pins = vec![pin.clone()]);
    assert_says(&log, &["ca_pin"]);
    let log = refused(cluster, "wrong-pin-at-auth", |file| {
        file.pins = vec![pin];
        file.way = Way::Auth(cluster.auth_file.listen);
    });
    assert_says(&log, &["ca_pin"]);
}

/// A caller learns only with the right secret what a token is for.
fn the_operator_reads_why_and_the_caller_only_what_he_may_know(cluster: &Cluster) {
    let mark = cluster.auth.log_mark();
    let token = cluster.add_token("node", "10m");
    let (name, _) = token.rsplit_once('.').unwrap();
    let wrong = format!("{name}.{}", canary("told"));
    let wrong_secret = refused(cluster, "told-wrong-secret", |file| file.token = wrong);
    let unknown = refused(cluster, "told-unknown", |file| file.token = format!("no-such.{}", canary("told")));
    let refusal = |log: &str| log.lines().find(|line| line.starts_with("error:")).map(str::to_owned);
    assert_eq!(refusal(&wrong_secret), refusal(&unknown));
    let operator = cluster.auth.log_since(mark).to_lowercase();
    assert!(operator.contains("wrong secret for the token"), "{operator}");
    assert!(operator.contains("there is no token no-such"), "{operator}");
}

fn m_secrets_are_on_no_command_line(cluster: &Cluster) {
    for daemon in cluster.daemons() {
        let line = wayleave_scenario::command_line(daemon.pid());
        assert_eq!(wayleave_scenario::is_canary_in(line.as_bytes()), None);
    }
}

fn enters(cluster: &Cluster, node: &str) {
    cluster.ssh(&cluster.identity(), 0).run(node, &[], "echo in").output().succeeded().printed("in");
}

fn a_token_is_good_for_several_machines(cluster: &mut Cluster) {
    let token = cluster.add_token("node", "10m");
    for name in ["several-1", "several-2"] {
        let mut file = cluster.node_file(name);
        file.token.clone_from(&token);
        cluster.add_node(file);
        cluster.wait_reachable(0, name);
    }
}

fn tokens_and_pins_may_stand_in_files(cluster: &mut Cluster) {
    let token = cluster.add_token("node", "10m");
    let (name, secret) = token.rsplit_once('.').unwrap();
    let secret = cluster.scene.write("secret-file", format!("{secret}\n"));
    let pin = cluster.scene.write("pin-file", format!("{}\n", cluster.pins[0]));
    let mut file = cluster.node_file("in-files");
    file.token.clear();
    file.pins = vec![pin.display().to_string()];
    file.instance_lines.extend([
        "join_params:".to_owned(),
        "  method: token".to_owned(),
        format!("  token_name: {name}"),
        format!("  token_secret: {}", secret.display()),
    ]);
    cluster.add_node(file);
    cluster.wait_reachable(0, "in-files");
    enters(cluster, "in-files");
}

fn one_right_pin_among_others_is_enough(cluster: &mut Cluster) {
    let mut file = cluster.node_file("two-pins");
    file.pins.insert(0, format!("sha256:{}", "0f".repeat(32)));
    cluster.add_node(file);
    cluster.wait_reachable(0, "two-pins");
}

fn an_agent_may_join_at_auth_itself(cluster: &mut Cluster) {
    let mut file = cluster.node_file("at-auth");
    file.way = Way::Auth(cluster.auth_file.listen);
    cluster.add_node(file);
    cluster.wait_reachable(0, "at-auth");
}

/// Neither at its next start, nor when the token that is still in its file has been removed.
fn a_joined_process_needs_no_token(cluster: &mut Cluster) {
    let token = cluster.add_token("node", "10m");
    let (name, _) = token.rsplit_once('.').unwrap();
    let mut file = cluster.node_file("restarted");
    file.token.clone_from(&token);
    cluster.add_node(file);
    cluster.wait_reachable(0, "restarted");
    let before = host_id(cluster, "restarted");
    let _removed = cluster.admin().args(["tokens", "rm", name]).output().succeeded();
    restart(&mut cluster.node("restarted").daemon);
    cluster.wait_reachable(0, "restarted");
    assert_eq!(host_id(cluster, "restarted"), before);
}

fn restart(daemon: &mut Daemon) {
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.tail());
    daemon.start();
}

fn host_id(cluster: &Cluster, node: &str) -> String {
    let listed = cluster.list();
    let found: Vec<_> =
        listed.iter().filter(|listed| listed["name"] == node && listed["online"] == true).collect();
    assert_eq!(found.len(), 1, "{listed:?}");
    found[0]["host_id"].as_str().unwrap().to_owned()
}

/// The data directory is gone, and with it the host id: under a new one `ssh node` works at once, although the
/// record of the old one is still there.
fn joining_again_under_the_same_name_works_at_once(cluster: &mut Cluster) {
    let before = host_id(cluster, "web-1");
    let token = cluster.add_token("node", "10m");
    let node = cluster.node("web-1");
    node.daemon.kill();
    fs::remove_dir_all(&node.file.data_dir).unwrap();
    node.file.token = token;
    let text = node.file.text();
    let _written = cluster.scene.write("web-1.yaml", text);
    let begin = Instant::now();
    cluster.node("web-1").daemon.start();
    cluster.wait_reachable(0, "web-1");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    enters(cluster, "web-1");
    assert_ne!(host_id(cluster, "web-1"), before);
}

fn a_name_that_two_live_nodes_share_is_ambiguous(cluster: &mut Cluster) {
    let mut file = cluster.node_file("several-1");
    file.data_dir = cluster.scene.path("several-1-again");
    let config = cluster.scene.write("several-1-again.yaml", file.text());
    let mut second = cluster.scene.daemon("several-1-again", &config);
    second.start();
    let way = |arguments: &[&str]| cluster.way(&cluster.identity(), 0).args(arguments).output();
    wait_until("two live nodes of one name", || {
        cluster.list().iter().filter(|node| node["name"] == "several-1" && node["online"] == true).count()
            == 2
    });
    wait_until("the proxy to know both", || way(&["ssh", "root@several-1", "true"]).code != Some(0));
    let refused = way(&["ssh", "root@several-1", "true"]).ended_with(255);
    let _told = refused.complaining("2 nodes are called \"several-1\"");
    // The id says which.
    let listed = cluster.list();
    for node in listed.iter().filter(|node| node["name"] == "several-1") {
        let target = format!("root@{}", node["host_id"].as_str().unwrap());
        let _entered = way(&["ssh", &target, "true"]).succeeded();
    }
    assert_eq!(second.stop(), Some(0));
    // One is left: the name is good again.
    wait_until("the name to be good again", || way(&["ssh", "root@several-1", "true"]).code == Some(0));
}

fn joining_for_another_role_keeps_the_host_id(cluster: &mut Cluster) {
    let before = host_id(cluster, "two-pins");
    let token = cluster.add_token("proxy,node", "10m");
    let web = wayleave_scenario::free_port();
    let listen = cluster.auth_file.listen;
    let node = cluster.node("two-pins");
    assert_eq!(node.daemon.stop(), Some(0));
    node.file.token = token;
    node.file.way = Way::Auth(listen);
    let mut text = node.file.text();
    text.push_str(&format!("proxy_service:\n  web_listen_addr: {web}\n  public_addr: {web}\n"));
    let _written = cluster.scene.write("two-pins.yaml", text);
    cluster.node("two-pins").daemon.start();
    cluster.wait_reachable(0, "two-pins");
    assert_eq!(host_id(cluster, "two-pins"), before);
    let way = cluster.scene.way().arg("-i").arg(cluster.identity()).args(["--proxy", &web.to_string()]);
    wait_until("the new proxy to serve", || {
        way.clone().args(["ssh", "root@web-1", "true"]).output().code == Some(0)
    });
}

/// A file with a secret in it is a canary's place, but nobody else's.
#[test]
fn m_the_harness_finds_what_it_looks_for() {
    let secret = canary("self-test");
    assert!(wayleave_scenario::is_canary_in(format!("x{secret}y").as_bytes()).is_some());
    note_canary("another-self-test-secret");
    assert!(wayleave_scenario::is_canary_in(b"another-self-test-secret").is_some());
    assert!(!Path::new(&secret).exists());
}
