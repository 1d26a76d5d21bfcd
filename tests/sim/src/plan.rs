//! Dials at proxies: what a dial plan says is done over tunnels (legs) and peer connections.

use crate::agent::{ANSWER_BYTES, RESUME_AGAIN, RESUME_NEW};
use crate::backend::Request;
use crate::client::Carries;
use crate::coverage::Mark;
use crate::event::Machine;
use crate::message::{Answer, Part, Payload, PeerMessage};
use crate::mutation::Mutation;
use crate::network::{Host, LinkId};
use crate::scenario;
use crate::world::World;
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use wayleave_mux::{Class, OpenError, ResetCode, StreamId};
use wayleave_peering::{AttemptId, Candidate, DialPlan, Outcome, PlanEffect, Refusal, RouteState, Way};

/// Whose dial: a user's at the ingress proxy, or a peer's at the home proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PlanKey {
    Client(usize),
    Home { link: LinkId, dial: usize, attempt: AttemptId },
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) life: usize,
    pub(crate) agent: usize,
    pub(crate) dial: usize,
    pub(crate) hops: usize,
    pub(crate) plan: DialPlan,
    pub(crate) attempts: BTreeMap<AttemptId, Via>,
}

/// Where an attempt goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Leg(LinkId, StreamId),
    Peer(LinkId),
}

/// A stream that a proxy has opened to an agent.
#[derive(Debug)]
pub(crate) struct Leg {
    pub(crate) key: PlanKey,
    pub(crate) attempt: AttemptId,
    /// The agent's answer, as far as it has come.
    answer: Vec<u8>,
    waiting: VecDeque<Bytes>,
    finish_asked: bool,
    finish_sent: bool,
    peer_finished: bool,
}

impl World {
    /// The newest tunnel of an agent that takes streams at a life.
    pub(crate) fn local_tunnel(&self, life: usize, agent: usize) -> Option<u64> {
        let fits = |t: &crate::tunnel::Tunnel| {
            t.life == life && t.agent == agent && t.is_published && t.muxes[1].is_some()
        };
        self.tunnels.iter().filter(|(_, tunnel)| fits(tunnel)).map(|(id, _)| id.0).next_back()
    }

    pub(crate) fn candidates(&self, life: usize, agent: usize) -> Vec<Candidate> {
        let mut candidates = self.lives[life].table.candidates(self.agents[agent].id);
        if self.is_mutated(Mutation::SuspectIsDeleted) {
            candidates.retain(|candidate| candidate.state == RouteState::Fresh);
        }
        candidates
    }

    pub(crate) fn add_plan(&mut self, key: PlanKey, life: usize, agent: usize, dial: usize, hops: usize) {
        let now = self.local(Host::Proxy(self.lives[life].slot));
        let local = self.local_tunnel(life, agent);
        let is_client = matches!(key, PlanKey::Client(_)) || self.is_mutated(Mutation::SecondHop);
        let plan = if is_client {
            let candidates = self.candidates(life, agent);
            DialPlan::new(scenario::plan_config(), local, candidates, self.random.number(), now)
        } else {
            DialPlan::from_peer(scenario::plan_config(), local, now)
        };
        self.plans.insert(key, Plan { life, agent, dial, hops, plan, attempts: BTreeMap::new() });
        self.touch(Machine::Plan(key));
    }

    /// A peer asks for one of our tunnels.
    pub(crate) fn serve_dial(
        &mut self,
        link: LinkId,
        dial: usize,
        attempt: AttemptId,
        agent: usize,
        hops: usize,
    ) {
        if hops > 1 {
            self.violate(format!("dial {dial} makes a second hop"));
        }
        let Some(life) = self.peerings.get(&link).map(|peering| peering.lives[1]) else { return };
        self.add_plan(PlanKey::Home { link, dial, attempt }, life, agent, dial, hops);
    }

    pub(crate) fn serve_plan(&mut self, key: PlanKey) {
        while let Some(plan) = self.plans.get_mut(&key)
            && let Some(effect) = plan.plan.poll_effect()
        {
            self.trace(&(key, &effect));
            match effect {
                PlanEffect::Dial { attempt, way, .. } => self.attempt(key, attempt, way),
                PlanEffect::Cancel { attempt } => self.cancel(key, attempt),
                PlanEffect::Refresh { .. } => self.refresh(key),
                PlanEffect::Done(outcome) => self.plan_done(key, outcome),
            }
        }
        let Some(plan) = self.plans.get(&key) else { return };
        let (host, at) = (Host::Proxy(self.lives[plan.life].slot), plan.plan.poll_timeout());
        if !self.is_mutated(Mutation::SkipDeadline) {
            self.arm(Machine::Plan(key), host, at);
        }
    }

