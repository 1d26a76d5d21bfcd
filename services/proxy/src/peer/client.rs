//! Connections to the peers: a small pool for dials, and the stream of their routes.

use super::codec::{DIAL_PATH, Messages, message};
use super::problem::{Answers, PeerName, PeerProblem, ProblemKind, duplicates};
use super::stream::{MESSAGES_MAX, PeerStream};
use super::version::agree_with;
use crate::routes::from_wire;
use crate::service::Shared;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service as _, ServiceExt as _};
use wayleave_api::PEER_VERSIONS;
use wayleave_api::auth::{ProxyRecord, RouteUpdate as WireUpdate};
use wayleave_api::peer::peer_client::PeerClient;
use wayleave_api::peer::{PeerPingRequest, SyncRoutesRequest};
use wayleave_dial::{DialRefusal, DialRequest, DialResponse};
use wayleave_keystore::{Audience, client_config};
use wayleave_net::{BoxStream, DIAL_MESSAGE_TIMEOUT, connect_told_straight, read_message};
use wayleave_peering::Source;
use wayleave_rpc::peer_channel;
use wayleave_runtime::{Clock, Shutdown, TaskGroup, random_u64};
use wayleave_vocab::{Capabilities, HostId, HostPort, Incarnation, Mono, SystemRole, Versions, printable};

/// Connections to each peer, over which dials are spread.
const CONNECTIONS_PER_PEER: usize = 2;
pub(super) const GRPC_CONTENT_TYPE: &str = "application/grpc";
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A peer that does not answer for this long has a problem; before, it may be starting.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(10);
/// How often it is looked who answers at a peer's address.
const IDENTIFY_INTERVAL: Duration = Duration::from_secs(30);
/// The same while it is not known to be the right one.
const IDENTIFY_INTERVAL_MIN: Duration = Duration::from_secs(3);
/// Most of what a peer says of versions that is shown.
const DISAGREEMENT_CHARS_MAX: usize = 400;
/// So many right answers are waited for before it is looked less often.
const IDENTIFY_OFTEN: u32 = 5;

/// All peers of this proxy.
pub(crate) struct Peers {
    peers: Mutex<BTreeMap<HostId, Arc<Peer>>>,
    duplicates: Mutex<Vec<PeerProblem>>,
    /// The problems as Auth is told.
    pub(crate) told: watch::Sender<Vec<String>>,
    tasks: TaskGroup,
}

/// Peers by how the connection stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PeerCounts {
    pub(crate) ready: usize,
    pub(crate) connecting: usize,
    pub(crate) failing: usize,
}

/// How the connection to a peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Connecting,
    Ready,
    Failing { since: Mono },
}

/// What is known of a peer beyond its address.
#[derive(Debug)]
struct Seen {
    link: Link,
    answers: Answers,
    /// What it says that it can do, once it has said so.
    capabilities: Option<Capabilities>,
    /// Why it and this proxy do not understand each other.
    disagreement: Option<String>,
}

struct Peer {
    name: PeerName,
    address: HostPort,
    incarnation: u64,
    channels: Vec<Channel>,
    next: AtomicUsize,
    seen: Mutex<Seen>,
    /// Something of its routes is missing: they are asked for again.
    resync: Notify,
    /// It is let go of: nothing new is asked of it.
    ended: Shutdown,
    /// What runs over its connections ends too.
    severed: Shutdown,
}

impl Peer {
    /// The next connection of the pool.
    fn channel(&self) -> Option<Channel> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.channels.get(next.checked_rem(self.channels.len())?).cloned()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_failure(&self, now: Mono) {
        let mut seen = self.seen();
        if !matches!(seen.link, Link::Failing { .. }) {
            seen.link = Link::Failing { since: now };
        }
    }

    fn understand(&self, capabilities: Capabilities) {
        let mut seen = self.seen();
        seen.capabilities = Some(capabilities);
        seen.disagreement = None;
    }

