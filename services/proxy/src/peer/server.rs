//! What this proxy offers its peers on 3021.

use super::client::GRPC_CONTENT_TYPE;
use super::codec::{DIAL_SERVICE, Messages};
use super::stream::{MESSAGES_MAX, PeerStream};
use super::version::agree_with;
use crate::dial::{DIAL_SPAN, dial_local};
use crate::metrics::refusal_kind;
use crate::service::Shared;
use bytes::Bytes;
use futures::Stream;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use wayleave_api::PEER_VERSIONS;
use wayleave_api::auth::RouteUpdate;
use wayleave_api::peer::peer_server::{Peer, PeerServer};
use wayleave_api::peer::{PeerPingRequest, PeerPingResponse, SyncRoutesRequest};
use wayleave_dial::{DialRefusal, DialResponse, Heard};
use wayleave_identity::{HostPrincipal, Principal};
use wayleave_keystore::Audience;
use wayleave_net::{
    Admission, HELLO_TIMEOUT, ReadAhead, Rewind, Severable, Slots, accept_loop, accept_tls,
    read_dial_request, splice, write_message,
};
use wayleave_rpc::{
    Caller, PEER_CONNECTION_WINDOW_BYTES, PEER_FRAME_BYTES_MAX, PEER_STREAM_WINDOW_BYTES, RpcStream,
};
use wayleave_runtime::{Clock, Shutdown};
use wayleave_telemetry::{SpanKind, span_id};
use wayleave_vocab::{Capabilities, HostId, SystemRole, Versions};

