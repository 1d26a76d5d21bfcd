//! Tells the cluster about this proxy's own tunnels: to the backend in batches under a lease, and to each
//! peer directly. Only changes are told.

use crate::update::{Change, RouteUpdate};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use wayleave_vocab::{HostId, Incarnation, Mono};

/// Timers and bounds of the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublisherConfig {
    /// Changes within this time travel together.
    pub batch_after: Duration,
    /// Most routes in one write.
    pub write_routes_max: usize,
    /// Time between two writes while everything is written anew after a lost lease.
    pub rewrite_interval: Duration,
    /// Shortest wait after a failed write or lease; doubles with each failure.
    pub retry_min: Duration,
    /// Longest such wait.
    pub retry_max: Duration,
    /// How long a write, or the granting of a lease, may take.
    pub answer_deadline: Duration,
}

impl Default for PublisherConfig {
    fn default() -> Self {
        Self {
            batch_after: Duration::from_millis(5),
            write_routes_max: 500,
            rewrite_interval: Duration::from_millis(20),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
            answer_deadline: Duration::from_secs(10),
        }
    }
}

/// One batch for the backend, to be written atomically and fenced by the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteWrite {
    /// To be given back with the answer.
    pub id: u64,
    /// What changes; always a [`Change::Delta`].
    pub update: RouteUpdate,
    /// Which write of a series it is.
    pub phase: Phase,
}

/// Where a write stands in the rewriting after a new lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// An ordinary change: what is stored is complete before and after.
    Change,
    /// Part of writing everything under a new lease. Until the last part, what is stored is incomplete: who
    /// reads it may only add it to what is known (a delta with base 0), not take it for a snapshot.
    Rewrite {
        /// Nothing is stored yet, or what is stored belongs to a lost lease.
        is_first: bool,
        /// What is stored is complete afterwards.
        is_last: bool,
    },
}

/// A connection from a peer that routes are pushed over, named by the driver. Two lives of one peer have one
/// each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublisherEffect {
    /// Get a lease; answer with `handle_lease_granted` or `handle_lease_lost`.
    CreateLease,
    /// Write to the backend; answer with `handle_written` or `handle_write_failed`.
    Write(RouteWrite),
    /// Send over this connection. A peer that cannot take it must be disconnected.
    Push {
        /// The connection.
        link: LinkId,
        /// A snapshot first, deltas after.
        update: RouteUpdate,
    },
    /// Tell the backend and all peers that this life has left. The last effect.
    Withdraw {
        /// This proxy.
        proxy: HostId,
        /// This life.
        incarnation: Incarnation,
    },
}

#[derive(Debug)]
enum Lease {
    Wanted { ask_at: Mono },
    Asked { until: Mono },
    Held,
}

#[derive(Debug)]
enum Writing {
    Idle,
    /// These agents are in a write that has no answer yet.
    InFlight {
        id: u64,
        until: Mono,
        sequence: u64,
        agents: BTreeSet<HostId>,
        phase: Phase,
    },
    Waiting {
        until: Mono,
    },
}

/// The authority on this proxy's tunnels.
#[derive(Debug)]
pub struct Publisher {
    config: PublisherConfig,
    proxy: HostId,
    incarnation: Incarnation,
    /// The number of the last statement, to whomever.
    sequence: u64,
    /// The number of the last statement to all peers.
    pushed_sequence: u64,
    /// How many tunnels each agent has here.
    tunnels: BTreeMap<HostId, u32>,
    links: BTreeSet<LinkId>,
    /// Changed since the last push.
    unpushed: BTreeSet<HostId>,
    push_at: Option<Mono>,
    /// Changed since the last write.
    unwritten: BTreeSet<HostId>,
    written_sequence: u64,
    /// Agents behind this one are still to be written anew; `Some(None)` is the beginning.
    rewriting_from: Option<Option<HostId>>,
    lease: Lease,
    writing: Writing,
    failures: u32,
    next_write: u64,
    is_withdrawn: bool,
    effects: VecDeque<PublisherEffect>,
}

impl Publisher {
    /// A proxy without tunnels and without a lease. The incarnation comes from the backend.
    pub fn new(config: PublisherConfig, proxy: HostId, incarnation: Incarnation, now: Mono) -> Self {
        let mut publisher = Self {
            config,
            proxy,
            incarnation,
            sequence: 0,
            pushed_sequence: 0,
            tunnels: BTreeMap::new(),
            links: BTreeSet::new(),
            unpushed: BTreeSet::new(),
            push_at: None,
            unwritten: BTreeSet::new(),
            written_sequence: 0,
            rewriting_from: Some(None),
            lease: Lease::Wanted { ask_at: now },
            writing: Writing::Idle,
            failures: 0,
            next_write: 1,
            is_withdrawn: false,
            effects: VecDeque::new(),
        };
        publisher.go_on(now);
        publisher
    }

