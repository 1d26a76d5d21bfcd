//! An agent's process: does what its pool says, and answers streams with what they brought, each byte changed.

use crate::backend::Answer;
use crate::coverage::Mark;
use crate::event::{Boot, Event, Machine, TunnelAnswer};
use crate::keeper::{Carried, Kept};
use crate::message::ControlMessage;
use crate::mutation::Mutation;
use crate::network::{Host, LinkId};
use crate::scenario::{self, agent_id, slot_at};
use crate::world::World;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use wayleave_mux::{Event as MuxEvent, GoAwayCode, Mux, Role, StreamId};
use wayleave_resume_wire::StreamId as Name;
use wayleave_tunnel::{CloseReason, Connected, DialFailure, Effect, Pool, TunnelId};
use wayleave_vocab::{Capabilities, Capability, HostId, Mono, TunnelStrategy};

/// A stream begins with the number of the dial, of the agent that is meant, and how it can be resumed.
pub(crate) const HEADER_BYTES: usize = 17;
/// The agent answers with the number of the dial.
pub(crate) const ANSWER_BYTES: usize = 8;
/// The answer's bytes differ from the question's, so that no echo is mistaken for one.
pub(crate) const CHANGE: u8 = 0x5a;

/// How a stream can be resumed, in its header.
pub(crate) const RESUME_NEW: u8 = 1;
pub(crate) const RESUME_AGAIN: u8 = 2;
/// Of a hundred starts of an agent, how many are of an older release.
const OLD_PERCENT: usize = 20;

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) id: HostId,
    pub(crate) boot: u32,
    pub(crate) pool: Option<Pool>,
    pub(crate) links: BTreeMap<TunnelId, LinkId>,
    pub(crate) echoes: BTreeMap<(LinkId, StreamId), Echo>,
    /// Sessions that it can give back.
    pub(crate) kept: BTreeMap<Name, Kept>,
    /// What it says in its hello: an older release says nothing.
    pub(crate) capabilities: Capabilities,
    pub(crate) published: Vec<Connected>,
    pub(crate) dialled_at: Mono,
    /// The newest signed policy, which outlives the process.
    policy: Option<(u64, TunnelStrategy)>,
    /// When a signed head last came, by the agent's clock.
    pub(crate) confirmed_at: Mono,
    /// An honest proxy relays heads.
    pub(crate) is_confirmed: bool,
    /// What a mutation pretends to be connected to.
    pretended: u8,
}

impl Agent {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            id: agent_id(number),
            boot: 0,
            pool: None,
            links: BTreeMap::new(),
            echoes: BTreeMap::new(),
            kept: BTreeMap::new(),
            capabilities: Capabilities::default(),
            published: Vec::new(),
            dialled_at: Mono::ZERO,
            policy: None,
            confirmed_at: Mono::ZERO,
            is_confirmed: false,
            pretended: 0,
        }
    }
}

/// One stream at the agent.
#[derive(Debug, Default)]
pub(crate) struct Echo {
    header: Vec<u8>,
    pub(crate) carried: Carried,
    /// To be sent, and whether it was received (so that it is consumed when it has been sent).
    pub(crate) waiting: VecDeque<(Bytes, bool)>,
    peer_finished: bool,
    /// Reads nothing until it is told to.
    is_lazy: bool,
}

impl World {
    pub(crate) fn boot_agent(&mut self, agent: usize) {
        let seed = self.random.number();
        let is_old = self.random.chance(OLD_PERCENT);
        let capabilities = if is_old { Capabilities::default() } else { Capabilities::own() };
        let now = self.local(Host::Agent(agent));
        let Some(process) = self.agents.get_mut(agent) else { return };
        if process.pool.is_some() {
            return;
        }
        process.boot += 1;
        let was = std::mem::replace(&mut process.capabilities, capabilities);
        let (is, is_first) = (process.capabilities.has(Capability::Resume), process.boot == 1);
        match (was.has(Capability::Resume), is) {
            _ if is_first => {}
            (false, true) => self.coverage.note(Mark::AgentUpgraded),
            (true, false) => self.coverage.note(Mark::AgentDowngraded),
            (true, true) | (false, false) => {}
        }
        process.published.clear();
        let bootstrap = vec![scenario::address("balancer")];
        let mut pool = Pool::new(scenario::pool_config(), bootstrap, seed, now);
        if let Some((_, strategy)) = process.policy {
            pool.handle_strategy(strategy, now);
        }
        process.pool = Some(pool);
        self.touch(Machine::Pool(agent));
    }

