//! Connections to the peers: a small pool for dials, and the stream of their routes.

use super::codec::{DIAL_PATH, Messages, message};
use super::stream::{MESSAGES_MAX, PeerStream};
use crate::routes::from_wire;
use crate::service::Shared;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service as _, ServiceExt as _};
use wayleave_api::PEER_VERSION;
use wayleave_api::auth::ProxyRecord;
use wayleave_api::peer::peer_client::PeerClient;
use wayleave_api::peer::{PeerPingRequest, SyncRoutesRequest};
use wayleave_dial::{DialRefusal, DialRequest, DialResponse};
use wayleave_keystore::client_config;
use wayleave_net::{BoxStream, DIAL_MESSAGE_TIMEOUT, read_message};
use wayleave_peering::Source;
use wayleave_rpc::peer_channel;
use wayleave_runtime::{Clock, Shutdown, TaskGroup, random_u64};
use wayleave_vocab::{HostId, HostPort, Incarnation, SystemRole};

/// Connections to each peer, over which dials are spread.
const CONNECTIONS_PER_PEER: usize = 2;
pub(super) const GRPC_CONTENT_TYPE: &str = "application/grpc";
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// All peers of this proxy.
pub(crate) struct Peers {
    peers: Mutex<BTreeMap<HostId, Arc<Peer>>>,
    tasks: TaskGroup,
}

struct Peer {
    address: HostPort,
    incarnation: u64,
    channels: Vec<Channel>,
    next: AtomicUsize,
    ended: Shutdown,
}

impl Peer {
    /// The next connection of the pool.
    fn channel(&self) -> Option<Channel> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.channels.get(next.checked_rem(self.channels.len())?).cloned()
    }
}

impl Peers {
    pub(crate) fn new(tasks: TaskGroup) -> Self {
        Self { peers: Mutex::default(), tasks }
    }

    /// Opens a stream to an agent through a peer.
    pub(crate) async fn dial(&self, proxy: HostId, request: &DialRequest) -> Result<BoxStream, DialRefusal> {
        let unreachable = |detail: String| DialRefusal::Offline { name: proxy.to_string(), detail };
        let peer = self
            .lock()
            .get(&proxy)
            .cloned()
            .ok_or_else(|| unreachable("no peer address of this proxy is known".to_owned()))?;
        let channel = peer.channel().ok_or_else(|| unreachable("there is no connection to it".to_owned()))?;
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        let first =
            wayleave_dial::encode(request).map_err(|e| DialRefusal::Invalid { detail: e.to_string() })?;
        if sender.try_send(message(&first)).is_err() {
            return Err(unreachable("the call could not begin".to_owned()));
        }
        let answer =
            call(channel, receiver).await.map_err(|status| unreachable(status.message().to_owned()))?;
        let mut stream = PeerStream::new(sender, answer, self.tasks.clone());
        let response: DialResponse =
            read_message(&mut stream, DIAL_MESSAGE_TIMEOUT).await.map_err(|e| unreachable(e.to_string()))?;
        match response {
            DialResponse::Established { .. } => Ok(Box::new(stream)),
            DialResponse::Refused { refusal } => Err(refusal),
        }
    }

    /// Follows the list of proxies: connects to new ones, lets go of those that left or moved.
    pub(crate) fn follow(&self, shared: &Arc<Shared>, proxies: &BTreeMap<HostId, ProxyRecord>) {
        let own = shared.config.host_id;
        let mut peers = self.lock();
        peers.retain(|id, peer| {
            let stays = proxies.get(id).is_some_and(|record| {
                record.incarnation == peer.incarnation && record.peer_address == peer.address.to_string()
            });
            if !stays {
                peer.ended.request();
            }
            stays
        });
        let mut addresses = BTreeMap::new();
        for (id, record) in proxies {
            if let Some(other) = addresses.insert(record.peer_address.clone(), id)
                && !record.peer_address.is_empty()
            {
                let address = &record.peer_address;
                tracing::warn!(%address, first = %other, second = %id, "two proxies give the same peer_public_addr");
            }
            if *id == own || peers.contains_key(id) {
                continue;
            }
            let Ok(address) = HostPort::parse(&record.peer_address, None) else { continue };
            match connect(shared, *id, address, record.incarnation) {
                Ok(peer) => {
                    peers.insert(*id, peer.clone());
                    let (shared, id) = (shared.clone(), *id);
                    self.tasks.spawn_many(async move { sync_routes(shared, id, peer).await });
                }
                Err(error) => tracing::error!(%error, "TLS to a peer cannot be set up"),
            }
        }
    }

