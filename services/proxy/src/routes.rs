//! This proxy's routes, published to Auth and to peers, and everybody's routes, heard from both.
//!
//! The decisions are `core/peering`'s [`Publisher`] and [`RouteTable`]; here are the streams that carry them.

use crate::service::Shared;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::auth::{RouteAck, RouteUpdate as WireUpdate};
use wayleave_peering::{
    Change, LinkId, Phase, Publisher, PublisherConfig, PublisherEffect, RouteTable, RouteUpdate, RouteWrite,
    TableConfig, TableEffect,
};
use wayleave_runtime::{Clock, Shutdown};
use wayleave_vocab::{HostId, Incarnation, Mono};

/// Writes under way to Auth.
const WRITES_MAX: usize = 16;
/// Updates under way to one peer; one that does not keep up is disconnected and starts over.
const PEER_UPDATES_MAX: usize = 256;
/// The machines are asked at least this often.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Both machines and those who listen.
pub(crate) struct Routes {
    inner: Mutex<Inner>,
    /// Something changed that the publishing task must act upon.
    pub(crate) changed: Notify,
    /// Routes of others have changed; dials that wait for news look again.
    pub(crate) learned: watch::Sender<u64>,
}

struct Inner {
    incarnation: Incarnation,
    publisher: Option<Publisher>,
    table: RouteTable,
    links: BTreeMap<LinkId, mpsc::Sender<WireUpdate>>,
    next_link: u64,
    /// Auth holds the lease of this life.
    is_published: bool,
    /// All who are connected were sent that this life has left.
    is_withdrawn: bool,
}

impl Routes {
    pub(crate) fn new() -> Self {
        let inner = Inner {
            incarnation: Incarnation::default(),
            publisher: None,
            table: RouteTable::new(TableConfig::default()),
            links: BTreeMap::new(),
            next_link: 0,
            is_published: false,
            is_withdrawn: false,
        };
        Self { inner: Mutex::new(inner), changed: Notify::new(), learned: watch::Sender::new(0) }
    }

    /// Begins a life of this proxy, before any agent can be connected.
    pub(crate) fn begin(&self, proxy: HostId, incarnation: Incarnation, now: Mono) {
        let mut publisher = Publisher::new(PublisherConfig::default(), proxy, incarnation, now);
        let mut inner = self.lock();
        for link in inner.links.keys() {
            publisher.handle_peer_connected(*link, now);
        }
        inner.publisher = Some(publisher);
        inner.incarnation = incarnation;
        drop(inner);
        self.changed.notify_one();
    }

    pub(crate) fn tunnel_up(&self, host: HostId, now: Mono) {
        if let Some(publisher) = &mut self.lock().publisher {
            publisher.handle_tunnel_up(host, now);
        }
        self.changed.notify_one();
    }

    pub(crate) fn tunnel_down(&self, host: HostId, now: Mono) {
        if let Some(publisher) = &mut self.lock().publisher {
            publisher.handle_tunnel_down(host, now);
        }
        self.changed.notify_one();
    }

    /// What "not here" tells.
    pub(crate) fn not_here(&self) -> (Incarnation, u64) {
        self.lock().publisher.as_mut().map(Publisher::not_here).unwrap_or_default()
    }

