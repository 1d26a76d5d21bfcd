//! Who holds the slots of a listener. While a connection has not shown whose it is, it is a stranger, and when all slots
//! are taken, or as many as strangers may have, it gives way: first where one address holds the most, and there the oldest.
//!
//! So whoever fills a listener with silent connections loses those, and a client that says who it is in time gets through.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wayleave_runtime::Shutdown;

/// How long a stranger keeps its slot whatever happens: an honest client needs less.
const STRANGER_KEEPS: Duration = Duration::from_secs(1);
/// Connections that were refused are logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Who has one IPv6 address has the whole /64.
const IPV6_NETWORK: u128 = u128::MAX << 64;

/// How many connections a listener serves at a time.
#[derive(Debug, Clone, Copy)]
pub struct Slots {
    /// All of them.
    pub connections_max: usize,
    /// Those that have not shown whose they are.
    pub strangers_max: usize,
}

/// The slots of one listener, or of anything else that strangers come to. Clones share them.
#[derive(Clone)]
pub struct Lobby(Arc<Shared>);

struct Shared {
    what: &'static str,
    slots: Slots,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    count: usize,
    stranger_count: usize,
    next_id: u64,
    /// By network, in order of arrival.
    strangers: HashMap<IpAddr, BTreeMap<u64, Stranger>>,
    shed: u64,
    logged_at: Option<Instant>,
}

struct Stranger {
    since: Instant,
    evicted: Shutdown,
}

/// One connection's slot. Clones share it; it is free again when the last one is dropped.
#[derive(Clone)]
pub struct Admission(Arc<Slot>);

struct Slot {
    lobby: Lobby,
    network: IpAddr,
    id: u64,
    evicted: Shutdown,
}

impl Lobby {
    /// `what` is for the log.
    pub fn new(what: &'static str, slots: Slots) -> Self {
        Self(Arc::new(Shared { what, slots, taken: Mutex::default() }))
    }

    /// A slot for a connection from `address`; none when all are taken and no stranger gives way.
    pub fn admit(&self, address: IpAddr, now: Instant) -> Option<Admission> {
        let network = network_of(address);
        let mut taken = self.lock();
        let Slots { connections_max, strangers_max } = self.0.slots;
        if taken.count >= connections_max || taken.stranger_count >= strangers_max {
            let evicted = taken.evict(now);
            taken.log(self.0.what, connections_max.min(strangers_max), now);
            if !evicted {
                return None;
            }
        }
        taken.count += 1;
        taken.next_id += 1;
        let (id, evicted) = (taken.next_id, Shutdown::new());
        let stranger = Stranger { since: now, evicted: evicted.clone() };
        taken.strangers.entry(network).or_default().insert(id, stranger);
        taken.stranger_count += 1;
        drop(taken);
        Some(Admission(Arc::new(Slot { lobby: self.clone(), network, id, evicted })))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn evict(&mut self, now: Instant) -> bool {
        let waited = |stranger: &Stranger| now.saturating_duration_since(stranger.since) >= STRANGER_KEEPS;
        let oldest = |strangers: &BTreeMap<u64, Stranger>| {
            strangers.first_key_value().filter(|(_, stranger)| waited(stranger)).map(|(id, _)| *id)
        };
        let found = self
            .strangers
            .iter()
            .filter_map(|(network, strangers)| Some((strangers.len(), *network, oldest(strangers)?)))
            .max_by_key(|(count, _, _)| *count);
        let Some((_, network, id)) = found else { return false };
        if let Some(stranger) = self.forget(network, id) {
            stranger.evicted.request();
        }
        true
    }

    /// Takes a connection off the list of strangers.
    fn forget(&mut self, network: IpAddr, id: u64) -> Option<Stranger> {
        let strangers = self.strangers.get_mut(&network)?;
        let stranger = strangers.remove(&id);
        self.stranger_count = self.stranger_count.saturating_sub(usize::from(stranger.is_some()));
        if strangers.is_empty() {
            self.strangers.remove(&network);
        }
        stranger
    }

    fn log(&mut self, what: &'static str, slots: usize, now: Instant) {
        self.shed += 1;
        if self.logged_at.is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL) {
            return;
        }
        tracing::warn!(what, slots, shed = self.shed, "too many connections: some were closed");
        self.logged_at = Some(now);
        self.shed = 0;
    }
}

