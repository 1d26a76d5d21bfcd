//! Auth and its backend in one: leases, routes, the list of proxies, the strategy, and a watch of all that.

use crate::network::LinkId;
use crate::plan::PlanKey;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use wayleave_peering::{Change, Phase, RouteUpdate, RouteWrite};
use wayleave_tunnel::{ProxyInfo, ProxyList, Zone};
use wayleave_vocab::{HostId, HostPort, Incarnation, Mono, TunnelStrategy};

/// A lease that is not renewed ends after this.
pub(crate) const LEASE_TTL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// A proxy starts: gives it an incarnation and everything that is known, and watches from there.
    Start {
        proxy: HostId,
        address: Option<HostPort>,
        zone: Option<Zone>,
    },
    CreateLease {
        proxy: HostId,
        incarnation: Incarnation,
    },
    KeepAlive {
        lease: u64,
    },
    Write {
        lease: u64,
        write: RouteWrite,
    },
    Drain {
        proxy: HostId,
        incarnation: Incarnation,
    },
    Withdraw {
        proxy: HostId,
        incarnation: Incarnation,
    },
    /// The routes of one agent, past all caches.
    Read {
        agent: HostId,
        key: PlanKey,
    },
    /// All routes of one life.
    ReadAll {
        proxy: HostId,
        incarnation: Incarnation,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Started { incarnation: Incarnation },
    LeaseGranted { lease: u64 },
    LeaseGone { lease: u64 },
    Written { id: u64 },
    NotWritten { id: u64 },
    Routes { key: Option<PlanKey>, updates: Vec<RouteUpdate> },
    Watch(Watch),
}

/// What Auth itself answers to an agent: the signed policy, which is the strategy here, and the list of proxies.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) revision: u64,
    pub(crate) strategy: TunnelStrategy,
    pub(crate) list: ProxyList,
}

#[derive(Debug, Clone)]
pub(crate) enum Watch {
    Strategy { revision: u64, strategy: TunnelStrategy },
    Proxies(ProxyList),
    Routes(RouteUpdate),
    Lease { proxy: HostId, incarnation: Incarnation, is_up: bool, revision: u64 },
    Withdrawn { proxy: HostId, incarnation: Incarnation },
}

type Life = (HostId, Incarnation);

#[derive(Debug)]
struct Record {
    address: Option<HostPort>,
    zone: Option<Zone>,
    lease: Option<(u64, Mono)>,
    draining: bool,
    routes: Stored,
}

#[derive(Debug, Default, Clone)]
struct Stored {
    sequence: u64,
    is_complete: bool,
    agents: BTreeSet<HostId>,
}

/// Something for one connection.
pub(crate) type Outgoing = (LinkId, Reply);

#[derive(Debug)]
pub(crate) struct Backend {
    revision: u64,
    strategy: TunnelStrategy,
    strategy_revision: u64,
    incarnations: BTreeMap<HostId, u64>,
    records: BTreeMap<Life, Record>,
    next_lease: u64,
    watchers: BTreeSet<LinkId>,
    pub(crate) is_stalled: bool,
    pub(crate) stalled_changed_at: Mono,
    waiting: VecDeque<(LinkId, Request)>,
    pub(crate) outgoing: Vec<Outgoing>,
}

impl Backend {
    pub(crate) fn new(strategy: TunnelStrategy) -> Self {
        Self {
            revision: 1,
            strategy,
            strategy_revision: 1,
            incarnations: BTreeMap::new(),
            records: BTreeMap::new(),
            next_lease: 1,
            watchers: BTreeSet::new(),
            is_stalled: false,
            stalled_changed_at: Mono::ZERO,
            waiting: VecDeque::new(),
            outgoing: Vec::new(),
        }
    }

    pub(crate) fn stall(&mut self, now: Mono) {
        self.is_stalled = true;
        self.stalled_changed_at = now;
    }

    pub(crate) fn recover(&mut self, now: Mono) {
        self.is_stalled = false;
        self.stalled_changed_at = now;
        // Nobody could renew meanwhile.
        for record in self.records.values_mut() {
            if let Some((_, until)) = &mut record.lease {
                *until = now.after(LEASE_TTL);
            }
        }
        for (link, request) in std::mem::take(&mut self.waiting) {
            self.serve(link, request, now);
        }
    }

