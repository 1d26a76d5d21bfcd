//! The connection protocol, sending half: the embedder's verbs and the round robin of channel data.

use crate::channel::{Channel, Ending, REQUESTS_PENDING_MAX, Stage};
use crate::encoding::Put;
use crate::error::{ConnectionError, VerbError};
use crate::event::{
    ChannelId, DataStream, Event, GlobalReply, GlobalReplyToken, OpenFailure, ReplyToken, RequestId,
};
use crate::message;
use crate::mux::{DATA_HEADER_BYTES, EXTENDED_STDERR, Effects, GlobalPending, Mux, open_failure};
use crate::request::{ChannelOpen, ChannelRequest, GlobalRequest};
use crate::transport::Transport;
use bytes::Bytes;

/// Most global requests of ours that wait for an answer.
const GLOBAL_PENDING_MAX: usize = 128;
/// Largest message that is not channel data; every peer takes packets of 32 KiB and some.
const MESSAGE_BYTES_MAX: usize = 32 * 1024;
/// What a packet adds to channel data at most.
const PACKET_OVERHEAD_BYTES: usize = 64;

impl Mux {
    pub(crate) fn open(
        &mut self,
        open: &ChannelOpen,
        transport: &mut Transport,
    ) -> Result<Result<ChannelId, VerbError>, ConnectionError> {
        if self.channels.len() >= self.limits.channels_max {
            return Ok(Err(VerbError::Limit("channels")));
        }
        let mut payload = vec![message::CHANNEL_OPEN];
        payload.put_string(open.kind().as_bytes());
        let id = self.free_id();
        payload.put_uint(id);
        payload.put_uint(self.limits.window_bytes);
        payload.put_uint(self.limits.packet_bytes);
        open.put(&mut payload);
        if payload.len() > MESSAGE_BYTES_MAX {
            return Ok(Err(VerbError::TooLong));
        }
        self.channels.insert(id, Channel::new(Stage::Asked, &self.limits));
        transport.send(payload)?;
        Ok(Ok(ChannelId(id)))
    }

    pub(crate) fn accept_open(
        &mut self,
        id: ChannelId,
        transport: &mut Transport,
    ) -> Result<(), ConnectionError> {
        let (window, packet) = (self.limits.window_bytes, self.limits.packet_bytes);
        let Some(channel) = self.take_offer(id) else { return Ok(()) };
        channel.stage = Stage::Open;
        let mut payload = vec![message::CHANNEL_OPEN_CONFIRMATION];
        for value in [channel.remote_id, id.0, window, packet] {
            payload.put_uint(value);
        }
        transport.send(payload)
    }

    pub(crate) fn reject_open(
        &mut self,
        id: ChannelId,
        reason: OpenFailure,
        text: &str,
        transport: &mut Transport,
    ) -> Result<(), ConnectionError> {
        let Some(channel) = self.take_offer(id) else { return Ok(()) };
        let payload = open_failure(channel.remote_id, reason, text);
        self.channels.remove(&id.0);
        transport.send(payload)
    }

    pub(crate) fn send(
        &mut self,
        id: ChannelId,
        stream: DataStream,
        data: &mut Bytes,
    ) -> Result<usize, VerbError> {
        let limits = self.limits;
        let channel = self.channels.get_mut(&id.0).ok_or(VerbError::UnknownChannel)?;
        let is_ended = channel.eof != Ending::Not || channel.close != Ending::Not;
        if channel.stage != Stage::Open || is_ended {
            return Err(VerbError::WrongState);
        }
        let taken = channel.enqueue(stream, data, &limits);
        self.make_ready(id.0);
        Ok(taken)
    }

    pub(crate) fn consumed(
        &mut self,
        id: ChannelId,
        bytes: usize,
        transport: &mut Transport,
    ) -> Result<(), ConnectionError> {
        let limits = self.limits;
        let Some(channel) = self.channels.get_mut(&id.0) else { return Ok(()) };
        let Some(credit) = channel.consume(bytes, &limits) else { return Ok(()) };
        let mut payload = Vec::with_capacity(9);
        payload.put_byte(message::CHANNEL_WINDOW_ADJUST);
        payload.put_uint(channel.remote_id);
        payload.put_uint(credit);
        transport.send(payload)
    }

