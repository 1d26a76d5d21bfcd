//! The machine: what it knows, and what it is told. What follows from it is in `reconcile`.

use crate::backoff::Backoff;
use crate::config::Config;
use crate::effect::{CloseReason, Connected, DialFailure, Effect, TunnelId};
use crate::inquiry::Inquiry;
use crate::jitter::Jitter;
use crate::proxies::{Proxies, ProxyList, ProxyListError};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use wayleave_vocab::{HostId, HostPort, Incarnation, Mono, TunnelStrategy};

/// What an attempt is aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// A proxy at its own address.
    Proxy(HostId),
    /// The bootstrap address of this index, which may be shared by several proxies.
    Shared(usize),
}

#[derive(Debug)]
pub(crate) enum Tunnel {
    Dialling {
        target: Target,
        started_at: Mono,
        deadline: Mono,
    },
    Up {
        connected: Connected,
        target: Target,
        since: Mono,
        told_to_leave: bool,
    },
    /// Closed by us; its streams are finishing.
    Leaving,
}

/// The search for more proxies behind shared addresses.
#[derive(Debug, Default)]
pub(crate) struct Search {
    pub(crate) tries: u32,
    /// Answers "already connected" since a new proxy was last reached.
    pub(crate) repeats: u32,
    pub(crate) not_before: Mono,
    pub(crate) next_address: usize,
}

/// Enough tunnels are up, but they crowd in one zone while another has none: one attempt at a time is made for that.
#[derive(Debug, Default)]
pub(crate) struct Improvement {
    /// The attempt, while it is under way.
    pub(crate) attempt: Option<TunnelId>,
    /// The next one; none while nothing is to be improved.
    pub(crate) due: Option<Mono>,
    pub(crate) wait: Duration,
    /// Attempts since it was due.
    pub(crate) tries: u32,
}

/// An agent's pool of tunnels. See the crate's documentation.
#[derive(Debug)]
pub struct Pool {
    pub(crate) config: Config,
    pub(crate) bootstrap: Vec<HostPort>,
    pub(crate) jitter: Jitter,
    /// Ranks proxies differently for every agent.
    pub(crate) rank_seed: u64,
    /// None is known yet: nothing is dialled.
    pub(crate) strategy: Option<TunnelStrategy>,
    pub(crate) inquiry: Inquiry,
    pub(crate) proxies: Proxies,
    pub(crate) tunnels: BTreeMap<TunnelId, Tunnel>,
    pub(crate) backoffs: BTreeMap<Target, Backoff>,
    pub(crate) search: Search,
    /// Surplus tunnels are kept until then.
    pub(crate) excess_until: Mono,
    pub(crate) improvement: Improvement,
    /// No attempt before this: agents that lost a proxy together come back apart.
    pub(crate) not_before: Mono,
    published: Vec<Connected>,
    pub(crate) effects: VecDeque<Effect>,
    next_id: u64,
    pub(crate) wake_at: Option<Mono>,
}

impl Pool {
    /// A pool that knows addresses where some proxy answers, and nothing else. It dials once it is told the strategy.
    /// `seed` should be random and differ between agents.
    pub fn new(config: Config, bootstrap: Vec<HostPort>, seed: u64, now: Mono) -> Self {
        let mut jitter = Jitter::new(seed);
        let rank_seed = jitter.next_u64();
        let inquiry = Inquiry::new(&config, now);
        let mut pool = Self {
            config,
            bootstrap,
            jitter,
            rank_seed,
            strategy: None,
            inquiry,
            proxies: Proxies::default(),
            tunnels: BTreeMap::new(),
            backoffs: BTreeMap::new(),
            search: Search::default(),
            excess_until: now,
            improvement: Improvement::default(),
            not_before: now,
            published: Vec::new(),
            effects: VecDeque::new(),
            next_id: 1,
            wake_at: None,
        };
        pool.reconcile(now);
        pool
    }

    /// The cluster's strategy, from policy that the agent has verified: never from what a proxy says.
    pub fn handle_strategy(&mut self, strategy: TunnelStrategy, now: Mono) {
        let former = self.strategy.replace(strategy);
        if former != Some(strategy) {
            if former == Some(TunnelStrategy::AgentMesh) {
                // Proxies hear of it at the same time, and have yet to connect to each other.
                let keep = self.config.excess_keep;
                self.excess_until = now.after(self.jitter.between(keep, keep * 2));
            }
            self.search_anew();
        }
        self.reconcile(now);
    }