    /// The process ends. With `tells` its kernel closes the connections.
    pub(crate) fn stop_agent(&mut self, agent: usize, tells: bool) {
        self.forget_sessions(agent);
        let Some(process) = self.agents.get_mut(agent) else { return };
        process.pool = None;
        process.echoes.clear();
        for link in std::mem::take(&mut process.links).into_values() {
            if let Some(tunnel) = self.tunnels.get_mut(&link) {
                tunnel.muxes[0] = None;
            }
            self.close(link, 0, tells);
        }
    }

    fn is_running(&self, (agent, boot): Boot) -> bool {
        self.agents.get(agent).is_some_and(|process| process.boot == boot && process.pool.is_some())
    }

    pub(crate) fn pool(&mut self, agent: usize) -> Option<(&mut Pool, Mono)> {
        let now = self.local(Host::Agent(agent));
        let pool = self.agents.get_mut(agent)?.pool.as_mut()?;
        Some((pool, now))
    }

    pub(crate) fn time_pool(&mut self, agent: usize) {
        if let Some((pool, now)) = self.pool(agent) {
            pool.handle_timeout(now);
        }
    }

    pub(crate) fn serve_pool(&mut self, agent: usize) {
        while let Some((pool, _)) = self.pool(agent)
            && let Some(effect) = pool.poll_effect()
        {
            self.pool_effect(agent, effect);
        }
        let at = self.pool(agent).and_then(|(pool, _)| pool.poll_timeout());
        self.arm(Machine::Pool(agent), Host::Agent(agent), at);
    }

    fn pool_effect(&mut self, agent: usize, effect: Effect) {
        self.trace(&("agent", agent, &effect));
        let boot = (agent, self.agents[agent].boot);
        match effect {
            Effect::AskAuth { .. } => {
                self.note(Mark::AskedAuth);
                let wait = self.random.between_ms(1, 50);
                self.after(wait, Event::QuestionArrives { boot });
            }
            Effect::Dial { id, address, wanted, avoid, .. } => {
                self.note(Mark::TunnelDialled);
                self.agents[agent].dialled_at = self.now;
                let slot = slot_at(&address);
                if slot.map(scenario::proxy_id) != wanted {
                    self.violate(format!("{address} was dialled for {wanted:?}"));
                }
                let avoid = if self.is_mutated(Mutation::CountProxyTwice) { Vec::new() } else { avoid };
                if slot.is_none_or(|_| self.scenario.addresses != scenario::Addresses::Broken) {
                    let wait = self.random.between_ms(1, 50);
                    self.after(wait, Event::TunnelArrives { boot, id, slot, avoid });
                }
            }
            Effect::Abandon { .. } => self.note(Mark::TunnelAbandoned),
            Effect::Close { id, reason } => self.close_tunnel(agent, id, reason),
            Effect::Publish { connected } => self.agents[agent].published = connected,
        }
    }

    fn close_tunnel(&mut self, agent: usize, id: TunnelId, reason: CloseReason) {
        self.note(match reason {
            CloseReason::Duplicate => Mark::CloseDuplicate,
            CloseReason::Excess => Mark::CloseExcess,
            CloseReason::Replaced => Mark::CloseReplaced,
        });
        let Some(link) = self.agents[agent].links.get(&id).copied() else { return };
        if !reason.drains() {
            self.end_lost(link, 0);
        } else if !self.is_mutated(Mutation::KeepExcess) {
            if let Some(tunnel) = self.tunnels.get_mut(&link) {
                tunnel.is_leaving = true;
            }
            if let Some((mux, _)) = self.mux(link, 0) {
                mux.go_away(GoAwayCode::DRAIN);
            }
            self.touch(Machine::Mux(link, 0));
        }
    }

