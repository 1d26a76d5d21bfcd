//! Several addresses of one thing: which is tried first, which is tried beside it, and what was learned from that.

use crate::connect::ConnectError;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use wayleave_runtime::random_u64;
use wayleave_vocab::HostPort;

/// How long one address may be silent before the next one is tried beside it.
pub const CONNECT_STAGGER: Duration = Duration::from_millis(300);
/// Most addresses that are kept beside the configured ones.
pub const LEARNED_ADDRESSES_MAX: usize = 64;

/// The addresses at which one thing is reached: those that were configured, and those that were learned since. Clones
/// share what is known.
///
/// The one that answered last comes first and one that failed comes last, so nobody waits for the same dead address twice.
/// Configured addresses are never forgotten.
#[derive(Debug, Clone)]
pub struct AddressBook {
    state: Arc<Mutex<State>>,
    learned: Arc<watch::Sender<Vec<HostPort>>>,
}

#[derive(Debug)]
struct State {
    configured: BTreeSet<HostPort>,
    /// All of them, in the order in which they are tried.
    order: Vec<HostPort>,
}

impl AddressBook {
    /// The configured addresses, in the order in which they are tried first.
    pub fn new(configured: Vec<HostPort>) -> Self {
        let mut seen = BTreeSet::new();
        let order: Vec<HostPort> = configured.into_iter().filter(|each| seen.insert(each.clone())).collect();
        let state = State { configured: seen, order };
        Self { state: Arc::new(Mutex::new(state)), learned: Arc::new(watch::Sender::default()) }
    }

    /// Takes what is known now in place of what was learned before, at most [`LEARNED_ADDRESSES_MAX`] of them. Nothing
    /// is forgotten for an empty list.
    ///
    /// New ones get random places, so that not everybody turns to the same one.
    pub fn learn(&self, addresses: impl IntoIterator<Item = HostPort>) {
        let mut state = self.lock();
        let known: BTreeSet<HostPort> =
            addresses.into_iter().filter(|each| !state.configured.contains(each)).collect();
        if known.is_empty() {
            return;
        }
        let (mut kept, mut fresh): (Vec<_>, Vec<_>) =
            known.into_iter().partition(|each| state.order.contains(each));
        kept.truncate(LEARNED_ADDRESSES_MAX);
        while fresh.len() > LEARNED_ADDRESSES_MAX - kept.len() {
            fresh.swap_remove(below(fresh.len()));
        }
        let State { configured, order } = &mut *state;
        order.retain(|each| configured.contains(each) || kept.contains(each));
        let behind = configured.len().min(order.len());
        for each in &fresh {
            let place = behind + below(order.len() - behind + 1);
            order.insert(place, each.clone());
        }
        drop(state);
        kept.extend(fresh);
        kept.sort_unstable();
        self.learned.send_if_modified(|before| {
            let has_changed = *before != kept;
            *before = kept;
            has_changed
        });
    }

    /// What was learned, now and later, in order of the addresses.
    pub fn learned(&self) -> watch::Receiver<Vec<HostPort>> {
        self.learned.subscribe()
    }

    /// True if somebody wrote the address down; false if it was learned.
    pub fn is_configured(&self, address: &HostPort) -> bool {
        self.lock().configured.contains(address)
    }

    /// All addresses, in the order in which they are tried.
    pub fn in_order(&self) -> Vec<HostPort> {
        self.lock().order.clone()
    }

    /// Connects by `connect` to whichever address answers first, and remembers which did and which did not.
    ///
    /// # Errors
    /// That of the address that was given up last.
    pub async fn connect<T, F>(&self, connect: impl Fn(HostPort) -> F) -> Result<T, ConnectError>
    where
        F: Future<Output = Result<T, ConnectError>>,
    {
        let attempt = move |address: HostPort| {
            let (book, connecting) = (self, connect(address.clone()));
            async move {
                let connected = connecting.await;
                if connected.is_err() {
                    book.move_last(&address);
                }
                connected
            }
        };
        let (address, stream) = connect_first(&self.in_order(), attempt).await?;
        self.move_first(&address);
        Ok(stream)
    }

    fn move_first(&self, address: &HostPort) {
        let order = &mut self.lock().order;
        if let Some(place) = order.iter().position(|each| each == address) {
            order[..=place].rotate_right(1);
        }
    }

