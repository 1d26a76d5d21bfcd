//! Users whose streams outlive their connections: lost, each is dialled again at any proxy, until its time is over.

use crate::agent::CHANGE;
use crate::carrier::{Came, Carrier, MAX_DETACHED, encoded};
use crate::client::{Carries, Progress, byte_at};
use crate::coverage::Mark;
use crate::event::{Event, Machine};
use crate::message::Part;
use crate::mutation::Mutation;
use crate::scenario::QUIET_AT;
use crate::world::World;
use std::time::Duration;
use wayleave_resume::{Effect, End, Role};
use wayleave_resume_wire::{Frame, Proof, Reattach, Signed, StreamId};
use wayleave_vocab::Mono;

/// A stream that was lost later than so long after everything healed finds its way.
const HEALED: Duration = Duration::from_secs(15);
/// What a user writes ahead of what has come back.
const AHEAD_BYTES_MAX: usize = 200 * 1024;
const WRITE_BYTES: usize = 8 * 1024;
/// In so many pieces a user writes.
const PIECES: usize = 20;

/// How a user's stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The first dial is under way.
    Beginning,
    Attached,
    /// It has no connection, and no dial either.
    Waiting,
    /// A dial is under way, or what it leads to has not answered.
    Reattaching,
    Over,
}

#[derive(Debug)]
pub(crate) struct Session {
    agent: usize,
    end: Carrier,
    /// The dial that carries it, or will.
    dial: usize,
    pub(crate) phase: Phase,
    /// As the agent names it, once it has said so: before, a loss is a loss.
    stream: Option<StreamId>,
    /// What the user has thought of up to now.
    thought: usize,
    total: usize,
    sent: usize,
    received: usize,
    detached_at: Mono,
}

impl World {
    pub(crate) fn begin_session(&mut self, life: usize, agent: usize, total: usize) {
        let number = self.sessions.len();
        let dial = self.new_dial(life, agent, Carries::New(number), false);
        self.sessions.push(Session {
            agent,
            end: Carrier::new(Role::Client, self.now),
            dial,
            phase: Phase::Beginning,
            total,
            sent: 0,
            received: 0,
            stream: None,
            thought: 0,
            detached_at: self.now,
        });
    }

    /// The dial of a session has come through.
    pub(crate) fn session_connected(&mut self, number: usize, dial: usize) {
        let now = self.now;
        let session = &mut self.sessions[number];
        if session.dial != dial {
            return;
        }
        match session.phase {
            Phase::Beginning => {
                session.end = Carrier::new(Role::Client, now);
                session.phase = Phase::Attached;
                self.note(Mark::SessionBegun);
                self.write_more(number);
            }
            Phase::Reattaching => {
                let (received, nonce) = (session.end.machine.received(), [(dial % 251) as u8; 32]);
                if let Some(stream) = session.stream {
                    self.session_say(number, &Frame::Reattach(Reattach { stream, nonce, received }));
                }
            }
            Phase::Attached | Phase::Waiting | Phase::Over => {}
        }
    }

    /// The dial has failed, or what it led to is gone.
    pub(crate) fn session_lost(&mut self, number: usize, dial: usize) {
        let now = self.now;
        let is_unsupported = self.dials[dial].is_unsupported;
        let session = &mut self.sessions[number];
        if session.dial != dial {
            return;
        }
        match session.phase {
            Phase::Beginning => {
                let (agent, total) = (session.agent, session.total);
                session.phase = Phase::Over;
                let life = self.dials[dial].life;
                if is_unsupported && self.lives[life].is_alive() {
                    self.note(Mark::SessionDegraded);
                    self.new_dial(life, agent, Carries::Bytes(total), false);
                }
            }
            Phase::Attached if session.stream.is_none() => {
                session.phase = Phase::Over;
            }
            Phase::Attached => {
                session.end.detach(now);
                session.detached_at = now;
                session.phase = Phase::Waiting;
                self.note(Mark::SessionDetached);
                self.redial_later(number);
                self.touch(Machine::Session(number));
            }
            Phase::Reattaching => {
                session.phase = Phase::Waiting;
                self.redial_later(number);
            }
            Phase::Waiting | Phase::Over => {}
        }
    }

