//! A dial in the situations that users meet.
#![expect(clippy::unwrap_used, reason = "a test")]

use proptest::prelude::*;
use std::time::Duration;
use wayleave_peering::{
    AttemptId, Candidate, DialError, DialPlan, Outcome, PlanConfig, PlanEffect, Refusal, RouteState,
    TRIED_MAX, Tried, Way,
};
use wayleave_vocab::{HostId, Incarnation, Mono};

fn candidate(n: u8, state: RouteState, sequence: u64) -> Candidate {
    Candidate { proxy: HostId::from_random([n; 16]), incarnation: Incarnation(1), sequence, state }
}

fn fresh(n: u8) -> Candidate {
    candidate(n, RouteState::Fresh, 5)
}

fn suspect(n: u8) -> Candidate {
    candidate(n, RouteState::Suspect, 5)
}

fn peer(n: u8) -> Way {
    Way::Peer { proxy: fresh(n).proxy, incarnation: Incarnation(1) }
}

fn not_here(sequence: u64) -> Refusal {
    Refusal::NotHere { incarnation: Incarnation(1), sequence }
}

struct Rig {
    plan: DialPlan,
    now: Mono,
    dials: Vec<(AttemptId, Way)>,
    cancelled: Vec<AttemptId>,
    refreshes: usize,
    outcome: Option<Outcome>,
}

impl Rig {
    fn with(plan: DialPlan) -> Self {
        let mut rig = Self {
            plan,
            now: Mono::ZERO,
            dials: Vec::new(),
            cancelled: Vec::new(),
            refreshes: 0,
            outcome: None,
        };
        rig.take();
        rig
    }

    fn new(local: Option<u64>, candidates: &[Candidate]) -> Self {
        Self::with(DialPlan::new(PlanConfig::default(), local, candidates.to_vec(), 1, Mono::ZERO))
    }

    fn take(&mut self) {
        while let Some(effect) = self.plan.poll_effect() {
            match effect {
                PlanEffect::Dial { attempt, way, .. } => self.dials.push((attempt, way)),
                PlanEffect::Cancel { attempt } => self.cancelled.push(attempt),
                PlanEffect::Refresh { .. } => self.refreshes += 1,
                PlanEffect::Done(outcome) => {
                    assert_eq!(self.outcome, None, "a dial ends once");
                    self.outcome = Some(outcome);
                }
            }
        }
    }

    fn refuse(&mut self, dial: usize, refusal: Refusal) {
        self.plan.handle_refused(self.dials[dial].0, refusal, self.now);
        self.take();
    }

    fn routes(&mut self, local: Option<u64>, candidates: &[Candidate]) {
        self.plan.handle_candidates(local, candidates.to_vec(), self.now);
        self.take();
    }

    fn wake(&mut self) {
        let at = self.plan.poll_timeout().unwrap();
        assert!(at > self.now, "a timeout in the past would spin");
        self.now = at;
        self.plan.handle_timeout(at);
        self.take();
    }

    fn ways(&self) -> Vec<Way> {
        self.dials.iter().map(|(_, way)| *way).collect()
    }

    fn ms(&self) -> u128 {
        self.now.since(Mono::ZERO).as_millis()
    }
}

fn offline(tried: &[(Way, Refusal)]) -> Option<Outcome> {
    let tried = tried.iter().map(|(way, refusal)| Tried { way: *way, refusal: *refusal }).collect();
    Some(Outcome::Failed(DialError::Offline { tried }))
}

#[test]
fn the_own_tunnel_comes_first_then_fresh_peers_then_suspects() {
    let mut rig = Rig::new(Some(7), &[suspect(1), fresh(2)]);
    rig.wake();
    rig.wake();
    assert_eq!(rig.ways(), [Way::Local { tunnel: 7 }, peer(2), peer(1)]);
    assert_eq!(rig.ms(), 300);
    let (second, _) = rig.dials[1];
    rig.plan.handle_established(second, rig.now);
    rig.take();
    assert_eq!(rig.outcome, Some(Outcome::Established { attempt: second, by: peer(2) }));
    assert_eq!(rig.cancelled, [rig.dials[0].0, rig.dials[2].0]);
    rig.plan.handle_established(rig.dials[0].0, rig.now);
    rig.take();
    assert_eq!(rig.cancelled.len(), 3, "the loser is closed");
}

#[test]
fn a_black_hole_costs_a_stagger() {
    let mut rig = Rig::new(None, &[fresh(1), suspect(2)]);
    rig.wake();
    assert_eq!((rig.ways().as_slice(), rig.ms()), (&[peer(1), peer(2)][..], 150));
}

#[test]
fn a_refusal_makes_room_at_once() {
    let mut rig = Rig::new(None, &[fresh(1), suspect(2)]);
    rig.refuse(0, Refusal::Unreachable);
    assert_eq!((rig.ways().as_slice(), rig.ms()), (&[peer(1), peer(2)][..], 0));
}

