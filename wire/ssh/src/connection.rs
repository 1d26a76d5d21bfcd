//! One SSH connection of either role: bytes in, events and bytes out.
//!
//! Order of calls is free except that after [`Connection::handle_input`] or
//! [`Connection::handle_timeout`] returned an error only the output is left to be sent.

use crate::config::{ClientConfig, DATA_BYTES_MAX, Limits, LoginProofs, ServerConfig, Timing};
use crate::entropy::Entropy;
use crate::error::{ConnectionError, Deadline, VerbError};
use crate::event::{
    ChannelId, DataStream, Event, GlobalReply, GlobalReplyToken, OpenFailure, ReplyToken, RequestId,
};
use crate::kex::Role;
use crate::message::{self, DisconnectReason};
use crate::mux::{Effects, Mux};
use crate::request::{ChannelOpen, ChannelRequest, GlobalRequest};
use crate::transport::{Incoming, Transport, TransportConfig, host_algorithms};
use crate::userauth::client::{ClientAuth, ClientStep};
use crate::userauth::server::ServerAuth;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::time::Duration;
use wayleave_vocab::Mono;

/// Events that wait before no more input is taken.
const EVENTS_MAX: usize = 256;
/// Output bytes that wait before no more input is taken.
const BACKLOG_BYTES_MAX: usize = 1024 * 1024;

/// What [`Connection::handle_input`] left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Intake {
    /// Every complete packet was taken: read more into the same buffer.
    Hungry,
    /// Packets may be left, and nothing more is taken until events or output are drained or the verdict
    /// that is waited for is given. Then call again with the same buffer, before reading more.
    Full,
}

/// How far the connection is.
enum Stage {
    Handshake,
    ServerAuth(ServerAuth),
    ClientAuth(ClientAuth),
    Open,
    Closed,
}

/// What the role needs when the handshake is done.
enum Plan {
    Server { attempts_max: u32, banner: Option<String> },
    Client { user: String, credentials: Vec<crate::config::Credential> },
}

/// One connection. See the crate documentation for a driver.
pub struct Connection {
    transport: Transport,
    plan: Option<Plan>,
    stage: Stage,
    mux: Mux,
    events: VecDeque<Event>,
    timing: Timing,
    /// The latest time that was told.
    now: Mono,
    /// When the present phase (handshake, authentication, rekey) must be over.
    deadline: Option<(Deadline, Mono)>,
    last_heard: Mono,
    keepalives_unanswered: u32,
    keepalive_at: Option<Mono>,
    rekey_at: Mono,
    failure: Option<ConnectionError>,
}

impl Connection {
    /// The server side of a new stream. Its version and KEXINIT are in the output at once.
    pub fn server(config: &ServerConfig, entropy: Box<dyn Entropy + Send>, now: Mono) -> Self {
        let transport = TransportConfig {
            kex: config.algorithms.kex.clone(),
            ciphers: config.algorithms.ciphers.clone(),
            host_key_algorithms: host_algorithms(&config.host_keys),
            host_keys: config.host_keys.clone(),
            rekey_bytes: config.timing.rekey_bytes,
            is_guessing: false,
            proof: config.proofs,
        };
        let plan = Plan::Server { attempts_max: config.auth_attempts_max, banner: config.banner.clone() };
        let transport = Transport::new(Role::Server, transport, entropy);
        Self::new(transport, plan, Mux::new(Role::Server, bounded(config.limits)), config.timing, now)
    }

    /// The client side of a new stream. Its version and KEXINIT are in the output at once.
    pub fn client(config: &ClientConfig, entropy: Box<dyn Entropy + Send>, now: Mono) -> Self {
        let transport = TransportConfig {
            kex: config.algorithms.kex.clone(),
            ciphers: config.algorithms.ciphers.clone(),
            host_key_algorithms: config.host_key_algorithms.clone(),
            host_keys: Vec::new(),
            rekey_bytes: config.timing.rekey_bytes,
            is_guessing: config.is_guessing,
            proof: LoginProofs::None,
        };
        let plan = Plan::Client { user: config.user.clone(), credentials: config.credentials.clone() };
        let transport = Transport::new(Role::Client, transport, entropy);
        Self::new(transport, plan, Mux::new(Role::Client, bounded(config.limits)), config.timing, now)
    }

