//! How many connections there may be, and how many of them may be strangers': all together, and of one address.

use crate::connection::Identity;
use crate::rate_limit::network;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One address has at most this part of the strangers' slots, so that no single one shuts out everybody.
const ADDRESS_SHARE: usize = 4;

/// The slots of a listener.
#[derive(Clone)]
pub(crate) struct Slots {
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    of_one_address_max: usize,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// The slots of one connection; the stranger's slot is given back once there is a certificate.
pub(crate) struct Taken {
    _all: OwnedSemaphorePermit,
    stranger: Option<Stranger>,
}

struct Stranger {
    _slot: OwnedSemaphorePermit,
    share: Option<Share>,
    slots: Slots,
}

/// One of the slots of an address. The machine itself has no share: whoever is on the Auth host needs none.
struct Share {
    address: IpAddr,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// The address has its share already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShareTaken;

impl Slots {
    pub(crate) fn new(connections_max: usize, strangers_max: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))),
            strangers: Arc::new(Semaphore::new(strangers_max.min(Semaphore::MAX_PERMITS))),
            of_one_address_max: strangers_max.div_ceil(ADDRESS_SHARE).max(1),
            by_address: Arc::default(),
        }
    }

    /// Slots for a connection from an address; absent: there are none.
    pub(crate) fn take(&self, address: IpAddr) -> Option<Taken> {
        let all = self.all.clone().try_acquire_owned().ok()?;
        let slot = self.strangers.clone().try_acquire_owned().ok()?;
        let share = self.share(address).ok()?;
        Some(Taken { _all: all, stranger: Some(Stranger { _slot: slot, share, slots: self.clone() }) })
    }

    fn share(&self, address: IpAddr) -> Result<Option<Share>, ShareTaken> {
        if address.to_canonical().is_loopback() {
            return Ok(None);
        }
        let address = network(address);
        let mut counts = lock(&self.by_address);
        let count = counts.entry(address).or_default();
        if *count >= self.of_one_address_max {
            return Err(ShareTaken);
        }
        *count = count.saturating_add(1);
        Ok(Some(Share { address, by_address: self.by_address.clone() }))
    }
}

impl Taken {
    /// The connection turned out to be a client's that a proxy forwards.
    ///
    /// # Errors
    /// When the client's address has its share already.
    pub(crate) fn belongs_to(&mut self, client: IpAddr) -> Result<(), ShareTaken> {
        if let Some(stranger) = &mut self.stranger {
            let share = stranger.slots.share(client)?;
            stranger.share = share;
        }
        Ok(())
    }

    /// Gives the stranger's slot back if it is none.
    pub(crate) fn end_if_known(&mut self, identity: &Identity) {
        match identity {
            Identity::Stranger => {}
            Identity::User(_) | Identity::Host(_) => self.stranger = None,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = lock(&self.by_address);
        if let Some(count) = counts.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

fn lock(counts: &Mutex<HashMap<IpAddr, usize>>) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_one_address_does_not_take_every_slot() {
        let slots = Slots::new(100, 8);
        let held: Vec<Taken> = (0..8).filter_map(|_| slots.take(ip("192.0.2.1"))).collect();
        assert_eq!(held.len(), 2);
        let other = slots.take(ip("192.0.2.2")).unwrap();
        drop(held);
        assert!(slots.take(ip("192.0.2.1")).is_some());
        drop(other);
        assert!(lock(&slots.by_address).is_empty());
    }

    #[test]
    fn a_forwarded_clients_count_by_their_own_address() {
        let slots = Slots::new(100, 8);
        let mut held = Vec::new();
        for client in ["198.51.100.1", "198.51.100.1", "198.51.100.2", "198.51.100.3"] {
            let mut taken = slots.take(ip("192.0.2.1")).unwrap();
            taken.belongs_to(ip(client)).unwrap();
            held.push(taken);
        }
        let mut taken = slots.take(ip("192.0.2.1")).unwrap();
        assert_eq!(taken.belongs_to(ip("198.51.100.1")), Err(ShareTaken));
        // The same customer of an IPv6 provider.
        let v6 = Slots::new(100, 4);
        let _first = v6.take(ip("2001:db8::1")).unwrap();
        assert!(v6.take(ip("2001:db8::2")).is_none());
        assert!(v6.take(ip("2001:db8:0:1::2")).is_some());
    }

    #[test]
    fn a_the_machine_itself_has_no_share() {
        let slots = Slots::new(100, 4);
        let held: Vec<Taken> = (0..6).filter_map(|_| slots.take(ip("127.0.0.1"))).collect();
        assert_eq!(held.len(), 4);
        let v6: Vec<Taken> = (0..6).filter_map(|_| slots.take(ip("::1"))).collect();
        assert!(v6.is_empty());
    }
}