#[test]
fn not_here_refreshes_once_and_tries_again_once() {
    let mut rig = Rig::new(None, &[fresh(1)]);
    rig.refuse(0, not_here(8));
    assert_eq!(rig.refreshes, 1);
    rig.routes(None, &[candidate(1, RouteState::Fresh, 8)]);
    assert_eq!(rig.dials.len(), 1, "nothing new is known of it");
    rig.routes(None, &[candidate(1, RouteState::Fresh, 9)]);
    assert_eq!(rig.dials.len(), 2);
    rig.refuse(1, not_here(10));
    rig.routes(None, &[candidate(1, RouteState::Fresh, 11)]);
    assert_eq!((rig.dials.len(), rig.refreshes), (2, 1));
    rig.wake();
    assert_eq!(rig.outcome, offline(&[(peer(1), not_here(8)), (peer(1), not_here(10))]));
}

#[test]
fn an_agent_that_changes_tunnels_is_waited_for() {
    let mut rig = Rig::new(Some(3), &[]);
    rig.refuse(0, Refusal::Unreachable);
    rig.routes(None, &[]);
    assert_eq!(rig.outcome, None);
    rig.routes(Some(4), &[]);
    assert_eq!(rig.ways(), [Way::Local { tunnel: 3 }, Way::Local { tunnel: 4 }]);
}

#[test]
fn an_agent_without_any_route_is_offline_after_a_refresh() {
    let mut rig = Rig::new(None, &[]);
    assert_eq!((rig.refreshes, rig.outcome.clone()), (1, None));
    rig.routes(None, &[]);
    assert_eq!(rig.outcome, offline(&[]));

    let mut rig = Rig::new(None, &[]);
    rig.wake();
    assert_eq!((rig.outcome.clone(), rig.ms()), (offline(&[]), 1000), "nobody answered the refresh");
}

#[test]
fn a_dial_from_a_peer_makes_no_second_hop() {
    let mut rig = Rig::with(DialPlan::from_peer(PlanConfig::default(), None, Mono::ZERO));
    assert_eq!((rig.outcome.clone(), rig.refreshes), (offline(&[]), 0));
    rig = Rig::with(DialPlan::from_peer(PlanConfig::default(), Some(1), Mono::ZERO));
    rig.routes(Some(1), &[fresh(1)]);
    rig.refuse(0, Refusal::Unreachable);
    assert_eq!(rig.outcome, offline(&[(Way::Local { tunnel: 1 }, Refusal::Unreachable)]));
}

#[test]
fn the_agent_s_own_word_is_final() {
    let mut rig = Rig::new(None, &[fresh(1), fresh(2)]);
    rig.wake();
    let (attempt, way) = rig.dials[1];
    rig.refuse(1, Refusal::Final);
    assert_eq!(rig.outcome, Some(Outcome::Failed(DialError::Refused { attempt, way })));
    assert_eq!(rig.cancelled, [rig.dials[0].0]);
}

#[test]
fn g_silence_everywhere_ends_at_the_deadline() {
    let many: Vec<Candidate> = (1..40).map(fresh).collect();
    let mut rig = Rig::new(Some(1), &many);
    while rig.outcome.is_none() {
        rig.wake();
    }
    assert!(rig.now <= Mono::ZERO.after(PlanConfig::default().deadline));
    assert_eq!(rig.dials.len(), TRIED_MAX);
}

proptest! {
    /// Whatever the answers, a dial ends by its deadline, once, and never spins.
    #[test]
    fn g_every_dial_ends(answers in proptest::collection::vec((0..8_u8, 0..6_u8, 0..20_u64), 0..60), local: Option<u64>) {
        let mut rig = Rig::new(local, &[fresh(1), suspect(2), fresh(3)]);
        for (what, pick, sequence) in answers {
            let dial = rig.dials.get(usize::from(pick)).map(|(attempt, _)| *attempt);
            match (what, dial) {
                (0, Some(_)) => rig.refuse(usize::from(pick), not_here(sequence)),
                (1, Some(_)) => rig.refuse(usize::from(pick), Refusal::Unavailable),
                (2, Some(_)) => rig.refuse(usize::from(pick), Refusal::Unreachable),
                (3, _) => rig.routes(Some(sequence), &[candidate(pick, RouteState::Fresh, sequence)]),
                (4, _) => rig.routes(None, &[]),
                (5, Some(attempt)) if sequence == 0 => rig.plan.handle_established(attempt, rig.now),
                _ => if !rig.plan.is_done() { rig.wake() },
            }
            rig.take();
        }
        while !rig.plan.is_done() {
            rig.wake();
        }
        prop_assert!(rig.outcome.is_some());
        prop_assert_eq!(rig.plan.poll_timeout(), None);
        prop_assert!(rig.now <= Mono::ZERO.after(PlanConfig::default().deadline + Duration::from_millis(1)));
        prop_assert!(rig.dials.len() <= TRIED_MAX);
    }
}