    fn disagree(&self, why: &str) {
        let why: String = printable(why).to_string().chars().take(DISAGREEMENT_CHARS_MAX).collect();
        let mut seen = self.seen();
        if seen.disagreement.as_ref() != Some(&why) {
            tracing::warn!(peer = %self.name, "a peer is of a release that this one does not understand: {why}");
        }
        seen.disagreement = Some(why);
    }

    /// What is wrong now; `name_of` knows other proxies.
    fn problem(&self, own: HostId, now: Mono, name_of: impl Fn(HostId) -> PeerName) -> Option<PeerProblem> {
        let seen = self.seen();
        let (kind, other) = match (seen.answers.other(), seen.link) {
            (Some(other), _) => (ProblemKind::OtherProxy, Some(name_of(other))),
            (None, _) if seen.disagreement.is_some() => (ProblemKind::Version, None),
            (None, Link::Failing { since })
                if self.name.id != own && now.since(since) > UNREACHABLE_AFTER =>
            {
                (ProblemKind::Unreachable, None)
            }
            (None, Link::Failing { .. } | Link::Connecting | Link::Ready) => return None,
        };
        Some(PeerProblem {
            kind,
            peer: self.name.clone(),
            address: self.address.to_string(),
            other,
            detail: seen.disagreement.clone(),
        })
    }
}

impl Peers {
    pub(crate) fn new(tasks: TaskGroup) -> Self {
        Self { peers: Mutex::default(), duplicates: Mutex::default(), told: watch::Sender::default(), tasks }
    }

    /// How the connections stand.
    pub(crate) fn counts(&self) -> PeerCounts {
        let mut counts = PeerCounts::default();
        for peer in self.lock().values().filter(|peer| !peer.channels.is_empty()) {
            match peer.seen().link {
                Link::Connecting => counts.connecting += 1,
                Link::Ready => counts.ready += 1,
                Link::Failing { .. } => counts.failing += 1,
            }
        }
        counts
    }