/// Calls at a time on one connection; every stream of a user is one, and none may ever queue.
const STREAMS_MAX: u32 = 1 << 20;
/// Resets that may wait to be accepted: racing dials end by message, so only broken peers reset.
const PENDING_RESETS_MAX: usize = 10_000;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// TLS connections that have finished their handshake and wait for the server.
const HANDSHAKEN_MAX: usize = 64;
const PEER_CONNECTIONS_MAX: usize = 4096;
/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Serves the peers until shutdown; calls that are under way go on.
pub(super) async fn serve_peers(shared: Arc<Shared>, listener: TcpListener, shutdown: Shutdown) {
    let (sender, handshaken) = mpsc::channel::<RpcStream>(HANDSHAKEN_MAX);
    let (tasks, owner) = (shared.tasks.clone(), shared.clone());
    let serve = move |stream, peer, admission: Admission| {
        let (shared, sender) = (owner.clone(), sender.clone());
        async move {
            match accept_peer(&shared, stream, peer).await {
                Ok(stream) => {
                    admission.known();
                    let _ = sender.send(stream).await;
                }
                Err(reason) => tracing::debug!(%peer, reason, "a peer connection was closed"),
            }
        }
    };
    let slots = Slots { connections_max: PEER_CONNECTIONS_MAX, strangers_max: PEER_CONNECTIONS_MAX };
    let ending = shutdown.child();
    let accepting = accept_loop("peering", listener, slots, tasks, ending.clone(), serve);
    let service = PeerService { shared: shared.clone(), shutdown: shutdown.clone() };
    let incoming = ReceiverStream::new(handshaken).map(Ok::<_, Infallible>);
    let serving = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .initial_stream_window_size(PEER_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(PEER_CONNECTION_WINDOW_BYTES)
        .max_frame_size(PEER_FRAME_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(PeerServer::new(service.clone()))
        .add_service(DialServer(service))
        .serve_with_incoming_shutdown(incoming, async move { shutdown.requested().await });
    // What nobody serves any more is not accepted either.
    let serving = async {
        let served = serving.await;
        ending.request();
        served
    };
    let (served, ()) = tokio::join!(serving, accepting);
    if let Err(error) = served {
        tracing::error!(%error, "the peer service ended");
    }
}

/// A connection of a proxy of this cluster that speaks HTTP/2: what comes then has deadlines of HTTP/2's own.
async fn accept_peer(
    shared: &Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
) -> Result<RpcStream, &'static str> {
    let accepting = async {
        let acceptor = TlsAcceptor::from(shared.peer_tls.clone());
        let mut tls = match accept_tls(&acceptor, ReadAhead::new(stream), HELLO_TIMEOUT).await {
            Ok(tls) => tls,
            Err(failed) => {
                failed.part().await;
                return Err("its handshake failed");
            }
        };
        let mut preface = [0; PREFACE_BYTES];
        tls.read_exact(&mut preface).await.map_err(|_| "it does not begin HTTP/2")?;
        Ok((preface, tls))
    };
    let (preface, tls) = tokio::time::timeout(HELLO_TIMEOUT, accepting)
        .await
        .map_err(|_| "it did not finish its handshake in time")??;
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    match shared.config.trust.identify(chain, Audience::Client, shared.clock.wall()) {
        Ok(Principal::Host(host)) if may_call(shared, &host) => {
            // What runs over the connection ends with it.
            let tls = Severable::new(tls, shared.clone().locked(host.host_id));
            let caller = Caller { principal: Some(Principal::Host(host)), address: peer };
            let ahead = Bytes::copy_from_slice(&preface);
            let metrics = &shared.metrics;
            let (written, read) = (metrics.bytes_to_peers.clone(), metrics.bytes_from_peers.clone());
            let stream = shared.peers_served.count(Box::new(Rewind::new(ahead, tls)), written, read);
            Ok(RpcStream::new(stream, caller))
        }
        Ok(_) | Err(_) => Err("it is no proxy of this cluster"),
    }
}

#[derive(Clone)]
struct PeerService {
    shared: Arc<Shared>,
    shutdown: Shutdown,
}

/// True for a proxy that no lock is on.
fn may_call(shared: &Shared, host: &HostPrincipal) -> bool {
    host.system_roles.contains(&SystemRole::Proxy) && !shared.is_locked(host.host_id)
}

fn calling_proxy(shared: &Shared, extensions: &http::Extensions) -> Result<HostId, Status> {
    let caller = extensions.get::<Caller>();
    match caller.and_then(|c| c.principal.as_ref()) {
        Some(Principal::Host(host)) if may_call(shared, host) => Ok(host.host_id),
        _ => Err(Status::permission_denied("only proxies of this cluster may call")),
    }
}

type RouteStream = Pin<Box<dyn Stream<Item = Result<RouteUpdate, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for PeerService {
    type SyncRoutesStream = RouteStream;

    async fn ping(&self, request: Request<PeerPingRequest>) -> Result<Response<PeerPingResponse>, Status> {
        let peer = calling_proxy(&self.shared, request.extensions())?;
        let ping = request.into_inner();
        let told = Versions::told(ping.version, ping.version_oldest);
        let own = self.shared.config.host_id;
        agree_with(peer, told, &ping.release, own).map_err(Status::failed_precondition)?;
        Ok(Response::new(PeerPingResponse {
            proxy_id: self.shared.config.host_id.to_string(),
            incarnation: self.shared.routes.incarnation().0,
            version: PEER_VERSIONS.newest(),
            version_oldest: PEER_VERSIONS.oldest(),
            capabilities: Capabilities::own().names().map(str::to_owned).collect(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn sync_routes(
        &self,
        request: Request<SyncRoutesRequest>,
    ) -> Result<Response<RouteStream>, Status> {
        calling_proxy(&self.shared, request.extensions())?;
        let updates: RouteStream = if self.shared.config.pushes_routes {
            let updates = self.shared.routes.subscribe(self.shared.clock.mono());
            Box::pin(ReceiverStream::new(updates).map(Ok))
        } else {
            Box::pin(futures::stream::pending())
        };
        let shutdown = self.shutdown.clone();
        let until_shutdown = async move { shutdown.requested().await };
        Ok(Response::new(Box::pin(futures::StreamExt::take_until(updates, Box::pin(until_shutdown)))))
    }
}

/// The `Dial` method, whose messages are plain bytes.
#[derive(Clone)]
struct DialServer(PeerService);

impl NamedService for DialServer {
    const NAME: &'static str = DIAL_SERVICE;
}

impl tower::Service<http::Request<Body>> for DialServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { Ok(service.begin_dial(request).unwrap_or_else(Status::into_http)) })
    }
}

impl PeerService {
    /// Answers a call and leaves the stream to a task.
    fn begin_dial(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let Self { shared, shutdown } = self;
        let peer = calling_proxy(&shared, request.extensions())?;
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        let answer = http::Response::builder()
            .header(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE)
            .body(Body::new(Messages::of_server(receiver)?))
            .map_err(|e| Status::internal(e.to_string()))?;
        let tasks = shared.tasks.clone();
        let stream = PeerStream::new(sender, request.into_body(), tasks.clone());
        tasks.spawn_many(async move {
            if let Err(error) = answer_dial(&shared, peer, stream, &shutdown).await {
                tracing::debug!(%peer, error = &*error as &dyn std::error::Error, "a dial of a peer ended");
            }
        });
        Ok(answer)
    }
}

async fn refuse(mut stream: PeerStream, refusal: DialRefusal) -> Result<(), BoxError> {
    write_message(&mut stream, &DialResponse::Refused { refusal }).await?;
    tokio::io::AsyncWriteExt::shutdown(&mut stream).await?;
    Ok(())
}

async fn answer_dial(
    shared: &Arc<Shared>,
    peer: HostId,
    mut stream: PeerStream,
    shutdown: &Shutdown,
) -> Result<(), BoxError> {
    let request = match read_dial_request(&mut stream, HELLO_TIMEOUT, "the proxy in between").await? {
        Heard::Request(request) => *request,
        Heard::Refused(refusal) => {
            shared.metrics.served_peer(Some(&refusal));
            return refuse(stream, refusal).await;
        }
    };
    let (own, trace) = (shared.config.host_id, *request.trace_id.as_bytes());
    let parent = span_id(&trace, peer.as_bytes(), &format!("attempt by {own}"));
    let id = span_id(&trace, own.as_bytes(), DIAL_SPAN);
    let mut span = shared.tracer.begin("proxy.peer_dial", SpanKind::Server, trace, id, Some(parent));
    let dialled = match request.host_id {
        _ if !request.from_peer => {
            Err(DialRefusal::invalid("a peer's dial request that is not marked as a peer's"))
        }
        None => Err(DialRefusal::invalid("a peer's dial request without a host id")),
        Some(_) if shutdown.is_requested() => {
            Err(DialRefusal::Unavailable { detail: "this proxy is going away".to_owned() })
        }
        Some(host_id) => dial_local(shared, host_id, request).await,
    };
    shared.metrics.served_peer(dialled.as_ref().err());
    if let Err(refusal) = &dialled {
        span.fail(|| refusal_kind(refusal).to_owned());
    }
    drop(span);
    match dialled {
        Err(refusal) => return refuse(stream, refusal).await,
        Ok(agent) => {
            write_message(&mut stream, &DialResponse::Established { route: None }).await?;
            splice(stream, agent).await?;
        }
    }
    Ok(())
}
