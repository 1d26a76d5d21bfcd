//! One channel: its state, its two windows, its send queue. Pure bookkeeping; `mux` does the messages.

use crate::byte_queue::ByteQueue;
use crate::config::Limits;
use crate::event::{DataStream, RequestId};
use crate::request::ChannelOpen;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Most changes between the streams in one send queue.
const RUNS_MAX: usize = 256;
/// Most requests of the peer on one channel that wait for an answer.
pub(crate) const REPLIES_OWED_MAX: usize = 64;
/// Most requests of ours on one channel that wait for an answer.
pub(crate) const REQUESTS_PENDING_MAX: usize = 64;

/// How far a channel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// We asked; the peer has not answered.
    Asked,
    /// The peer asked; the embedder has not answered.
    Offered(ChannelOpen),
    /// Confirmed.
    Open,
}

/// How far our end of something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Not,
    /// To be sent when the queue is empty.
    Wanted,
    Sent,
}

/// One channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) stage: Stage,
    pub(crate) remote_id: u32,
    /// Bytes the peer may still send.
    receive_window: u32,
    /// Bytes delivered to the embedder and not consumed yet.
    unconsumed_bytes: u32,
    /// Bytes consumed and not yet granted again.
    credit_bytes: u32,
    pub(crate) is_eof_received: bool,
    /// Bytes we may still send.
    send_window: u32,
    /// Largest data message the peer takes, or we want to make.
    send_packet_bytes: u32,
    /// Alternating streams, in order.
    queue: VecDeque<Run>,
    queue_bytes: usize,
    /// In the round robin.
    pub(crate) is_ready: bool,
    /// The embedder was told to wait.
    pub(crate) is_starved: bool,
    pub(crate) eof: Ending,
    pub(crate) close: Ending,
    /// Answers we owe, in order; `None` is not decided.
    replies_owed: VecDeque<Option<bool>>,
    /// Index of the first of them.
    replies_base: u64,
    /// Requests of ours without an answer, in order.
    pub(crate) requests_pending: VecDeque<RequestId>,
}

/// Queued data of one stream.
#[derive(Debug)]
struct Run {
    stream: DataStream,
    data: ByteQueue,
}

/// The window was used beyond its size, or grew beyond 2^32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowError;

impl Channel {
    pub(crate) fn new(stage: Stage, limits: &Limits) -> Self {
        Self {
            stage,
            remote_id: 0,
            receive_window: limits.window_bytes,
            unconsumed_bytes: 0,
            credit_bytes: 0,
            is_eof_received: false,
            send_window: 0,
            send_packet_bytes: 0,
            queue: VecDeque::new(),
            queue_bytes: 0,
            is_ready: false,
            is_starved: false,
            eof: Ending::Not,
            close: Ending::Not,
            replies_owed: VecDeque::new(),
            replies_base: 0,
            requests_pending: VecDeque::new(),
        }
    }

    /// What the peer said when it opened or confirmed.
    pub(crate) fn set_remote(&mut self, id: u32, window: u32, packet_bytes: u32, limits: &Limits) {
        self.remote_id = id;
        self.send_window = window;
        self.send_packet_bytes = packet_bytes.min(limits.packet_bytes);
    }

    /// Takes received data off the window.
    pub(crate) fn receive(&mut self, bytes: u32) -> Result<(), WindowError> {
        self.receive_window = self.receive_window.checked_sub(bytes).ok_or(WindowError)?;
        self.unconsumed_bytes = self.unconsumed_bytes.checked_add(bytes).ok_or(WindowError)?;
        Ok(())
    }