    /// A dial has had its time: whoever has not given the session back by now will not.
    pub(crate) fn give_up_silent(&mut self, dial: usize) {
        if let Some(number) = self.dials[dial].carries.session()
            && self.sessions[number].dial == dial
            && self.sessions[number].phase == Phase::Reattaching
        {
            self.client_over(dial, Progress::Cut);
            self.session_lost(number, dial);
        }
    }

    /// The user writes a piece, and thinks.
    pub(crate) fn write_more(&mut self, number: usize) {
        let session = &mut self.sessions[number];
        if session.phase == Phase::Over {
            return;
        }
        session.thought = session.total.min(session.thought + session.total.div_ceil(PIECES));
        if session.thought < session.total {
            let wait = self.random.between_ms(100, 2000);
            self.after(wait, Event::WriteMore(number));
        }
        self.session_go_on(number);
    }

    fn redial_later(&mut self, number: usize) {
        let wait = self.random.between_ms(50, 3000);
        self.after(wait, Event::Redial(number));
    }

    pub(crate) fn redial(&mut self, number: usize) {
        if self.sessions[number].phase != Phase::Waiting {
            return;
        }
        let alive: Vec<usize> = (0..self.lives.len()).filter(|life| self.lives[*life].is_alive()).collect();
        let Some(life) = self.random.pick(&alive) else { return self.redial_later(number) };
        if self.lives[life].is_liar && self.random.chance(50) {
            self.note(Mark::RefusalForged);
            // It is not the agent's: one try that failed.
            if self.is_mutated(Mutation::BelieveRefusals) {
                return self.session_refused(number);
            }
            return self.redial_later(number);
        }
        let agent = self.sessions[number].agent;
        self.sessions[number].phase = Phase::Reattaching;
        self.sessions[number].dial = self.new_dial(life, agent, Carries::Again(number), false);
    }

    fn session_refused(&mut self, number: usize) {
        self.note(Mark::SessionRefused);
        let stream = self.sessions[number].stream;
        if !stream.is_some_and(|stream| self.forgotten.contains(&stream)) {
            self.violate(format!("session {number} was refused though its agent keeps it"));
        }
        self.session_over(number, Part::Reset);
    }

    /// Nothing more is wanted of the connection.
    fn session_over(&mut self, number: usize, last: Part) {
        self.sessions[number].phase = Phase::Over;
        let dial = self.sessions[number].dial;
        match last {
            Part::Finish => self.client_say(dial, Part::Finish),
            Part::Data(_) | Part::Reset => self.client_over(dial, Progress::Cut),
        }
    }

    fn session_say(&mut self, number: usize, frame: &Frame) {
        let dial = self.sessions[number].dial;
        self.client_say(dial, Part::Data(encoded(frame)));
    }

    pub(crate) fn session_data(&mut self, number: usize, dial: usize, bytes: &[u8]) {
        if self.sessions[number].dial != dial || self.sessions[number].phase == Phase::Over {
            return;
        }
        self.sessions[number].end.push(bytes);
        loop {
            let now = self.now;
            match self.sessions[number].end.next(now) {
                Ok(None) => break,
                Ok(Some(Came::Bytes(bytes))) => self.session_bytes(number, &bytes),
                Ok(Some(Came::Frame(frame))) => self.session_frame(number, frame),
                Err(error) => self.violate(format!("session {number} cannot understand its agent: {error}")),
            }
            if self.violation.is_some() || self.sessions[number].phase == Phase::Over {
                return;
            }
        }
        self.session_go_on(number);
    }

