//! What follows from what is known: dial, give up, or wait. Level-triggered, safe to run at any time.

use crate::effect::{CloseReason, Effect, TunnelId};
use crate::jitter::mix;
use crate::pool::{Improvement, Pool, Target, Tunnel};
use crate::proxies::{ProxyInfo, Zone};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wayleave_vocab::{HostId, HostPort, Incarnation, Mono, TunnelStrategy};

/// The tunnels as the strategy counts them.
struct Census {
    /// One tunnel for each proxy that is here to stay.
    counted: BTreeMap<HostId, TunnelId>,
    /// Tunnels to proxies that are leaving or to former lives of one.
    leaving: Vec<TunnelId>,
    /// How many should be counted.
    target: usize,
}

impl Pool {
    /// Compares what is with what should be. Ends with a new `wake_at`.
    pub(crate) fn reconcile(&mut self, now: Mono) {
        self.wake_at = None;
        if let Some(deadline) = self.inquiry.ask(&self.config, now) {
            self.effects.push_back(Effect::AskAuth { deadline });
        }
        if let Some(strategy) = self.strategy {
            let census = self.census(strategy);
            if self.bootstrap.is_empty() && self.proxies.live().next().is_none() {
                // Auth was asked directly, before it knew a proxy.
                self.inquiry.doubt(&self.config, &mut self.jitter, now);
            }
            if census.counted.len() >= census.target {
                self.give_up(&census, now);
                self.improve(&census, now);
            } else {
                self.dial(&census, now);
            }
        }
        self.wake(self.inquiry.poll_timeout());
        self.publish();
    }

    fn census(&self, strategy: TunnelStrategy) -> Census {
        let mut lives: BTreeMap<HostId, (Incarnation, TunnelId)> = BTreeMap::new();
        let mut leaving = Vec::new();
        for (id, tunnel) in &self.tunnels {
            let Tunnel::Up { connected, told_to_leave, .. } = tunnel else { continue };
            let (proxy, life) = (connected.proxy, connected.incarnation);
            let is_former = lives.get(&proxy).is_some_and(|(newest, _)| *newest > life);
            if is_former || *told_to_leave || self.proxies.is_leaving(proxy, life) {
                leaving.push(*id);
            } else if let Some((_, former)) = lives.insert(proxy, (life, *id)) {
                leaving.push(former);
            }
        }
        let counted: BTreeMap<HostId, TunnelId> =
            lives.into_iter().map(|(proxy, (_, id))| (proxy, id)).collect();
        let mut reachable: BTreeSet<HostId> = self.proxies.live().map(|proxy| proxy.id).collect();
        reachable.extend(counted.keys());
        let all = reachable.len().max(1);
        let target = match strategy {
            TunnelStrategy::AgentMesh => all,
            TunnelStrategy::ProxyPeering { agent_connection_count } => {
                let wanted = usize::from(agent_connection_count.get());
                if self.proxies.is_known() { wanted.min(all) } else { wanted }
            }
        };
        Census { counted, leaving, target }
    }

    /// Enough tunnels are up: leaving ones are drained, surplus ones too, attempts are dropped.
    fn give_up(&mut self, census: &Census, now: Mono) {
        let is_improving =
            |id: &TunnelId| census.counted.len() == census.target && self.improvement.attempt == Some(*id);
        let attempts: Vec<TunnelId> =
            self.attempts().map(|(id, ..)| id).filter(|id| !is_improving(id)).collect();
        for id in attempts {
            self.tunnels.remove(&id);
            self.effects.push_back(Effect::Abandon { id });
        }
        for id in &census.leaving {
            self.close(*id, CloseReason::Replaced);
        }
        let mut kept = census.counted.clone();
        if kept.len() > census.target && now < self.excess_until {
            self.wake(self.excess_until);
            return;
        }
        while kept.len() > census.target {
            let Some((proxy, id)) = self.least_useful(&kept) else { return };
            kept.remove(&proxy);
            self.close(id, CloseReason::Excess);
        }
    }

