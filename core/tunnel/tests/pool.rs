//! The pool in the situations that agents meet.
#![expect(clippy::unwrap_used, reason = "a test")]

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;
use wayleave_tunnel::{
    CloseReason, Config, Connected, DialFailure, Effect, PROXIES_MAX, Pool, ProxyInfo, ProxyList,
    ProxyListError, TunnelId, Zone,
};
use wayleave_vocab::{HostId, HostPort, Incarnation, Mono, TunnelStrategy};

const MESH: TunnelStrategy = TunnelStrategy::AgentMesh;

fn peering(count: u16) -> TunnelStrategy {
    TunnelStrategy::ProxyPeering { agent_connection_count: NonZeroU16::new(count).unwrap() }
}

fn proxy(n: u8) -> HostId {
    HostId::from_random([n; 16])
}

fn shared_address() -> HostPort {
    "proxies.example.com:443".parse().unwrap()
}

/// A proxy with an address of its own, in zone `a` or `b` by its number's parity.
fn direct(n: u8) -> ProxyInfo {
    ProxyInfo {
        id: proxy(n),
        incarnation: Incarnation(1),
        address: Some(format!("10.0.0.{n}:443").parse().unwrap()),
        zone: Zone::parse(if n.is_multiple_of(2) { "a" } else { "b" }),
        draining: false,
    }
}

fn hidden(n: u8) -> ProxyInfo {
    ProxyInfo { address: None, ..direct(n) }
}

#[derive(Debug, Clone)]
struct Dial {
    id: TunnelId,
    wanted: Option<HostId>,
    avoid: Vec<Connected>,
}

struct Rig {
    pool: Pool,
    now: Mono,
    revision: u64,
    dials: Vec<Dial>,
    closes: Vec<(TunnelId, CloseReason)>,
    abandoned: Vec<TunnelId>,
    published: Vec<Vec<Connected>>,
    tunnels: BTreeMap<TunnelId, HostId>,
    questions: usize,
}

impl Rig {
    fn unasked() -> Self {
        let pool = Pool::new(Config::default(), vec![shared_address()], 42, Mono::ZERO);
        let mut rig = Self {
            pool,
            now: Mono::ZERO,
            revision: 0,
            dials: Vec::new(),
            closes: Vec::new(),
            abandoned: Vec::new(),
            published: Vec::new(),
            tunnels: BTreeMap::new(),
            questions: 0,
        };
        rig.take();
        rig
    }

    fn new(strategy: TunnelStrategy) -> Self {
        let mut rig = Self::unasked();
        rig.strategy(strategy);
        rig.take();
        rig
    }

    fn take(&mut self) {
        while let Some(effect) = self.pool.poll_effect() {
            match effect {
                Effect::AskAuth { .. } => self.questions += 1,
                Effect::Dial { id, wanted, avoid, .. } => self.dials.push(Dial { id, wanted, avoid }),
                Effect::Abandon { id } => self.abandoned.push(id),
                Effect::Close { id, reason } => self.closes.push((id, reason)),
                Effect::Publish { connected } => self.published.push(connected),
            }
        }
    }

    fn strategy(&mut self, strategy: TunnelStrategy) {
        self.pool.handle_strategy(strategy, self.now);
    }

    /// Auth answers.
    fn list(&mut self, proxies: Vec<ProxyInfo>) {
        self.revision += 1;
        self.pool.handle_answer(ProxyList { revision: self.revision, proxies }, self.now).unwrap();
        self.take();
    }

    /// The proxy of a tunnel tells what it likes, as the newest that there can be.
    fn told(&mut self, by: TunnelId, proxies: Vec<ProxyInfo>) {
        self.pool.handle_proxies(by, ProxyList { revision: u64::MAX, proxies }, self.now).unwrap();
        self.take();
    }

    /// Nothing is left but to ask Auth again some time.
    fn rests(&self) -> bool {
        self.pool.poll_timeout().is_none_or(|at| at.since(self.now) > Duration::from_secs(59))
    }

    fn up(&mut self, dial: &Dial, to: u8, incarnation: u64) {
        self.pool.handle_dialled(dial.id, proxy(to), Incarnation(incarnation), self.now);
        self.tunnels.insert(dial.id, proxy(to));
        self.take();
    }