    pub(crate) fn strategy(&self) -> TunnelStrategy {
        self.strategy
    }

    pub(crate) fn set_strategy(&mut self, strategy: TunnelStrategy) {
        self.strategy = strategy;
        self.revision += 1;
        self.strategy_revision = self.revision;
        let revision = self.revision;
        self.tell(&Watch::Strategy { revision, strategy });
    }

    pub(crate) fn forget_watcher(&mut self, link: LinkId) {
        self.watchers.remove(&link);
    }

    pub(crate) fn handle(&mut self, link: LinkId, request: Request, now: Mono) {
        if self.is_stalled {
            self.waiting.push_back((link, request));
        } else {
            self.serve(link, request, now);
        }
    }

    fn serve(&mut self, link: LinkId, request: Request, now: Mono) {
        match request {
            Request::Start { proxy, address, zone } => self.start(link, proxy, address, zone),
            Request::CreateLease { proxy, incarnation } => self.create_lease(link, (proxy, incarnation), now),
            Request::KeepAlive { lease } => match self.record_of(lease) {
                Some(record) => record.lease = Some((lease, now.after(LEASE_TTL))),
                None => self.reply(link, Reply::LeaseGone { lease }),
            },
            Request::Write { lease, write } => self.write(link, lease, write),
            Request::Drain { proxy, incarnation } => {
                if let Some(record) = self.records.get_mut(&(proxy, incarnation)) {
                    record.draining = true;
                    self.tell_list();
                }
            }
            Request::Withdraw { proxy, incarnation } => {
                self.records.remove(&(proxy, incarnation));
                self.tell(&Watch::Withdrawn { proxy, incarnation });
                self.tell_list();
            }
            Request::Read { agent, key } => {
                let updates =
                    self.records.iter().filter_map(|(life, record)| record.routes.of_agent(*life, agent));
                let updates = updates.collect();
                self.reply(link, Reply::Routes { key: Some(key), updates });
            }
            Request::ReadAll { proxy, incarnation } => {
                let life = (proxy, incarnation);
                let updates =
                    self.records.get(&life).map(|record| record.routes.all(life)).into_iter().collect();
                self.reply(link, Reply::Routes { key: None, updates });
            }
        }
    }

    fn start(&mut self, link: LinkId, proxy: HostId, address: Option<HostPort>, zone: Option<Zone>) {
        let counter = self.incarnations.entry(proxy).or_insert(0);
        *counter += 1;
        let incarnation = Incarnation(*counter);
        let record = Record { address, zone, lease: None, draining: false, routes: Stored::default() };
        self.reply(link, Reply::Started { incarnation });
        let lives: Vec<(Life, RouteUpdate, bool)> = self
            .records
            .iter()
            .map(|(life, record)| (*life, record.routes.all(*life), record.lease.is_some()))
            .collect();
        for ((proxy, incarnation), update, is_up) in lives {
            let revision = self.revision;
            self.reply(link, Reply::Watch(Watch::Lease { proxy, incarnation, is_up, revision }));
            self.reply(link, Reply::Watch(Watch::Routes(update)));
        }
        self.records.insert((proxy, incarnation), record);
        self.watchers.insert(link);
        let (revision, strategy) = (self.strategy_revision, self.strategy);
        self.reply(link, Reply::Watch(Watch::Strategy { revision, strategy }));
    }

    fn create_lease(&mut self, link: LinkId, life: Life, now: Mono) {
        let lease = self.next_lease;
        let Some(record) = self.records.get_mut(&life) else { return };
        self.next_lease += 1;
        record.lease = Some((lease, now.after(LEASE_TTL)));
        record.routes = Stored::default();
        self.reply(link, Reply::LeaseGranted { lease });
        self.tell_lease(life, true);
        self.tell_list();
    }

