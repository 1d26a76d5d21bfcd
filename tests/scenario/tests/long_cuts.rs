//! Networks that lose every packet for a full minute, without a reset, under copies and shells: they go on behind it,
//! and not a byte is lost or repeated.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wayleave_scenario::{Cluster, Host, Network, Running, Spread, Terminal, wait_until, wait_until_within};

const CUT: Duration = Duration::from_secs(60);
/// For everything to go on, and copies to end, when packets arrive again.
const AFTERWARDS: Duration = Duration::from_secs(240);
const COPY_BYTES: u32 = 150_000_000;
/// A copy of which so much has arrived is under way.
const BEGUN_BYTES: u64 = 1_000_000;
/// Lines that are typed while nothing arrives.
const DARK_LINES: usize = 3;

/// A copy and a shell of one person on one node.
struct Work {
    copy: Running,
    from: PathBuf,
    to: PathBuf,
    shell: Terminal,
}

/// All cuts last the same minute.
#[test]
fn a_minute_without_a_packet() {
    let mut network = Network::enter();
    let proxies = (0..3).map(|_| network.host()).collect();
    let nodes = ["web-1", "db-1", "app-1"].map(|name| (name, network.host())).into();
    let [near, far, third] = [(); 3].map(|()| network.host());
    let spread = Spread::start(Cluster::builder("long-cuts").peering(2), network, proxies, nodes);
    let proxies: Vec<&Host> = spread.proxies.iter().collect();
    for node in ["web-1", "db-1", "app-1"] {
        wait_until(&format!("{node} to have two tunnels"), || spread.holders(node).len() == 2);
    }
    let home = spread.holders("app-1")[0];

    let mut cut_off = Work::begin(&spread, &near, home, "web-1");
    near.part_from(&proxies);
    let mut of_lost_agent = Work::begin(&spread, &far, home, "db-1");
    spread.nodes[1].part_from(&proxies);
    let mut through_lost_proxy = Work::begin(&spread, &third, home, "app-1");
    let everybody = everybody_but(&spread, home, [&far, &third]);
    proxies[home].part_from(&everybody);
    let began = Instant::now();
    for work in [&mut cut_off, &mut of_lost_agent, &mut through_lost_proxy] {
        assert!(!work.copy.is_ended(), "there was something left to copy");
        (0..DARK_LINES).for_each(|number| work.shell.line(&format!("dark-{number}")));
    }
    // There is another way to this node, which is found in the dark.
    through_lost_proxy.check_shell();
    wait_until_within(CUT * 2, "the minute to be over", || began.elapsed() > CUT);
    for work in [&mut cut_off, &mut of_lost_agent] {
        assert!(!work.copy.is_ended());
        let screen = work.shell.screen();
        assert!(screen.contains("reconnecting") && !screen.contains("got 2"), "{screen}");
    }

    near.meet(&proxies);
    proxies[home].meet(&everybody);
    spread.nodes[1].meet(&proxies);
    for work in [&mut cut_off, &mut of_lost_agent] {
        work.check_shell();
    }
    for work in [cut_off, of_lost_agent, through_lost_proxy] {
        work.finish();
    }
}

/// Those with whom a proxy has to do, but for the first person, and the node that is parted from it already.
fn everybody_but<'a>(spread: &'a Spread, proxy: usize, people: [&'a Host; 2]) -> Vec<&'a Host> {
    let proxies =
        spread.proxies.iter().enumerate().filter(|(other, _)| *other != proxy).map(|(_, host)| host);
    proxies.chain([&spread.nodes[0], &spread.nodes[2], spread.network.hub()]).chain(people).collect()
}

impl Work {
    /// Begins both; the copy is in the middle.
    fn begin(spread: &Spread, person: &Host, proxy: usize, node: &str) -> Self {
        let target = format!("root@{node}");
        wait_until(node, || spread.way(person, proxy, &["ssh", &target, "true"]).output().code == Some(0));
        let shell =
            Terminal::start(&spread.cluster.scene, node, &spread.way(person, proxy, &["ssh", &target]));
        shell.line("n=0; while read -r line; do n=$((n+1)); echo \"got $n: $line.\"; done");
        shell.line("first");
        let _shown = shell.wait_for_screen("got 1: first.");
        let [from, to] = ["from", "to"].map(|end| spread.cluster.scene.path(&format!("{node}-{end}")));
        let seed = u32::from(node.as_bytes()[0]);
        let noise: Vec<u8> =
            (0..COPY_BYTES).map(|i| (i ^ seed).wrapping_mul(2_246_822_519).to_le_bytes()[2]).collect();
        fs::write(&from, noise).unwrap();
        let copy = spread.way(person, proxy, &["scp", "-q"]).arg(&from);
        let copy = copy.arg(format!("{target}:{}", to.display())).start();
        wait_until("the copy to be under way", || {
            fs::metadata(&to).is_ok_and(|file| file.len() > BEGUN_BYTES)
        });
        Self { copy, from, to, shell }
    }

    /// What was typed in the dark has arrived, once each and in order.
    fn check_shell(&self) {
        let last = format!("got {}: dark-{}.", DARK_LINES + 1, DARK_LINES - 1);
        wait_until_within(AFTERWARDS, &last, || self.shell.screen().contains(&last));
        let screen = self.shell.screen();
        for number in 0..DARK_LINES {
            assert!(screen.contains(&format!("got {}: dark-{number}.", number + 2)), "{screen}");
            assert_eq!(screen.matches(&format!("dark-{number}.")).count(), 1, "{screen}");
        }
    }

    fn finish(mut self) {
        self.shell.press(&["C-d"]);
        self.shell.line("exit 7");
        let _screen = self.shell.wait_for_screen("[ended 7]");
        let copied = self.copy.wait_end(AFTERWARDS).expect("the copy ends");
        let _copied = copied.succeeded();
        assert!(fs::read(&self.from).unwrap() == fs::read(&self.to).unwrap());
        [&self.from, &self.to].iter().for_each(|file| fs::remove_file(file).unwrap());
    }
}
