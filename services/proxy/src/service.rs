//! The proxy as a whole: what its parts share, and the order in which they start and end.

use crate::cluster::{self, Cluster};
use crate::config::ProxyConfig;
use crate::counted::StreamCount;
use crate::dial::ProxyDialer;
use crate::health;
use crate::hosting::ProxyHosting;
use crate::metrics::{self, Protocol, ProxyMetrics};
use crate::passthrough::Passthrough;
use crate::peer::{self, PeerProblem, Peers};
use crate::registry::Registry;
use crate::report;
use crate::rest::{RestState, router};
use crate::routes::{self, Routes};
use crate::web;
use crate::web_files::WebFiles;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::Status;
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::auth::{BeginIncarnationRequest, ProxyRecord, RegisterRequest};
use wayleave_api::{ALPN_DIAL, ALPN_FORWARD, ALPN_TUNNEL};
use wayleave_keystore::{
    ClientAuth, PolicyKeeper, TlsConfigError, client_config, server_config, web_server_config,
};
use wayleave_net::{
    Admission, BindError, Dialer, Entry, Hosting, PublishEntry, Slots, Turnstile, accept_loop, bind,
};
use wayleave_rpc::{CALL_TIMEOUT, Channel};
use wayleave_runtime::{Clock, NeededTasks, Shutdown, SystemClock, TaskGroup, TaskLost, random_u64};
use wayleave_telemetry::{Diagnostics, Tracer};
use wayleave_vocab::{HostId, HostPort, Incarnation, Mono, SystemRole};

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Connections to the SSH port at a time that have not proved a user: each costs a key exchange.
const SSH_STRANGERS_MAX: usize = 512;
/// How long a drain waits for agents to go where they have another proxy to go to.
const AGENTS_LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long tasks may take to end once everything is cut.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether something is wrong with peers, to tell Auth.
const PROBLEMS_INTERVAL: Duration = Duration::from_secs(5);
/// TLS handshakes that are begun at a time: more than the cores need, enough for clients far away.
const HANDSHAKES_AT_A_TIME: usize = 256;
/// How long others may take to hear that this proxy has left.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it is looked whether they have.
const WITHDRAW_LOOK: Duration = Duration::from_millis(5);
/// How often a drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// What the parts of the proxy share.
pub(crate) struct Shared {
    pub(crate) config: ProxyConfig,
    pub(crate) clock: SystemClock,
    pub(crate) tasks: TaskGroup,
    /// Those of them without which the proxy is not whole: it ends with an error when one is gone.
    pub(crate) needed: NeededTasks,
    pub(crate) policy: Arc<PolicyKeeper>,
    pub(crate) auth: Channel,
    pub(crate) registry: Registry,
    pub(crate) routes: Routes,
    pub(crate) cluster: Cluster,
    pub(crate) peers: Peers,
    pub(crate) passthrough: Passthrough,
    pub(crate) rest: axum::Router,
    pub(crate) tunnel_tls: Arc<rustls::ServerConfig>,
    pub(crate) dial_tls: Arc<rustls::ServerConfig>,
    pub(crate) web_tls: Arc<rustls::ServerConfig>,
    /// Agents that come back together do not keep users from getting in.
    pub(crate) tunnel_turns: Turnstile,
    pub(crate) client_turns: Turnstile,
    pub(crate) peer_tls: Arc<rustls::ServerConfig>,
    /// A balancer's word on the client's address counts, for connections inside a WebSocket.
    pub(crate) trust_x_forwarded_for: bool,
    /// Streams of clients of this proxy, whichever proxy holds the agent's tunnel.
    pub(crate) client_streams: StreamCount,
    /// Connections of peers.
    pub(crate) peers_served: StreamCount,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) tracer: Tracer,
    /// Requested when the proxy drains.
    pub(crate) draining: Shutdown,
}

impl Shared {
    /// What is wrong with peers and their addresses now.
    pub(crate) fn problems(&self) -> Vec<PeerProblem> {
        self.peers.problems(self.config.host_id, self.clock.mono())
    }

