//! Proxies and their Auth, and clients of them.

use crate::authority::Authorities;
use crate::fake_auth::FakeAuth;
use rustls::ClientConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use wayleave_api::ALPN_DIAL;
use wayleave_dial::{DialRequest, DialResponse, DialTarget, VERSION};
use wayleave_keystore::{Credentials, IdentityDir, PolicyKeeper, client_config};
use wayleave_net::{AddressBook, DIAL_MESSAGE_TIMEOUT, Stream, connect_tls, read_message, write_message};
use wayleave_proxy::{ProxyConfig, ProxyError, ProxyProtocol, ProxyService};
use wayleave_runtime::{Shutdown, TaskGroup};
use wayleave_vocab::{HostId, HostPort, NodeName, SystemRole, TraceId};

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Cluster {
    pub(crate) authorities: Authorities,
    pub(crate) auth: FakeAuth,
    pub(crate) tasks: TaskGroup,
    directory: TempDir,
}

pub(crate) struct Proxy {
    pub(crate) id: HostId,
    pub(crate) web: HostPort,
    /// Where peers reach it.
    pub(crate) peer: HostPort,
    pub(crate) shutdown: Shutdown,
    /// Its own, so that a test can wait for its end.
    pub(crate) ended: TaskGroup,
    /// How it ended.
    pub(crate) result: oneshot::Receiver<Result<(), ProxyError>>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let (authorities, tasks) = (Authorities::new("demo"), TaskGroup::new());
        let auth = FakeAuth::start(&authorities, &tasks).await;
        Self { authorities, auth, tasks, directory: TempDir::new().unwrap() }
    }

    pub(crate) fn config(&self, id: u8) -> ProxyConfig {
        let host_id = HostId::from_random([id; 16]);
        ProxyConfig {
            host_id,
            name: NodeName::parse(format!("proxy-{id}")).unwrap(),
            web_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            ssh_listen: None,
            ssh_public: vec!["jump.example.com:3023".parse().unwrap()],
            tunnel_listen: None,
            peer_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            peer_public: None,
            pushes_routes: true,
            public_addresses: Vec::new(),
            direct_address: None,
            zone: String::new(),
            proxy_protocol: ProxyProtocol::Off,
            web: None,
            tls: self.authorities.host(host_id, &[SystemRole::Proxy]),
            trust: self.authorities.trust.clone(),
            auth_addresses: AddressBook::new(vec![self.auth.address.clone()]),
            connections_max: 1000,
            drain_timeout: Duration::from_secs(10),
        }
    }

    pub(crate) async fn proxy(&self, id: u8) -> Proxy {
        self.proxy_with(self.config(id), |service| service).await
    }

    /// Starts a proxy and waits until it has registered and serves peers.
    pub(crate) async fn proxy_with(
        &self,
        config: ProxyConfig,
        adapt: impl FnOnce(ProxyService) -> ProxyService,
    ) -> Proxy {
        let mut proxy = self.start_proxy(config, adapt).await;
        until(|| {
            let known = self.auth.proxies();
            let own = known.iter().find(|known| known.host_id == proxy.id.to_string() && !known.draining);
            let peer = own.and_then(|known| HostPort::parse(&known.peer_address, None).ok());
            proxy.peer = peer.clone().unwrap_or_else(|| proxy.web.clone());
            peer.is_some()
        })
        .await;
        proxy
    }

    /// The same where the strategy is not peering: nothing is where peers would reach it.
    pub(crate) async fn proxy_without_peering(&self, id: u8) -> Proxy {
        let proxy = self.start_proxy(self.config(id), |service| service).await;
        until(|| self.auth.proxies().iter().any(|known| known.host_id == proxy.id.to_string())).await;
        proxy
    }

    async fn start_proxy(
        &self,
        config: ProxyConfig,
        adapt: impl FnOnce(ProxyService) -> ProxyService,
    ) -> Proxy {
        let id = config.host_id;
        let trust = config.trust.clone();
        let directory = IdentityDir::open(&self.directory.path().join(id.to_string())).unwrap();
        let keys = vec![self.authorities.policy.public_key_pem()];
        let keeper =
            PolicyKeeper::open(directory, self.authorities.name.clone(), keys, trust.clone()).unwrap();
        let tls = client_config(&config.tls, &trust, SystemRole::Auth, None, &[wayleave_api::ALPN_AUTH]);
        let channel = wayleave_rpc::channel(self.auth.address.clone(), tls.unwrap());
        let service = adapt(ProxyService::build(config, Arc::new(keeper), channel, None).unwrap());
        let bound = service.bind().await.unwrap();
        let web = HostPort::from_socket(bound.web_address().unwrap());
        let (shutdown, ended) = (Shutdown::new(), TaskGroup::new());
        let (signal, (told, result)) = (shutdown.clone(), oneshot::channel());
        ended.spawn("proxy", async move { drop(told.send(bound.run(signal).await)) });
        Proxy { id, peer: web.clone(), web, shutdown, ended, result }
    }

    /// TLS of a client that dials.
    pub(crate) fn dial_tls(&self, credentials: &Credentials) -> Arc<ClientConfig> {
        client_config(credentials, &self.authorities.trust, SystemRole::Proxy, None, &[ALPN_DIAL]).unwrap()
    }

    /// A stream of Alice's to a node, as the proxy answers.
    pub(crate) async fn dial(&self, proxy: &Proxy, node: &str) -> Result<Box<dyn Stream>, DialResponse> {
        let tls = self.dial_tls(&self.authorities.user("alice"));
        let stream = connect_tls(&proxy.web, tls).await.unwrap();
        ask(stream, &request(node)).await
    }

    /// Dials until the node is reached, which takes as long as news take to arrive.
    pub(crate) async fn reach(&self, proxy: &Proxy, node: &str) -> Box<dyn Stream> {
        let trying = async {
            loop {
                if let Ok(stream) = self.dial(proxy, node).await {
                    return stream;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, trying).await.expect("the node is reached in time")
    }
}

pub(crate) fn request(node: &str) -> DialRequest {
    DialRequest {
        v: VERSION,
        target: DialTarget::Ssh { node: NodeName::parse(node).unwrap() },
        host_id: None,
        client_address: None,
        trace_id: TraceId::from_random([1; 16]),
        from_peer: false,
        report_route: true,
        resume: None,
        needs: std::collections::BTreeSet::new(),
    }
}

/// Sends a dial request; gives the stream, or what refused it.
pub(crate) async fn ask<S: Stream>(
    mut stream: S,
    request: &DialRequest,
) -> Result<Box<dyn Stream>, DialResponse> {
    write_message(&mut stream, request).await.unwrap();
    match read_message(&mut stream, DIAL_MESSAGE_TIMEOUT).await.unwrap() {
        DialResponse::Established { .. } => Ok(Box::new(stream)),
        refused @ DialResponse::Refused { .. } => Err(refused),
    }
}

/// The agent at the other end sends back what it is sent.
pub(crate) async fn check_echo(stream: &mut dyn Stream) {
    stream.write_all(b"are you there").await.unwrap();
    stream.flush().await.unwrap();
    let mut back = [0; 13];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"are you there");
}

/// Waits for a condition that another task brings about.
pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        while !is_so() {
            looks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it comes about in time");
}
