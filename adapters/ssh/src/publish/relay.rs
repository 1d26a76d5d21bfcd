//! Two SSH connections joined channel by channel: the user's, which ends here, and ours to the machine's sshd.
//!
//! Each connection has one [`Side`]. Data goes through bounded pipes, so that whoever does not read slows nobody but
//! himself; opens, requests and ends go as [`Message`]s in order. What may pass is decided before it comes here.

use crate::driver::Core;
use crate::pump::PumpEnd;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use wayleave_ssh::{
    ChannelId, ChannelOpen, ChannelRequest, GlobalReply, GlobalReplyToken, GlobalRequest, OpenFailure,
    ReplyToken, RequestId,
};

/// Messages that wait for the other side; one that does not take them ends both connections.
pub(super) const MESSAGES_MAX: usize = 1024;
/// Bytes of one direction of a channel between the two connections.
const PIPE_BYTES: usize = 64 * 1024;

/// A channel of both connections, by the side that asked for it and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    by: Party,
    channel: ChannelId,
}

/// Who is on a connection's other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Party {
    User,
    Machine,
}

/// The ends of a channel's pipes that belong to one connection.
pub(super) struct Ends {
    main: DuplexStream,
    stderr: DuplexStream,
}

/// What one side tells the other.
pub(super) enum Message {
    /// The machine let us in.
    Ready,
    /// It did not, or showed another host key.
    Refused(String),
    Open {
        key: Key,
        open: ChannelOpen,
        ends: Ends,
    },
    Opened {
        key: Key,
    },
    OpenFailed {
        key: Key,
        reason: OpenFailure,
        text: String,
    },
    Request {
        key: Key,
        request: ChannelRequest,
        wants_reply: bool,
    },
    Answered {
        key: Key,
        is_success: bool,
    },
    Global {
        request: GlobalRequest,
        wants_reply: bool,
    },
    GlobalAnswered {
        success: Option<Bytes>,
    },
    Closed {
        key: Key,
    },
}

/// The other side does not keep up, or is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection to the machine is gone")]
pub(super) struct PeerGone;

/// One connection's part of the relay.
pub(super) struct Side {
    party: Party,
    peer: mpsc::Sender<Message>,
    legs: BTreeMap<ChannelId, Leg>,
    channels: BTreeMap<Key, ChannelId>,
    /// Requests of ours that will be answered.
    asked: BTreeMap<RequestId, Key>,
    global_replies: VecDeque<GlobalReplyToken>,
    is_peer_gone: bool,
}

/// One channel here.
struct Leg {
    key: Key,
    /// It ends when it is closed: how what ran has ended may come after the end of both directions.
    is_session: bool,
    /// The end of what ran is not said yet, and the end of output goes with it.
    awaits_exit: bool,
    /// Until the channel is confirmed.
    ends: Option<Ends>,
    replies: VecDeque<ReplyToken>,
    /// How what ran has ended; said together with the end of its output, so that no client misses it.
    exit: Option<ChannelRequest>,
    is_output_over: bool,
    is_closed_there: bool,
}

impl Leg {
    fn new(key: Key, open: &ChannelOpen, party: Party, ends: Ends) -> Self {
        let is_session = *open == ChannelOpen::Session;
        Self {
            key,
            is_session,
            awaits_exit: is_session && party == Party::User,
            ends: Some(ends),
            replies: VecDeque::new(),
            exit: None,
            is_output_over: false,
            is_closed_there: false,
        }
    }
}

impl Side {
    pub(super) fn new(party: Party, peer: mpsc::Sender<Message>) -> Self {
        Self {
            party,
            peer,
            legs: BTreeMap::new(),
            channels: BTreeMap::new(),
            asked: BTreeMap::new(),
            global_replies: VecDeque::new(),
            is_peer_gone: false,
        }
    }

    /// Tells the other side something.
    pub(super) fn tell(&mut self, message: Message) {
        if self.peer.try_send(message).is_err() {
            self.is_peer_gone = true;
        }
    }

    /// # Errors
    /// [`PeerGone`] when something could not be told: both connections end then.
    pub(super) const fn check(&self) -> Result<(), PeerGone> {
        if self.is_peer_gone { Err(PeerGone) } else { Ok(()) }
    }

    /// A channel of both connections as it is numbered here.
    pub(super) fn channel(&self, key: Key) -> Option<ChannelId> {
        self.channels.get(&key).copied()
    }

