//! A cluster with simulated agents: Auth and proxies as they are, agents and clients by `wayleave-load`.
//!
//! Agents do not join: the nodes stand in the backend before Auth starts, and their certificates come from the cluster's
//! own authority, which is read there. What is measured are the proxies.

use crate::cluster::{CLUSTER, Proxy, Site, start_proxy_on};
use crate::daemon::{Daemon, LOOK, free_addresses, wait_for};
use crate::loader::{Loader, run_once};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use wayleave_resource::{EnforcedBy, Metadata, Node, NodeSpec, Resource};
use wayleave_store::{BATCH_OPERATIONS_MAX, Backend, Key, Operation};
use wayleave_vocab::{HostId, NodeName};

pub(crate) struct Fleet {
    // Ended in this order: what connects before what it is connected to.
    agents: Vec<Loader>,
    pub(crate) target: Loader,
    pub(crate) target_address: SocketAddr,
    pub(crate) proxies: Vec<Proxy>,
    auth: Daemon,
    authorities: PathBuf,
    pub(crate) site: Site,
}

/// A local port that leads to an agent.
pub(crate) struct Visitor {
    pub(crate) entry: SocketAddr,
    pub(crate) loader: Loader,
}

impl Fleet {
    /// Starts Auth, which knows so many nodes already, the proxies, and the target.
    ///
    /// # Errors
    /// When one of them does not start.
    pub(crate) fn start(site: Site, nodes: u64, proxies: usize) -> Result<Self> {
        let place = (Ipv4Addr::LOCALHOST.into(), Vec::new());
        Self::start_on(site, nodes, &vec![place; proxies])
    }

    /// The same with proxies on addresses of their own, each started behind these words. The rest is where the first is.
    ///
    /// # Errors
    /// When one of them does not start.
    pub(crate) fn start_on(site: Site, nodes: u64, places: &[(IpAddr, Vec<String>)]) -> Result<Self> {
        let own = places.first().context("no proxies")?.0;
        let [listen, target_address] = free_addresses::<2>()?.map(|free| SocketAddr::new(own, free.port()));
        let section = site.auth_section(listen)?;
        site.write("auth", "", &section)?;
        let mut auth = site.start("auth")?;
        site.write_pin(&mut auth)?;
        auth.stop()?;
        let authorities = site.home("authorities.json");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let prepared = runtime.block_on(async {
            let backend = site.store.open(site.home("auth").join("data/backend")).await?;
            prepare(backend.as_ref(), nodes).await
        })?;
        fs::write(&authorities, prepared.to_string())?;
        let mut auth = site.start("auth")?;
        site.write_pin(&mut auth)?;
        let numbered = (1..).zip(places);
        let proxies = numbered
            .map(|(number, (ip, prefix))| {
                start_proxy_on(&site, &format!("proxy-{number}"), listen, *ip, prefix)
            })
            .collect::<Result<Vec<_>>>()?;
        let arguments = ["target", "--listen", &target_address.to_string()];
        let mut target = Loader::start(site.bin_dir(), &arguments)?;
        target.line()?;
        Ok(Self { agents: Vec::new(), target, target_address, proxies, auth, authorities, site })
    }

    pub(crate) fn auth_pid(&self) -> u32 {
        self.auth.pid()
    }