impl Admission {
    /// The other side has shown whose it is: this connection does not give way any more.
    pub fn known(&self) {
        self.0.lobby.lock().forget(self.0.network, self.0.id);
    }

    /// Requested when the connection must give way.
    pub fn evicted(&self) -> Shutdown {
        self.0.evicted.clone()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.lobby.lock();
        taken.count = taken.count.saturating_sub(1);
        taken.forget(self.network, self.id);
    }
}

fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & IPV6_NETWORK)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn slots(connections_max: usize) -> Slots {
        Slots { connections_max, strangers_max: connections_max }
    }

    fn is_evicted(admission: &Admission) -> bool {
        admission.evicted().is_requested()
    }

    #[test]
    fn a_strangers_give_way_where_most_are_and_the_known_stay() {
        let (lobby, start) = (Lobby::new("test", slots(4)), Instant::now());
        let known = lobby.admit(address("192.0.2.1"), start).unwrap();
        known.known();
        let alone = lobby.admit(address("192.0.2.2"), start).unwrap();
        let first = lobby.admit(address("2001:db8::1"), start).unwrap();
        let second = lobby.admit(address("2001:db8::2"), start).unwrap();
        assert!(lobby.admit(address("192.0.2.9"), start).is_none(), "all are too new to give way");
        let later = start + STRANGER_KEEPS;
        let new = lobby.admit(address("192.0.2.9"), later).unwrap();
        assert!(is_evicted(&first), "one network holds two");
        for stays in [&known, &alone, &second, &new] {
            assert!(!is_evicted(stays));
        }
    }

    #[test]
    fn a_slots_are_free_again() {
        let (lobby, now) = (Lobby::new("test", slots(2)), Instant::now());
        for _ in 0..10 {
            let one = lobby.admit(address("192.0.2.1"), now).unwrap();
            let other = lobby.admit(address("192.0.2.1"), now).unwrap();
            assert!(lobby.admit(address("192.0.2.1"), now).is_none());
            one.known();
            drop((one, other.clone()));
            assert!(lobby.lock().count == 1, "a clone holds the slot");
        }
        assert_eq!(lobby.lock().count, 0);
        assert!(lobby.lock().strangers.is_empty());
    }

    #[test]
    fn a_strangers_have_fewer_slots_and_the_known_need_none_of_them() {
        let slots = Slots { connections_max: 100, strangers_max: 2 };
        let (lobby, start) = (Lobby::new("test", slots), Instant::now());
        let later = start + STRANGER_KEEPS;
        let known = lobby.admit(address("192.0.2.1"), start).unwrap();
        known.known();
        let first = lobby.admit(address("192.0.2.1"), start).unwrap();
        let second = lobby.admit(address("192.0.2.1"), start).unwrap();
        assert!(lobby.admit(address("192.0.2.2"), start).is_none());
        let third = lobby.admit(address("192.0.2.2"), later).unwrap();
        assert!(is_evicted(&first));
        third.known();
        let _fourth = lobby.admit(address("192.0.2.2"), later).unwrap();
        assert!(![&known, &second, &third].into_iter().any(is_evicted));
    }

    #[test]
    fn a_listener_full_of_known_connections_refuses() {
        let (lobby, now) = (Lobby::new("test", slots(1)), Instant::now());
        let held = lobby.admit(address("192.0.2.1"), now).unwrap();
        held.known();
        assert!(lobby.admit(address("192.0.2.2"), now + Duration::from_secs(60)).is_none());
        assert!(!is_evicted(&held));
    }
}
