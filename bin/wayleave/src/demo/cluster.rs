//! The demo's processes: their files, their start, their end.

use super::probe;
use anyhow::{Context, bail};
use std::fs::{self, DirBuilder};
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wayleave_client::identity_file::Identity;
use wayleave_dial::DialRoute;
use wayleave_keystore::write_private;
use wayleave_vocab::{HostId, HostPort};

/// How long the whole cluster may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// How long processes may take to end before they are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a directory that is made: what is in it is nobody else's.
const PRIVATE_DIRECTORY: u32 = 0o700;
/// The user of the demo.
const USER: &str = "demo";
const CLUSTER: &str = "demo";

/// A proxy of the demo.
pub(super) struct DemoProxy {
    pub(super) name: &'static str,
    pub(super) host_id: HostId,
    pub(super) web: HostPort,
    pub(super) ssh: HostPort,
}

/// A running cluster. Dropping it kills what still runs and removes a temporary directory.
pub(super) struct DemoCluster {
    pub(super) directory: PathBuf,
    pub(super) proxies: Vec<DemoProxy>,
    pub(super) nodes: Vec<String>,
    pub(super) login: String,
    pub(super) started_ms: u128,
    pub(super) identity: Identity,
    program: PathBuf,
    processes: Vec<(&'static str, Child)>,
    _temporary: Option<tempfile::TempDir>,
}

/// Where the processes listen.
struct Ports {
    auth: u16,
    /// Web, SSH and peering of each proxy.
    proxies: [[u16; 3]; 2],
}

impl DemoCluster {
    pub(super) async fn start(data_dir: Option<&Path>) -> anyhow::Result<Self> {
        let began = Instant::now();
        let (directory, temporary) = make_directory(data_dir)?;
        let program = std::env::current_exe().context("the path of this program is unknown")?;
        let ports = free_ports()?;
        write_auth(&directory, &ports)?;
        let mut starting = Starting { directory: directory.clone(), program, processes: Vec::new() };
        starting.spawn("auth")?;
        starting.wait_for_file(&directory.join("auth/data/admin-identity")).await?;
        let status = starting.way(&["status", "--format", "json"]).await?;
        write_others(&directory, &ports, &status)?;
        for name in ["proxy-a", "proxy-b", "node-1", "node-2"] {
            starting.spawn(name)?;
        }
        let login = login()?;
        let identity = starting.make_user(&login, &ports).await?;
        let proxies = starting.wait_for_proxies(&ports).await?;
        let nodes = vec!["node-1".to_owned(), "node-2".to_owned()];
        let (program, processes) = (starting.program.clone(), std::mem::take(&mut starting.processes));
        let mut cluster = Self {
            directory,
            proxies,
            nodes,
            login,
            started_ms: 0,
            identity,
            program,
            processes,
            _temporary: temporary,
        };
        for node in cluster.nodes.clone() {
            cluster.home_of(&node, START_TIMEOUT).await?;
        }
        cluster.started_ms = began.elapsed().as_millis();
        Ok(cluster)
    }

    /// The proxy that holds a node's tunnel, waiting until every proxy reaches the node.
    pub(super) async fn home_of(&self, node: &str, within: Duration) -> anyhow::Result<HostId> {
        let deadline = Instant::now() + within;
        let mut home = None;
        for proxy in &self.proxies {
            home = Some(self.wait_reachable(proxy, node, deadline).await?.home_proxy);
        }
        home.context("there is no proxy")
    }