    fn new(transport: Transport, plan: Plan, mux: Mux, timing: Timing, now: Mono) -> Self {
        Self {
            transport,
            plan: Some(plan),
            stage: Stage::Handshake,
            mux,
            events: VecDeque::new(),
            timing,
            now,
            deadline: Some((Deadline::Handshake, now.after(timing.handshake_max))),
            last_heard: now,
            keepalives_unanswered: 0,
            keepalive_at: None,
            rekey_at: now.after(timing.rekey_after),
            failure: None,
        }
    }

    /// Takes complete packets off the front of `input`, decrypting in place; an incomplete one stays.
    ///
    /// # Errors
    /// When the connection is over. Send the remaining output, then close the stream.
    pub fn handle_input(&mut self, input: &mut BytesMut, now: Mono) -> Result<Intake, ConnectionError> {
        self.now = now;
        if !input.is_empty() {
            self.last_heard = now;
            self.keepalives_unanswered = 0;
        }
        let result = self.take_packets(input);
        let result = result.and_then(|intake| self.rekey_if_due().map(|()| intake));
        result.map_err(|error| self.fail(error))
    }

    fn take_packets(&mut self, input: &mut BytesMut) -> Result<Intake, ConnectionError> {
        loop {
            if matches!(self.stage, Stage::Closed) {
                return self.failure.clone().map_or(Ok(Intake::Hungry), Err);
            }
            if self.is_full() {
                return Ok(Intake::Full);
            }
            let Some(incoming) = self.transport.next(input)? else {
                let is_waiting = self.transport.awaits_verdict();
                return Ok(if is_waiting { Intake::Full } else { Intake::Hungry });
            };
            self.handle(incoming)?;
        }
    }

    fn is_full(&self) -> bool {
        let is_pending = matches!(&self.stage, Stage::ServerAuth(auth) if auth.is_pending);
        is_pending || self.events.len() >= EVENTS_MAX || self.transport.backlog_bytes() >= BACKLOG_BYTES_MAX
    }

    fn handle(&mut self, incoming: Incoming) -> Result<(), ConnectionError> {
        match incoming {
            Incoming::Message(payload) => self.on_message(payload),
            Incoming::HostIdentity(identity) => {
                self.events.push_back(Event::HostIdentity(identity));
                Ok(())
            }
            Incoming::Ready => self.on_ready(),
            Incoming::Rekeyed => {
                self.deadline = None;
                self.rekey_at = self.now.after(self.timing.rekey_after);
                self.events.push_back(Event::Rekeyed);
                Ok(())
            }
            Incoming::Disconnected(reason, message) => {
                self.stage = Stage::Closed;
                self.events.push_back(Event::Disconnected { reason, message });
                Ok(())
            }
        }
    }

    fn on_ready(&mut self) -> Result<(), ConnectionError> {
        self.deadline = Some((Deadline::Authentication, self.now.after(self.timing.auth_max)));
        self.rekey_at = self.now.after(self.timing.rekey_after);
        match self.plan.take() {
            Some(Plan::Server { attempts_max, banner }) => {
                self.stage = Stage::ServerAuth(ServerAuth::new(attempts_max, banner));
                Ok(())
            }
            Some(Plan::Client { user, credentials }) => {
                let mut auth = ClientAuth::new(user, credentials);
                let result = auth.start(&mut self.transport);
                self.stage = Stage::ClientAuth(auth);
                result
            }
            None => Err(ConnectionError::Protocol("second first key exchange")),
        }
    }

    fn on_message(&mut self, payload: BytesMut) -> Result<(), ConnectionError> {
        match &mut self.stage {
            Stage::Handshake => Err(ConnectionError::Protocol("message during key exchange")),
            Stage::ServerAuth(auth) => {
                if let Some(attempt) = auth.handle(&payload, &mut self.transport)? {
                    self.events.push_back(Event::AuthAttempt(Box::new(attempt)));
                }
                Ok(())
            }
            Stage::ClientAuth(auth) => {
                match auth.handle(&payload, &mut self.transport)? {
                    ClientStep::Wait => {}
                    ClientStep::Banner(text) => self.events.push_back(Event::Banner(text)),
                    ClientStep::Authenticated => {
                        self.on_authenticated();
                        self.events.push_back(Event::Authenticated);
                    }
                }
                Ok(())
            }
            Stage::Open => self.on_open_message(payload),
            Stage::Closed => Ok(()),
        }
    }

