//! All resources of the cluster in memory, following the backend, and the news of every change.
//!
//! Decisions read here and cost no backend read. Whoever has just written waits until the mirror has seen the write
//! ([`Mirror::seen`]), so that an answered write is in force. The mirror is never written but by its own task.

use crate::keys;
use crate::policy_view::PolicyView;
use crate::records::Records;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use wayleave_resource::{Kind, Resource, WithdrawnRole};
use wayleave_runtime::Shutdown;
use wayleave_store::{Change, Event, Item, Key, Revision, StoreError, Watch, WatchError};
use wayleave_vocab::ClusterName;

/// How many changes a reader may be behind before it must start over.
const CHANGES_BEHIND_MAX: usize = 4096;
/// How long a writer waits for the mirror; then it answers all the same.
const SEEN_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after the backend did not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// A resource with the revision that wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mirrored {
    pub(crate) resource: Resource,
    pub(crate) revision: Revision,
}

impl Mirrored {
    /// The resource with its revision in the metadata, as callers see it.
    pub(crate) fn shown(&self) -> Resource {
        let mut resource = self.resource.clone();
        resource.metadata_mut().revision = Some(self.revision.to_string());
        resource
    }
}

/// What happened to one resource.
#[derive(Debug, Clone)]
pub(crate) enum News {
    Put(Arc<Mirrored>),
    Deleted { kind: Kind, name: String, revision: Revision },
}

impl News {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Put(mirrored) => mirrored.resource.kind(),
            Self::Deleted { kind, .. } => *kind,
        }
    }
}

type Resources = BTreeMap<(Kind, String), Arc<Mirrored>>;

/// The mirror.
pub(crate) struct Mirror {
    resources: Mutex<Resources>,
    news: broadcast::Sender<News>,
    revision: watch::Sender<Revision>,
    /// Compiled anew whenever something that it is made of has changed.
    policy: watch::Sender<Arc<PolicyView>>,
    cluster: ClusterName,
}

impl Mirror {
    /// Reads everything, and the watch that goes on from there.
    pub(crate) async fn load(records: &Records, cluster: ClusterName) -> Result<(Self, Watch), StoreError> {
        let (resources, revision) = read_all(records).await?;
        let watch = records.backend().watch(&keys::resources(), Some(revision)).await?;
        let policy = compile(&cluster, &resources);
        let mirror = Self {
            resources: Mutex::new(resources),
            news: broadcast::channel(CHANGES_BEHIND_MAX).0,
            revision: watch::channel(revision).0,
            policy: watch::channel(policy).0,
            cluster,
        };
        Ok((mirror, watch))
    }

    /// One resource.
    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<Arc<Mirrored>> {
        self.lock().get(&(kind, name.to_owned())).cloned()
    }