    pub(crate) fn eof(&mut self, id: ChannelId) {
        if let Some(channel) = self.channels.get_mut(&id.0)
            && channel.eof == Ending::Not
            && channel.close == Ending::Not
        {
            channel.eof = Ending::Wanted;
            self.make_ready(id.0);
        }
    }

    /// Closes after what is queued, or at once with `is_abort`. An offered channel stays to be answered.
    pub(crate) fn close(&mut self, id: ChannelId, is_abort: bool) {
        if let Some(channel) = self.channels.get_mut(&id.0)
            && !matches!(channel.stage, Stage::Offered(_))
        {
            if is_abort {
                channel.clear_queue();
            }
            if channel.close == Ending::Not {
                channel.close = Ending::Wanted;
            }
            self.make_ready(id.0);
        }
    }

    pub(crate) fn request(
        &mut self,
        id: ChannelId,
        request: &ChannelRequest,
        wants_reply: bool,
        transport: &mut Transport,
    ) -> Result<Result<Option<RequestId>, VerbError>, ConnectionError> {
        let next_request = self.next_request;
        let Some(channel) = self.channels.get_mut(&id.0) else {
            return Ok(Err(VerbError::UnknownChannel));
        };
        if channel.stage != Stage::Open || channel.close == Ending::Sent {
            return Ok(Err(VerbError::WrongState));
        }
        if wants_reply && channel.requests_pending.len() >= REQUESTS_PENDING_MAX {
            return Ok(Err(VerbError::Limit("requests without an answer")));
        }
        let mut payload = vec![message::CHANNEL_REQUEST];
        payload.put_uint(channel.remote_id);
        payload.put_string(request.name().as_bytes());
        payload.put_bool(wants_reply);
        request.put(&mut payload);
        if payload.len() > MESSAGE_BYTES_MAX {
            return Ok(Err(VerbError::TooLong));
        }
        let pending = wants_reply.then_some(RequestId(next_request));
        if let Some(request) = pending {
            channel.requests_pending.push_back(request);
            self.next_request += 1;
        }
        transport.send(payload)?;
        Ok(Ok(pending))
    }

    pub(crate) fn respond(
        &mut self,
        token: &ReplyToken,
        is_success: bool,
        transport: &mut Transport,
    ) -> Result<(), ConnectionError> {
        if let Some(channel) = self.channels.get_mut(&token.channel.0) {
            channel.decide_reply(token.index, is_success);
        }
        self.send_replies(token.channel.0, transport)
    }

    pub(crate) fn send_replies(&mut self, id: u32, transport: &mut Transport) -> Result<(), ConnectionError> {
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        while channel.close != Ending::Sent
            && let Some(is_success) = channel.next_reply()
        {
            let number = if is_success { message::CHANNEL_SUCCESS } else { message::CHANNEL_FAILURE };
            let mut payload = vec![number];
            payload.put_uint(channel.remote_id);
            transport.send(payload)?;
        }
        Ok(())
    }

    pub(crate) fn global_request(
        &mut self,
        request: &GlobalRequest,
        wants_reply: bool,
        transport: &mut Transport,
    ) -> Result<Result<Option<RequestId>, VerbError>, ConnectionError> {
        if wants_reply && self.global_pending.len() >= GLOBAL_PENDING_MAX {
            return Ok(Err(VerbError::Limit("requests without an answer")));
        }
        let payload = global_payload(request, wants_reply);
        if payload.len() > MESSAGE_BYTES_MAX {
            return Ok(Err(VerbError::TooLong));
        }
        let pending = wants_reply.then_some(RequestId(self.next_request));
        if let Some(request) = pending {
            self.global_pending.push_back(GlobalPending::Embedder(request));
            self.next_request += 1;
        }
        transport.send(payload)?;
        Ok(Ok(pending))
    }

    pub(crate) fn keepalive(&mut self, transport: &mut Transport) -> Result<(), ConnectionError> {
        if self.global_pending.len() >= GLOBAL_PENDING_MAX {
            return Ok(());
        }
        self.global_pending.push_back(GlobalPending::Keepalive);
        transport.send(global_payload(&GlobalRequest::Keepalive, true))
    }

