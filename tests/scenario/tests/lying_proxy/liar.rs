//! A proxy with a genuine identity of the cluster that does what it wants with everything that passes through it.

use bytes::{Bytes, BytesMut};
use prost::Message;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use wayleave_api::agent::{
    AgentToProxy, ClusterView, ProxyHello, ProxyToAgent, agent_to_proxy, proxy_to_agent,
};
use wayleave_api::auth::cluster_event::Event;
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::auth::{
    BeginIncarnationRequest, PolicySnapshot, ProxyRecord, RegisterRequest, RouteUpdate, WatchClusterRequest,
};
use wayleave_api::{ALPN_AUTH, ALPN_DIAL, ALPN_TUNNEL, CONTROL_VERSIONS};
use wayleave_dial::{DialRequest, DialResponse, DialTarget, Resume, VERSION};
use wayleave_keystore::{ClientAuth, Credentials, TrustStore, client_config, server_config};
use wayleave_mux::{Class, Config, Role};
use wayleave_net::{BoxStream, Tunnel, TunnelEvent, read_message, splice, write_message};
use wayleave_resume_wire::{Frame, Refusal, Refused};
use wayleave_runtime::{Shutdown, TaskGroup};
use wayleave_vocab::{ClusterName, HostId, HostPort, NodeName, Secret, SystemRole, TraceId};

const PATIENCE: Duration = Duration::from_secs(60);

/// What a proxy that joined keeps of itself.
pub(crate) struct Stolen {
    pub(crate) host_id: HostId,
    credentials: Credentials,
    trust: TrustStore,
    /// Its SSH key and the certificate for it, as files hold them.
    pub(crate) ssh_key: String,
    pub(crate) ssh_certificate: String,
}

impl Stolen {
    /// Reads a proxy's data directory.
    pub(crate) fn from(data_dir: &Path) -> Self {
        let text = std::fs::read_to_string(data_dir.join("identity/process.json")).unwrap();
        let process: serde_json::Value = serde_json::from_str(&text).unwrap();
        let of = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap().to_owned();
        let certificates = process["certificates"].as_array().unwrap();
        let proxy = certificates.iter().find(|certificate| certificate["role"] == "Proxy").unwrap();
        let trust = TrustStore::empty();
        let cluster = ClusterName::parse(of(&process, "cluster_name")).unwrap();
        trust.replace(&cluster, &of(&process, "host_ca_pem"), "");
        Self {
            host_id: of(&process, "host_id").parse().unwrap(),
            credentials: Credentials::from_pem(
                &of(proxy, "tls_chain_pem"),
                &Secret::new(of(proxy, "tls_key_pem")),
            )
            .unwrap(),
            trust,
            ssh_key: of(proxy, "ssh_key_openssh"),
            ssh_certificate: of(proxy, "ssh_certificate"),
        }
    }
}

/// Where streams go, whatever they were asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Detour {
    /// Whose tunnel.
    pub(crate) tunnel: HostId,
    /// For whom it is said to be.
    pub(crate) host_id: HostId,
}

pub(crate) struct Liar {
    pub(crate) address: SocketAddr,
    /// The newest policy that Auth signed when the liar began: it keeps back everything after that.
    pub(crate) old_policy: PolicySnapshot,
    state: Arc<State>,
    runtime: tokio::runtime::Runtime,
}

struct State {
    hello: ProxyHello,
    tasks: TaskGroup,
    tunnels: Mutex<BTreeMap<HostId, Tunnel>>,
    detour: Mutex<Option<Detour>>,
    /// Ends the clients' streams.
    cut: Mutex<Shutdown>,
    /// How often it refused a stream in an agent's place, once it does.
    refusals: Mutex<Option<usize>>,
}

