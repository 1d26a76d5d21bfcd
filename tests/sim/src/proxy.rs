//! A proxy's process, one life of it: accepts tunnels, publishes its routes, believes the others'.

use crate::backend::{Reply, Request, Watch};
use crate::coverage::Mark;
use crate::event::{Boot, Event, Machine, TunnelAnswer};
use crate::message::{ControlMessage, Payload, PeerMessage};
use crate::mutation::Mutation;
use crate::network::{Host, Kind, LinkId};
use crate::plan::PlanKey;
use crate::scenario::{self, Addresses, proxy_id};
use crate::tunnel::Tunnel;
use crate::world::World;
use bytes::BytesMut;
use std::collections::BTreeSet;
use std::time::Duration;
use wayleave_mux::{Event as MuxEvent, Mux, Role};
use wayleave_peering::{
    Change, LinkId as RouteLink, Phase, Publisher, PublisherEffect, RouteTable, RouteUpdate, Source,
    TableEffect,
};
use wayleave_tunnel::{Connected, ProxyList, TunnelId, Zone};
use wayleave_vocab::{HostId, Incarnation, Mono, TunnelStrategy};

/// A proxy that leaves waits this long for its agents and streams.
pub(crate) const GRACE: Duration = Duration::from_secs(12);
/// A lost process is put back by its supervisor, except when it is gone for good.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) is_gone: bool,
    /// The life that listens at the slot's address.
    pub(crate) listening: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Starting,
    Running,
    Draining,
    Dead,
}

#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) slot: usize,
    pub(crate) id: HostId,
    pub(crate) incarnation: Incarnation,
    pub(crate) state: State,
    /// World time of the last change of state.
    pub(crate) since: Mono,
    pub(crate) backend: LinkId,
    lease: Option<u64>,
    pub(crate) publisher: Option<Publisher>,
    pub(crate) table: RouteTable,
    pub(crate) table_revision: u64,
    pub(crate) strategy: Option<(u64, TunnelStrategy)>,
    pub(crate) list: Option<ProxyList>,
    /// Tells its agents lies about the others, keeps signed policy from them and their questions from Auth.
    pub(crate) is_liar: bool,
    /// Accepts connections and never answers.
    pub(crate) is_hung: usize,
    /// World time when it last stopped being hung.
    pub(crate) answers_since: Mono,
    /// Learns of routes late: what has come meanwhile.
    pub(crate) deaf: Option<Vec<RouteNews>>,
    pub(crate) deaf_until: Mono,
    ticks: u64,
}

/// Something about others' routes, and where it came from.
#[derive(Debug, Clone)]
pub(crate) enum RouteNews {
    Update(Source, RouteUpdate),
    Lease(HostId, Incarnation, bool, u64),
    Withdrawn(Source, HostId, Incarnation),
}

impl Life {
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.state, State::Running | State::Draining)
    }
}

impl World {
    pub(crate) fn start_slot(&mut self, slot: usize) {
        let taken = self.slots[slot].listening.is_some_and(|life| self.lives[life].state != State::Draining);
        if taken || self.slots[slot].is_gone {
            return;
        }
        let life = self.lives.len();
        let backend = self.connect(Kind::Backend, [Host::Proxy(slot), Host::Backend]);
        self.lives.push(Life {
            slot,
            id: proxy_id(slot),
            incarnation: Incarnation(0),
            state: State::Starting,
            since: self.now,
            backend,
            lease: None,
            publisher: None,
            table: RouteTable::new(self.table_config()),
            table_revision: 0,
            strategy: None,
            list: None,
            is_liar: false,
            is_hung: 0,
            answers_since: Mono::ZERO,
            deaf: None,
            deaf_until: Mono::ZERO,
            ticks: 0,
        });
        self.slots[slot].listening = Some(life);
        let address = match self.scenario.addresses {
            Addresses::Direct | Addresses::Broken => Some(scenario::address(&format!("p{slot}"))),
            Addresses::Shared => None,
        };
        let zone = Zone::parse(if slot.is_multiple_of(2) { "even" } else { "odd" });
        self.ask_backend(life, Request::Start { proxy: proxy_id(slot), address, zone });
    }

    fn table_config(&self) -> wayleave_peering::TableConfig {
        let mut config = scenario::table_config();
        if self.is_mutated(Mutation::NeverExpireSuspect) {
            config.expire_after = Duration::from_secs(1_000_000);
        }
        config
    }

