//! What an agent keeps of resumable streams, and how it gives them back.

use crate::agent::CHANGE;
use crate::carrier::{Came, Carrier, encoded};
use crate::coverage::Mark;
use crate::event::Machine;
use crate::mutation::Mutation;
use crate::network::{Host, LinkId};
use crate::session::session_byte;
use crate::world::World;
use bytes::{Buf, BytesMut};
use wayleave_mux::{ResetCode, StreamId};
use wayleave_resume::{Attachments, Attempt, Effect, End, Role};
use wayleave_resume_wire::{
    AgentHello, Attached, Challenge, Frame, Reattach, Refusal, Refused, Signed, StreamId as Name,
};

/// Pieces that wait for the multiplexer at a time; what is more stays in the machine.
const WAITING_MAX: usize = 4;

/// What a stream of a tunnel carries.
#[derive(Debug, Default)]
pub(crate) enum Carried {
    /// Bytes that come back as they are.
    #[default]
    Bytes,
    Session(Name),
    /// Somebody wants a session back, and has not said which.
    Asking(BytesMut),
    /// He has, and is to prove that it is his.
    Proving(BytesMut, Reattach, Attempt),
    Refused,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Kept {
    session: usize,
    end: Carrier,
    attachments: Attachments,
    carrier: Option<(LinkId, StreamId)>,
    received: usize,
    /// What came and is to be sent back.
    back: BytesMut,
}

impl World {
    pub(crate) fn keep(&mut self, agent: usize, key: (LinkId, StreamId), session: usize) -> Carried {
        let name = Name(self.next_kept.to_be_bytes());
        self.next_kept += 1;
        let kept = Kept {
            session,
            end: Carrier::new(Role::Agent, self.local(Host::Agent(agent))),
            attachments: Attachments::default(),
            carrier: Some(key),
            received: 0,
            back: BytesMut::new(),
        };
        self.agents[agent].kept.insert(name, kept);
        let hello = AgentHello {
            share: [0; 32],
            stream: name,
            max_detached_ms: 0,
            proxies: Vec::new(),
            signed: Signed { certificate: Vec::new(), signature: Vec::new() },
        };
        self.carrier_say(agent, key, &Frame::AgentHello(hello));
        Carried::Session(name)
    }

    /// All that an agent kept goes with its process.
    pub(crate) fn forget_sessions(&mut self, agent: usize) {
        self.forgotten.extend(std::mem::take(&mut self.agents[agent].kept).into_keys());
    }

    /// A stream of a tunnel is gone.
    pub(crate) fn carrier_lost(&mut self, agent: usize, lost: impl Fn((LinkId, StreamId)) -> bool) {
        let now = self.local(Host::Agent(agent));
        let mut detached = Vec::new();
        for (name, kept) in &mut self.agents[agent].kept {
            if kept.carrier.is_some_and(&lost) {
                kept.carrier = None;
                kept.end.detach(now);
                detached.push(*name);
            }
        }
        detached.into_iter().for_each(|name| self.touch(Machine::Kept(agent, name)));
    }

    pub(crate) fn carried_data(&mut self, agent: usize, key: (LinkId, StreamId), bytes: &[u8]) {
        if let Some((mux, now)) = self.mux(key.0, 0) {
            mux.consumed(key.1, bytes.len(), now);
        }
        let Some(echo) = self.agents[agent].echoes.get_mut(&key) else { return };
        match &mut echo.carried {
            Carried::Session(name) => {
                let name = *name;
                self.kept_data(agent, key, name, bytes);
            }
            Carried::Asking(input) | Carried::Proving(input, ..) => {
                input.extend_from_slice(bytes);
                self.prove(agent, key);
            }
            Carried::Bytes | Carried::Refused => {}
        }
    }

    fn prove(&mut self, agent: usize, key: (LinkId, StreamId)) {
        let Some(echo) = self.agents[agent].echoes.get_mut(&key) else { return };
        let (carried, frame) = match std::mem::take(&mut echo.carried) {
            Carried::Asking(mut input) => {
                let frame = Frame::decode(&mut input);
                (Carried::Asking(input), frame)
            }
            Carried::Proving(mut input, reattach, attempt) => {
                let frame = Frame::decode(&mut input);
                (Carried::Proving(input, reattach, attempt), frame)
            }
            other => (other, Ok(None)),
        };
        let carried = match (carried, frame) {
            (Carried::Asking(input), Ok(Some(Frame::Reattach(reattach)))) => {
                self.challenge(agent, key, input, reattach)
            }
            (Carried::Proving(_, reattach, attempt), Ok(Some(Frame::Proof(_)))) => {
                self.give_back(agent, key, reattach, attempt)
            }
            (carried, Ok(None)) => carried,
            (_, frame) => {
                self.violate(format!("agent {agent} was told {frame:?} by who wants a session back"));
                Carried::Refused
            }
        };
        let is_session = match &carried {
            Carried::Session(name) => Some(*name),
            Carried::Bytes | Carried::Asking(_) | Carried::Proving(..) | Carried::Refused => None,
        };
        if let Some(echo) = self.agents[agent].echoes.get_mut(&key) {
            echo.carried = carried;
        }
        if let Some(name) = is_session {
            self.kept_go_on(agent, name);
        }
    }

    fn challenge(
        &mut self,
        agent: usize,
        key: (LinkId, StreamId),
        input: BytesMut,
        reattach: Reattach,
    ) -> Carried {
        let Some(kept) = self.agents[agent].kept.get_mut(&reattach.stream) else {
            return self.refuse_session(agent, key, Refusal::Unknown);
        };
        let attempt = kept.attachments.handle_challenge();
        self.carrier_say(agent, key, &Frame::Challenge(Challenge { nonce: [0; 32] }));
        Carried::Proving(input, reattach, attempt)
    }