    /// An agent's tunnel is up. An agent may have several while one replaces another.
    pub fn handle_tunnel_up(&mut self, agent: HostId, now: Mono) {
        let count = self.tunnels.entry(agent).or_insert(0);
        *count += 1;
        if *count == 1 {
            self.changed(agent, now);
        }
    }

    /// An agent's tunnel has ended, or takes no more streams.
    pub fn handle_tunnel_down(&mut self, agent: HostId, now: Mono) {
        let Some(count) = self.tunnels.get_mut(&agent) else { return };
        *count -= 1;
        if *count == 0 {
            self.tunnels.remove(&agent);
            self.changed(agent, now);
        }
    }

    /// A peer connection was made, or the peer misses something and asks again: it gets a snapshot, then every change.
    pub fn handle_peer_connected(&mut self, link: LinkId, now: Mono) {
        if self.is_withdrawn {
            return;
        }
        self.push(now);
        self.links.insert(link);
        let update = self.snapshot();
        self.effects.push_back(PublisherEffect::Push { link, update });
    }

    /// A peer connection has ended.
    pub fn handle_peer_lost(&mut self, link: LinkId) {
        self.links.remove(&link);
    }

    /// The lease is there: everything is written under it.
    pub fn handle_lease_granted(&mut self, now: Mono) {
        if let Lease::Asked { .. } = self.lease {
            self.lease = Lease::Held;
            self.failures = 0;
            self.rewriting_from = Some(None);
            self.go_on(now);
        }
    }

    /// The lease could not be had, or is gone and all that was written with it.
    pub fn handle_lease_lost(&mut self, now: Mono) {
        let wait = self.back_off();
        self.lease = Lease::Wanted { ask_at: now.after(wait) };
        if let Writing::InFlight { agents, .. } = std::mem::replace(&mut self.writing, Writing::Idle) {
            self.unwritten.extend(agents);
        }
        self.rewriting_from = Some(None);
        self.go_on(now);
    }

    /// A write is durable.
    pub fn handle_written(&mut self, id: u64, now: Mono) {
        match std::mem::replace(&mut self.writing, Writing::Idle) {
            Writing::InFlight { id: expected, sequence, agents, phase, .. } if id == expected => {
                self.failures = 0;
                self.written_sequence = sequence;
                if let Phase::Rewrite { is_last, .. } = phase {
                    self.rewriting_from = if is_last { None } else { Some(agents.last().copied()) };
                    self.writing = Writing::Waiting { until: now.after(self.config.rewrite_interval) };
                }
            }
            other => self.writing = other,
        }
        self.go_on(now);
    }

    /// A write did not happen, or nobody knows; it is made again.
    pub fn handle_write_failed(&mut self, id: u64, now: Mono) {
        match std::mem::replace(&mut self.writing, Writing::Idle) {
            Writing::InFlight { id: expected, agents, .. } if id == expected => {
                self.unwritten.extend(agents);
                let wait = self.back_off();
                self.writing = Writing::Waiting { until: now.after(wait) };
            }
            other => self.writing = other,
        }
        self.go_on(now);
    }