    /// The embedder is done with so many bytes. Returns the window adjustment that is due, if one is.
    pub(crate) fn consume(&mut self, bytes: usize, limits: &Limits) -> Option<u32> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.unconsumed_bytes);
        self.unconsumed_bytes -= bytes;
        self.credit_bytes = self.credit_bytes.saturating_add(bytes);
        let threshold = (limits.window_bytes / 2).min(limits.packet_bytes.saturating_mul(3));
        let is_due = self.credit_bytes > 0 && self.credit_bytes >= threshold;
        if !is_due || self.is_eof_received || self.close != Ending::Not {
            return None;
        }
        let credit = std::mem::take(&mut self.credit_bytes);
        self.receive_window = self.receive_window.saturating_add(credit);
        Some(credit)
    }

    /// The peer grants more.
    pub(crate) fn grant(&mut self, bytes: u32) -> Result<(), WindowError> {
        self.send_window = self.send_window.checked_add(bytes).ok_or(WindowError)?;
        Ok(())
    }

    /// Queues data for sending up to the limit; takes what fits off the front of `data`.
    pub(crate) fn enqueue(&mut self, stream: DataStream, data: &mut Bytes, limits: &Limits) -> usize {
        let is_same_run = self.queue.back().is_some_and(|run| run.stream == stream);
        let is_full = !is_same_run && self.queue.len() >= RUNS_MAX;
        let taken = if is_full { 0 } else { self.send_room(limits).min(data.len()) };
        if taken > 0 {
            if !is_same_run {
                self.queue.push_back(Run { stream, data: ByteQueue::new() });
            }
            if let Some(run) = self.queue.back_mut() {
                run.data.push(data.split_to(taken));
            }
            self.queue_bytes += taken;
        }
        self.is_starved = !data.is_empty();
        taken
    }

    /// Room in the send queue, in bytes.
    pub(crate) fn send_room(&self, limits: &Limits) -> usize {
        limits.send_queue_bytes.saturating_sub(self.queue_bytes)
    }

    pub(crate) const fn queue_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// Drops what is queued.
    pub(crate) fn clear_queue(&mut self) {
        self.queue.clear();
        self.queue_bytes = 0;
        self.is_starved = false;
    }

    /// Whether something can be sent right now.
    pub(crate) fn is_sendable(&self) -> bool {
        let has_data = self.queue_bytes > 0 && self.send_window > 0;
        let has_ending =
            self.queue_bytes == 0 && (self.eof == Ending::Wanted || self.close == Ending::Wanted);
        self.stage == Stage::Open && self.close != Ending::Sent && (has_data || has_ending)
    }

    /// The next data message: its stream and size. None when nothing can go.
    pub(crate) fn next_message(&self) -> Option<(DataStream, usize)> {
        let run = self.queue.front()?;
        let bytes = run.data.len().min(self.send_window.min(self.send_packet_bytes) as usize);
        (bytes > 0).then_some((run.stream, bytes))
    }

    /// Moves exactly the bytes that [`Self::next_message`] announced into a packet.
    pub(crate) fn take_message(&mut self, bytes: usize, out: &mut BytesMut) {
        let Some(run) = self.queue.front_mut() else { return };
        run.data.copy_out(bytes, out);
        if run.data.is_empty() {
            self.queue.pop_front();
        }
        self.queue_bytes -= bytes;
        // `next_message` is bounded by the window, which is 32 bits.
        self.send_window -= u32::try_from(bytes).unwrap_or(self.send_window);
    }

    /// Whether the embedder should hear that there is room again.
    pub(crate) fn take_writable(&mut self, limits: &Limits) -> bool {
        let has_room = self.queue_bytes <= limits.send_queue_bytes / 2 && self.queue.len() < RUNS_MAX;
        has_room && std::mem::take(&mut self.is_starved)
    }

    /// Notes a request that wants an answer: decided already, or by the embedder later.
    pub(crate) fn owe_reply(&mut self, decided: Option<bool>) -> Option<u64> {
        if self.replies_owed.len() >= REPLIES_OWED_MAX {
            return None;
        }
        self.replies_owed.push_back(decided);
        Some(self.replies_base + self.replies_owed.len() as u64 - 1)
    }

    pub(crate) fn decide_reply(&mut self, index: u64, is_success: bool) {
        let place = index.checked_sub(self.replies_base).and_then(|i| usize::try_from(i).ok());
        if let Some(reply) = place.and_then(|i| self.replies_owed.get_mut(i)) {
            *reply = Some(is_success);
        }
    }

    /// The next answer that can go out in order.
    pub(crate) fn next_reply(&mut self) -> Option<bool> {
        let decided = (*self.replies_owed.front()?)?;
        self.replies_owed.pop_front();
        self.replies_base += 1;
        Some(decided)
    }
}