    /// A proxy passes the question on to Auth without being able to read it.
    pub(crate) fn question_arrives(&mut self, boot: Boot) {
        let host = Host::Agent(boot.0);
        let Some(life) = self.balance() else { return };
        let proxy = Host::Proxy(self.lives[life].slot);
        let is_way = |from, to| !self.ways.is_blocked(from, to) && !self.ways.is_blocked(to, from);
        if !is_way(host, proxy) || !is_way(proxy, Host::Backend) {
            return;
        }
        let answer = self.backend.answer().filter(|_| self.passes_on(life));
        let wait = self.delay(proxy, host) + self.delay(proxy, Host::Backend);
        self.after(wait, Event::AnswerArrives { boot, answer });
    }

    pub(crate) fn answer_arrives(&mut self, boot: Boot, answer: Option<Answer>) {
        if !self.is_running(boot) {
            return;
        }
        let now = self.local(Host::Agent(boot.0));
        match answer {
            Some(Answer { revision, strategy, list }) => {
                self.agents[boot.0].confirmed_at = now;
                self.tell_strategy(boot.0, strategy, revision);
                if let Some((pool, now)) = self.pool(boot.0)
                    && pool.handle_answer(list, now).is_err()
                {
                    self.violate("a short list of proxies was refused".to_owned());
                }
            }
            None => {
                self.note(Mark::AskFailed);
                if let Some((pool, now)) = self.pool(boot.0) {
                    pool.handle_ask_failed(now);
                }
            }
        }
        self.touch(Machine::Pool(boot.0));
    }

    /// Signed policy came: of several the newest counts.
    fn tell_strategy(&mut self, agent: usize, strategy: TunnelStrategy, revision: u64) {
        let policy = self.agents[agent].policy;
        let ignores_change = self.is_mutated(Mutation::IgnoreStrategyChange) && policy.is_some();
        if ignores_change || policy.is_some_and(|(known, _)| revision <= known) {
            return;
        }
        self.agents[agent].policy = Some((revision, strategy));
        if let Some((pool, now)) = self.pool(agent) {
            pool.handle_strategy(strategy, now);
        }
    }

    pub(crate) fn tunnel_answer(&mut self, boot: Boot, id: TunnelId, answer: TunnelAnswer) {
        let agent = boot.0;
        if !self.is_running(boot) {
            if let TunnelAnswer::Accepted(link) = answer {
                self.close(link, 0, true);
            }
            return;
        }
        match answer {
            TunnelAnswer::Accepted(link) => self.tunnel_up(agent, id, link),
            TunnelAnswer::Refused => {
                self.note(Mark::TunnelRefused);
                if let Some((pool, now)) = self.pool(agent) {
                    pool.handle_dial_failed(id, DialFailure::Failed, now);
                }
            }
            TunnelAnswer::Already(connected) => {
                self.note(Mark::TunnelAlreadyConnected);
                if let Some((pool, now)) = self.pool(agent) {
                    pool.handle_dial_failed(id, DialFailure::AlreadyConnected(connected), now);
                }
            }
        }
        self.touch(Machine::Pool(agent));
    }

    fn tunnel_up(&mut self, agent: usize, id: TunnelId, link: LinkId) {
        self.note(Mark::TunnelUp);
        let now = self.local(Host::Agent(agent));
        let Some(tunnel) = self.tunnels.get_mut(&link) else { return };
        tunnel.muxes[0] = Some(Mux::new(Role::Connector, scenario::mux_config(), now));
        let life = &self.lives[tunnel.life];
        let (mut proxy, incarnation) = (life.id, life.incarnation);
        let process = &mut self.agents[agent];
        process.links.insert(id, link);
        let Some(pool) = process.pool.as_mut() else { return };
        if self.mutation == Some(Mutation::CountProxyTwice)
            && pool.connected().iter().any(|connected| connected.proxy == proxy)
        {
            process.pretended += 1;
            proxy = HostId::from_random([process.pretended; 16]);
        }
        pool.handle_dialled(id, proxy, incarnation, now);
        // What came before the answer was understood.
        self.tunnel_input(link, 0, &Bytes::new());
    }