    fn give_back(
        &mut self,
        agent: usize,
        key: (LinkId, StreamId),
        reattach: Reattach,
        attempt: Attempt,
    ) -> Carried {
        let name = reattach.stream;
        let now = self.local(Host::Agent(agent));
        let trusts = self.is_mutated(Mutation::TrustOffset);
        let Some(kept) = self.agents[agent].kept.get_mut(&name) else {
            return self.refuse_session(agent, key, Refusal::Unknown);
        };
        if kept.attachments.handle_proof(attempt).is_err() {
            return self.refuse_session(agent, key, Refusal::Superseded);
        }
        let received = kept.end.machine.received();
        kept.end.detach(now);
        let former = kept.carrier.replace(key);
        let wrong = reattach.received.saturating_sub(u64::from(trusts));
        if kept.end.machine.handle_attached(wrong, now).is_err()
            && let Err(error) = kept.end.machine.handle_attached(reattach.received, now)
        {
            self.violate(format!("agent {agent} cannot go on with {name:?}: {error}"));
        }
        if let Some(former) = former {
            self.agents[agent].echoes.remove(&former);
            if let Some((mux, _)) = self.mux(former.0, 0) {
                mux.reset(former.1, ResetCode::CANCELLED);
            }
            self.touch(Machine::Mux(former.0, 0));
        }
        self.carrier_say(agent, key, &Frame::Attached(Attached { received, mac: [0; 32] }));
        Carried::Session(name)
    }

    fn refuse_session(&mut self, agent: usize, key: (LinkId, StreamId), refusal: Refusal) -> Carried {
        self.carrier_say(agent, key, &Frame::Refused(Refused::new(refusal, "no")));
        Carried::Refused
    }

    fn carrier_say(&mut self, agent: usize, key: (LinkId, StreamId), frame: &Frame) {
        if let Some(echo) = self.agents[agent].echoes.get_mut(&key) {
            echo.waiting.push_back((encoded(frame), false));
        }
        self.echo_write(agent, key);
    }

    fn kept_data(&mut self, agent: usize, key: (LinkId, StreamId), name: Name, bytes: &[u8]) {
        let now = self.local(Host::Agent(agent));
        let Some(kept) = self.agents[agent].kept.get_mut(&name) else { return };
        if kept.carrier != Some(key) {
            return;
        }
        kept.end.push(bytes);
        let mut wrong = None;
        loop {
            match kept.end.next(now) {
                Ok(None) => break,
                Ok(Some(Came::Bytes(bytes))) => {
                    for byte in &bytes {
                        if *byte != session_byte(kept.session, kept.received) {
                            wrong = Some(format!("a byte at {} that is not its own", kept.received));
                        }
                        kept.received += 1;
                    }
                    kept.back.extend(bytes.iter().map(|byte| byte ^ CHANGE));
                }
                Ok(Some(Came::Frame(frame))) => wrong = Some(format!("{frame:?}")),
                Err(error) => wrong = Some(error),
            }
            if wrong.is_some() {
                break;
            }
        }
        if let Some(wrong) = wrong {
            self.violate(format!("agent {agent} got of {name:?}: {wrong}"));
        }
        self.kept_go_on(agent, name);
    }

    pub(crate) fn kept_go_on(&mut self, agent: usize, name: Name) {
        let now = self.local(Host::Agent(agent));
        let process = &mut self.agents[agent];
        let Some(kept) = process.kept.get_mut(&name) else { return };
        loop {
            let count = kept.end.write(&kept.back, now);
            kept.back.advance(count);
            if count == 0 {
                break;
            }
        }
        let machine = &mut kept.end.machine;
        if machine.end() == End::Finished && kept.back.is_empty() && !machine.is_finished() {
            machine.handle_finish();
        }
        let is_over = kept.end.machine.end() == End::Finished && kept.end.machine.is_settled();
        if let Some(key) = kept.carrier {
            while self.kept_say(agent, name, key) {
                self.echo_write(agent, key);
            }
        }
        if is_over {
            self.agents[agent].kept.remove(&name);
            self.forgotten.insert(name);
        }
        self.touch(Machine::Kept(agent, name));
    }

    /// Hands the multiplexer what it takes; false when that is nothing.
    fn kept_say(&mut self, agent: usize, name: Name, key: (LinkId, StreamId)) -> bool {
        let now = self.local(Host::Agent(agent));
        let process = &mut self.agents[agent];
        let Some(kept) = process.kept.get_mut(&name) else { return false };
        let Some(echo) = process.echoes.get_mut(&key) else { return false };
        let before = echo.waiting.len();
        while echo.waiting.len() < WAITING_MAX
            && let Some(bytes) = kept.end.poll(now)
        {
            echo.waiting.push_back((bytes, false));
        }
        echo.waiting.len() > before
    }

    pub(crate) fn serve_kept(&mut self, agent: usize, name: Name) {
        let Some(kept) = self.agents[agent].kept.get_mut(&name) else { return };
        if let Some(Effect::Expire) = kept.end.machine.poll_effect() {
            self.note(Mark::KeptExpired);
            self.agents[agent].kept.remove(&name);
            self.forgotten.insert(name);
            return;
        }
        let at = kept.end.machine.poll_timeout();
        self.arm(Machine::Kept(agent, name), Host::Agent(agent), at);
    }

    pub(crate) fn time_kept(&mut self, agent: usize, name: Name) {
        let now = self.local(Host::Agent(agent));
        if let Some(kept) = self.agents[agent].kept.get_mut(&name) {
            kept.end.machine.handle_timeout(now);
        }
    }
}