    pub(crate) fn time_plan(&mut self, key: PlanKey) {
        let Some(life) = self.plans.get(&key).map(|plan| plan.life) else { return };
        let now = self.local(Host::Proxy(self.lives[life].slot));
        if let Some(plan) = self.plans.get_mut(&key) {
            plan.plan.handle_timeout(now);
        }
    }

    fn attempt(&mut self, key: PlanKey, attempt: AttemptId, way: Way) {
        let Some(plan) = self.plans.get(&key) else { return };
        if !plan.attempts.is_empty() {
            self.coverage.note(Mark::DialRaced);
        }
        match way {
            Way::Local { tunnel } => self.open_leg(key, attempt, LinkId(tunnel)),
            Way::Peer { proxy, incarnation } => {
                let (life, agent, dial, hops) = (plan.life, plan.agent, plan.dial, plan.hops);
                let known = self.lives[life].table.candidates(self.agents[agent].id);
                let is_suspect = known
                    .iter()
                    .any(|c| (c.proxy, c.incarnation, c.state) == (proxy, incarnation, RouteState::Suspect));
                if is_suspect {
                    self.note(Mark::DialSuspect);
                }
                let Some(link) = self.peer_link_to(life, proxy, incarnation) else {
                    self.refuse(key, attempt, Refusal::Unreachable);
                    return;
                };
                let retried = self
                    .plans
                    .get(&key)
                    .is_some_and(|plan| plan.attempts.values().any(|via| *via == Via::Peer(link)));
                if retried {
                    self.note(Mark::DialRetried);
                }
                if let Some(plan) = self.plans.get_mut(&key) {
                    plan.attempts.insert(attempt, Via::Peer(link));
                }
                let message = PeerMessage::Dial { dial, attempt, agent, hops: hops + 1 };
                self.send(link, 0, Payload::Peer(message));
            }
        }
    }

    fn open_leg(&mut self, key: PlanKey, attempt: AttemptId, mut link: LinkId) {
        let Some(plan) = self.plans.get(&key) else { return };
        let (dial, agent, life) = (plan.dial as u64, plan.agent as u64, plan.life);
        let carries = self.dials[plan.dial].carries;
        if self.is_beyond(link, carries) {
            self.note(Mark::NotAskedFor);
            self.dials[dial as usize].is_unsupported = true;
            return self.refuse(key, attempt, Refusal::Final);
        }
        if self.is_mutated(Mutation::WrongAgent)
            && let Some(other) =
                self.tunnels.iter().find(|(_, t)| t.life == life && t.agent as u64 != agent && t.is_published)
        {
            link = *other.0;
        }
        let class = if self.random.chance(50) { Class::Bulk } else { Class::Interactive };
        let Some((mux, now)) = self.mux(link, 1) else {
            self.refuse(key, attempt, Refusal::Unreachable);
            return;
        };
        match mux.open(class, now) {
            Ok(stream) => {
                let mut header = BytesMut::new();
                header.put_u64(dial);
                header.put_u64(agent);
                header.put_u8(match carries {
                    Carries::Bytes(_) => 0,
                    Carries::New(_) => RESUME_NEW,
                    Carries::Again(_) => RESUME_AGAIN,
                });
                let leg = Leg {
                    key,
                    attempt,
                    answer: Vec::new(),
                    waiting: VecDeque::from([header.freeze()]),
                    finish_asked: false,
                    finish_sent: false,
                    peer_finished: false,
                };
                self.legs.insert((link, stream), leg);
                if let Some(plan) = self.plans.get_mut(&key) {
                    plan.attempts.insert(attempt, Via::Leg(link, stream));
                }
                self.leg_flush(link, stream);
            }
            Err(error) => {
                let is_dead = matches!(error, OpenError::Failed(_));
                self.refuse(key, attempt, if is_dead { Refusal::Unreachable } else { Refusal::Unavailable });
            }
        }
    }

    /// The agent at the other end has not said that it can do this.
    fn is_beyond(&self, link: LinkId, carries: Carries) -> bool {
        let Some(tunnel) = self.tunnels.get(&link) else { return false };
        carries.needed().missing_in(&self.agents[tunnel.agent].capabilities).is_some()
            && !self.is_mutated(Mutation::IgnoreCapabilities)
    }

    pub(crate) fn refuse(&mut self, key: PlanKey, attempt: AttemptId, refusal: Refusal) {
        let Some(life) = self.plans.get(&key).map(|plan| plan.life) else { return };
        let now = self.local(Host::Proxy(self.lives[life].slot));
        if let Some(plan) = self.plans.get_mut(&key) {
            plan.plan.handle_refused(attempt, refusal, now);
        }
        self.touch(Machine::Plan(key));
    }