    /// How many there are of a kind.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.lock().keys().filter(|(other, _)| *other == kind).count()
    }

    /// All of a kind, by name.
    pub(crate) fn all(&self, kind: Kind) -> Vec<Arc<Mirrored>> {
        of_kind(&self.lock(), kind)
    }

    /// All of some kinds as they are now, and the news of everything later.
    /// With them comes the revision at which the state is the one that is answered.
    pub(crate) fn follow(&self, kinds: &[Kind]) -> (Vec<Arc<Mirrored>>, Revision, broadcast::Receiver<News>) {
        let resources = self.lock();
        let news = self.news.subscribe();
        (kinds.iter().flat_map(|kind| of_kind(&resources, *kind)).collect(), self.revision(), news)
    }

    /// The revision of the last change that was seen.
    pub(crate) fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// The policy as it is now.
    pub(crate) fn policy(&self) -> Arc<PolicyView> {
        self.policy.borrow().clone()
    }

    /// Tells of every change of the policy.
    pub(crate) fn policy_changes(&self) -> watch::Receiver<Arc<PolicyView>> {
        self.policy.subscribe()
    }

    /// Waits until the mirror holds the changes up to `revision`. Only for revisions that changed a resource.
    pub(crate) async fn seen(&self, revision: Revision) {
        let mut at = self.revision.subscribe();
        let reached = tokio::time::timeout(SEEN_DEADLINE, at.wait_for(|now| *now >= revision)).await;
        if reached.is_err() {
            tracing::warn!(%revision, "the mirror of the backend lags behind");
        }
    }

    /// Follows the backend until shutdown.
    pub(crate) async fn run(self: Arc<Self>, records: Records, mut watch: Watch, shutdown: Shutdown) {
        while let Some(next) = shutdown.until(watch.next()).await {
            match next {
                Ok(change) => self.apply(&change),
                Err(WatchError::Closed) => return,
                Err(error) => {
                    tracing::debug!(%error, "the watch of resources broke, reading them again");
                    match shutdown.until(self.reload(&records)).await {
                        Some(again) => watch = again,
                        None => return,
                    }
                }
            }
        }
    }

    async fn reload(&self, records: &Records) -> Watch {
        loop {
            let read = async {
                let (resources, revision) = read_all(records).await?;
                let watch = records.backend().watch(&keys::resources(), Some(revision)).await?;
                Ok::<_, StoreError>((resources, revision, watch))
            };
            match read.await {
                Ok((resources, revision, watch)) => {
                    self.replace(resources, revision);
                    return watch;
                }
                Err(error) => {
                    tracing::warn!(%error, "the backend cannot be read");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    fn replace(&self, fresh: Resources, revision: Revision) {
        let mut news = Vec::new();
        let mut resources = self.lock();
        for (kind, name) in resources.keys().filter(|key| !fresh.contains_key(*key)) {
            news.push(News::Deleted { kind: *kind, name: name.clone(), revision });
        }
        for (key, mirrored) in &fresh {
            if resources.get(key) != Some(mirrored) {
                news.push(News::Put(mirrored.clone()));
            }
        }
        *resources = fresh;
        let is_withdrawing = news.iter().any(|news| news.kind() == Kind::User);
        self.publish(&resources, news, is_withdrawing, revision);
    }

    fn apply(&self, change: &Change) {
        let mut resources = self.lock();
        let (mut news, mut is_withdrawing) = (Vec::new(), false);
        for event in &change.events {
            match event {
                Event::Put(item) => {
                    let Some(mirrored) = parse(item).map(Arc::new) else { continue };
                    let key = (mirrored.resource.kind(), item.key.name().to_owned());
                    let before = resources.insert(key, mirrored.clone());
                    is_withdrawing |= withdrawn(before.as_deref()) != withdrawn(Some(&mirrored));
                    news.push(News::Put(mirrored));
                }
                Event::Delete { key, .. } => {
                    let Some((kind, name)) = split(key) else { continue };
                    let before = resources.remove(&(kind, name.clone()));
                    is_withdrawing |= !withdrawn(before.as_deref()).is_empty();
                    news.push(News::Deleted { kind, name, revision: change.revision });
                }
            }
        }
        self.publish(&resources, news, is_withdrawing, change.revision);
    }

    /// The caller holds the lock, so that followers see each change once.
    fn publish(&self, resources: &Resources, news: Vec<News>, is_withdrawing: bool, revision: Revision) {
        let policy = is_withdrawing || news.iter().any(|news| makes_policy(news.kind()));
        for news in news {
            // Nobody may be listening.
            let _ = self.news.send(news);
        }
        if policy {
            self.policy.send_replace(compile(&self.cluster, resources));
        }
        self.revision.send_replace(revision);
    }

    fn lock(&self) -> MutexGuard<'_, Resources> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// True for the kinds that signed snapshots are made of.
fn makes_policy(kind: Kind) -> bool {
    match kind {
        Kind::Role
        | Kind::Lock
        | Kind::ClusterNetworkingConfig
        | Kind::ClusterAuthPreference
        | Kind::CertAuthority => true,
        Kind::User | Kind::Token | Kind::Node | Kind::Proxy => false,
    }
}

/// Of users, snapshots name the roles that were taken away.
fn withdrawn(mirrored: Option<&Mirrored>) -> &[WithdrawnRole] {
    match mirrored.map(|mirrored| &mirrored.resource) {
        Some(Resource::User(user)) => &user.status.withdrawn_roles,
        _ => &[],
    }
}

fn compile(cluster: &ClusterName, resources: &Resources) -> Arc<PolicyView> {
    PolicyView::compile(cluster, resources.values().map(|mirrored| &mirrored.resource))
}

fn of_kind(resources: &Resources, kind: Kind) -> Vec<Arc<Mirrored>> {
    resources
        .range((kind, String::new())..)
        .take_while(|((found, _), _)| *found == kind)
        .map(|(_, mirrored)| mirrored.clone())
        .collect()
}

async fn read_all(records: &Records) -> Result<(Resources, Revision), StoreError> {
    let (items, revision) = records.items(&keys::resources()).await?;
    let resources = items
        .iter()
        .filter_map(|item| {
            let mirrored = parse(item)?;
            Some(((mirrored.resource.kind(), item.key.name().to_owned()), Arc::new(mirrored)))
        })
        .collect();
    Ok((resources, revision))
}

/// A stored resource. One that cannot be read (written by a newer release, or damaged) grants nothing; somebody must look
/// at it, because a lock that is left out locks nobody.
fn parse(item: &Item) -> Option<Mirrored> {
    let text = std::str::from_utf8(&item.value).ok()?;
    match Resource::parse_json(text) {
        Ok(resource) => Some(Mirrored { resource, revision: item.revision }),
        Err(error) => {
            tracing::error!(key = %item.key, %error, "a stored resource cannot be read and is left out");
            None
        }
    }
}

fn split(key: &Key) -> Option<(Kind, String)> {
    let (family, name) = key.as_str().rsplit_once('/')?;
    let kind = family.rsplit('/').next()?;
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some((kind, name.to_owned()))
}