    fn ask_backend(&mut self, life: usize, request: Request) {
        let link = self.lives[life].backend;
        self.send(link, 0, Payload::Request(request));
    }

    /// Which life the balancer sends somebody to.
    pub(crate) fn balance(&mut self) -> Option<usize> {
        let running = |life: &usize| self.lives[*life].state == State::Running;
        let lives: Vec<usize> = self.slots.iter().filter_map(|slot| slot.listening).filter(running).collect();
        self.balancer.choose(&lives, &mut self.random)
    }

    pub(crate) fn tunnel_arrives(
        &mut self,
        boot: Boot,
        id: TunnelId,
        slot: Option<usize>,
        avoid: &[Connected],
    ) {
        let life = match slot {
            Some(slot) => self.slots.get(slot).and_then(|slot| slot.listening),
            None => self.balance(),
        };
        let agent = Host::Agent(boot.0);
        let Some(life) = life else {
            self.answer_tunnel(Duration::from_millis(5), boot, id, TunnelAnswer::Refused);
            return;
        };
        let proxy = Host::Proxy(self.lives[life].slot);
        if self.ways.is_blocked(agent, proxy)
            || self.ways.is_blocked(proxy, agent)
            || self.lives[life].is_hung > 0
        {
            return;
        }
        let wait = self.delay(agent, proxy);
        let here = Connected { proxy: self.lives[life].id, incarnation: self.lives[life].incarnation };
        let answer = if self.lives[life].state != State::Running {
            TunnelAnswer::Refused
        } else if avoid.contains(&here) {
            TunnelAnswer::Already(here)
        } else {
            TunnelAnswer::Accepted(self.accept_tunnel(boot, id, life))
        };
        self.answer_tunnel(wait, boot, id, answer);
    }

    fn answer_tunnel(&mut self, wait: Duration, boot: Boot, id: TunnelId, answer: TunnelAnswer) {
        self.after(wait, Event::TunnelAnswer { boot, id, answer });
    }

    fn accept_tunnel(&mut self, (agent, boot): Boot, id: TunnelId, life: usize) -> LinkId {
        let proxy = Host::Proxy(self.lives[life].slot);
        let link = self.connect(Kind::Tunnel, [Host::Agent(agent), proxy]);
        let mux = Mux::new(Role::Acceptor, scenario::mux_config(), self.local(proxy));
        let tunnel = Tunnel {
            agent,
            boot,
            id,
            life,
            muxes: [None, Some(mux)],
            inputs: [BytesMut::new(), BytesMut::new()],
            ready_at: [None; 2],
            is_published: false,
            is_leaving: false,
        };
        self.tunnels.insert(link, tunnel);
        self.touch(Machine::Mux(link, 1));
        link
    }

    pub(crate) fn proxy_event(&mut self, link: LinkId, event: MuxEvent) {
        match event {
            MuxEvent::Ready => self.proxy_tunnel_ready(link),
            MuxEvent::GoAway { .. } => {
                self.note(Mark::GoAway);
                self.unpublish(link);
            }
            MuxEvent::Data { id, bytes } => self.leg_data(link, id, bytes),
            MuxEvent::Finished { id } => self.leg_finished(link, id),
            MuxEvent::Reset { id, .. } => self.leg_reset(link, id),
            MuxEvent::Writable { id } => self.leg_flush(link, id),
            MuxEvent::StreamOpened { .. } => self.violate("an agent opened a stream".to_owned()),
            MuxEvent::Control(_) | MuxEvent::Pong { .. } | MuxEvent::Drained => {}
        }
    }

