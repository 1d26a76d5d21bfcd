//! Sessions whose proxies die under them: not a byte lost or repeated, in stock clients and in ours.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::Path;
use std::time::Duration;
use wayleave_scenario::{Cluster, Program, Running, Terminal, check_all, wait_until};

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn sessions_outlive_their_proxies() {
    let mut cluster = Cluster::builder("resumption").proxies(2).nodes(&["web-1"]).peering(1).start();
    check_all!(&mut cluster;
        stock_ssh_loses_no_byte_while_proxies_are_killed,
        what_was_resumed_is_told,
        stock_scp_copies_while_proxies_are_killed,
        way_scp_copies_while_proxies_are_killed,
        a_shell_goes_on_while_proxies_are_killed,
        g_a_proxy_that_hangs_is_left_within_seconds,
        a_session_waits_for_a_proxy_to_come_back,
        j_a_lock_ends_a_session_that_waits,
        a_role_can_want_no_resumption,
    );
}

/// Kills a proxy, and starts it again once what ran through it can have gone elsewhere.
fn kill_and_restart(cluster: &mut Cluster, proxy: usize) {
    cluster.proxies[proxy].daemon.kill();
    // The agent moves, and with it every stream.
    cluster.wait_reachable(1 - proxy, "web-1");
    cluster.proxies[proxy].daemon.start();
    cluster.wait_reachable(proxy, "web-1");
}

/// Kills one proxy after the other until the program ends; gives how many.
fn kill_until_ended(cluster: &mut Cluster, running: &mut Running) -> usize {
    let mut kills = 0;
    while !running.is_ended() {
        kill_and_restart(cluster, kills % 2);
        kills += 1;
    }
    kills
}

fn digest(program: Program, bytes: &[u8]) -> String {
    program.input(bytes).stdout().split_whitespace().next().unwrap().to_owned()
}

fn noise(bytes: usize, seed: u32) -> Vec<u8> {
    (0..u32::try_from(bytes).unwrap())
        .map(|i| (i ^ seed).wrapping_mul(2_246_822_519).to_le_bytes()[2])
        .collect()
}

fn stock_ssh_loses_no_byte_while_proxies_are_killed(cluster: &mut Cluster) {
    let ssh = cluster.ssh(&cluster.identity(), 0);
    let mut running = ssh.run("web-1", &[], "echo begun; sha256sum").limit(LIMIT).start();
    running.wait_for_stdout("begun");
    let mut sent = Vec::new();
    for piece in 0..4 {
        let bytes = noise(3_000_000, piece);
        running.write(&bytes);
        sent.extend_from_slice(&bytes);
        kill_and_restart(cluster, usize::try_from(piece).unwrap() % 2);
    }
    running.close_input();
    let said = running.wait().succeeded().stdout_text();
    assert_eq!(said.split_whitespace().nth(1).unwrap(), digest(cluster.scene.program("sha256sum"), &sent));
}

/// By the audit log, and by the status of the cluster.
fn what_was_resumed_is_told(cluster: &mut Cluster) {
    let told = |arguments: &[&str]| -> serde_json::Value {
        let output = cluster.admin().args(arguments).output().succeeded();
        serde_json::from_str(&output.stdout_text()).unwrap()
    };
    wait_until("the status to tell of four resumptions", || {
        let counts = &told(&["status", "--format", "json"])["resumptions"];
        counts["lost"].as_u64().unwrap() >= 4 && counts["resumed"].as_u64().unwrap() >= 4
    });
    let events = told(&["events", "ls", "--from", "1h", "--format", "json"]);
    let resumed = events.as_array().unwrap().iter().filter(|event| {
        event["event"] == "session.resumption"
            && event["action"] == "resumed"
            && event["outcome"] == "success"
    });
    assert!(resumed.count() >= 4, "{events}");
}

fn stock_scp_copies_while_proxies_are_killed(cluster: &mut Cluster) {
    let [from, to, back] = ["scp-from", "scp-to", "scp-back"].map(|name| cluster.scene.path(name));
    fs::write(&from, noise(24_000_000, 1)).unwrap();
    let ssh = cluster.ssh(&cluster.identity(), 0);
    let near = |path: &Path| path.display().to_string();
    let far = |path: &Path| format!("{}:{}", ssh.target("root", "web-1"), path.display());
    // Four megabytes a second, so that there is something to interrupt.
    let scp = ssh.program("scp").args(["-q", "-l", "32000"]).limit(LIMIT);
    for (source, target, made) in [(near(&from), far(&to), &to), (far(&to), near(&back), &back)] {
        let mut running = scp.clone().arg(source).arg(target).start();
        wait_until("the copy to be under way", || fs::metadata(made).is_ok_and(|file| file.len() > 100_000));
        let kills = kill_until_ended(cluster, &mut running);
        let _copied = running.wait().succeeded();
        assert!(kills > 0);
        assert!(fs::read(&from).unwrap() == fs::read(made).unwrap());
    }
}

