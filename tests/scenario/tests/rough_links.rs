//! Links that lose packets, are slow, and let packets overtake each other: nothing is lost, and nobody is taken for gone.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wayleave_scenario::{Cluster, Host, Impairment, Network, Program, Running, Spread, Terminal, wait_until};

/// Far away, by radio.
const TO_THE_USER: Impairment =
    Impairment { loss_per_mille: 10, delay: Duration::from_millis(100), jitter: Duration::ZERO };
/// At both ends of each link between proxies, and between them and agents.
const BETWEEN_PROCESSES: Impairment =
    Impairment { loss_per_mille: 10, delay: Duration::from_millis(10), jitter: Duration::from_millis(10) };
/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(300);
const COPY_BYTES: u32 = 3_000_000;
/// Lines that are typed key by key, at least.
const LINES_MIN: usize = 3;
/// Dials and lines of a session on each way.
const ROUNDS: usize = 4;
const NODES: [&str; 2] = ["web-1", "db-1"];
const PROXIES: usize = 3;

#[test]
fn a_rough_link_to_the_user() {
    let mut network = Network::enter();
    let proxies = (0..2).map(|_| network.host()).collect();
    let nodes = vec![("web-1", network.host())];
    let person = network.rough_host(1);
    let spread = Spread::start(Cluster::builder("rough-link-user").peering(1), network, proxies, nodes);
    wait_enters(&spread, &person, 0, "web-1");
    person.impair(TO_THE_USER);
    let mut copies = [Copy::begin(&spread, &person, 0, "web-1"), Copy::begin(&spread, &person, 1, "web-1")];

    let way = spread.way(&person, 0, &["ssh", "root@web-1"]);
    let shell = Terminal::start(&spread.cluster.scene, "rough", &way);
    let typed = spread.cluster.scene.path("typed");
    shell.line(&format!("clear; echo ready; cat > {}", typed.display()));
    wait_until("the shell", || last_line(&shell) == "ready");
    let mut lines = String::new();
    for number in 0.. {
        let line = format!("{number}: the quick brown fox");
        // Key by key, as a person types who looks; then at once, as one does who does not.
        (1..=line.len()).for_each(|length| type_key(&shell, &line[..length]));
        shell.press(&["Enter"]);
        shell.line(&format!("{number}, blindly"));
        wait_until("what was typed blindly", || last_line(&shell) == format!("{number}, blindly"));
        lines += &format!("{line}\n{number}, blindly\n");
        let screen = shell.screen();
        assert!(!screen.contains("reconnecting"), "nobody was gone: {screen}");
        if number + 1 >= LINES_MIN && copies.iter_mut().all(|copy| copy.running.is_ended()) {
            break;
        }
    }
    shell.press(&["C-d"]);
    shell.line("exit 7");
    let _ended = shell.wait_for_screen("[ended 7]");
    assert_eq!(fs::read_to_string(&typed).unwrap(), lines);
    copies.into_iter().for_each(Copy::check);
    let counts = person.frame_counts();
    assert!(counts.lost > 0, "{counts:?}");
}