    /// The proxy of this number, counted from 0.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn proxy(&self, number: usize) -> Result<&Proxy> {
        self.proxies.get(number).with_context(|| format!("there is no proxy {number}"))
    }

    /// Connects agents to one proxy, by a process of their own; gives how long that took.
    ///
    /// # Errors
    /// When one of them does not connect.
    pub(crate) fn connect(&mut self, proxy: usize, first: u64, count: u64) -> Result<Value> {
        let (web, target) = (self.proxy(proxy)?.web.to_string(), self.target_address.to_string());
        let [first, count] = [first, count].map(|number| number.to_string());
        let ca = self.authorities.display().to_string();
        let arguments = [
            "agents", "--ca", &ca, "--proxy", &web, "--first", &first, "--count", &count, "--target", &target,
        ];
        let mut loader = Loader::start(self.site.bin_dir(), &arguments)?;
        let connected = loader.line()?;
        self.agents.push(loader);
        Ok(connected)
    }

    /// Agents that keep their tunnels to any of the proxies as the product's agents do; gives them when all are up.
    ///
    /// # Errors
    /// When they do not come up.
    pub(crate) fn pool(&self, first: u64, count: u64, connections: u16) -> Result<Loader> {
        let (proxies, target) = (self.entries(), self.target_address.to_string());
        let [first, count, connections] = [first, count, connections.into()].map(|number| number.to_string());
        let ca = self.authorities.display().to_string();
        let arguments = [
            "pooled",
            "--ca",
            &ca,
            "--proxies",
            &proxies,
            "--first",
            &first,
            "--count",
            &count,
            "--target",
            &target,
            "--connections",
            &connections,
        ];
        let mut loader = Loader::start(self.site.bin_dir(), &arguments)?;
        loader.line()?;
        Ok(loader)
    }

    /// Dials to agents at random, by whichever proxy answers, until it is told to end.
    ///
    /// # Errors
    /// When it cannot start.
    pub(crate) fn probe(&self, count: u64, per_second: u64) -> Result<Loader> {
        let (proxies, ca) = (self.entries(), self.authorities.display().to_string());
        let [count, rate] = [count, per_second].map(|number| number.to_string());
        let arguments =
            ["probe", "--ca", &ca, "--proxies", &proxies, "--first", "0", "--count", &count, "--rate", &rate];
        Loader::start(self.site.bin_dir(), &arguments)
    }

    fn entries(&self) -> String {
        let entries: Vec<String> = self.proxies.iter().map(|proxy| proxy.web.to_string()).collect();
        entries.join(",")
    }

    /// Kills every proxy.
    ///
    /// # Errors
    /// When one does not die.
    pub(crate) fn kill_proxies(&mut self) -> Result<()> {
        self.proxies.iter_mut().try_for_each(|proxy| proxy.daemon.kill())
    }

    /// Stops a proxy as an operator does, waits until it has let go of everything, and starts it again.
    ///
    /// # Errors
    /// When it does not end or does not come back.
    pub(crate) fn restart_proxy(&mut self, number: usize) -> Result<()> {
        let proxy = self.proxies.get_mut(number).with_context(|| format!("there is no proxy {number}"))?;
        proxy.daemon.drain()?;
        proxy.daemon = self.site.start(&proxy.daemon.name)?;
        proxy.daemon.wait_listening(&[proxy.web], LOOK)
    }

    /// Sessions of a program whose command gives back each line; they are all up.
    ///
    /// # Errors
    /// When one of them does not begin.
    pub(crate) fn sessions(&self, command: &str, count: u64, interval: Duration) -> Result<Loader> {
        let [count, interval] = [u128::from(count), interval.as_millis()].map(|number| number.to_string());
        let arguments = ["sessions", "--command", command, "--count", &count, "--interval-ms", &interval];
        let mut loader = Loader::start(self.site.bin_dir(), &arguments)?;
        loader.line()?;
        Ok(loader)
    }

    /// Auth's backend answers no more; the embedded one takes Auth with it.
    ///
    /// # Errors
    /// When Auth had ended before.
    pub(crate) fn lose_backend(&mut self) -> Result<()> {
        if self.site.store.stall() { Ok(()) } else { self.auth.kill() }
    }

    /// Agents that connect to one proxy, and when another one reaches them.
    ///
    /// # Errors
    /// When one cannot connect.
    pub(crate) fn reach(&mut self, home: usize, ingress: usize, first: u64, count: u64) -> Result<Value> {
        let (home, ingress) = (self.proxy(home)?.web.to_string(), self.proxy(ingress)?.web.to_string());
        let [first, count] = [first, count].map(|number| number.to_string());
        let (target, ca) = (self.target_address.to_string(), self.authorities.display().to_string());
        let arguments = [
            "reach",
            "--ca",
            &ca,
            "--home",
            &home,
            "--ingress",
            &ingress,
            "--first",
            &first,
            "--count",
            &count,
            "--target",
            &target,
        ];
        let mut loader = Loader::start(self.site.bin_dir(), &arguments)?;
        let report = loader.line()?;
        self.agents.push(loader);
        Ok(report)
    }

    /// Starts them again as they were.
    ///
    /// # Errors
    /// When one does not listen.
    pub(crate) fn restart_proxies(&mut self) -> Result<()> {
        for proxy in &mut self.proxies {
            proxy.daemon = self.site.start(&proxy.daemon.name)?;
        }
        self.proxies.iter_mut().try_for_each(|proxy| proxy.daemon.wait_listening(&[proxy.web], LOOK))
    }

    /// The processes of the agents.
    pub(crate) fn agents(&self) -> &[Loader] {
        &self.agents
    }

    /// Opens a local port that leads to an agent through one proxy.
    ///
    /// # Errors
    /// When nothing comes back from it.
    pub(crate) fn visit(&self, proxy: usize, agent: u64) -> Result<Visitor> {
        let [entry] = free_addresses()?;
        let (web, ca) = (self.proxy(proxy)?.web.to_string(), self.authorities.display().to_string());
        let (node, listen) = (format!("load-{agent}"), entry.to_string());
        let arguments = ["visitor", "--ca", &ca, "--proxy", &web, "--node", &node, "--listen", &listen];
        let mut loader = Loader::start(self.site.bin_dir(), &arguments)?;
        loader.line()?;
        self.wait_echo(entry)?;
        Ok(Visitor { entry, loader })
    }

    /// Waits until a byte comes back from a local port.
    ///
    /// # Errors
    /// When none does.
    pub(crate) fn wait_echo(&self, entry: SocketAddr) -> Result<()> {
        wait_for(&format!("an echo from {entry}"), || {
            let report = self.dials(entry, 1, 1)?;
            Ok((report.get("failed") == Some(&json!(0))).then_some(()))
        })
    }

    /// Connections of one byte to a local port.
    ///
    /// # Errors
    /// When the program fails.
    pub(crate) fn dials(&self, entry: SocketAddr, concurrency: usize, count: u64) -> Result<Value> {
        let (entry, concurrency, count) = (entry.to_string(), concurrency.to_string(), count.to_string());
        let arguments = ["dials", "--connect", &entry, "--concurrency", &concurrency, "--count", &count];
        run_once(self.site.bin_dir(), &arguments)
    }

    /// One dial to each of some agents by a proxy's TLS port.
    ///
    /// # Errors
    /// When one of them is not reached.
    pub(crate) fn sweep(&self, proxy: usize, first: u64, count: u64) -> Result<Value> {
        let (web, ca) = (self.proxy(proxy)?.web.to_string(), self.authorities.display().to_string());
        let [first, count] = [first, count].map(|number| number.to_string());
        let arguments = [
            "sweep",
            "--ca",
            &ca,
            "--proxy",
            &web,
            "--first",
            &first,
            "--count",
            &count,
            "--concurrency",
            "32",
        ];
        let report = run_once(self.site.bin_dir(), &arguments)?;
        ensure!(report.get("failed") == Some(&json!(0)), "not every agent was reached: {report}");
        Ok(report)
    }
}

