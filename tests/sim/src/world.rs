//! Everything there is, and the loop that lets time pass.

use crate::Report;
use crate::agent::Agent;
use crate::backend::{Backend, Reply};
use crate::balancer::{Balancer, Policy};
use crate::client::Dial;
use crate::clock::Clock;
use crate::coverage::{Coverage, Mark};
use crate::event::{Event, Machine, Scheduled};
use crate::message::{ControlMessage, Payload};
use crate::mutation::Mutation;
use crate::network::{Host, Kind, Lane, Link, LinkId, Ways};
use crate::peer::Peering;
use crate::plan::{Leg, Plan, PlanKey};
use crate::proxy::{Life, Slot};
use crate::random::Random;
use crate::scenario::{self, Addresses, Scenario};
use crate::session::Session;
use crate::tunnel::Tunnel;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;
use wayleave_mux::StreamId;
use wayleave_vocab::Mono;

/// A run that needs more is going in circles.
const EVENTS_MAX: u64 = 2_000_000;

pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) random: Random,
    /// World time; every host reads its own clock.
    pub(crate) now: Mono,
    queue: BinaryHeap<Scheduled>,
    next_event: u64,
    armed: BTreeMap<Machine, Mono>,
    dirty: VecDeque<Machine>,
    is_dirty: BTreeSet<Machine>,
    clocks: BTreeMap<Host, Clock>,
    pub(crate) ways: Ways,
    pub(crate) links: BTreeMap<LinkId, Link>,
    next_link: u64,
    pub(crate) tunnels: BTreeMap<LinkId, Tunnel>,
    pub(crate) peerings: BTreeMap<LinkId, Peering>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) lives: Vec<Life>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) backend: Backend,
    pub(crate) balancer: Balancer,
    pub(crate) dials: Vec<Dial>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) next_kept: u128,
    /// What agents kept once and keep no more.
    pub(crate) forgotten: BTreeSet<wayleave_resume_wire::StreamId>,
    pub(crate) plans: BTreeMap<PlanKey, Plan>,
    pub(crate) legs: BTreeMap<(LinkId, StreamId), Leg>,
    pub(crate) control: Vec<ControlMessage>,
    /// Watch events are delivered late and twice while this is more than 0.
    pub(crate) watch_trouble: usize,
    pub(crate) is_quiet: bool,
    pub(crate) coverage: Coverage,
    pub(crate) violation: Option<String>,
    /// Events are written to standard error: `WAYLEAVE_SIM_TRACE=1`.
    is_traced: bool,
}