#[test]
fn rough_links_between_processes() {
    let mut network = Network::enter();
    let proxies = (0..PROXIES).map(|number| network.rough_host(10 + seed(number))).collect();
    let nodes = [0, 1].map(|number| (NODES[number], network.rough_host(20 + seed(number)))).into();
    let person = network.host();
    let spread = Spread::start(Cluster::builder("rough-links").peering(2), network, proxies, nodes);
    let ways = (0..PROXIES).flat_map(|proxy| NODES.map(|node| (proxy, node)));
    ways.clone().for_each(|(proxy, node)| wait_enters(&spread, &person, proxy, node));
    for node in NODES {
        wait_until("two tunnels of each agent", || spread.holders(node).len() == 2);
    }
    let mut sessions: Vec<Running> =
        ways.clone().map(|(proxy, node)| spread.session(&person, proxy, node)).collect();
    let marks: Vec<usize> = spread.cluster.daemons().map(|daemon| daemon.log_mark()).collect();
    spread.proxies.iter().chain(&spread.nodes).for_each(|host| host.impair(BETWEEN_PROCESSES));

    let mut copies: Vec<Copy> =
        (0..PROXIES).map(|proxy| Copy::begin(&spread, &person, proxy, NODES[proxy % 2])).collect();
    while_nobody_is_offline(&spread.cluster.admin(), || {
        for round in 0..ROUNDS {
            for ((proxy, node), session) in ways.clone().zip(&mut sessions) {
                let output =
                    spread.way(&person, proxy, &["ssh", &format!("root@{node}"), "echo in"]).output();
                output.succeeded().printed("in");
                session.write(format!("round {round}\n"));
            }
        }
        wait_until("all copies to end", || copies.iter_mut().all(|copy| copy.running.is_ended()));
    });
    copies.into_iter().for_each(Copy::check);
    for mut session in sessions {
        session.close_input();
        let said = session.wait().succeeded().stdout_text();
        let rounds: String = (0..ROUNDS).map(|round| format!("round {round}\n")).collect();
        assert_eq!(said, format!("begun\n{rounds}"));
    }
    for (daemon, mark) in spread.cluster.daemons().zip(marks) {
        let log = daemon.log_since(mark);
        for gone in ["a tunnel ended", "an agent is gone"] {
            assert!(!log.contains(gone), "{}: {gone}: {}", daemon.name(), daemon.tail());
        }
    }
    for host in spread.proxies.iter().chain(&spread.nodes) {
        let counts = host.frame_counts();
        assert!(counts.lost > 0 && counts.overtaken > 0, "{counts:?}");
    }
}

/// A checksummed copy that runs beside the test.
struct Copy {
    running: Running,
    from: PathBuf,
    to: PathBuf,
}

impl Copy {
    fn begin(spread: &Spread, person: &Host, proxy: usize, node: &str) -> Self {
        let [from, to] = ["from", "to"].map(|end| spread.cluster.scene.path(&format!("{end}-{proxy}")));
        let noise =
            |i: u32| (i ^ (1 + u32::try_from(proxy).unwrap())).wrapping_mul(2_246_822_519).to_le_bytes()[2];
        fs::write(&from, (0..COPY_BYTES).map(noise).collect::<Vec<u8>>()).unwrap();
        let scp = spread.way(person, proxy, &["scp", "-q"]).arg(&from);
        let running = scp.arg(format!("root@{node}:{}", to.display())).start();
        Self { running, from, to }
    }

    fn check(mut self) {
        let _copied = self.running.wait_end(LIMIT).expect("the copy ends").succeeded();
        let digest =
            |file: &Path| Program::new("sha256sum").arg(file).stdout().split(' ').next().map(str::to_owned);
        assert_eq!(digest(&self.from), digest(&self.to));
    }
}

fn seed(number: usize) -> u64 {
    u64::try_from(number).unwrap()
}

fn wait_enters(spread: &Spread, person: &Host, proxy: usize, node: &str) {
    let way = spread.way(person, proxy, &["ssh", &format!("root@{node}"), "true"]);
    wait_until(&format!("{node} through proxy {proxy}"), || way.clone().output().code == Some(0));
}

/// Where somebody types.
fn last_line(shell: &Terminal) -> String {
    shell.screen().trim_end().lines().last().unwrap_or_default().to_owned()
}

/// Types the last key of what the line shall be, and waits for it to be shown behind the others.
fn type_key(shell: &Terminal, line: &str) {
    let (_, key) = line.split_at(line.len() - 1);
    shell.press(&[if key == " " { "Space" } else { key }]);
    wait_until(&format!("the echo of {line:?}"), || last_line(shell) == line.trim_end());
}

/// Looks at the list all the time.
fn while_nobody_is_offline(admin: &Program, work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut looks = 0;
            while !over.load(Ordering::Acquire) {
                let listed = admin.clone().args(["ls", "--format", "json"]).json();
                let listed = listed.as_array().unwrap();
                assert_eq!(listed.len(), NODES.len());
                assert!(listed.iter().all(|node| node["online"] == true), "{listed:?}");
                looks += 1;
            }
            looks
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Release);
        let looks = looking.join().unwrap();
        ended.unwrap();
        assert!(looks > 10, "{looks}");
    });
}