    /// This life of the proxy; zero before it has begun.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.lock().incarnation
    }

    /// True while Auth keeps what this proxy publishes.
    pub(crate) fn is_published(&self) -> bool {
        self.lock().is_published
    }

    /// This life leaves, and takes its routes with it.
    pub(crate) fn withdraw(&self) {
        if let Some(publisher) = &mut self.lock().publisher {
            publisher.withdraw();
        }
        self.changed.notify_one();
    }

    /// Everybody who can be told has taken that this life has left.
    pub(crate) fn is_withdrawn(&self) -> bool {
        let inner = self.lock();
        let has_taken =
            |link: &mpsc::Sender<WireUpdate>| link.is_closed() || link.capacity() == link.max_capacity();
        inner.is_withdrawn && !inner.is_published && inner.links.values().all(has_taken)
    }

    /// A peer listens: it gets a snapshot, then every change.
    pub(crate) fn subscribe(&self, now: Mono) -> mpsc::Receiver<WireUpdate> {
        let (sender, receiver) = mpsc::channel(PEER_UPDATES_MAX);
        let mut inner = self.lock();
        inner.forget_closed_links();
        inner.next_link += 1;
        let link = LinkId(inner.next_link);
        inner.links.insert(link, sender);
        if let Some(publisher) = &mut inner.publisher {
            publisher.handle_peer_connected(link, now);
        }
        drop(inner);
        self.changed.notify_one();
        receiver
    }

    /// Tells dials that wait for news of routes.
    pub(crate) fn note_learned(&self) {
        self.learned.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Uses the table of everybody's routes.
    pub(crate) fn with_table<T>(&self, action: impl FnOnce(&mut RouteTable) -> T) -> T {
        action(&mut self.lock().table)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Peers that went away while there was nothing to tell them.
    fn forget_closed_links(&mut self) {
        let Self { links, publisher, .. } = self;
        links.retain(|link, sender| {
            let is_closed = sender.is_closed();
            if is_closed && let Some(publisher) = publisher.as_mut() {
                publisher.handle_peer_lost(*link);
            }
            !is_closed
        });
    }
}

/// A machine's update as it travels.
pub(crate) fn to_wire(update: &RouteUpdate, incomplete: bool) -> WireUpdate {
    let bytes = |ids: &BTreeSet<HostId>| ids.iter().map(|id| id.as_bytes().to_vec()).collect();
    let mut wire = WireUpdate {
        incarnation: update.incarnation.0,
        sequence: update.sequence,
        incomplete,
        ..WireUpdate::default()
    };
    match &update.change {
        Change::Snapshot { agents } => {
            wire.snapshot = true;
            wire.host_ids = bytes(agents);
        }
        Change::Delta { base, added, removed } => {
            wire.base = *base;
            wire.added = bytes(added);
            wire.removed = bytes(removed);
        }
    }
    wire
}

/// An update that travelled, as the machine wants it; `None` when an id is no id.
pub(crate) fn from_wire(proxy: HostId, wire: &WireUpdate) -> Option<RouteUpdate> {
    let ids = |list: &[Vec<u8>]| -> Option<BTreeSet<HostId>> {
        list.iter().map(|id| Some(HostId::from_random(id.as_slice().try_into().ok()?))).collect()
    };
    let change = if wire.snapshot {
        Change::Snapshot { agents: ids(&wire.host_ids)? }
    } else {
        Change::Delta { base: wire.base, added: ids(&wire.added)?, removed: ids(&wire.removed)? }
    };
    let incarnation = Incarnation(wire.incarnation);
    Some(RouteUpdate { proxy, incarnation, sequence: wire.sequence, change })
}

/// Publishes this life's routes until shutdown. While the proxy drains they stay until its tunnels end or it leaves; a
/// route that outlives its proxy costs a dial one failed attempt.
pub(crate) async fn publish(shared: Arc<Shared>, shutdown: Shutdown) {
    let routes = &shared.routes;
    let mut auth = AuthStream::Closed;
    loop {
        act(&shared, &mut auth);
        let now = shared.clock.mono();
        let at = {
            let inner = routes.lock();
            let times =
                [inner.publisher.as_ref().and_then(Publisher::poll_timeout), inner.table.poll_timeout()];
            times.into_iter().flatten().min()
        };
        let pause = at.map_or(LOOK_MAX, |at| at.since(now).min(LOOK_MAX));
        tokio::select! {
            () = shutdown.requested() => return,
            () = routes.changed.notified() => {}
            answer = auth.next() => handle_auth(&shared, &mut auth, answer),
            () = tokio::time::sleep(pause) => {
                let now = shared.clock.mono();
                let mut inner = routes.lock();
                inner.table.handle_timeout(now);
                if let Some(publisher) = &mut inner.publisher {
                    publisher.handle_timeout(now);
                }
            }
        }
    }
}

/// The stream on which Auth takes routes; it holds the lease.
enum AuthStream {
    Closed,
    Opening(Opening),
    Open {
        send: mpsc::Sender<WireUpdate>,
        acks: Box<tonic::Streaming<RouteAck>>,
        unanswered: Vec<(u64, u64)>,
    },
}

type Opening = std::pin::Pin<
    Box<
        dyn Future<Output = Result<(mpsc::Sender<WireUpdate>, tonic::Streaming<RouteAck>), tonic::Status>>
            + Send,
    >,
>;

enum AuthNews {
    Opened(mpsc::Sender<WireUpdate>, Box<tonic::Streaming<RouteAck>>),
    Ack(u64),
    Lost(String),
}

impl AuthStream {
    async fn next(&mut self) -> AuthNews {
        match self {
            Self::Closed => std::future::pending().await,
            Self::Opening(opening) => match opening.await {
                Ok((send, acks)) => AuthNews::Opened(send, Box::new(acks)),
                Err(status) => AuthNews::Lost(status.message().to_owned()),
            },
            Self::Open { acks, .. } => match acks.message().await {
                Ok(Some(ack)) => AuthNews::Ack(ack.sequence),
                Ok(None) => AuthNews::Lost("the stream ended".to_owned()),
                Err(status) => AuthNews::Lost(status.message().to_owned()),
            },
        }
    }
}

fn act(shared: &Arc<Shared>, auth: &mut AuthStream) {
    while let Some(TableEffect::Resync { proxy, incarnation }) =
        shared.routes.with_table(RouteTable::poll_effect)
    {
        shared.peers.resync(proxy, incarnation);
    }
    loop {
        let mut inner = shared.routes.lock();
        let Some(effect) = inner.publisher.as_mut().and_then(Publisher::poll_effect) else { return };
        match effect {
            PublisherEffect::Push { link, update } => {
                let wire = to_wire(&update, false);
                // One that is full or gone is let go of; a peer that is still there connects again and starts over.
                let is_lost = inner.links.get(&link).is_some_and(|link| link.try_send(wire).is_err());
                if is_lost {
                    inner.links.remove(&link);
                    if let Some(publisher) = &mut inner.publisher {
                        publisher.handle_peer_lost(link);
                    }
                }
            }
            PublisherEffect::CreateLease => {
                drop(inner);
                *auth = AuthStream::Opening(open(shared));
            }
            PublisherEffect::Write(write) => {
                let now = shared.clock.mono();
                if !send(auth, &write)
                    && let Some(publisher) = &mut inner.publisher
                {
                    publisher.handle_lease_lost(now);
                }
            }
            PublisherEffect::Withdraw { incarnation, .. } => {
                inner.is_withdrawn = true;
                let wire =
                    WireUpdate { incarnation: incarnation.0, withdrawn: true, ..WireUpdate::default() };
                // Who cannot take it now notices by the connection.
                for link in inner.links.values() {
                    let _ = link.try_send(wire.clone());
                }
                if let AuthStream::Open { send, .. } = auth {
                    let _ = send.try_send(wire);
                }
            }
        }
    }
}

fn open(shared: &Arc<Shared>) -> Opening {
    let channel = shared.auth.clone();
    Box::pin(async move {
        let (send, receiver) = mpsc::channel(WRITES_MAX);
        let acks = HostClient::new(channel).publish_routes(ReceiverStream::new(receiver)).await?.into_inner();
        Ok((send, acks))
    })
}

/// Sends one write; false when the stream cannot take it.
fn send(auth: &mut AuthStream, write: &RouteWrite) -> bool {
    let AuthStream::Open { send, unanswered, .. } = auth else { return false };
    let incomplete = match write.phase {
        Phase::Change => false,
        Phase::Rewrite { is_last, .. } => !is_last,
    };
    unanswered.push((write.update.sequence, write.id));
    send.try_send(to_wire(&write.update, incomplete)).is_ok()
}

fn handle_auth(shared: &Shared, auth: &mut AuthStream, news: AuthNews) {
    let now = shared.clock.mono();
    let mut inner = shared.routes.lock();
    let Inner { publisher: Some(publisher), is_published, is_withdrawn, .. } = &mut *inner else { return };
    match news {
        AuthNews::Opened(send, acks) => {
            *is_published = true;
            *auth = AuthStream::Open { send, acks, unanswered: Vec::new() };
            publisher.handle_lease_granted(now);
        }
        AuthNews::Ack(sequence) => {
            let AuthStream::Open { unanswered, .. } = auth else { return };
            unanswered.retain(|(sent, id)| {
                let answered = *sent <= sequence;
                if answered {
                    publisher.handle_written(*id, now);
                }
                !answered
            });
        }
        // It has taken that this life has left.
        AuthNews::Lost(_) if *is_withdrawn => {
            *is_published = false;
            *auth = AuthStream::Closed;
        }
        AuthNews::Lost(reason) => {
            tracing::warn!(reason, "Auth does not take routes now; peers still do");
            *is_published = false;
            shared.metrics.routes_interruptions.increment();
            *auth = AuthStream::Closed;
            publisher.handle_lease_lost(now);
        }
    }
}