impl World {
    pub(crate) fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::draw(&mut random);
        let mut world = Self {
            mutation,
            now: Mono::ZERO,
            queue: BinaryHeap::new(),
            next_event: 0,
            armed: BTreeMap::new(),
            dirty: VecDeque::new(),
            is_dirty: BTreeSet::new(),
            clocks: BTreeMap::new(),
            ways: Ways::default(),
            links: BTreeMap::new(),
            next_link: 1,
            tunnels: BTreeMap::new(),
            peerings: BTreeMap::new(),
            slots: (0..scenario.proxies).map(|_| Slot::default()).collect(),
            lives: Vec::new(),
            agents: (0..scenario.agents).map(Agent::new).collect(),
            backend: Backend::new(scenario.strategy),
            balancer: Balancer::new(scenario.policy),
            dials: Vec::new(),
            sessions: Vec::new(),
            next_kept: 1,
            forgotten: BTreeSet::new(),
            plans: BTreeMap::new(),
            legs: BTreeMap::new(),
            control: Vec::new(),
            watch_trouble: 0,
            is_quiet: false,
            coverage: Coverage::default(),
            violation: None,
            is_traced: std::env::var_os("WAYLEAVE_SIM_TRACE").is_some(),
            random,
            scenario,
        };
        world.set_up();
        world
    }

    fn set_up(&mut self) {
        let (proxies, agents) = (self.scenario.proxies, self.scenario.agents);
        let hosts = (0..proxies).map(Host::Proxy).chain((0..agents).map(Host::Agent)).chain([Host::Backend]);
        for host in hosts {
            let clock = Clock::draw(&mut self.random);
            self.clocks.insert(host, clock);
        }
        self.note(Mark::ClockSkew);
        self.note(match self.scenario.policy {
            Policy::RoundRobin => Mark::BalancerRoundRobin,
            Policy::Random => Mark::BalancerRandom,
        });
        self.note(match self.scenario.addresses {
            Addresses::Direct => Mark::AddressesDirect,
            Addresses::Shared => Mark::AddressesShared,
            Addresses::Broken => Mark::AddressesBroken,
        });
        for slot in 0..proxies {
            let wait = self.random.between_ms(0, 1000);
            self.after(wait, Event::StartSlot(slot));
        }
        for agent in 0..agents {
            let wait = self.random.between_ms(0, 2000);
            self.after(wait, Event::BootAgent(agent));
        }
        for _ in 0..self.scenario.dials {
            let wait = self.random.between_ms(2_000, 69_000);
            self.after(wait, Event::NewDial);
        }
        self.plan_faults();
        self.after(Duration::from_millis(500), Event::BackendTick);
        self.after(scenario::QUIET_AT, Event::Quiet);
        self.after(scenario::FINAL_AT, Event::Final);
        self.after(scenario::END_AT, Event::End);
    }

    pub(crate) fn run(mut self) -> Report {
        while self.violation.is_none()
            && let Some(Scheduled { at, event, .. }) = self.queue.pop()
        {
            self.now = at;
            if let Event::End = event {
                self.check_end();
                break;
            }
            self.trace(&event);
            self.handle(event);
            self.settle();
            if self.next_event > EVENTS_MAX {
                self.violate("the machines never rest".to_owned());
            }
        }
        Report { violation: self.violation, coverage: self.coverage, events: self.next_event }
    }

    pub(crate) fn trace(&self, what: &dyn std::fmt::Debug) {
        if self.is_traced {
            eprintln!("{:>12?} {what:?}", self.now.since_origin());
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver(link, side) => self.deliver(link, side),
            Event::Wake(machine) => self.wake(machine),
            Event::TunnelArrives { boot, id, slot, avoid } => self.tunnel_arrives(boot, id, slot, &avoid),
            Event::TunnelAnswer { boot, id, answer } => self.tunnel_answer(boot, id, answer),
            Event::QuestionArrives { boot } => self.question_arrives(boot),
            Event::AnswerArrives { boot, answer } => self.answer_arrives(boot, answer),
            Event::PeerArrives { life, slot } => self.peer_arrives(life, slot),
            Event::PeerAnswer { link } => self.peer_answer(link),
            Event::LifeTick(life) => self.life_tick(life),
            Event::BackendTick => self.backend_tick(),
            Event::StartSlot(slot) => self.start_slot(slot),
            Event::BootAgent(agent) => self.boot_agent(agent),
            Event::LifeExit(life) => self.life_exit(life),
            Event::Fault(fault) => self.strike(fault),
            Event::Mend(mend) => self.mend(mend),
            Event::NewDial => self.draw_dial(),
            Event::CheckDial(dial) => self.check_dial(dial),
            Event::Redial(session) => self.redial(session),
            Event::WriteMore(session) => self.write_more(session),
            Event::ReadNow(link, stream) => self.read_now(link, stream),
            Event::WatchLate(link, reply) => self.watch_late(link, reply),
            Event::Quiet => self.is_quiet = true,
            Event::Final => self.check_converged(),
            Event::End => {}
        }
    }

    /// Looks after every machine that something has happened to, until none is left.
    fn settle(&mut self) {
        while let Some(machine) = self.dirty.pop_front() {
            self.is_dirty.remove(&machine);
            match machine {
                Machine::Mux(link, side) => self.serve_mux(link, side),
                Machine::Pool(agent) => self.serve_pool(agent),
                Machine::Publisher(life) => self.serve_publisher(life),
                Machine::Table(life) => self.serve_table(life),
                Machine::Plan(key) => self.serve_plan(key),
                Machine::Session(session) => self.serve_session(session),
                Machine::Kept(agent, session) => self.serve_kept(agent, session),
            }
            self.flush_backend();
        }
    }

    fn wake(&mut self, machine: Machine) {
        self.armed.remove(&machine);
        match machine {
            Machine::Mux(link, side) => self.time_mux(link, side),
            Machine::Pool(agent) => self.time_pool(agent),
            Machine::Publisher(life) => self.time_publisher(life),
            Machine::Table(life) => self.time_table(life),
            Machine::Plan(key) => self.time_plan(key),
            Machine::Session(session) => self.time_session(session),
            Machine::Kept(agent, session) => self.time_kept(agent, session),
        }
        self.touch(machine);
    }

    /// The machine has to be served before time passes.
    pub(crate) fn touch(&mut self, machine: Machine) {
        if self.is_dirty.insert(machine) {
            self.dirty.push_back(machine);
        }
    }

    /// Wakes the machine when its host's clock shows this, unless it is woken earlier anyway.
    pub(crate) fn arm(&mut self, machine: Machine, host: Host, local: Option<Mono>) {
        self.arm_now(machine, local.map(|local| self.clock(host).when(local)));
    }

    /// The same by the world's time, which users go by.
    pub(crate) fn arm_now(&mut self, machine: Machine, at: Option<Mono>) {
        let Some(at) = at else { return };
        let at = at.max(self.now.after(Duration::from_micros(1)));
        if self.armed.get(&machine).is_none_or(|armed| at < *armed) {
            self.armed.insert(machine, at);
            self.at(at, Event::Wake(machine));
        }
    }

    fn clock(&self, host: Host) -> Clock {
        *self.clocks.get(&host).expect("every host was given a clock")
    }

    /// What the host's clock shows.
    pub(crate) fn local(&self, host: Host) -> Mono {
        self.clock(host).read(self.now)
    }

    fn at(&mut self, at: Mono, event: Event) {
        self.next_event += 1;
        self.queue.push(Scheduled { at, number: self.next_event, event });
    }

    pub(crate) fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now.after(wait), event);
    }

    pub(crate) fn note(&mut self, mark: Mark) {
        self.coverage.note(mark);
    }

    pub(crate) fn violate(&mut self, what: String) {
        if self.violation.is_none() {
            self.violation = Some(format!("at {:?}: {what}", self.now.since_origin()));
        }
    }

    pub(crate) fn is_mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// How long something travels between two hosts.
    pub(crate) fn delay(&mut self, a: Host, b: Host) -> Duration {
        let (low, high) = self.scenario.delay_ms;
        let slow = self.ways.is_slow(a) || self.ways.is_slow(b);
        let more = if slow { self.random.between_ms(500, 2500) } else { Duration::ZERO };
        self.random.between_ms(low, high) + more
    }
}