    /// Answers every dial to a wanted proxy with that proxy, until there are none.
    fn answer_direct(&mut self) {
        for _ in 0..100 {
            let open = std::mem::take(&mut self.dials);
            if open.is_empty() && !self.wake() {
                return;
            }
            for dial in open {
                let wanted = dial.wanted.expect("all proxies have addresses");
                self.up(&dial, wanted.as_bytes()[0], 1);
            }
        }
        panic!("it never rests");
    }

    /// Steps to the next timeout; false when the pool rests.
    fn wake(&mut self) -> bool {
        let Some(at) = self.pool.poll_timeout().filter(|_| !self.rests()) else { return false };
        assert!(at > self.now, "a timeout in the past would spin");
        self.now = at;
        self.pool.handle_timeout(at);
        self.take();
        true
    }

    fn only_dial(&mut self) -> Dial {
        assert_eq!(self.dials.len(), 1, "{:?}", self.dials);
        self.dials.remove(0)
    }

    fn connected(&self) -> Vec<u8> {
        self.pool.connected().iter().map(|connected| connected.proxy.as_bytes()[0]).collect()
    }
}

/// `HostId::from_random` sets version bits inside; the first byte stays as given.
#[test]
fn auth_is_asked_until_it_answers_and_nobody_dialled_before_the_strategy_is_known() {
    let mut rig = Rig::unasked();
    assert_eq!((rig.questions, rig.dials.len()), (1, 0));
    rig.wake();
    rig.wake();
    assert_eq!(rig.questions, 2, "no answer: asked again");
    rig.pool.handle_ask_failed(rig.now);
    rig.wake();
    assert_eq!((rig.questions, rig.dials.len()), (3, 0));
    rig.strategy(MESH);
    rig.take();
    assert_eq!(rig.only_dial().wanted, None);
}

#[test]
fn mesh_connects_to_every_proxy_and_then_rests() {
    let mut rig = Rig::new(MESH);
    let first = rig.only_dial();
    rig.up(&first, 1, 1);
    rig.list((1..=6).map(direct).collect());
    rig.answer_direct();
    assert_eq!(rig.connected(), [1, 2, 3, 4, 5, 6]);
    assert!(rig.rests(), "nothing to do while nothing changes");
    assert!(rig.closes.is_empty());
}

#[test]
fn peering_prefers_different_zones() {
    for n in 1..=6 {
        let mut rig = Rig::new(peering(2));
        let first = rig.dials.remove(0);
        rig.up(&first, n, 1);
        rig.list((1..=6).map(direct).collect());
        rig.answer_direct();
        let parities: Vec<u8> = rig.connected().iter().map(|n| n % 2).collect();
        assert!(parities.contains(&0) && parities.contains(&1), "{:?}", rig.connected());
    }
}

#[test]
fn a_hung_attempt_does_not_hold_up_another_and_ends_at_its_deadline() {
    let mut rig = Rig::new(peering(1));
    let hung = rig.only_dial();
    rig.wake();
    let second = rig.only_dial();
    rig.up(&second, 1, 1);
    assert_eq!(rig.abandoned, [hung.id]);
    rig.up(&hung, 2, 1);
    assert_eq!(rig.closes, [(hung.id, CloseReason::Duplicate)], "it came too late");

    let mut rig = Rig::new(peering(1));
    let hung = rig.only_dial();
    while rig.now < Mono::ZERO.after(Config::default().dial_deadline) {
        rig.wake();
    }
    assert_eq!(rig.abandoned.first(), Some(&hung.id));
}

#[test]
fn behind_one_shared_address_all_proxies_are_found() {
    for count in 1..=8_u8 {
        let mut rig = Rig::new(MESH);
        let mut next = 0;
        for _ in 0..500 {
            for dial in std::mem::take(&mut rig.dials) {
                // A strict round robin, shared with a second request, as with an even number of proxies.
                next += 1;
                let to = next % count + 1;
                let here = Connected { proxy: proxy(to), incarnation: Incarnation(1) };
                if dial.avoid.contains(&here) {
                    rig.pool.handle_dial_failed(dial.id, DialFailure::AlreadyConnected(here), rig.now);
                    rig.take();
                } else {
                    rig.up(&dial, to, 1);
                    rig.list((1..=count).map(hidden).collect());
                }
            }
            if rig.connected().len() == usize::from(count) || !rig.wake() {
                break;
            }
        }
        assert_eq!(rig.connected().len(), usize::from(count));
        assert!(rig.now < Mono::ZERO.after(Duration::from_secs(30)), "{count} proxies took {:?}", rig.now);
        assert!(rig.rests());
    }
}