    /// A channel that is asked for here, and wanted there.
    pub(super) fn offer(&mut self, channel: ChannelId, open: ChannelOpen) {
        let key = Key { by: self.party, channel };
        let (near_main, main) = tokio::io::duplex(PIPE_BYTES);
        let (near_stderr, stderr) = tokio::io::duplex(PIPE_BYTES);
        let near = Ends { main: near_main, stderr: near_stderr };
        self.legs.insert(channel, Leg::new(key, &open, self.party, near));
        self.channels.insert(key, channel);
        self.tell(Message::Open { key, open, ends: Ends { main, stderr } });
    }

    /// What is asked of a channel here is asked there.
    pub(super) fn forward_request(
        &mut self,
        channel: ChannelId,
        request: ChannelRequest,
        reply: Option<ReplyToken>,
    ) {
        let Some(leg) = self.legs.get_mut(&channel) else { return };
        let (key, wants_reply) = (leg.key, reply.is_some());
        leg.replies.extend(reply);
        self.tell(Message::Request { key, request, wants_reply });
    }

    /// What is asked of this connection is asked of the other.
    pub(super) fn forward_global(&mut self, request: GlobalRequest, reply: Option<GlobalReplyToken>) {
        let wants_reply = reply.is_some();
        self.global_replies.extend(reply);
        self.tell(Message::Global { request, wants_reply });
    }

    /// What the other side opened is not wanted here.
    pub(super) fn refuse(&mut self, message: Message) {
        if let Message::Open { key, .. } = message {
            let (reason, text) = (OpenFailure::Prohibited, "no longer allowed".to_owned());
            self.tell(Message::OpenFailed { key, reason, text });
        }
    }

