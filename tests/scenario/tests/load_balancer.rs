//! Two, three and four proxies that agents and people reach through one real balancer (haproxy), by several algorithms,
//! passing TCP through or ending TLS itself.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use wayleave_scenario::{
    Certificates, Cluster, Daemon, ProxyFile, Running, Way, check_all, free_port, wait_until,
};

/// From where the balancer comes. Whoever comes from elsewhere is not let in, so that there is no way past it.
const BALANCER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);
const PROXIES_MAX: usize = 4;
/// One agent for each.
const ALGORITHMS: [&str; 4] = ["roundrobin", "random", "leastconn", "source"];
/// An agent that is led to the same proxy again and again.
const STICKY: &str = "source";
/// Dials of one agent until it has a tunnel to each of four proxies.
const DIALS_MAX: usize = 100;
/// Warnings of one agent from its start on.
const WARNINGS_MAX: usize = 2;

struct Balanced {
    cluster: Cluster,
    files: Vec<ProxyFile>,
    /// For each algorithm.
    frontends: Vec<SocketAddr>,
    /// To each proxy alone, for who looks whether an agent is reached through it.
    single: Vec<SocketAddr>,
    /// Ends TLS itself and speaks HTTP.
    http: SocketAddr,
    /// For that.
    certificates: Certificates,
    _haproxy: Running,
}

#[test]
fn load_balancer() {
    let mut balanced = Balanced::start();
    check_all!(&mut balanced;
        agents_find_both_of_two_proxies,
        agents_find_a_third_proxy,
        agents_find_a_fourth_proxy,
        from_the_beginning_four_are_found_in_bounded_tries,
        peering_behind_a_balancer_reaches_everybody_from_everywhere,
        a_balancer_that_ends_tls_is_passed_through,
    );
}

impl Balanced {
    fn start() -> Self {
        let cluster = Cluster::builder("load-balancer").start_auth();
        let frontends: Vec<SocketAddr> = ALGORITHMS.iter().map(|_| free_port()).collect();
        let single: Vec<SocketAddr> = (0..PROXIES_MAX).map(|_| free_port()).collect();
        let http = free_port();
        let files: Vec<ProxyFile> = (0..PROXIES_MAX)
            .map(|number| {
                let mut file = cluster.proxy_file(&format!("proxy-{}", number + 1));
                // As agents are told it, too: whoever tries it comes to one proxy always.
                file.public =
                    frontends[ALGORITHMS.iter().position(|algorithm| *algorithm == STICKY).unwrap()];
                file.lines = vec![
                    "proxy_protocol: on".into(),
                    format!("proxy_protocol_from: [{BALANCER}/32]"),
                    "trust_x_forwarded_for: yes".into(),
                ];
                file
            })
            .collect();
        let certificates = Certificates::make();
        let (certificate, key) = &certificates.balancer;
        let both = [certificate, key].map(|file| std::fs::read(file).unwrap()).concat();
        let certificate = cluster.scene.write("balancer.pem", both);
        let config = haproxy_config(&files, &frontends, &single, http, &certificate);
        let config = cluster.scene.write("haproxy.cfg", config);
        let haproxy = cluster.scene.program("haproxy").args(["-db", "-f"]).arg(config).start();
        wait_until("haproxy", || std::net::TcpStream::connect(frontends[0]).is_ok());
        Self { cluster, files, frontends, single, http, certificates, _haproxy: haproxy }
    }

    /// Adds proxies until there are so many.
    fn proxies(&mut self, count: usize) {
        for number in self.cluster.proxies.len()..count {
            self.cluster.add_proxy(self.files[number].clone());
        }
        wait_until("the proxies to be known", || self.cluster.known_proxies() == count);
    }