/// Writes the nodes into the backend of an Auth that does not run; gives its authorities.
async fn prepare(backend: &dyn Backend, nodes: u64) -> Result<Value> {
    let mut authorities = json!({ "cluster": CLUSTER });
    for purpose in ["host", "user"] {
        let item = backend.get(&Key::parse(&format!("/authorities/{purpose}"))?).await?;
        let record: Value = serde_json::from_slice(&item.context("Auth has made no authority")?.value)?;
        for (ours, theirs) in
            [("certificate_pem", "x509_certificate_pem"), ("key_pem", "x509_private_key_pem")]
        {
            let signing = record.pointer(&format!("/generations/0/{theirs}"));
            let text = signing.with_context(|| format!("the {purpose} authority has no {theirs}"))?;
            if let Some(all) = authorities.as_object_mut() {
                all.insert(format!("{purpose}_{ours}"), text.clone());
            }
        }
    }
    let numbers: Vec<u64> = (0..nodes).collect();
    for numbers in numbers.chunks(BATCH_OPERATIONS_MAX) {
        let operations = numbers.iter().map(|number| put(*number)).collect::<Result<Vec<_>>>()?;
        backend.batch(Vec::new(), operations).await?;
    }
    backend.close().await;
    Ok(authorities)
}

fn put(number: u64) -> Result<Operation> {
    let host_id = agent_id(number);
    let node = Node {
        host_id,
        metadata: Metadata::default(),
        spec: NodeSpec {
            hostname: NodeName::parse(format!("load-{number}"))?,
            cmd_labels: Default::default(),
            enforced_by: EnforcedBy::Agent,
            tcp_ports: Default::default(),
            tcp_only: false,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
    };
    let resource = Resource::from(node);
    let key = Key::parse(&format!("/resources/{}/{host_id}", resource.kind().as_str()))?;
    Ok(Operation::Put { key, value: resource.to_stored_json().into_bytes().into(), lease: None })
}

/// The id of a simulated agent, as `wayleave-load` counts.
fn agent_id(number: u64) -> HostId {
    let mut bytes = [0x10; 16];
    let (_, tail) = bytes.split_at_mut(8);
    tail.copy_from_slice(&number.to_be_bytes());
    HostId::from_random(bytes)
}