#[test]
fn a_search_is_bounded_and_rests() {
    let mut rig = Rig::new(peering(2));
    let first = rig.dials.remove(0);
    rig.up(&first, 1, 1);
    let mut dials = 0;
    while rig.now < Mono::ZERO.after(Duration::from_secs(3600)) {
        for dial in std::mem::take(&mut rig.dials) {
            dials += 1;
            rig.up(&dial, 1, 1);
        }
        rig.wake();
    }
    assert!((200..2000).contains(&dials), "{dials} dials in an hour for a second proxy that does not exist");
}

#[test]
fn proxies_whose_addresses_do_not_work_are_sought_behind_the_shared_one() {
    let mut rig = Rig::new(peering(2));
    let first = rig.dials.remove(0);
    rig.up(&first, 1, 1);
    rig.list((1..=2).map(direct).collect());
    for _ in 0..200 {
        for dial in std::mem::take(&mut rig.dials) {
            match dial.wanted {
                Some(_) => rig.pool.handle_dial_failed(dial.id, DialFailure::Failed, rig.now),
                None => rig.pool.handle_dialled(dial.id, proxy(2), Incarnation(1), rig.now),
            }
            rig.take();
        }
        rig.wake();
    }
    assert_eq!(rig.connected(), [1, 2]);
}

#[test]
fn addresses_that_hang_do_not_keep_the_shared_one_from_being_tried() {
    let mut rig = Rig::new(peering(2));
    let first = rig.only_dial();
    rig.up(&first, 1, 1);
    rig.list((1..=9).map(direct).collect());
    while rig.dials.iter().all(|dial| dial.wanted.is_some()) {
        rig.wake();
    }
    assert!(rig.now <= Mono::ZERO.after(Config::default().hedge_after), "{:?}", rig.now);
}

#[test]
fn a_draining_tunnel_is_replaced_before_it_is_closed() {
    let mut rig = Rig::new(peering(1));
    let first = rig.only_dial();
    rig.up(&first, 1, 1);
    rig.list((1..=3).map(direct).collect());
    rig.pool.handle_drain(first.id, rig.now);
    let mut leaving = direct(1);
    leaving.draining = true;
    rig.list(vec![leaving, direct(2), direct(3)]);
    rig.wake();
    assert!(rig.closes.is_empty());
    let substitute = rig.only_dial();
    assert_ne!(substitute.wanted, Some(proxy(1)));
    rig.up(&substitute, 2, 1);
    assert_eq!(rig.closes, [(first.id, CloseReason::Replaced)]);
    assert_eq!(rig.connected(), [2]);
}

#[test]
fn the_only_proxy_s_new_life_replaces_the_old() {
    let mut rig = Rig::new(MESH);
    let old = rig.only_dial();
    rig.up(&old, 1, 1);
    rig.list(vec![hidden(1)]);
    rig.pool.handle_drain(old.id, rig.now);
    rig.take();
    rig.wake();
    let again = rig.dials.remove(0);
    let here = Connected { proxy: proxy(1), incarnation: Incarnation(1) };
    rig.pool.handle_dial_failed(again.id, DialFailure::AlreadyConnected(here), rig.now);
    assert!(rig.closes.is_empty(), "it is the only way in");
    while rig.dials.is_empty() {
        rig.wake();
    }
    let new = rig.dials.remove(0);
    rig.up(&new, 1, 2);
    assert_eq!(rig.closes, [(old.id, CloseReason::Replaced)]);
    let lives: Vec<_> =
        rig.published.iter().map(|set| set.iter().map(|c| c.incarnation.0).collect::<Vec<_>>()).collect();
    assert_eq!(lives.last(), Some(&vec![2]));
}

