//! The connection protocol (RFC 4254), receiving half: the peer's messages about channels and requests.
//!
//! The sending half and the round robin are in `mux_send`.

use crate::channel::{Channel, Ending, Stage, WindowError};
use crate::config::Limits;
use crate::encoding::{DecodeError, Put, Reader};
use crate::error::ConnectionError;
use crate::event::{ChannelId, DataStream, Event, GlobalReplyToken, OpenFailure, ReplyToken, RequestId};
use crate::kex::Role;
use crate::message;
use crate::request::{ChannelOpen, ChannelRequest, GlobalRequest, NAME_BYTES_MAX};
use crate::transport::{Transport, malformed};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};

/// Longest text of an open failure.
const FAILURE_TEXT_BYTES_MAX: usize = 1024;
/// Most global requests of the peer that wait for an answer.
const GLOBAL_REPLIES_OWED_MAX: usize = 128;
/// Longest data of a global answer.
const GLOBAL_ANSWER_BYTES_MAX: usize = 4096;
/// Received data up to this size is copied, so that it does not hold a large receive buffer.
const COPY_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a data message before the data: number, channel, length.
pub(crate) const DATA_HEADER_BYTES: usize = 9;
/// The only defined type of extended data.
pub(crate) const EXTENDED_STDERR: u32 = 1;

/// A global request of ours.
#[derive(Debug)]
pub(crate) enum GlobalPending {
    /// A keepalive of the core: any answer will do.
    Keepalive,
    /// The embedder's.
    Embedder(RequestId),
}

/// All channels of a connection.
#[derive(Debug)]
pub(crate) struct Mux {
    pub(crate) role: Role,
    pub(crate) limits: Limits,
    pub(crate) channels: BTreeMap<u32, Channel>,
    pub(crate) next_channel: u32,
    pub(crate) next_request: u64,
    /// Channels with something to send, in turn.
    pub(crate) ready: VecDeque<u32>,
    offered: usize,
    is_closed_to_sessions: bool,
    global_owed: VecDeque<Option<Vec<u8>>>,
    global_owed_base: u64,
    pub(crate) global_pending: VecDeque<GlobalPending>,
}

/// Where the effects of a message go.
pub(crate) struct Effects<'a> {
    pub(crate) transport: &'a mut Transport,
    pub(crate) events: &'a mut VecDeque<Event>,
}

impl From<WindowError> for ConnectionError {
    fn from(_: WindowError) -> Self {
        Self::Protocol("channel window violated")
    }
}