    /// Stops one attempt, whatever has become of it.
    pub(crate) fn cancel(&mut self, key: PlanKey, attempt: AttemptId) {
        self.note(Mark::DialCancelled);
        let Some(via) = self.plans.get(&key).and_then(|plan| plan.attempts.get(&attempt)).copied() else {
            return;
        };
        match via {
            Via::Leg(link, stream) => self.drop_leg(link, stream),
            Via::Peer(link) => {
                let Some(dial) = self.plans.get(&key).map(|plan| plan.dial) else { return };
                let message = PeerMessage::Stream { dial, attempt, part: Part::Reset };
                self.send(link, 0, Payload::Peer(message));
            }
        }
    }

    fn refresh(&mut self, key: PlanKey) {
        let Some((life, agent)) = self.plans.get(&key).map(|plan| (plan.life, plan.agent)) else { return };
        if self.is_mutated(Mutation::NoRetryOnNotHere) {
            return;
        }
        let agent = self.agents[agent].id;
        let link = self.lives[life].backend;
        self.send(link, 0, Payload::Request(Request::Read { agent, key }));
    }

    pub(crate) fn plan_refreshed(&mut self, key: PlanKey) {
        self.note(Mark::DialRefreshed);
        self.news_for_plan(key);
    }

    /// The routes of a life have changed: dials under way may have better ways now.
    pub(crate) fn news_for_plans(&mut self, life: usize) {
        let open = self.plans.iter().filter(|(_, plan)| plan.life == life && !plan.plan.is_done());
        let keys: Vec<PlanKey> = open.map(|(key, _)| *key).collect();
        for key in keys {
            self.news_for_plan(key);
        }
    }

    fn news_for_plan(&mut self, key: PlanKey) {
        let Some((life, agent)) = self.plans.get(&key).map(|plan| (plan.life, plan.agent)) else { return };
        let now = self.local(Host::Proxy(self.lives[life].slot));
        let (local, candidates) = (self.local_tunnel(life, agent), self.candidates(life, agent));
        if let Some(plan) = self.plans.get_mut(&key) {
            plan.plan.handle_candidates(local, candidates, now);
        }
        self.touch(Machine::Plan(key));
    }

    fn plan_done(&mut self, key: PlanKey, outcome: Outcome) {
        match key {
            PlanKey::Client(dial) => self.client_done(dial, outcome),
            PlanKey::Home { link, dial, attempt } => {
                let answer = match outcome {
                    Outcome::Established { .. } => Answer::Established,
                    Outcome::Failed(_) => self.refusal_of_home(key),
                };
                if !matches!(answer, Answer::Established) {
                    self.plans.remove(&key);
                }
                let message = PeerMessage::Answer { key: PlanKey::Client(dial), attempt, answer };
                self.send(link, 1, Payload::Peer(message));
            }
        }
    }

    fn refusal_of_home(&mut self, key: PlanKey) -> Answer {
        let Some((life, agent)) = self.plans.get(&key).map(|plan| (plan.life, plan.agent)) else {
            return Answer::Unavailable;
        };
        let agent = self.agents[agent].id;
        let Some(publisher) = &mut self.lives[life].publisher else { return Answer::Unavailable };
        if publisher.holds(agent) {
            return Answer::Unavailable;
        }
        let (incarnation, sequence) = publisher.not_here();
        Answer::NotHere { incarnation, sequence }
    }

    pub(crate) fn peer_answered(&mut self, key: PlanKey, attempt: AttemptId, answer: Answer) {
        let Some(plan) = self.plans.get(&key) else { return };
        let (life, agent) = (plan.life, plan.agent);
        let now = self.local(Host::Proxy(self.lives[life].slot));
        match answer {
            Answer::Established => self.established(key, attempt),
            Answer::Unavailable => self.refuse(key, attempt, Refusal::Unavailable),
            Answer::NotHere { incarnation, sequence } => {
                self.note(Mark::DialNotHere);
                let via = self.plans.get(&key).and_then(|plan| plan.attempts.get(&attempt)).copied();
                if let Some(Via::Peer(link)) = via
                    && let Some(peering) = self.peerings.get(&link)
                {
                    let proxy = self.lives[peering.lives[1]].id;
                    let agent = self.agents[agent].id;
                    let _ = self.lives[life].table.handle_not_here(agent, proxy, incarnation, sequence, now);
                    self.touch(Machine::Table(life));
                }
                self.refuse(key, attempt, Refusal::NotHere { incarnation, sequence });
            }
        }
    }