    fn session_bytes(&mut self, number: usize, bytes: &[u8]) {
        let session = &mut self.sessions[number];
        for byte in bytes {
            if session.received >= session.sent || *byte != session_byte(number, session.received) ^ CHANGE {
                let at = session.received;
                return self.violate(format!("session {number} got a byte at {at} that is not its own"));
            }
            session.received += 1;
        }
    }

    fn session_frame(&mut self, number: usize, frame: Frame) {
        let now = self.now;
        match frame {
            Frame::Challenge(_) => {
                let signed = Signed { certificate: Vec::new(), signature: Vec::new() };
                self.session_say(number, &Frame::Proof(Proof { mac: [0; 32], signed }));
            }
            Frame::Attached(attached) => {
                let session = &mut self.sessions[number];
                session.phase = Phase::Attached;
                if let Err(error) = session.end.machine.handle_attached(attached.received, now) {
                    self.violate(format!("session {number} cannot go on: {error}"));
                }
                self.note(Mark::SessionReattached);
            }
            Frame::AgentHello(hello) => self.sessions[number].stream = Some(hello.stream),
            Frame::Refused(_) => self.session_refused(number),
            other => self.violate(format!("session {number} was told {other:?}")),
        }
    }

    pub(crate) fn session_go_on(&mut self, number: usize) {
        let now = self.now;
        let session = &mut self.sessions[number];
        if session.phase == Phase::Over || session.phase == Phase::Beginning {
            return;
        }
        while session.sent < session.thought && session.sent - session.received < AHEAD_BYTES_MAX {
            let until = session.thought.min(session.sent + WRITE_BYTES);
            let bytes: Vec<u8> = (session.sent..until).map(|at| session_byte(number, at)).collect();
            let count = session.end.write(&bytes, now);
            if count == 0 {
                break;
            }
            session.sent += count;
        }
        if session.sent == session.total && !session.end.machine.is_finished() {
            session.end.machine.handle_finish();
        }
        let dial = session.dial;
        while let Some(bytes) = self.sessions[number].end.poll(now) {
            self.client_say(dial, Part::Data(bytes));
        }
        let session = &self.sessions[number];
        if session.phase == Phase::Attached
            && session.end.machine.end() == End::Finished
            && session.end.machine.is_settled()
        {
            let (received, total) = (session.received, session.total);
            if received != total {
                self.violate(format!("session {number} ended with {received} of {total} bytes"));
            }
            self.note(Mark::SessionCompleted);
            self.session_over(number, Part::Finish);
        }
        self.touch(Machine::Session(number));
    }

    pub(crate) fn serve_session(&mut self, number: usize) {
        while let Some(effect) = self.sessions[number].end.machine.poll_effect() {
            match (effect, self.sessions[number].phase) {
                (_, Phase::Over) => {}
                (Effect::GiveUp, _) => {
                    self.note(Mark::SessionSilent);
                    let dial = self.sessions[number].dial;
                    self.client_over(dial, Progress::Cut);
                    self.session_lost(number, dial);
                }
                (Effect::Expire, _) => self.session_expired(number),
            }
        }
        let session = &self.sessions[number];
        if !matches!(session.phase, Phase::Over | Phase::Beginning) {
            let at = session.end.machine.poll_timeout();
            self.arm_now(Machine::Session(number), at);
        }
    }

    fn session_expired(&mut self, number: usize) {
        self.note(Mark::SessionExpired);
        let since = self.sessions[number].detached_at;
        if self.now.since(since) < MAX_DETACHED || since.since_origin() > QUIET_AT + HEALED {
            self.violate(format!("session {number}, lost at {:?}, was given up", since.since_origin()));
        }
        self.session_over(number, Part::Reset);
    }

    pub(crate) fn time_session(&mut self, number: usize) {
        let now = self.now;
        self.sessions[number].end.machine.handle_timeout(now);
        self.session_go_on(number);
    }
}

/// The byte at a place of a session's stream: neither another session nor a dial sends the same.
pub(crate) fn session_byte(session: usize, at: usize) -> u8 {
    byte_at(session + (1 << 20), at)
}
