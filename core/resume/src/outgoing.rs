//! What one end has written: kept until the other end has it, sent again from where it stopped.

use crate::budget::Budget;
use crate::stream::{Segment, Violation};
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::time::Duration;
use wayleave_vocab::Mono;

/// What a stream keeps at first.
pub const KEPT_BYTES_BASE: usize = 256 * 1024;
/// What it may keep on a path that is fast and long.
pub const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What every stream may keep even when the process's account is empty, so that it goes on, slowly.
pub const KEPT_BYTES_FLOOR: usize = 16 * 1024;
/// What may wait for the connection to take it: more would only make what is urgent wait behind it.
const UNSENT_BYTES_MAX: usize = 64 * 1024;
/// An acknowledgement is asked for whenever this part of what may be kept was sent.
const ASKS_PER_WINDOW: usize = 4;
/// On a path whose rounds take longer than this and twice the shortest, bytes wait in queues: more would only wait, too.
const ROUND_MAX: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct Chunk {
    start: u64,
    /// With the header that the codec put in front.
    framed: Bytes,
    header_bytes: usize,
}

impl Chunk {
    fn len(&self) -> usize {
        self.framed.len() - self.header_bytes
    }

    fn end(&self) -> u64 {
        self.start + self.len() as u64
    }
}

/// A round under way: bytes up to an offset were sent at a time.
#[derive(Debug, Clone, Copy)]
struct Round {
    until: u64,
    began: Mono,
    acknowledged: u64,
}

#[derive(Debug)]
pub(crate) struct Outgoing {
    chunks: VecDeque<Chunk>,
    acknowledged: u64,
    /// Where the current attachment is, and in which chunk that is.
    sent: u64,
    next_chunk: usize,
    /// What was written; the end of the stream counts as one byte behind it.
    written: u64,
    is_finished: bool,
    /// Up to where an acknowledgement was asked for.
    asked: u64,
    is_ask_due: bool,
    window: usize,
    round: Option<Round>,
    shortest_round: Option<Duration>,
    charged: usize,
    budget: Budget,
}

impl Outgoing {
    pub(crate) fn new(budget: Budget) -> Self {
        Self {
            chunks: VecDeque::new(),
            acknowledged: 0,
            sent: 0,
            next_chunk: 0,
            written: 0,
            is_finished: false,
            asked: 0,
            is_ask_due: false,
            window: KEPT_BYTES_BASE,
            round: None,
            shortest_round: None,
            charged: 0,
            budget,
        }
    }

    pub(crate) fn kept(&self) -> usize {
        self.chunks.front().map_or(0, |first| distance(first.start, self.written))
    }

    /// What was written and not sent.
    pub(crate) fn unsent(&self) -> usize {
        distance(self.sent.min(self.written), self.written)
    }

    pub(crate) fn window(&self) -> usize {
        self.window
    }

    pub(crate) fn room(&self) -> usize {
        if self.is_finished {
            return 0;
        }
        let kept = self.kept();
        let affordable = KEPT_BYTES_FLOOR.saturating_sub(kept) + self.budget.left();
        self.window.saturating_sub(kept).min(UNSENT_BYTES_MAX.saturating_sub(self.unsent())).min(affordable)
    }

    pub(crate) fn write(&mut self, framed: Bytes, header_bytes: usize) {
        let chunk = Chunk { start: self.written, header_bytes: header_bytes.min(framed.len()), framed };
        if self.is_finished || chunk.len() == 0 {
            return;
        }
        self.written += chunk.len() as u64;
        self.chunks.push_back(chunk);
        self.charge();
    }

    pub(crate) fn finish(&mut self) {
        self.is_finished = true;
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Whether the other end has everything, the end of the stream included.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_finished && self.acknowledged > self.written
    }

    /// Whether everything was sent, the end of the stream included.
    pub(crate) fn is_all_sent(&self) -> bool {
        self.is_finished && self.sent > self.written
    }

    /// Whether something was sent that the other end has not said to have.
    pub(crate) fn is_unacknowledged(&self) -> bool {
        self.sent > self.acknowledged
    }

