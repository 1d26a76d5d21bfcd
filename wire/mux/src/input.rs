//! Bytes from the peer: frames are checked, then change state and become events.

use crate::control::{Incoming, Lane};
use crate::error::MuxError;
use crate::event::{Event, GoAwayCode, ResetCode, StreamId};
use crate::frame::{self, CONTROL_SMALL_BYTES_MAX, HEADER_BYTES, Header, Kind, PREFACE_BYTES, Preface};
use crate::mux::{CREDIT_BYTES_MAX, Mux, Reading, Urgent};
use crate::stream::{Half, Stream};
use bytes::{Buf, Bytes, BytesMut};
use wayleave_vocab::Mono;

/// Shorter pieces are copied, so that a keystroke does not keep a whole read buffer alive.
const COPY_BELOW_BYTES: usize = 4096;
/// Unanswered pings of the peer; an honest one has one under way.
const PONGS_QUEUED_MAX: u8 = 8;

impl Mux {
    /// Takes bytes that came from the socket. What cannot be understood yet (part of a header) stays in
    /// `input`, at most [`PREFACE_BYTES`]; data is handed on as it comes, not frame by frame.
    ///
    /// # Errors
    /// The peer broke the protocol: the connection has failed, see [`MuxError`]. Events that were caused
    /// before stay in the queue.
    pub fn handle_input(&mut self, input: &mut BytesMut, now: Mono) -> Result<(), MuxError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if !input.is_empty() {
            self.heartbeat.heard(now);
        }
        self.read_all(input, now).inspect_err(|error| self.fail(*error))
    }

    fn read_all(&mut self, input: &mut BytesMut, now: Mono) -> Result<(), MuxError> {
        if self.peer.is_none() {
            let Some(preface) = input.first_chunk::<PREFACE_BYTES>() else { return refuse_early(input) };
            self.peer = Some(Preface::decode(*preface)?);
            input.advance(PREFACE_BYTES);
            self.events.push_back(Event::Ready);
        }
        loop {
            let progress = match self.reading {
                Reading::Header => self.read_header(input, now)?,
                Reading::Data { id, remaining } => self.read_data(input, id, remaining),
                Reading::Control { lane, remaining } => self.read_control(input, lane, remaining),
            };
            if !progress {
                return Ok(());
            }
        }
    }

    /// Reads a header, and the payload of all frames but data and control. False when bytes are missing.
    fn read_header(&mut self, input: &mut BytesMut, now: Mono) -> Result<bool, MuxError> {
        let Some(bytes) = input.first_chunk::<HEADER_BYTES>() else { return Ok(false) };
        let header = Header::decode(*bytes)?;
        match header.kind {
            Kind::Data => {
                input.advance(HEADER_BYTES);
                self.begin_data(header)?;
                return Ok(true);
            }
            Kind::ControlSmall => return self.begin_control(input, header, Lane::Small),
            Kind::ControlLarge => return self.begin_control(input, header, Lane::Large),
            Kind::Open
            | Kind::Finish
            | Kind::Reset
            | Kind::Credit
            | Kind::Ping
            | Kind::Pong
            | Kind::GoAway => {}
        }
        let payload_bytes = header.length as usize;
        if input.len() < HEADER_BYTES + payload_bytes {
            return Ok(false);
        }
        input.advance(HEADER_BYTES);
        let mut payload = input.split_to(payload_bytes);
        match header.kind {
            Kind::Open => self.on_open(header.stream, payload.get_u8(), now)?,
            Kind::Finish => self.on_finish(header.stream)?,
            Kind::Reset => self.on_reset(header.stream, ResetCode(payload.get_u32()))?,
            Kind::Credit => self.on_credit(header.stream, payload.get_u32(), now)?,
            Kind::Ping => self.on_ping(payload.get_u64())?,
            Kind::Pong => self.on_pong(payload.get_u64(), now),
            Kind::GoAway => self.on_go_away(GoAwayCode(payload.get_u32())),
            Kind::Data | Kind::ControlSmall | Kind::ControlLarge => {}
        }
        if self.urgent.len() > self.urgent_max() { Err(MuxError::Backlog) } else { Ok(true) }
    }

    fn begin_data(&mut self, header: Header) -> Result<(), MuxError> {
        let id = header.stream;
        self.reading = Reading::Data { id, remaining: header.length as usize };
        let window_initial = self.config.window_initial_bytes;
        let Some(stream) = self.known(id)? else { return Ok(()) };
        let receive = &mut stream.receive;
        if receive.state == Half::Finished {
            return Err(MuxError::AfterFinish(id));
        }
        receive.credit_bytes =
            receive.credit_bytes.checked_sub(header.length).ok_or(MuxError::OverCredit(id))?;
        let is_used = receive.credit_bytes < receive.window_bytes / 2;
        if is_used && receive.window_bytes < window_initial {
            self.grow_window(id, window_initial);
            self.queue_credit(id);
        }
        Ok(())
    }

    fn read_data(&mut self, input: &mut BytesMut, id: u32, remaining: usize) -> bool {
        if input.is_empty() {
            return false;
        }
        let piece = input.split_to(remaining.min(input.len()));
        let left = remaining - piece.len();
        self.reading = if left == 0 { Reading::Header } else { Reading::Data { id, remaining: left } };
        if let Some(stream) = self.streams.get_mut(&id) {
            // Fits: a frame is at most 64 KiB, and all of it was within the credit.
            stream.receive.unconsumed_bytes += piece.len() as u32;
            self.events.push_back(Event::Data { id: StreamId(id), bytes: detach(piece) });
        }
        true
    }

    fn lane(&mut self, lane: Lane) -> (&mut Incoming, u32) {
        let longest = self.config.control_bytes_max;
        match lane {
            Lane::Small => (&mut self.incoming_small, longest.min(CONTROL_SMALL_BYTES_MAX as u32)),
            Lane::Large => (&mut self.incoming_large, longest),
        }
    }

    fn begin_control(&mut self, input: &mut BytesMut, header: Header, lane: Lane) -> Result<bool, MuxError> {
        let bad_length = MuxError::BadLength { kind: header.kind as u8, length: header.length };
        let (incoming, longest) = self.lane(lane);
        let mut remaining = header.length as usize;
        let is_start = incoming.is_idle();
        if is_start {
            remaining = remaining.checked_sub(4).ok_or(bad_length)?;
            let Some([.., a, b, c, d]) = input.first_chunk::<{ HEADER_BYTES + 4 }>() else {
                return Ok(false);
            };
            incoming.begin(u32::from_be_bytes([*a, *b, *c, *d]), longest)?;
            input.advance(4);
        }
        if remaining > incoming.missing_bytes() {
            return Err(bad_length);
        }
        input.advance(HEADER_BYTES);
        self.reading = Reading::Control { lane, remaining };
        if remaining == 0 {
            self.reading = Reading::Header;
            self.add_control(lane, BytesMut::new());
        }
        Ok(true)
    }

    fn read_control(&mut self, input: &mut BytesMut, lane: Lane, remaining: usize) -> bool {
        if input.is_empty() {
            return false;
        }
        let piece = input.split_to(remaining.min(input.len()));
        let left = remaining - piece.len();
        self.reading = if left == 0 { Reading::Header } else { Reading::Control { lane, remaining: left } };
        self.add_control(lane, piece);
        true
    }

    fn add_control(&mut self, lane: Lane, piece: BytesMut) {
        if let Some(message) = self.lane(lane).0.add(piece) {
            self.events.push_back(Event::Control(message));
        }
    }

    /// The stream of a frame; none when it is over already, an error when it never was.
    fn known(&mut self, id: u32) -> Result<Option<&mut Stream>, MuxError> {
        if !self.was_opened(id) {
            return Err(MuxError::NeverOpened(id));
        }
        Ok(self.streams.get_mut(&id).map(Box::as_mut))
    }

    fn on_open(&mut self, id: u32, class: u8, now: Mono) -> Result<(), MuxError> {
        let class = frame::class_from_byte(class)?;
        if self.is_own(id) || id <= self.last_peer_id {
            return Err(MuxError::BadOpen(id));
        }
        self.last_peer_id = id;
        if self.own_going_away || self.peer_streams >= self.config.peer_streams_max {
            self.urgent.push_back(Urgent::Reset(id, ResetCode::REFUSED));
            return Ok(());
        }
        let credit = self.peer.map_or(0, |peer| peer.window_open_bytes.min(CREDIT_BYTES_MAX));
        let stream = Stream::new(class, true, credit, self.config.window_open_bytes, now);
        self.streams.insert(id, Box::new(stream));
        self.peer_streams += 1;
        self.events.push_back(Event::StreamOpened { id: StreamId(id), class });
        Ok(())
    }

    fn on_finish(&mut self, id: u32) -> Result<(), MuxError> {
        let Some(stream) = self.known(id)? else { return Ok(()) };
        if stream.receive.state == Half::Finished {
            return Err(MuxError::AfterFinish(id));
        }
        stream.receive.state = Half::Finished;
        let is_over = stream.is_over();
        self.events.push_back(Event::Finished { id: StreamId(id) });
        if is_over {
            self.remove(id);
        }
        Ok(())
    }

    fn on_reset(&mut self, id: u32, code: ResetCode) -> Result<(), MuxError> {
        let Some(stream) = self.known(id)? else { return Ok(()) };
        // Closed both ways already: the consumer is only finishing what it was given.
        if !stream.is_closed_on_wire() {
            self.events.push_back(Event::Reset { id: StreamId(id), code });
            self.remove(id);
        }
        Ok(())
    }

    fn on_credit(&mut self, id: u32, grant: u32, now: Mono) -> Result<(), MuxError> {
        let Some(stream) = self.known(id)? else { return Ok(()) };
        let credit =
            stream.send.credit_bytes.checked_add(grant).filter(|sum| grant > 0 && *sum <= CREDIT_BYTES_MAX);
        stream.send.credit_bytes = credit.ok_or(MuxError::BadCredit(id))?;
        self.enqueue(id, now);
        Ok(())
    }

    fn on_ping(&mut self, nonce: u64) -> Result<(), MuxError> {
        if self.pongs_queued >= PONGS_QUEUED_MAX {
            return Err(MuxError::PingFlood);
        }
        self.pongs_queued += 1;
        self.urgent.push_front(Urgent::Pong(nonce));
        Ok(())
    }

    fn on_pong(&mut self, nonce: u64, now: Mono) {
        if let Some(round_trip) = self.heartbeat.pong(nonce, now) {
            self.events.push_back(Event::Pong { round_trip });
        }
    }

    fn on_go_away(&mut self, code: GoAwayCode) {
        if !self.peer_going_away {
            self.peer_going_away = true;
            self.events.push_back(Event::GoAway { code });
            self.say_drained();
        }
    }
}

/// A wrong protocol is noticed at its first byte, not when sixteen have come.
fn refuse_early(input: &BytesMut) -> Result<(), MuxError> {
    let differs = input.iter().zip(frame::MAGIC).any(|(got, expected)| *got != expected);
    if differs { Err(MuxError::BadPreface) } else { Ok(()) }
}

fn detach(piece: BytesMut) -> Bytes {
    if piece.len() < COPY_BELOW_BYTES { Bytes::copy_from_slice(&piece) } else { piece.freeze() }
}