    pub(crate) fn respond_global(
        &mut self,
        token: &GlobalReplyToken,
        reply: GlobalReply,
        transport: &mut Transport,
    ) -> Result<(), ConnectionError> {
        let payload = match reply {
            GlobalReply::Failure => vec![message::REQUEST_FAILURE],
            GlobalReply::Success => vec![message::REQUEST_SUCCESS],
            GlobalReply::Port(port) => {
                let mut payload = vec![message::REQUEST_SUCCESS];
                payload.put_uint(u32::from(port));
                payload
            }
        };
        self.decide_global(token.index, payload);
        self.send_global_replies(transport)
    }

    /// Puts a channel into the round robin when it has something to send.
    pub(crate) fn make_ready(&mut self, id: u32) {
        if let Some(channel) = self.channels.get_mut(&id)
            && !channel.is_ready
            && channel.is_sendable()
        {
            channel.is_ready = true;
            self.ready.push_back(id);
        }
    }

    /// Seals channel data into the output, one message of each ready channel in turn, up to the limit.
    pub(crate) fn flush(&mut self, effects: &mut Effects<'_>) -> Result<(), ConnectionError> {
        if self.ready.is_empty() || !effects.transport.can_send() {
            return Ok(());
        }
        let output_max = self.limits.output_bytes;
        let mut waiting = 0;
        for id in &self.ready {
            waiting += self.channels.get(id).map_or(0, Channel::queue_bytes);
        }
        let room = output_max + self.limits.packet_bytes as usize + PACKET_OVERHEAD_BYTES;
        if waiting > self.limits.packet_bytes as usize {
            effects.transport.reserve_output((waiting + waiting / 64).min(room));
        }
        while effects.transport.output_len() < output_max {
            let Some(id) = self.ready.pop_front() else { break };
            self.send_one(id, effects)?;
        }
        Ok(())
    }

    /// One data message, or the ending, of one channel.
    fn send_one(&mut self, id: u32, effects: &mut Effects<'_>) -> Result<(), ConnectionError> {
        let limits = self.limits;
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        channel.is_ready = false;
        if !channel.is_sendable() {
            return Ok(());
        }
        if let Some((stream, bytes)) = channel.next_message() {
            send_data(channel, stream, bytes, effects.transport)?;
            if channel.take_writable(&limits) {
                effects.events.push_back(Event::Writable { channel: ChannelId(id) });
            }
        }
        if channel.queue_bytes() == 0 {
            send_ending(channel, effects.transport)?;
        }
        self.make_ready(id);
        Ok(())
    }
}

fn send_data(
    channel: &mut Channel,
    stream: DataStream,
    bytes: usize,
    transport: &mut Transport,
) -> Result<(), ConnectionError> {
    let remote_id = channel.remote_id;
    // A message is bounded by the packet size, which is 32 bits.
    let length = u32::try_from(bytes).unwrap_or(u32::MAX);
    let header = DATA_HEADER_BYTES + if stream == DataStream::Main { 0 } else { 4 };
    transport.send_with(header + bytes, |out| {
        match stream {
            DataStream::Main => {
                out.put_byte(message::CHANNEL_DATA);
                out.put_uint(remote_id);
            }
            DataStream::Stderr => {
                out.put_byte(message::CHANNEL_EXTENDED_DATA);
                out.put_uint(remote_id);
                out.put_uint(EXTENDED_STDERR);
            }
        }
        out.put_uint(length);
        channel.take_message(bytes, out);
    })
}

fn send_ending(channel: &mut Channel, transport: &mut Transport) -> Result<(), ConnectionError> {
    if channel.eof == Ending::Wanted {
        channel.eof = Ending::Sent;
        transport.send(with_channel(message::CHANNEL_EOF, channel.remote_id))?;
    }
    if channel.close == Ending::Wanted {
        channel.close = Ending::Sent;
        transport.send(with_channel(message::CHANNEL_CLOSE, channel.remote_id))?;
    }
    Ok(())
}

fn with_channel(number: u8, remote_id: u32) -> Vec<u8> {
    let mut payload = vec![number];
    payload.put_uint(remote_id);
    payload
}

fn global_payload(request: &GlobalRequest, wants_reply: bool) -> Vec<u8> {
    let mut payload = vec![message::GLOBAL_REQUEST];
    payload.put_string(request.name().as_bytes());
    payload.put_bool(wants_reply);
    request.put(&mut payload);
    payload
}
