//! Wayleave as separate processes on loopback, from configuration files as an operator would write them.

use crate::daemon::{Daemon, LOOK, free_addresses, wait_for};
use crate::openssh::CLIENT_OPTIONS;
use crate::store::Store;
use crate::watched::{shown, time};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Name of every cluster that is measured, and so the domain of its nodes.
pub(crate) const CLUSTER: &str = "bench";
/// The agent of its own process.
pub(crate) const NODE: &str = "node";
/// The agent of a process that has all roles.
pub(crate) const ALL_ROLES: &str = "all";
const USER: &str = "bench";
/// For the tunnels that a proxy is measured with by default, and dials beside them.
const CONNECTIONS_MAX: u64 = 17_000;

/// A directory with the processes of one cluster, and the programs they run.
pub(crate) struct Site {
    directory: PathBuf,
    bin_dir: PathBuf,
    pub(crate) login: String,
    /// How many tunnels an agent keeps.
    pub(crate) connections: u16,
    /// How long a process that is told to stop waits for what runs.
    pub(crate) shutdown_timeout: &'static str,
    /// Proxies tell each other of routes directly.
    pub(crate) pushes_routes: bool,
    /// Auth's backend.
    pub(crate) store: Store,
}

/// A proxy: where clients enter.
pub(crate) struct Proxy {
    pub(crate) web: SocketAddr,
    pub(crate) daemon: Daemon,
    log: PathBuf,
}

/// Auth, two proxies and an agent, each its own process.
pub(crate) struct Peered {
    pub(crate) site: Site,
    // Ended in this order: agents before what they are connected to.
    pub(crate) node: Daemon,
    proxies: [Proxy; 2],
    _auth: Daemon,
    home: usize,
}

/// The configuration of a process that has all roles, and where it listens.
pub(crate) struct AllRoles {
    pub(crate) site: Site,
    pub(crate) addresses: Vec<SocketAddr>,
    web: SocketAddr,
}

impl Site {
    /// # Errors
    /// When there are no such programs.
    pub(crate) fn new(directory: PathBuf, bin_dir: &Path, login: &str) -> Result<Self> {
        for program in ["wayleave", "way"] {
            let path = bin_dir.join(program);
            ensure!(path.is_file(), "{} is missing: build it, or name --bin-dir", path.display());
        }
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        Ok(Self {
            directory,
            bin_dir: bin_dir.to_owned(),
            login: login.to_owned(),
            connections: 1,
            shutdown_timeout: "2s",
            pushes_routes: true,
            store: Store::Sqlite,
        })
    }

