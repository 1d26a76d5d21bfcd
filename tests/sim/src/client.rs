//! Users: each dials one agent at one proxy, sends bytes, and wants them back in order, changed and complete.

use crate::agent::CHANGE;
use crate::coverage::Mark;
use crate::event::Event;
use crate::message::{Part, Payload, PeerMessage};
use crate::plan::{PlanKey, Via};
use crate::proxy::State;
use crate::world::World;
use std::time::Duration;
use wayleave_peering::{AttemptId, DialError, Outcome, Way};
use wayleave_vocab::{Capabilities, Capability, Mono};

/// A user sends this much more than has come back.
const AHEAD_BYTES_MAX: usize = 200 * 1024;
/// Bytes in one write of a user.
const WRITE_BYTES: usize = 8 * 1024;
/// Of a hundred users, how many want their streams back.
const SESSIONS_PERCENT: usize = 35;
/// A dial must have ended by then: the plan's deadline, and what clocks may be off.
const DIAL_ENDS_WITHIN: Duration = Duration::from_millis(15_500);

/// How far a user has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    Dialling,
    Talking {
        attempt: AttemptId,
    },
    /// All bytes came back.
    Completed,
    /// Something on the way has died.
    Cut,
    /// The dial has failed.
    Failed(DialError),
    /// The proxy that the user was connected to has died.
    IngressDied,
}

/// What a dial is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carries {
    /// So many bytes, which are to come back.
    Bytes(usize),
    /// A session that begins.
    New(usize),
    /// A session that lost its connection.
    Again(usize),
}

impl Carries {
    pub(crate) fn session(self) -> Option<usize> {
        match self {
            Self::Bytes(_) => None,
            Self::New(session) | Self::Again(session) => Some(session),
        }
    }

    /// What the agent must be able to do.
    pub(crate) fn needed(self) -> Capabilities {
        self.session().map(|_| Capability::Resume).into_iter().collect()
    }
}

#[derive(Debug)]
pub(crate) struct Dial {
    pub(crate) carries: Carries,
    /// The agent has not said that it can do what is needed.
    pub(crate) is_unsupported: bool,
    pub(crate) agent: usize,
    pub(crate) life: usize,
    pub(crate) at: Mono,
    pub(crate) progress: Progress,
    /// Nothing is wrong any more: anything but completion is a violation.
    pub(crate) is_final: bool,
    total: usize,
    sent: usize,
    received: usize,
    finish_sent: bool,
}

impl World {
    pub(crate) fn draw_dial(&mut self) {
        let alive: Vec<usize> = (0..self.lives.len()).filter(|life| self.lives[*life].is_alive()).collect();
        let Some(life) = self.random.pick(&alive) else { return };
        let agent = self.random.below(self.agents.len());
        let total = self.random.pick(&[1, 100, 5_000, 100_000, 300_000]).unwrap_or(1);
        if self.random.chance(SESSIONS_PERCENT) {
            self.begin_session(life, agent, total);
        } else {
            self.new_dial(life, agent, Carries::Bytes(total), false);
        }
    }

    pub(crate) fn new_dial(&mut self, life: usize, agent: usize, carries: Carries, is_final: bool) -> usize {
        let number = self.dials.len();
        let total = match carries {
            Carries::Bytes(total) => total,
            Carries::New(_) | Carries::Again(_) => 0,
        };
        self.dials.push(Dial {
            carries,
            is_unsupported: false,
            agent,
            life,
            at: self.now,
            progress: Progress::Dialling,
            is_final,
            total,
            sent: 0,
            received: 0,
            finish_sent: false,
        });
        self.add_plan(PlanKey::Client(number), life, agent, number, 0);
        self.after(DIAL_ENDS_WITHIN, Event::CheckDial(number));
        number
    }

    pub(crate) fn is_established(&self, dial: usize, attempt: AttemptId) -> bool {
        self.dials[dial].progress == Progress::Talking { attempt }
    }

    pub(crate) fn client_done(&mut self, dial: usize, outcome: Outcome) {
        match outcome {
            Outcome::Established { attempt, by } => {
                self.note(match by {
                    Way::Local { .. } => Mark::DialLocal,
                    Way::Peer { .. } => Mark::DialPeer,
                });
                self.dials[dial].progress = Progress::Talking { attempt };
                match self.dials[dial].carries.session() {
                    Some(session) => self.session_connected(session, dial),
                    None => self.client_send(dial),
                }
            }
            Outcome::Failed(error) => {
                self.note(Mark::DialOffline);
                self.dials[dial].progress = Progress::Failed(error);
                if !self.dials[dial].is_unsupported {
                    self.check_failed(dial);
                }
                self.plans.remove(&PlanKey::Client(dial));
                self.tell_session(dial);
            }
        }
    }

