//! A user's watch of resources: everything of some kinds that he may read, then every change.

use crate::auth_core::AuthCore;
use crate::connection::Identity;
use crate::mirror::News;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tonic::Status;
use wayleave_api::auth::resource_event::Event;
use wayleave_api::auth::{InitialStateSent, ResourceEvent, ResourceRef};
use wayleave_identity::UserPrincipal;
use wayleave_resource::{AdminVerb, Kind, Resource, RuleTarget};
use wayleave_runtime::Shutdown;

/// Events that wait for a watcher.
const WAITING_MAX: usize = 64;
/// How long a watcher may leave a full queue unread.
const SLOW_WATCHER_DEADLINE: Duration = Duration::from_secs(30);
/// How often it is looked whether the caller may still watch.
const REVIEW_INTERVAL: Duration = Duration::from_secs(5);

/// The events of one watch.
pub(crate) type ResourceEvents = mpsc::Receiver<Result<ResourceEvent, Status>>;

/// One watch.
pub(crate) struct ResourceWatch {
    core: Arc<AuthCore>,
    caller: UserPrincipal,
    kinds: Vec<Kind>,
    sender: mpsc::Sender<Result<ResourceEvent, Status>>,
}

/// The watcher is gone, too slow, or may watch no more.
struct Gone;

impl ResourceWatch {
    pub(crate) fn new(
        core: Arc<AuthCore>,
        caller: UserPrincipal,
        kinds: Vec<Kind>,
    ) -> (Self, ResourceEvents) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Self { core, caller, kinds, sender }, receiver)
    }

    /// Sends until the watcher goes, is too slow, may watch no more, or shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let watching = async {
            if self.watch().await.is_err() {
                tracing::debug!(user = %self.caller.name, "a watch of resources ended");
            }
        };
        let _ = shutdown.until(watching).await;
    }

    async fn watch(&self) -> Result<(), Gone> {
        let (resources, _, mut news) = self.core.mirror.follow(&self.kinds);
        for mirrored in &resources {
            if self.may_read(&mirrored.resource)? {
                self.send(Event::PutJson(mirrored.shown().to_json())).await?;
            }
        }
        self.send(Event::InitialStateSent(InitialStateSent {})).await?;
        let mut review = tokio::time::interval(REVIEW_INTERVAL);
        loop {
            tokio::select! {
                () = self.sender.closed() => return Err(Gone),
                _ = review.tick() => { self.current()?; }
                next = news.recv() => match next {
                    Ok(next) if self.kinds.contains(&next.kind()) => self.send_news(next).await?,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => {
                        let _ = self.sender.try_send(Err(Status::aborted("the watch is too slow: start over")));
                        return Err(Gone);
                    }
                    Err(RecvError::Closed) => return Err(Gone),
                },
            }
        }
    }

    async fn send_news(&self, news: News) -> Result<(), Gone> {
        match news {
            News::Put(mirrored) => {
                if self.may_read(&mirrored.resource)? {
                    return self.send(Event::PutJson(mirrored.shown().to_json())).await;
                }
                // It may have become unreadable just now.
                let (kind, name) = (mirrored.resource.kind(), mirrored.resource.name());
                self.send_deleted(kind, name.to_string()).await
            }
            News::Deleted { kind, name, .. } => self.send_deleted(kind, name).await,
        }
    }

    async fn send_deleted(&self, kind: Kind, name: String) -> Result<(), Gone> {
        self.send(Event::Deleted(ResourceRef { kind: kind.to_string(), name })).await
    }

    /// The caller as he is now; the watch ends when he may call no more.
    fn current(&self) -> Result<UserPrincipal, Gone> {
        match self.core.current(&Identity::User(self.caller.clone())) {
            Ok(Identity::User(user)) => Ok(user),
            Ok(Identity::Host(_) | Identity::Stranger) => Err(Gone),
            Err(error) => {
                let _ = self.sender.try_send(Err(error.into()));
                Err(Gone)
            }
        }
    }

    fn may_read(&self, resource: &Resource) -> Result<bool, Gone> {
        let user = self.current()?;
        let (view, now) = (self.core.mirror.policy(), self.core.clock.wall());
        let target = RuleTarget::Kind(resource.kind());
        let may = |verb| view.decide(&user, verb, &target, Some(resource), now).is_ok();
        Ok(may(AdminVerb::Read) || may(AdminVerb::ReadNoSecrets))
    }

    async fn send(&self, event: Event) -> Result<(), Gone> {
        let event = ResourceEvent { event: Some(event) };
        match tokio::time::timeout(SLOW_WATCHER_DEADLINE, self.sender.send(Ok(event))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }
}
