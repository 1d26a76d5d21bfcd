//! An Auth that believes every proxy and keeps what it hears in memory.

use crate::authority::Authorities;
use futures::Stream;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use wayleave_api::auth::cluster_event::Event;
use wayleave_api::auth::host_server::{Host, HostServer};
use wayleave_api::auth::{
    BeginIncarnationRequest, BeginIncarnationResponse, BeginOpensshLoginRequest, BeginOpensshLoginResponse,
    ClusterEvent, EmitEventsRequest, EmitEventsResponse, InitialStateSent, JoinRequest, JoinResponse,
    Networking, PolicySnapshot, ProxyRecord, ProxyRoutes, ProxyStatusReport, PublishRequest, PublishResponse,
    RegisterRequest, RegisterResponse, RenewRequest, ReportStatusResponse, RouteAck, RouteUpdate,
    SignOpensshLoginRequest, SignOpensshLoginResponse, WatchClusterRequest, WithdrawRequest,
    WithdrawResponse,
};
use wayleave_api::{ALPN_AUTH, ALPN_FORWARD};
use wayleave_dial::ForwardHeader;
use wayleave_keystore::{ClientAuth, server_config};
use wayleave_net::{BoxStream, read_message};
use wayleave_rpc::{Caller, RpcStream};
use wayleave_runtime::{Shutdown, TaskGroup};
use wayleave_vocab::{HostId, HostPort, SystemRole};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

pub(crate) struct FakeAuth {
    pub(crate) address: HostPort,
    state: Arc<State>,
}

struct State {
    nodes: Mutex<Vec<(HostId, String)>>,
    proxies: Mutex<Vec<ProxyRecord>>,
    strategy: Mutex<String>,
    incarnation: AtomicU64,
    revision: AtomicU64,
    forwarded: Mutex<Vec<SocketAddr>>,
    /// What those who begin to watch are told.
    policy: Mutex<Option<PolicySnapshot>>,
    news: broadcast::Sender<ClusterEvent>,
    /// Ends what watches there are.
    watches: Mutex<Shutdown>,
}

impl FakeAuth {
    pub(crate) async fn start(authorities: &Authorities, tasks: &TaskGroup) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = HostPort::from_socket(listener.local_addr().unwrap());
        let state = Arc::new(State {
            nodes: Mutex::default(),
            proxies: Mutex::default(),
            strategy: Mutex::new("{\"type\":\"proxy_peering\",\"agent_connection_count\":1}".into()),
            incarnation: AtomicU64::new(0),
            revision: AtomicU64::new(1),
            forwarded: Mutex::default(),
            policy: Mutex::default(),
            news: broadcast::Sender::new(1024),
            watches: Mutex::default(),
        });
        let credentials = authorities.host(HostId::from_random([0xa0; 16]), &[SystemRole::Auth]);
        let server = |alpn: &[&[u8]]| {
            server_config(&credentials, &authorities.trust, ClientAuth::Optional, alpn).unwrap()
        };
        let (both, inner) = (server(&[ALPN_FORWARD, ALPN_AUTH]), server(&[ALPN_AUTH]));
        let (sender, streams) = mpsc::channel(64);
        let (owner, group) = (state.clone(), tasks.clone());
        tasks.spawn("auth", async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (both, inner, owner, sender) =
                    (both.clone(), inner.clone(), owner.clone(), sender.clone());
                group.spawn_many(async move {
                    let Ok(mut tls) = TlsAcceptor::from(both).accept(stream).await else { return };
                    let stream: BoxStream = if tls.get_ref().1.alpn_protocol() == Some(ALPN_FORWARD) {
                        let Ok(header) = read_message::<ForwardHeader, _>(&mut tls, PATIENCE).await else {
                            return;
                        };
                        owner.forwarded.lock().unwrap().push(header.client_address);
                        let Ok(tls) = TlsAcceptor::from(inner).accept(tls).await else { return };
                        Box::new(tls)
                    } else {
                        Box::new(tls)
                    };
                    let caller = Caller { principal: None, address: peer };
                    let _ = sender.send(RpcStream::new(stream, caller)).await;
                });
            }
        });
        let service = Service(state.clone());
        tasks.spawn("auth api", async move {
            let incoming = ReceiverStream::new(streams).map(Ok::<_, Infallible>);
            let _ = tonic::transport::Server::builder()
                .add_service(HostServer::new(service))
                .serve_with_incoming(incoming)
                .await;
        });
        Self { address, state }
    }

    /// A node exists from now on.
    pub(crate) fn add_node(&self, host: HostId, name: &str) {
        let json = format!("{{\"metadata\":{{\"name\":\"{host}\"}},\"spec\":{{\"hostname\":\"{name}\"}}}}");
        self.state.nodes.lock().unwrap().push((host, json.clone()));
        self.state.tell(Event::NodePutJson(json));
    }

    /// Everybody hears this.
    pub(crate) fn tell(&self, event: Event) {
        self.state.tell(event);
    }

    /// Who begins to watch from now on is told this policy.
    pub(crate) fn tell_watchers_from_the_start(&self, policy: &PolicySnapshot) {
        *self.state.policy.lock().unwrap() = Some(policy.clone());
    }

    /// The tunnel strategy of the cluster (JSON), now and for those who ask later.
    pub(crate) fn set_strategy(&self, json: &str) {
        *self.state.strategy.lock().unwrap() = json.to_owned();
        self.state.tell(Event::Networking(self.state.networking()));
    }

    /// The proxies that have registered, as they say they are.
    pub(crate) fn proxies(&self) -> Vec<ProxyRecord> {
        self.state.proxies.lock().unwrap().clone()
    }

    /// Forgets a proxy, as Auth does with one that it has not heard of for a while.
    pub(crate) fn forget_proxy(&self, id: HostId) {
        self.state.proxies.lock().unwrap().retain(|known| known.host_id != id.to_string());
        self.state.tell(Event::ProxyDeletedHostId(id.to_string()));
    }

    /// The same, while nobody watches: all start over.
    pub(crate) fn forget_proxy_unseen(&self, id: HostId) {
        self.state.proxies.lock().unwrap().retain(|known| known.host_id != id.to_string());
        self.interrupt_watches();
    }

    /// Every watch ends, and those who watched start over.
    pub(crate) fn interrupt_watches(&self) {
        std::mem::take(&mut *self.state.watches.lock().unwrap()).request();
    }

    /// The addresses of clients that proxies have forwarded.
    pub(crate) fn forwarded(&self) -> Vec<SocketAddr> {
        self.state.forwarded.lock().unwrap().clone()
    }
}

