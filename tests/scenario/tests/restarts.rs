//! Everything restarts under load: proxies one after another, and Auth that stands still; what systemd is told.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::sys::signal::Signal;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use wayleave_scenario::{Cluster, Running, check_all, wait_for, wait_until, wait_until_within};

/// Dials that are made while proxies restart, at least.
const DIALS_MIN: usize = 200;
/// How long a session goes on that is there when a proxy is told to stop.
const SECONDS: u32 = 8;
/// Three times as long as a lease on routes (20 s).
const STALL: Duration = Duration::from_secs(60);

#[test]
fn restarts() {
    let mut cluster = Cluster::builder("restarts")
        .proxies(3)
        .nodes(&["web-1", "db-1"])
        .peering(2)
        .instance_lines(&["shutdown_timeout: 60s"])
        .start();
    check_all!(&mut cluster;
        every_proxy_restarts_and_nobody_notices,
        nobody_is_offline_because_auth_stood_still,
        systemd_is_told,
    );
}

/// `way` with all proxies, as a person has it.
fn way_ssh(cluster: &Cluster, identity: &PathBuf, node: &str, command: &str) -> wayleave_scenario::Program {
    cluster.scene.way().arg("-i").arg(identity).args(["ssh", &format!("root@{node}"), command])
}

/// A session of stock ssh that counts seconds and says so.
fn counting(cluster: &Cluster, proxy: usize, node: &str, seconds: u32) -> Running {
    let count = format!("for i in $(seq 1 {seconds}); do echo n$i; sleep 1; done; echo whole");
    let mut running = cluster.ssh(&cluster.identity(), proxy).run(node, &[], &count).start();
    running.wait_for_stdout("n1");
    running
}

fn every_proxy_restarts_and_nobody_notices(cluster: &mut Cluster) {
    let identity = cluster.sign("alice", "1h");
    let (done, failed, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let first_failure = std::sync::Mutex::new(None);
    let mut sessions: Vec<Running> = Vec::new();
    let pids: Vec<i32> = cluster.nodes.iter().map(|node| node.daemon.pid()).collect();
    let way = cluster.scene.way().arg("-i").arg(&identity);
    let dial = |worker: usize| {
        while !over.load(Ordering::Relaxed) || done.load(Ordering::Relaxed) < DIALS_MIN {
            let node = if worker.is_multiple_of(2) { "root@web-1" } else { "root@db-1" };
            let output = way.clone().args(["ssh", node, "echo in"]).output();
            done.fetch_add(1, Ordering::Relaxed);
            if output.code != Some(0) || output.stdout_text().trim() != "in" {
                failed.fetch_add(1, Ordering::Relaxed);
                first_failure.lock().unwrap().get_or_insert(output.to_string());
            }
        }
    };
    std::thread::scope(|scope| {
        for worker in 0..3 {
            scope.spawn(move || dial(worker));
        }
        for number in 0..3 {
            for (proxy, node) in [(number, "web-1"), ((number + 1) % 3, "db-1")] {
                sessions.push(counting(cluster, proxy, node, SECONDS));
            }
            let proxy = &mut cluster.proxies[number];
            let mark = proxy.daemon.log_mark();
            proxy.daemon.signal(Signal::SIGTERM);
            // It waits for the sessions, which end by themselves.
            assert_eq!(
                proxy.daemon.wait_exit(Duration::from_secs(50)),
                Some(Some(0)),
                "{}",
                proxy.daemon.tail()
            );
            assert!(!proxy.daemon.log_since(mark).contains("are cut"), "{}", proxy.daemon.tail());
            proxy.daemon.start();
            proxy.daemon.wait_for_log(mark, "the proxy is up");
            wait_until("it to listen", || std::net::TcpStream::connect(proxy.file.web).is_ok());
        }
        over.store(true, Ordering::Relaxed);
    });
    let failure = first_failure.into_inner().unwrap();
    assert_eq!((failed.into_inner(), failure), (0, None), "of {} dials", done.into_inner());
    for mut session in sessions {
        let output = session.wait().succeeded();
        let expected: String =
            (1..=SECONDS).map(|n| format!("n{n}\n")).chain(["whole\n".to_owned()]).collect();
        assert_eq!(output.stdout_text(), expected);
    }
    assert_eq!(cluster.nodes.iter().map(|node| node.daemon.pid()).collect::<Vec<_>>(), pids);
    for node in ["web-1", "db-1"] {
        wait_until("exactly two tunnels", || cluster.holders(node).len() == 2);
    }
}

fn nobody_is_offline_because_auth_stood_still(cluster: &mut Cluster) {
    let identity = cluster.identity();
    cluster.auth.pause();
    let began = Instant::now();
    wait_until_within(STALL * 2, "the leases to end", || {
        // Meanwhile everybody is reached.
        assert_eq!(way_ssh(cluster, &identity, "web-1", "true").output().code, Some(0));
        began.elapsed() > STALL
    });
    cluster.auth.resume();
    let resumed = Instant::now();
    let mut looks = 0;
    wait_until("ten seconds of looking", || {
        let listed = cluster.admin().args(["ls", "--format", "json"]).output();
        if listed.code == Some(0) {
            let nodes: serde_json::Value = serde_json::from_str(&listed.stdout_text()).unwrap();
            let offline = nodes.as_array().unwrap().iter().filter(|node| node["online"] == false).count();
            assert_eq!(offline, 0, "{nodes}");
            looks += 1;
        }
        resumed.elapsed() > Duration::from_secs(10)
    });
    assert!(looks > 10, "{looks}");
    for proxy in 0..3 {
        cluster.wait_reachable(proxy, "db-1");
    }
}

/// Hears what a process tells the service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Vec<String>,
}

