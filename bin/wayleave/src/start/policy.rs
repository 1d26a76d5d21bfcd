//! The verified policy of this process, in the shape that each service wants.

use super::Process;
use super::instance::OpenedInstance;
use super::running::Keeper;
use anyhow::Context;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wayleave_adapter_ssh::{PolicySource, PolicyView};
use wayleave_ca::{CaType, Snapshot, trusted};
use wayleave_keystore::PolicyKeeper;
use wayleave_policy::{LockSet, Policy, Settings};
use wayleave_runtime::{Clock, TaskGroup};
use wayleave_vocab::Wall;

/// Opens what was believed before, and takes what came with joining.
pub(crate) fn open_keeper(process: &Process, opened: &OpenedInstance) -> anyhow::Result<Keeper> {
    let instance = &opened.instance;
    let keeper = PolicyKeeper::open(
        instance.directory().clone(),
        instance.cluster().clone(),
        instance.policy_keys().to_vec(),
        instance.trust().clone(),
    )
    .context("the policy that was verified before cannot be read")?;
    if let Some(snapshot) = instance.take_joined_snapshot()
        && let Some(head) = &snapshot.head
    {
        let now = process.clock.wall();
        keeper.accept_successions(snapshot.links());
        keeper
            .accept_snapshot(&snapshot.payload, &head.payload, &head.signature, now)
            .context("the policy that came with joining is refused")?;
    }
    Ok(Arc::new(keeper))
}

/// The policy, compiled at every change.
#[derive(Clone)]
pub(crate) struct PolicyViews {
    keeper: Keeper,
    views: watch::Sender<Option<Arc<PolicyView>>>,
}

impl PolicyViews {
    /// Follows the keeper with a task of `helpers`.
    pub(crate) fn start(keeper: Keeper, helpers: &TaskGroup) -> Arc<Self> {
        let mut snapshots = keeper.watch();
        let first = snapshots.borrow_and_update().as_ref().map(|s| Arc::new(compile(s)));
        let this = Arc::new(Self { keeper, views: watch::Sender::new(first) });
        let (views, shutdown) = (this.views.clone(), helpers.shutdown());
        let following: BoxFuture<'static, ()> = Box::pin(async move {
            while let Some(Ok(())) = shutdown.until(snapshots.changed()).await {
                let compiled = snapshots.borrow_and_update().as_ref().map(|s| Arc::new(compile(s)));
                views.send_replace(compiled);
            }
        });
        helpers.spawn("policy", following);
        this
    }
}

/// A snapshot in the shape that SSH decides by.
fn compile(snapshot: &Snapshot) -> PolicyView {
    let parts = snapshot.parts();
    let settings = Settings::new(&parts.auth_preference.spec, &parts.networking.spec);
    let policy = Policy::new(parts.cluster.clone(), settings, &parts.roles)
        .with_broken_roles(snapshot.unreadable_roles().iter().cloned())
        .with_withdrawn_roles(parts.withdrawn.iter().cloned().map(|w| (w.user, w.role, w.until)));
    let keys_of = |ca_type| {
        let authorities = parts.cas.iter().filter(move |authority| authority.spec.ca_type == ca_type);
        let keys = authorities.flat_map(|authority| trusted(&authority.spec));
        keys.filter_map(|keys| keys.ssh_public_key.as_deref())
    };
    PolicyView::new(parts.revision, keys_of(CaType::User), policy, LockSet::new(&parts.locks))
        .with_host_authorities(keys_of(CaType::Host))
}

impl PolicySource for PolicyViews {
    fn views(&self) -> watch::Receiver<Option<Arc<PolicyView>>> {
        self.views.subscribe()
    }

    fn locks_age(&self, now: Wall) -> Duration {
        self.keeper.age(now).unwrap_or(Duration::MAX)
    }
}