impl State {
    fn networking(&self) -> Networking {
        let tunnel_strategy_json = self.strategy.lock().unwrap().clone();
        Networking { tunnel_strategy_json, keep_alive_interval_ms: 0 }
    }

    fn tell(&self, event: Event) {
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = self.news.send(ClusterEvent { revision, event: Some(event) });
    }
}

struct Service(Arc<State>);

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Host for Service {
    type PublishRoutesStream = Events<RouteAck>;
    type WatchClusterStream = Events<ClusterEvent>;

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<JoinResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn extend_roles(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn emit_events(
        &self,
        _: Request<EmitEventsRequest>,
    ) -> Result<Response<EmitEventsResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn publish(&self, _: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn withdraw(&self, _: Request<WithdrawRequest>) -> Result<Response<WithdrawResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn begin_openssh_login(
        &self,
        _: Request<BeginOpensshLoginRequest>,
    ) -> Result<Response<BeginOpensshLoginResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn sign_openssh_login(
        &self,
        _: Request<SignOpensshLoginRequest>,
    ) -> Result<Response<SignOpensshLoginResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        if let Some(record) = request.into_inner().proxy {
            let mut proxies = self.0.proxies.lock().unwrap();
            proxies.retain(|known| known.host_id != record.host_id);
            proxies.push(record.clone());
            drop(proxies);
            self.0.tell(Event::ProxyPut(record));
        }
        Ok(Response::new(RegisterResponse {}))
    }

    async fn begin_incarnation(
        &self,
        _: Request<BeginIncarnationRequest>,
    ) -> Result<Response<BeginIncarnationResponse>, Status> {
        let incarnation = self.0.incarnation.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Response::new(BeginIncarnationResponse { incarnation }))
    }

    async fn report_status(
        &self,
        _: Request<ProxyStatusReport>,
    ) -> Result<Response<ReportStatusResponse>, Status> {
        Ok(Response::new(ReportStatusResponse { next_ms: 60_000 }))
    }

    async fn publish_routes(
        &self,
        request: Request<Streaming<RouteUpdate>>,
    ) -> Result<Response<Events<RouteAck>>, Status> {
        let mut updates = request.into_inner();
        let state = self.0.clone();
        // Which proxy this is, only the real Auth must know; here incarnations are unique over all of them.
        let acks = futures::stream::poll_fn(move |cx| {
            let next = std::task::ready!(Pin::new(&mut updates).poll_next(cx));
            if matches!(&next, Some(Ok(update)) if update.withdrawn) {
                return std::task::Poll::Ready(None);
            }
            std::task::Poll::Ready(next.map(|update| {
                let update = update?;
                let sequence = update.sequence;
                let proxy = state.proxies.lock().unwrap().iter().find_map(|proxy| {
                    (proxy.incarnation == update.incarnation).then(|| proxy.host_id.clone())
                });
                if let Some(proxy_id) = proxy {
                    state.tell(Event::Routes(ProxyRoutes { proxy_id, update: Some(update) }));
                }
                Ok(RouteAck { sequence })
            }))
        });
        Ok(Response::new(Box::pin(acks)))
    }

    async fn watch_cluster(
        &self,
        _: Request<WatchClusterRequest>,
    ) -> Result<Response<Events<ClusterEvent>>, Status> {
        let state = &self.0;
        let news = BroadcastStream::new(state.news.subscribe())
            .map(|event| event.map_err(|_| Status::aborted("behind")));
        let revision = state.revision.load(Ordering::Relaxed);
        let mut events = vec![Event::Networking(state.networking())];
        events.extend(state.policy.lock().unwrap().clone().map(Event::Snapshot));
        events.extend(state.nodes.lock().unwrap().iter().map(|(_, json)| Event::NodePutJson(json.clone())));
        events.extend(state.proxies.lock().unwrap().iter().cloned().map(Event::ProxyPut));
        events.push(Event::InitialStateSent(InitialStateSent {}));
        let initial = events.into_iter().map(move |event| Ok(ClusterEvent { revision, event: Some(event) }));
        let events = tokio_stream::iter(initial).chain(news);
        let ended = state.watches.lock().unwrap().clone();
        let until_ended = Box::pin(async move { ended.requested().await });
        Ok(Response::new(Box::pin(futures::StreamExt::take_until(events, until_ended))))
    }
}
