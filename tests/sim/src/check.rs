//! What must hold.

use crate::client::{Carries, Progress};
use crate::coverage::Mark;
use crate::network::{Host, LinkId};
use crate::proxy::State;
use crate::scenario::slot_of;
use crate::session::Phase;
use crate::tunnel::Tunnel;
use crate::world::World;
use std::collections::BTreeSet;
use std::time::Duration;
use wayleave_peering::{DialError, Refusal, RouteState, Way};
use wayleave_tunnel::Connected;
use wayleave_vocab::{HostId, TunnelStrategy};

/// Once an agent can be reached for this long, a dial that fails is a violation.
const REACHABLE_WITHIN: Duration = Duration::from_millis(2500);
/// Before the end no agent dials for this long.
const RESTS_FOR: Duration = Duration::from_secs(25);

impl World {
    /// A dial has failed: was the agent really out of reach?
    pub(crate) fn check_failed(&mut self, number: usize) {
        let dial = &self.dials[number];
        let (life, agent) = (dial.life, dial.agent);
        let home = self.tunnels.iter().find(|(id, tunnel)| {
            let time = self.time_for(number, tunnel.life);
            tunnel.agent == agent
                && self.is_solid(**id, tunnel, time)
                && self.can_reach(life, tunnel.life, agent, time)
        });
        if let Some((_, tunnel)) = home {
            let home = tunnel.life;
            let progress = format!("{:?}", self.dials[number].progress);
            self.violate(format!(
                "dial {number} at proxy life {life} missed agent {agent}, which has a tunnel to life {home}: {progress}"
            ));
        } else if self.dials[number].is_final {
            self.violate(format!("dial {number} failed though nothing is wrong"));
        } else {
            let has_any = self.tunnels.values().any(|tunnel| tunnel.agent == agent);
            if !has_any {
                self.note(Mark::DialReachable);
            }
        }
    }

    /// How long all must have been well for a dial to have to find a home proxy. One that was tried and did
    /// not answer is not tried again: then it must have been well from the beginning.
    fn time_for(&self, number: usize, home: usize) -> Duration {
        let dial = &self.dials[number];
        let (Progress::Failed(DialError::Offline { tried })
        | Progress::Failed(DialError::TimedOut { tried })) = &dial.progress
        else {
            return REACHABLE_WITHIN;
        };
        let id = self.lives[home].id;
        let is_home = |way: Way| match way {
            Way::Local { .. } => home == dial.life,
            Way::Peer { proxy, .. } => proxy == id,
        };
        let count = |refusal: Refusal| {
            tried.iter().filter(|tried| is_home(tried.way) && tried.refusal == refusal).count()
        };
        // Nor is one that twice could not be reached.
        let is_given_up = count(Refusal::TimedOut) > 0 || count(Refusal::Unreachable) > 1;
        if is_given_up { self.now.since(dial.at).max(REACHABLE_WITHIN) } else { REACHABLE_WITHIN }
    }

    /// The tunnel has been up at both ends, over a good way, for long enough.
    fn is_solid(&self, id: LinkId, tunnel: &Tunnel, time: Duration) -> bool {
        let is_long = |at: Option<wayleave_vocab::Mono>| at.is_some_and(|at| self.now.since(at) >= time);
        let hosts = [Host::Agent(tunnel.agent), Host::Proxy(self.lives[tunnel.life].slot)];
        tunnel.muxes.iter().all(Option::is_some)
            && tunnel.ready_at.into_iter().all(is_long)
            && !tunnel.is_leaving
            && tunnel.is_published
            && self.is_sound(id)
            && self.lives[tunnel.life].is_alive()
            && self.ways.is_good_for(hosts[0], hosts[1], time, self.now)
    }

    fn is_sound(&self, id: LinkId) -> bool {
        self.links.get(&id).is_some_and(|link| link.closed == [false; 2] && !link.is_silent)
    }