impl Mux {
    pub(crate) fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            limits,
            channels: BTreeMap::new(),
            next_channel: 0,
            next_request: 0,
            ready: VecDeque::new(),
            offered: 0,
            is_closed_to_sessions: false,
            global_owed: VecDeque::new(),
            global_owed_base: 0,
            global_pending: VecDeque::new(),
        }
    }

    /// One message of the connection protocol.
    pub(crate) fn handle(
        &mut self,
        payload: BytesMut,
        effects: &mut Effects<'_>,
    ) -> Result<(), ConnectionError> {
        let number = payload.first().copied().unwrap_or(0);
        match number {
            message::CHANNEL_DATA => self.on_data(payload, effects),
            message::CHANNEL_EXTENDED_DATA => self.on_extended_data(payload, effects),
            message::CHANNEL_WINDOW_ADJUST => self.on_window_adjust(&payload),
            message::CHANNEL_OPEN => self.on_open(&payload, effects),
            message::CHANNEL_OPEN_CONFIRMATION => self.on_confirmation(&payload, effects),
            message::CHANNEL_OPEN_FAILURE => self.on_open_failure(&payload, effects),
            message::CHANNEL_EOF => self.on_eof(&payload, effects),
            message::CHANNEL_CLOSE => self.on_close(&payload, effects),
            message::CHANNEL_REQUEST => self.on_request(&payload, effects),
            message::CHANNEL_SUCCESS | message::CHANNEL_FAILURE => self.on_answer(&payload, effects),
            message::GLOBAL_REQUEST => self.on_global_request(&payload, effects),
            message::REQUEST_SUCCESS | message::REQUEST_FAILURE => self.on_global_answer(&payload, effects),
            _ => effects.transport.unimplemented(),
        }
    }

    /// The fast path: the data leaves as a slice of the receive buffer.
    fn on_data(&mut self, mut payload: BytesMut, effects: &mut Effects<'_>) -> Result<(), ConnectionError> {
        let (id, data_bytes) = data_header(&payload, 1).map_err(malformed(message::CHANNEL_DATA))?;
        payload.advance(DATA_HEADER_BYTES);
        if self.receive(id, data_bytes)? && data_bytes > 0 {
            effects.events.push_back(Event::Data {
                channel: ChannelId(id),
                stream: DataStream::Main,
                data: owned(payload),
            });
        }
        Ok(())
    }

    fn on_extended_data(
        &mut self,
        mut payload: BytesMut,
        effects: &mut Effects<'_>,
    ) -> Result<(), ConnectionError> {
        let fail = malformed(message::CHANNEL_EXTENDED_DATA);
        let (id, data_bytes) = data_header(&payload, 5).map_err(&fail)?;
        payload.advance(5);
        let kind = Reader::new(&payload).u32().map_err(&fail)?;
        payload.advance(8);
        if !self.receive(id, data_bytes)? || data_bytes == 0 {
            return Ok(());
        }
        if kind == EXTENDED_STDERR {
            effects.events.push_back(Event::Data {
                channel: ChannelId(id),
                stream: DataStream::Stderr,
                data: owned(payload),
            });
            return Ok(());
        }
        // No other type is defined: dropped, and the window given back.
        self.consumed(ChannelId(id), data_bytes as usize, effects.transport)
    }

    /// Takes data off the window; false when the channel no longer listens.
    fn receive(&mut self, id: u32, bytes: u32) -> Result<bool, ConnectionError> {
        let limit = self.limits.packet_bytes;
        let channel = self.confirmed(id)?;
        if channel.is_eof_received {
            return Err(ConnectionError::Protocol("channel data after EOF"));
        }
        if bytes > limit {
            return Err(ConnectionError::Protocol("channel data above the maximum packet size"));
        }
        channel.receive(bytes)?;
        Ok(channel.close == Ending::Not)
    }

    /// A channel that is confirmed on both sides, or a violation.
    fn confirmed(&mut self, id: u32) -> Result<&mut Channel, ConnectionError> {
        self.channels
            .get_mut(&id)
            .filter(|c| c.stage == Stage::Open)
            .ok_or(ConnectionError::Protocol("message for a channel that is not open"))
    }

    fn on_window_adjust(&mut self, payload: &[u8]) -> Result<(), ConnectionError> {
        let fail = malformed(message::CHANNEL_WINDOW_ADJUST);
        let mut reader = Reader::new(payload);
        reader.u8().map_err(&fail)?;
        let (id, bytes) = (reader.u32().map_err(&fail)?, reader.u32().map_err(&fail)?);
        reader.end().map_err(&fail)?;
        self.confirmed(id)?.grant(bytes)?;
        self.make_ready(id);
        Ok(())
    }

    fn on_open(&mut self, payload: &[u8], effects: &mut Effects<'_>) -> Result<(), ConnectionError> {
        let mut reader = Reader::new(payload);
        let asked = OpenMessage::parse(&mut reader).map_err(malformed(message::CHANNEL_OPEN))?;
        if let Some(failure) = self.refuse_open(&asked) {
            let payload = open_failure(asked.remote_id, failure, "");
            return effects.transport.send(payload);
        }
        let id = self.free_id();
        let mut channel = Channel::new(Stage::Offered(asked.open.clone()), &self.limits);
        channel.set_remote(asked.remote_id, asked.window, asked.packet_bytes, &self.limits);
        self.channels.insert(id, channel);
        self.offered += 1;
        effects.events.push_back(Event::Open { channel: ChannelId(id), open: asked.open });
        Ok(())
    }

    /// What the core refuses by itself.
    fn refuse_open(&self, asked: &OpenMessage) -> Option<OpenFailure> {
        let is_known = match self.role {
            Role::Server => asked.open.is_for_server(),
            Role::Client => asked.open.is_for_client(),
        };
        if matches!(asked.open, ChannelOpen::Unknown { .. }) {
            return Some(OpenFailure::UnknownType);
        }
        if !is_known || asked.packet_bytes == 0 {
            return Some(OpenFailure::Prohibited);
        }
        if self.is_closed_to_sessions && asked.open == ChannelOpen::Session {
            return Some(OpenFailure::Prohibited);
        }
        let is_full =
            self.channels.len() >= self.limits.channels_max || self.offered >= self.limits.opens_pending_max;
        is_full.then_some(OpenFailure::ResourceShortage)
    }

    /// A number that no channel has; counts up so that stale numbers stay dead.
    pub(crate) fn free_id(&mut self) -> u32 {
        loop {
            let id = self.next_channel;
            self.next_channel = self.next_channel.wrapping_add(1);
            if !self.channels.contains_key(&id) {
                return id;
            }
        }
    }

    /// Takes an offered channel out of the count. None when it is not offered.
    pub(crate) fn take_offer(&mut self, id: ChannelId) -> Option<&mut Channel> {
        let channel = self.channels.get_mut(&id.0)?;
        if !matches!(channel.stage, Stage::Offered(_)) {
            return None;
        }
        self.offered = self.offered.saturating_sub(1);
        Some(channel)
    }

    fn on_confirmation(&mut self, payload: &[u8], effects: &mut Effects<'_>) -> Result<(), ConnectionError> {
        let fail = malformed(message::CHANNEL_OPEN_CONFIRMATION);
        let mut reader = Reader::new(payload);
        reader.u8().map_err(&fail)?;
        let (id, remote_id) = (reader.u32().map_err(&fail)?, reader.u32().map_err(&fail)?);
        let (window, packet_bytes) = (reader.u32().map_err(&fail)?, reader.u32().map_err(&fail)?);
        let limits = self.limits;
        let channel = self
            .channels
            .get_mut(&id)
            .filter(|c| c.stage == Stage::Asked)
            .ok_or(ConnectionError::Protocol("confirmation of a channel that was not asked for"))?;
        if packet_bytes == 0 {
            return Err(ConnectionError::Protocol("channel with a maximum packet size of zero"));
        }
        channel.set_remote(remote_id, window, packet_bytes, &limits);
        channel.stage = Stage::Open;
        // Closed by the embedder while it was being opened.
        let is_wanted = channel.close == Ending::Not;
        self.make_ready(id);
        if is_wanted {
            effects.events.push_back(Event::Opened { channel: ChannelId(id) });
        }
        Ok(())
    }

    fn on_open_failure(&mut self, payload: &[u8], effects: &mut Effects<'_>) -> Result<(), ConnectionError> {
        let fail = malformed(message::CHANNEL_OPEN_FAILURE);
        let mut reader = Reader::new(payload);
        reader.u8().map_err(&fail)?;
        let (id, reason) = (reader.u32().map_err(&fail)?, reader.u32().map_err(&fail)?);
        let text = reader.string().map_err(&fail)?;
        let text = text.get(..FAILURE_TEXT_BYTES_MAX).unwrap_or(text);
        let is_asked = self.channels.get(&id).is_some_and(|c| c.stage == Stage::Asked);
        if !is_asked {
            return Err(ConnectionError::Protocol("failure of a channel that was not asked for"));
        }
        self.channels.remove(&id);
        effects.events.push_back(Event::OpenFailed {
            channel: ChannelId(id),
            reason: OpenFailure::from_code(reason),
            message: String::from_utf8_lossy(text).replace(char::is_control, " "),
        });
        Ok(())
    }

    fn on_eof(&mut self, payload: &[u8], effects: &mut Effects<'_>) -> Result<(), ConnectionError> {
        let id = only_channel(payload).map_err(malformed(message::CHANNEL_EOF))?;
        let channel = self.confirmed(id)?;
        if !std::mem::replace(&mut channel.is_eof_received, true) && channel.close == Ending::Not {
            effects.events.push_back(Event::Eof { channel: ChannelId(id) });
        }
        Ok(())
    }

    /// The peer sends nothing more and wants nothing more: what is queued is dropped.
    fn on_close(&mut self, payload: &[u8], effects: &mut Effects<'_>) -> Result<(), ConnectionError> {
        let id = only_channel(payload).map_err(malformed(message::CHANNEL_CLOSE))?;
        let channel = self.confirmed(id)?;
        if channel.close != Ending::Sent {
            let mut close = vec![message::CHANNEL_CLOSE];
            close.put_uint(channel.remote_id);
            effects.transport.send(close)?;
        }
        self.channels.remove(&id);
        effects.events.push_back(Event::Closed { channel: ChannelId(id) });
        Ok(())
    }

    fn on_request(&mut self, payload: &[u8], effects: &mut Effects<'_>) -> Result<(), ConnectionError> {
        let fail = malformed(message::CHANNEL_REQUEST);
        let mut reader = Reader::new(payload);
        reader.u8().map_err(&fail)?;
        let id = reader.u32().map_err(&fail)?;
        let name = reader.text(NAME_BYTES_MAX, "request name").map_err(&fail)?;
        let wants_reply = reader.bool().map_err(&fail)?;
        let request = ChannelRequest::parse(name, &mut reader).map_err(&fail)?;
        let channel = self.confirmed(id)?;
        if channel.close != Ending::Not {
            return Ok(());
        }
        let decided = match request {
            ChannelRequest::Keepalive => Some(true),
            ChannelRequest::Unknown { .. } => Some(false),
            _ => None,
        };
        let mut reply = None;
        if wants_reply {
            let index = channel.owe_reply(decided).ok_or(ConnectionError::Limit("channel requests"))?;
            reply = decided.is_none().then_some(ReplyToken { channel: ChannelId(id), index });
            self.send_replies(id, effects.transport)?;
        }
        if request != ChannelRequest::Keepalive {
            effects.events.push_back(Event::Request { channel: ChannelId(id), request, reply });
        }
        Ok(())
    }

    fn on_answer(&mut self, payload: &[u8], effects: &mut Effects<'_>) -> Result<(), ConnectionError> {
        let is_success = payload.first() == Some(&message::CHANNEL_SUCCESS);
        let id = only_channel(payload).map_err(malformed(message::CHANNEL_SUCCESS))?;
        let channel = self.confirmed(id)?;
        let request = channel
            .requests_pending
            .pop_front()
            .ok_or(ConnectionError::Protocol("answer without a channel request"))?;
        if channel.close == Ending::Not {
            let channel = ChannelId(id);
            effects.events.push_back(Event::RequestAnswered { channel, request, is_success });
        }
        Ok(())
    }

    fn on_global_request(
        &mut self,
        payload: &[u8],
        effects: &mut Effects<'_>,
    ) -> Result<(), ConnectionError> {
        let fail = malformed(message::GLOBAL_REQUEST);
        let mut reader = Reader::new(payload);
        reader.u8().map_err(&fail)?;
        let name = reader.text(NAME_BYTES_MAX, "request name").map_err(&fail)?;
        let wants_reply = reader.bool().map_err(&fail)?;
        let request = GlobalRequest::parse(name, &mut reader).map_err(&fail)?;
        let decided = match request {
            GlobalRequest::Keepalive => Some(vec![message::REQUEST_SUCCESS]),
            GlobalRequest::Unknown { .. } => Some(vec![message::REQUEST_FAILURE]),
            GlobalRequest::NoMoreSessions => {
                self.is_closed_to_sessions = true;
                Some(vec![message::REQUEST_SUCCESS])
            }
            _ => None,
        };
        let mut reply = None;
        if wants_reply {
            if self.global_owed.len() >= GLOBAL_REPLIES_OWED_MAX {
                return Err(ConnectionError::Limit("global requests"));
            }
            if decided.is_none() {
                let index = self.global_owed_base + self.global_owed.len() as u64;
                reply = Some(GlobalReplyToken { index });
            }
            self.global_owed.push_back(decided);
            self.send_global_replies(effects.transport)?;
        }
        if request != GlobalRequest::Keepalive {
            effects.events.push_back(Event::GlobalRequest { request, reply });
        }
        Ok(())
    }

    pub(crate) fn decide_global(&mut self, index: u64, payload: Vec<u8>) {
        let place = index.checked_sub(self.global_owed_base).and_then(|i| usize::try_from(i).ok());
        if let Some(reply) = place.and_then(|i| self.global_owed.get_mut(i)) {
            *reply = Some(payload);
        }
    }

    pub(crate) fn send_global_replies(&mut self, transport: &mut Transport) -> Result<(), ConnectionError> {
        while let Some(reply) = self.global_owed.front_mut().and_then(Option::take) {
            self.global_owed.pop_front();
            self.global_owed_base += 1;
            transport.send(reply)?;
        }
        Ok(())
    }

    fn on_global_answer(&mut self, payload: &[u8], effects: &mut Effects<'_>) -> Result<(), ConnectionError> {
        let is_success = payload.first() == Some(&message::REQUEST_SUCCESS);
        let data = payload.get(1..).unwrap_or_default();
        if data.len() > GLOBAL_ANSWER_BYTES_MAX {
            let too_long = DecodeError::TooLong("answer");
            return Err(malformed(message::REQUEST_SUCCESS)(too_long));
        }
        match self.global_pending.pop_front() {
            None => return Err(ConnectionError::Protocol("answer without a global request")),
            Some(GlobalPending::Keepalive) => {}
            Some(GlobalPending::Embedder(request)) => {
                let success = is_success.then(|| Bytes::copy_from_slice(data));
                effects.events.push_back(Event::GlobalAnswered { request, success });
            }
        }
        Ok(())
    }
}