    /// What is wrong with peers and their addresses now, in order.
    pub(crate) fn problems(&self, own: HostId, now: Mono) -> Vec<PeerProblem> {
        let peers = self.lock();
        let name_of = |id: HostId| {
            let known = peers.get(&id).map(|peer| peer.name.clone());
            known.unwrap_or(PeerName { id, name: String::new() })
        };
        let of_peers = peers.values().filter_map(|peer| peer.problem(own, now, name_of));
        let mut problems: Vec<PeerProblem> = of_peers.collect();
        drop(peers);
        problems.extend(self.duplicates.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        problems.sort();
        problems
    }

    /// Opens a stream to an agent through a peer.
    pub(crate) async fn dial(&self, proxy: HostId, request: &DialRequest) -> Result<BoxStream, DialRefusal> {
        let unreachable = |detail: String| DialRefusal::Offline { name: proxy.to_string(), detail };
        let peer = self
            .lock()
            .get(&proxy)
            .cloned()
            .ok_or_else(|| unreachable("no peer address of this proxy is known".to_owned()))?;
        if let Some(capabilities) = &peer.seen().capabilities {
            request.check(&format!("proxy {}", peer.name), capabilities)?;
        }
        let channel = peer.channel().ok_or_else(|| unreachable("there is no connection to it".to_owned()))?;
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        let first = wayleave_dial::encode(request).map_err(|e| DialRefusal::invalid(e.to_string()))?;
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

    /// Follows the list of proxies and the locks: connects to new ones, lets go of those that left or moved, and cuts off
    /// those that a lock shuts out.
    pub(crate) fn follow(&self, shared: &Arc<Shared>, proxies: &BTreeMap<HostId, ProxyRecord>) {
        let own = shared.config.host_id;
        let mut peers = self.lock();
        for (id, peer) in peers.extract_if(.., |id, _| shared.is_locked(*id)) {
            tracing::info!(peer = %id, "a lock ends the connections to a peer");
            peer.ended.request();
            peer.severed.request();
        }
        peers.retain(|id, peer| {
            let stays = proxies.get(id).is_some_and(|record| {
                record.incarnation == peer.incarnation && record.peer_address == peer.address.to_string()
            });
            if !stays {
                peer.ended.request();
            }
            stays
        });
        self.note_duplicates(proxies);
        for (id, record) in proxies {
            if peers.contains_key(id) || shared.is_locked(*id) {
                continue;
            }
            let Ok(address) = HostPort::parse(&record.peer_address, None) else { continue };
            let name = PeerName { id: *id, name: record.name.clone() };
            match connect(shared, name, address, record.incarnation) {
                Ok(peer) => {
                    peers.insert(*id, peer.clone());
                    let (needed, ended) = (&shared.needed, peer.ended.clone());
                    needed.spawn("who peers are", &ended, identify(shared.clone(), peer.clone()));
                    // Its own address is looked at as others see it, and nothing more.
                    if *id != own {
                        needed.spawn("routes of peers", &ended, sync_routes(shared.clone(), *id, peer));
                    }
                }
                Err(error) => tracing::error!(%error, "TLS to a peer cannot be set up"),
            }
        }
    }

    fn note_duplicates(&self, proxies: &BTreeMap<HostId, ProxyRecord>) {
        let known = proxies.iter().map(|(id, record)| {
            (PeerName { id: *id, name: record.name.clone() }, record.peer_address.as_str())
        });
        let problem = |(peer, other, address): (PeerName, PeerName, HostPort)| PeerProblem {
            kind: ProblemKind::DuplicateAddress,
            peer,
            address: address.to_string(),
            other: Some(other),
            detail: None,
        };
        let found: Vec<PeerProblem> = duplicates(known).into_iter().map(problem).collect();
        let mut before = self.duplicates.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in found.iter().filter(|problem| !before.contains(problem)) {
            tracing::warn!("{problem}");
        }
        *before = found;
    }

    /// Asks a peer for all its routes again. Where there is no connection to it, what Auth says has to do.
    pub(crate) fn resync(&self, proxy: HostId, incarnation: Incarnation) {
        if let Some(peer) = self.lock().get(&proxy).filter(|peer| peer.incarnation == incarnation.0) {
            peer.resync.notify_one();
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
    name: PeerName,
    address: HostPort,
    incarnation: u64,
) -> Result<Arc<Peer>, wayleave_keystore::TlsConfigError> {
    let config = &shared.config;
    let tls = client_config(&config.tls, &config.trust, SystemRole::Proxy, Some(name.id), &[b"h2"])?;
    // There is no dial through the proxy itself.
    let count = if name.id == config.host_id { 0 } else { CONNECTIONS_PER_PEER };
    let severed = Shutdown::new();
    let channels = (0..count).map(|_| peer_channel(address.clone(), tls.clone(), severed.clone())).collect();
    Ok(Arc::new(Peer {
        name,
        address,
        incarnation,
        channels,
        next: AtomicUsize::new(0),
        seen: Mutex::new(Seen {
            link: Link::Connecting,
            answers: Answers::default(),
            capabilities: None,
            disagreement: None,
        }),
        resync: Notify::new(),
        ended: Shutdown::new(),
        severed,
    }))
}

/// Looks again and again which proxy answers at a peer's address. The connections themselves refuse a wrong one; this
/// says who it is, and finds a balancer that answers rightly now and then.
async fn identify(shared: Arc<Shared>, peer: Arc<Peer>) {
    let (expected, mut looks) = (peer.name.id, 0u32);
    loop {
        let asked = peer.ended.until(who_answers(&shared, &peer.address)).await;
        let Some(answered) = asked else { return };
        if let Some(answered) = answered {
            looks = looks.saturating_add(1);
            let changed = peer.seen().answers.note(expected, answered);
            let (own, now) = (shared.config.host_id, shared.clock.mono());
            let problem = peer.problem(own, now, |id| PeerName { id, name: String::new() });
            match problem.filter(|problem| problem.kind == ProblemKind::OtherProxy) {
                Some(problem) if changed => tracing::warn!("{problem}"),
                Some(_) => looks = 0,
                None if changed => tracing::info!(peer = %peer.name, "its peer address is its own now"),
                None => {}
            }
        }
        let interval = if looks < IDENTIFY_OFTEN { IDENTIFY_INTERVAL_MIN } else { IDENTIFY_INTERVAL };
        let pause = interval / 2 + Duration::from_millis(random_u64() % 1000);
        if peer.ended.until(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// The proxy of this cluster that answers at an address; none when nobody does, or somebody else.
async fn who_answers(shared: &Shared, address: &HostPort) -> Option<HostId> {
    let config = &shared.config;
    let tls = client_config(&config.tls, &config.trust, SystemRole::Proxy, None, &[b"h2"]).ok()?;
    let stream = connect_told_straight(address, tls).await.ok()?;
    let chain = stream.get_ref().1.peer_certificates()?;
    let principal = config.trust.identify(chain, Audience::Server, shared.clock.wall()).ok()?;
    principal.as_host_with(SystemRole::Proxy).map(|host| host.host_id)
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
        peer.note_failure(shared.clock.mono());
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
    let pong = client.ping(ping()).await.inspect_err(|status| {
        if status.code() == tonic::Code::FailedPrecondition {
            peer.disagree(status.message());
        }
    })?;
    let pong = pong.into_inner();
    let told = Versions::told(pong.version, pong.version_oldest);
    agree_with(id, told, &pong.release, shared.config.host_id).map_err(|why| {
        peer.disagree(&why);
        tonic::Status::failed_precondition(why)
    })?;
    peer.understand(Capabilities::told(&pong.capabilities));
    let incarnation = Incarnation(pong.incarnation);
    let mut updates = client.sync_routes(SyncRoutesRequest {}).await?.into_inner();
    let now = shared.clock.mono();
    let noted = shared.routes.with_table(|table| table.handle_peer(id, incarnation, true, now));
    noted.map_err(|e| tonic::Status::internal(e.to_string()))?;
    *life = Some(incarnation);
    peer.seen().link = Link::Ready;
    loop {
        let update = tokio::select! {
            update = updates.message() => update?,
            () = peer.resync.notified() => {
                updates = client.sync_routes(SyncRoutesRequest {}).await?.into_inner();
                continue;
            }
        };
        match update {
            Some(update) => take_update(shared, id, peer, &update)?,
            None => return Err(tonic::Status::unavailable("the peer ended its routes")),
        }
    }
}

fn ping() -> PeerPingRequest {
    PeerPingRequest {
        version: PEER_VERSIONS.newest(),
        version_oldest: PEER_VERSIONS.oldest(),
        capabilities: Capabilities::own().names().map(str::to_owned).collect(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn take_update(shared: &Shared, id: HostId, peer: &Peer, update: &WireUpdate) -> Result<(), tonic::Status> {
    let (source, now) = (Source::Peer(id), shared.clock.mono());
    let taken = if update.withdrawn {
        // What it says of lives that it has not begun counts for nothing.
        let incarnation = Incarnation(update.incarnation.min(peer.incarnation));
        shared.routes.with_table(|table| table.handle_withdrawn(source, id, incarnation))
    } else {
        let Some(update) = from_wire(id, update) else {
            return Err(tonic::Status::invalid_argument("routes that cannot be read"));
        };
        shared.routes.with_table(|table| table.handle_update(source, update, now).map(|_| ()))
    };
    shared.routes.note_learned();
    taken.map_err(|e| tonic::Status::invalid_argument(e.to_string()))
}