    /// The other side said something.
    pub(super) fn on_message<D: Send + 'static>(&mut self, core: &mut Core<D>, message: Message) {
        match message {
            Message::Ready | Message::Refused(_) => {}
            Message::Open { key, open, ends } => self.open(core, key, &open, ends),
            Message::Opened { key } => {
                if let Some(channel) = self.channels.get(&key).copied() {
                    self.attach(core, channel);
                    // Refused only when the connection is over, which the driver sees.
                    let _over = core.connection.accept_open(channel);
                }
            }
            Message::OpenFailed { key, reason, text } => {
                if let Some(channel) = self.forget(key) {
                    // Refused only when the connection is over, which the driver sees.
                    let _over = core.connection.reject_open(channel, reason, &text);
                }
            }
            Message::Request { key, request, wants_reply } => self.request(core, key, request, wants_reply),
            Message::Answered { key, is_success } => {
                let leg = self.channels.get(&key).and_then(|channel| self.legs.get_mut(channel));
                if let Some(reply) = leg.and_then(|leg| leg.replies.pop_front()) {
                    core.connection.respond(reply, is_success);
                }
            }
            Message::Global { request, wants_reply } => {
                let asked = core.connection.global_request(&request, wants_reply);
                if asked.is_err() && wants_reply {
                    self.tell(Message::GlobalAnswered { success: None });
                }
            }
            Message::GlobalAnswered { success } => {
                if let Some(reply) = self.global_replies.pop_front() {
                    core.connection.respond_global(reply, global_reply(success.as_ref()));
                }
            }
            Message::Closed { key } => {
                if let Some(channel) = self.channels.get(&key).copied() {
                    if let Some(leg) = self.legs.get_mut(&channel) {
                        leg.is_closed_there = true;
                    }
                    self.finish(core, channel);
                }
            }
        }
    }

    fn open<D: Send + 'static>(&mut self, core: &mut Core<D>, key: Key, open: &ChannelOpen, ends: Ends) {
        match core.connection.open(open) {
            Ok(channel) => {
                self.legs.insert(channel, Leg::new(key, open, self.party, ends));
                self.channels.insert(key, channel);
            }
            Err(error) => {
                let reason = OpenFailure::ResourceShortage;
                self.tell(Message::OpenFailed { key, reason, text: error.to_string() });
            }
        }
    }

    fn request<D: Send + 'static>(
        &mut self,
        core: &mut Core<D>,
        key: Key,
        request: ChannelRequest,
        wants_reply: bool,
    ) {
        let Some(channel) = self.channels.get(&key).copied() else { return };
        if matches!(request, ChannelRequest::ExitStatus { .. } | ChannelRequest::ExitSignal { .. }) {
            if let Some(leg) = self.legs.get_mut(&channel) {
                leg.exit = Some(request);
            }
            return self.finish(core, channel);
        }
        match core.connection.request(channel, &request, wants_reply) {
            Ok(Some(id)) => {
                self.asked.insert(id, key);
            }
            Ok(None) => {}
            Err(_) if wants_reply => self.tell(Message::Answered { key, is_success: false }),
            Err(_) => {}
        }
    }

    /// The far end of this connection confirmed a channel of ours.
    pub(super) fn on_opened<D: Send + 'static>(&mut self, core: &mut Core<D>, channel: ChannelId) {
        self.attach(core, channel);
        if let Some(key) = self.legs.get(&channel).map(|leg| leg.key) {
            self.tell(Message::Opened { key });
        }
    }

    /// It refused one.
    pub(super) fn on_open_failed(&mut self, channel: ChannelId, reason: OpenFailure, text: String) {
        if let Some(leg) = self.legs.remove(&channel) {
            self.channels.remove(&leg.key);
            self.tell(Message::OpenFailed { key: leg.key, reason, text });
        }
    }

    /// It answered a request of ours.
    pub(super) fn on_answered(&mut self, request: RequestId, is_success: bool) {
        if let Some(key) = self.asked.remove(&request) {
            self.tell(Message::Answered { key, is_success });
        }
    }

    /// A channel is gone here.
    pub(super) fn on_closed<D: Send + 'static>(&mut self, core: &mut Core<D>, channel: ChannelId) {
        core.pumps.close(channel);
        if let Some(leg) = self.legs.remove(&channel) {
            self.channels.remove(&leg.key);
            self.asked.retain(|_, key| *key != leg.key);
            self.tell(Message::Closed { key: leg.key });
        }
    }

    /// A direction of a channel has ended.
    pub(super) fn on_pump<D: Send + 'static>(
        &mut self,
        core: &mut Core<D>,
        channel: ChannelId,
        end: PumpEnd,
    ) {
        let Some(leg) = self.legs.get_mut(&channel) else { return };
        leg.is_output_over |= end == PumpEnd::Outbound;
        self.finish(core, channel);
    }

    /// Says that the data has ended, how what ran has ended, and that the channel is closed there: each when it is so.
    fn finish<D: Send + 'static>(&mut self, core: &mut Core<D>, channel: ChannelId) {
        let Some(leg) = self.legs.get_mut(&channel) else { return };
        let is_told = !leg.awaits_exit || leg.exit.is_some() || leg.is_closed_there;
        if !leg.is_output_over || !is_told {
            return;
        }
        leg.awaits_exit = false;
        if let Some(exit) = leg.exit.take() {
            // A channel that takes no request is closed by the other end already.
            let _closed = core.connection.request(channel, &exit, false);
        }
        core.connection.eof(channel);
        if leg.is_closed_there || (!leg.is_session && core.pumps.is_over(channel)) {
            core.connection.close(channel);
        }
    }

    fn attach<D: Send + 'static>(&mut self, core: &mut Core<D>, channel: ChannelId) {
        let Some(Ends { main, stderr }) = self.legs.get_mut(&channel).and_then(|leg| leg.ends.take()) else {
            return;
        };
        let (reader, writer) = tokio::io::split(main);
        match self.party {
            // Only servers send a second stream, so towards the user it is read and from the machine it is written.
            Party::User => {
                core.pumps.attach(channel, Box::new(reader), Some(Box::new(stderr)), Box::new(writer));
            }
            Party::Machine => {
                core.pumps.attach(channel, Box::new(reader), None, Box::new(writer));
                core.pumps.attach_stderr(channel, Box::new(stderr));
            }
        }
    }

    fn forget(&mut self, key: Key) -> Option<ChannelId> {
        let channel = self.channels.remove(&key)?;
        self.legs.remove(&channel);
        Some(channel)
    }
}

fn global_reply(success: Option<&Bytes>) -> GlobalReply {
    let port = |bytes: &Bytes| <[u8; 4]>::try_from(bytes.as_ref()).ok().map(u32::from_be_bytes);
    match success {
        None => GlobalReply::Failure,
        Some(bytes) => match port(bytes).and_then(|port| u16::try_from(port).ok()) {
            Some(port) => GlobalReply::Port(port),
            None => GlobalReply::Success,
        },
    }
}
