//! Bytes for the peer, chosen when the socket can take them.

use crate::control::Part;
use crate::event::{Class, Event};
use crate::frame::{self, HEADER_BYTES, Header, Kind, PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_SHARED_MAX, Preface};
use crate::mux::{Mux, Urgent};
use crate::stream::Half;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use wayleave_vocab::Mono;

/// Payloads shorter than this are copied beside their header instead of being a part of their own.
const INLINE_BELOW_BYTES: usize = 1024;
/// Size of a buffer for headers and short payloads.
const SCRATCH_BYTES: usize = 4096;

/// Where frames go: one flat buffer, or parts for a vectored write.
trait Sink {
    fn short(&mut self, bytes: &[u8]);
    fn long(&mut self, bytes: Bytes);
    fn written(&self) -> usize;
}

struct Flat<'a> {
    out: &'a mut BytesMut,
    before: usize,
}

impl Sink for Flat<'_> {
    fn short(&mut self, bytes: &[u8]) {
        self.out.put_slice(bytes);
    }

    fn long(&mut self, bytes: Bytes) {
        self.out.put(bytes);
    }

    fn written(&self) -> usize {
        self.out.len() - self.before
    }
}

struct Parts<'a> {
    out: &'a mut Vec<Bytes>,
    scratch: BytesMut,
    written: usize,
}

impl Parts<'_> {
    fn close_part(&mut self) {
        if !self.scratch.is_empty() {
            self.out.push(self.scratch.split().freeze());
        }
    }
}

impl Sink for Parts<'_> {
    fn short(&mut self, bytes: &[u8]) {
        if self.scratch.capacity() - self.scratch.len() < bytes.len() {
            self.scratch.reserve(SCRATCH_BYTES.max(bytes.len()));
        }
        self.scratch.put_slice(bytes);
        self.written += bytes.len();
    }

    fn long(&mut self, bytes: Bytes) {
        if bytes.len() < INLINE_BELOW_BYTES {
            self.short(&bytes);
        } else {
            self.close_part();
            self.written += bytes.len();
            self.out.push(bytes);
        }
    }

    fn written(&self) -> usize {
        self.written
    }
}

impl Mux {
    /// Appends frames to `out` until `budget_bytes` are reached or nothing is left; the last frame may go
    /// over. Gives the bytes added. Keep the budget small (64 KiB): what is pulled can no longer be
    /// overtaken. Events may follow.
    pub fn poll_output(&mut self, out: &mut BytesMut, budget_bytes: usize, now: Mono) -> usize {
        let before = out.len();
        let mut sink = Flat { out, before };
        self.pump(&mut sink, budget_bytes, now);
        sink.written()
    }

    /// As [`Mux::poll_output`], in parts for a vectored write: long payloads are not copied.
    pub fn poll_output_parts(&mut self, out: &mut Vec<Bytes>, budget_bytes: usize, now: Mono) -> usize {
        let scratch = std::mem::take(&mut self.scratch);
        let mut sink = Parts { out, scratch, written: 0 };
        self.pump(&mut sink, budget_bytes, now);
        sink.close_part();
        let Parts { scratch, written, .. } = sink;
        if !self.streams.is_empty() {
            self.scratch = scratch;
        }
        written
    }

    /// There is something to send now.
    pub fn has_output(&self) -> bool {
        !self.preface_sent
            || !self.urgent.is_empty()
            || !self.outgoing_small.is_empty()
            || !self.schedule.is_empty()
    }

    fn pump(&mut self, sink: &mut impl Sink, budget_bytes: usize, now: Mono) {
        if !self.preface_sent {
            self.preface_sent = true;
            let preface = Preface {
                window_open_bytes: self.config.window_open_bytes,
                peer_streams_max: self.config.peer_streams_max,
            };
            sink.short(&preface.encode());
        }
        while sink.written() < budget_bytes && self.put_next(sink, now) {}
        if self.streams.is_empty() {
            self.trim();
        }
    }

    fn put_next(&mut self, sink: &mut impl Sink, now: Mono) -> bool {
        if let Some(urgent) = self.urgent.pop_front() {
            self.put_urgent(sink, urgent, now);
            return true;
        }
        let payload_max = self.payload_bytes_max();
        if let Some(part) = self.outgoing_small.next_part(payload_max) {
            put_control(sink, Kind::ControlSmall, part);
            return true;
        }
        let Some((id, class)) = self.schedule.pop() else { return false };
        if id == 0 {
            if let Some(part) = self.outgoing_large.next_part(payload_max) {
                put_control(sink, Kind::ControlLarge, part);
            }
            if !self.outgoing_large.is_empty() {
                self.schedule.push(0, Class::Bulk);
            }
        } else {
            self.put_stream(sink, id, class, now);
        }
        true
    }

