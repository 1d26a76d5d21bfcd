//! Routes of proxies: which agents each proxy holds a tunnel of, in memory, and the news of every change.
//!
//! A proxy's routes are one entry in the backend under the proxy's lease (`route_publisher.rs` writes it); this table
//! follows those entries. It hands on changes as deltas where the sequence allows, otherwise whole. What a route is
//! worth (suspect, dead) is decided by the proxies.

use crate::keys;
use crate::records::Records;
use prost::Message;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;
use wayleave_api::auth::{ProxyRoutes, RouteUpdate};
use wayleave_runtime::{Clock, Shutdown};
use wayleave_store::{Event, Item, StoreError, Watch, WatchError};
use wayleave_vocab::{HostId, Incarnation, Wall};

/// Most routes of one proxy.
pub(crate) const ROUTES_MAX: usize = 200_000;
/// How many changes a reader may be behind before it must start over.
const CHANGES_BEHIND_MAX: usize = 4096;
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The routes of one proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProxyTable {
    pub(crate) incarnation: Incarnation,
    pub(crate) sequence: u64,
    pub(crate) hosts: HashSet<HostId>,
    /// The proxy is still writing everything anew: readers may add these to what they know, not replace it.
    pub(crate) incomplete: bool,
}

/// An update that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouteUpdateError {
    #[error("an id in the update is not 16 bytes")]
    Id,
    #[error("more than {ROUTES_MAX} routes")]
    TooMany,
    #[error("the update is a change from sequence {expected}, the routes are at {at}")]
    Gap { expected: u64, at: u64 },
    #[error("the update begins with a change: send everything first")]
    NoSnapshot,
    #[error("the sequence or incarnation goes back")]
    Backwards,
}

impl ProxyTable {
    /// The table after an update; `before` is what the updates so far made.
    pub(crate) fn updated(before: Option<&Self>, update: &RouteUpdate) -> Result<Self, RouteUpdateError> {
        let incarnation = Incarnation(update.incarnation);
        if before.is_some_and(|b| (b.incarnation, b.sequence) >= (incarnation, update.sequence)) {
            return Err(RouteUpdateError::Backwards);
        }
        let before = before.filter(|b| b.incarnation == incarnation);
        let hosts = match (update.snapshot, before) {
            (true, _) => ids(&update.host_ids)?.collect(),
            (false, None) if update.base > 0 => return Err(RouteUpdateError::NoSnapshot),
            (false, before) => {
                let at = before.map_or(0, |b| b.sequence);
                if update.base > at {
                    return Err(RouteUpdateError::Gap { expected: update.base, at });
                }
                let mut hosts = before.map(|b| b.hosts.clone()).unwrap_or_default();
                for removed in ids(&update.removed)? {
                    hosts.remove(&removed);
                }
                hosts.extend(ids(&update.added)?);
                hosts
            }
        };
        if hosts.len() > ROUTES_MAX {
            return Err(RouteUpdateError::TooMany);
        }
        Ok(Self { incarnation, sequence: update.sequence, hosts, incomplete: update.incomplete })
    }

    /// Everything, as an update and as the stored form.
    pub(crate) fn snapshot(&self) -> RouteUpdate {
        let hosts = self.hosts.iter().map(|id| id.as_bytes().to_vec()).collect();
        let (host_ids, added) = if self.incomplete { (Vec::new(), hosts) } else { (hosts, Vec::new()) };
        RouteUpdate {
            incarnation: self.incarnation.0,
            sequence: self.sequence,
            snapshot: !self.incomplete,
            host_ids,
            added,
            removed: Vec::new(),
            base: 0,
            incomplete: self.incomplete,
        }
    }

    /// What changed since `before`.
    fn update_since(&self, before: Option<&Self>) -> RouteUpdate {
        let Some(before) = before.filter(|b| b.incarnation == self.incarnation && !b.incomplete && !self.incomplete)
        else {
            return self.snapshot();
        };
        let bytes = |id: &HostId| id.as_bytes().to_vec();
        RouteUpdate {
            incarnation: self.incarnation.0,
            sequence: self.sequence,
            snapshot: false,
            host_ids: Vec::new(),
            added: self.hosts.difference(&before.hosts).map(bytes).collect(),
            removed: before.hosts.difference(&self.hosts).map(bytes).collect(),
            base: before.sequence,
            incomplete: false,
        }
    }
}

