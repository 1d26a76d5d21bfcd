//! A cluster of separate processes: Auth, proxies, agents, and one user who may enter everything.

use crate::canary::canary;
use crate::canary::note_canary;
use crate::config_file::{AuthFile, NodeFile, ProxyFile, Way};
use crate::daemon::Daemon;
use crate::network::Host;
use crate::port::free_port;
use crate::program::{Output, Program};
use crate::scene::Scene;
use crate::ssh::Ssh;
use crate::wait::{PATIENCE, wait_at_most, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The user whom every cluster has, with the role `access` and the logins `root` and `nobody`.
const USER: &str = "alice";

/// What a cluster shall be.
pub struct ClusterBuilder {
    scene: Scene,
    proxies: usize,
    nodes: Vec<String>,
    strategy: Option<(String, u32)>,
    auth_lines: Vec<String>,
    auth_instance_lines: Vec<String>,
    proxy_lines: Vec<String>,
    node_lines: Vec<String>,
    instance_lines: Vec<String>,
    ip: IpAddr,
}

/// A proxy process.
pub struct Proxy {
    /// Its file, as written.
    pub file: ProxyFile,
    /// The process.
    pub daemon: Daemon,
}

/// An agent process with the SSH Service.
pub struct Node {
    /// Its file, as written.
    pub file: NodeFile,
    /// The process.
    pub daemon: Daemon,
}

/// An invitation as `way users add` and `way users reset` print it.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// Its address.
    pub url: String,
}

/// A running cluster. When it is dropped, everything ends.
pub struct Cluster {
    /// The agents.
    pub nodes: Vec<Node>,
    /// The proxies.
    pub proxies: Vec<Proxy>,
    /// The Auth process.
    pub auth: Daemon,
    /// The file of the Auth process, as written.
    pub auth_file: AuthFile,
    /// Where the file of the Auth process is, for `way -c`.
    pub auth_config: PathBuf,
    /// The pins of the host authority.
    pub pins: Vec<String>,
    /// The static token with which proxies and agents joined.
    pub static_token: String,
    /// Directory, logs and rules.
    pub scene: Scene,
}