    fn established(&mut self, key: PlanKey, attempt: AttemptId) {
        let Some(life) = self.plans.get(&key).map(|plan| plan.life) else { return };
        let now = self.local(Host::Proxy(self.lives[life].slot));
        if let Some(plan) = self.plans.get_mut(&key) {
            plan.plan.handle_established(attempt, now);
        }
        self.serve_plan(key);
    }
}

/// Legs.
impl World {
    pub(crate) fn leg_data(&mut self, link: LinkId, stream: StreamId, mut bytes: Bytes) {
        if let Some((mux, now)) = self.mux(link, 1) {
            mux.consumed(stream, bytes.len(), now);
        }
        self.touch(Machine::Mux(link, 1));
        let Some(leg) = self.legs.get_mut(&(link, stream)) else { return };
        let (key, attempt) = (leg.key, leg.attempt);
        if leg.answer.len() < ANSWER_BYTES {
            let part = bytes.split_to(bytes.len().min(ANSWER_BYTES - leg.answer.len()));
            leg.answer.extend_from_slice(&part);
            if leg.answer.len() == ANSWER_BYTES {
                let answer = leg.answer.clone();
                let dial = self.plans.get(&key).map(|plan| (plan.dial as u64).to_be_bytes());
                if dial.is_some_and(|dial| answer != dial) {
                    self.violate(format!("a stream was answered for another dial: {answer:?}"));
                }
                self.established(key, attempt);
            }
        }
        if !bytes.is_empty() {
            self.upstream(key, attempt, Part::Data(bytes));
        }
    }

    pub(crate) fn leg_finished(&mut self, link: LinkId, stream: StreamId) {
        let Some(leg) = self.legs.get_mut(&(link, stream)) else { return };
        leg.peer_finished = true;
        let (key, attempt) = (leg.key, leg.attempt);
        self.upstream(key, attempt, Part::Finish);
        self.leg_over(link, stream);
    }

    pub(crate) fn leg_reset(&mut self, link: LinkId, stream: StreamId) {
        let Some(leg) = self.legs.remove(&(link, stream)) else { return };
        if leg.answer.len() < ANSWER_BYTES {
            self.refuse(leg.key, leg.attempt, Refusal::Unreachable);
        } else {
            self.upstream(leg.key, leg.attempt, Part::Reset);
            self.home_over(leg.key);
        }
    }

    pub(crate) fn legs_lost(&mut self, link: LinkId) {
        let lost: Vec<StreamId> =
            self.legs.keys().filter(|(of, _)| *of == link).map(|(_, stream)| *stream).collect();
        for stream in lost {
            self.leg_reset(link, stream);
        }
    }

    fn upstream(&mut self, key: PlanKey, attempt: AttemptId, part: Part) {
        match key {
            PlanKey::Client(dial) => self.client_part(dial, attempt, part),
            PlanKey::Home { link, dial, attempt } => {
                self.send(link, 1, Payload::Peer(PeerMessage::Stream { dial, attempt, part }));
            }
        }
    }

    pub(crate) fn leg_send(&mut self, link: LinkId, stream: StreamId, part: Part) {
        let Some(leg) = self.legs.get_mut(&(link, stream)) else { return };
        match part {
            Part::Data(bytes) => leg.waiting.push_back(bytes),
            Part::Finish => leg.finish_asked = true,
            Part::Reset => {
                self.drop_leg(link, stream);
                return;
            }
        }
        self.leg_flush(link, stream);
    }

    pub(crate) fn leg_flush(&mut self, link: LinkId, stream: StreamId) {
        let Some(host) = self.tunnel_host(link, 1) else { return };
        let now = self.local(host);
        let Some(mux) = self.tunnels.get_mut(&link).and_then(|tunnel| tunnel.muxes[1].as_mut()) else {
            return;
        };
        let Some(leg) = self.legs.get_mut(&(link, stream)) else { return };
        while let Some(mut bytes) = leg.waiting.pop_front() {
            let part = bytes.split_to(bytes.len().min(mux.send_capacity(stream)));
            if mux.send(stream, part, now).is_err() {
                break;
            }
            if !bytes.is_empty() {
                leg.waiting.push_front(bytes);
                self.coverage.note(Mark::StreamBlocked);
                break;
            }
        }
        if leg.waiting.is_empty() && leg.finish_asked && !leg.finish_sent {
            leg.finish_sent = true;
            mux.finish(stream, now);
        }
        self.touch(Machine::Mux(link, 1));
        self.leg_over(link, stream);
    }

