//! What the agent knows about the cluster's proxies.

use std::collections::BTreeMap;
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

/// All proxies of the cluster at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyList {
    /// Orders lists; the same on every proxy for the same list (the backend's revision).
    pub revision: u64,
    /// The proxies, in any order.
    pub proxies: Vec<ProxyInfo>,
}

/// A list that cannot be used; the former one stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyListError {
    /// Over [`PROXIES_MAX`].
    #[error("a list of {0} proxies, at most {PROXIES_MAX}")]
    TooLong(usize),
}

#[derive(Debug, Default)]
pub(crate) struct Proxies {
    revision: Option<u64>,
    known: BTreeMap<HostId, ProxyInfo>,
}

impl Proxies {
    /// True when a list has ever come.
    pub(crate) fn is_known(&self) -> bool {
        self.revision.is_some()
    }

    pub(crate) fn get(&self, id: HostId) -> Option<&ProxyInfo> {
        self.known.get(&id)
    }

    /// Those that are not leaving, in order of id.
    pub(crate) fn live(&self) -> impl Iterator<Item = &ProxyInfo> {
        self.known.values().filter(|proxy| !proxy.draining)
    }

    /// Takes a list; false when it is older than the present one and `is_kept` says that the present
    /// one is being kept up to date by a tunnel.
    pub(crate) fn replace(&mut self, list: ProxyList, is_kept: bool) -> Result<bool, ProxyListError> {
        if list.proxies.len() > PROXIES_MAX {
            return Err(ProxyListError::TooLong(list.proxies.len()));
        }
        if is_kept && self.revision.is_some_and(|revision| list.revision < revision) {
            return Ok(false);
        }
        self.revision = Some(list.revision);
        let former = std::mem::take(&mut self.known);
        for mut proxy in list.proxies {
            if let Some(old) = former.get(&proxy.id)
                && old.incarnation > proxy.incarnation
            {
                // A dial has shown a newer life than the list knows.
                proxy.incarnation = old.incarnation;
                proxy.draining = old.draining;
            }
            self.known.insert(proxy.id, proxy);
        }
        Ok(true)
    }

    /// A tunnel leads to this life of the proxy: the list may be behind.
    pub(crate) fn saw(&mut self, id: HostId, incarnation: Incarnation) {
        if let Some(proxy) = self.known.get_mut(&id)
            && proxy.incarnation < incarnation
        {
            proxy.incarnation = incarnation;
            proxy.draining = false;
        }
    }

    /// The tunnel's end is leaving or has been followed by a newer life.
    pub(crate) fn is_leaving(&self, id: HostId, incarnation: Incarnation) -> bool {
        self.get(id).is_some_and(|proxy| {
            proxy.incarnation > incarnation || proxy.incarnation == incarnation && proxy.draining
        })
    }
}