impl Liar {
    /// Registers with Auth as the proxy that it is, claims to hold a tunnel of every one of `claimed`, and serves agents
    /// and clients at a port.
    pub(crate) fn start(stolen: &Stolen, auth: SocketAddr, claimed: &[HostId]) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let tasks = TaskGroup::new();
        let (listener, old_policy, incarnation) = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (policy, incarnation) = register(stolen, auth, address, claimed, &tasks).await;
            (listener, policy, incarnation)
        });
        let address = listener.local_addr().unwrap();
        // It alone is there, as far as agents hear, and nothing newer can ever be.
        let itself = ProxyRecord {
            host_id: stolen.host_id.to_string(),
            incarnation,
            direct_address: address.to_string(),
            ..ProxyRecord::default()
        };
        let hello = ProxyHello {
            version: CONTROL_VERSIONS.newest(),
            version_oldest: CONTROL_VERSIONS.oldest(),
            proxy_id: stolen.host_id.to_string(),
            incarnation,
            capabilities: Vec::new(),
            release: "liar".into(),
            view: Some(ClusterView { proxies: vec![itself], revision: u64::MAX }),
        };
        let state = Arc::new(State {
            hello,
            tasks,
            tunnels: Mutex::default(),
            detour: Mutex::default(),
            cut: Mutex::default(),
            refusals: Mutex::default(),
        });
        let tls =
            server_config(&stolen.credentials, &stolen.trust, ClientAuth::None, &[ALPN_TUNNEL, ALPN_DIAL])
                .unwrap();
        let owner = state.clone();
        let entered = runtime.enter();
        state.tasks.spawn_many(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, owner) = (TlsAcceptor::from(tls.clone()), owner.clone());
                owner.clone().tasks.spawn_many(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    if stream.get_ref().1.alpn_protocol() == Some(ALPN_TUNNEL) {
                        owner.serve_agent(Box::new(stream)).await;
                    } else {
                        owner.serve_client(Box::new(stream)).await;
                    }
                });
            }
        });
        drop(entered);
        Self { address, old_policy, state, runtime }
    }

    /// The agents that have a tunnel here.
    pub(crate) fn agents(&self) -> Vec<HostId> {
        self.state.tunnels.lock().unwrap().keys().copied().collect()
    }

    /// Sends clients there from now on.
    pub(crate) fn lead(&self, detour: Detour) {
        *self.state.detour.lock().unwrap() = Some(detour);
    }

    /// Cuts the streams that run through it, and says to whoever wants his back that the agent refuses.
    pub(crate) fn cut_and_refuse(&self) {
        *self.state.refusals.lock().unwrap() = Some(0);
        std::mem::take(&mut *self.state.cut.lock().unwrap()).request();
    }

    /// Leaves those who want their streams back alone again; gives how many it refused.
    pub(crate) fn refuse_no_more(&self) -> usize {
        self.state.refusals.lock().unwrap().take().unwrap()
    }

    /// Tells an agent something.
    pub(crate) fn tell(&self, agent: HostId, message: proxy_to_agent::Message) {
        let tunnel = self.state.tunnels.lock().unwrap().get(&agent).cloned().unwrap();
        let message = ProxyToAgent { message: Some(message) };
        tunnel.send_control(Bytes::from(message.encode_to_vec())).unwrap();
    }

    /// Opens a stream on an agent's tunnel and gives the agent's answer.
    pub(crate) fn ask(&self, detour: Detour) -> DialResponse {
        self.block_on(async { self.state.open(detour, None).await.1 })
    }

    /// A port of this machine that leads into an agent, as if a client had come.
    pub(crate) fn port_into(&self, detour: Detour) -> SocketAddr {
        let (sender, bound) = oneshot::channel();
        let owner = self.state.clone();
        let entered = self.runtime.enter();
        self.state.tasks.spawn_many(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                let owner = owner.clone();
                owner.clone().tasks.spawn_many(async move {
                    let (stream, _) = owner.open(detour, None).await;
                    let _ended = splice::<TcpStream, BoxStream>(client, stream).await;
                });
            }
        });
        drop(entered);
        self.block_on(async { bound.await.unwrap() })
    }

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.unwrap() })
    }
}

impl State {
    /// Says hello with the lie, and keeps the tunnel.
    async fn serve_agent(self: Arc<Self>, stream: BoxStream) {
        let (tunnel, driver) = Tunnel::new(Role::Acceptor, Config::default(), stream);
        let hello = ProxyToAgent { message: Some(proxy_to_agent::Message::Hello(self.hello.clone())) };
        tunnel.send_control(Bytes::from(hello.encode_to_vec())).unwrap();
        let (owner, handle) = (self.clone(), tunnel.clone());
        let _reason = driver
            .run(move |event| {
                let TunnelEvent::Control(bytes) = event else { return };
                let Ok(AgentToProxy { message: Some(agent_to_proxy::Message::Hello(hello)) }) =
                    AgentToProxy::decode(bytes)
                else {
                    return;
                };
                let agent = hello.host_id.parse().unwrap();
                owner.tunnels.lock().unwrap().insert(agent, handle.clone());
            })
            .await;
        self.tunnels.lock().unwrap().retain(|_, tunnel| !tunnel.is_ended());
    }