    /// Auth's own list of the cluster's proxies, over a connection that ends at Auth.
    ///
    /// # Errors
    /// [`ProxyListError::TooLong`]; the former list stays, and Auth is asked again later.
    pub fn handle_answer(&mut self, list: ProxyList, now: Mono) -> Result<(), ProxyListError> {
        let before = self.live();
        let is_news = match self.proxies.replace(list) {
            Ok(is_news) => is_news,
            Err(error) => {
                self.handle_ask_failed(now);
                return Err(error);
            }
        };
        self.inquiry.answered(is_news, &self.config, &mut self.jitter, now);
        self.list_changed(&before, now);
        Ok(())
    }

    /// Auth did not answer; it is asked again after a while.
    pub fn handle_ask_failed(&mut self, now: Mono) {
        self.inquiry.failed(&self.config, &mut self.jitter, now);
        self.reconcile(now);
    }

    /// Something speaks against what is known, such as a policy that no proxy confirms any more: Auth is asked soon.
    pub fn handle_doubt(&mut self, now: Mono) {
        self.inquiry.doubt(&self.config, &mut self.jitter, now);
        self.reconcile(now);
    }

    /// What the proxy of a tunnel tells of all proxies. Used until Auth has answered; then it is only a reason to ask
    /// Auth again, so that no proxy can keep the agent from the others.
    ///
    /// # Errors
    /// [`ProxyListError::TooLong`]; nothing is changed.
    pub fn handle_proxies(&mut self, id: TunnelId, list: ProxyList, now: Mono) -> Result<(), ProxyListError> {
        let Some(Tunnel::Up { .. }) = self.tunnels.get(&id) else { return Ok(()) };
        let before = self.live();
        if self.proxies.hear(id, list)? {
            self.inquiry.doubt(&self.config, &mut self.jitter, now);
        }
        self.list_changed(&before, now);
        Ok(())
    }

    /// An attempt has become a tunnel to this life of this proxy, as its certificate and hello show.
    pub fn handle_dialled(&mut self, id: TunnelId, proxy: HostId, incarnation: Incarnation, now: Mono) {
        let Some(Tunnel::Dialling { target, .. }) = self.tunnels.get(&id) else {
            self.effects.push_back(Effect::Close { id, reason: CloseReason::Duplicate });
            return;
        };
        let target = *target;
        let connected = Connected { proxy, incarnation };
        if self.is_up(connected) {
            self.tunnels.remove(&id);
            self.effects.push_back(Effect::Close { id, reason: CloseReason::Duplicate });
            self.count_repeat(target, now);
        } else {
            self.proxies.saw(proxy, incarnation);
            if self.proxies.get(proxy).is_some() {
                self.inquiry.found();
            }
            self.tunnels.insert(id, Tunnel::Up { connected, target, since: now, told_to_leave: false });
            match target {
                // The address is not that proxy's own after all.
                Target::Proxy(wanted) if wanted != proxy => self.fail(target, now),
                Target::Proxy(_) | Target::Shared(_) => self.backoffs.entry(target).or_default().succeed(now),
            }
            self.search_anew();
        }
        self.reconcile(now);
    }

    /// An attempt gave no tunnel. An attempt that was abandoned meanwhile is ignored.
    pub fn handle_dial_failed(&mut self, id: TunnelId, failure: DialFailure, now: Mono) {
        let Some(Tunnel::Dialling { target, .. }) = self.tunnels.get(&id) else { return };
        let target = *target;
        self.tunnels.remove(&id);
        match failure {
            DialFailure::AlreadyConnected(connected) if self.is_up(connected) => {
                self.count_repeat(target, now)
            }
            // It says so of a tunnel that is not there any more: it will notice.
            DialFailure::AlreadyConnected(_) | DialFailure::Failed => self.fail(target, now),
        }
        self.reconcile(now);
    }

    /// A tunnel has ended, for whatever reason.
    pub fn handle_lost(&mut self, id: TunnelId, now: Mono) {
        self.proxies.forget(id);
        match self.tunnels.get(&id) {
            None | Some(Tunnel::Leaving) => {
                self.tunnels.remove(&id);
            }
            Some(Tunnel::Dialling { .. }) => self.handle_dial_failed(id, DialFailure::Failed, now),
            Some(Tunnel::Up { target, since, connected, .. }) => {
                let (target, since, proxy) = (*target, *since, connected.proxy);
                self.tunnels.remove(&id);
                if now.since(since) < self.config.stable_after {
                    self.fail(target, now);
                    if target != Target::Proxy(proxy) {
                        self.fail(Target::Proxy(proxy), now);
                    }
                } else {
                    self.backoffs.entry(target).or_default().forget();
                    self.spread(now);
                }
                self.search_anew();
            }
        }
        self.reconcile(now);
    }