    /// Lets go of all peers.
    pub(crate) fn close(&self) {
        let mut peers = self.lock();
        peers.values().for_each(|peer| peer.ended.request());
        peers.clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<HostId, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins a `Dial` call; gives the body of the answer.
async fn call(mut channel: Channel, messages: mpsc::Receiver<Bytes>) -> Result<Body, tonic::Status> {
    let request = http::Request::post(DIAL_PATH)
        .header(http::header::TE, "trailers")
        .header(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE)
        .body(Body::new(Messages::of_client(messages)))
        .map_err(|e| tonic::Status::internal(e.to_string()))?;
    let channel = channel.ready().await.map_err(|e| tonic::Status::from_error(Box::new(e)))?;
    let answer = channel.call(request).await.map_err(|e| tonic::Status::from_error(Box::new(e)))?;
    if answer.status() != http::StatusCode::OK {
        return Err(tonic::Status::unavailable(format!("the peer answered with {}", answer.status())));
    }
    match tonic::Status::from_header_map(answer.headers()) {
        Some(status) => Err(status),
        None => Ok(answer.into_body()),
    }
}

fn connect(
    shared: &Shared,
    id: HostId,
    address: HostPort,
    incarnation: u64,
) -> Result<Arc<Peer>, wayleave_keystore::TlsConfigError> {
    let config = &shared.config;
    let tls = client_config(&config.tls, &config.trust, SystemRole::Proxy, Some(id), &[b"h2"])?;
    let channels = (0..CONNECTIONS_PER_PEER).map(|_| peer_channel(address.clone(), tls.clone())).collect();
    Ok(Arc::new(Peer { address, incarnation, channels, next: AtomicUsize::new(0), ended: Shutdown::new() }))
}

/// Follows one peer's routes until the peer is let go of.
async fn sync_routes(shared: Arc<Shared>, id: HostId, peer: Arc<Peer>) {
    let mut retry = RETRY_MIN;
    loop {
        let mut life = None;
        let ended = peer.ended.until(sync_once(&shared, id, &peer, &mut life)).await;
        if let Some(incarnation) = life {
            retry = RETRY_MIN;
            let now = shared.clock.mono();
            let broken = shared.routes.with_table(|table| table.handle_peer(id, incarnation, false, now));
            if let Err(error) = broken {
                tracing::debug!(%error, "a broken peer connection cannot be noted");
            }
        }
        let Some(Err(status)) = ended else { return };
        tracing::debug!(peer = %id, address = %peer.address, error = %status.message(), "a peer is not reachable now");
        let pause = retry / 2 + Duration::from_millis(random_u64() % 100);
        retry = (retry * 2).min(RETRY_MAX);
        if peer.ended.until(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

async fn sync_once(
    shared: &Shared,
    id: HostId,
    peer: &Peer,
    life: &mut Option<Incarnation>,
) -> Result<(), tonic::Status> {
    let gone = || tonic::Status::unavailable("there is no connection to it");
    let mut client = PeerClient::new(peer.channel().ok_or_else(gone)?);
    let ping = PeerPingRequest { version: PEER_VERSION, capabilities: Vec::new() };
    let pong = client.ping(ping).await?.into_inner();
    let incarnation = Incarnation(pong.incarnation);
    let mut updates = client.sync_routes(SyncRoutesRequest {}).await?.into_inner();
    let now = shared.clock.mono();
    let noted = shared.routes.with_table(|table| table.handle_peer(id, incarnation, true, now));
    noted.map_err(|e| tonic::Status::internal(e.to_string()))?;
    *life = Some(incarnation);
    while let Some(update) = updates.message().await? {
        let Some(update) = from_wire(id, &update) else {
            return Err(tonic::Status::invalid_argument("routes that cannot be read"));
        };
        let now = shared.clock.mono();
        let taken = shared.routes.with_table(|table| table.handle_update(Source::Peer(id), update, now));
        taken.map_err(|e| tonic::Status::invalid_argument(e.to_string()))?;
        shared.routes.note_learned();
    }
    Err(tonic::Status::unavailable("the peer ended its routes"))
}
