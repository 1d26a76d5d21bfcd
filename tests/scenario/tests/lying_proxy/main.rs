//! A proxy that is one of the cluster's own and lies in every field: where the other proxies are, whose stream it is,
//! which node was reached, who the user is, what the policy says, whom it has a tunnel of. It gains nothing.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod liar;

use liar::{Detour, Liar, Stolen};
use std::path::PathBuf;
use wayleave_api::agent::proxy_to_agent::Message;
use wayleave_api::auth::PolicySnapshot;
use wayleave_dial::{DialRefusal, DialResponse};
use wayleave_scenario::{Checks, Cluster, Program, Ssh, check_all, wait_until};
use wayleave_vocab::HostId;

struct World {
    cluster: Cluster,
    stolen: Stolen,
    liar: Liar,
    web_1: HostId,
    web_2: HostId,
}

#[test]
fn lying_proxy() {
    let world = start();
    let mut checks = Checks::default();
    check_all!(checks, &world;
        o_lies_about_the_others_take_no_tunnel_away,
        o_an_agent_takes_no_stream_that_is_for_another,
        o_another_node_is_not_taken_for_the_one_asked_for,
        o_a_proxy_is_no_user,
        o_a_session_does_not_end_because_a_proxy_says_so,
        o_false_routes_lead_nobody_astray,
        o_an_old_or_forged_policy_is_not_taken,
        o_a_lock_counts_though_one_proxy_keeps_it_back,
        j_agents_leave_a_proxy_that_a_lock_shuts_out,
    );
    checks.end();
}

/// One honest proxy, two agents with tunnels to it and to the liar, which once was an honest proxy.
fn start() -> World {
    let mut cluster = Cluster::builder("lying_proxy").nodes(&["web-1", "web-2"]).start();
    let file = cluster.proxy_file("liar");
    let data_dir = file.data_dir.clone();
    let honest_days = cluster.add_proxy(file);
    wait_until("the identity to be there", || data_dir.join("identity/process.json").exists());
    assert_eq!(honest_days.daemon.stop(), Some(0));
    cluster.proxies.pop();
    let stolen = Stolen::from(&data_dir);
    let nodes = cluster.admin().args(["get", "nodes", "--format", "json"]).json();
    let id = |name: &str| {
        let node = nodes.as_array().unwrap().iter().find(|node| node["spec"]["hostname"] == name).unwrap();
        node["metadata"]["name"].as_str().unwrap().parse::<HostId>().unwrap()
    };
    let (web_1, web_2) = (id("web-1"), id("web-2"));
    let liar = Liar::start(&stolen, cluster.auth_file.listen, &[web_1, web_2]);
    wait_until("the agents to have tunnels to the liar", || liar.agents().len() == 2);
    World { cluster, stolen, liar, web_1, web_2 }
}

impl World {
    /// `way` through the liar.
    fn way(&self) -> Program {
        let liar = self.liar.address.to_string();
        self.cluster.scene.way().arg("-i").arg(self.cluster.identity()).args(["--proxy", &liar])
    }

    /// Stock `ssh` through the liar.
    fn ssh(&self) -> Program {
        let text = self.way().arg("config").stdout();
        let config = self.cluster.scene.write("ssh-liar.config", text);
        let ssh = self.cluster.scene.program("ssh").arg("-F").arg(config).args(["-o", "BatchMode=yes"]);
        ssh.args(["root@web-2.scenario", "echo in"])
    }

    fn honest(&self) -> Ssh {
        self.cluster.ssh(&self.cluster.identity(), 0)
    }

    fn enters_through_the_honest(&self, node: &str) -> bool {
        self.honest().run(node, &[], "echo in").output().stdout_text() == "in\n"
    }
}

fn o_lies_about_the_others_take_no_tunnel_away(world: &World) {
    for _ in 0..3 {
        for node in ["web-1", "web-2"] {
            assert!(world.enters_through_the_honest(node), "{node} has left the honest proxy");
        }
    }
    for node in &world.cluster.nodes {
        let log = node.daemon.log_text();
        assert!(!log.contains("giving up a tunnel"), "{}", node.daemon.tail());
    }
    // What the liar says of itself is true: streams through it work, for who may enter.
    world.liar.lead(Detour { tunnel: world.web_2, host_id: world.web_2 });
    world.ssh().output().succeeded().printed("in");
}

fn o_an_agent_takes_no_stream_that_is_for_another(world: &World) {
    let answer = world.liar.ask(Detour { tunnel: world.web_1, host_id: world.web_2 });
    assert!(matches!(&answer, DialResponse::Refused { refusal: DialRefusal::Invalid { .. } }), "{answer:?}");
}

