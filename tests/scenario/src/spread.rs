//! A cluster whose processes each have a host of their own on one network; Auth is on the hub.

use crate::cluster::{Cluster, ClusterBuilder};
use crate::network::{Host, Network};
use crate::program::{Program, Running};
use crate::wait::wait_until;

/// The cluster and its hosts. It has the user `alice`, who may enter everything as `root`.
pub struct Spread {
    /// The processes; they end before their hosts do.
    pub cluster: Cluster,
    /// The host of each proxy.
    pub proxies: Vec<Host>,
    /// The host of each agent.
    pub nodes: Vec<Host>,
    /// Where Auth is, and hosts come from.
    pub network: Network,
}

impl Spread {
    /// Starts Auth on the hub, a proxy on each host, and an agent of that name on each other.
    ///
    /// # Panics
    /// When the proxies do not come up.
    pub fn start(
        builder: ClusterBuilder,
        network: Network,
        proxies: Vec<Host>,
        nodes: Vec<(&str, Host)>,
    ) -> Self {
        let mut cluster = builder.listening_on(network.hub().address()).start_auth();
        for (number, host) in proxies.iter().enumerate() {
            let file = cluster.proxy_file(&format!("proxy-{}", number + 1));
            cluster.add_proxy_at(file, host);
        }
        wait_until("the proxies to be known", || cluster.known_proxies() == proxies.len());
        for (name, host) in &nodes {
            let file = cluster.node_file(name);
            cluster.add_node_at(file, host);
        }
        cluster.add_user("alice", "access", "root");
        let _identity = cluster.sign("alice", "2h");
        let nodes = nodes.into_iter().map(|(_, host)| host).collect();
        Self { cluster, proxies, nodes, network }
    }

    /// `way` of the user on a host, through a proxy.
    pub fn way(&self, host: &Host, proxy: usize, arguments: &[&str]) -> Program {
        host.inside(self.cluster.way(&self.cluster.identity(), proxy).args(arguments))
    }

    /// A session from a host through a proxy that says everything back.
    ///
    /// # Panics
    /// When it does not begin.
    pub fn session(&self, host: &Host, proxy: usize, node: &str) -> Running {
        let mut running = self.way(host, proxy, &["ssh", &format!("root@{node}"), "echo begun; cat"]).start();
        running.wait_for_stdout("begun");
        running
    }

    /// The proxies that hold a tunnel of a node now. Asked without a proxy, since each may be the silent one.
    ///
    /// # Panics
    /// When Auth does not answer.
    pub fn holders(&self, node: &str) -> Vec<usize> {
        let nodes = self.cluster.admin().args(["get", "nodes", "--format", "json"]).json();
        let nodes = nodes.as_array().unwrap().iter().find(|each| each["spec"]["hostname"] == node).cloned();
        nodes
            .map_or_else(Vec::new, |node| self.cluster.holders_of(node["metadata"]["name"].as_str().unwrap()))
    }
}