    /// True if a lock is on a process of the cluster, as far as this proxy's policy says.
    pub(crate) fn is_locked(&self, host: HostId) -> bool {
        let policy = self.policy.watch().borrow().clone();
        policy.is_some_and(|policy| policy.is_host_locked(host, self.clock.wall()))
    }

    /// Completes when a lock is on a process of the cluster.
    pub(crate) async fn locked(self: Arc<Self>, host: HostId) {
        let mut policies = self.policy.watch();
        while !self.is_locked(host) && policies.changed().await.is_ok() {}
    }
}

/// A proxy that cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] TlsConfigError),
    /// A listener cannot be opened.
    #[error("the proxy cannot start")]
    Bind(#[source] BindError),
    /// The address of a listener cannot be told.
    #[error("the address of a listener cannot be told")]
    Address(#[source] std::io::Error),
    /// A part of it is gone.
    #[error("a part of the proxy is gone")]
    PartLost(#[source] TaskLost),
}

/// A proxy that is built and listens nowhere yet.
pub struct ProxyService {
    shared: Shared,
    ssh_entry: Option<Arc<dyn Entry>>,
    publish_entry: Option<Arc<dyn PublishEntry>>,
    web_files: Option<WebFiles>,
    diagnostics: Diagnostics,
}

/// A proxy whose listeners are open.
pub struct BoundProxy {
    shared: Arc<Shared>,
    ssh_entry: Option<Arc<dyn Entry>>,
    publish_entry: Option<Arc<dyn PublishEntry>>,
    web_files: Option<WebFiles>,
    web: TcpListener,
    ssh: Option<TcpListener>,
    publishing: Option<TcpListener>,
    peers: Option<TcpListener>,
}

impl ProxyService {
    /// Joins the parts. `auth` presents the proxy's certificate; `ssh_entry` serves the SSH port, if one is configured.
    ///
    /// # Errors
    /// [`ProxyError::Tls`].
    pub fn build(
        config: ProxyConfig,
        policy: Arc<PolicyKeeper>,
        auth: Channel,
        ssh_entry: Option<Arc<dyn Entry>>,
    ) -> Result<Self, ProxyError> {
        let server = |client_auth, alpn: &[&[u8]]| {
            server_config(&config.tls, &config.trust, client_auth, alpn).map_err(ProxyError::Tls)
        };
        let web_credentials = config.web.as_ref().unwrap_or(&config.tls);
        let web_tls = server_config(web_credentials, &config.trust, ClientAuth::None, &[b"http/1.1"])
            .map_err(ProxyError::Tls)?;
        let passthrough = Passthrough {
            addresses: config.auth_addresses.clone(),
            tls: client_config(&config.tls, &config.trust, SystemRole::Auth, None, &[ALPN_FORWARD])
                .map_err(ProxyError::Tls)?,
        };
        let rest = router(Arc::new(RestState {
            trust: config.trust.clone(),
            proxy_id: config.host_id.to_string(),
            public_addresses: config.public_addresses.clone(),
            ssh_port: config.ssh_listen.map(|address| address.port()),
            ssh_public_addresses: config.ssh_public.clone(),
        }));
        let (tasks, diagnostics) = (TaskGroup::new(), Diagnostics::default());
        let shared = Shared {
            tunnel_tls: server(ClientAuth::Required, &[ALPN_TUNNEL])?,
            dial_tls: server(ClientAuth::Required, &[ALPN_DIAL])?,
            peer_tls: server(ClientAuth::Required, &[b"h2"])?,
            web_tls,
            tunnel_turns: Turnstile::new(HANDSHAKES_AT_A_TIME),
            client_turns: Turnstile::new(HANDSHAKES_AT_A_TIME),
            clock: SystemClock::new(),
            peers: Peers::new(tasks.clone()),
            needed: NeededTasks::new(tasks.clone()),
            tasks,
            policy,
            auth,
            registry: Registry::new(),
            routes: Routes::new(),
            cluster: Cluster::new(config.tunnel_listen.is_some()),
            passthrough,
            rest,
            trust_x_forwarded_for: false,
            client_streams: StreamCount::default(),
            peers_served: StreamCount::default(),
            metrics: ProxyMetrics::new(&diagnostics.metrics),
            tracer: Tracer::off(),
            draining: Shutdown::new(),
            config,
        };
        Ok(Self { shared, ssh_entry, publish_entry: None, web_files: None, diagnostics })
    }

    /// Serves these web certificates in place of [`ProxyConfig::web`], and follows their files.
    ///
    /// # Errors
    /// [`ProxyError::Tls`].
    pub fn web_files(mut self, files: WebFiles) -> Result<Self, ProxyError> {
        self.shared.web_tls =
            web_server_config(files.certificates(), &[b"http/1.1"]).map_err(ProxyError::Tls)?;
        self.web_files = Some(files);
        Ok(self)
    }

    /// Serves the port at which machines without an agent publish themselves, if one is configured.
    #[must_use]
    pub fn publish_entry(mut self, entry: Option<Arc<dyn PublishEntry>>) -> Self {
        self.publish_entry = entry;
        self
    }

    /// Shows numbers and findings where the process shows its own.
    #[must_use]
    pub fn diagnostics(mut self, diagnostics: &Diagnostics) -> Self {
        self.shared.metrics = ProxyMetrics::new(&diagnostics.metrics);
        self.shared.tracer = diagnostics.tracer.clone();
        self.diagnostics = diagnostics.clone();
        self
    }

    /// Takes a client's address from `X-Forwarded-For` when it comes inside a WebSocket: only right where every
    /// connection comes from a balancer that sets this header itself. More than one address is refused.
    #[must_use]
    pub fn trust_x_forwarded_for(mut self, is_trusted: bool) -> Self {
        self.shared.trust_x_forwarded_for = is_trusted;
        self
    }

    /// Opens the listeners.
    ///
    /// # Errors
    /// [`ProxyError::Bind`] names the address and what it was for.
    pub async fn bind(self) -> Result<BoundProxy, ProxyError> {
        let config = &self.shared.config;
        let web = bind("web_listen_addr", config.web_listen).await.map_err(ProxyError::Bind)?;
        let ssh = match config.ssh_listen {
            Some(address) => Some(bind("listen_addr (SSH)", address).await.map_err(ProxyError::Bind)?),
            None => None,
        };
        let publishing = match config.tunnel_listen {
            Some(address) => Some(bind("tunnel_listen_addr", address).await.map_err(ProxyError::Bind)?),
            None => None,
        };
        let peers = peer::bind_early(&self.shared).await.map_err(ProxyError::Bind)?;
        let Self { shared, ssh_entry, publish_entry, web_files, diagnostics } = self;
        let shared = Arc::new(shared);
        metrics::register_computed(&diagnostics.metrics, &shared);
        health::register(&diagnostics.health, &shared);
        Ok(BoundProxy { shared, ssh_entry, publish_entry, web_files, web, ssh, publishing, peers })
    }
}

impl BoundProxy {
    /// Where the public port is.
    ///
    /// # Errors
    /// [`ProxyError::Address`].
    pub fn web_address(&self) -> Result<SocketAddr, ProxyError> {
        self.web.local_addr().map_err(ProxyError::Address)
    }

    /// Serves until shutdown, then drains: agents are told to dial elsewhere, streams are waited for.
    ///
    /// # Errors
    /// [`ProxyError::Address`]; [`ProxyError::Bind`] when the cluster peers and the port for it cannot be had;
    /// [`ProxyError::PartLost`].
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), ProxyError> {
        let shared = self.shared.clone();
        let record = record(&shared, &self.web)?;
        let closing = Shutdown::new();
        let Some(incarnation) = shutdown.until(begin_incarnation(&shared)).await else { return Ok(()) };
        shared.routes.begin(shared.config.host_id, incarnation, shared.clock.mono());
        tracing::info!(web = %record.direct_address, %incarnation, "the proxy is up");
        let record = ProxyRecord { incarnation: incarnation.0, ..record };
        self.follow_cluster(record, &shutdown, &closing);
        self.open_entries(&shutdown, &closing);
        let accepting = accept_web(shared.clone(), self.web, shutdown.clone(), closing.clone());
        let serving = async {
            accepting.await;
            drain(&shared).await;
            withdraw(&shared).await;
        };
        let served = tokio::select! {
            () = serving => Ok(()),
            Err(error) = peer::serve(shared.clone(), self.peers, closing.clone()) => Err(ProxyError::Bind(error)),
            lost = first_lost(&shared.needed, &shutdown) => Err(ProxyError::PartLost(lost)),
        };
        closing.request();
        shared.peers.close();
        shared.tasks.finish(END_TIMEOUT).await;
        served
    }

    /// Starts what this proxy tells Auth and its peers, and what it hears from them.
    fn follow_cluster(&mut self, record: ProxyRecord, shutdown: &Shutdown, closing: &Shutdown) {
        let (shared, needed) = (&self.shared, &self.shared.needed);
        needed.spawn("cluster", closing, cluster::follow(shared.clone(), closing.clone()));
        needed.spawn("routes", closing, routes::publish(shared.clone(), closing.clone()));
        needed.spawn("peering", closing, follow_peers(shared.clone(), closing.clone()));
        needed.spawn("status", closing, report::run(shared.clone(), closing.clone()));
        let registering = register(shared.clone(), record, shutdown.clone(), closing.clone());
        needed.spawn("registration", closing, registering);
        if let Some(files) = self.web_files.take() {
            needed.spawn("web certificates", closing, files.follow(closing.clone()));
        }
        // It has nothing more to do once it has told.
        needed.spawn("draining", shutdown, note_draining(shared.clone(), shutdown.clone(), closing.clone()));
    }

    /// Starts to accept at the ports beside the public one.
    fn open_entries(&mut self, shutdown: &Shutdown, closing: &Shutdown) {
        let (shared, needed) = (&self.shared, &self.shared.needed);
        if let (Some(listener), Some(entry)) = (self.ssh.take(), self.ssh_entry.take()) {
            let accepting = accept_ssh(shared.clone(), listener, entry, shutdown.clone(), closing.clone());
            needed.spawn("ssh", shutdown, accepting);
        }
        if let (Some(listener), Some(entry)) = (self.publishing.take(), self.publish_entry.take()) {
            let accepting =
                accept_published(shared.clone(), listener, entry, shutdown.clone(), closing.clone());
            needed.spawn("published machines", shutdown, accepting);
        }
    }
}

/// The first part that is lost before shutdown. A proxy that drains ends anyway: its streams are not cut for that.
async fn first_lost(needed: &NeededTasks, shutdown: &Shutdown) -> TaskLost {
    match shutdown.until(needed.lost()).await {
        Some(lost) => lost,
        None => std::future::pending().await,
    }
}

/// Accepts on the public port until shutdown; what is served then goes on until `closing`.
async fn accept_web(shared: Arc<Shared>, listener: TcpListener, shutdown: Shutdown, closing: Shutdown) {
    let (tasks, connections_max) = (shared.tasks.clone(), shared.config.connections_max);
    let ending = shutdown.clone();
    let serve = move |stream, peer, admission| {
        let (shared, ending, closing) = (shared.clone(), ending.clone(), closing.clone());
        async move {
            let _ = closing.until(web::serve(shared, stream, peer, admission, ending)).await;
        }
    };
    let slots = Slots { connections_max, strangers_max: connections_max };
    accept_loop("the public port", listener, slots, tasks, shutdown, serve).await;
}

/// The same for the SSH port.
async fn accept_ssh(
    shared: Arc<Shared>,
    listener: TcpListener,
    entry: Arc<dyn Entry>,
    shutdown: Shutdown,
    closing: Shutdown,
) {
    let (tasks, connections_max) = (shared.tasks.clone(), shared.config.connections_max);
    let (counting, dialer): (_, Arc<dyn Dialer>) = (shared.clone(), Arc::new(ProxyDialer(shared)));
    let ending = shutdown.clone();
    let serve = move |stream, peer, admission: Admission| {
        counting.metrics.connection(Protocol::Ssh);
        let known = Box::new(move || admission.known());
        let serving = entry.clone().serve(Box::new(stream), peer, known, dialer.clone(), ending.clone());
        let closing = closing.clone();
        async move {
            let _ = closing.until(serving).await;
        }
    };
    let slots = Slots { connections_max, strangers_max: SSH_STRANGERS_MAX.min(connections_max) };
    accept_loop("SSH", listener, slots, tasks, shutdown, serve).await;
}

/// The same for machines without an agent.
async fn accept_published(
    shared: Arc<Shared>,
    listener: TcpListener,
    entry: Arc<dyn PublishEntry>,
    shutdown: Shutdown,
    closing: Shutdown,
) {
    let (tasks, connections_max) = (shared.tasks.clone(), shared.config.connections_max);
    let hosting: Arc<dyn Hosting> = Arc::new(ProxyHosting(shared));
    let ending = shutdown.clone();
    let serve = move |stream, peer, admission: Admission| {
        let known = Box::new(move || admission.known());
        let serving = entry.clone().serve(Box::new(stream), peer, known, hosting.clone(), ending.clone());
        let closing = closing.clone();
        async move {
            let _ = closing.until(serving).await;
        }
    };
    let slots = Slots { connections_max, strangers_max: SSH_STRANGERS_MAX.min(connections_max) };
    accept_loop("tunnels by ssh -R", listener, slots, tasks, shutdown, serve).await;
}

/// Tells what is served here that the proxy drains.
async fn note_draining(shared: Arc<Shared>, shutdown: Shutdown, closing: Shutdown) {
    if closing.until(shutdown.requested()).await.is_some() {
        shared.draining.request();
    }
}

/// Where others reach a listener of this proxy. Behind an address that means "every interface" they need a name: the
/// public one, else this machine's.
pub(crate) fn advertised(config: &ProxyConfig, listening: SocketAddr) -> HostPort {
    match config.public_addresses.first() {
        _ if !listening.ip().is_unspecified() => HostPort::from_socket(listening),
        Some(public) => public.with_port(listening.port()),
        None => HostPort::parse(&format!("{}:{}", config.name, listening.port()), None)
            .unwrap_or_else(|_| HostPort::from_socket(listening)),
    }
}

/// What this proxy tells the cluster about itself.
fn record(shared: &Shared, web: &TcpListener) -> Result<ProxyRecord, ProxyError> {
    let config = &shared.config;
    let web = web.local_addr().map_err(ProxyError::Address)?;
    let direct = config.direct_address.clone();
    Ok(ProxyRecord {
        host_id: config.host_id.to_string(),
        incarnation: 0,
        name: config.name.to_string(),
        peer_address: String::new(),
        direct_address: direct.unwrap_or_else(|| advertised(config, web)).to_string(),
        public_addresses: config.public_addresses.iter().map(ToString::to_string).collect(),
        zone: config.zone.clone(),
        draining: false,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        problems: Vec::new(),
    })
}

/// Takes this life's number; waits for Auth as long as it takes.
async fn begin_incarnation(shared: &Shared) -> Incarnation {
    let mut retry = RETRY_MIN;
    loop {
        let mut auth = HostClient::new(shared.auth.clone());
        match within_deadline(auth.begin_incarnation(BeginIncarnationRequest {})).await {
            Ok(answer) => return Incarnation(answer.into_inner().incarnation),
            Err(status) => {
                tracing::warn!(error = %status.message(), "Auth does not answer yet, trying again")
            }
        }
        tokio::time::sleep(retry / 2 + Duration::from_millis(random_u64() % 100)).await;
        retry = (retry * 2).min(RETRY_MAX);
    }
}

/// A call of Auth that is given up when it takes too long.
async fn within_deadline<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Err(Status::deadline_exceeded("Auth does not answer"));
    tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(late)
}

