//! What the agent knows about the cluster's proxies.

use crate::effect::TunnelId;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use wayleave_vocab::{HostId, HostPort, Incarnation};

/// Most proxies in a list.
pub const PROXIES_MAX: usize = 1000;
/// Longest zone name in bytes.
pub const ZONE_BYTES_MAX: usize = 64;

/// Where a proxy stands; tunnels are spread over zones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Zone(String);

impl Zone {
    /// A zone name; none when it is empty or longer than [`ZONE_BYTES_MAX`].
    pub fn parse(name: &str) -> Option<Self> {
        (!name.is_empty() && name.len() <= ZONE_BYTES_MAX).then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One proxy, as the cluster lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyInfo {
    /// Its host id.
    pub id: HostId,
    /// Its present life.
    pub incarnation: Incarnation,
    /// An address that leads to this proxy and no other, if it has one.
    pub address: Option<HostPort>,
    /// Where it stands, if it says so.
    pub zone: Option<Zone>,
    /// It is leaving.
    pub draining: bool,
}

impl ProxyInfo {
    /// Grows over the lives of a proxy, and within one as it leaves.
    fn life(&self) -> (Incarnation, bool) {
        (self.incarnation, self.draining)
    }
}

/// All proxies of the cluster at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyList {
    /// Orders lists (the backend's revision). Nothing is believed for its sake: a proxy may say any number.
    pub revision: u64,
    /// The proxies, in any order.
    pub proxies: Vec<ProxyInfo>,
}

impl ProxyList {
    fn bounded(self) -> Result<Self, ProxyListError> {
        if self.proxies.len() > PROXIES_MAX {
            return Err(ProxyListError::TooLong(self.proxies.len()));
        }
        Ok(self)
    }
}

/// A list that cannot be used; the former one stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyListError {
    /// Over [`PROXIES_MAX`].
    #[error("a list of {0} proxies, at most {PROXIES_MAX}")]
    TooLong(usize),
}

/// What is believed of the proxies. Auth's own list is; what proxies tell of each other only until Auth has answered,
/// and afterwards it is a reason to ask Auth again. What a tunnel's own proxy says of itself counts at once.
#[derive(Debug, Default)]
pub(crate) struct Proxies {
    /// The revision of Auth's last list.
    answered: Option<u64>,
    known: BTreeMap<HostId, ProxyInfo>,
    /// The life that a tunnel has shown, and whether the proxy itself has said that it leaves.
    seen: BTreeMap<HostId, (Incarnation, bool)>,
    /// What the proxies of these tunnels tell, as long as Auth has not answered.
    told: BTreeMap<TunnelId, ProxyList>,
}

impl Proxies {
    /// True when a list has ever come.
    pub(crate) fn is_known(&self) -> bool {
        self.answered.is_some() || !self.told.is_empty()
    }

    pub(crate) fn get(&self, id: HostId) -> Option<&ProxyInfo> {
        self.known.get(&id)
    }

    /// Those that are not leaving, in order of id.
    pub(crate) fn live(&self) -> impl Iterator<Item = &ProxyInfo> {
        self.known.values().filter(|proxy| !proxy.draining)
    }

    /// Takes Auth's list. True when it says something new.
    pub(crate) fn replace(&mut self, list: ProxyList) -> Result<bool, ProxyListError> {
        let list = list.bounded()?;
        let is_news = self.answered.is_none() || self.differs(&list);
        self.answered = Some(list.revision);
        self.told.clear();
        self.know(list.proxies);
        Ok(is_news)
    }

    /// Takes what the proxy of a tunnel tells. True when Auth should be asked whether it is so.
    pub(crate) fn hear(&mut self, tunnel: TunnelId, list: ProxyList) -> Result<bool, ProxyListError> {
        let list = list.bounded()?;
        match self.answered {
            Some(revision) => Ok(list.revision > revision && self.differs(&list)),
            None => {
                self.told.insert(tunnel, list);
                self.know_told();
                Ok(false)
            }
        }
    }

    /// The tunnel has ended; the last word of all is kept.
    pub(crate) fn forget(&mut self, tunnel: TunnelId) {
        if self.told.len() > 1 && self.told.remove(&tunnel).is_some() {
            self.know_told();
        }
    }

    fn know_told(&mut self) {
        let mut all: BTreeMap<HostId, ProxyInfo> = BTreeMap::new();
        for proxy in self.told.values().flat_map(|list| &list.proxies) {
            match all.entry(proxy.id) {
                Entry::Vacant(entry) => {
                    entry.insert(proxy.clone());
                }
                Entry::Occupied(mut entry) => {
                    // Nobody can talk another one away.
                    let known = entry.get_mut();
                    known.incarnation = known.incarnation.max(proxy.incarnation);
                    known.draining &= proxy.draining;
                    known.address = known.address.take().or_else(|| proxy.address.clone());
                }
            }
        }
        self.know(all.into_values().collect());
    }

    fn know(&mut self, proxies: Vec<ProxyInfo>) {
        self.known = proxies.into_iter().map(|proxy| (proxy.id, proxy)).collect();
        let known = &self.known;
        self.seen.retain(|id, _| known.contains_key(id));
        for id in self.seen.keys().copied().collect::<Vec<_>>() {
            self.apply_seen(id);
        }
    }

    /// A proxy's own word of itself may be ahead of every list.
    fn apply_seen(&mut self, id: HostId) {
        if let Some(seen) = self.seen.get(&id).copied()
            && let Some(proxy) = self.known.get_mut(&id)
            && seen > proxy.life()
        {
            (proxy.incarnation, proxy.draining) = seen;
        }
    }

    fn see(&mut self, id: HostId, life: (Incarnation, bool)) {
        let seen = self.seen.entry(id).or_insert(life);
        *seen = life.max(*seen);
        self.apply_seen(id);
    }

    /// The list says something that is not known. That a proxy which is there has begun a new life is nothing: whoever
    /// dials it learns that from itself.
    fn differs(&self, list: &ProxyList) -> bool {
        let is_new = |proxy: &ProxyInfo| {
            self.known.get(&proxy.id).is_none_or(|known| {
                known.address != proxy.address
                    || known.zone != proxy.zone
                    || (known.life() < proxy.life() && known.draining != proxy.draining)
            })
        };
        self.known.len() != list.proxies.len() || list.proxies.iter().any(is_new)
    }

    /// A tunnel leads to this life of the proxy: the list may be behind.
    pub(crate) fn saw(&mut self, id: HostId, incarnation: Incarnation) {
        self.see(id, (incarnation, false));
    }

    /// The proxy has said of itself that this life of it leaves.
    pub(crate) fn leaves(&mut self, id: HostId, incarnation: Incarnation) {
        self.see(id, (incarnation, true));
    }

    /// The tunnel's end is leaving or has been followed by a newer life. What other proxies tell does not suffice.
    pub(crate) fn is_leaving(&self, id: HostId, incarnation: Incarnation) -> bool {
        self.answered.is_some() && self.get(id).is_some_and(|proxy| proxy.life() > (incarnation, false))
    }
}