/// The user asks for web-2 and is led to web-1, where he may enter as well.
fn o_another_node_is_not_taken_for_the_one_asked_for(world: &World) {
    world.liar.lead(Detour { tunnel: world.web_1, host_id: world.web_1 });
    let _refused = world.ssh().output().ended_with(255).complaining("Host key verification failed");
    let _refused = world.way().args(["ssh", "root@web-2", "echo in"]).output().ended_with(255);
}

/// With its own key and host certificate, with a key of its making, and with none.
fn o_a_proxy_is_no_user(world: &World) {
    let port = world.liar.port_into(Detour { tunnel: world.web_1, host_id: world.web_1 });
    let write = |name: &str, text: &str| -> PathBuf { world.cluster.scene.write(name, text) };
    let key = write("liar-key", &world.stolen.ssh_key);
    let certificate = write("liar-key-cert.pub", &world.stolen.ssh_certificate);
    let ssh = |options: &[String]| {
        let ssh = world.cluster.scene.program("ssh").args(["-F", "none", "-o", "BatchMode=yes"]);
        let ssh = ssh.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        let ssh = ssh.args(options).args(["-p", &port.port().to_string()]);
        ssh.args(["root@127.0.0.1", "echo in"]).output()
    };
    let with_certificate = [
        "-i".to_owned(),
        key.display().to_string(),
        "-o".to_owned(),
        format!("CertificateFile={}", certificate.display()),
    ];
    for options in [&with_certificate[..], &with_certificate[..2], &[]] {
        let _denied = ssh(options).ended_with(255).complaining("Permission denied");
    }
}

/// The liar cuts a session, and refuses in the agent's place to give it back: it goes on through the honest proxy.
fn o_a_session_does_not_end_because_a_proxy_says_so(world: &World) {
    world.liar.lead(Detour { tunnel: world.web_2, host_id: world.web_2 });
    let mut running = world.way().args(["ssh", "root@web-2", "echo begun; cat"]).start();
    running.wait_for_stdout("begun");
    world.liar.cut_and_refuse();
    running.write("still there\n");
    running.wait_for_stdout("still there");
    running.close_input();
    let _output = running.wait().succeeded();
    assert!(world.liar.refuse_no_more() > 0, "the liar was asked");
}

/// The liar has told Auth that it holds the tunnels of both: whoever enters elsewhere finds the true ones.
fn o_false_routes_lead_nobody_astray(world: &World) {
    for node in ["web-1", "web-2"] {
        assert!(world.enters_through_the_honest(node));
    }
}

fn o_an_old_or_forged_policy_is_not_taken(world: &World) {
    let lock = ["locks", "add", "--user", "alice", "--message", "gone", "--ttl", "1h"];
    let _locked = world.cluster.admin().args(lock).output().succeeded();
    wait_until("the lock to count", || !world.enters_through_the_honest("web-1"));
    let agent = &world.cluster.nodes[0].daemon;
    let old = world.liar.old_policy.clone();
    let mut forged = old.clone();
    forged.payload.extend(b" ");
    let mut unsigned = old.clone();
    unsigned.head.as_mut().unwrap().signature[0] ^= 1;
    for (policy, is_old) in [(old.clone(), true), (forged, true), (unsigned, false)] {
        let mark = agent.log_mark();
        world.liar.tell(world.web_1, Message::Snapshot(policy));
        agent.wait_for_log(mark, "a proxy relayed a policy that is refused");
        assert!(!world.enters_through_the_honest("web-1"), "is_old {is_old}");
    }
    let mark = agent.log_mark();
    let head = PolicySnapshot::clone(&old).head.unwrap();
    world.liar.tell(world.web_1, Message::Head(head));
    agent.wait_for_log(mark, "a proxy relayed a policy head that is refused");
    assert!(!world.enters_through_the_honest("web-1"));
}

fn o_a_lock_counts_though_one_proxy_keeps_it_back(world: &World) {
    world.liar.lead(Detour { tunnel: world.web_2, host_id: world.web_2 });
    let _refused = world.ssh().output().ended_with(255);
    let _refused = world.way().args(["ssh", "root@web-2", "echo in"]).output().failed();
}

/// The last check: afterwards nobody talks to the liar.
fn j_agents_leave_a_proxy_that_a_lock_shuts_out(world: &World) {
    let id = world.stolen.host_id.to_string();
    let lock = ["locks", "add", "--server-id", &id, "--message", "taken over"];
    let _locked = world.cluster.admin().args(lock).output().succeeded();
    wait_until("the agents to have left the liar", || world.liar.agents().is_empty());
    for node in &world.cluster.nodes {
        node.daemon.wait_for_log(0, "a lock ends the tunnel to a proxy");
    }
    world.cluster.add_user("bob", "access", "root");
    let ssh = world.cluster.ssh(&world.cluster.sign("bob", "1h"), 0);
    for node in ["web-1", "web-2"] {
        ssh.run(node, &[], "echo in").output().succeeded().printed("in");
    }
}