    fn on_open_message(&mut self, payload: BytesMut) -> Result<(), ConnectionError> {
        let number = payload.first().copied().unwrap_or(0);
        match number {
            // Requests after success are to be ignored (RFC 4252 section 5.1).
            message::USERAUTH_REQUEST | message::USERAUTH_BANNER => Ok(()),
            message::CONNECTION_START.. => {
                let mut effects = Effects { transport: &mut self.transport, events: &mut self.events };
                self.mux.handle(payload, &mut effects)
            }
            _ => self.transport.unimplemented(),
        }
    }

    fn on_authenticated(&mut self) {
        self.stage = Stage::Open;
        self.deadline = None;
        self.transport.trust_peer();
        self.keepalive_at = self.timing.keepalive.map(|silence| self.now.after(silence));
    }

    /// Probes a silent peer by other numbers from now on: after so much silence, and giving up after so many probes
    /// without a sign of life. What was counted goes on counting.
    pub fn set_keepalive(&mut self, silence: Option<Duration>, unanswered_max: u32) {
        self.timing.keepalive = silence;
        self.timing.keepalive_unanswered_max = unanswered_max;
        if matches!(self.stage, Stage::Open) {
            self.keepalive_at = silence.map(|silence| self.last_heard.after(silence));
        }
    }

    fn rekey_if_due(&mut self) -> Result<(), ConnectionError> {
        let is_due = self.transport.is_rekey_due() || self.now >= self.rekey_at;
        if is_due && matches!(self.stage, Stage::Open) && self.transport.can_send() {
            self.transport.start_rekey()?;
        }
        // Also when the peer started it.
        if matches!(self.stage, Stage::Open) && self.transport.is_exchanging() && self.deadline.is_none() {
            self.deadline = Some((Deadline::Rekey, self.now.after(self.timing.handshake_max)));
        }
        Ok(())
    }

    /// The connection is over because of `error`: tells the peer, remembers it.
    fn fail(&mut self, error: ConnectionError) -> ConnectionError {
        if !matches!(self.stage, Stage::Closed) {
            self.transport.disconnect(error.reason(), &error.to_string());
            self.stage = Stage::Closed;
            self.failure = Some(error.clone());
        }
        error
    }

    /// Runs a verb whose failure ends the connection: noted, and reported by the next `handle_*`.
    fn run<T>(&mut self, result: Result<T, ConnectionError>) -> Result<T, VerbError> {
        result.map_err(|error| {
            self.fail(error);
            VerbError::NotOpen
        })
    }

    fn require_open(&self) -> Result<(), VerbError> {
        if matches!(self.stage, Stage::Open) { Ok(()) } else { Err(VerbError::NotOpen) }
    }