#[test]
fn a_change_of_strategy_is_followed_both_ways() {
    let mut rig = Rig::new(peering(1));
    let first = rig.only_dial();
    rig.up(&first, 1, 1);
    rig.list((1..=5).map(direct).collect());
    assert_eq!(rig.connected(), [1]);
    rig.strategy(MESH);
    rig.take();
    rig.answer_direct();
    assert_eq!(rig.connected().len(), 5);
    rig.strategy(peering(2));
    rig.take();
    assert!(rig.closes.is_empty(), "proxies have yet to connect to each other");
    let changed = rig.now;
    assert!(rig.wake());
    assert!(rig.now >= changed.after(Config::default().excess_keep));
    assert_eq!(rig.closes.len(), 3);
    assert!(rig.closes.iter().all(|(_, reason)| *reason == CloseReason::Excess && reason.drains()));
    assert_eq!(rig.connected().len(), 2);
    let zones: Vec<u8> = rig.connected().iter().map(|n| n % 2).collect();
    assert!(zones.contains(&0) && zones.contains(&1), "the tunnels kept are in different zones");
}

#[test]
fn fewer_tunnels_under_peering_are_given_up_at_once() {
    let mut rig = Rig::new(peering(3));
    let first = rig.dials.remove(0);
    rig.up(&first, 1, 1);
    rig.list((1..=5).map(direct).collect());
    rig.answer_direct();
    rig.strategy(peering(1));
    rig.take();
    assert_eq!((rig.closes.len(), rig.connected().len()), (2, 1));
}

/// Two tunnels in one zone, and a proxy in another that was not there at first.
fn crowded(found: ProxyInfo) -> Rig {
    let mut rig = Rig::new(peering(2));
    let first = rig.dials.remove(0);
    rig.up(&first, 1, 1);
    rig.list(vec![direct(1), direct(3)]);
    rig.answer_direct();
    assert_eq!(rig.connected(), [1, 3]);
    rig.list(vec![direct(1), direct(3), found]);
    rig
}

#[test]
fn tunnels_that_crowd_in_one_zone_are_spread_without_a_gap() {
    let mut rig = crowded(direct(2));
    assert!(rig.dials.is_empty(), "a proxy that has just come may go again");
    rig.wake();
    let dial = rig.only_dial();
    assert_eq!((dial.wanted, rig.closes.len()), (Some(proxy(2)), 0));
    rig.up(&dial, 2, 1);
    assert_eq!(rig.closes.len(), 1);
    assert_eq!(rig.closes[0].1, CloseReason::Excess);
    assert!(rig.connected().contains(&2) && rig.connected().len() == 2);
    assert!(rig.rests());
}

#[test]
fn tunnels_that_a_balancer_chose_are_spread_too_in_bounded_tries() {
    let mut rig = crowded(hidden(2));
    let mut tries = 0;
    while rig.connected().len() == 2 && !rig.connected().contains(&2) {
        assert!(rig.wake() && tries < 10, "{tries} tries");
        for dial in std::mem::take(&mut rig.dials) {
            assert_eq!(dial.wanted, None);
            tries += 1;
            let here = Connected { proxy: proxy(1), incarnation: Incarnation(1) };
            if tries < 4 {
                rig.pool.handle_dial_failed(dial.id, DialFailure::AlreadyConnected(here), rig.now);
                rig.take();
            } else {
                rig.up(&dial, 2, 1);
            }
        }
    }
    assert_eq!(rig.closes.len(), 1);
    assert!(rig.rests());
}

#[test]
fn a_zone_that_is_never_reached_costs_little() {
    let mut rig = crowded(direct(2));
    let mut dials = 0;
    while rig.now < Mono::ZERO.after(Duration::from_secs(3 * 3600)) {
        rig.now = rig.pool.poll_timeout().unwrap();
        rig.pool.handle_timeout(rig.now);
        rig.take();
        for dial in std::mem::take(&mut rig.dials) {
            dials += 1;
            rig.pool.handle_dial_failed(dial.id, DialFailure::Failed, rig.now);
            rig.take();
        }
    }
    assert!((5..300).contains(&dials), "{dials} dials in three hours");
    assert_eq!((rig.connected().len(), rig.closes.len()), (2, 0));
}

