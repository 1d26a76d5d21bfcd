//! One end of a resumable stream.

use crate::budget::Budget;
use crate::outgoing::Outgoing;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;
use wayleave_vocab::Mono;

/// The client looks whether the other end is still there after so long a silence.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The same while something that it sent is not acknowledged.
const SILENCE_WAITING_MAX: Duration = Duration::from_secs(2);
/// How long the answer may take: then the attachment is given up.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Which end this is. Only the client looks after the attachment: it is the one that can make another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It makes attachments.
    Client,
    /// It waits for them.
    Agent,
}

/// What goes over the current attachment, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Bytes as they were handed in, with the header in front.
    Whole(Bytes),
    /// The rest of such bytes: they want a header of their own.
    Rest(Bytes),
    /// The end of what this side writes.
    Fin,
    /// This side is gone.
    Reset,
    /// Wants an acknowledgement of what stands before it.
    Ask,
    /// What was received.
    Acknowledge {
        /// Offset behind the last byte.
        received: u64,
    },
    /// Wants an answer.
    Ping {
        /// What was received.
        received: u64,
    },
    /// The answer.
    Pong {
        /// What was received.
        received: u64,
    },
}

/// How the other end has ended its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It has not.
    Open,
    /// It will write no more.
    Finished,
    /// It is gone.
    Reset,
}

/// What the caller must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The attachment answers nothing: drop it, and call [`Stream::handle_lost`].
    GiveUp,
    /// Nobody attached in time: the stream is over.
    Expire,
}

/// The other end says what cannot be. The attachment is to be dropped, and what it said counts for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It acknowledges what was never sent.
    #[error("byte {received} was acknowledged, {sent} were sent")]
    NeverSent {
        /// What it says to have.
        received: u64,
        /// What it can have.
        sent: u64,
    },
    /// It wants to start at a byte that is not kept or was not written.
    #[error("the other end wants to go on at byte {received}, possible is {from} to {to}")]
    OutOfRange {
        /// Where it wants to start.
        received: u64,
        /// The first that can be had.
        from: u64,
        /// The last.
        to: u64,
    },
    /// It writes behind its own end.
    #[error("bytes behind the end of the stream")]
    BehindEnd,
}

/// The connection under the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attachment {
    Attached,
    Detached { since: Mono },
}

/// What the client knows of the other end's life.
#[derive(Debug, Clone, Copy)]
struct Heartbeat {
    heard: Mono,
    /// When something was sent first that nothing was heard after.
    waiting: Option<Mono>,
    /// When it was asked for an answer.
    asked: Option<Mono>,
}

/// The machine.
#[derive(Debug)]
pub struct Stream {
    role: Role,
    outgoing: Outgoing,
    received: u64,
    end: End,
    is_aborted: bool,
    attachment: Attachment,
    max_detached: Duration,
    heartbeat: Heartbeat,
    /// What is sent before data.
    due: VecDeque<Segment>,
    effects: VecDeque<Effect>,
    is_expired: bool,
}

impl Stream {
    /// A stream that is attached. It waits for the next attachment for `max_detached` at most.
    pub fn new(role: Role, budget: Budget, max_detached: Duration, now: Mono) -> Self {
        Self {
            role,
            outgoing: Outgoing::new(budget),
            received: 0,
            end: End::Open,
            is_aborted: false,
            attachment: Attachment::Attached,
            max_detached,
            heartbeat: Heartbeat { heard: now, waiting: None, asked: None },
            due: VecDeque::new(),
            effects: VecDeque::new(),
            is_expired: false,
        }
    }

    /// How many bytes may be written now.
    pub fn room(&self) -> usize {
        if self.is_aborted { 0 } else { self.outgoing.room() }
    }

    /// The user writes bytes, `header_bytes` of which are the codec's header in front; at most [`Stream::room`] without
    /// them.
    pub fn handle_write(&mut self, framed: Bytes, header_bytes: usize) {
        self.outgoing.write(framed, header_bytes);
    }

    /// The user wants to write and there is no room.
    pub fn handle_blocked(&mut self, now: Mono) {
        if self.attachment == Attachment::Attached {
            self.outgoing.blocked(now);
        }
    }

    /// The user writes no more.
    pub fn handle_finish(&mut self) {
        self.outgoing.finish();
    }

    /// The user is gone: what is not sent counts no more.
    pub fn handle_abort(&mut self) {
        if !self.is_aborted {
            self.is_aborted = true;
            self.due.clear();
            self.due.push_back(Segment::Reset);
        }
    }

    /// Bytes arrived and are the user's.
    ///
    /// # Errors
    /// [`Violation::BehindEnd`].
    pub fn handle_data(&mut self, bytes: usize, now: Mono) -> Result<(), Violation> {
        self.hear(now);
        match self.end {
            End::Open => {
                self.received += bytes as u64;
                Ok(())
            }
            End::Finished | End::Reset => Err(Violation::BehindEnd),
        }
    }

    /// The other end writes no more.
    ///
    /// # Errors
    /// [`Violation::BehindEnd`] when it said so before.
    pub fn handle_fin(&mut self, now: Mono) -> Result<(), Violation> {
        self.handle_data(1, now)?;
        self.end = End::Finished;
        self.acknowledge();
        Ok(())
    }

    /// The other end is gone.
    pub fn handle_reset(&mut self) {
        if self.end == End::Open {
            self.end = End::Reset;
        }
        self.is_aborted = true;
        self.due.clear();
    }

    /// The other end wants to know what was received.
    pub fn handle_ask(&mut self, now: Mono) {
        self.hear(now);
        self.acknowledge();
    }

    /// The other end has received so much.
    ///
    /// # Errors
    /// [`Violation::NeverSent`].
    pub fn handle_acknowledge(&mut self, received: u64, now: Mono) -> Result<(), Violation> {
        self.hear(now);
        self.outgoing.acknowledge(received, now)
    }