impl Manager {
    fn new(cluster: &Cluster, name: &str) -> Self {
        let path = cluster.scene.path(name);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, path, heard: Vec::new() }
    }

    fn listen(&mut self) {
        let mut buffer = [0; 1024];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            self.heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
    }

    fn wait(&mut self, part: &str) -> usize {
        wait_for(&format!("{part} to be told"), || {
            self.listen();
            self.heard.iter().position(|message| message.lines().any(|line| line == part))
        })
    }
}

fn systemd_is_told(cluster: &mut Cluster) {
    let mut manager = Manager::new(cluster, "notify");
    let path = manager.path.to_string_lossy().into_owned();
    assert_eq!(cluster.node("db-1").daemon.stop(), Some(0));
    let daemon = &mut cluster.node("db-1").daemon;
    daemon.set_env("NOTIFY_SOCKET", &path);
    daemon.set_env("WATCHDOG_USEC", "200000");
    daemon.start();
    let ready = manager.wait("READY=1");
    wait_until("the watchdog to be told again and again", || {
        manager.listen();
        manager.heard.iter().filter(|message| *message == "WATCHDOG=1").count() >= 5
    });
    cluster.node("db-1").daemon.signal(Signal::SIGTERM);
    let stopping = manager.wait("STOPPING=1");
    assert!(ready < stopping);
    assert_eq!(cluster.node("db-1").daemon.wait_exit(Duration::from_secs(20)), Some(Some(0)));

    // One that waits for its cluster is up, and says what it waits for; one that is refused never was.
    let mut file = cluster.node_file("waiting");
    file.way = wayleave_scenario::Way::Auth(wayleave_scenario::free_port());
    let mut manager = Manager::new(cluster, "notify-waiting");
    let path = manager.path.to_string_lossy().into_owned();
    let mut waiting = cluster.add_node_with(file.clone(), &[("NOTIFY_SOCKET", &path)]);
    let ready = manager.wait("READY=1");
    assert!(manager.heard[ready].contains("STATUS=waiting for the cluster"), "{:?}", manager.heard);
    waiting.daemon.signal(Signal::SIGTERM);
    let _ended = waiting.daemon.wait_exit(Duration::from_secs(20));
    file.name = "refused".into();
    file.token = "wrong.token-that-nobody-made".into();
    file.data_dir = cluster.scene.path("refused");
    file.way = wayleave_scenario::Way::Auth(cluster.auth_file.listen);
    let mut manager = Manager::new(cluster, "notify-refused");
    let path = manager.path.to_string_lossy().into_owned();
    waiting = cluster.add_node_with(file, &[("NOTIFY_SOCKET", &path)]);
    waiting.daemon.wait_failure();
    manager.listen();
    assert_eq!(manager.heard, [""; 0]);
    cluster.nodes.truncate(2);
}