    async fn wait_reachable(
        &self,
        proxy: &DemoProxy,
        node: &str,
        deadline: Instant,
    ) -> anyhow::Result<DialRoute> {
        loop {
            match probe::dial(&self.identity, &proxy.web, node).await {
                Ok(dialled) => return Ok(dialled.route),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| {
                        format!(
                            "{node} is not reachable through {}; the logs are in {}",
                            proxy.name,
                            self.directory.display()
                        )
                    });
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    pub(super) fn proxy(&self, id: HostId) -> anyhow::Result<&DemoProxy> {
        self.proxies.iter().find(|proxy| proxy.host_id == id).context("a proxy that is not of the demo")
    }

    pub(super) fn other_proxy(&self, id: HostId) -> anyhow::Result<HostId> {
        let other = self.proxies.iter().find(|proxy| proxy.host_id != id);
        other.map(|proxy| proxy.host_id).context("there is only one proxy")
    }

    /// Kills a proxy as a crash would.
    pub(super) fn kill_proxy(&mut self, id: HostId) -> anyhow::Result<()> {
        let name = self.proxy(id)?.name;
        let index = self.processes.iter().position(|(n, _)| *n == name).context("the proxy does not run")?;
        let (_, mut child) = self.processes.remove(index);
        child.kill().context("the proxy cannot be killed")?;
        child.wait().context("the killed proxy")?;
        Ok(())
    }

    pub(super) fn restart_proxy(&mut self, id: HostId) -> anyhow::Result<()> {
        let name = self.proxy(id)?.name;
        let child = spawn(&self.program, &self.directory, name)?;
        self.processes.push((name, child));
        Ok(())
    }

    /// The command line of the client in this very program.
    pub(super) fn client(&self) -> String {
        format!("{} client", self.program.display())
    }

    pub(super) fn identity_path(&self) -> PathBuf {
        self.directory.join("identity")
    }

    /// Ends all processes, agents first.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        while let Some((_, child)) = self.processes.pop() {
            stop(child).await?;
        }
        Ok(())
    }
}

impl Drop for DemoCluster {
    fn drop(&mut self) {
        kill_all(&mut self.processes);
    }
}

/// The processes while they start; dropping it kills them.
struct Starting {
    directory: PathBuf,
    program: PathBuf,
    processes: Vec<(&'static str, Child)>,
}

impl Drop for Starting {
    fn drop(&mut self) {
        kill_all(&mut self.processes);
    }
}

fn kill_all(processes: &mut Vec<(&'static str, Child)>) {
    for (_, child) in processes.iter_mut() {
        let _ = child.kill();
    }
    for (_, mut child) in processes.drain(..) {
        let _ = child.wait();
    }
}

impl Starting {
    fn spawn(&mut self, name: &'static str) -> anyhow::Result<()> {
        let child = spawn(&self.program, &self.directory, name)?;
        self.processes.push((name, child));
        Ok(())
    }

    /// Fails as soon as one of the processes has ended.
    fn check(&mut self) -> anyhow::Result<()> {
        for (name, child) in &mut self.processes {
            let name = *name;
            if let Some(status) = child.try_wait().context("a process of the demo")? {
                let errors = fs::read_to_string(self.directory.join(name).join("stderr")).unwrap_or_default();
                bail!("the process {name} ended with {status}: {}", errors.trim());
            }
        }
        Ok(())
    }

    async fn wait_for_file(&mut self, path: &Path) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !path.exists() {
            self.check()?;
            if Instant::now() > deadline {
                bail!("{} did not appear", path.display());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Runs the client as the administrator of the Auth host.
    async fn way(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = tokio::process::Command::new(&self.program)
            .arg("client")
            .arg("-c")
            .arg(self.directory.join("auth/wayleave.yaml"))
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("the client cannot be started")?;
        if !output.status.success() {
            bail!("way {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn make_user(&mut self, login: &str, ports: &Ports) -> anyhow::Result<Identity> {
        self.way(&["users", "add", USER, "--roles", "access", "--logins", login]).await?;
        let path = self.directory.join("identity");
        let file = path.display().to_string();
        self.way(&["auth", "sign", "--user", USER, "--ttl", "8h", "--out", &file]).await?;
        let proxies = ports.proxies.iter().map(|[web, ..]| local(*web)).collect::<anyhow::Result<_>>()?;
        let identity =
            Identity::read(&path).context("the identity of the demo's user")?.with_proxies(proxies);
        fs::remove_file(&path).context("the identity file")?;
        identity.write(&path).context("the identity file")?;
        Ok(identity)
    }

    /// The ids of the proxies, once both have joined.
    async fn wait_for_proxies(&mut self, ports: &Ports) -> anyhow::Result<Vec<DemoProxy>> {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut found = Vec::new();
        for (name, [web, ssh, _]) in ["proxy-a", "proxy-b"].into_iter().zip(ports.proxies) {
            let file = self.directory.join(name).join("data/identity/process.json");
            loop {
                self.check()?;
                if let Some(host_id) = host_id(&file) {
                    found.push(DemoProxy { name, host_id, web: local(web)?, ssh: local(ssh)? });
                    break;
                }
                if Instant::now() > deadline {
                    bail!("{name} did not join; the logs are in {}", self.directory.display());
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(found)
    }
}

fn host_id(file: &Path) -> Option<HostId> {
    let text = fs::read_to_string(file).ok()?;
    let identity: serde_json::Value = serde_json::from_str(&text).ok()?;
    identity.get("host_id")?.as_str()?.parse().ok()
}

fn make_directory(data_dir: Option<&Path>) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    match data_dir {
        None => {
            let temporary = tempfile::Builder::new()
                .prefix("wayleave-demo-")
                .tempdir()
                .context("a temporary directory")?;
            Ok((temporary.path().to_owned(), Some(temporary)))
        }
        Some(path) => {
            if path.join("auth").exists() {
                bail!("{} holds a demo already: remove it or name another directory", path.display());
            }
            DirBuilder::new()
                .recursive(true)
                .mode(PRIVATE_DIRECTORY)
                .create(path)
                .with_context(|| format!("cannot create {}", path.display()))?;
            Ok((path.canonicalize().with_context(|| path.display().to_string())?, None))
        }
    }
}

/// Ports that are free now. Another program could take one in between; starting then says so.
fn free_ports() -> anyhow::Result<Ports> {
    let listeners: Vec<TcpListener> = (0..7)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()
        .context("no free ports on 127.0.0.1")?;
    let mut ports = listeners.iter().filter_map(|l| l.local_addr().ok()).map(|address| address.port());
    let mut next = || ports.next().context("no free port");
    Ok(Ports { auth: next()?, proxies: [[next()?, next()?, next()?], [next()?, next()?, next()?]] })
}

fn write_auth(directory: &Path, ports: &Ports) -> anyhow::Result<()> {
    let secret: String = wayleave_runtime::random_bytes::<16>().iter().map(|b| format!("{b:02x}")).collect();
    let home = directory.join("auth");
    fs::create_dir_all(&home)?;
    // It joins proxies for as long as the directory is kept.
    write_private(&directory.join("token"), secret.as_bytes()).context("the token")?;
    let text = format!(
        "version: v3\n\
         wayleave:\n  nodename: auth\n  data_dir: {home}/data\n  log:\n    output: {home}/log\n\
         auth_service:\n  cluster_name: {CLUSTER}\n  listen_addr: 127.0.0.1:{port}\n  \
         tokens:\n    - \"proxy,node:{directory}/token\"\n  \
         tunnel_strategy:\n    type: proxy_peering\n    agent_connection_count: 1\n",
        home = home.display(),
        directory = directory.display(),
        port = ports.auth,
    );
    fs::write(home.join("wayleave.yaml"), text).context("the configuration of Auth")
}

fn write_others(directory: &Path, ports: &Ports, status_json: &str) -> anyhow::Result<()> {
    let status: serde_json::Value = serde_json::from_str(status_json).context("the answer of way status")?;
    let pins: Vec<&str> = status
        .get("ca_pins")
        .and_then(|pins| pins.as_array())
        .into_iter()
        .flatten()
        .filter_map(|pin| pin.as_str())
        .collect();
    fs::write(directory.join("ca-pin"), pins.join("\n"))?;
    for (name, [web, ssh, peer]) in ["proxy-a", "proxy-b"].into_iter().zip(ports.proxies) {
        let service = format!(
            "proxy_service:\n  web_listen_addr: 127.0.0.1:{web}\n  listen_addr: 127.0.0.1:{ssh}\n  \
             peer_listen_addr: 127.0.0.1:{peer}\n  public_addr: 127.0.0.1:{web}\n"
        );
        write_process(directory, name, &format!("auth_server: 127.0.0.1:{}", ports.auth), &service)?;
    }
    for (index, name) in ["node-1", "node-2"].into_iter().enumerate() {
        let service = format!("ssh_service:\n  labels:\n    demo: \"yes\"\n    number: \"{}\"\n", index + 1);
        let [web, ..] = ports.proxies[index];
        write_process(directory, name, &format!("proxy_server: 127.0.0.1:{web}"), &service)?;
    }
    Ok(())
}

fn write_process(directory: &Path, name: &str, upstream: &str, service: &str) -> anyhow::Result<()> {
    let home = directory.join(name);
    fs::create_dir_all(&home)?;
    let text = format!(
        "version: v3\n\
         wayleave:\n  nodename: {name}\n  data_dir: {home}/data\n  {upstream}\n  \
         auth_token: {directory}/token\n  ca_pin: {directory}/ca-pin\n  shutdown_timeout: 2s\n  \
         log:\n    output: {home}/log\n{service}",
        home = home.display(),
        directory = directory.display(),
    );
    fs::write(home.join("wayleave.yaml"), text).with_context(|| format!("the configuration of {name}"))
}

fn spawn(program: &Path, directory: &Path, name: &'static str) -> anyhow::Result<Child> {
    let home = directory.join(name);
    let errors = fs::File::create(home.join("stderr"))?;
    Command::new(program)
        .arg("start")
        .arg("-c")
        .arg(home.join("wayleave.yaml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .process_group_of_own()
        .spawn()
        .with_context(|| format!("{name} cannot be started"))
}

/// Ctrl-C in the terminal is for the demo, which then ends its processes in order.
trait OwnProcessGroup {
    fn process_group_of_own(&mut self) -> &mut Self;
}

impl OwnProcessGroup for Command {
    fn process_group_of_own(&mut self) -> &mut Self {
        use std::os::unix::process::CommandExt;
        self.process_group(0)
    }
}

async fn stop(mut child: Child) -> anyhow::Result<()> {
    let id = nix::unistd::Pid::from_raw(i32::try_from(child.id()).context("a process id")?);
    let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM);
    let deadline = Instant::now() + STOP_TIMEOUT;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn login() -> anyhow::Result<String> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).context("this user's account")?;
    Ok(user.context("this user has no account")?.name)
}

fn local(port: u16) -> anyhow::Result<HostPort> {
    Ok(HostPort::parse(&format!("127.0.0.1:{port}"), None)?)
}