    /// A session's dial has ended.
    fn tell_session(&mut self, dial: usize) {
        if let Some(session) = self.dials[dial].carries.session() {
            self.session_lost(session, dial);
        }
    }

    /// A session says something over its dial, if that is there.
    pub(crate) fn client_say(&mut self, dial: usize, part: Part) {
        if let Progress::Talking { attempt } = self.dials[dial].progress {
            self.downstream(dial, attempt, part);
        }
    }

    fn client_send(&mut self, number: usize) {
        loop {
            let dial = &mut self.dials[number];
            let Progress::Talking { attempt } = dial.progress else { return };
            let ahead = dial.sent - dial.received;
            let part = if dial.sent < dial.total && ahead < AHEAD_BYTES_MAX {
                let end = dial.total.min(dial.sent + WRITE_BYTES);
                let bytes: Vec<u8> = (dial.sent..end).map(|at| byte_at(number, at)).collect();
                dial.sent = end;
                Part::Data(bytes.into())
            } else if dial.sent == dial.total && !dial.finish_sent {
                dial.finish_sent = true;
                Part::Finish
            } else {
                return;
            };
            self.downstream(number, attempt, part);
        }
    }

    fn downstream(&mut self, dial: usize, attempt: AttemptId, part: Part) {
        let via =
            self.plans.get(&PlanKey::Client(dial)).and_then(|plan| plan.attempts.get(&attempt)).copied();
        match via {
            Some(Via::Leg(link, stream)) => self.leg_send(link, stream, part),
            Some(Via::Peer(link)) => {
                self.send(link, 0, Payload::Peer(PeerMessage::Stream { dial, attempt, part }));
            }
            None => {}
        }
    }

    pub(crate) fn client_part(&mut self, number: usize, attempt: AttemptId, part: Part) {
        if !self.is_established(number, attempt) {
            return;
        }
        let session = self.dials[number].carries.session();
        match part {
            Part::Data(bytes) if session.is_some() => {
                session.into_iter().for_each(|session| self.session_data(session, number, &bytes));
            }
            Part::Data(bytes) => {
                let dial = &mut self.dials[number];
                for byte in &bytes {
                    if dial.received >= dial.sent || *byte != byte_at(number, dial.received) ^ CHANGE {
                        let at = dial.received;
                        self.violate(format!("dial {number} got a byte at {at} that is not its own"));
                        return;
                    }
                    dial.received += 1;
                }
                self.client_send(number);
            }
            Part::Finish => {
                let dial = &self.dials[number];
                if session.is_none() && dial.received != dial.total {
                    let (received, total) = (dial.received, dial.total);
                    self.violate(format!("dial {number} ended with {received} of {total} bytes"));
                }
                self.note(Mark::StreamCompleted);
                self.client_over(number, Progress::Completed);
                self.tell_session(number);
            }
            Part::Reset => {
                self.note(Mark::StreamCut);
                if self.dials[number].is_final {
                    self.violate(format!("dial {number} was cut though nothing is wrong"));
                }
                self.client_over(number, Progress::Cut);
                self.tell_session(number);
            }
        }
    }

    pub(crate) fn client_over(&mut self, dial: usize, progress: Progress) {
        let attempt = match self.dials[dial].progress {
            Progress::Talking { attempt } => Some(attempt),
            Progress::Dialling
            | Progress::Completed
            | Progress::Cut
            | Progress::Failed(_)
            | Progress::IngressDied => None,
        };
        if let Some(attempt) = attempt
            && progress != Progress::Completed
        {
            self.downstream(dial, attempt, Part::Reset);
        }
        self.dials[dial].progress = progress;
        self.plans.remove(&PlanKey::Client(dial));
    }

    pub(crate) fn client_ingress_died(&mut self, dial: usize) {
        self.dials[dial].progress = Progress::IngressDied;
        self.tell_session(dial);
    }

    pub(crate) fn check_dial(&mut self, dial: usize) {
        self.give_up_silent(dial);
        if self.dials[dial].progress == Progress::Dialling
            && self.lives[self.dials[dial].life].state != State::Dead
        {
            self.violate(format!("dial {dial} waits for ever"));
        }
    }
}

/// The byte at a place of a dial's stream: no two dials send the same.
pub(crate) fn byte_at(dial: usize, at: usize) -> u8 {
    let mixed = ((dial as u64) << 40 ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 53) as u8
}