    fn proxy_tunnel_ready(&mut self, link: LinkId) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(&link) else { return };
        tunnel.ready_at[1] = Some(now);
        tunnel.is_published = true;
        let (agent, life) = (self.agents[tunnel.agent].id, tunnel.life);
        let local = self.local(Host::Proxy(self.lives[life].slot));
        if let Some(publisher) = &mut self.lives[life].publisher {
            publisher.handle_tunnel_up(agent, local);
        }
        self.touch(Machine::Publisher(life));
        let strategy = self.lives[life].strategy;
        let strategy = strategy.map(|(revision, strategy)| ControlMessage::Strategy { revision, strategy });
        let list = self.lives[life].list.clone().map(ControlMessage::Proxies);
        let drain = (self.lives[life].state == State::Draining).then_some(ControlMessage::Drain);
        for message in [strategy, list, drain].into_iter().flatten() {
            if let Some(message) = self.as_told(life, message) {
                self.send_control(link, message);
            }
        }
        self.news_for_plans(life);
    }

    /// The tunnel takes no more streams.
    fn unpublish(&mut self, link: LinkId) {
        let Some(tunnel) = self.tunnels.get_mut(&link) else { return };
        if !std::mem::take(&mut tunnel.is_published) {
            return;
        }
        let (agent, life) = (self.agents[tunnel.agent].id, tunnel.life);
        let now = self.local(Host::Proxy(self.lives[life].slot));
        if let Some(publisher) = &mut self.lives[life].publisher {
            publisher.handle_tunnel_down(agent, now);
        }
        self.touch(Machine::Publisher(life));
    }

    pub(crate) fn proxy_tunnel_lost(&mut self, link: LinkId) {
        self.unpublish(link);
        self.legs_lost(link);
    }

    pub(crate) fn serve_publisher(&mut self, life: usize) {
        while let Some(publisher) = &mut self.lives[life].publisher
            && let Some(effect) = publisher.poll_effect()
        {
            self.publisher_effect(life, effect);
        }
        let host = Host::Proxy(self.lives[life].slot);
        let at = self.lives[life].publisher.as_ref().and_then(Publisher::poll_timeout);
        self.arm(Machine::Publisher(life), host, at);
    }

    fn publisher_effect(&mut self, life: usize, effect: PublisherEffect) {
        self.trace(&("life", life, &effect));
        let (proxy, incarnation) = (self.lives[life].id, self.lives[life].incarnation);
        match effect {
            PublisherEffect::CreateLease => {
                self.ask_backend(life, Request::CreateLease { proxy, incarnation })
            }
            PublisherEffect::Write(mut write) => {
                if let Phase::Rewrite { .. } = write.phase {
                    self.note(Mark::Rewrite);
                }
                self.drop_removals(&mut write.update);
                let lease = self.lives[life].lease.unwrap_or(0);
                self.ask_backend(life, Request::Write { lease, write });
            }
            PublisherEffect::Push { link, mut update } => {
                self.note(match update.change {
                    Change::Snapshot { .. } => Mark::RouteSnapshot,
                    Change::Delta { .. } => Mark::RouteDelta,
                });
                self.drop_removals(&mut update);
                self.send(LinkId(link.0), 1, Payload::Peer(PeerMessage::Push(update)));
            }
            PublisherEffect::Withdraw { proxy, incarnation } => {
                self.ask_backend(life, Request::Withdraw { proxy, incarnation });
                for link in self.peer_links(life, 1) {
                    self.send(link, 1, Payload::Peer(PeerMessage::Withdrawn { proxy, incarnation }));
                }
            }
        }
    }

    fn drop_removals(&mut self, update: &mut RouteUpdate) {
        if let Change::Delta { removed, .. } = &mut update.change
            && !removed.is_empty()
        {
            self.coverage.note(Mark::RouteRemoved);
            if self.mutation == Some(Mutation::DropWithdrawal) {
                *removed = BTreeSet::new();
            }
        }
    }

    pub(crate) fn time_publisher(&mut self, life: usize) {
        let now = self.local(Host::Proxy(self.lives[life].slot));
        if let Some(publisher) = &mut self.lives[life].publisher {
            publisher.handle_timeout(now);
        }
    }

    pub(crate) fn backend_reply(&mut self, link: LinkId, reply: Reply) {
        let Some(life) = self.lives.iter().position(|life| life.backend == link && life.state != State::Dead)
        else {
            return;
        };
        let now = self.local(Host::Proxy(self.lives[life].slot));
        if let Reply::Started { incarnation } = reply {
            self.life_started(life, incarnation);
            return;
        }
        match reply {
            Reply::Started { .. } => {}
            Reply::LeaseGranted { lease } => {
                self.note(Mark::LeaseGranted);
                self.lives[life].lease = Some(lease);
                if let Some(publisher) = &mut self.lives[life].publisher {
                    publisher.handle_lease_granted(now);
                }
            }
            Reply::LeaseGone { lease } => {
                let is_mine = self.lives[life].lease == Some(lease);
                if is_mine && !self.is_mutated(Mutation::ForgetLease) {
                    self.note(Mark::LeaseLost);
                    self.lives[life].lease = None;
                    if let Some(publisher) = &mut self.lives[life].publisher {
                        publisher.handle_lease_lost(now);
                    }
                }
            }
            Reply::Written { id } => {
                self.note(Mark::WriteDone);
                if let Some(publisher) = &mut self.lives[life].publisher {
                    publisher.handle_written(id, now);
                }
            }
            Reply::NotWritten { id } => {
                self.note(Mark::WriteFailed);
                if let Some(publisher) = &mut self.lives[life].publisher {
                    publisher.handle_write_failed(id, now);
                }
            }
            Reply::Routes { key, updates } => self.routes_read(life, key, updates),
            Reply::Watch(watch) => self.watch(life, watch),
        }
        self.touch(Machine::Publisher(life));
    }

    fn life_started(&mut self, life: usize, incarnation: Incarnation) {
        let now = self.local(Host::Proxy(self.lives[life].slot));
        let process = &mut self.lives[life];
        process.incarnation = incarnation;
        process.state = State::Running;
        process.since = self.now;
        process.publisher = Some(Publisher::new(scenario::publisher_config(), process.id, incarnation, now));
        self.touch(Machine::Publisher(life));
        self.after(Duration::from_millis(100), Event::LifeTick(life));
    }

    fn watch(&mut self, life: usize, watch: Watch) {
        match watch {
            Watch::Strategy { revision, strategy } => {
                let known = self.lives[life].strategy;
                if known.is_none_or(|(known, _)| revision > known) {
                    self.lives[life].strategy = Some((revision, strategy));
                    self.tell_agents(life, &ControlMessage::Strategy { revision, strategy });
                }
            }
            Watch::Proxies(list) => {
                let known = self.lives[life].list.as_ref().map(|list| list.revision);
                if known.is_none_or(|known| list.revision > known) {
                    self.lives[life].list = Some(list.clone());
                    self.tell_agents(life, &ControlMessage::Proxies(list));
                }
            }
            Watch::Routes(update) => self.route_news(life, RouteNews::Update(Source::Watch, update)),
            Watch::Lease { proxy, incarnation, is_up, revision } => {
                self.route_news(life, RouteNews::Lease(proxy, incarnation, is_up, revision));
            }
            Watch::Withdrawn { proxy, incarnation } => {
                self.route_news(life, RouteNews::Withdrawn(Source::Watch, proxy, incarnation));
            }
        }
    }

    pub(crate) fn tell_agents(&mut self, life: usize, message: &ControlMessage) {
        let Some(message) = self.as_told(life, message.clone()) else { return };
        let links: Vec<LinkId> = self
            .tunnels
            .iter()
            .filter(|(_, t)| t.life == life && t.ready_at[1].is_some())
            .map(|(id, _)| *id)
            .collect();
        for link in links {
            if self.mux(link, 1).is_some() {
                self.send_control(link, message.clone());
            }
        }
    }

    /// Takes news of routes, or keeps it until the proxy hears again.
    pub(crate) fn route_news(&mut self, life: usize, news: RouteNews) {
        let process = &mut self.lives[life];
        if let Some(later) = &mut process.deaf {
            later.push(news);
            return;
        }
        let own = process.id;
        let now = self.local(Host::Proxy(self.lives[life].slot));
        let table = &mut self.lives[life].table;
        let result = match news {
            RouteNews::Update(_, update) if update.proxy == own => Ok(()),
            RouteNews::Update(source, update) => {
                let update = corrupt(self.mutation, table, update);
                let is_old = table
                    .sequence(update.proxy, update.incarnation)
                    .is_some_and(|known| update.sequence <= known);
                if is_old {
                    self.coverage.note(Mark::RouteStale);
                }
                table.handle_update(source, update, now).map(|_| ())
            }
            RouteNews::Lease(proxy, ..) if proxy == own => Ok(()),
            RouteNews::Lease(proxy, incarnation, is_up, revision) => {
                table.handle_lease(proxy, incarnation, is_up, revision, now)
            }
            RouteNews::Withdrawn(_, proxy, _) if proxy == own => Ok(()),
            RouteNews::Withdrawn(source, proxy, incarnation) => {
                self.coverage.note(Mark::RouteWithdrawn);
                table.handle_withdrawn(source, proxy, incarnation)
            }
        };
        if let Err(error) = result {
            self.violate(format!("an honest statement was refused: {error}"));
        }
        self.touch(Machine::Table(life));
    }

    fn routes_read(&mut self, life: usize, key: Option<PlanKey>, updates: Vec<RouteUpdate>) {
        // A question is answered past the ears.
        let deaf = self.lives[life].deaf.take();
        for update in updates {
            self.route_news(life, RouteNews::Update(Source::Watch, update));
        }
        self.lives[life].deaf = deaf;
        if let Some(key) = key {
            self.plan_refreshed(key);
        }
    }

    pub(crate) fn serve_table(&mut self, life: usize) {
        while let Some(TableEffect::Resync { proxy, incarnation }) = self.lives[life].table.poll_effect() {
            self.note(Mark::RouteResync);
            match self.peer_link_to(life, proxy, incarnation) {
                Some(link) => self.send(link, 0, Payload::Peer(PeerMessage::Resync)),
                None => self.ask_backend(life, Request::ReadAll { proxy, incarnation }),
            }
        }
        let process = &mut self.lives[life];
        if process.table.revision() != process.table_revision {
            process.table_revision = process.table.revision();
            self.news_for_plans(life);
        }
        let (host, at) = (Host::Proxy(self.lives[life].slot), self.lives[life].table.poll_timeout());
        self.arm(Machine::Table(life), host, at);
    }

    pub(crate) fn time_table(&mut self, life: usize) {
        let now = self.local(Host::Proxy(self.lives[life].slot));
        let table = &mut self.lives[life].table;
        let before = table.route_count();
        table.handle_timeout(now);
        if table.route_count() < before {
            self.note(Mark::RouteExpired);
        }
    }

    pub(crate) fn life_tick(&mut self, life: usize) {
        if !self.lives[life].is_alive() {
            return;
        }
        self.lives[life].ticks += 1;
        if self.lives[life].ticks.is_multiple_of(4)
            && let Some(lease) = self.lives[life].lease
        {
            self.ask_backend(life, Request::KeepAlive { lease });
        }
        self.tend_peers(life);
        let wait = self.random.between_ms(500, 900);
        self.after(wait, Event::LifeTick(life));
    }

    /// The proxy is told to leave: it goes on serving, and goes once the grace is over.
    pub(crate) fn drain(&mut self, life: usize) {
        if self.lives[life].state != State::Running {
            return;
        }
        self.lives[life].state = State::Draining;
        self.lives[life].since = self.now;
        let (proxy, incarnation) = (self.lives[life].id, self.lives[life].incarnation);
        self.ask_backend(life, Request::Drain { proxy, incarnation });
        self.tell_agents(life, &ControlMessage::Drain);
        self.after(GRACE, Event::LifeExit(life));
    }

    pub(crate) fn life_exit(&mut self, life: usize) {
        if self.lives[life].state != State::Draining {
            return;
        }
        self.check_drained(life);
        if let Some(publisher) = &mut self.lives[life].publisher {
            publisher.withdraw();
        }
        self.serve_publisher(life);
        self.kill(life, true);
    }

    /// The process ends at once. With `tells` its kernel closes the connections.
    pub(crate) fn kill(&mut self, life: usize, tells: bool) {
        let process = &mut self.lives[life];
        process.state = State::Dead;
        process.since = self.now;
        process.publisher = None;
        let (slot, backend) = (process.slot, process.backend);
        if self.slots[slot].listening == Some(life) {
            self.slots[slot].listening = None;
        }
        // What was sent before still arrives: the backend connection is closed behind it.
        self.backend.forget_watcher(backend);
        let tunnels: Vec<LinkId> =
            self.tunnels.iter().filter(|(_, t)| t.life == life).map(|(id, _)| *id).collect();
        for link in tunnels {
            if let Some(tunnel) = self.tunnels.get_mut(&link) {
                tunnel.muxes[1] = None;
                tunnel.is_published = false;
            }
            self.close(link, 1, tells);
        }
        for side in 0..2 {
            for link in self.peer_links(life, side) {
                self.close(link, side, tells);
            }
        }
        self.life_is_dead(life);
    }

    /// A push connection's name is the link's number.
    pub(crate) fn route_link(link: LinkId) -> RouteLink {
        RouteLink(link.0)
    }
}

/// Bugs in front of the table.
fn corrupt(mutation: Option<Mutation>, table: &RouteTable, mut update: RouteUpdate) -> RouteUpdate {
    match mutation {
        Some(Mutation::AcceptOldSequence) => {
            let known = table.sequence(update.proxy, update.incarnation).unwrap_or(0);
            if update.sequence <= known {
                update.sequence = known + 1;
            }
        }
        Some(Mutation::AcceptOldIncarnation) => {
            let newer = (1..=20).map(|n| Incarnation(update.incarnation.0 + n));
            if let Some(life) = newer.rev().find(|life| table.sequence(update.proxy, *life).is_some()) {
                update.incarnation = life;
                update.sequence += 1000;
            }
        }
        _ => {}
    }
    update
}
