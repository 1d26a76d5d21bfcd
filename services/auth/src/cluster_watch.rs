//! What processes are told about the cluster: everything as it is, then every change.
//!
//! A watcher that does not keep up is dropped, and starts over; nothing is queued for it without bound. A watch ends
//! when its caller may call no more (locked, certificate run out).

use crate::auth_core::AuthCore;
use crate::connection::Identity;
use crate::mirror::{Mirrored, News};
use crate::policy_view::PolicyView;
use crate::presence::record_of_proxy;
use crate::routes::RouteNews;
use crate::snapshots::Published;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tonic::Status;
use wayleave_api::auth::cluster_event::Event;
use wayleave_api::auth::{ClusterEvent, InitialStateSent, Networking, ProxyRoutes};
use wayleave_identity::HostPrincipal;
use wayleave_resource::{Kind, Resource};
use wayleave_runtime::Shutdown;
use wayleave_vocab::{PolicyRevision, SystemRole};

/// Events that wait for a watcher.
const WAITING_MAX: usize = 256;
/// How long a watcher may leave a full queue unread.
const SLOW_WATCHER_DEADLINE: Duration = Duration::from_secs(30);
/// How often it is looked whether the caller may still call.
const REVIEW_INTERVAL: Duration = Duration::from_secs(5);

/// A backend takes fewer revisions in a second than these bits count.
const REVISION_BITS: u32 = 24;

/// The events of one watch.
pub(crate) type ClusterEvents = mpsc::Receiver<Result<ClusterEvent, Status>>;

/// One watch.
pub(crate) struct ClusterWatch {
    core: Arc<AuthCore>,
    caller: HostPrincipal,
    /// Proxies are told of nodes and routes; agents are not.
    is_proxy: bool,
    held: PolicyRevision,
    sender: mpsc::Sender<Result<ClusterEvent, Status>>,
}

/// The watcher is gone or too slow.
struct Gone;

