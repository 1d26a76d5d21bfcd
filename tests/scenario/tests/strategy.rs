//! The tunnel strategy is changed in both directions as the documentation says, while clients connect through every proxy.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use wayleave_scenario::{Cluster, Running, check_all, wait_until, way};

const GUIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/change-tunnel-strategy.md");
const NODES: [&str; 2] = ["web-1", "db-1"];
const PROXIES: usize = 3;
/// In a zone of its own; the others share one.
const APART: usize = 2;

#[test]
fn strategy() {
    let mut cluster = start();
    check_all!(&mut cluster; the_strategy_changes_both_ways_and_nobody_is_missed);
}

fn start() -> Cluster {
    let mut cluster = Cluster::builder("strategy").start_auth();
    for number in 0..PROXIES {
        let mut file = cluster.proxy_file(&format!("proxy-{}", number + 1));
        file.lines.push(format!("zone: {}", if number == APART { "apart" } else { "shared" }));
        cluster.add_proxy(file);
    }
    wait_until("the proxies to be known", || cluster.known_proxies() == PROXIES);
    for name in NODES {
        let file = cluster.node_file(name);
        cluster.add_node(file);
    }
    cluster.add_user("alice", "access", "root");
    let _identity = cluster.sign("alice", "2h");
    for proxy in 0..PROXIES {
        NODES.iter().for_each(|node| cluster.wait_reachable(proxy, node));
    }
    cluster
}

/// The blocks of shell in a section of the guide that change something.
fn steps(section: &str) -> String {
    let guide = std::fs::read_to_string(GUIDE).unwrap();
    let section = guide.split("\n## ").find(|text| text.starts_with(section)).unwrap();
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    let all: String = blocks.collect();
    assert!(all.contains("create -f"), "{all}");
    all
}

/// Types a section of the guide on the Auth host.
fn follow(cluster: &Cluster, section: &str) {
    type_in(cluster, &steps(section));
}

fn type_in(cluster: &Cluster, commands: &str) {
    let commands = commands.replace("/etc/wayleave.yaml", &cluster.auth_config.to_string_lossy());
    let path = format!("{}:/usr/bin:/bin", way().parent().map(Path::to_owned).unwrap().display());
    let shell = cluster.scene.program("sh").env("PATH", path).args(["-e", "-x", "-c", &commands]);
    let _done = shell.output().succeeded();
}

fn counted(cluster: &Cluster, count: u32) {
    let change = format!("s/agent_connection_count: .*/agent_connection_count: {count}/");
    type_in(
        cluster,
        &format!(
            "way -c /etc/wayleave.yaml get cluster_networking_config --format yaml > networking.yaml\n\
             sed -i '{change}' networking.yaml\nway -c /etc/wayleave.yaml create -f networking.yaml\n"
        ),
    );
}

#[track_caller]
fn wait_tunnels(cluster: &Cluster, count: usize) {
    for node in NODES {
        wait_until(&format!("{node} to have {count} tunnels"), || {
            // A surplus tunnel lives on in its proxy's log as long as a session runs through it.
            let log = cluster.nodes.iter().find(|each| each.file.name == node).unwrap().daemon.log_text();
            let said = log.rsplit("connected to proxies proxies=").next().unwrap_or_default();
            // With two, one stands apart.
            said.lines().next() == Some(&*count.to_string())
                && (count != 2 || cluster.holders(node).contains(&APART))
        });
    }
}

/// Lets the others end, whatever happens.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn session(cluster: &Cluster, proxy: usize, node: &str) -> Running {
    let mut running = cluster.ssh(&cluster.identity(), proxy).run(node, &[], "echo begun; cat").start();
    running.wait_for_stdout("begun");
    running
}

fn the_strategy_changes_both_ways_and_nobody_is_missed(cluster: &mut Cluster) {
    let identity: PathBuf = cluster.identity();
    let webs: Vec<String> = (0..PROXIES).map(|proxy| cluster.web(proxy).to_string()).collect();
    let pids: Vec<i32> = cluster.daemons().map(wayleave_scenario::Daemon::pid).collect();
    wait_tunnels(cluster, PROXIES);
    let mut sessions: Vec<Running> = (0..PROXIES).map(|proxy| session(cluster, proxy, "web-1")).collect();
    let (done, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failures = Mutex::new(Vec::new());
    let cluster = &*cluster;
    std::thread::scope(|scope| {
        for (proxy, web) in webs.iter().enumerate() {
            let (done, over, failures, identity) = (&done, &over, &failures, &identity);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let node = format!("root@{}", NODES[done.fetch_add(1, Ordering::Relaxed) % NODES.len()]);
                    let way = cluster
                        .scene
                        .way()
                        .arg("-i")
                        .arg(identity)
                        .args(["--proxy", web, "ssh", &node, "true"]);
                    let output = way.output();
                    if output.code != Some(0) {
                        failures.lock().unwrap().push(format!("through proxy {proxy}: {output}"));
                    }
                }
            });
        }
        let _over = EndOnDrop(&over);
        follow(cluster, "To peering");
        wait_tunnels(cluster, 2);
        counted(cluster, 1);
        wait_tunnels(cluster, 1);
        counted(cluster, 2);
        wait_tunnels(cluster, 2);
        follow(cluster, "Back to a tunnel to every proxy");
        wait_tunnels(cluster, PROXIES);
        follow(cluster, "To peering");
        wait_tunnels(cluster, 2);
    });
    let failures = failures.into_inner().unwrap();
    assert_eq!(failures, [""; 0], "of {} dials", done.into_inner());
    for (number, session) in sessions.iter_mut().enumerate() {
        session.write(format!("still here {number}\n"));
        session.wait_for_stdout(&format!("still here {number}"));
    }
    assert_eq!(cluster.daemons().map(wayleave_scenario::Daemon::pid).collect::<Vec<_>>(), pids);
}