impl ClusterBuilder {
    /// One Auth, one proxy, no agent.
    pub fn new(name: &str) -> Self {
        Self {
            scene: Scene::new(name),
            proxies: 1,
            nodes: Vec::new(),
            strategy: None,
            auth_lines: Vec::new(),
            auth_instance_lines: Vec::new(),
            proxy_lines: Vec::new(),
            node_lines: Vec::new(),
            instance_lines: vec!["shutdown_timeout: 2s".into()],
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }

    /// Another address of loopback than `127.0.0.1` for everything that listens.
    #[must_use]
    pub fn listening_on(mut self, ip: IpAddr) -> Self {
        self.ip = ip;
        self
    }

    /// How many proxies.
    #[must_use]
    pub fn proxies(mut self, count: usize) -> Self {
        self.proxies = count;
        self
    }

    /// The agents, by name.
    #[must_use]
    pub fn nodes(mut self, names: &[&str]) -> Self {
        self.nodes = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// `proxy_peering` with so many tunnels for each agent.
    #[must_use]
    pub fn peering(mut self, connections: u32) -> Self {
        self.strategy = Some(("proxy_peering".into(), connections));
        self
    }

    /// More lines of `auth_service`.
    #[must_use]
    pub fn auth_lines(mut self, lines: &[&str]) -> Self {
        self.auth_lines.extend(lines.iter().map(|line| (*line).to_owned()));
        self
    }

    /// More lines of `wayleave` in the file of Auth.
    #[must_use]
    pub fn auth_instance_lines(mut self, lines: &[&str]) -> Self {
        self.auth_instance_lines.extend(lines.iter().map(|line| (*line).to_owned()));
        self
    }

    /// More lines of `proxy_service`.
    #[must_use]
    pub fn proxy_lines(mut self, lines: &[&str]) -> Self {
        self.proxy_lines.extend(lines.iter().map(|line| (*line).to_owned()));
        self
    }

    /// More lines of `ssh_service`.
    #[must_use]
    pub fn node_lines(mut self, lines: &[&str]) -> Self {
        self.node_lines.extend(lines.iter().map(|line| (*line).to_owned()));
        self
    }

    /// Instead of a drain of two seconds at most: more lines of `wayleave` in every file.
    #[must_use]
    pub fn instance_lines(mut self, lines: &[&str]) -> Self {
        self.instance_lines = lines.iter().map(|line| (*line).to_owned()).collect();
        self
    }

    /// Writes the files, starts the processes, makes the user, and waits until every node is reached through every
    /// proxy.
    ///
    /// # Panics
    /// When that does not happen.
    pub fn start(self) -> Cluster {
        let (proxies, nodes, proxy_lines, node_lines, instance_lines) = (
            self.proxies,
            self.nodes.clone(),
            self.proxy_lines.clone(),
            self.node_lines.clone(),
            self.instance_lines.clone(),
        );
        let mut cluster = self.start_auth();
        for number in 1..=proxies {
            let mut file = cluster.proxy_file(&format!("proxy-{number}"));
            file.lines.clone_from(&proxy_lines);
            file.instance_lines.clone_from(&instance_lines);
            cluster.add_proxy(file);
        }
        cluster.proxies.iter().for_each(|proxy| wait_listening(proxy.file.web, &proxy.daemon));
        wait_until("the proxies to be known", || cluster.known_proxies() == proxies);
        for name in &nodes {
            let mut file = cluster.node_file(name);
            file.lines.clone_from(&node_lines);
            file.instance_lines.clone_from(&instance_lines);
            cluster.add_node(file);
        }
        cluster.add_user(USER, "access", "root,nobody");
        let identity = cluster.sign(USER, "1h");
        assert_eq!(identity, cluster.identity());
        for proxy in 0..proxies {
            nodes.iter().for_each(|name| cluster.wait_reachable(proxy, name));
        }
        cluster
    }

    /// Starts Auth alone and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_auth(self) -> Cluster {
        let scene = self.scene;
        let static_token = canary("static-token");
        let mut lines = self.auth_lines;
        if let Some((kind, count)) = &self.strategy {
            lines.push("tunnel_strategy:".into());
            lines.push(format!("  type: {kind}"));
            lines.push(format!("  agent_connection_count: {count}"));
        }
        let mut instance_lines = self.instance_lines;
        instance_lines.extend(self.auth_instance_lines);
        let auth_file = AuthFile {
            data_dir: scene.path("auth"),
            cluster_name: "scenario".into(),
            listen: SocketAddr::new(self.ip, free_port().port()),
            tokens: vec![format!("proxy,node:{static_token}")],
            lines,
            instance_lines,
        };
        let auth_config = scene.write("auth.yaml", auth_file.text());
        let mut auth = scene.daemon("auth", &auth_config);
        auth.start();
        let mut cluster = Cluster {
            nodes: Vec::new(),
            proxies: Vec::new(),
            auth,
            auth_file,
            auth_config,
            pins: Vec::new(),
            static_token,
            scene,
        };
        cluster.wait_auth();
        let status = cluster.status();
        cluster.pins = status["ca_pins"].as_array().unwrap().iter().map(text).collect();
        assert!(!cluster.pins.is_empty(), "{status}");
        cluster
    }
}

impl Cluster {
    /// What a cluster shall be, named for the directory of its logs.
    pub fn builder(name: &str) -> ClusterBuilder {
        ClusterBuilder::new(name)
    }

    /// `way -c` on the Auth host.
    pub fn admin(&self) -> Program {
        self.scene.way().arg("-c").arg(&self.auth_config)
    }

    /// `way` with an identity file through a proxy.
    pub fn way(&self, identity: &Path, proxy: usize) -> Program {
        self.scene.way().arg("-i").arg(identity).arg("--proxy").arg(self.web(proxy).to_string())
    }

    /// The public port of a proxy.
    pub fn web(&self, proxy: usize) -> SocketAddr {
        self.proxies[proxy].file.web
    }