impl ClusterWatch {
    pub(crate) fn new(
        core: Arc<AuthCore>,
        caller: HostPrincipal,
        held: PolicyRevision,
    ) -> (Self, ClusterEvents) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let is_proxy = caller.system_roles.contains(&SystemRole::Proxy);
        (Self { core, caller, is_proxy, held, sender }, receiver)
    }

    /// Sends until the watcher goes, is too slow, may watch no more, or shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let watching = async {
            if self.watch().await.is_err() {
                tracing::debug!(host_id = %self.caller.host_id, "a watch of the cluster ended");
            }
        };
        let _ = shutdown.until(watching).await;
    }

    async fn watch(&self) -> Result<(), Gone> {
        let kinds: &[Kind] = if self.is_proxy { &[Kind::Proxy, Kind::Node] } else { &[Kind::Proxy] };
        let mut policy = self.core.mirror.policy_changes();
        let mut published = self.core.snapshots.follow();
        let (routes_now, routes_at, mut route_news) = self.core.routes.follow();
        let (resources, revision, mut news) = self.core.mirror.follow(kinds);
        let spoken = networking(&policy.borrow_and_update().clone());
        self.send(revision, Event::Networking(spoken)).await?;
        for mirrored in &resources {
            self.send_put(revision, mirrored).await?;
        }
        if self.is_proxy {
            for routes in routes_now {
                self.send(routes_at, Event::Routes(routes)).await?;
            }
        }
        let mut sent = self.held;
        let now = published.borrow_and_update().clone();
        self.send_policy(&mut sent, now).await?;
        self.send(revision, Event::InitialStateSent(InitialStateSent {})).await?;

        let mut review = tokio::time::interval(REVIEW_INTERVAL);
        loop {
            tokio::select! {
                () = self.sender.closed() => return Err(Gone),
                next = news.recv() => match next {
                    Ok(next) if kinds.contains(&next.kind()) => self.send_news(next).await?,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => return self.too_slow().await,
                    Err(RecvError::Closed) => return Err(Gone),
                },
                next = route_news.recv() => match next {
                    Ok(next) if self.is_proxy => self.send_route_news(next).await?,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => return self.too_slow().await,
                    Err(RecvError::Closed) => return Err(Gone),
                },
                changed = published.changed() => {
                    changed.map_err(|_| Gone)?;
                    let now = published.borrow_and_update().clone();
                    self.send_policy(&mut sent, now).await?;
                }
                changed = policy.changed() => {
                    changed.map_err(|_| Gone)?;
                    let spoken = networking(&policy.borrow_and_update().clone());
                    let revision = self.core.mirror.revision();
                    self.send(revision, Event::Networking(spoken)).await?;
                    self.review().await?;
                }
                _ = review.tick() => self.review().await?,
            }
        }
    }

    /// Ends the watch of a caller who may call no more.
    async fn review(&self) -> Result<(), Gone> {
        match self.core.current(&Identity::Host(self.caller.clone())) {
            Ok(_) => Ok(()),
            Err(error) => {
                let _ = self.sender.try_send(Err(error.into()));
                Err(Gone)
            }
        }
    }

    async fn too_slow(&self) -> Result<(), Gone> {
        let _ = self.sender.try_send(Err(Status::aborted("the watch is too slow: start over")));
        Err(Gone)
    }

    async fn send_news(&self, news: News) -> Result<(), Gone> {
        match news {
            News::Put(mirrored) => self.send_put(mirrored.revision, &mirrored).await,
            News::Deleted { kind, name, revision } => {
                let event = match kind {
                    Kind::Node => Event::NodeDeletedHostId(name),
                    Kind::Proxy => Event::ProxyDeletedHostId(name),
                    Kind::Role
                    | Kind::User
                    | Kind::Token
                    | Kind::Lock
                    | Kind::CertAuthority
                    | Kind::ClusterNetworkingConfig
                    | Kind::ClusterAuthPreference => return Ok(()),
                };
                self.send(revision, event).await
            }
        }
    }

    async fn send_put(&self, revision: wayleave_store::Revision, mirrored: &Mirrored) -> Result<(), Gone> {
        let event = match &mirrored.resource {
            Resource::Node(_) => Some(Event::NodePutJson(mirrored.resource.to_stored_json())),
            Resource::Proxy(_) => record_of_proxy(mirrored).map(Event::ProxyPut),
            _ => None,
        };
        match event {
            Some(event) => self.send(revision, event).await,
            None => Ok(()),
        }
    }

    async fn send_route_news(&self, news: RouteNews) -> Result<(), Gone> {
        match news {
            RouteNews::Changed(routes, revision) => {
                self.send(revision, Event::Routes(ProxyRoutes::clone(&routes))).await
            }
            RouteNews::LeaseLost(proxy, revision) => {
                self.send(revision, Event::RoutesLeaseLostProxyId(proxy.to_string())).await
            }
        }
    }

    /// The head; if the watcher holds an older policy, what changed or the whole of it, with the head.
    async fn send_policy(&self, sent: &mut PolicyRevision, now: Option<Arc<Published>>) -> Result<(), Gone> {
        let Some(now) = now else { return Ok(()) };
        let revision = self.core.mirror.revision();
        if now.revision > *sent {
            let held = std::mem::replace(sent, now.revision);
            if let Some(delta) = now.delta.as_ref().filter(|delta| delta.from == held) {
                return self.send(revision, Event::Delta(delta.wire.clone())).await;
            }
            return self.send(revision, Event::Snapshot(now.snapshot.clone())).await;
        }
        self.send(revision, Event::Head(now.head.clone())).await
    }

    async fn send(&self, revision: wayleave_store::Revision, event: Event) -> Result<(), Gone> {
        let revision = told_revision(self.core.generation, revision);
        let event = ClusterEvent { revision, event: Some(event) };
        match tokio::time::timeout(SLOW_WATCHER_DEADLINE, self.sender.send(Ok(event))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Gone),
            Err(_) => {
                tracing::warn!(host_id = %self.caller.host_id, "a watcher of the cluster is too slow and was dropped");
                Err(Gone)
            }
        }
    }
}

/// Watchers keep order by what they are told, also when the backend was restored and its own revisions began again:
/// they come behind the generation, which is a time of day in seconds.
fn told_revision(generation: u64, revision: wayleave_store::Revision) -> u64 {
    (generation << REVISION_BITS).saturating_add(revision.0)
}

fn networking(view: &PolicyView) -> Networking {
    let spec = &view.networking;
    Networking {
        tunnel_strategy_json: serde_json::to_string(&spec.tunnel_strategy)
            .expect("a strategy is a word and a number, which always serialise"),
        keep_alive_interval_ms: u64::try_from(spec.keep_alive_interval.0.as_millis()).unwrap_or(u64::MAX),
    }
}
