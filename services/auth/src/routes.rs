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
use wayleave_store::{Event, Item, Revision, StoreError, Watch, WatchError};
use wayleave_vocab::{HostId, Incarnation, Mono, Wall};

/// Most routes of one proxy.
pub(crate) const ROUTES_MAX: usize = 200_000;
/// How many changes a reader may be behind before it must start over.
const CHANGES_BEHIND_MAX: usize = 4096;
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long the agents of a proxy count as online when its lease was lost: the proxy may be well, and only Auth or the
/// network between them away.
const SUSPECT_FOR: Duration = Duration::from_secs(60);

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
    #[error("the update continues sequence {base}, the routes are at {at}")]
    Gap { base: u64, at: u64 },
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
            (false, before) => {
                let at = before.map_or(0, |b| b.sequence);
                if update.base > at {
                    return Err(RouteUpdateError::Gap { base: update.base, at });
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
            withdrawn: false,
        }
    }

    /// What changed since `before`.
    fn update_since(&self, before: Option<&Self>) -> RouteUpdate {
        let Some(before) =
            before.filter(|b| b.incarnation == self.incarnation && !b.incomplete && !self.incomplete)
        else {
            return self.snapshot();
        };
        let bytes = |id: &HostId| id.as_bytes().to_vec();
        RouteUpdate {
            incarnation: self.incarnation.0,
            sequence: self.sequence,
            base: before.sequence,
            added: self.hosts.difference(&before.hosts).map(bytes).collect(),
            removed: before.hosts.difference(&self.hosts).map(bytes).collect(),
            ..RouteUpdate::default()
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
    Changed(Arc<ProxyRoutes>, Revision),
    LeaseLost(HostId, Revision),
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
    /// What proxies published whose lease was lost, and until when it counts.
    suspect: BTreeMap<HostId, (HashSet<HostId>, Mono)>,
    /// The last change that was seen.
    revision: Revision,
    last_seen: HashMap<HostId, Wall>,
    proxies_last_seen: HashMap<HostId, Wall>,
}

impl State {
    fn tables(&self, now: Mono) -> impl Iterator<Item = &HashSet<HostId>> {
        let suspect = self.suspect.values().filter(move |(_, until)| now < *until).map(|(hosts, _)| hosts);
        self.proxies.values().map(|table| &table.hosts).chain(suspect)
    }
}

impl Routes {
    pub(crate) async fn load(records: &Records, clock: Arc<dyn Clock>) -> Result<(Self, Watch), StoreError> {
        let (proxies, watch) = read_all(records).await?;
        let state = State { proxies, revision: watch.revision(), ..State::default() };
        Ok((Self { state: Mutex::new(state), news: broadcast::channel(CHANGES_BEHIND_MAX).0, clock }, watch))
    }

    /// Everything as it is now, and the news of everything later.
    pub(crate) fn follow(&self) -> (Vec<ProxyRoutes>, Revision, broadcast::Receiver<RouteNews>) {
        let state = self.lock();
        let all = state
            .proxies
            .iter()
            .map(|(proxy, table)| ProxyRoutes { proxy_id: proxy.to_string(), update: Some(table.snapshot()) })
            .collect();
        (all, state.revision, self.news.subscribe())
    }

    /// True when some proxy holds a tunnel of the agent, or did when its lease was lost a moment ago.
    pub(crate) fn is_online(&self, host: HostId) -> bool {
        let now = self.clock.mono();
        self.lock().tables(now).any(|hosts| hosts.contains(&host))
    }

    /// All agents of which that is true.
    pub(crate) fn online(&self) -> HashSet<HostId> {
        let now = self.clock.mono();
        self.lock().tables(now).flatten().copied().collect()
    }

    /// Every agent with the proxies that hold its tunnels.
    pub(crate) fn holders(&self) -> HashMap<HostId, Vec<HostId>> {
        let mut holders: HashMap<HostId, Vec<HostId>> = HashMap::new();
        for (proxy, table) in &self.lock().proxies {
            table.hosts.iter().for_each(|agent| holders.entry(*agent).or_default().push(*proxy));
        }
        holders
    }

    /// How many proxies publish routes now.
    pub(crate) fn proxies_online(&self) -> usize {
        self.lock().proxies.len()
    }

    /// True when a proxy publishes routes now.
    pub(crate) fn proxy_is_online(&self, proxy: HostId) -> bool {
        self.lock().proxies.contains_key(&proxy)
    }

    /// True when this proxy holds a tunnel of the agent.
    pub(crate) fn holds(&self, proxy: HostId, host: HostId) -> bool {
        self.lock().proxies.get(&proxy).is_some_and(|table| table.hosts.contains(&host))
    }

    /// An agent has been heard of by another way than a route.
    pub(crate) fn note_seen(&self, host: HostId) {
        let now = self.clock.wall();
        self.lock().last_seen.insert(host, now);
    }

    /// When the agent last registered or had a route that has ended; none if neither since this Auth started.
    pub(crate) fn last_seen(&self, host: HostId) -> Option<Wall> {
        self.lock().last_seen.get(&host).copied()
    }

    /// When the proxy's lease ended last; none if it never did since this Auth started.
    pub(crate) fn proxy_seen(&self, proxy: HostId) -> Option<Wall> {
        self.lock().proxies_last_seen.get(&proxy).copied()
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
                    let revision = watch.revision();
                    gone.into_iter().for_each(|proxy| self.remove(proxy, revision));
                    proxies.into_iter().for_each(|(proxy, table)| self.put(proxy, table, revision));
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
                    self.put(proxy, table, item.revision);
                }
            }
            Event::Delete { revision, .. } => self.remove(proxy, *revision),
        }
    }

    fn put(&self, proxy: HostId, table: ProxyTable, revision: Revision) {
        let now = self.clock.wall();
        let mut state = self.lock();
        state.revision = state.revision.max(revision);
        let before = state.proxies.get(&proxy);
        if before == Some(&table) {
            return;
        }
        let update = table.update_since(before);
        let ended: Vec<HostId> =
            before.map(|b| b.hosts.difference(&table.hosts).copied().collect()).unwrap_or_default();
        state.last_seen.extend(ended.into_iter().map(|host| (host, now)));
        state.proxies.insert(proxy, table);
        state.suspect.remove(&proxy);
        let routes = ProxyRoutes { proxy_id: proxy.to_string(), update: Some(update) };
        // Nobody may be listening. Sent under the lock, so that followers see each change once.
        let _ = self.news.send(RouteNews::Changed(Arc::new(routes), revision));
    }

    fn remove(&self, proxy: HostId, revision: Revision) {
        let now = self.clock.wall();
        let mut state = self.lock();
        state.revision = state.revision.max(revision);
        let Some(table) = state.proxies.remove(&proxy) else { return };
        state.last_seen.extend(table.hosts.iter().map(|host| (*host, now)));
        let mono = self.clock.mono();
        state.suspect.retain(|_, (_, until)| mono < *until);
        state.suspect.insert(proxy, (table.hosts, mono.after(SUSPECT_FOR)));
        state.proxies_last_seen.insert(proxy, now);
        let _ = self.news.send(RouteNews::LeaseLost(proxy, revision));
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

    fn bytes(ids: &[u8]) -> Vec<Vec<u8>> {
        ids.iter().map(|n| id(*n).as_bytes().to_vec()).collect()
    }

    fn everything(sequence: u64, ids: &[u8]) -> RouteUpdate {
        RouteUpdate {
            incarnation: 1,
            sequence,
            snapshot: true,
            host_ids: bytes(ids),
            ..RouteUpdate::default()
        }
    }

    fn change(base: u64, sequence: u64, added: &[u8], removed: &[u8]) -> RouteUpdate {
        RouteUpdate {
            incarnation: 1,
            sequence,
            base,
            added: bytes(added),
            removed: bytes(removed),
            ..RouteUpdate::default()
        }
    }

    /// Auth stood still, the proxy did not: its lease ends, and it publishes again a moment later.
    #[test]
    fn a_lost_lease_takes_nobody_offline_at_once() {
        let clock = Arc::new(wayleave_runtime::ManualClock::new(Wall::from_secs(1_700_000_000)));
        let news = broadcast::channel(8).0;
        let routes = Routes { state: Mutex::default(), news, clock: clock.clone() };
        let table = |sequence, ids: &[u8]| ProxyTable::updated(None, &everything(sequence, ids)).unwrap();
        routes.put(id(9), table(1, &[1, 2]), Revision::default());
        routes.remove(id(9), Revision::default());
        assert!(routes.is_online(id(1)) && routes.online().len() == 2 && !routes.proxy_is_online(id(9)));
        routes.put(id(9), table(2, &[2]), Revision::default());
        assert!(!routes.is_online(id(1)) && routes.is_online(id(2)), "the proxy knows better");
        routes.remove(id(9), Revision::default());
        clock.advance(SUSPECT_FOR);
        assert!(!routes.is_online(id(2)) && routes.online().is_empty());
    }

    #[test]
    fn updates_apply_in_order_and_only_in_order() {
        let first = ProxyTable::updated(None, &everything(1, &[1, 2])).unwrap();
        let second = ProxyTable::updated(Some(&first), &change(1, 5, &[3], &[1])).unwrap();
        assert_eq!(second.hosts, [id(2), id(3)].into());
        let wrong = |before, update: &RouteUpdate| ProxyTable::updated(before, update).unwrap_err();
        assert_eq!(wrong(None, &change(1, 2, &[1], &[])), RouteUpdateError::Gap { base: 1, at: 0 });
        assert_eq!(wrong(Some(&first), &change(3, 4, &[1], &[])), RouteUpdateError::Gap { base: 3, at: 1 });
        assert_eq!(wrong(Some(&second), &everything(5, &[1])), RouteUpdateError::Backwards);
        let short = RouteUpdate { host_ids: vec![vec![1; 15]], ..everything(9, &[]) };
        assert_eq!(wrong(None, &short), RouteUpdateError::Id);
    }

    #[test]
    fn everything_anew_in_parts_is_complete_with_the_last_one() {
        let part = RouteUpdate { incomplete: true, ..change(0, 1, &[1, 2], &[]) };
        let first = ProxyTable::updated(None, &part).unwrap();
        assert!(first.incomplete);
        let last = ProxyTable::updated(Some(&first), &change(1, 2, &[3], &[])).unwrap();
        assert!(!last.incomplete);
        assert_eq!(last.hosts, [id(1), id(2), id(3)].into());
    }

    #[test]
    fn a_change_in_one_life_is_handed_on_as_one() {
        let first = ProxyTable::updated(None, &everything(1, &[1, 2])).unwrap();
        let second = ProxyTable::updated(Some(&first), &change(1, 7, &[3], &[1])).unwrap();
        let delta = second.update_since(Some(&first));
        assert!(!delta.snapshot);
        assert_eq!(ProxyTable::updated(Some(&first), &delta).unwrap(), second);
        assert!(second.update_since(None).snapshot);
        let newer = ProxyTable { incarnation: Incarnation(2), ..second.clone() };
        assert!(newer.update_since(Some(&second)).snapshot);
    }
}