/// The fields of CHANNEL_OPEN.
struct OpenMessage {
    remote_id: u32,
    window: u32,
    packet_bytes: u32,
    open: ChannelOpen,
}

impl OpenMessage {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.u8()?;
        let kind = reader.text(NAME_BYTES_MAX, "channel type")?;
        let (remote_id, window, packet_bytes) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let open = ChannelOpen::parse(kind, reader)?;
        Ok(Self { remote_id, window, packet_bytes, open })
    }
}

/// CHANNEL_OPEN_FAILURE.
pub(crate) fn open_failure(remote_id: u32, reason: OpenFailure, text: &str) -> Vec<u8> {
    let mut payload = vec![message::CHANNEL_OPEN_FAILURE];
    payload.put_uint(remote_id);
    payload.put_uint(reason.code());
    payload.put_string(text.get(..FAILURE_TEXT_BYTES_MAX).unwrap_or(text).as_bytes());
    payload.put_string(b"");
    payload
}

/// Channel and data size; `length_at` is where the second number after the channel stands.
fn data_header(payload: &[u8], length_at: usize) -> Result<(u32, u32), DecodeError> {
    let mut reader = Reader::new(payload);
    reader.u8()?;
    let id = reader.u32()?;
    reader.take(length_at - 1)?;
    let data = reader.string()?;
    reader.end()?;
    // The packet size limit is far below 4 GiB.
    Ok((id, u32::try_from(data.len()).map_err(|_| DecodeError::TooLong("data"))?))
}

fn only_channel(payload: &[u8]) -> Result<u32, DecodeError> {
    let mut reader = Reader::new(payload);
    reader.u8()?;
    let id = reader.u32()?;
    reader.end()?;
    Ok(id)
}

fn owned(data: BytesMut) -> Bytes {
    if data.len() <= COPY_BYTES_MAX { Bytes::copy_from_slice(&data) } else { data.freeze() }
}