    /// The ingress proxy could have dialled the home proxy, and could have known that it is one.
    fn can_reach(&self, ingress: usize, home: usize, agent: usize, time: Duration) -> bool {
        if ingress == home {
            return true;
        }
        let (from, to) = (&self.lives[ingress], &self.lives[home]);
        let hosts = [Host::Proxy(from.slot), Host::Proxy(to.slot)];
        let good = |a: Host, b: Host| self.ways.is_good_for(a, b, time, self.now);
        let Some(link) = self.peer_link_to(ingress, to.id, to.incarnation) else { return false };
        let is_connected = self
            .peerings
            .get(&link)
            .and_then(|peering| peering.up_at)
            .is_some_and(|at| self.now.since(at) >= time);
        if !is_connected || !self.is_sound(link) || !good(hosts[0], hosts[1]) {
            return false;
        }
        let hears = from.deaf.is_none() && self.now.since(from.deaf_until) >= time;
        let backend_now = self.local(Host::Backend);
        let can_ask = !self.backend.is_stalled
            && backend_now.since(self.backend.stalled_changed_at) >= time
            && good(hosts[0], Host::Backend)
            && self
                .backend
                .stored((to.id, to.incarnation))
                .is_some_and(|agents| agents.contains(&self.agents[agent].id));
        hears || can_ask
    }

    /// A leaving proxy's grace is over: whoever could have gone elsewhere has.
    pub(crate) fn check_drained(&mut self, life: usize) {
        let time = crate::proxy::GRACE - Duration::from_secs(2);
        let slot = self.lives[life].slot;
        let others: Vec<usize> = (0..self.lives.len())
            .filter(|other| *other != life && self.lives[*other].state == State::Running)
            .collect();
        let stuck: Vec<usize> = self
            .tunnels
            .iter()
            .filter(|(id, tunnel)| tunnel.life == life && self.is_solid(**id, tunnel, REACHABLE_WITHIN))
            .map(|(_, tunnel)| tunnel.agent)
            .filter(|agent| {
                let good = |slot: usize| {
                    self.ways.is_good_for(Host::Agent(*agent), Host::Proxy(slot), time, self.now)
                };
                let is_alone = !self
                    .tunnels
                    .iter()
                    .any(|(id, t)| t.agent == *agent && t.life != life && self.is_sound(*id));
                let can_move = others.iter().all(|other| {
                    let other = &self.lives[*other];
                    let answers_since = other.since.max(other.answers_since);
                    good(other.slot) && other.is_hung == 0 && self.now.since(answers_since) >= time
                });
                is_alone && good(slot) && can_move && !others.is_empty()
            })
            .collect();
        if let Some(agent) = stuck.first() {
            self.violate(format!(
                "agent {agent} has not left proxy life {life}, which has told it to, for another"
            ));
        }
    }

    /// Everything has been well for a minute: tunnels and routes are exact. The last dials are made.
    pub(crate) fn check_converged(&mut self) {
        let running: Vec<usize> =
            (0..self.lives.len()).filter(|life| self.lives[*life].state == State::Running).collect();
        let expected = self.slots.iter().filter(|slot| !slot.is_gone).count();
        if running.len() != expected {
            self.violate(format!("{} proxies run, not {expected}", running.len()));
        }
        for agent in 0..self.agents.len() {
            self.check_tunnels(agent, &running);
            self.check_routes(agent, &running);
        }
        for life in &running {
            self.check_stored(*life);
        }
        let stuck = self
            .dials
            .iter()
            .position(|dial| matches!(dial.progress, Progress::Dialling | Progress::Talking { .. }));
        if let Some(stuck) = stuck {
            let what = format!("dial {stuck} is stuck: {:?}", self.dials[stuck]);
            self.violate(what);
        }
        let stuck = self.sessions.iter().position(|session| session.phase != Phase::Over);
        if let Some(stuck) = stuck {
            let what = format!("session {stuck} is stuck: {:?}", self.sessions[stuck]);
            self.violate(what);
        }
        for life in running {
            for agent in 0..self.agents.len() {
                self.new_dial(life, agent, Carries::Bytes(20_000), true);
            }
        }
    }