fn ids(list: &[Vec<u8>]) -> Result<impl Iterator<Item = HostId>, RouteUpdateError> {
    if list.len() > ROUTES_MAX {
        return Err(RouteUpdateError::TooMany);
    }
    let ids: Option<Vec<HostId>> =
        list.iter().map(|id| <[u8; 16]>::try_from(id.as_slice()).ok().map(raw_id)).collect();
    ids.map(Vec::into_iter).ok_or(RouteUpdateError::Id)
}

/// The id with exactly these bytes: ids are version 4 already, so reading them as random keeps every bit.
fn raw_id(bytes: [u8; 16]) -> HostId {
    HostId::from_random(bytes)
}

/// What happened to the routes of one proxy.
#[derive(Debug, Clone)]
pub(crate) enum RouteNews {
    Changed(Arc<ProxyRoutes>),
    LeaseLost(HostId),
}

/// The routes of all proxies.
pub(crate) struct Routes {
    state: Mutex<State>,
    news: broadcast::Sender<RouteNews>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct State {
    proxies: BTreeMap<HostId, ProxyTable>,
    last_seen: HashMap<HostId, Wall>,
}

impl Routes {
    pub(crate) async fn load(
        records: &Records,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Watch), StoreError> {
        let (proxies, watch) = read_all(records).await?;
        let state = State { proxies, last_seen: HashMap::new() };
        Ok((Self { state: Mutex::new(state), news: broadcast::channel(CHANGES_BEHIND_MAX).0, clock }, watch))
    }

    /// Everything as it is now, and the news of everything later.
    pub(crate) fn follow(&self) -> (Vec<ProxyRoutes>, broadcast::Receiver<RouteNews>) {
        let state = self.lock();
        let all = state
            .proxies
            .iter()
            .map(|(proxy, table)| ProxyRoutes {
                proxy_id: proxy.to_string(),
                update: Some(table.snapshot()),
            })
            .collect();
        (all, self.news.subscribe())
    }

    /// True when some proxy holds a tunnel of the agent.
    pub(crate) fn is_online(&self, host: HostId) -> bool {
        self.lock().proxies.values().any(|table| table.hosts.contains(&host))
    }

    /// All agents that some proxy holds a tunnel of.
    pub(crate) fn online(&self) -> HashSet<HostId> {
        self.lock().proxies.values().flat_map(|table| table.hosts.iter().copied()).collect()
    }

    /// True when a proxy publishes routes now.
    pub(crate) fn proxy_is_online(&self, proxy: HostId) -> bool {
        self.lock().proxies.contains_key(&proxy)
    }

    /// When the agent last had a route that has ended; none if it never had one since this Auth started.
    pub(crate) fn last_seen(&self, host: HostId) -> Option<Wall> {
        self.lock().last_seen.get(&host).copied()
    }

    /// Forgets what is known of an agent that was removed.
    pub(crate) fn forget(&self, host: HostId) {
        self.lock().last_seen.remove(&host);
    }