    /// As many tunnels as there should be: are they spread as well as they can be? If not, one more is sought now and
    /// then; when it is up, the least useful one is surplus.
    fn improve(&mut self, census: &Census, now: Mono) {
        let uncovered = self.uncovered(census);
        if census.counted.len() != census.target || uncovered.is_empty() {
            self.improvement = Improvement::default();
            return;
        }
        if let Some(Tunnel::Dialling { deadline, .. }) =
            self.improvement.attempt.and_then(|id| self.tunnels.get(&id))
        {
            self.wake(*deadline);
            return;
        }
        let due = match self.improvement.due {
            Some(due) => due,
            None => self.plan_improvement(now),
        };
        if now < due {
            self.wake(due);
            return;
        }
        if self.improvement.tries == 0 && now >= self.search.not_before {
            self.search_anew();
        }
        match self.choose_improvement(&uncovered, now) {
            Some((target, address)) => {
                self.improvement.attempt = Some(self.start(target, address, now));
                self.improvement.tries += 1;
                if self.improvement.tries >= self.config.improve_tries {
                    self.plan_improvement(now);
                }
                self.wake(now.after(self.config.dial_deadline));
            }
            None => {
                let direct = uncovered.iter().map(|(id, _)| Target::Proxy(*id));
                let shared = (0..self.bootstrap.len()).map(Target::Shared);
                let times = direct.chain(shared).map(|target| self.until(target));
                let later = times.chain([self.search.not_before]).filter(|at| *at > now).min();
                let later = later.unwrap_or_else(|| self.plan_improvement(now));
                self.wake(later);
            }
        }
    }

    /// A proxy in a zone without a tunnel at its own address, else whoever answers at a shared one. Addresses that have
    /// failed may not work from here at all: they come last, and are tried again at the end of a search.
    fn choose_improvement(
        &mut self,
        uncovered: &[(HostId, Option<HostPort>)],
        now: Mono,
    ) -> Option<(Target, HostPort)> {
        let direct = uncovered
            .iter()
            .filter(|(id, _)| self.until(Target::Proxy(*id)) <= now)
            .filter_map(|(id, address)| Some((*id, address.clone()?)))
            .min_by_key(|(id, _)| (self.failed_wait(*id), self.rank(*id)));
        let is_last = self.improvement.tries + 1 >= self.config.improve_tries;
        match direct {
            Some((id, address)) if self.failed_wait(id).is_zero() || is_last || self.bootstrap.is_empty() => {
                Some((Target::Proxy(id), address))
            }
            Some(_) | None => self.choose_shared(now),
        }
    }

    fn failed_wait(&self, proxy: HostId) -> Duration {
        self.backoffs.get(&Target::Proxy(proxy)).map(|backoff| backoff.wait()).unwrap_or_default()
    }

    fn plan_improvement(&mut self, now: Mono) -> Mono {
        let wait = self.improvement.wait.saturating_mul(2);
        let wait = wait.clamp(self.config.improve_wait_min, self.config.improve_wait_max);
        self.improvement.wait = wait;
        self.improvement.tries = 0;
        let due = now.after(self.jitter.between(wait / 2, wait));
        self.improvement.due = Some(due);
        due
    }

    /// Proxies in zones without a tunnel, if tunnels crowd in another zone.
    fn uncovered(&self, census: &Census) -> Vec<(HostId, Option<HostPort>)> {
        let zones = self.zones(census.counted.keys());
        if !zones.iter().any(|(zone, count)| zone.is_some() && *count > 1) {
            return Vec::new();
        }
        self.missing(census)
            .filter(|proxy| proxy.zone.is_some() && !zones.contains_key(&proxy.zone))
            .map(|proxy| (proxy.id, proxy.address.clone()))
            .collect()
    }

    /// Unlisted proxies go first, then those in crowded zones, then the newest tunnels.
    fn least_useful(&self, kept: &BTreeMap<HostId, TunnelId>) -> Option<(HostId, TunnelId)> {
        let zones = self.zones(kept.keys());
        kept.iter().map(|(proxy, id)| (*proxy, *id)).max_by_key(|(proxy, id)| {
            let info = self.proxies.get(*proxy);
            let crowd = info.and_then(|info| zones.get(&info.zone)).copied().unwrap_or(0);
            (info.is_none(), crowd, *id)
        })
    }