fn way_scp_copies_while_proxies_are_killed(cluster: &mut Cluster) {
    let (from, to) = (cluster.scene.path("way-from"), cluster.scene.path("way-to"));
    fs::write(&from, noise(150_000_000, 2)).unwrap();
    let way = cluster.way(&cluster.identity(), 1).args(["scp", "-q"]).limit(LIMIT);
    let mut running = way.arg(&from).arg(format!("root@web-1:{}", to.display())).start();
    wait_until("the copy to be under way", || fs::metadata(&to).is_ok_and(|file| file.len() > 1_000_000));
    let kills = kill_until_ended(cluster, &mut running);
    let _copied = running.wait().succeeded();
    assert!(kills > 0);
    assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
    fs::remove_file(&from).unwrap();
    fs::remove_file(&to).unwrap();
}

fn a_shell_goes_on_while_proxies_are_killed(cluster: &mut Cluster) {
    let mark = cluster.node("web-1").daemon.log_mark();
    let command = cluster.way(&cluster.identity(), 0).args(["ssh", "root@web-1"]);
    let terminal = Terminal::start(&cluster.scene, "resumed", &command);
    terminal.line("n=0; while read -r line; do n=$((n+1)); echo \"got $n: $line.\"; done");
    terminal.line("first");
    let _shown = terminal.wait_for_screen("got 1: first.");
    for (number, proxy) in [0, 1, 0].into_iter().enumerate() {
        cluster.proxies[proxy].daemon.kill();
        // Typed while there may be no connection.
        terminal.line(&format!("typed-{number}"));
        let _shown = terminal.wait_for_screen(&format!("got {}: typed-{number}.", number + 2));
        cluster.proxies[proxy].daemon.start();
        cluster.wait_reachable(proxy, "web-1");
    }
    terminal.press(&["C-d"]);
    terminal.line("exit 7");
    let screen = terminal.wait_for_screen("[ended 7]");
    for number in 0..3 {
        let text = format!("typed-{number}.");
        assert_eq!(screen.matches(&text).count(), 1, "{screen}");
    }
    cluster.node("web-1").daemon.wait_for_log(mark, "the client of an SSH connection is back");
}

/// It answers nothing and closes nothing, as behind a firewall that drops.
fn g_a_proxy_that_hangs_is_left_within_seconds(cluster: &mut Cluster) {
    let mut running = cluster.ssh(&cluster.identity(), 0).run("web-1", &[], "echo begun; cat").start();
    running.wait_for_stdout("begun");
    cluster.proxies[0].daemon.pause();
    running.write("through the other\n");
    running.wait_for_stdout("through the other");
    cluster.proxies[0].daemon.resume();
    cluster.wait_reachable(0, "web-1");
    running.close_input();
    let output = running.wait().succeeded();
    assert_eq!(output.stdout_text(), "begun\nthrough the other\n");
}

/// Both are gone for a while: there is nobody to go through.
fn a_session_waits_for_a_proxy_to_come_back(cluster: &mut Cluster) {
    let mut running = cluster.ssh(&cluster.identity(), 0).run("web-1", &[], "echo begun; cat").start();
    running.wait_for_stdout("begun");
    cluster.proxies[0].daemon.kill();
    cluster.proxies[1].daemon.kill();
    running.write("nobody carries this yet\n");
    cluster.proxies[1].daemon.start();
    running.wait_for_stdout("nobody carries this yet");
    cluster.proxies[0].daemon.start();
    for proxy in 0..2 {
        cluster.wait_reachable(proxy, "web-1");
    }
    running.close_input();
    let _ended = running.wait().succeeded();
}

fn j_a_lock_ends_a_session_that_waits(cluster: &mut Cluster) {
    let _invitation = cluster.add_user("carol", "access", "root");
    let carol = cluster.sign("carol", "1h");
    let mut running = cluster.ssh(&carol, 0).run("web-1", &[], "echo begun; cat").start();
    running.wait_for_stdout("begun");
    cluster.proxies[0].daemon.kill();
    cluster.proxies[1].daemon.kill();
    let locked = ["locks", "add", "--user", "carol", "--message", "back on Monday"];
    let _locked = cluster.admin().args(locked).stdout();
    for proxy in 0..2 {
        cluster.proxies[proxy].daemon.start();
    }
    for proxy in 0..2 {
        cluster.wait_reachable(proxy, "web-1");
    }
    running.write("still there?\n");
    let output = running.wait();
    assert_eq!(output.code, Some(255), "{output}");
    assert!(!output.stdout_text().contains("still there?"), "{output}");
}

fn a_role_can_want_no_resumption(cluster: &mut Cluster) {
    let role = "kind: role\nversion: v7\nmetadata:\n  name: brief\nspec:\n  options:\n    max_detached: 0s\n  allow:\n    logins: [root]\n    node_labels: {'*': '*'}\n";
    let _created = cluster.create(role).succeeded();
    let _invitation = cluster.add_user("dave", "brief", "root");
    let dave = cluster.sign("dave", "1h");
    let mut running = cluster.ssh(&dave, 0).run("web-1", &[], "echo begun; cat").start();
    running.wait_for_stdout("begun");
    cluster.proxies[0].daemon.kill();
    let output = running.wait();
    assert_eq!(output.code, Some(255), "{output}");
    cluster.proxies[0].daemon.start();
    cluster.wait_reachable(0, "web-1");
}