/// Tunnels to proxies 1 and 2 of three.
fn connected_twice() -> (Rig, TunnelId) {
    let mut rig = Rig::new(peering(2));
    let first = rig.only_dial();
    rig.up(&first, 1, 1);
    rig.list((1..=3).map(direct).collect());
    rig.answer_direct();
    assert_eq!(rig.connected().len(), 2);
    (rig, first.id)
}

/// What a liar tells: it alone is there, the others are left out or have newer lives that leave.
fn lies() -> [Vec<ProxyInfo>; 2] {
    let gone = |n| ProxyInfo { incarnation: Incarnation(u64::MAX), draining: true, ..direct(n) };
    [vec![direct(1)], vec![direct(1), gone(2), gone(3)]]
}

#[test]
fn o_a_proxy_that_lies_about_the_others_keeps_the_agent_from_none_of_them() {
    for lie in lies() {
        let (mut rig, liar) = connected_twice();
        let asked = rig.questions;
        rig.told(liar, lie.clone());
        assert!(rig.wake());
        assert_eq!(rig.questions, asked + 1, "Auth is asked soon");
        rig.list((1..=3).map(direct).collect());
        rig.told(liar, lie);
        let honest = rig.pool.connected().iter().find(|c| c.proxy != proxy(1)).map(|c| c.proxy);
        assert_eq!((rig.connected().len(), rig.closes.len()), (2, 0));
        assert!(honest.is_some());
        // An honest tunnel is lost: another proxy takes its place, whatever the liar says.
        let other = rig.tunnels.iter().find(|(id, _)| **id != liar).map(|(id, _)| *id).unwrap();
        rig.pool.handle_lost(other, rig.now);
        rig.take();
        while rig.dials.is_empty() {
            assert!(rig.wake());
        }
        assert_ne!(rig.only_dial().wanted, Some(proxy(1)));
    }
}

#[test]
fn who_comes_back_to_restarted_proxies_asks_auth_nothing() {
    let (mut rig, _) = connected_twice();
    let asked = rig.questions;
    rig.now = rig.now.after(Duration::from_secs(60));
    for id in rig.tunnels.keys().copied().collect::<Vec<_>>() {
        rig.pool.handle_lost(id, rig.now);
    }
    let back = rig.now.after(Duration::from_secs(4));
    let mut failed = 0;
    while rig.now < back {
        rig.take();
        for dial in std::mem::take(&mut rig.dials) {
            failed += 1;
            rig.pool.handle_dial_failed(dial.id, DialFailure::Failed, rig.now);
        }
        rig.wake();
    }
    assert!(failed > 2, "{failed}");
    let restarted = || (1..=3).map(|n| ProxyInfo { incarnation: Incarnation(2), ..direct(n) }).collect();
    while rig.pool.connected().len() < 2 {
        rig.take();
        for dial in std::mem::take(&mut rig.dials) {
            let to = dial.wanted.map_or(1, |wanted| wanted.as_bytes()[0]);
            rig.up(&dial, to, 2);
            rig.told(dial.id, restarted());
        }
        rig.wake();
    }
    let quiet = rig.now.after(Duration::from_secs(120));
    while rig.now < quiet && rig.wake() {}
    assert_eq!((rig.questions, rig.connected().len()), (asked, 2));
}

#[test]
fn o_before_auth_answers_no_proxy_talks_another_away() {
    for lie in lies() {
        let mut rig = Rig::new(peering(2));
        let first = rig.only_dial();
        rig.up(&first, 2, 1);
        rig.told(first.id, (1..=3).map(direct).collect());
        let next = rig.dials.remove(0);
        rig.up(&next, 1, 1);
        rig.told(next.id, lie);
        assert_eq!((rig.connected(), rig.closes.len()), (vec![1, 2], 0));
    }
}

#[test]
fn o_a_proxy_that_tells_of_itself_that_it_leaves_is_believed_at_once() {
    let (mut rig, id) = connected_twice();
    rig.pool.handle_drain(id, rig.now);
    while rig.dials.is_empty() {
        assert!(rig.wake());
    }
    assert_ne!(rig.only_dial().wanted, Some(proxy(1)));
}