    /// How many of the proxies stand in each zone.
    fn zones<'a>(&self, proxies: impl Iterator<Item = &'a HostId>) -> BTreeMap<Option<Zone>, usize> {
        let mut zones = BTreeMap::new();
        for info in proxies.filter_map(|proxy| self.proxies.get(*proxy)) {
            *zones.entry(info.zone.clone()).or_insert(0) += 1;
        }
        zones
    }

    fn close(&mut self, id: TunnelId, reason: CloseReason) {
        self.tunnels.insert(id, Tunnel::Leaving);
        self.effects.push_back(Effect::Close { id, reason });
    }

    /// Too few tunnels are up: as many attempts as are missing, hung ones not counted.
    fn dial(&mut self, census: &Census, now: Mono) {
        let hedge_after = self.config.hedge_after;
        let fresh = self.hung_at().filter(|at| now < *at).count();
        let mut missing = census.target.saturating_sub(census.counted.len() + fresh);
        if !self.proxies.is_known() {
            // The first tunnel brings the list, and with it the choice of zones.
            let list_is_due = fresh > 0 || self.ups_since().any(|since| now < since.after(hedge_after));
            missing = missing.min(usize::from(!list_is_due));
        }
        for _ in 0..missing {
            let in_flight = self.attempts().count();
            if now < self.not_before || in_flight >= self.config.dials_max {
                break;
            }
            let Some((target, address)) = self.choose(census, now) else { break };
            self.start(target, address, now);
        }
        self.schedule_wake(census, now);
    }

    fn start(&mut self, target: Target, address: HostPort, now: Mono) -> TunnelId {
        let id = self.next_tunnel_id();
        let deadline = now.after(self.config.dial_deadline);
        let wanted = match target {
            Target::Proxy(proxy) => Some(proxy),
            Target::Shared(_) => None,
        };
        if wanted.is_none() {
            self.search.tries += 1;
            if self.search.tries > self.search_tries_max() {
                self.search.tries = 0;
                let rest = self.config.search_rest;
                self.search.not_before = now.after(self.jitter.between(rest / 2, rest));
            }
        }
        self.tunnels.insert(id, Tunnel::Dialling { target, started_at: now, deadline });
        let avoid = self.connected();
        self.effects.push_back(Effect::Dial { id, address, wanted, avoid, deadline });
        id
    }

    fn search_tries_max(&self) -> u32 {
        let known = u32::try_from(self.proxies.live().count()).unwrap_or(u32::MAX).max(1);
        self.config.search_tries.saturating_mul(known.saturating_add(1))
    }

    /// The best thing to try now.
    fn choose(&mut self, census: &Census, now: Mono) -> Option<(Target, HostPort)> {
        let is_hung = self.is_direct_hung(now);
        if is_hung && let Some(shared) = self.choose_shared(now) {
            return Some(shared);
        }
        if let Some((proxy, address)) = self.choose_proxy(census, now) {
            return Some((Target::Proxy(proxy), address));
        }
        if is_hung || self.needs_shared(census) { self.choose_shared(now) } else { None }
    }

    /// More attempts at proxies' own addresses hang than are made at the shared ones: such addresses may not work from
    /// here at all, and what leads to a proxy that hangs leads to another the next time.
    fn is_direct_hung(&self, now: Mono) -> bool {
        let hedge_after = self.config.hedge_after;
        let is_direct = |target: Target| proxy_of(target).is_some();
        let shared = self.attempts().filter(|(_, target, _)| !is_direct(*target)).count();
        let is_hung =
            |(_, target, at): &(_, Target, Mono)| is_direct(*target) && now >= at.after(hedge_after);
        self.attempts().filter(is_hung).count() > shared
    }

    fn choose_shared(&mut self, now: Mono) -> Option<(Target, HostPort)> {
        if now < self.search.not_before {
            return None;
        }
        let count = self.bootstrap.len();
        let index = (0..count)
            .map(|step| (self.search.next_address + step) % count)
            .find(|index| self.until(Target::Shared(*index)) <= now)?;
        self.search.next_address = (index + 1) % count;
        self.bootstrap.get(index).map(|address| (Target::Shared(index), address.clone()))
    }

    /// A missing proxy with an address of its own: in a zone without a tunnel first, then one that has not
    /// failed, then in an order that differs between agents.
    fn choose_proxy(&self, census: &Census, now: Mono) -> Option<(HostId, HostPort)> {
        let dialled: Vec<HostId> = self.attempts().filter_map(|(_, target, _)| proxy_of(target)).collect();
        let zones = self.zones(census.counted.keys().chain(&dialled));
        self.missing(census)
            .filter(|proxy| !dialled.contains(&proxy.id) && self.until(Target::Proxy(proxy.id)) <= now)
            .filter_map(|proxy| Some((proxy, proxy.address.as_ref()?)))
            .min_by_key(|(proxy, _)| {
                let crowd = zones.get(&proxy.zone).copied().unwrap_or(0);
                (crowd, self.failed_wait(proxy.id), self.rank(proxy.id))
            })
            .map(|(proxy, address)| (proxy.id, address.clone()))
    }

    fn missing<'a>(&'a self, census: &'a Census) -> impl Iterator<Item = &'a ProxyInfo> {
        self.proxies.live().filter(|proxy| !census.counted.contains_key(&proxy.id))
    }

    /// A missing proxy cannot be, or could not be, reached by an address of its own.
    fn needs_shared(&self, census: &Census) -> bool {
        let mut missing = self.missing(census).peekable();
        missing.peek().is_none()
            || missing.any(|proxy| {
                let backoff = self.backoffs.get(&Target::Proxy(proxy.id));
                proxy.address.is_none() || backoff.is_some_and(|backoff| backoff.has_failed())
            })
    }

    fn rank(&self, proxy: HostId) -> u64 {
        let (high, low) = proxy.as_bytes().split_at(8);
        let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        mix(self.rank_seed ^ mix(number(high)) ^ number(low))
    }

    fn until(&self, target: Target) -> Mono {
        self.backoffs.get(&target).map_or(Mono::ZERO, |backoff| backoff.until())
    }

    /// Attempts under way: id, target, start.
    fn attempts(&self) -> impl Iterator<Item = (TunnelId, Target, Mono)> {
        self.tunnels.iter().filter_map(|(id, tunnel)| match tunnel {
            Tunnel::Dialling { target, started_at, .. } => Some((*id, *target, *started_at)),
            Tunnel::Up { .. } | Tunnel::Leaving => None,
        })
    }

    /// When each attempt will have taken too long to wait for. Those made beside others are given ever more time: a proxy
    /// that many dial at once is not helped by more attempts.
    fn hung_at(&self) -> impl Iterator<Item = Mono> {
        let waits = (0..u32::BITS).map(|number| self.config.hedge_after * (1 << number.min(8)));
        self.attempts().zip(waits).map(|((_, _, started_at), wait)| started_at.after(wait))
    }

    /// When each tunnel came up.
    fn ups_since(&self) -> impl Iterator<Item = Mono> {
        self.tunnels.values().filter_map(|tunnel| match tunnel {
            Tunnel::Up { since, .. } => Some(*since),
            Tunnel::Dialling { .. } | Tunnel::Leaving => None,
        })
    }

    fn wake(&mut self, at: Mono) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Wakes for whatever could allow another attempt, or ends one.
    fn schedule_wake(&mut self, census: &Census, now: Mono) {
        let mut times: Vec<Mono> = Vec::new();
        for tunnel in self.tunnels.values() {
            if let Tunnel::Dialling { deadline, .. } = tunnel {
                times.push(*deadline);
            }
        }
        times.extend(self.hung_at());
        if !self.proxies.is_known() {
            times.extend(self.ups_since().map(|since| since.after(self.config.hedge_after)));
        }
        if self.attempts().count() < self.config.dials_max {
            let direct = self.missing(census).filter(|proxy| proxy.address.is_some());
            times.extend(direct.map(|proxy| self.until(Target::Proxy(proxy.id)).max(self.not_before)));
            let shared = (0..self.bootstrap.len()).map(|index| self.until(Target::Shared(index)));
            times.extend(shared.map(|until| until.max(self.search.not_before).max(self.not_before)));
        }
        if let Some(at) = times.into_iter().filter(|at| *at > now).min() {
            self.wake(at);
        }
    }
}

fn proxy_of(target: Target) -> Option<HostId> {
    match target {
        Target::Proxy(proxy) => Some(proxy),
        Target::Shared(_) => None,
    }
}