    fn write(&mut self, link: LinkId, lease: u64, write: RouteWrite) {
        let RouteWrite { id, update, phase } = write;
        let Some(record) = self.record_of(lease) else {
            self.reply(link, Reply::NotWritten { id });
            return;
        };
        let Change::Delta { added, removed, .. } = &update.change else { return };
        record.routes.agents.extend(added.iter().copied());
        record.routes.agents.retain(|agent| !removed.contains(agent));
        record.routes.sequence = update.sequence;
        if let Phase::Rewrite { is_last, .. } = phase {
            record.routes.is_complete = is_last;
        }
        self.revision += 1;
        self.reply(link, Reply::Written { id });
        self.tell(&Watch::Routes(update));
    }

    /// Ends leases that were not renewed. Gives whether any ended.
    pub(crate) fn expire(&mut self, now: Mono) -> bool {
        if self.is_stalled {
            return false;
        }
        let over: Vec<Life> = self
            .records
            .iter()
            .filter(|(_, record)| record.lease.is_some_and(|(_, until)| until <= now))
            .map(|(life, _)| *life)
            .collect();
        for life in &over {
            self.end_lease(*life);
        }
        !over.is_empty()
    }

    pub(crate) fn end_lease(&mut self, life: Life) {
        let Some(record) = self.records.get_mut(&life) else { return };
        if record.lease.take().is_some() {
            record.routes = Stored::default();
            self.tell_lease(life, false);
            self.tell_list();
        }
    }

    /// The routes of a life as they are stored; none while that is not complete.
    pub(crate) fn stored(&self, life: Life) -> Option<&BTreeSet<HostId>> {
        self.records.get(&life).filter(|record| record.routes.is_complete).map(|record| &record.routes.agents)
    }

    fn record_of(&mut self, lease: u64) -> Option<&mut Record> {
        self.records.values_mut().find(|record| record.lease.is_some_and(|(held, _)| held == lease))
    }

    fn tell_lease(&mut self, (proxy, incarnation): Life, is_up: bool) {
        self.revision += 1;
        let revision = self.revision;
        self.tell(&Watch::Lease { proxy, incarnation, is_up, revision });
    }

    fn tell_list(&mut self) {
        self.revision += 1;
        let list = self.list();
        self.tell(&Watch::Proxies(list));
    }

    /// None while it is stalled.
    pub(crate) fn answer(&self) -> Option<Answer> {
        let (revision, strategy) = (self.strategy_revision, self.strategy);
        (!self.is_stalled).then(|| Answer { revision, strategy, list: self.list() })
    }

    fn list(&self) -> ProxyList {
        let mut newest: BTreeMap<HostId, ProxyInfo> = BTreeMap::new();
        for ((proxy, incarnation), record) in &self.records {
            if record.lease.is_some() {
                let (address, zone) = (record.address.clone(), record.zone.clone());
                let info = ProxyInfo {
                    id: *proxy,
                    incarnation: *incarnation,
                    address,
                    zone,
                    draining: record.draining,
                };
                newest.insert(*proxy, info);
            }
        }
        ProxyList { revision: self.revision, proxies: newest.into_values().collect() }
    }

    fn tell(&mut self, watch: &Watch) {
        for link in &self.watchers {
            self.outgoing.push((*link, Reply::Watch(watch.clone())));
        }
    }

    fn reply(&mut self, link: LinkId, reply: Reply) {
        self.outgoing.push((link, reply));
    }
}

impl Stored {
    /// What is stored, for somebody who reads it: while it is incomplete it only adds.
    fn all(&self, (proxy, incarnation): Life) -> RouteUpdate {
        let agents = self.agents.clone();
        let change = if self.is_complete {
            Change::Snapshot { agents }
        } else {
            Change::Delta { base: 0, added: agents, removed: BTreeSet::new() }
        };
        RouteUpdate { proxy, incarnation, sequence: self.sequence, change }
    }

    fn of_agent(&self, (proxy, incarnation): Life, agent: HostId) -> Option<RouteUpdate> {
        let is_here = self.agents.contains(&agent);
        let one = || BTreeSet::from([agent]);
        let (added, removed) = if is_here { (one(), BTreeSet::new()) } else { (BTreeSet::new(), one()) };
        let change = Change::Delta { base: 0, added, removed };
        (is_here || self.is_complete).then_some(RouteUpdate {
            proxy,
            incarnation,
            sequence: self.sequence,
            change,
        })
    }
}