    fn leg_over(&mut self, link: LinkId, stream: StreamId) {
        if let Some(leg) = self.legs.get(&(link, stream))
            && leg.finish_sent
            && leg.peer_finished
        {
            let key = leg.key;
            self.legs.remove(&(link, stream));
            self.home_over(key);
        }
    }

    fn home_over(&mut self, key: PlanKey) {
        if let PlanKey::Home { .. } = key {
            self.plans.remove(&key);
        }
    }

    pub(crate) fn drop_leg(&mut self, link: LinkId, stream: StreamId) {
        if self.legs.remove(&(link, stream)).is_some() {
            if let Some((mux, _)) = self.mux(link, 1) {
                mux.reset(stream, ResetCode::CANCELLED);
            }
            self.touch(Machine::Mux(link, 1));
        }
    }
}

/// Streams between proxies.
impl World {
    pub(crate) fn peer_part(
        &mut self,
        link: LinkId,
        side: usize,
        dial: usize,
        attempt: AttemptId,
        part: Part,
    ) {
        if side == 0 {
            let key = PlanKey::Client(dial);
            let is_mine = self
                .plans
                .get(&key)
                .is_some_and(|plan| plan.attempts.get(&attempt) == Some(&Via::Peer(link)));
            if is_mine {
                for part in self.corrupt(part) {
                    self.client_part(dial, attempt, part);
                }
            }
            return;
        }
        let key = PlanKey::Home { link, dial, attempt };
        if matches!(part, Part::Reset) {
            self.drop_served(key);
            return;
        }
        let Some(plan) = self.plans.get(&key) else { return };
        let leg = plan.attempts.values().find_map(|via| match via {
            Via::Leg(link, stream) if self.legs.contains_key(&(*link, *stream)) => Some((*link, *stream)),
            Via::Leg(..) | Via::Peer(_) => None,
        });
        if let Some((link, stream)) = leg {
            self.leg_send(link, stream, part);
        }
    }

    /// A peer's dial is over: its legs are dropped.
    fn drop_served(&mut self, key: PlanKey) {
        let vias: Vec<Via> =
            self.plans.remove(&key).into_iter().flat_map(|plan| plan.attempts.into_values()).collect();
        for via in vias {
            if let Via::Leg(link, stream) = via {
                self.drop_leg(link, stream);
            }
        }
    }

    fn corrupt(&mut self, part: Part) -> Vec<Part> {
        match (self.mutation, part) {
            (Some(Mutation::ReplayByte), Part::Data(bytes)) if self.random.chance(5) => {
                let again = bytes.slice(..1);
                vec![Part::Data(bytes), Part::Data(again)]
            }
            (Some(Mutation::LosePiece), Part::Data(_)) if self.random.chance(5) => Vec::new(),
            (_, part) => vec![part],
        }
    }

    /// The peer that dialled is gone: its dials here are dropped.
    pub(crate) fn served_dials_lost(&mut self, lost: LinkId) {
        let mine = |key: &PlanKey| matches!(key, PlanKey::Home { link, .. } if *link == lost);
        let keys: Vec<PlanKey> = self.plans.keys().filter(|key| mine(key)).copied().collect();
        for key in keys {
            self.drop_served(key);
        }
    }

    /// The peer that was dialled is gone: attempts fail, streams are cut.
    pub(crate) fn made_dials_lost(&mut self, link: LinkId) {
        let over_it = |plan: &Plan| {
            let hits = plan.attempts.iter().filter(|(_, via)| **via == Via::Peer(link));
            hits.map(|(attempt, _)| *attempt).collect::<Vec<_>>()
        };
        let hit: Vec<(PlanKey, Vec<AttemptId>)> =
            self.plans.iter().map(|(key, plan)| (*key, over_it(plan))).collect();
        for (key, attempts) in hit {
            for attempt in attempts {
                match key {
                    PlanKey::Client(dial) if self.is_established(dial, attempt) => {
                        self.client_part(dial, attempt, Part::Reset)
                    }
                    PlanKey::Client(_) | PlanKey::Home { .. } => {
                        self.refuse(key, attempt, Refusal::Unreachable)
                    }
                }
            }
        }
    }

    /// Nothing of a dead process goes on.
    pub(crate) fn life_is_dead(&mut self, life: usize) {
        let mine: Vec<PlanKey> =
            self.plans.iter().filter(|(_, plan)| plan.life == life).map(|(key, _)| *key).collect();
        for key in mine {
            self.plans.remove(&key);
            self.legs.retain(|_, leg| leg.key != key);
            if let PlanKey::Client(dial) = key {
                self.client_ingress_died(dial);
            }
        }
    }
}