    /// The agent behind the frontend of each algorithm, started if it is not.
    fn agents(&mut self) {
        for (number, algorithm) in ALGORITHMS.iter().enumerate().skip(self.cluster.nodes.len()) {
            let mut file = self.cluster.node_file(algorithm);
            file.way = Way::Proxy(self.frontends[number]);
            self.cluster.add_node(file);
        }
    }

    fn tunnels(&self, node: &str) -> usize {
        // Through whichever proxy answers: those that hold a tunnel say so in their logs.
        holders(&self.cluster, node, self.single[0])
    }

    #[track_caller]
    fn wait_tunnels(&self, node: &str, count: usize) {
        wait_until(&format!("{node} to have {count} tunnels"), || self.tunnels(node) == count);
    }

    #[track_caller]
    fn wait_reached(&self, node: &str, proxy: usize) {
        wait_until(&format!("{node} through proxy {proxy}"), || self.enters(node, self.single[proxy]));
    }

    fn enters(&self, node: &str, at: SocketAddr) -> bool {
        let way = self
            .cluster
            .scene
            .way()
            .arg("-i")
            .arg(self.cluster.identity())
            .arg("--proxy")
            .arg(at.to_string());
        way.args(["ssh", &format!("root@{node}"), "true"]).output().code == Some(0)
    }

    /// Everybody has as many tunnels as there are proxies, but for him who is led to the same one for as long as their
    /// number stays.
    fn assert_mesh(&self, count: usize) {
        for algorithm in ALGORITHMS.into_iter().filter(|algorithm| *algorithm != STICKY) {
            self.wait_tunnels(algorithm, count);
        }
        assert_ne!(self.tunnels(STICKY), 0);
    }

    #[track_caller]
    fn assert_quiet(&self, node: &Daemon, mark: usize) {
        let log = node.log_since(mark);
        let warnings: Vec<&str> = log.lines().filter(|line| line.contains(" WARN ")).collect();
        assert!(warnings.len() <= WARNINGS_MAX, "{} of {}: {warnings:#?}", warnings.len(), node.name());
    }
}

/// How many proxies hold a tunnel of a node.
fn holders(cluster: &Cluster, node: &str, at: SocketAddr) -> usize {
    let way = cluster.scene.way().arg("-i").arg(cluster.identity()).arg("--proxy").arg(at.to_string());
    let listed = way.args(["ls", "--format", "json"]).output();
    let Ok(nodes) = serde_json::from_str::<serde_json::Value>(&listed.stdout_text()) else { return 0 };
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    nodes
        .iter()
        .find(|listed| listed["name"] == node)
        .map_or(0, |node| cluster.holders_of(node["host_id"].as_str().unwrap()).len())
}

fn haproxy_config(
    files: &[ProxyFile],
    frontends: &[SocketAddr],
    single: &[SocketAddr],
    http: SocketAddr,
    certificate: &std::path::Path,
) -> String {
    let mut text = String::from(
        "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 10m\n  timeout server 10m\n  \
         retries 1\n  option redispatch\n",
    );
    let server = |number: usize, more: &str| {
        let address = files[number].web;
        format!(
            "  server p{number} {address} source {BALANCER} send-proxy-v2 check check-send-proxy inter 200ms {more}\n"
        )
    };
    for (algorithm, bind) in ALGORITHMS.iter().zip(frontends) {
        let _ = writeln!(text, "listen {algorithm}\n  bind {bind}\n  balance {algorithm}");
        (0..files.len()).for_each(|number| text.push_str(&server(number, "")));
    }
    for (number, bind) in single.iter().enumerate() {
        let _ = writeln!(text, "listen only{number}\n  bind {bind}");
        text.push_str(&server(number, ""));
    }
    let _ = writeln!(
        text,
        "listen http\n  mode http\n  bind {http} ssl crt {} alpn http/1.1\n  balance roundrobin\n  option forwardfor\n  \
         timeout tunnel 10m",
        certificate.display()
    );
    (0..files.len()).for_each(|number| text.push_str(&server(number, "ssl verify none")));
    text
}