    pub(crate) fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    pub(crate) fn home(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn write(&self, name: &str, upstream: &str, services: &str) -> Result<()> {
        let home = self.home(name);
        fs::create_dir_all(&home)?;
        let joining = if upstream.is_empty() {
            self.store.section(&self.directory)?
        } else {
            let directory = self.directory.display();
            format!("  {upstream}\n  auth_token: {directory}/token\n  ca_pin: {directory}/ca-pin\n")
        };
        let text = format!(
            "version: v3\nwayleave:\n  nodename: {name}\n  data_dir: {home}/data\n{joining}  \
             shutdown_timeout: {patience}\n  connection_limits:\n    max_connections: {CONNECTIONS_MAX}\n  log:\n    \
             output: {home}/log\n{services}",
            home = home.display(),
            patience = self.shutdown_timeout,
        );
        fs::write(home.join("wayleave.yaml"), text).with_context(|| format!("the configuration of {name}"))
    }

    pub(crate) fn auth_section(&self, address: SocketAddr) -> Result<String> {
        let token = self.directory.join("token");
        // Only this machine can reach the cluster, and only for the minutes it lives.
        fs::write(&token, format!("bench-token-{}-{}", std::process::id(), address.port()))?;
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600))?;
        Ok(format!(
            "auth_service:\n  cluster_name: {CLUSTER}\n  listen_addr: {address}\n  tokens:\n    - \
             \"proxy,node:{}\"\n  tunnel_strategy:\n    type: proxy_peering\n    agent_connection_count: {}\n",
            token.display(),
            self.connections
        ))
    }

    pub(crate) fn start(&self, name: &str) -> Result<Daemon> {
        self.start_within(name, &[])
    }

    /// Starts a process by a program that runs it elsewhere, such as on another host.
    ///
    /// # Errors
    /// When it cannot start.
    pub(crate) fn start_within(&self, name: &str, prefix: &[String]) -> Result<Daemon> {
        let home = self.home(name);
        let wayleave = self.bin_dir.join("wayleave");
        let mut command = match prefix.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(wayleave);
                command
            }
            None => Command::new(wayleave),
        };
        command.arg("start").arg("-c").arg(home.join("wayleave.yaml"));
        Daemon::start(name, &mut command, &home.join("stderr"))
    }

    fn way(&self) -> Command {
        let mut command = Command::new(self.bin_dir.join("way"));
        for variable in ["WAY_PROXY", "WAY_IDENTITY", "WAY_USER"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null());
        command
    }

    fn admin(&self, auth: &str) -> Command {
        let mut command = self.way();
        command.arg("-c").arg(self.home(auth).join("wayleave.yaml"));
        command
    }

    /// Writes the pin that the others join with, once Auth answers.
    pub(crate) fn write_pin(&self, auth: &mut Daemon) -> Result<()> {
        let status = wait_for("Auth to answer", || {
            auth.check()?;
            let output = self.admin(&auth.name).args(["status", "--format", "json"]).output()?;
            Ok(output.status.success().then_some(output.stdout))
        })?;
        let status: serde_json::Value =
            serde_json::from_slice(&status).context("the answer of way status")?;
        let pins = status.get("ca_pins").and_then(|pins| pins.as_array()).into_iter().flatten();
        let pins: Vec<&str> = pins.filter_map(|pin| pin.as_str()).collect();
        ensure!(!pins.is_empty(), "way status shows no pin");
        fs::write(self.directory.join("ca-pin"), pins.join("\n")).context("the pin")
    }

    /// Makes the user and his identity, which knows all proxies that there are.
    ///
    /// # Errors
    /// When Auth refuses.
    pub(crate) fn make_user(&self, auth: &str) -> Result<()> {
        let add = ["users", "add", USER, "--roles", "access", "--logins", &self.login];
        run(self.admin(auth).args(add))?;
        run(self
            .admin(auth)
            .args(["auth", "sign", "--user", USER, "--ttl", "8h", "--out"])
            .arg(self.identity()))?;
        Ok(())
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.directory.join("identity")
    }

    /// Stock `ssh` through one proxy, by what `way config` prints, with a command for the node.
    ///
    /// # Errors
    /// When `way config` fails.
    pub(crate) fn ssh(&self, web: SocketAddr, node: &str) -> Result<Command> {
        let config = self.directory.join(format!("ssh-{}.config", web.port()));
        if !config.exists() {
            let mut command = self.way();
            command.arg("-i").arg(self.identity()).args(["--proxy", &web.to_string(), "config", "--out-dir"]);
            let text = run(command.arg(self.directory.join("ssh")))?;
            fs::write(&config, format!("{CLIENT_OPTIONS}{text}"))?;
        }
        let mut command = Command::new("ssh");
        command.env_remove("SSH_AUTH_SOCK").arg("-F").arg(config);
        command.arg(format!("{}@{node}.{CLUSTER}", self.login));
        Ok(command)
    }

    /// `way ssh` through one proxy.
    pub(crate) fn way_ssh(&self, web: SocketAddr, node: &str) -> Command {
        let mut command = self.way();
        command.arg("-i").arg(self.identity()).args(["--proxy", &web.to_string(), "ssh"]);
        command.env_remove("SSH_AUTH_SOCK").arg(format!("{}@{node}", self.login));
        command
    }

    /// Waits until stock `ssh` reaches a node through a proxy.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn wait_reachable(&self, web: SocketAddr, node: &str) -> Result<()> {
        let mut last = None;
        let reached = wait_for(&format!("{node} to be reachable through {web}"), || {
            let outcome = time(self.ssh(web, node)?.arg("true"));
            let done = outcome.is_ok().then_some(());
            last = outcome.err();
            Ok(done)
        });
        match (reached, last) {
            (Err(error), Some(last)) => Err(last.context(error)),
            (reached, _) => reached,
        }
    }

    /// Starts the agent that is called [`NODE`].
    ///
    /// # Errors
    /// When it cannot start.
    pub(crate) fn start_node(&self, web: SocketAddr) -> Result<Daemon> {
        self.write(NODE, &format!("proxy_server: {web}"), "ssh_service:\n  labels:\n    bench: \"yes\"\n")?;
        self.start(NODE)
    }
}

impl Peered {
    /// Starts everything and waits until the agent is reached through both proxies.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn start(site: Site) -> Result<Self> {
        let [listen] = free_addresses()?;
        let section = site.auth_section(listen)?;
        site.write("auth", "", &section)?;
        let mut auth = site.start("auth")?;
        site.write_pin(&mut auth)?;
        let proxies = [start_proxy(&site, "proxy-a", listen)?, start_proxy(&site, "proxy-b", listen)?];
        site.make_user("auth")?;
        let node = site.start_node(proxies[0].web)?;
        for proxy in &proxies {
            site.wait_reachable(proxy.web, NODE)?;
        }
        let home = home_of(&proxies)?;
        Ok(Self { site, node, proxies, _auth: auth, home })
    }

    /// The proxy that holds the agent's tunnel.
    pub(crate) fn home(&self) -> &Proxy {
        let [first, second] = &self.proxies;
        if self.home == 0 { first } else { second }
    }

    /// The other one.
    pub(crate) fn ingress(&self) -> &Proxy {
        let [first, second] = &self.proxies;
        if self.home == 0 { second } else { first }
    }
}