    /// The proxy at the other end says that it is leaving: a substitute is dialled first, then the tunnel
    /// drained.
    pub fn handle_drain(&mut self, id: TunnelId, now: Mono) {
        if let Some(Tunnel::Up { told_to_leave, connected, .. }) = self.tunnels.get_mut(&id)
            && !*told_to_leave
        {
            *told_to_leave = true;
            self.proxies.leaves(connected.proxy, connected.incarnation);
            self.spread(now);
        }
        self.reconcile(now);
    }

    /// Time has passed: attempts run out, waits end.
    pub fn handle_timeout(&mut self, now: Mono) {
        let late: Vec<_> = self
            .tunnels
            .iter()
            .filter_map(|(id, tunnel)| match tunnel {
                Tunnel::Dialling { target, deadline, .. } if *deadline <= now => Some((*id, *target)),
                Tunnel::Dialling { .. } | Tunnel::Up { .. } | Tunnel::Leaving => None,
            })
            .collect();
        for (id, target) in late {
            self.tunnels.remove(&id);
            self.effects.push_back(Effect::Abandon { id });
            self.fail(target, now);
        }
        if self.inquiry.is_late(now) {
            self.inquiry.failed(&self.config, &mut self.jitter, now);
        }
        self.reconcile(now);
    }

    /// When [`Pool::handle_timeout`] wants to be called. While everything is as it should be, that is when Auth is
    /// asked again.
    pub fn poll_timeout(&self) -> Option<Mono> {
        self.wake_at
    }

    /// The next thing to do. Drain after every call.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The proxies that tunnels are up to, in order, leaving ones included.
    pub fn connected(&self) -> Vec<Connected> {
        let mut connected: Vec<_> = self
            .tunnels
            .values()
            .filter_map(|tunnel| match tunnel {
                Tunnel::Up { connected, .. } => Some(*connected),
                Tunnel::Dialling { .. } | Tunnel::Leaving => None,
            })
            .collect();
        connected.sort_unstable();
        connected
    }
}

impl Pool {
    fn live(&self) -> Vec<HostId> {
        self.proxies.live().map(|proxy| proxy.id).collect()
    }

    /// The list of proxies may not be what it was.
    fn list_changed(&mut self, live_before: &[HostId], now: Mono) {
        if self.live() != live_before {
            self.improvement.due = None;
            self.improvement.wait = Duration::ZERO;
            self.search_anew();
        }
        let proxies = &self.proxies;
        self.backoffs.retain(|target, _| match target {
            Target::Proxy(id) => proxies.get(*id).is_some(),
            Target::Shared(_) => true,
        });
        self.reconcile(now);
    }

    fn is_up(&self, wanted: Connected) -> bool {
        self.tunnels.values().any(|tunnel| match tunnel {
            Tunnel::Up { connected, .. } => *connected == wanted,
            Tunnel::Dialling { .. } | Tunnel::Leaving => false,
        })
    }

    fn fail(&mut self, target: Target, now: Mono) {
        if self.connected().is_empty() {
            // The proxies may have moved.
            self.inquiry.lost(&self.config, &mut self.jitter, now);
        }
        self.backoffs.entry(target).or_default().fail(&self.config, &mut self.jitter, now);
    }

    /// Something has changed: a new search is worth its tries.
    pub(crate) fn search_anew(&mut self) {
        self.search = Search { next_address: self.search.next_address, ..Search::default() };
    }

    fn spread(&mut self, now: Mono) {
        let wait = self.jitter.between(Duration::ZERO, self.config.spread);
        self.not_before = self.not_before.max(now.after(wait));
    }

    /// An attempt led to a proxy that is connected already: the next one may find another.
    fn count_repeat(&mut self, target: Target, now: Mono) {
        if let Target::Proxy(_) = target {
            self.fail(target, now);
            return;
        }
        self.backoffs.entry(target).or_default().succeed(now);
        let mut wait = self.config.search_wait_min;
        for _ in 0..self.search.repeats.min(64) {
            wait = (wait.saturating_mul(6) / 5).min(self.config.search_wait_max);
        }
        self.search.repeats = self.search.repeats.saturating_add(1);
        let next = now.after(self.jitter.between(wait / 2, wait));
        // The last try of a search is followed by the rest, not by another try.
        self.search.not_before = self.search.not_before.max(next);
    }

    pub(crate) fn next_tunnel_id(&mut self) -> TunnelId {
        let id = TunnelId(self.next_id);
        self.next_id += 1;
        id
    }

    pub(crate) fn publish(&mut self) {
        let connected = self.connected();
        if connected != self.published {
            self.published.clone_from(&connected);
            self.effects.push_back(Effect::Publish { connected });
        }
    }
}
