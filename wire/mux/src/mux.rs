//! The machine: its state, and what its user calls. Input and output are in `input` and `output`.

use crate::config::{Config, Role};
use crate::control::{Incoming, Lane, Outgoing};
use crate::error::{ControlError, MuxError, OpenError, SendError};
use crate::event::{Class, Event, GoAwayCode, ResetCode, StreamId};
use crate::frame::Preface;
use crate::heartbeat::Heartbeat;
use crate::schedule::Schedule;
use crate::stream::{Half, Stream};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use wayleave_vocab::Mono;

/// Credit that the peer may have granted on one stream.
pub(crate) const CREDIT_BYTES_MAX: u32 = i32::MAX as u32;
/// Queued frames of the machine itself: this many for each allowed stream, and some.
const URGENT_PER_STREAM_MAX: usize = 4;
const URGENT_SLACK: usize = 64;
/// A window that is emptied faster than this is worth doubling, whatever the round-trip time.
const AUTOTUNE_ROUND_TRIP_MIN: Duration = Duration::from_millis(1);

/// A short frame that goes before all data.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Urgent {
    Open(u32, Class),
    Reset(u32, ResetCode),
    /// The amount is looked up when the frame leaves.
    Credit(u32),
    Ping,
    Pong(u64),
    GoAway(GoAwayCode),
}

/// What the next input bytes are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reading {
    Header,
    Data { id: u32, remaining: usize },
    Control { lane: Lane, remaining: usize },
}

/// One end of a multiplexed connection. See the crate's documentation for how to drive it.
#[derive(Debug)]
pub struct Mux {
    pub(crate) role: Role,
    pub(crate) config: Config,
    pub(crate) peer: Option<Preface>,
    pub(crate) preface_sent: bool,
    pub(crate) streams: BTreeMap<u32, Box<Stream>>,
    pub(crate) own_streams: u32,
    pub(crate) peer_streams: u32,
    /// The id of the next stream opened here; none once they are used up.
    next_own_id: Option<u32>,
    pub(crate) last_peer_id: u32,
    pool_used_bytes: u64,
    pub(crate) schedule: Schedule,
    pub(crate) urgent: VecDeque<Urgent>,
    pub(crate) pongs_queued: u8,
    pub(crate) outgoing_small: Outgoing,
    pub(crate) outgoing_large: Outgoing,
    pub(crate) incoming_small: Incoming,
    pub(crate) incoming_large: Incoming,
    pub(crate) reading: Reading,
    pub(crate) events: VecDeque<Event>,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) own_going_away: bool,
    pub(crate) peer_going_away: bool,
    drained_said: bool,
    pub(crate) failed: Option<MuxError>,
    pub(crate) scratch: BytesMut,
}

impl Mux {
    /// A connection that has just been made. Its preface is the first output.
    pub fn new(role: Role, config: Config, now: Mono) -> Self {
        Self {
            role,
            config,
            peer: None,
            preface_sent: false,
            streams: BTreeMap::new(),
            own_streams: 0,
            peer_streams: 0,
            next_own_id: Some(match role {
                Role::Connector => 1,
                Role::Acceptor => 2,
            }),
            last_peer_id: 0,
            pool_used_bytes: 0,
            schedule: Schedule::default(),
            urgent: VecDeque::new(),
            pongs_queued: 0,
            outgoing_small: Outgoing::default(),
            outgoing_large: Outgoing::default(),
            incoming_small: Incoming::default(),
            incoming_large: Incoming::default(),
            reading: Reading::Header,
            events: VecDeque::new(),
            heartbeat: Heartbeat::new(role, &config, now),
            own_going_away: false,
            peer_going_away: false,
            drained_said: false,
            failed: None,
            scratch: BytesMut::new(),
        }
    }