#[test]
fn a_tunnel_that_never_lasts_is_not_dialled_in_a_loop() {
    let mut rig = Rig::new(peering(1));
    let mut dials = 0;
    while rig.now < Mono::ZERO.after(Duration::from_secs(600)) {
        for dial in std::mem::take(&mut rig.dials) {
            dials += 1;
            rig.up(&dial, 1, 1);
            rig.pool.handle_lost(dial.id, rig.now);
            rig.take();
        }
        rig.wake();
    }
    assert!((60..600).contains(&dials), "{dials} dials in ten minutes");
}

#[test]
fn hearsay_and_overlong_lists_change_nothing() {
    let mut rig = Rig::new(MESH);
    let first = rig.only_dial();
    rig.up(&first, 1, 1);
    rig.list((1..=2).map(direct).collect());
    rig.answer_direct();
    rig.told(first.id, vec![direct(9)]);
    assert!(rig.dials.is_empty());
    let overlong = ProxyList { revision: 9, proxies: vec![direct(1); PROXIES_MAX + 1] };
    let refused = Err(ProxyListError::TooLong(PROXIES_MAX + 1));
    assert_eq!(rig.pool.handle_proxies(first.id, overlong.clone(), rig.now), refused);
    assert_eq!(rig.pool.handle_answer(overlong, rig.now), refused);
    assert_eq!(rig.connected(), [1, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever happened, once proxies answer again the counts are exact and the machine rests.
    #[test]
    fn counts_converge_after_any_history(seed: u64, history in proptest::collection::vec((0..10_u8, 1..6_u8), 0..80)) {
        let mut rig = Rig::new(peering(2));
        rig.pool = Pool::new(Config::default(), vec![shared_address()], seed, rig.now);
        rig.strategy(peering(2));
        rig.dials.clear();
        let mut lives: BTreeMap<u8, u64> = (1..=5).map(|n| (n, 1)).collect();
        let mut ups: Vec<TunnelId> = Vec::new();
        let info = |lives: &BTreeMap<u8, u64>, n: u8, draining| ProxyInfo { incarnation: Incarnation(lives[&n]), draining, ..direct(n) };
        for (what, n) in history {
            rig.take();
            match what {
                0 => rig.strategy(MESH),
                1 => rig.strategy(peering(n.into())),
                2 => rig.list((1..=5).filter(|m| *m != n).map(|m| info(&lives, m, false)).collect()),
                3 => rig.list((1..=5).map(|m| info(&lives, m, m == n)).collect()),
                4 => *lives.get_mut(&n).unwrap() += 1,
                5 | 6 => if let Some(dial) = rig.dials.pop() {
                    let to = dial.wanted.map_or(n, |wanted| wanted.as_bytes()[0]);
                    ups.push(dial.id);
                    rig.up(&dial, to, lives[&to]);
                },
                8 => if let Some(id) = ups.last() {
                    let leaving = ProxyInfo { incarnation: Incarnation(u64::MAX), ..info(&lives, n, true) };
                    rig.told(*id, vec![leaving]);
                },
                7 => if !ups.is_empty() {
                    let id = ups.remove(usize::from(n) % ups.len());
                    rig.pool.handle_lost(id, rig.now);
                },
                _ => {
                    if let Some(dial) = rig.dials.pop() {
                        rig.pool.handle_dial_failed(dial.id, DialFailure::Failed, rig.now);
                    }
                    rig.wake();
                }
            }
        }
        rig.strategy(peering(3));
        rig.list((1..=5).map(|n| info(&lives, n, false)).collect());
        for round in 0.. {
            prop_assert!(round < 2000, "it never rests");
            for dial in std::mem::take(&mut rig.dials) {
                let to = dial.wanted.map_or(round as u8 % 5 + 1, |wanted| wanted.as_bytes()[0]);
                rig.up(&dial, to, lives[&to]);
            }
            if !rig.wake() {
                break;
            }
        }
        let current: Vec<_> = rig.pool.connected();
        prop_assert_eq!(current.len(), 3);
        prop_assert!(current.iter().all(|c| c.incarnation.0 == lives[&c.proxy.as_bytes()[0]]));
    }
}