/// Connections.
impl World {
    pub(crate) fn connect(&mut self, kind: Kind, hosts: [Host; 2]) -> LinkId {
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let lanes = [Lane::default(), Lane::default()];
        self.links.insert(id, Link { kind, hosts, lanes, closed: [false; 2], is_silent: false });
        id
    }

    /// Sends to the other side of a connection.
    pub(crate) fn send(&mut self, id: LinkId, from: usize, payload: Payload) {
        let Some(link) = self.links.get(&id) else { return };
        let (hosts, to) = (link.hosts, 1 - from);
        if link.closed[from] && !matches!(payload, Payload::Close) {
            return;
        }
        let delay = self.delay(hosts[0], hosts[1]);
        let now = self.now;
        let Some(link) = self.links.get_mut(&id) else { return };
        let lane = &mut link.lanes[to];
        let at = lane.last_at.max(now.after(delay));
        lane.last_at = at;
        lane.bytes += payload.len();
        lane.queue.push_back((at, payload));
        if !lane.is_scheduled {
            lane.is_scheduled = true;
            self.at(at, Event::Deliver(id, to));
        }
    }

    fn deliver(&mut self, id: LinkId, to: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let lane = &mut link.lanes[to];
        lane.is_scheduled = false;
        if self.ways.is_blocked(link.hosts[1 - to], link.hosts[to]) {
            return;
        }
        let Some((_, payload)) = lane.queue.pop_front() else { return };
        if self.is_traced {
            eprintln!("             {:?} {:?} <- {payload:.200?}", link.kind, link.hosts[to]);
        }
        lane.bytes -= payload.len();
        if let Some((at, _)) = lane.queue.front() {
            lane.is_scheduled = true;
            let at = (*at).max(self.now);
            self.at(at, Event::Deliver(id, to));
        }
        let Some(link) = self.links.get(&id) else { return };
        let (kind, is_lost) = (link.kind, link.is_silent || link.closed[to]);
        if kind == Kind::Tunnel {
            self.touch(Machine::Mux(id, 1 - to));
        }
        if is_lost {
            self.drop_if_over(id);
            return;
        }
        match (kind, payload) {
            (_, Payload::Close) => self.end_lost(id, to),
            (Kind::Tunnel, Payload::Bytes(bytes)) => self.tunnel_input(id, to, &bytes),
            (Kind::Peer, Payload::Peer(message)) => self.peer_message(id, to, message),
            (Kind::Backend, Payload::Request(request)) => {
                let now = self.local(Host::Backend);
                self.backend.handle(id, request, now);
                self.flush_backend();
            }
            (Kind::Backend, Payload::Reply(reply)) => self.backend_reply(id, reply),
            (kind, payload) => self.violate(format!("{payload:?} on a link of kind {kind:?}")),
        }
    }