    /// The other end wants an answer.
    ///
    /// # Errors
    /// As [`Stream::handle_acknowledge`].
    pub fn handle_ping(&mut self, received: u64, now: Mono) -> Result<(), Violation> {
        self.handle_acknowledge(received, now)?;
        self.say(Segment::Pong { received: self.received });
        Ok(())
    }

    /// The other end answers.
    ///
    /// # Errors
    /// As [`Stream::handle_acknowledge`].
    pub fn handle_pong(&mut self, received: u64, now: Mono) -> Result<(), Violation> {
        self.handle_acknowledge(received, now)
    }

    /// The connection is gone.
    pub fn handle_lost(&mut self, now: Mono) {
        if self.attachment == Attachment::Attached {
            self.attachment = Attachment::Detached { since: now };
            self.due.clear();
        }
    }

    /// How long the stream may wait from now on, also when it waits already.
    pub fn handle_max_detached(&mut self, max_detached: Duration) {
        self.max_detached = max_detached;
    }

    /// Another connection takes over; the other end has received so much.
    ///
    /// # Errors
    /// [`Violation::OutOfRange`]: nothing has changed then.
    pub fn handle_attached(&mut self, received: u64, now: Mono) -> Result<(), Violation> {
        self.outgoing.restart(received)?;
        self.attachment = Attachment::Attached;
        self.heartbeat = Heartbeat { heard: now, waiting: None, asked: None };
        self.due.clear();
        if self.is_aborted && self.end != End::Reset {
            self.due.push_back(Segment::Reset);
        }
        Ok(())
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Mono) {
        match self.attachment {
            Attachment::Detached { since } => {
                if !self.is_expired && now.since(since) >= self.max_detached {
                    self.is_expired = true;
                    self.effects.push_back(Effect::Expire);
                }
            }
            Attachment::Attached => self.look(now),
        }
    }

    /// When to call [`Stream::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Mono> {
        match self.attachment {
            Attachment::Detached { .. } if self.is_expired => None,
            Attachment::Detached { since } => Some(since.after(self.max_detached)),
            Attachment::Attached => self.look_at(),
        }
    }

    /// What to send next, once the connection takes it.
    pub fn poll_segment(&mut self, now: Mono) -> Option<Segment> {
        if self.attachment != Attachment::Attached {
            return None;
        }
        if let Some(segment) = self.due.pop_front() {
            return Some(segment);
        }
        if self.is_aborted {
            return None;
        }
        let segment = self.outgoing.poll_segment(now)?;
        self.heartbeat.waiting.get_or_insert(now);
        Some(segment)
    }

    /// The next thing that the caller must do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Offset behind the last byte that arrived.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// How the other end has ended.
    pub fn end(&self) -> End {
        self.end
    }

    /// Whether there is a connection.
    pub fn is_attached(&self) -> bool {
        self.attachment == Attachment::Attached
    }

    /// Whether one of the ends is gone: nothing more can be written.
    pub fn is_aborted(&self) -> bool {
        self.is_aborted
    }

    /// Whether this side has said that it writes no more.
    pub fn is_finished(&self) -> bool {
        self.outgoing.is_finished()
    }

    /// Whether the other end has everything that was written here, and its end.
    pub fn is_settled(&self) -> bool {
        self.outgoing.is_settled()
    }

    /// Whether everything that was written went out over an attachment, and its end.
    pub fn is_all_sent(&self) -> bool {
        self.is_aborted || self.outgoing.is_all_sent()
    }

    /// Bytes that are kept for the other end.
    pub fn kept(&self) -> usize {
        self.outgoing.kept()
    }

    /// Bytes that wait for the connection to take them.
    pub fn unsent(&self) -> usize {
        self.outgoing.unsent()
    }

    /// How many bytes may be kept.
    pub fn window(&self) -> usize {
        self.outgoing.window()
    }

    fn hear(&mut self, now: Mono) {
        self.heartbeat = Heartbeat { heard: now, waiting: None, asked: None };
    }

    fn acknowledge(&mut self) {
        self.say(Segment::Acknowledge { received: self.received });
    }

    /// One word of a kind waits at most: a later one says more.
    fn say(&mut self, segment: Segment) {
        if self.is_aborted || self.attachment != Attachment::Attached {
            return;
        }
        let kind = std::mem::discriminant(&segment);
        self.due.retain(|waiting| std::mem::discriminant(waiting) != kind);
        self.due.push_back(segment);
    }

    /// When the client looks after the attachment.
    fn look_at(&self) -> Option<Mono> {
        if self.role != Role::Client || self.is_aborted || self.is_over() {
            return None;
        }
        let Heartbeat { heard, waiting, asked } = self.heartbeat;
        if let Some(asked) = asked {
            return Some(asked.after(ANSWER_MAX));
        }
        let silence = heard.after(SILENCE_MAX);
        let waiting = waiting.filter(|_| self.outgoing.is_unacknowledged());
        Some(waiting.map_or(silence, |since| silence.min(since.after(SILENCE_WAITING_MAX))))
    }

    fn look(&mut self, now: Mono) {
        if self.look_at().is_none_or(|at| at > now) {
            return;
        }
        if self.heartbeat.asked.is_some() {
            self.effects.push_back(Effect::GiveUp);
            // Once is enough.
            self.heartbeat = Heartbeat { heard: now, waiting: None, asked: None };
        } else {
            self.heartbeat.asked = Some(now);
            self.say(Segment::Ping { received: self.received });
        }
    }

    /// Nothing moves any more in either direction.
    fn is_over(&self) -> bool {
        self.end != End::Open && self.outgoing.is_settled()
    }
}