    pub(crate) fn agent_tunnel_lost(&mut self, link: LinkId) {
        let Some(tunnel) = self.tunnels.get(&link) else { return };
        let (agent, id, boot) = (tunnel.agent, tunnel.id, tunnel.boot);
        if !self.is_running((agent, boot)) {
            return;
        }
        self.note(Mark::TunnelLost);
        let process = &mut self.agents[agent];
        process.links.remove(&id);
        process.echoes.retain(|(echo_link, _), _| *echo_link != link);
        self.carrier_lost(agent, |(carrier, _)| carrier == link);
        if !self.is_mutated(Mutation::ForgetRedial)
            && let Some((pool, now)) = self.pool(agent)
        {
            pool.handle_lost(id, now);
        }
        self.touch(Machine::Pool(agent));
    }

    pub(crate) fn agent_event(&mut self, link: LinkId, event: MuxEvent) {
        let Some((agent, id)) = self.tunnels.get(&link).map(|tunnel| (tunnel.agent, tunnel.id)) else {
            return;
        };
        match event {
            MuxEvent::Ready => {
                let now = self.now;
                if let Some(tunnel) = self.tunnels.get_mut(&link) {
                    tunnel.ready_at[0] = Some(now);
                }
            }
            MuxEvent::Control(bytes) => self.agent_control(agent, id, &bytes),
            MuxEvent::StreamOpened { id: stream, .. } => {
                let is_lazy = self.random.chance(10);
                if is_lazy {
                    self.note(Mark::FaultLazyReader);
                    let wait = self.random.between_ms(500, 5000);
                    self.after(wait, Event::ReadNow(link, stream));
                }
                self.agents[agent].echoes.insert((link, stream), Echo { is_lazy, ..Echo::default() });
            }
            MuxEvent::Data { id: stream, bytes } => self.echo_data(agent, (link, stream), bytes),
            MuxEvent::Finished { id: stream } => {
                if let Some(echo) = self.agents[agent].echoes.get_mut(&(link, stream)) {
                    echo.peer_finished = true;
                }
                self.echo_flush(agent, (link, stream));
            }
            MuxEvent::Reset { id: stream, .. } => {
                self.agents[agent].echoes.remove(&(link, stream));
                self.carrier_lost(agent, |carrier| carrier == (link, stream));
            }
            MuxEvent::Writable { id: stream } => self.echo_flush(agent, (link, stream)),
            MuxEvent::Drained => {
                self.note(Mark::TunnelDrained);
                self.end_lost(link, 0);
            }
            MuxEvent::Pong { .. } | MuxEvent::GoAway { .. } => {}
        }
    }

    fn agent_control(&mut self, agent: usize, id: TunnelId, mut bytes: &[u8]) {
        let number = bytes.try_get_u64().unwrap_or(u64::MAX);
        let Some(message) = self.control.get(number as usize).cloned() else { return };
        let ignores_drain = self.is_mutated(Mutation::IgnoreDrain);
        match message {
            ControlMessage::Strategy { revision, strategy } => self.tell_strategy(agent, strategy, revision),
            ControlMessage::Proxies(mut list) => {
                if ignores_drain {
                    list.proxies.iter_mut().for_each(|proxy| proxy.draining = false);
                }
                let believes = self.is_mutated(Mutation::BelieveProxies);
                if let Some((pool, now)) = self.pool(agent)
                    && match believes {
                        true => pool.handle_answer(list, now).is_err(),
                        false => pool.handle_proxies(id, list, now).is_err(),
                    }
                {
                    self.violate("a short list of proxies was refused".to_owned());
                }
            }
            ControlMessage::Drain => {
                if !ignores_drain && let Some((pool, now)) = self.pool(agent) {
                    pool.handle_drain(id, now);
                }
            }
        }
        self.touch(Machine::Pool(agent));
    }

