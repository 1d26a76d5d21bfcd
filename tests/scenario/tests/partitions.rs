//! Three proxies, Auth, agents and a person, each on a host of its own, between which packets are lost without a word.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;
use wayleave_scenario::{Cluster, Host, Network, Running, Spread, check_all, wait_until};

const NODES: [&str; 2] = ["web-1", "db-1"];
const PROXIES: usize = 3;
/// Dials in a row that must all succeed.
const DIALS: usize = 5;
/// No dial may take longer, whatever is lost.
const DIAL_MAX: Duration = Duration::from_secs(20);

struct Parted {
    spread: Spread,
    person: Host,
}

#[test]
fn partitions() {
    let mut parted = Parted::start();
    check_all!(&mut parted;
        everybody_is_reached_from_everywhere,
        proxies_that_do_not_hear_each_other_are_gone_round,
        a_proxy_that_does_not_hear_auth_loses_nobody,
        an_agent_that_does_not_hear_its_proxy_leaves_it,
        a_silent_home_is_left_for_another_at_once,
        a_session_outlives_the_silence_of_its_ingress,
    );
}

impl Parted {
    fn start() -> Self {
        let mut network = Network::enter();
        let proxies = (0..PROXIES).map(|_| network.host()).collect();
        let nodes = NODES.map(|name| (name, network.host())).into();
        let person = network.host();
        let builder = Cluster::builder("partitions").peering(2);
        Self { spread: Spread::start(builder, network, proxies, nodes), person }
    }

    fn enters(&self, proxy: usize, node: &str) -> bool {
        let way = self.spread.way(&self.person, proxy, &["ssh", &format!("root@{node}"), "true"]);
        way.limit(DIAL_MAX).output().code == Some(0)
    }

    #[track_caller]
    fn assert_enters(&self, proxy: usize, node: &str) {
        for _ in 0..DIALS {
            assert!(self.enters(proxy, node), "{node} through proxy {proxy}");
        }
    }

    /// Two proxies hold tunnels of a node; the third is given last.
    fn homes(&self, node: &str) -> (Vec<usize>, usize) {
        let mut homes = Vec::new();
        wait_until(&format!("{node} to have two tunnels"), || {
            homes = self.spread.holders(node);
            homes.len() == 2
        });
        let third = (0..PROXIES).find(|proxy| !homes.contains(proxy)).unwrap();
        (homes, third)
    }

    /// Everybody but this proxy.
    fn others(&self, proxy: usize) -> Vec<&Host> {
        let proxies = self.spread.proxies.iter().enumerate().filter(|(other, _)| *other != proxy);
        let proxies = proxies.map(|(_, host)| host);
        proxies.chain(&self.spread.nodes).chain([&self.person, self.spread.network.hub()]).collect()
    }

    fn wait_whole(&self) {
        wait_until("the proxies to be known", || self.spread.cluster.known_proxies() == PROXIES);
        for proxy in 0..PROXIES {
            for node in NODES {
                wait_until(&format!("{node} through proxy {proxy}"), || self.enters(proxy, node));
            }
        }
        NODES.iter().for_each(|node| drop(self.homes(node)));
    }

    /// Auth believes that the proxy holds a tunnel of the node.
    fn is_believed(&self, proxy: usize, node: &str) -> bool {
        let routes = self.spread.cluster.admin().args(["get", "routes", "--format", "json"]).json();
        let of_node = routes.as_array().unwrap().iter().find(|route| route["name"] == node).unwrap();
        let name = self.spread.cluster.proxies[proxy].file.name.as_str();
        of_node["proxies"].as_array().unwrap().iter().any(|holder| holder["name"] == name)
    }

    fn session(&self, proxy: usize, node: &str) -> Running {
        self.spread.session(&self.person, proxy, node)
    }
}

fn everybody_is_reached_from_everywhere(parted: &mut Parted) {
    parted.wait_whole();
    for proxy in 0..PROXIES {
        NODES.iter().for_each(|node| parted.assert_enters(proxy, node));
    }
}

fn proxies_that_do_not_hear_each_other_are_gone_round(parted: &mut Parted) {
    let (homes, third) = parted.homes("web-1");
    parted.spread.proxies[third].part_from(&[&parted.spread.proxies[homes[0]]]);
    for proxy in 0..PROXIES {
        NODES.iter().for_each(|node| parted.assert_enters(proxy, node));
    }
    parted.spread.proxies[third].meet(&[&parted.spread.proxies[homes[0]]]);
    parted.wait_whole();
}

/// Long enough for its lease to end.
fn a_proxy_that_does_not_hear_auth_loses_nobody(parted: &mut Parted) {
    let (homes, _) = parted.homes("web-1");
    let (deaf, hub) = (&parted.spread.proxies[homes[0]], parted.spread.network.hub());
    assert!(parted.is_believed(homes[0], "web-1"));
    deaf.part_from(&[hub]);
    wait_until("its lease to end", || {
        for proxy in 0..PROXIES {
            NODES.iter().for_each(|node| assert!(parted.enters(proxy, node), "{node} through proxy {proxy}"));
        }
        !parted.is_believed(homes[0], "web-1")
    });
    for proxy in (0..PROXIES).filter(|proxy| *proxy != homes[0]) {
        NODES.iter().for_each(|node| parted.assert_enters(proxy, node));
    }
    deaf.meet(&[hub]);
    parted.wait_whole();
}

/// One way only: the proxy hears the agent.
fn an_agent_that_does_not_hear_its_proxy_leaves_it(parted: &mut Parted) {
    let (homes, third) = parted.homes("web-1");
    let (home, node) = (&parted.spread.proxies[homes[0]], &parted.spread.nodes[0]);
    let mark = parted.spread.cluster.node("web-1").daemon.log_mark();
    home.lose_to(node);
    parted.assert_enters(third, "web-1");
    parted.assert_enters(homes[1], "web-1");
    parted.spread.cluster.node("web-1").daemon.wait_for_log(mark, "a tunnel ended");
    wait_until("another tunnel", || parted.spread.holders("web-1").contains(&third));
    parted.assert_enters(homes[0], "web-1");
    home.arrive_at(node);
    parted.wait_whole();
}

fn a_silent_home_is_left_for_another_at_once(parted: &mut Parted) {
    let (homes, third) = parted.homes("db-1");
    let (home, others) = (&parted.spread.proxies[homes[0]], parted.others(homes[0]));
    home.part_from(&others);
    for node in NODES {
        parted.assert_enters(third, node);
        parted.assert_enters(homes[1], node);
    }
    wait_until("another tunnel", || parted.spread.holders("db-1").contains(&third));
    home.meet(&others);
    parted.wait_whole();
}

fn a_session_outlives_the_silence_of_its_ingress(parted: &mut Parted) {
    let (homes, third) = parted.homes("web-1");
    let mut sessions = [third, homes[0]].map(|proxy| parted.session(proxy, "web-1"));
    let (ingress, others) = (&parted.spread.proxies[third], parted.others(third));
    ingress.part_from(&others);
    for (number, session) in sessions.iter_mut().enumerate() {
        session.write(format!("in the dark {number}\n"));
        session.wait_for_stdout(&format!("in the dark {number}"));
    }
    ingress.meet(&others);
    parted.wait_whole();
    for (number, session) in sessions.iter_mut().enumerate() {
        session.write(format!("and after {number}\n"));
        session.wait_for_stdout(&format!("and after {number}"));
        assert_eq!(session.stdout_so_far().matches("in the dark").count(), 1);
    }
}
