//! The path that everything else stands on: stock `ssh`, through one of two peered proxies, to an agent that has a
//! tunnel to one of them only and listens nowhere.

use wayleave_scenario::{Cluster, check_all, listening_ports, wait_until};

#[test]
fn the_spine() {
    let cluster = Cluster::builder("spine").proxies(2).nodes(&["web-1", "db-1"]).peering(1).start();
    check_all!(&cluster;
        every_node_is_reached_through_every_proxy,
        every_agent_has_a_tunnel_to_one_proxy_only,
        agents_listen_nowhere,
        processes_listen_only_where_they_say,
        the_remote_command_decides_the_exit_code,
        both_outputs_and_the_input_are_carried,
        what_is_large_arrives_whole,
        the_list_shows_nodes_and_labels,
        what_is_not_there_is_not_found,
        c_what_happened_is_shown_to_auditors,
    );
}

fn every_node_is_reached_through_every_proxy(cluster: &Cluster) {
    for proxy in 0..2 {
        let ssh = cluster.ssh(&cluster.identity(), proxy);
        for node in ["web-1", "db-1"] {
            ssh.run(node, &[], "echo reached").output().succeeded().printed("reached");
        }
    }
}

/// With one tunnel for each agent and two proxies, two of the four ways were not direct.
fn every_agent_has_a_tunnel_to_one_proxy_only(cluster: &Cluster) {
    for node in ["web-1", "db-1"] {
        assert_eq!(cluster.holders(node).len(), 1, "{node}");
    }
}

fn agents_listen_nowhere(cluster: &Cluster) {
    for node in &cluster.nodes {
        assert_eq!(listening_ports(node.daemon.pid()), [0_u16; 0], "{}", node.file.name);
    }
}

fn processes_listen_only_where_they_say(cluster: &Cluster) {
    assert_eq!(listening_ports(cluster.auth.pid()), [cluster.auth_file.listen.port()]);
    for proxy in &cluster.proxies {
        let mut ports = listening_ports(proxy.daemon.pid());
        let mut expected = [proxy.file.web, proxy.file.ssh, proxy.file.peer].map(|address| address.port());
        ports.sort_unstable();
        expected.sort_unstable();
        assert_eq!(ports, expected);
    }
}

fn the_remote_command_decides_the_exit_code(cluster: &Cluster) {
    let ssh = cluster.ssh(&cluster.identity(), 0);
    for code in [0, 1, 42, 255] {
        let _ended = ssh.run("web-1", &[], &format!("exit {code}")).output().ended_with(code);
        let command = format!("exit {code}");
        let _ended = cluster
            .way(&cluster.identity(), 1)
            .args(["ssh", "root@web-1", &command])
            .output()
            .ended_with(code);
    }
}

fn both_outputs_and_the_input_are_carried(cluster: &Cluster) {
    let ssh = cluster.ssh(&cluster.identity(), 1);
    let output = ssh.run("db-1", &[], "cat; echo complaint >&2").input("said\n").output().succeeded();
    assert_eq!((output.stdout_text().as_str(), output.stderr_text().as_str()), ("said\n", "complaint\n"));
}

fn what_is_large_arrives_whole(cluster: &Cluster) {
    let sent: Vec<u8> = (0..20_000_000_u32).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    for proxy in 0..2 {
        let ssh = cluster.ssh(&cluster.identity(), proxy);
        let output = ssh.run("web-1", &[], "cat").input(&sent).output().succeeded();
        assert!(output.stdout == sent, "{} of {} bytes came back", output.stdout.len(), sent.len());
    }
}

fn the_list_shows_nodes_and_labels(cluster: &Cluster) {
    let listed = cluster.list();
    let names: Vec<&str> = listed.iter().filter_map(|node| node["name"].as_str()).collect();
    assert_eq!(names, ["db-1", "web-1"]);
    assert!(listed.iter().all(|node| node["online"] == true), "{listed:?}");
    let text = cluster.way(&cluster.identity(), 1).args(["ls", "--search", "web"]).stdout();
    assert!(text.contains("web-1") && !text.contains("db-1"), "{text}");
}

fn what_is_not_there_is_not_found(cluster: &Cluster) {
    let way = || cluster.way(&cluster.identity(), 0);
    let _refused = way().args(["ssh", "root@web-9", "true"]).output().ended_with(255).complaining("web-9");
    let _refused = way().args(["proxy", "ssh", "root@web-9:22"]).output().ended_with(4).complaining("web-9");
    let ssh = cluster.ssh(&cluster.identity(), 0);
    let _refused = ssh.run("web-9", &[], "true").output().ended_with(255).complaining("web-9");
}

fn c_what_happened_is_shown_to_auditors(cluster: &Cluster) {
    cluster.add_user("audrey", "auditor", "root");
    let auditor = cluster.sign("audrey", "1h");
    let ssh = cluster.ssh(&cluster.identity(), 0);
    let _said = ssh.run("web-1", &[], "printf 12345678").output().succeeded();
    let events = |more: &[&str]| {
        let ls = cluster.way(&auditor, 1).args(["events", "ls", "--from", "10m", "--format", "json"]);
        ls.args(more.iter().copied()).json().as_array().expect("a list").clone()
    };
    wait_until("the end of the session to be in the log", || {
        let ends = events(&["--code", "T2004I", "--search", "web-1"]);
        ends.iter().any(|end| end["event"] == "session.end" && end["bytes_sent"] == 8)
    });
    assert_eq!(events(&["--code", "t3002i", "--limit", "1"]).len(), 1);
    assert!(events(&["--search", "no such word"]).is_empty());
    let text = cluster.way(&auditor, 0).args(["events", "search", "--search", "printf"]).stdout();
    assert!(text.contains("exec") && text.contains("command=printf 12345678"), "{text}");

    let denied = cluster.way(&cluster.identity(), 0).args(["events", "ls"]).output();
    let _denied = denied.ended_with(3).complaining("event");
}