/// Registers the proxy, and again when Auth has forgotten it, and when it drains, begins or ceases to serve peers, or finds
/// something wrong with them.
async fn register(shared: Arc<Shared>, record: ProxyRecord, draining: Shutdown, closing: Shutdown) {
    let mut peering = shared.cluster.peer_address.subscribe();
    let mut problems = shared.peers.told.subscribe();
    let mut forgotten = shared.cluster.forgotten.subscribe();
    let mut retry = RETRY_MIN;
    loop {
        let address = peering.borrow_and_update().as_ref().map(ToString::to_string);
        let is_draining = draining.is_requested();
        forgotten.mark_unchanged();
        let record = ProxyRecord {
            peer_address: address.unwrap_or_default(),
            draining: is_draining,
            problems: problems.borrow_and_update().clone(),
            ..record.clone()
        };
        let request = RegisterRequest { resources_json: Vec::new(), proxy: Some(record) };
        let mut auth = HostClient::new(shared.auth.clone());
        let pause = match within_deadline(auth.register(request)).await {
            Ok(_) => {
                retry = RETRY_MIN;
                None
            }
            Err(status) => {
                tracing::warn!(error = %status.message(), "registering the proxy failed, trying again");
                retry = (retry * 2).min(RETRY_MAX);
                Some(retry)
            }
        };
        tokio::select! {
            () = closing.requested() => return,
            () = draining.requested(), if !is_draining => {}
            Ok(()) = peering.changed() => {}
            Ok(()) = problems.changed() => {}
            Ok(()) = forgotten.changed() => {}
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

/// Connects to the peers that Auth names and no lock shuts out.
async fn follow_peers(shared: Arc<Shared>, shutdown: Shutdown) {
    let mut proxies = shared.cluster.proxies.subscribe();
    let mut policies = shared.policy.watch();
    proxies.mark_changed();
    let mut looks = tokio::time::interval(PROBLEMS_INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            changed = proxies.changed() => {
                if changed.is_err() {
                    return;
                }
                let known = proxies.borrow_and_update().clone();
                shared.peers.follow(&shared, &known);
            }
            Ok(()) = policies.changed() => {
                let known = proxies.borrow().clone();
                shared.peers.follow(&shared, &known);
            }
            _ = looks.tick() => {}
        }
        let problems = shared.problems().iter().map(ToString::to_string).collect();
        shared.peers.told.send_if_modified(|told: &mut Vec<String>| {
            let is_news = *told != problems;
            *told = problems;
            is_news
        });
    }
}

/// Streams that would be cut: those of clients here, and those of peers' clients to what is connected here.
fn streams_through(shared: &Shared) -> usize {
    shared.client_streams.get().max(shared.registry.stream_count())
}

/// Waits until no stream runs through this proxy and agents have gone elsewhere, at most the drain timeout.
async fn drain(shared: &Shared) {
    tracing::info!("draining: agents dial elsewhere, streams may finish");
    let began = shared.clock.mono();
    let waiting = async {
        while streams_through(shared) > 0 || agents_may_leave(shared, began) {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    };
    if tokio::time::timeout(shared.config.drain_timeout, waiting).await.is_err() {
        let streams = streams_through(shared);
        tracing::warn!(streams, "the drain timeout has passed: the streams that are left are cut");
    }
}

/// Tells everybody that this life's routes are gone, so that nobody tries them.
async fn withdraw(shared: &Shared) {
    shared.routes.withdraw();
    let told = async {
        while !shared.routes.is_withdrawn() {
            tokio::time::sleep(WITHDRAW_LOOK).await;
        }
    };
    let _ = tokio::time::timeout(WITHDRAW_TIMEOUT, told).await;
}

/// Some agent is still here and has another proxy to go to.
fn agents_may_leave(shared: &Shared, began: Mono) -> bool {
    let own = shared.config.host_id;
    let is_elsewhere = |proxies: &BTreeMap<HostId, ProxyRecord>| {
        proxies.iter().any(|(id, record)| *id != own && !record.draining)
    };
    let waited = shared.clock.mono().since(began);
    waited < AGENTS_LEAVE_TIMEOUT
        && !shared.registry.is_empty()
        && is_elsewhere(&shared.cluster.proxies.borrow())
}
