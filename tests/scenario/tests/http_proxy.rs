//! The way out through a real HTTP proxy that asks for a login (tinyproxy), for agents, proxies and `way`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use wayleave_scenario::{Cluster, Running, canary, check_all, free_port, wait_until};

/// Loopback too, and yet not what is always reached straight: `127.0.0.1` is.
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

struct Office {
    cluster: Cluster,
    tinyproxy: Running,
    address: SocketAddr,
    password: String,
}

#[test]
fn http_proxy() {
    let mut office = Office::open();
    check_all!(&mut office;
        an_agent_joins_and_serves_through_it,
        a_proxy_reaches_auth_through_it,
        people_go_through_it,
        m_nobody_logs_the_password,
        a_wrong_password_is_told_and_shown_nowhere,
        what_is_excepted_goes_straight,
        a_setting_that_cannot_be_used_is_refused,
    );
}

impl Office {
    fn open() -> Self {
        let mut cluster = Cluster::builder("http-proxy").listening_on(FAR).start_auth();
        let file = cluster.proxy_file("proxy-1");
        let web = cluster.add_proxy(file).file.web;
        wait_until("the proxy", || std::net::TcpStream::connect(web).is_ok());
        cluster.add_user("alice", "access", "root");
        let _identity = cluster.sign("alice", "1h");
        let (address, password) = (free_port(), canary("proxy-password"));
        let config = format!(
            "Port {}\nListen {}\nAllow {}\nTimeout 600\nMaxClients 200\nBasicAuth office {password}\n",
            address.port(),
            address.ip(),
            address.ip()
        );
        let config = cluster.scene.write("tinyproxy.conf", config);
        let tinyproxy = cluster.scene.program("tinyproxy").args(["-d", "-c"]).arg(config).start();
        wait_until("tinyproxy", || std::net::TcpStream::connect(address).is_ok());
        Self { cluster, tinyproxy, address, password }
    }

    fn url(&self) -> String {
        format!("http://office:{}@{}", self.password, self.address)
    }

    /// How often it was asked for a connection to this address.
    fn asked_for(&self, target: SocketAddr) -> usize {
        let log = self.tinyproxy.stdout_so_far();
        log.matches(&format!("CONNECT {target} ")).count()
    }
}

fn an_agent_joins_and_serves_through_it(office: &mut Office) {
    let file = office.cluster.node_file("web-1");
    let url = office.url();
    office.cluster.add_node_with(file, &[("HTTPS_PROXY", &url)]);
    office.cluster.wait_reachable(0, "web-1");
    // Its join, its calls of Auth and its tunnel.
    let web = office.cluster.web(0);
    assert!(office.asked_for(web) >= 2, "{}", office.tinyproxy.stdout_so_far());
    let ssh = office.cluster.ssh(&office.cluster.identity(), 0);
    let bytes = ssh.run("web-1", &[], "head -c 3000000 /dev/zero").output().succeeded().stdout.len();
    assert_eq!(bytes, 3_000_000);
}

fn a_proxy_reaches_auth_through_it(office: &mut Office) {
    let file = office.cluster.proxy_file("proxy-2");
    let url = office.url();
    // As some programs write it.
    let web = office.cluster.add_proxy_with(file, &[("https_proxy", &url)]).file.web;
    wait_until("the second proxy", || std::net::TcpStream::connect(web).is_ok());
    office.cluster.wait_reachable(1, "web-1");
    let listed = office.cluster.way(&office.cluster.identity(), 1).arg("ls").stdout();
    assert!(listed.contains("web-1"));
    assert!(office.asked_for(office.cluster.auth_file.listen) >= 2);
}

fn people_go_through_it(office: &mut Office) {
    let before = office.asked_for(office.cluster.web(0));
    let way = || office.cluster.way(&office.cluster.identity(), 0).env("HTTPS_PROXY", office.url());
    assert!(way().arg("ls").stdout().contains("web-1"));
    way().args(["ssh", "root@web-1", "echo in"]).output().succeeded().printed("in");
    assert!(office.asked_for(office.cluster.web(0)) >= before + 2);
}

fn m_nobody_logs_the_password(office: &mut Office) {
    let way = office.cluster.way(&office.cluster.identity(), 0).env("HTTPS_PROXY", office.url());
    let told = way.args(["--debug", "ls"]).output().succeeded();
    let all: Vec<String> = office.cluster.daemons().map(wayleave_scenario::Daemon::log_text).collect();
    assert!(all.iter().any(|log| log.contains("go through the HTTP proxy")));
    for text in all.iter().chain([&told.to_string()]) {
        assert!(!text.contains(&office.password));
    }
}

fn a_wrong_password_is_told_and_shown_nowhere(office: &mut Office) {
    let wrong = canary("wrong-password");
    let way = office.cluster.way(&office.cluster.identity(), 0);
    let told = way.env("HTTPS_PROXY", format!("http://office:{wrong}@{}", office.address)).arg("ls").output();
    let told = told.ended_with(5).to_string();
    assert!(told.contains("HTTPS_PROXY") && !told.contains(&wrong), "{told}");
}

fn what_is_excepted_goes_straight(office: &mut Office) {
    let before = office.asked_for(office.cluster.web(0));
    for exceptions in ["127.0.0.0/8", "*", "127.0.0.2"] {
        let way = office.cluster.way(&office.cluster.identity(), 0).env("HTTPS_PROXY", office.url());
        assert!(way.env("NO_PROXY", exceptions).arg("ls").stdout().contains("web-1"));
    }
    assert_eq!(office.asked_for(office.cluster.web(0)), before);
}

fn a_setting_that_cannot_be_used_is_refused(office: &mut Office) {
    let way = office.cluster.way(&office.cluster.identity(), 0).env("HTTPS_PROXY", "socks5://x:secret@y:1");
    let told = way.arg("ls").output().ended_with(5).to_string();
    assert!(told.contains("HTTPS_PROXY") && !told.contains("secret"), "{told}");
    let mut file = office.cluster.node_file("web-2");
    file.lines.push("labels: {a: b}".into());
    let node = office.cluster.add_node_with(file, &[("HTTPS_PROXY", "socks5://x:secret@y:1")]);
    node.daemon.wait_failure();
    let log = node.daemon.log_text();
    assert!(log.contains("HTTPS_PROXY") && !log.contains("secret"), "{log}");
    office.cluster.nodes.pop();
}