    /// This life is leaving for good.
    pub fn withdraw(&mut self) {
        if !self.is_withdrawn {
            self.is_withdrawn = true;
            let (proxy, incarnation) = (self.proxy, self.incarnation);
            self.effects.push_back(PublisherEffect::Withdraw { proxy, incarnation });
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Mono) {
        if self.push_at.is_some_and(|at| at <= now) {
            self.push(now);
        }
        match self.writing {
            Writing::InFlight { id, until, .. } if until <= now => self.handle_write_failed(id, now),
            Writing::Waiting { until } if until <= now => self.writing = Writing::Idle,
            Writing::InFlight { .. } | Writing::Waiting { .. } | Writing::Idle => {}
        }
        if let Lease::Asked { until } = self.lease
            && until <= now
        {
            self.handle_lease_lost(now);
        }
        self.go_on(now);
    }

    /// When [`Publisher::handle_timeout`] wants to be called; none while nothing changes.
    pub fn poll_timeout(&self) -> Option<Mono> {
        if self.is_withdrawn {
            return None;
        }
        let lease = match self.lease {
            Lease::Wanted { ask_at: at } | Lease::Asked { until: at } => Some(at),
            Lease::Held => None,
        };
        let writing = match self.writing {
            Writing::InFlight { until, .. } | Writing::Waiting { until } => Some(until),
            Writing::Idle => None,
        };
        [lease, writing, self.push_at].into_iter().flatten().min()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<PublisherEffect> {
        self.effects.pop_front()
    }

    /// The agent has a tunnel here.
    pub fn holds(&self, agent: HostId) -> bool {
        self.tunnels.contains_key(&agent)
    }

    /// What "not here" tells of an agent: this life, and a number that is higher than all before.
    pub fn not_here(&mut self) -> (Incarnation, u64) {
        self.sequence += 1;
        (self.incarnation, self.sequence)
    }

    /// All routes now, as a statement of its own.
    pub fn snapshot(&mut self) -> RouteUpdate {
        let agents = self.tunnels.keys().copied().collect();
        self.update(Change::Snapshot { agents })
    }
}

impl Publisher {
    /// A statement with the next number: no two have the same.
    fn update(&mut self, change: Change) -> RouteUpdate {
        self.sequence += 1;
        RouteUpdate { proxy: self.proxy, incarnation: self.incarnation, sequence: self.sequence, change }
    }

    fn changed(&mut self, agent: HostId, now: Mono) {
        self.unpushed.insert(agent);
        self.unwritten.insert(agent);
        let at = now.after(self.config.batch_after);
        self.push_at.get_or_insert(at);
    }

    fn delta(&self, base: u64, agents: &BTreeSet<HostId>) -> Change {
        let (added, removed) = agents.iter().partition(|agent| self.tunnels.contains_key(agent));
        Change::Delta { base, added, removed }
    }

    /// Sends what has changed to every peer, and starts a write of it.
    fn push(&mut self, now: Mono) {
        self.push_at = None;
        if self.unpushed.is_empty() || self.is_withdrawn {
            return;
        }
        let agents = std::mem::take(&mut self.unpushed);
        let update = self.update(self.delta(self.pushed_sequence, &agents));
        self.pushed_sequence = update.sequence;
        for link in &self.links {
            self.effects.push_back(PublisherEffect::Push { link: *link, update: update.clone() });
        }
        self.go_on(now);
    }

    fn back_off(&mut self) -> Duration {
        let doubled = self.config.retry_min.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(self.config.retry_max)
    }

    /// Asks for what is missing: a lease, then the next write.
    fn go_on(&mut self, now: Mono) {
        if self.is_withdrawn {
            return;
        }
        match self.lease {
            Lease::Wanted { ask_at } if ask_at <= now => {
                self.lease = Lease::Asked { until: now.after(self.config.answer_deadline) };
                self.effects.push_back(PublisherEffect::CreateLease);
            }
            Lease::Held if matches!(self.writing, Writing::Idle) => self.write_next(now),
            Lease::Wanted { .. } | Lease::Asked { .. } | Lease::Held => {}
        }
    }

    fn write_next(&mut self, now: Mono) {
        let limit = self.config.write_routes_max;
        let (agents, phase) = match self.rewriting_from {
            Some(from) => self.rewrite_part(from, limit),
            // Changes travel together.
            None if self.push_at.is_some_and(|at| now < at) => return,
            None => (self.unwritten.iter().take(limit).copied().collect(), Phase::Change),
        };
        if agents.is_empty() && phase == Phase::Change {
            return;
        }
        for agent in &agents {
            self.unwritten.remove(agent);
        }
        let base = match phase {
            Phase::Rewrite { is_first: true, .. } => 0,
            Phase::Rewrite { .. } | Phase::Change => self.written_sequence,
        };
        let update = self.update(self.delta(base, &agents));
        let id = self.next_write;
        self.next_write += 1;
        let until = now.after(self.config.answer_deadline);
        self.writing = Writing::InFlight { id, until, sequence: self.sequence, agents, phase };
        self.effects.push_back(PublisherEffect::Write(RouteWrite { id, update, phase }));
    }

    fn rewrite_part(&self, from: Option<HostId>, limit: usize) -> (BTreeSet<HostId>, Phase) {
        use std::ops::Bound::{Excluded, Unbounded};
        let lower = from.map_or(Unbounded, Excluded);
        let rest = self.tunnels.range((lower, Unbounded)).map(|(agent, _)| *agent);
        let agents: BTreeSet<HostId> = rest.clone().take(limit).collect();
        let is_last = rest.count() <= limit;
        (agents, Phase::Rewrite { is_first: from.is_none(), is_last })
    }
}