    /// Long frames save work, but only while nobody else waits for them. With its header a frame is as long as whole
    /// TLS records, so that none is begun for a few bytes.
    fn payload_bytes_max(&self) -> usize {
        let longest = if self.streams.len() > 1 { PAYLOAD_BYTES_SHARED_MAX } else { PAYLOAD_BYTES_MAX };
        longest - HEADER_BYTES
    }

    fn put_urgent(&mut self, sink: &mut impl Sink, urgent: Urgent, now: Mono) {
        match urgent {
            Urgent::Open(id, class) => put_frame(sink, Kind::Open, id, &[frame::class_byte(class)]),
            Urgent::Reset(id, code) => put_frame(sink, Kind::Reset, id, &code.0.to_be_bytes()),
            Urgent::Credit(id) => self.put_credit(sink, id, now),
            Urgent::Ping => {
                let nonce = self.heartbeat.ping_sent(now);
                put_frame(sink, Kind::Ping, 0, &nonce.to_be_bytes());
            }
            Urgent::Pong(nonce) => {
                self.pongs_queued = self.pongs_queued.saturating_sub(1);
                put_frame(sink, Kind::Pong, 0, &nonce.to_be_bytes());
            }
            Urgent::GoAway(code) => put_frame(sink, Kind::GoAway, 0, &code.0.to_be_bytes()),
        }
    }

    fn put_credit(&mut self, sink: &mut impl Sink, id: u32, now: Mono) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let receive = &mut stream.receive;
        let grant = std::mem::take(&mut receive.due_bytes);
        receive.credit_queued = false;
        receive.credit_bytes += grant;
        receive.credited_at = now;
        if grant > 0 && receive.state == Half::Open {
            put_frame(sink, Kind::Credit, id, &grant.to_be_bytes());
        }
    }

    /// One data frame of a stream, and its finish when that is due.
    fn put_stream(&mut self, sink: &mut impl Sink, id: u32, class: Class, now: Mono) {
        let payload_max = self.payload_bytes_max();
        let room_bytes = self.config.send_queue_bytes / 2;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.in_ring = false;
        let send = &mut stream.send;
        let length = send.queued_bytes.min(send.credit_bytes as usize).min(payload_max);
        if length > 0 {
            // At most 64 KiB, so it fits.
            let sent = length as u32;
            sink.short(&Header { length: sent, kind: Kind::Data, stream: id }.encode());
            put_queued(sink, &mut send.queue, length);
            send.queued_bytes -= length;
            send.credit_bytes -= sent;
            send.count_burst(sent, now);
            self.schedule.count(class, HEADER_BYTES + length);
            if send.wants_room && send.state == Half::Open && send.queued_bytes <= room_bytes {
                send.wants_room = false;
                self.events.push_back(Event::Writable { id: crate::event::StreamId(id) });
            }
        }
        if send.state == Half::Finishing && send.queued_bytes == 0 {
            send.state = Half::Finished;
            put_frame(sink, Kind::Finish, id, &[]);
            if stream.is_over() {
                self.remove(id);
                return;
            }
        }
        self.enqueue(id, now);
    }
}

fn put_frame(sink: &mut impl Sink, kind: Kind, stream: u32, payload: &[u8]) {
    // Payloads of these frames have at most eight bytes.
    let length = payload.len() as u32;
    sink.short(&Header { length, kind, stream }.encode());
    sink.short(payload);
}

fn put_control(sink: &mut impl Sink, kind: Kind, part: Part) {
    let prefix = if part.total.is_some() { 4 } else { 0 };
    // At most 64 KiB and the prefix.
    let length = part.bytes.len() as u32 + prefix;
    sink.short(&Header { length, kind, stream: 0 }.encode());
    if let Some(total) = part.total {
        sink.short(&total.to_be_bytes());
    }
    sink.long(part.bytes);
}

/// Moves exactly `length` queued bytes, of however many pieces, into the sink.
fn put_queued(sink: &mut impl Sink, queue: &mut VecDeque<Bytes>, length: usize) {
    let mut left = length;
    while left > 0
        && let Some(first) = queue.front_mut()
    {
        let piece = first.split_to(first.len().min(left));
        left -= piece.len();
        if !first.has_remaining() {
            queue.pop_front();
        }
        sink.long(piece);
    }
}