    /// The next event, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes for the stream: call until `None`, then drain events again, because room for sending
    /// makes [`Event::Writable`].
    pub fn poll_output(&mut self) -> Option<Bytes> {
        if matches!(self.stage, Stage::Open) {
            let result = self.rekey_if_due().and_then(|()| {
                let mut effects = Effects { transport: &mut self.transport, events: &mut self.events };
                self.mux.flush(&mut effects)
            });
            if let Err(error) = result {
                self.fail(error);
            }
        }
        self.transport.take_output()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Mono> {
        if matches!(self.stage, Stage::Closed) {
            return None;
        }
        let deadline = self.deadline.map(|(_, at)| at);
        let rekey = (matches!(self.stage, Stage::Open) && self.transport.can_send()).then_some(self.rekey_at);
        [deadline, rekey, self.keepalive_at].into_iter().flatten().min()
    }

    /// Does what is due: gives up, sends a keepalive, starts a rekey. Early calls do nothing.
    ///
    /// # Errors
    /// When a deadline has passed. Send the remaining output, then close the stream.
    pub fn handle_timeout(&mut self, now: Mono) -> Result<(), ConnectionError> {
        self.now = now;
        if matches!(self.stage, Stage::Closed) {
            return self.failure.clone().map_or(Ok(()), Err);
        }
        let result = self.run_timers(now);
        result.map_err(|error| self.fail(error))
    }

    fn run_timers(&mut self, now: Mono) -> Result<(), ConnectionError> {
        if let Some((what, at)) = self.deadline
            && now >= at
        {
            return Err(ConnectionError::Timeout(what));
        }
        self.rekey_if_due()?;
        let (Some(silence), Some(at)) = (self.timing.keepalive, self.keepalive_at) else {
            return Ok(());
        };
        if now < at {
            return Ok(());
        }
        let quiet_since = self.last_heard.after(silence);
        if now < quiet_since {
            self.keepalive_at = Some(quiet_since);
            return Ok(());
        }
        if self.keepalives_unanswered >= self.timing.keepalive_unanswered_max {
            return Err(ConnectionError::Timeout(Deadline::Keepalive));
        }
        self.keepalives_unanswered += 1;
        self.keepalive_at = Some(now.after(silence));
        self.mux.keepalive(&mut self.transport)
    }

    /// Whether the connection is over; the output may still hold a goodbye.
    pub fn is_closed(&self) -> bool {
        matches!(self.stage, Stage::Closed)
    }

    /// Whether authentication is done and channels can be used.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// The peer's version line without its line end; empty before it came.
    pub fn peer_version(&self) -> &[u8] {
        self.transport.peer_version()
    }

    /// The session id, once the first key exchange is complete.
    pub fn session_id(&self) -> Option<&[u8; 32]> {
        self.transport.session_id()
    }

    /// Channels at present, in all states.
    pub fn channel_count(&self) -> usize {
        self.mux.channels.len()
    }

    /// Client: the identity of [`Event::HostIdentity`] is right. Call `handle_input` again afterwards.
    ///
    /// # Errors
    /// When no identity waits for a verdict.
    pub fn accept_host(&mut self) -> Result<(), VerbError> {
        let result = self.transport.accept_host();
        if self.run(result)? { Ok(()) } else { Err(VerbError::WrongState) }
    }

    /// Client: the identity of [`Event::HostIdentity`] is wrong; the connection is over.
    pub fn reject_host(&mut self) {
        self.fail(ConnectionError::HostKeyRefused);
    }

    /// Server: the user of [`Event::AuthAttempt`] may log in. Call `handle_input` again afterwards.
    ///
    /// # Errors
    /// When no attempt waits for a verdict.
    pub fn accept_auth(&mut self) -> Result<(), VerbError> {
        match &self.stage {
            Stage::ServerAuth(auth) if auth.is_pending => {}
            _ => return Err(VerbError::WrongState),
        }
        let result = self.transport.send(vec![message::USERAUTH_SUCCESS]);
        self.run(result)?;
        self.on_authenticated();
        Ok(())
    }

    /// Server: the user of [`Event::AuthAttempt`] may not log in, or not with this. The client may try
    /// again until its attempts are used up. Call `handle_input` again afterwards.
    ///
    /// # Errors
    /// When no attempt waits for a verdict, or this was the last one.
    pub fn reject_auth(&mut self) -> Result<(), VerbError> {
        let result = match &mut self.stage {
            Stage::ServerAuth(auth) if auth.is_pending => auth.refuse(&mut self.transport),
            _ => return Err(VerbError::WrongState),
        };
        self.run(result)
    }

    /// Asks the peer for a channel; [`Event::Opened`] or [`Event::OpenFailed`] follows.
    ///
    /// # Errors
    /// Before authentication, and when there are too many channels.
    pub fn open(&mut self, open: &ChannelOpen) -> Result<ChannelId, VerbError> {
        self.require_open()?;
        let result = self.mux.open(open, &mut self.transport);
        self.run(result)?
    }

    /// Grants [`Event::Open`].
    ///
    /// # Errors
    /// When the connection is not open. An unknown channel is ignored.
    pub fn accept_open(&mut self, channel: ChannelId) -> Result<(), VerbError> {
        self.require_open()?;
        let result = self.mux.accept_open(channel, &mut self.transport);
        self.run(result)
    }

    /// Refuses [`Event::Open`]; the channel number is dead.
    ///
    /// # Errors
    /// When the connection is not open. An unknown channel is ignored.
    pub fn reject_open(
        &mut self,
        channel: ChannelId,
        reason: OpenFailure,
        message: &str,
    ) -> Result<(), VerbError> {
        self.require_open()?;
        let result = self.mux.reject_open(channel, reason, message, &mut self.transport);
        self.run(result)
    }

    /// Queues data and takes what fits off the front of `data`; returns how many bytes. When some is
    /// left, wait for [`Event::Writable`] before sending more.
    ///
    /// # Errors
    /// When the channel is unknown, not confirmed, or ended on our side.
    pub fn send(
        &mut self,
        channel: ChannelId,
        stream: DataStream,
        data: &mut Bytes,
    ) -> Result<usize, VerbError> {
        self.require_open()?;
        self.mux.send(channel, stream, data)
    }

    /// How many bytes [`Self::send`] would take now; 0 for a channel that takes none.
    pub fn send_room(&self, channel: ChannelId) -> usize {
        self.mux.channels.get(&channel.0).map_or(0, |c| c.send_room(&self.mux.limits))
    }

    /// The embedder is done with so many received bytes: the peer may send as many again.
    pub fn consumed(&mut self, channel: ChannelId, bytes: usize) {
        let result = self.mux.consumed(channel, bytes, &mut self.transport);
        // A failure is kept and reported by the next `handle_*`.
        let _ = self.run(result);
    }

    /// Our data ends after what is queued. Receiving goes on.
    pub fn eof(&mut self, channel: ChannelId) {
        self.mux.eof(channel);
    }

    /// Closes the channel after what is queued; [`Event::Closed`] follows when the peer has closed too.
    /// No more data events come.
    pub fn close(&mut self, channel: ChannelId) {
        self.mux.close(channel, false);
    }

    /// Like [`Self::close`] but drops what is queued.
    pub fn abort(&mut self, channel: ChannelId) {
        self.mux.close(channel, true);
    }

    /// Asks something of the peer's end of a channel. With `wants_reply` an id is returned and
    /// [`Event::RequestAnswered`] follows. Requests overtake queued data.
    ///
    /// # Errors
    /// When the channel is unknown or not open, the request too long, or too many wait for an answer.
    pub fn request(
        &mut self,
        channel: ChannelId,
        request: &ChannelRequest,
        wants_reply: bool,
    ) -> Result<Option<RequestId>, VerbError> {
        self.require_open()?;
        let result = self.mux.request(channel, request, wants_reply, &mut self.transport);
        self.run(result)?
    }

    /// Answers [`Event::Request`].
    pub fn respond(&mut self, token: ReplyToken, is_success: bool) {
        let result = self.mux.respond(&token, is_success, &mut self.transport);
        // A failure is kept and reported by the next `handle_*`.
        let _ = self.run(result);
    }

    /// Asks something of the peer. With `wants_reply` an id is returned and [`Event::GlobalAnswered`]
    /// follows.
    ///
    /// # Errors
    /// Before authentication, when the request is too long, or too many wait for an answer.
    pub fn global_request(
        &mut self,
        request: &GlobalRequest,
        wants_reply: bool,
    ) -> Result<Option<RequestId>, VerbError> {
        self.require_open()?;
        let result = self.mux.global_request(request, wants_reply, &mut self.transport);
        self.run(result)?
    }

    /// Answers [`Event::GlobalRequest`].
    pub fn respond_global(&mut self, token: GlobalReplyToken, reply: GlobalReply) {
        let result = self.mux.respond_global(&token, reply, &mut self.transport);
        // A failure is kept and reported by the next `handle_*`.
        let _ = self.run(result);
    }

    /// Exchanges keys again; [`Event::Rekeyed`] follows. Does nothing while an exchange is under way.
    ///
    /// # Errors
    /// Before authentication.
    pub fn rekey(&mut self) -> Result<(), VerbError> {
        self.require_open()?;
        let result = self.transport.start_rekey().and_then(|()| self.rekey_if_due());
        self.run(result)
    }

    /// Says goodbye. Send the remaining output, then close the stream.
    pub fn disconnect(&mut self, reason: DisconnectReason, message: &str) {
        self.transport.disconnect(reason, message);
        self.stage = Stage::Closed;
    }
}

/// Limits that the code relies on.
fn bounded(limits: Limits) -> Limits {
    Limits { packet_bytes: limits.packet_bytes.clamp(1024, DATA_BYTES_MAX), ..limits }
}