    /// Opens a stream. Data may be sent on it at once, up to the peer's opening window.
    ///
    /// # Errors
    /// See [`OpenError`]; only [`OpenError::Backlog`] and [`OpenError::TooManyStreams`] pass by themselves.
    pub fn open(&mut self, class: Class, now: Mono) -> Result<StreamId, OpenError> {
        if let Some(error) = self.failed {
            return Err(OpenError::Failed(error));
        }
        let peer = self.peer.ok_or(OpenError::NotReady)?;
        if self.peer_going_away {
            return Err(OpenError::GoingAway);
        }
        if self.own_streams >= peer.peer_streams_max {
            return Err(OpenError::TooManyStreams);
        }
        if self.urgent.len() >= self.urgent_max() {
            return Err(OpenError::Backlog);
        }
        let id = self.next_own_id.ok_or(OpenError::IdsExhausted)?;
        self.next_own_id = id.checked_add(2);
        self.own_streams += 1;
        let credit = peer.window_open_bytes.min(CREDIT_BYTES_MAX);
        let stream = Stream::new(class, false, credit, self.config.window_open_bytes, now);
        self.streams.insert(id, Box::new(stream));
        self.urgent.push_back(Urgent::Open(id, class));
        Ok(StreamId(id))
    }

    /// Queues bytes on a stream: all of them or none. Empty bytes do nothing.
    ///
    /// # Errors
    /// [`SendError::Blocked`] when they are more than [`Mux::send_capacity`]; an [`Event::Writable`] follows
    /// once half the queue is free (as it does after the queue was filled exactly). [`SendError::Closed`] on a stream that is finished, reset or unknown.
    pub fn send(&mut self, id: StreamId, bytes: Bytes, now: Mono) -> Result<(), SendError> {
        let bound = self.config.send_queue_bytes;
        let Some(stream) = self.streams.get_mut(&id.0) else { return Err(SendError::Closed(bytes)) };
        if stream.send.state != Half::Open {
            return Err(SendError::Closed(bytes));
        }
        if bytes.len() > bound.saturating_sub(stream.send.queued_bytes) {
            stream.send.wants_room = true;
            return Err(SendError::Blocked(bytes));
        }
        if !bytes.is_empty() {
            stream.send.queued_bytes += bytes.len();
            stream.send.wants_room |= stream.send.queued_bytes == bound;
            stream.send.queue.push_back(bytes);
            self.enqueue(id.0, now);
        }
        Ok(())
    }

    /// How many bytes [`Mux::send`] would take now; 0 for a stream that takes none any more. Asking while
    /// it is 0 on an open stream arms [`Event::Writable`].
    pub fn send_capacity(&mut self, id: StreamId) -> usize {
        let bound = self.config.send_queue_bytes;
        let Some(stream) = self.streams.get_mut(&id.0) else { return 0 };
        if stream.send.state != Half::Open {
            return 0;
        }
        let capacity = bound.saturating_sub(stream.send.queued_bytes);
        stream.send.wants_room |= capacity == 0;
        capacity
    }

    /// Bytes queued on a stream and not yet pulled for the socket.
    pub fn queued_bytes(&self, id: StreamId) -> usize {
        self.streams.get(&id.0).map_or(0, |stream| stream.send.queued_bytes)
    }

    /// Ends this side's direction of a stream behind what is queued. The other direction goes on.
    pub fn finish(&mut self, id: StreamId, now: Mono) {
        let Some(stream) = self.streams.get_mut(&id.0) else { return };
        if stream.send.state == Half::Open {
            stream.send.state = Half::Finishing;
            self.enqueue(id.0, now);
        }
    }

    /// Forgets a stream: cuts both directions unless they have both finished. To be called whenever the
    /// stream's user goes away, whatever its state; an unknown stream is left alone.
    pub fn reset(&mut self, id: StreamId, code: ResetCode) {
        let Some(stream) = self.streams.get(&id.0) else { return };
        if !stream.is_closed_on_wire() {
            self.urgent.push_back(Urgent::Reset(id.0, code));
        }
        self.remove(id.0);
    }