    fn move_last(&self, address: &HostPort) {
        let order = &mut self.lock().order;
        if let Some(place) = order.iter().position(|each| each == address) {
            order[place..].rotate_left(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number below `bound`, which is above 0.
fn below(bound: usize) -> usize {
    let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
    usize::try_from(random_u64() % bound).unwrap_or_default()
}

/// Connects to the first of several addresses that answers. One that is silent for [`CONNECT_STAGGER`] is joined by the
/// next; one that fails is followed by the next at once.
///
/// # Errors
/// That of the address that was given up last; [`ConnectError::NoAddress`] without any.
pub async fn connect_first<T, F>(
    addresses: &[HostPort],
    connect: impl Fn(HostPort) -> F,
) -> Result<(HostPort, T), ConnectError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let mut waiting = addresses.iter();
    let start = |address: &HostPort| {
        let (address, connecting) = (address.clone(), connect(address.clone()));
        async move { (address, connecting.await) }
    };
    let mut running: FuturesUnordered<_> = waiting.next().map(start).into_iter().collect();
    let mut last = ConnectError::NoAddress;
    loop {
        let is_more = waiting.len() > 0;
        tokio::select! {
            biased;
            Some((address, connected)) = running.next() => match connected {
                Ok(stream) => return Ok((address, stream)),
                Err(error) => {
                    tracing::debug!(%address, error = &error as &dyn std::error::Error, "an address did not answer");
                    last = error;
                    running.extend(waiting.next().map(start));
                }
            },
            () = tokio::time::sleep(CONNECT_STAGGER), if is_more => running.extend(waiting.next().map(start)),
            else => return Err(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use tokio::time::Instant;

    fn address(port: u16) -> HostPort {
        HostPort::from_socket(([127, 0, 0, 1], port).into())
    }

    fn addresses(ports: &[u16]) -> Vec<HostPort> {
        ports.iter().copied().map(address).collect()
    }

    fn ports(book: &AddressBook) -> Vec<u16> {
        book.in_order().iter().map(HostPort::port).collect()
    }

    /// Ports below 10 are silent, those below 20 are closed, the others answer with their number.
    async fn dial(address: HostPort) -> Result<u16, ConnectError> {
        match address.port() {
            0..10 => std::future::pending().await,
            10..20 => Err(ConnectError::Tcp { address, source: io::ErrorKind::ConnectionRefused.into() }),
            port => Ok(port),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn g_what_is_dead_or_silent_costs_moments_once() {
        let book = AddressBook::new(addresses(&[1, 11, 2, 21, 22]));
        let began = Instant::now();
        assert_eq!(book.connect(dial).await.unwrap(), 21);
        assert_eq!(began.elapsed(), CONNECT_STAGGER * 2);
        assert_eq!(ports(&book), [21, 1, 2, 22, 11]);
        let began = Instant::now();
        assert_eq!(book.connect(dial).await.unwrap(), 21);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn every_address_is_tried_before_there_is_none() {
        let book = AddressBook::new(addresses(&[11, 12]));
        assert!(matches!(book.connect(dial).await, Err(ConnectError::Tcp { .. })));
        assert!(matches!(AddressBook::new(Vec::new()).connect(dial).await, Err(ConnectError::NoAddress)));
        book.learn(addresses(&[12, 21, 21]));
        assert_eq!(book.connect(dial).await.unwrap(), 21);
        assert_eq!(ports(&book)[0], 21);
    }

    #[test]
    fn what_was_learned_is_replaced_and_what_was_configured_stays() {
        let book = AddressBook::new(addresses(&[1, 2, 1]));
        let mut learned = book.learned();
        book.learn(addresses(&[3, 4, 2]));
        assert_eq!(*learned.borrow_and_update(), addresses(&[3, 4]));
        book.learn(Vec::new());
        book.learn(addresses(&[4, 3]));
        assert!(!learned.has_changed().unwrap());
        book.learn(addresses(&[5]));
        assert_eq!(ports(&book), [1, 2, 5]);
        assert_eq!(*learned.borrow_and_update(), addresses(&[5]));
    }

    #[test]
    fn g_a_proxy_cannot_make_an_agent_learn_without_end_or_forget_what_was_configured() {
        let book = AddressBook::new(addresses(&[1]));
        for round in 0..10 {
            book.learn((0..5000).map(|port| address(1000 + round * 5000 + port)));
            assert_eq!(book.in_order().len(), 1 + LEARNED_ADDRESSES_MAX);
            assert_eq!(book.in_order()[0], address(1));
        }
    }
}