    /// The cluster as Auth sees it.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn status(&self) -> Value {
        self.admin().args(["status", "--format", "json"]).json()
    }

    /// Waits until Auth answers its local administrator.
    ///
    /// # Panics
    /// When it does not, or ends.
    pub fn wait_auth(&mut self) {
        let mut last = None;
        let answered = wait_at_most(PATIENCE, || {
            let output = self.admin().args(["status", "--format", "json"]).output();
            let done = output.code == Some(0) || !self.auth.is_running();
            last = Some(output);
            done.then_some(())
        });
        let last = last.map(|output| output.to_string()).unwrap_or_default();
        assert!(
            answered.is_some() && self.auth.is_running(),
            "Auth does not answer: {last}\n{}",
            self.auth.tail()
        );
    }

    /// How many proxies Auth knows.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn known_proxies(&self) -> usize {
        self.admin().args(["get", "proxies", "--format", "json"]).json().as_array().unwrap().len()
    }

    /// A proxy's file with free ports and the static token.
    pub fn proxy_file(&self, name: &str) -> ProxyFile {
        let port = || SocketAddr::new(self.auth_file.listen.ip(), free_port().port());
        let web = port();
        ProxyFile {
            name: name.into(),
            data_dir: self.scene.path(name),
            auth: self.auth_file.listen,
            auth_before: Vec::new(),
            token: self.static_token.clone(),
            pins: self.pins.clone(),
            web,
            public: web,
            ssh: port(),
            peer: port(),
            lines: Vec::new(),
            instance_lines: vec!["shutdown_timeout: 2s".into()],
        }
    }

    /// An agent's file with the static token, by way of one of the proxies (in turn).
    pub fn node_file(&self, name: &str) -> NodeFile {
        NodeFile {
            name: name.into(),
            data_dir: self.scene.path(name),
            way: Way::Proxy(self.web(self.nodes.len() % self.proxies.len())),
            token: self.static_token.clone(),
            pins: self.pins.clone(),
            lines: Vec::new(),
            instance_lines: vec!["shutdown_timeout: 2s".into()],
        }
    }

    /// Writes a proxy's file and starts it.
    pub fn add_proxy(&mut self, file: ProxyFile) -> &mut Proxy {
        self.add_proxy_with(file, &[])
    }

    /// The same with variables of the environment.
    pub fn add_proxy_with(&mut self, file: ProxyFile, environment: &[(&str, &str)]) -> &mut Proxy {
        let config = self.scene.write(&format!("{}.yaml", file.name), file.text());
        let mut daemon = self.scene.daemon(&file.name, &config);
        environment.iter().for_each(|(name, value)| daemon.set_env(name, value));
        daemon.start();
        self.proxies.push(Proxy { file, daemon });
        self.proxies.last_mut().unwrap()
    }

    /// Writes a proxy's file and starts it on a host, whose address it has.
    pub fn add_proxy_at(&mut self, mut file: ProxyFile, host: &Host) -> &mut Proxy {
        for address in [&mut file.web, &mut file.public, &mut file.ssh, &mut file.peer] {
            address.set_ip(host.address());
        }
        let config = self.scene.write(&format!("{}.yaml", file.name), file.text());
        let mut daemon = self.scene.daemon_by(&file.name, host.inside(self.scene.start_program(&config)));
        daemon.start();
        self.proxies.push(Proxy { file, daemon });
        self.proxies.last_mut().unwrap()
    }

    /// Writes an agent's file and starts it on a host.
    pub fn add_node_at(&mut self, file: NodeFile, host: &Host) -> &mut Node {
        let config = self.scene.write(&format!("{}.yaml", file.name), file.text());
        let mut daemon = self.scene.daemon_by(&file.name, host.inside(self.scene.start_program(&config)));
        daemon.start();
        self.nodes.push(Node { file, daemon });
        self.nodes.last_mut().unwrap()
    }

    /// Writes an agent's file and starts it.
    pub fn add_node(&mut self, file: NodeFile) -> &mut Node {
        self.add_node_with(file, &[])
    }

    /// The same with variables of the environment.
    pub fn add_node_with(&mut self, file: NodeFile, environment: &[(&str, &str)]) -> &mut Node {
        let config = self.scene.write(&format!("{}.yaml", file.name), file.text());
        let mut daemon = self.scene.daemon(&file.name, &config);
        environment.iter().for_each(|(name, value)| daemon.set_env(name, value));
        daemon.start();
        self.nodes.push(Node { file, daemon });
        self.nodes.last_mut().unwrap()
    }

    /// Writes an agent's file and starts it where there are more accounts than on this machine: lines for
    /// `/etc/passwd` and `/etc/group`, which nobody else sees. Only root can.
    pub fn add_node_with_accounts(&mut self, file: NodeFile, passwd: &str, group: &str) -> &mut Node {
        let config = self.scene.write(&format!("{}.yaml", file.name), file.text());
        let mounted = |name: &str, lines: &str| {
            let text = std::fs::read_to_string(format!("/etc/{name}")).unwrap() + lines;
            let copy = self.scene.write(&format!("etc-{name}"), text);
            let mut permissions = std::fs::metadata(&copy).unwrap().permissions();
            permissions.set_mode(0o644);
            std::fs::set_permissions(&copy, permissions).unwrap();
            format!("mount --bind '{}' /etc/{name}", copy.display())
        };
        let script = format!(
            "{} && {} && exec {}",
            mounted("passwd", passwd),
            mounted("group", group),
            self.scene.start_program(&config).shell_words()
        );
        let program = self.scene.program("unshare").args(["--mount", "sh", "-c", &script]);
        let mut daemon = self.scene.daemon_by(&file.name, program);
        daemon.start();
        self.nodes.push(Node { file, daemon });
        self.nodes.last_mut().unwrap()
    }

    /// Makes a user; gives the invitation, whose secret is a canary from now on.
    ///
    /// # Panics
    /// When Auth refuses.
    pub fn add_user(&self, name: &str, roles: &str, logins: &str) -> Invitation {
        let arguments = ["users", "add", name, "--roles", roles, "--logins", logins, "--format", "json"];
        Invitation::read(&self.admin().args(arguments).json())
    }

    /// Makes an identity file `NAME.id` in the scene's directory, replacing the one before.
    ///
    /// # Panics
    /// When Auth refuses.
    pub fn sign(&self, name: &str, ttl: &str) -> PathBuf {
        let out = self.scene.path(&format!("{name}.id"));
        let arguments = ["auth", "sign", "--user", name, "--ttl", ttl, "--overwrite", "--out"];
        let _signed = self.admin().args(arguments).arg(&out).stdout();
        out
    }

    /// The identity file of the user whom every cluster has.
    pub fn identity(&self) -> PathBuf {
        self.scene.path(&format!("{USER}.id"))
    }

    /// A new join token, with its secret as a canary: `name.secret`, as a configuration takes it.
    ///
    /// # Panics
    /// When Auth refuses.
    pub fn add_token(&self, roles: &str, ttl: &str) -> String {
        let token =
            self.admin().args(["tokens", "add", "--type", roles, "--ttl", ttl, "--format", "json"]).json();
        let token = text(&token["token"]);
        let secret = token.rsplit('.').next().unwrap();
        assert!(secret.len() >= 16, "a token without a secret");
        note_canary(secret);
        token
    }

    /// Creates or replaces what a YAML document says.
    ///
    /// # Panics
    /// When Auth refuses.
    pub fn create(&self, yaml: &str) -> Output {
        let file = self.scene.write("resource.yaml", yaml);
        self.admin().args(["create", "-f"]).arg(file).output()
    }

    /// Stock `ssh` by the configuration that `way config` prints.
    ///
    /// # Panics
    /// When it prints none.
    pub fn ssh(&self, identity: &Path, proxy: usize) -> Ssh {
        Ssh::new(self, identity, proxy)
    }

    /// Waits until a node is entered through a proxy.
    ///
    /// # Panics
    /// When it is not, with the ends of all logs.
    #[track_caller]
    pub fn wait_reachable(&self, proxy: usize, node: &str) {
        let mut last = None;
        let ssh = self.ssh(&self.identity(), proxy);
        let reached = wait_at_most(PATIENCE, || {
            let output = ssh.run(node, &[], "true").output();
            let done = output.code == Some(0);
            last = Some(output);
            done.then_some(())
        });
        let Some(last) = last.filter(|_| reached.is_none()) else { return };
        let tails: Vec<String> = self.daemons().map(Daemon::tail).collect();
        panic!("{node} is not reached through proxy {proxy}: {last}\n{}", tails.join("\n"));
    }

    /// Waits until a node is shown as online or offline.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn wait_listed(&self, node: &str, online: bool) {
        wait_until(&format!("{node} to be listed with online: {online}"), || {
            self.list().iter().any(|listed| listed["name"] == node && listed["online"] == online)
        });
    }

    /// What the user whom every cluster has sees.
    ///
    /// # Panics
    /// When Auth does not answer.
    pub fn list(&self) -> Vec<Value> {
        let started = self.proxies.iter().position(|proxy| proxy.daemon.is_started()).unwrap();
        let list = self.way(&self.identity(), started).args(["ls", "--format", "json"]);
        list.json().as_array().unwrap().clone()
    }

    /// The proxies that hold a tunnel of a node now, as their own logs tell.
    ///
    /// # Panics
    /// When no such node is listed.
    pub fn holders(&self, node: &str) -> Vec<usize> {
        let listed = self.list();
        let node = listed.iter().rfind(|listed| listed["name"] == node).unwrap();
        self.holders_of(&text(&node["host_id"]))
    }

    /// The same by the host id.
    pub fn holders_of(&self, host_id: &str) -> Vec<usize> {
        let holds = |log: &str| {
            let life = log.rsplit("the proxy is up").next().unwrap_or(log);
            let count = |what: &str| {
                life.lines().filter(|line| line.contains(what) && line.contains(host_id)).count()
            };
            count("an agent is connected") > count("an agent is gone")
        };
        let is_holder = |proxy: &Proxy| proxy.daemon.is_started() && holds(&proxy.daemon.log_text());
        let numbered = self.proxies.iter().enumerate();
        numbered.filter(|(_, proxy)| is_holder(proxy)).map(|(number, _)| number).collect()
    }

    /// Every process.
    pub fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        let proxies = self.proxies.iter().map(|proxy| &proxy.daemon);
        let nodes = self.nodes.iter().map(|node| &node.daemon);
        std::iter::once(&self.auth).chain(proxies).chain(nodes)
    }

    /// The agent of that name.
    ///
    /// # Panics
    /// When there is none.
    pub fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.file.name == name).unwrap()
    }
}