fn agents_find_both_of_two_proxies(balanced: &mut Balanced) {
    balanced.proxies(2);
    balanced.cluster.add_user("alice", "access", "root");
    let _identity = balanced.cluster.sign("alice", "2h");
    balanced.agents();
    balanced.assert_mesh(2);
}

fn agents_find_a_third_proxy(balanced: &mut Balanced) {
    balanced.proxies(3);
    balanced.assert_mesh(3);
}

fn agents_find_a_fourth_proxy(balanced: &mut Balanced) {
    balanced.proxies(4);
    balanced.assert_mesh(4);
    for node in &balanced.cluster.nodes {
        balanced.assert_quiet(&node.daemon, 0);
    }
}

fn from_the_beginning_four_are_found_in_bounded_tries(balanced: &mut Balanced) {
    let mut marks = Vec::new();
    for node in &mut balanced.cluster.nodes {
        assert_eq!(node.daemon.stop(), Some(0));
        marks.push(node.daemon.log_mark());
        node.daemon.start();
    }
    balanced.assert_mesh(4);
    balanced.wait_tunnels(STICKY, 1);
    for (node, mark) in balanced.cluster.nodes.iter().zip(marks) {
        balanced.assert_quiet(&node.daemon, mark);
        let dials = node.daemon.log_since(mark).matches("dialling a proxy address").count();
        assert!(dials <= DIALS_MAX, "{dials} dials of {}", node.file.name);
    }
}

fn peering_behind_a_balancer_reaches_everybody_from_everywhere(balanced: &mut Balanced) {
    let written = balanced.cluster.create(
        "kind: cluster_networking_config\nversion: v2\nmetadata: {name: cluster-networking-config}\nspec:\n  \
         tunnel_strategy: {type: proxy_peering, agent_connection_count: 2}\n",
    );
    let _written = written.succeeded();
    for algorithm in ALGORITHMS {
        balanced.wait_tunnels(algorithm, if algorithm == STICKY { 1 } else { 2 });
        for proxy in 0..PROXIES_MAX {
            balanced.wait_reached(algorithm, proxy);
        }
    }
    // Through the balancer, whoever answers reaches him.
    for _ in 0..8 {
        assert!(balanced.enters(STICKY, balanced.frontends[0]));
    }
}

fn a_balancer_that_ends_tls_is_passed_through(balanced: &mut Balanced) {
    let authority = balanced.certificates.authority.to_string_lossy().into_owned();
    let mut file = balanced.cluster.node_file("http");
    file.way = Way::Proxy(balanced.http);
    balanced.cluster.add_node_with(file, &[("SSL_CERT_FILE", &authority)]);
    balanced.wait_tunnels("http", 2);
    for proxy in 0..PROXIES_MAX {
        balanced.wait_reached("http", proxy);
    }
    let way = balanced.cluster.scene.way().env("SSL_CERT_FILE", &authority);
    let way = way.arg("-i").arg(balanced.cluster.identity()).arg("--proxy").arg(balanced.http.to_string());
    let bytes = way.args(["ssh", "root@http", "head -c 3000000 /dev/zero"]).limit(Duration::from_secs(60));
    assert_eq!(bytes.output().succeeded().stdout.len(), 3_000_000);
    balanced.assert_quiet(&balanced.cluster.nodes[ALGORITHMS.len()].daemon, 0);
    // The doctor takes the same way, and so finds Auth.
    let doctor = balanced.cluster.scene.wayleave().env("SSL_CERT_FILE", &authority);
    let config = balanced.cluster.scene.path("http.yaml");
    let report = doctor.args(["doctor", "--format", "json", "-c"]).arg(config).output();
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).expect("a report");
    let findings = report["findings"].as_array().expect("findings");
    let auth = findings.iter().find(|finding| finding["check"] == "auth");
    assert!(auth.is_some_and(|finding| finding["status"] == "ok"), "{report:#}");
}