    /// What was held up can go on.
    pub(crate) fn resume_lanes(&mut self) {
        let mut due = Vec::new();
        for (id, link) in &mut self.links {
            for (to, lane) in link.lanes.iter_mut().enumerate() {
                if !lane.is_scheduled && !lane.queue.is_empty() {
                    lane.is_scheduled = true;
                    due.push((*id, to));
                }
            }
        }
        for (id, to) in due {
            self.at(self.now, Event::Deliver(id, to));
        }
    }

    /// A side gives its end up. The other is told, unless the side has no time for that.
    pub(crate) fn close(&mut self, id: LinkId, side: usize, tells: bool) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.closed[side] {
            return;
        }
        link.closed[side] = true;
        if tells {
            self.send(id, side, Payload::Close);
        }
        self.drop_if_over(id);
    }

    fn drop_if_over(&mut self, id: LinkId) {
        if self.links.get(&id).is_some_and(|link| link.closed == [true; 2]) {
            self.links.remove(&id);
            self.tunnels.remove(&id);
            self.peerings.remove(&id);
        }
    }

    /// The end of a connection has become known at a side: by the network or by silence.
    pub(crate) fn end_lost(&mut self, id: LinkId, side: usize) {
        let Some(link) = self.links.get(&id) else { return };
        if link.closed[side] {
            return;
        }
        match link.kind {
            Kind::Tunnel => self.tunnel_lost(id, side),
            Kind::Peer => self.peer_lost(id, side),
            Kind::Backend => {}
        }
        self.close(id, side, true);
    }

    fn flush_backend(&mut self) {
        for (link, reply) in std::mem::take(&mut self.backend.outgoing) {
            if let Reply::Watch(_) = &reply
                && self.watch_trouble > 0
                && self.random.chance(40)
            {
                let late = self.random.between_ms(1, 15_000);
                self.after(late, Event::WatchLate(link, reply.clone()));
                self.note(Mark::FaultWatchReordered);
                if self.random.chance(50) {
                    continue;
                }
                self.note(Mark::FaultWatchDoubled);
            }
            self.send(link, 1, Payload::Reply(reply));
        }
    }

    fn watch_late(&mut self, link: LinkId, reply: Reply) {
        let Some(hosts) = self.links.get(&link).map(|link| link.hosts) else { return };
        if self.ways.is_blocked(hosts[1], hosts[0]) {
            self.after(Duration::from_secs(1), Event::WatchLate(link, reply));
        } else if self.links.get(&link).is_some_and(|link| !link.closed[0]) {
            self.backend_reply(link, reply);
        }
    }

    fn backend_tick(&mut self) {
        let now = self.local(Host::Backend);
        self.backend.expire(now);
        self.flush_backend();
        (0..self.agents.len()).for_each(|agent| self.confirm_policy(agent));
        self.after(Duration::from_millis(500), Event::BackendTick);
    }
}