    /// Follows the backend until shutdown.
    pub(crate) async fn run(self: Arc<Self>, records: Records, mut watch: Watch, shutdown: Shutdown) {
        while let Some(next) = shutdown.until(watch.next()).await {
            match next {
                Ok(change) => change.events.iter().for_each(|event| self.apply(event)),
                Err(WatchError::Closed) => return,
                Err(error) => {
                    tracing::debug!(%error, "the watch of routes broke, reading them again");
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
            match read_all(records).await {
                Ok((proxies, watch)) => {
                    let gone: Vec<HostId> = {
                        let state = self.lock();
                        state.proxies.keys().filter(|id| !proxies.contains_key(id)).copied().collect()
                    };
                    gone.into_iter().for_each(|proxy| self.remove(proxy));
                    proxies.into_iter().for_each(|(proxy, table)| self.put(proxy, table));
                    return watch;
                }
                Err(error) => {
                    tracing::warn!(%error, "the backend cannot be read");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    fn apply(&self, event: &Event) {
        let Ok(proxy) = event.key().name().parse::<HostId>() else { return };
        match event {
            Event::Put(item) => {
                if let Some(table) = parse(item) {
                    self.put(proxy, table);
                }
            }
            Event::Delete { .. } => self.remove(proxy),
        }
    }

    fn put(&self, proxy: HostId, table: ProxyTable) {
        let now = self.clock.wall();
        let mut state = self.lock();
        let before = state.proxies.get(&proxy);
        if before == Some(&table) {
            return;
        }
        let update = table.update_since(before);
        let ended: Vec<HostId> =
            before.map(|b| b.hosts.difference(&table.hosts).copied().collect()).unwrap_or_default();
        state.last_seen.extend(ended.into_iter().map(|host| (host, now)));
        state.proxies.insert(proxy, table);
        let routes = ProxyRoutes { proxy_id: proxy.to_string(), update: Some(update) };
        // Nobody may be listening. Sent under the lock, so that followers see each change once.
        let _ = self.news.send(RouteNews::Changed(Arc::new(routes)));
    }

    fn remove(&self, proxy: HostId) {
        let now = self.clock.wall();
        let mut state = self.lock();
        let Some(table) = state.proxies.remove(&proxy) else { return };
        state.last_seen.extend(table.hosts.into_iter().map(|host| (host, now)));
        let _ = self.news.send(RouteNews::LeaseLost(proxy));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read_all(records: &Records) -> Result<(BTreeMap<HostId, ProxyTable>, Watch), StoreError> {
    let (items, revision) = records.items(&keys::routes()).await?;
    let watch = records.backend().watch(&keys::routes(), Some(revision)).await?;
    let tables =
        items.iter().filter_map(|item| Some((item.key.name().parse().ok()?, parse(item)?))).collect();
    Ok((tables, watch))
}

pub(crate) fn parse(item: &Item) -> Option<ProxyTable> {
    let update = RouteUpdate::decode(&*item.value).ok()?;
    ProxyTable::updated(None, &update).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> HostId {
        HostId::from_random([n; 16])
    }

    fn update(sequence: u64, snapshot: bool, ids: &[u8], removed: &[u8]) -> RouteUpdate {
        let bytes = |ids: &[u8]| ids.iter().map(|n| id(*n).as_bytes().to_vec()).collect::<Vec<_>>();
        RouteUpdate {
            incarnation: 1,
            sequence,
            snapshot,
            host_ids: if snapshot { bytes(ids) } else { Vec::new() },
            added: if snapshot { Vec::new() } else { bytes(ids) },
            removed: bytes(removed),
            base: if snapshot { 0 } else { sequence - 1 },
            incomplete: false,
        }
    }

    #[test]
    fn updates_apply_in_order_and_only_in_order() {
        let first = ProxyTable::updated(None, &update(1, true, &[1, 2], &[])).unwrap();
        let second = ProxyTable::updated(Some(&first), &update(2, false, &[3], &[1])).unwrap();
        assert_eq!(second.hosts, [id(2), id(3)].into());
        let wrong = |before, update: &RouteUpdate| ProxyTable::updated(before, update).unwrap_err();
        assert_eq!(wrong(None, &update(2, false, &[1], &[])), RouteUpdateError::NoSnapshot);
        assert_eq!(wrong(Some(&first), &update(3, false, &[1], &[])), RouteUpdateError::Gap { expected: 2, at: 1 });
        assert_eq!(wrong(Some(&second), &update(2, true, &[1], &[])), RouteUpdateError::Backwards);
        let short = RouteUpdate { host_ids: vec![vec![1; 15]], ..update(5, true, &[], &[]) };
        assert_eq!(wrong(None, &short), RouteUpdateError::Id);
    }

    #[test]
    fn a_change_of_one_step_is_handed_on_as_one() {
        let first = ProxyTable::updated(None, &update(1, true, &[1, 2], &[])).unwrap();
        let second = ProxyTable::updated(Some(&first), &update(2, false, &[3], &[1])).unwrap();
        let delta = second.update_since(Some(&first));
        assert!(!delta.snapshot);
        assert_eq!(ProxyTable::updated(Some(&first), &delta).unwrap(), second);
        assert!(second.update_since(None).snapshot);
    }
}
