//! One stream: what is queued to send, what may be received, and how far each direction has come.

use crate::event::Class;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;
use wayleave_vocab::Mono;

/// An interactive stream that sent more than this within a few [`BURST_HALF_LIFE`]s counts as bulk.
const BURST_BYTES_MAX: u32 = 64 * 1024;
/// Recent volume halves each time this passes.
const BURST_HALF_LIFE: Duration = Duration::from_millis(100);
/// Recent volume counts up to here, so that a stream is interactive again half a second after a copy.
const BURST_BYTES_COUNTED_MAX: u32 = 1024 * 1024;

/// How far one direction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    /// Bytes may flow.
    Open,
    /// The local user has finished; what is queued and the finish frame are still to be sent.
    Finishing,
    /// The finish frame was sent or received.
    Finished,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) class: Class,
    pub(crate) opened_by_peer: bool,
    /// True while the id is in a ring of the scheduler.
    pub(crate) in_ring: bool,
    pub(crate) send: SendHalf,
    pub(crate) receive: ReceiveHalf,
}

#[derive(Debug)]
pub(crate) struct SendHalf {
    pub(crate) state: Half,
    pub(crate) queue: VecDeque<Bytes>,
    pub(crate) queued_bytes: usize,
    /// Bytes that the peer allows.
    pub(crate) credit_bytes: u32,
    /// The user was refused and wants to know when there is room.
    pub(crate) wants_room: bool,
    burst_bytes: u32,
    burst_at: Mono,
}

#[derive(Debug)]
pub(crate) struct ReceiveHalf {
    pub(crate) state: Half,
    /// Credit plus what was received and is not yet granted again.
    pub(crate) window_bytes: u32,
    /// Bytes that the peer may still send.
    pub(crate) credit_bytes: u32,
    /// Received, not consumed.
    pub(crate) unconsumed_bytes: u32,
    /// Consumed (or grown), not granted yet.
    pub(crate) due_bytes: u32,
    /// A credit frame for this stream is queued.
    pub(crate) credit_queued: bool,
    pub(crate) credited_at: Mono,
}

impl Stream {
    pub(crate) fn new(
        class: Class,
        opened_by_peer: bool,
        send_credit_bytes: u32,
        window_bytes: u32,
        now: Mono,
    ) -> Self {
        Self {
            class,
            opened_by_peer,
            in_ring: false,
            send: SendHalf {
                state: Half::Open,
                queue: VecDeque::new(),
                queued_bytes: 0,
                credit_bytes: send_credit_bytes,
                wants_room: false,
                burst_bytes: 0,
                burst_at: now,
            },
            receive: ReceiveHalf {
                state: Half::Open,
                window_bytes,
                credit_bytes: window_bytes,
                unconsumed_bytes: 0,
                due_bytes: 0,
                credit_queued: false,
                credited_at: now,
            },
        }
    }

    /// Both directions have ended on the wire.
    pub(crate) fn is_closed_on_wire(&self) -> bool {
        self.send.state == Half::Finished && self.receive.state == Half::Finished
    }

    /// Nothing of it is left, neither on the wire nor with the consumer.
    pub(crate) fn is_over(&self) -> bool {
        self.is_closed_on_wire() && self.receive.unconsumed_bytes == 0
    }

    /// The class it is scheduled as.
    pub(crate) fn effective_class(&self) -> Class {
        if self.send.burst_bytes > BURST_BYTES_MAX { Class::Bulk } else { self.class }
    }
}

impl SendHalf {
    /// Something can be sent now: bytes with credit, or the finish behind an empty queue.
    pub(crate) fn is_sendable(&self) -> bool {
        match self.state {
            Half::Open => self.queued_bytes > 0 && self.credit_bytes > 0,
            Half::Finishing => self.queued_bytes == 0 || self.credit_bytes > 0,
            Half::Finished => false,
        }
    }

    /// Counts bytes that leave, for the demotion of streams that send much.
    pub(crate) fn count_burst(&mut self, bytes: u32, now: Mono) {
        let halvings = now.since(self.burst_at).as_millis() / BURST_HALF_LIFE.as_millis();
        if halvings > 0 {
            self.burst_bytes =
                self.burst_bytes.checked_shr(u32::try_from(halvings).unwrap_or(u32::MAX)).unwrap_or(0);
            self.burst_at = now;
        }
        self.burst_bytes = self.burst_bytes.saturating_add(bytes).min(BURST_BYTES_COUNTED_MAX);
    }

    /// Lets recent volume fade before the stream is put in a ring.
    pub(crate) fn fade_burst(&mut self, now: Mono) {
        self.count_burst(0, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_sends_much_is_bulk_until_it_has_rested() {
        let start = Mono::ZERO;
        let mut stream = Stream::new(Class::Interactive, false, 0, 0, start);
        stream.send.count_burst(1000, start);
        assert_eq!(stream.effective_class(), Class::Interactive);
        stream.send.count_burst(10_000_000, start);
        assert_eq!(stream.effective_class(), Class::Bulk);
        stream.send.fade_burst(start.after(Duration::from_millis(150)));
        assert_eq!(stream.effective_class(), Class::Bulk);
        stream.send.fade_burst(start.after(Duration::from_millis(600)));
        assert_eq!(stream.effective_class(), Class::Interactive);
    }
}