    /// The stream's consumer has used up `count` of the bytes given by [`Event::Data`]; only this grants the
    /// peer new credit.
    pub fn consumed(&mut self, id: StreamId, count: usize, now: Mono) {
        let Some(stream) = self.streams.get_mut(&id.0) else { return };
        let receive = &mut stream.receive;
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(receive.unconsumed_bytes);
        receive.unconsumed_bytes -= count;
        receive.due_bytes += count;
        let is_due = receive.state == Half::Open && receive.due_bytes >= receive.window_bytes / 2;
        let (credited_at, window_bytes) = (receive.credited_at, receive.window_bytes);
        if stream.is_over() {
            self.remove(id.0);
        }
        if !is_due {
            return;
        }
        let round_trip = self.heartbeat.round_trip_or_guess().max(AUTOTUNE_ROUND_TRIP_MIN);
        if now.since(credited_at) < round_trip.saturating_mul(2) {
            let doubled = window_bytes.saturating_mul(2).min(self.config.window_max_bytes);
            self.grow_window(id.0, doubled);
        }
        self.queue_credit(id.0);
        if self.heartbeat.wants_sample(now) {
            self.urgent.push_front(Urgent::Ping);
        }
    }

    /// Queues a control message.
    ///
    /// # Errors
    /// [`ControlError::TooLong`] over [`Config::control_sent_bytes_max`], [`ControlError::Full`] when the peer does
    /// not take them fast enough.
    pub fn send_control(&mut self, message: Bytes) -> Result<(), ControlError> {
        if let Some(error) = self.failed {
            return Err(ControlError::Failed(error));
        }
        let longest = self.config.control_sent_bytes_max;
        match Lane::of_length(message.len()) {
            Lane::Small => self.outgoing_small.push(message, longest),
            Lane::Large => {
                let was_empty = self.outgoing_large.is_empty();
                self.outgoing_large.push(message, longest)?;
                if was_empty {
                    self.schedule.push(0, Class::Bulk);
                }
                Ok(())
            }
        }
    }

    /// Tells the peer that this side takes no more streams; those that exist go on, and this side may still
    /// open some. [`Event::Drained`] follows when the last one has closed.
    pub fn go_away(&mut self, code: GoAwayCode) {
        if !self.own_going_away {
            self.own_going_away = true;
            self.urgent.push_back(Urgent::GoAway(code));
            self.say_drained();
        }
    }

    /// Queues a ping now; [`Event::Pong`] gives the round-trip time. One is under way at a time.
    pub fn ping(&mut self) {
        if self.heartbeat.asks_now() {
            self.urgent.push_front(Urgent::Ping);
        }
    }

    /// The next thing that happened. Drain after every call that gives input, output or time.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if self.events.is_empty() && self.streams.is_empty() {
            self.events = VecDeque::new();
        }
        event
    }

    /// When [`Mux::handle_timeout`] wants to be called; none once the connection has failed.
    pub fn poll_timeout(&self) -> Option<Mono> {
        if self.failed.is_some() { None } else { Some(self.heartbeat.next_timeout()) }
    }

    /// Pings a silent peer, and gives up on one that stays silent.
    ///
    /// # Errors
    /// [`MuxError::Silent`] after [`Config::dead_after`] without any byte; the connection has then failed.
    pub fn handle_timeout(&mut self, now: Mono) -> Result<(), MuxError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.heartbeat.is_dead(now) {
            let error = MuxError::Silent(self.heartbeat.dead_after());
            self.fail(error);
            return Err(error);
        }
        if self.heartbeat.wants_ping(now) {
            self.urgent.push_front(Urgent::Ping);
        }
        Ok(())
    }

    /// The smoothed round-trip time, once known.
    pub fn round_trip(&self) -> Option<Duration> {
        self.heartbeat.round_trip()
    }

    /// Streams that are open, or closed with bytes still to be consumed.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// What the peer may have sent that was not consumed yet, over all streams, in bytes: the bound of the
    /// memory that consumers may hold for this connection.
    pub fn granted_bytes(&self) -> u64 {
        let open = u64::from(self.config.window_open_bytes);
        open.saturating_mul(self.streams.len() as u64).saturating_add(self.pool_used_bytes)
    }

    /// Heap memory that this machine keeps while it is idle, in bytes, beside [`Mux`] itself.
    pub fn retained_bytes(&self) -> usize {
        let queues =
            self.events.capacity() * size_of::<Event>() + self.urgent.capacity() * size_of::<Urgent>();
        let streams = self.streams.len() * size_of::<Stream>();
        queues + streams + self.scratch.capacity() + self.schedule.retained_bytes()
    }

    /// The peer said that it takes no more streams.
    pub fn is_peer_going_away(&self) -> bool {
        self.peer_going_away
    }

    /// Why the connection has failed, if it has.
    pub fn failure(&self) -> Option<MuxError> {
        self.failed
    }
}