    fn echo_data(&mut self, agent: usize, key: (LinkId, StreamId), mut bytes: Bytes) {
        let Some(echo) = self.agents[agent].echoes.get_mut(&key) else { return };
        if echo.header.len() < HEADER_BYTES {
            let part = bytes.split_to(bytes.len().min(HEADER_BYTES - echo.header.len()));
            echo.header.extend_from_slice(&part);
            if echo.header.len() == HEADER_BYTES {
                let mut header = echo.header.as_slice();
                let (dial, wanted, resume) = (header.get_u64(), header.get_u64(), header.get_u8());
                echo.waiting.push_back((Bytes::copy_from_slice(&dial.to_be_bytes()), false));
                if wanted != agent as u64 {
                    self.violate(format!("dial {dial} to agent {wanted} was delivered to agent {agent}"));
                }
                self.begin_carrying(agent, key, dial as usize, resume);
            }
            let count = part.len();
            if let Some((mux, now)) = self.mux(key.0, 0) {
                mux.consumed(key.1, count, now);
            }
        }
        let is_plain = |echo: &Echo| matches!(echo.carried, Carried::Bytes);
        if !self.agents[agent].echoes.get(&key).is_none_or(is_plain) {
            self.carried_data(agent, key, &bytes);
        } else if !bytes.is_empty() {
            let changed: Vec<u8> = bytes.iter().map(|byte| byte ^ CHANGE).collect();
            if let Some(echo) = self.agents[agent].echoes.get_mut(&key) {
                echo.waiting.push_back((changed.into(), true));
            }
        }
        self.echo_flush(agent, key);
    }

    pub(crate) fn read_now(&mut self, link: LinkId, stream: StreamId) {
        let Some(agent) = self.tunnels.get(&link).map(|tunnel| tunnel.agent) else { return };
        if let Some(echo) = self.agents[agent].echoes.get_mut(&(link, stream)) {
            echo.is_lazy = false;
            self.echo_flush(agent, (link, stream));
        }
    }

    /// An agent of an older release reads over what it does not know.
    fn begin_carrying(&mut self, agent: usize, key: (LinkId, StreamId), dial: usize, resume: u8) {
        if !self.agents[agent].capabilities.has(Capability::Resume) {
            return;
        }
        let session = self.dials.get(dial).and_then(|dial| dial.carries.session());
        let carried = match (resume, session) {
            (RESUME_NEW, Some(session)) => self.keep(agent, key, session),
            (RESUME_AGAIN, _) => Carried::Asking(BytesMut::new()),
            _ => return,
        };
        if let Some(echo) = self.agents[agent].echoes.get_mut(&key) {
            echo.carried = carried;
        }
    }

    pub(crate) fn echo_flush(&mut self, agent: usize, key: (LinkId, StreamId)) {
        self.echo_write(agent, key);
        let session = self.agents[agent].echoes.get(&key).and_then(|echo| match echo.carried {
            Carried::Session(name) => Some(name),
            Carried::Bytes | Carried::Asking(_) | Carried::Proving(..) | Carried::Refused => None,
        });
        if let Some(name) = session {
            self.kept_go_on(agent, name);
        }
    }

    /// Sends back what can be sent, and only then calls it consumed.
    pub(crate) fn echo_write(&mut self, agent: usize, key: (LinkId, StreamId)) {
        let (link, stream) = key;
        let is_silent = self.is_mutated(Mutation::NeverRecredit);
        let Some(host) = self.tunnel_host(link, 0) else { return };
        let now = self.local(host);
        let Some(mux) = self.tunnels.get_mut(&link).and_then(|tunnel| tunnel.muxes[0].as_mut()) else {
            return;
        };
        let Some(echo) = self.agents[agent].echoes.get_mut(&key) else { return };
        let mut is_blocked = false;
        while !is_blocked && let Some((mut bytes, was_received)) = echo.waiting.pop_front() {
            if echo.is_lazy && was_received {
                echo.waiting.push_front((bytes, was_received));
                break;
            }
            let part = bytes.split_to(bytes.len().min(mux.send_capacity(stream)));
            let count = part.len();
            if !bytes.is_empty() {
                echo.waiting.push_front((bytes, was_received));
                is_blocked = true;
            }
            if mux.send(stream, part, now).is_ok() && was_received && !is_silent {
                mux.consumed(stream, count, now);
            }
        }
        if echo.waiting.is_empty() && echo.peer_finished {
            mux.finish(stream, now);
            self.agents[agent].echoes.remove(&key);
        }
        if is_blocked {
            self.note(Mark::StreamBlocked);
        }
        self.touch(Machine::Mux(link, 0));
    }
}