impl Invitation {
    /// Reads what `way users add` or `reset` printed as JSON.
    ///
    /// # Panics
    /// When it is no invitation.
    pub fn read(json: &Value) -> Self {
        let token = text(&json["token"]);
        let secret = token.rsplit('.').next().unwrap();
        assert!(secret.len() >= 16, "an invitation without a secret");
        note_canary(secret);
        let url = text(&json["url"]);
        assert!(url.contains(&token), "an address without the invitation: {json}");
        Self { url }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // All are asked before each is waited for.
        let proxies = self.proxies.iter_mut().map(|proxy| &mut proxy.daemon);
        let nodes = self.nodes.iter_mut().map(|node| &mut node.daemon);
        for daemon in std::iter::once(&mut self.auth).chain(proxies).chain(nodes) {
            if daemon.is_running() {
                daemon.signal(Signal::SIGCONT);
                daemon.signal(Signal::SIGTERM);
            }
        }
    }
}

/// Waits until somebody listens there.
#[track_caller]
pub(crate) fn wait_listening(address: SocketAddr, daemon: &Daemon) {
    let listening = wait_at_most(PATIENCE, || TcpStream::connect(address).ok());
    assert!(listening.is_some(), "nobody listens on {address}: {}", daemon.tail());
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a text was expected: {value}")).to_owned()
}