impl Mux {
    pub(crate) fn is_own(&self, id: u32) -> bool {
        (id % 2 == 1) == (self.role == Role::Connector)
    }

    /// The stream was opened at some time, and so a late frame for it is no offence.
    pub(crate) fn was_opened(&self, id: u32) -> bool {
        if self.is_own(id) { self.next_own_id.is_none_or(|next| id < next) } else { id <= self.last_peer_id }
    }

    pub(crate) fn urgent_max(&self) -> usize {
        let allowed =
            self.config.peer_streams_max.max(self.peer.map_or(0, |peer| peer.peer_streams_max.min(65_536)));
        (allowed as usize).saturating_mul(URGENT_PER_STREAM_MAX).saturating_add(URGENT_SLACK)
    }

    /// Puts a stream that can send into its ring, once.
    pub(crate) fn enqueue(&mut self, id: u32, now: Mono) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.in_ring && stream.send.is_sendable() {
            stream.in_ring = true;
            stream.send.fade_burst(now);
            self.schedule.push(id, stream.effective_class());
        }
    }

    /// Widens a stream's receive window up to `target`, as far as the pool has room.
    pub(crate) fn grow_window(&mut self, id: u32, target: u32) {
        let room = self.config.window_pool_bytes.saturating_sub(self.pool_used_bytes);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let receive = &mut stream.receive;
        let wanted = target.saturating_sub(receive.window_bytes);
        let grant = u32::try_from(room).unwrap_or(u32::MAX).min(wanted);
        receive.window_bytes += grant;
        receive.due_bytes += grant;
        self.pool_used_bytes += u64::from(grant);
    }

    pub(crate) fn queue_credit(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.receive.credit_queued && stream.receive.due_bytes > 0 {
            stream.receive.credit_queued = true;
            self.urgent.push_back(Urgent::Credit(id));
        }
    }

    pub(crate) fn remove(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(&id) else { return };
        if stream.opened_by_peer {
            self.peer_streams -= 1;
        } else {
            self.own_streams -= 1;
        }
        let above_opening = stream.receive.window_bytes.saturating_sub(self.config.window_open_bytes);
        self.pool_used_bytes -= u64::from(above_opening);
        if stream.in_ring {
            self.schedule.remove(id);
        }
        if self.streams.is_empty() {
            self.trim();
        }
        self.say_drained();
    }

    /// Gives memory back while there is no stream: thousands of idle tunnels share a process.
    pub(crate) fn trim(&mut self) {
        // An empty map keeps a node.
        self.streams = BTreeMap::new();
        self.scratch = BytesMut::new();
        self.schedule.trim();
        if self.urgent.is_empty() {
            self.urgent = VecDeque::new();
        }
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
    }

    pub(crate) fn say_drained(&mut self) {
        let leaving = self.own_going_away || self.peer_going_away;
        if leaving && !self.drained_said && self.streams.is_empty() {
            self.drained_said = true;
            self.events.push_back(Event::Drained);
        }
    }

    /// Drops everything but one last frame that tells the peer.
    pub(crate) fn fail(&mut self, error: MuxError) {
        self.failed = Some(error);
        self.streams = BTreeMap::new();
        self.schedule = Schedule::default();
        self.outgoing_small = Outgoing::default();
        self.outgoing_large = Outgoing::default();
        self.incoming_small = Incoming::default();
        self.incoming_large = Incoming::default();
        self.urgent = VecDeque::from([Urgent::GoAway(GoAwayCode::VIOLATION)]);
    }
}