    fn check_tunnels(&mut self, agent: usize, running: &[usize]) {
        let target = match self.backend.strategy() {
            TunnelStrategy::AgentMesh => running.len(),
            TunnelStrategy::ProxyPeering { agent_connection_count } => {
                running.len().min(usize::from(agent_connection_count.get()))
            }
        };
        let mine: Vec<&Tunnel> = self.tunnels.values().filter(|tunnel| tunnel.agent == agent).collect();
        let lives: BTreeSet<usize> = mine.iter().map(|tunnel| tunnel.life).collect();
        let is_exact = mine.len() == target
            && lives.len() == target
            && lives.iter().all(|life| running.contains(life))
            && mine.iter().all(|tunnel| tunnel.muxes.iter().all(Option::is_some) && !tunnel.is_leaving);
        let mut truth: Vec<Connected> = lives
            .iter()
            .map(|life| Connected { proxy: self.lives[*life].id, incarnation: self.lives[*life].incarnation })
            .collect();
        truth.sort_unstable();
        let process = &self.agents[agent];
        let published = process.published.clone();
        let known = process.pool.as_ref().map(wayleave_tunnel::Pool::connected);
        if !is_exact {
            let links: Vec<usize> = mine.iter().map(|tunnel| tunnel.life).collect();
            self.violate(format!(
                "agent {agent} has tunnels to lives {links:?}, wants {target} of {running:?}"
            ));
        } else if known.as_ref() != Some(&truth) || published != truth {
            self.violate(format!(
                "agent {agent} has {truth:?}, believes {known:?}, has published {published:?}"
            ));
        }
    }

    fn check_routes(&mut self, agent: usize, running: &[usize]) {
        let id = self.agents[agent].id;
        let homes: BTreeSet<HostId> = self
            .tunnels
            .values()
            .filter(|tunnel| tunnel.agent == agent)
            .map(|tunnel| self.lives[tunnel.life].id)
            .collect();
        for life in running {
            let own = self.lives[*life].id;
            let candidates = self.lives[*life].table.candidates(id);
            let mut expected = homes.clone();
            expected.remove(&own);
            let believed: BTreeSet<HostId> = candidates.iter().map(|candidate| candidate.proxy).collect();
            let is_fresh = candidates.iter().all(|candidate| candidate.state == RouteState::Fresh);
            if believed != expected || !is_fresh || candidates.len() != expected.len() {
                let slots: Vec<usize> = expected.iter().map(|proxy| slot_of(*proxy)).collect();
                self.violate(format!(
                    "life {life} believes {candidates:?} of agent {agent}, which is at {slots:?}"
                ));
            }
        }
    }

    fn check_stored(&mut self, life: usize) {
        let truth: BTreeSet<HostId> = self
            .tunnels
            .values()
            .filter(|tunnel| tunnel.life == life)
            .map(|tunnel| self.agents[tunnel.agent].id)
            .collect();
        let key = (self.lives[life].id, self.lives[life].incarnation);
        if self.backend.stored(key) != Some(&truth) {
            let stored = format!("{:?}", self.backend.stored(key));
            self.violate(format!("the backend has {stored} of life {life}, not {truth:?}"));
        }
    }

    /// The end: the last dials have come through, and everything rests.
    pub(crate) fn check_end(&mut self) {
        for (number, dial) in self.dials.iter().enumerate() {
            if dial.is_final && dial.progress != Progress::Completed {
                let what = format!("dial {number} made at {:?} has not come through: {dial:?}", dial.at);
                self.violate(what);
                return;
            }
        }
        let echoes: usize = self.agents.iter().map(|agent| agent.echoes.len()).sum();
        let kept: usize = self.agents.iter().map(|agent| agent.kept.len()).sum();
        if self.plans.len() + self.legs.len() + echoes + kept > 0 {
            let what = format!(
                "{} plans, {} legs, {echoes} streams, {kept} sessions are left over",
                self.plans.len(),
                self.legs.len()
            );
            self.violate(what);
        }
        for agent in 0..self.agents.len() {
            let now = self.local(Host::Agent(agent));
            let process = &self.agents[agent];
            // Who hears from a liar alone goes on asking Auth.
            let is_soon = |at: wayleave_vocab::Mono| process.is_confirmed && at.since(now) < RESTS_FOR;
            let is_restless = self.now.since(process.dialled_at) < RESTS_FOR
                || process.pool.as_ref().is_none_or(|pool| pool.poll_timeout().is_some_and(is_soon));
            if is_restless {
                self.violate(format!("agent {agent} does not rest"));
            }
        }
    }
}