pub(crate) fn start_proxy(site: &Site, name: &str, auth: SocketAddr) -> Result<Proxy> {
    start_proxy_on(site, name, auth, Ipv4Addr::LOCALHOST.into(), &[])
}

/// Starts a proxy that listens on this address, by a program that runs it where that is.
///
/// # Errors
/// When it does not listen.
pub(crate) fn start_proxy_on(
    site: &Site,
    name: &str,
    auth: SocketAddr,
    ip: IpAddr,
    prefix: &[String],
) -> Result<Proxy> {
    let (web, mut section) = proxy_section(ip)?;
    if !site.pushes_routes {
        section.0.push_str("  peer_route_push: no\n");
    }
    site.write(name, &format!("auth_server: {auth}"), &section.0)?;
    let mut daemon = site.start_within(name, prefix)?;
    daemon.wait_listening(&[web], LOOK)?;
    Ok(Proxy { web, daemon, log: site.home(name).join("log") })
}

/// The section, and everything it listens on.
struct ProxySection(String, [SocketAddr; 3]);

fn proxy_section(ip: IpAddr) -> Result<(SocketAddr, ProxySection)> {
    let [web, ssh, peer] = free_addresses::<3>()?.map(|free| SocketAddr::new(ip, free.port()));
    let text = format!(
        "proxy_service:\n  web_listen_addr: {web}\n  listen_addr: {ssh}\n  peer_listen_addr: {peer}\n  \
         public_addr: {web}\n"
    );
    Ok((web, ProxySection(text, [web, ssh, peer])))
}

/// Which proxy's log tells of the agent's tunnel.
fn home_of(proxies: &[Proxy]) -> Result<usize> {
    let holds =
        |proxy: &Proxy| fs::read_to_string(&proxy.log).is_ok_and(|log| log.contains("an agent is connected"));
    let holders: Vec<usize> =
        (0..proxies.len()).filter(|index| proxies.get(*index).is_some_and(holds)).collect();
    match holders[..] {
        [home] => Ok(home),
        _ => {
            bail!("{} proxies hold the tunnel of the agent: nothing would be peered for sure", holders.len())
        }
    }
}

impl AllRoles {
    /// Writes the configuration; nothing runs yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn new(site: Site) -> Result<Self> {
        let [listen] = free_addresses()?;
        let (web, ProxySection(proxy, addresses)) = proxy_section(Ipv4Addr::LOCALHOST.into())?;
        let auth = site.auth_section(listen)?;
        let node = "ssh_service:\n  labels:\n    bench: \"yes\"\n";
        site.write(ALL_ROLES, "", &format!("{auth}{proxy}{node}"))?;
        let addresses = std::iter::once(listen).chain(addresses).collect();
        Ok(Self { site, addresses, web })
    }

    /// Starts it for the first time, with a user, and waits until its node is reached.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn start(&self) -> Result<Daemon> {
        let mut daemon = self.site.start(ALL_ROLES)?;
        daemon.wait_listening(&self.addresses, LOOK)?;
        self.site.write_pin(&mut daemon)?;
        self.site.make_user(ALL_ROLES)?;
        self.wait_reachable()?;
        Ok(daemon)
    }

    pub(crate) fn wait_reachable(&self) -> Result<()> {
        self.site.wait_reachable(self.web, ALL_ROLES)
    }

    /// An agent of its own process, connected.
    ///
    /// # Errors
    /// When it does not connect.
    pub(crate) fn start_agent(&self) -> Result<Daemon> {
        let mut daemon = self.site.start_node(self.web)?;
        let log = self.site.home(NODE).join("log");
        wait_for("the agent to connect", || {
            daemon.check()?;
            // The log of the agent exists before that of the proxy tells of it.
            let told = fs::read_to_string(self.site.home(ALL_ROLES).join("log")).unwrap_or_default();
            Ok((log.exists() && told.matches("an agent is connected").count() >= 2).then_some(()))
        })?;
        Ok(daemon)
    }

    /// Stock `ssh` to a node.
    ///
    /// # Errors
    /// When there is no configuration for it.
    pub(crate) fn ssh(&self, node: &str) -> Result<Command> {
        self.site.ssh(self.web, node)
    }
}

/// What a program printed.
fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| shown(command))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", shown(command), errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