    /// Says that it did what it was asked for, and does something else.
    async fn serve_client(self: Arc<Self>, mut client: BoxStream) {
        let Ok(asked) = read_message::<DialRequest, _>(&mut client, PATIENCE).await else { return };
        let detour = *self.detour.lock().unwrap();
        let Some(detour) = detour else { return };
        if asked.resume == Some(Resume::Reattach)
            && let Some(count) = self.refusals.lock().unwrap().as_mut()
        {
            *count += 1;
            self.tasks.spawn_many(refuse_as_the_agent(client));
            return;
        }
        let cut = self.cut.lock().unwrap().clone();
        let (stream, _) = self.open(detour, asked.resume).await;
        write_message(&mut client, &DialResponse::Established { route: None }).await.unwrap();
        let _ended = cut.until(splice(client, stream)).await;
    }

    async fn open(&self, detour: Detour, resume: Option<Resume>) -> (BoxStream, DialResponse) {
        let tunnel = self.tunnels.lock().unwrap().get(&detour.tunnel).cloned().unwrap();
        let request = DialRequest {
            v: VERSION,
            target: DialTarget::Ssh { node: NodeName::parse("web-2").unwrap() },
            host_id: Some(detour.host_id),
            client_address: Some("192.0.2.99:1".parse().unwrap()),
            trace_id: TraceId::from_random([7; 16]),
            from_peer: false,
            report_route: false,
            resume,
            needs: std::collections::BTreeSet::new(),
        };
        let mut stream = tunnel.open(Class::Interactive).unwrap();
        write_message(&mut stream, &request).await.unwrap();
        let answer = read_message(&mut stream, PATIENCE).await.unwrap();
        (Box::new(stream), answer)
    }
}

async fn refuse_as_the_agent(mut client: BoxStream) {
    write_message(&mut client, &DialResponse::Established { route: None }).await.unwrap();
    let mut refused = BytesMut::new();
    let text = "the session is not there any more";
    Frame::Refused(Refused::new(Refusal::Unknown, text)).encode(&mut refused);
    let _ = client.write_all(&refused).await;
    let _ = client.shutdown().await;
}

/// Becomes known to the cluster; gives the newest policy and its life.
async fn register(
    stolen: &Stolen,
    auth: SocketAddr,
    address: SocketAddr,
    claimed: &[HostId],
    tasks: &TaskGroup,
) -> (PolicySnapshot, u64) {
    let tls =
        client_config(&stolen.credentials, &stolen.trust, SystemRole::Auth, None, &[ALPN_AUTH]).unwrap();
    let channel = wayleave_rpc::channel(HostPort::from_socket(auth), tls);
    let mut host = HostClient::new(channel);
    let life = host.begin_incarnation(BeginIncarnationRequest {}).await.unwrap().into_inner().incarnation;
    let record = ProxyRecord {
        host_id: stolen.host_id.to_string(),
        incarnation: life,
        name: "liar".into(),
        direct_address: address.to_string(),
        public_addresses: vec![address.to_string()],
        ..ProxyRecord::default()
    };
    let registration = RegisterRequest { resources_json: Vec::new(), proxy: Some(record) };
    host.register(registration).await.unwrap();
    let (routes, updates) = mpsc::channel(1);
    let claim = RouteUpdate {
        incarnation: life,
        sequence: 1,
        snapshot: true,
        host_ids: claimed.iter().map(|id| id.as_bytes().to_vec()).collect(),
        ..RouteUpdate::default()
    };
    routes.send(claim).await.unwrap();
    let mut publisher = host.clone();
    tasks.spawn_many(async move {
        let updates = tokio_stream::wrappers::ReceiverStream::new(updates);
        let Ok(acks) = publisher.publish_routes(updates).await else { return };
        let mut acks = acks.into_inner();
        while let Ok(Some(_)) = acks.message().await {}
        drop(routes);
    });
    let mut events = host.watch_cluster(WatchClusterRequest::default()).await.unwrap().into_inner();
    while let Some(event) = events.message().await.unwrap() {
        if let Some(Event::Snapshot(snapshot)) = event.event {
            return (snapshot, life);
        }
    }
    panic!("Auth gave no policy");
}
