//! Routes of proxies: which agents each proxy holds a tunnel of, in memory, and the news of every change.
//!
//! A proxy's routes lie in the backend under the proxy's lease (`route_log.rs` says how, `route_publisher.rs` writes
//! them); this table follows them. It hands on changes as deltas where the sequence allows, otherwise whole. What a route
//! is worth (suspect, dead) is decided by the proxies.

use crate::keys::{self, RoutesEntry};
use crate::records::Records;
use crate::route_log::{Continuation, continues, replay};
use crate::route_table::{ProxyTable, ids, stored_update};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;
use wayleave_api::auth::{ProxyRoutes, RouteUpdate};
use wayleave_runtime::{Clock, Shutdown};
use wayleave_store::{Event, Item, Revision, StoreError, Watch, WatchError};
use wayleave_vocab::{HostId, Mono, Wall};

/// How many changes a reader may be behind before it must start over.
const CHANGES_BEHIND_MAX: usize = 4096;
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long the agents of a proxy count as online when its lease was lost: the proxy may be well, and only Auth or the
/// network between them away.
const SUSPECT_FOR: Duration = Duration::from_secs(60);

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
            let broken = match next {
                Ok(change) => change.events.iter().find_map(|event| self.apply(event).err()),
                Err(WatchError::Closed) => return,
                Err(error) => Some(error.to_string()),
            };
            if let Some(reason) = broken {
                tracing::debug!(reason, "the watch of routes broke, reading them again");
                match shutdown.until(self.reload(&records)).await {
                    Some(again) => watch = again,
                    None => return,
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

    /// Fails with the reason when something is missing between what is known and this.
    fn apply(&self, event: &Event) -> Result<(), String> {
        let Some((proxy, entry)) = keys::parse_routes(event.key()) else { return Ok(()) };
        match (event, entry) {
            (Event::Put(item), RoutesEntry::Everything) => {
                let table = stored_update(item).and_then(|update| ProxyTable::new(&update).ok());
                self.put(proxy, table.ok_or_else(|| damaged(item))?, item.revision);
            }
            (Event::Put(item), RoutesEntry::Change) => {
                let change = stored_update(item).ok_or_else(|| damaged(item))?;
                self.change(proxy, change, item.revision)?;
            }
            (Event::Delete { revision, .. }, RoutesEntry::Everything) => self.remove(proxy, *revision),
            // They go when their lease does, after the entry that they continue or with it.
            (Event::Delete { .. }, RoutesEntry::Change) => {}
        }
        Ok(())
    }

    fn put(&self, proxy: HostId, table: ProxyTable, revision: Revision) {
        let now = self.clock.wall();
        let mut state = self.lock();
        state.revision = state.revision.max(revision);
        let before = state.proxies.get(&proxy);
        // A list that was read in pages is newer than where its watch begins.
        let standing = |table: &ProxyTable| (table.incarnation, table.sequence);
        if before.is_some_and(|before| standing(before) >= standing(&table)) {
            return;
        }
        let update = table.update_since(before);
        let ended: Vec<HostId> =
            before.map(|b| b.hosts.difference(&table.hosts).copied().collect()).unwrap_or_default();
        state.last_seen.extend(ended.into_iter().map(|host| (host, now)));
        state.proxies.insert(proxy, table);
        state.suspect.remove(&proxy);
        self.tell(proxy, update, revision);
    }

    fn change(&self, proxy: HostId, change: RouteUpdate, revision: Revision) -> Result<(), String> {
        let now = self.clock.wall();
        let mut state = self.lock();
        state.revision = state.revision.max(revision);
        // A change that outlives its proxy's routes means nothing.
        let Some(table) = state.proxies.get_mut(&proxy) else { return Ok(()) };
        match continues(table, &change) {
            Continuation::Next => table.update(&change).map_err(|error| error.to_string())?,
            Continuation::Old => return Ok(()),
            Continuation::Gap => return Err(format!("a change of the routes of {proxy} is missing")),
        }
        let removed = ids(&change.removed).map_err(|error| error.to_string())?;
        state.last_seen.extend(removed.map(|host| (host, now)));
        self.tell(proxy, change, revision);
        Ok(())
    }

    /// Nobody may be listening. Called under the lock, so that followers see each change once.
    fn tell(&self, proxy: HostId, update: RouteUpdate, revision: Revision) {
        let routes = ProxyRoutes { proxy_id: proxy.to_string(), update: Some(update) };
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

fn damaged(item: &Item) -> String {
    format!("the entry {} is damaged", item.key)
}

async fn read_all(records: &Records) -> Result<(BTreeMap<HostId, ProxyTable>, Watch), StoreError> {
    let (items, revision) = records.items(&keys::routes()).await?;
    let watch = records.backend().watch(&keys::routes(), Some(revision)).await?;
    let mut entries: BTreeMap<HostId, (Option<Item>, Vec<Item>)> = BTreeMap::new();
    for item in items {
        match keys::parse_routes(&item.key) {
            Some((proxy, RoutesEntry::Everything)) => entries.entry(proxy).or_default().0 = Some(item),
            Some((proxy, RoutesEntry::Change)) => entries.entry(proxy).or_default().1.push(item),
            None => {}
        }
    }
    let tables = entries
        .into_iter()
        .filter_map(|(proxy, (everything, changes))| Some((proxy, replay(&everything?, &changes)?)));
    Ok((tables.collect(), watch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route_table::tests::{change, everything, id, table};
    use prost::Message;
    use wayleave_store::Key;

    fn routes() -> (Routes, Arc<wayleave_runtime::ManualClock>) {
        let clock = Arc::new(wayleave_runtime::ManualClock::new(Wall::from_secs(1_700_000_000)));
        let news = broadcast::channel(8).0;
        (Routes { state: Mutex::default(), news, clock: clock.clone() }, clock)
    }

    fn put(key: Key, update: &RouteUpdate, revision: u64) -> Event {
        let value = update.encode_to_vec().into();
        Event::Put(Item { key, value, revision: Revision(revision), lease: None })
    }

    /// Auth stood still, the proxy did not: its lease ends, and it publishes again a moment later.
    #[test]
    fn a_lost_lease_takes_nobody_offline_at_once() {
        let (routes, clock) = routes();
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
    fn changes_are_followed_handed_on_and_missed_when_missing() {
        let (routes, _) = routes();
        let (whole, at) = (keys::routes_of(id(9)), |n| keys::routes_change(id(9), n));
        let mut news = routes.follow().2;
        routes.apply(&put(at(0), &change(1, 2, &[3], &[]), 1)).unwrap();
        assert!(!routes.is_online(id(3)), "a change of nothing");
        routes.apply(&put(whole.clone(), &everything(1, &[1]), 2)).unwrap();
        routes.apply(&put(at(0), &change(1, 2, &[2], &[1]), 3)).unwrap();
        assert!(routes.is_online(id(2)) && !routes.is_online(id(1)));
        assert!(routes.last_seen(id(1)).is_some());
        let mut told = Vec::new();
        while let Ok(RouteNews::Changed(routes, revision)) = news.try_recv() {
            told.push((routes.update.clone().unwrap().sequence, revision.0));
        }
        assert_eq!(told, [(1, 2), (2, 3)]);
        routes.apply(&put(whole.clone(), &everything(1, &[1]), 2)).unwrap();
        assert!(routes.is_online(id(2)), "what is older changes nothing");
        routes.apply(&put(at(1), &change(3, 4, &[4], &[]), 4)).unwrap_err();
        routes.apply(&Event::Delete { key: at(0), revision: Revision(5) }).unwrap();
        assert!(routes.is_online(id(2)));
        routes.apply(&Event::Delete { key: whole, revision: Revision(6) }).unwrap();
        assert!(!routes.proxy_is_online(id(9)));
    }
}