    /// The end of the stream is behind the last byte.
    fn end(&self) -> u64 {
        self.written + u64::from(self.is_finished)
    }

    pub(crate) fn acknowledge(&mut self, received: u64, now: Mono) -> Result<(), Violation> {
        if received > self.sent {
            return Err(Violation::NeverSent { received, sent: self.sent });
        }
        // An older one says nothing new.
        self.acknowledged = self.acknowledged.max(received);
        self.release();
        self.learn(now);
        Ok(())
    }

    /// Starts again at what the other end has.
    pub(crate) fn restart(&mut self, received: u64) -> Result<(), Violation> {
        if received < self.acknowledged || received > self.end() {
            return Err(Violation::OutOfRange { received, from: self.acknowledged, to: self.end() });
        }
        self.acknowledged = received;
        self.sent = received;
        self.release();
        // What is acknowledged is released, so the first chunk that is kept is the one to go on with.
        self.next_chunk = 0;
        (self.asked, self.is_ask_due, self.round) = (received, false, None);
        Ok(())
    }

    pub(crate) fn poll_segment(&mut self, now: Mono) -> Option<Segment> {
        if std::mem::take(&mut self.is_ask_due) {
            return Some(Segment::Ask);
        }
        if let Some(chunk) = self.chunks.get(self.next_chunk) {
            let skipped = distance(chunk.start, self.sent);
            let segment = if skipped == 0 {
                Segment::Whole(chunk.framed.clone())
            } else {
                let mut rest = chunk.framed.clone();
                rest.advance(chunk.header_bytes + skipped);
                Segment::Rest(rest)
            };
            self.sent = chunk.end();
            self.next_chunk += 1;
            self.after_send(now);
            return Some(segment);
        }
        if self.is_finished && self.sent == self.written {
            self.sent += 1;
            return Some(Segment::Fin);
        }
        None
    }

    /// The user waits for room: what makes room is asked for.
    pub(crate) fn blocked(&mut self, now: Mono) {
        let waits_for_peer = self.room() == 0 && self.unsent() < UNSENT_BYTES_MAX;
        if waits_for_peer && self.sent > self.asked.max(self.acknowledged) {
            self.ask(now);
        }
    }

    fn after_send(&mut self, now: Mono) {
        if distance(self.asked.max(self.acknowledged), self.sent) >= self.window / ASKS_PER_WINDOW {
            self.ask(now);
        }
    }

    fn ask(&mut self, now: Mono) {
        self.asked = self.sent;
        self.is_ask_due = true;
        if self.round.is_none() {
            self.round = Some(Round { until: self.sent, began: now, acknowledged: self.acknowledged });
        }
    }

    /// A round has ended: more is kept where what may be kept was too little for the path.
    fn learn(&mut self, now: Mono) {
        let Some(round) = self.round.filter(|round| self.acknowledged >= round.until) else { return };
        self.round = None;
        let took = now.since(round.began);
        let shortest = self.shortest_round.map_or(took, |shortest| shortest.min(took));
        self.shortest_round = Some(shortest);
        // What was delivered while one round trip passed: the bandwidth-delay product.
        let delivered = distance(round.acknowledged, self.acknowledged);
        if took <= ROUND_MAX.max(shortest.saturating_mul(2)) {
            self.window = self.window.max(delivered.saturating_mul(2)).min(KEPT_BYTES_MAX);
        }
    }

    fn release(&mut self) {
        while self.chunks.front().is_some_and(|chunk| chunk.end() <= self.acknowledged) {
            self.chunks.pop_front();
            self.next_chunk = self.next_chunk.saturating_sub(1);
        }
        self.charge();
    }

    fn charge(&mut self) {
        let due = self.kept().saturating_sub(KEPT_BYTES_FLOOR);
        if due > self.charged {
            self.budget.take(due - self.charged);
        } else {
            self.budget.give_back(self.charged - due);
        }
        self.charged = due;
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.budget.give_back(self.charged);
    }
}

fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX)
}
