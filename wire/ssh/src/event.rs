//! What a connection tells its embedder, and the handles by which the embedder answers.

use crate::certificate::Certificate;
use crate::key::SecurityKeyAssertion;
use crate::message::DisconnectReason;
use crate::proof::LoginProof;
use crate::request::{ChannelOpen, ChannelRequest, GlobalRequest};
use crate::transport::HostIdentity;
use bytes::Bytes;
use std::fmt;

/// A channel of one connection, by our number. Numbers are not reused while 2^32 channels last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub(crate) u32);

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "channel {}", self.0)
    }
}

/// A request of ours that the peer will answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(crate) u64);

/// The right to answer one channel request once. Until it is used, later requests of the same
/// channel wait for their answers too, because answers keep the order of requests.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the peer waits for an answer"]
pub struct ReplyToken {
    pub(crate) channel: ChannelId,
    pub(crate) index: u64,
}

/// The right to answer one global request once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the peer waits for an answer"]
pub struct GlobalReplyToken {
    pub(crate) index: u64,
}

/// How a global request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GlobalReply {
    /// Refused.
    Failure,
    /// Done.
    Success,
    /// `tcpip-forward` with port 0: done, on this port.
    Port(u16),
}

/// One of the two streams towards the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataStream {
    /// Ordinary data: standard input or output.
    Main,
    /// Extended data of type 1: standard error.
    Stderr,
}

/// Why a channel is not opened (RFC 4254 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenFailure {
    /// 1: not allowed.
    Prohibited,
    /// 2: the target cannot be reached.
    ConnectFailed,
    /// 3: no such type.
    UnknownType,
    /// 4: too many.
    ResourceShortage,
    /// Any other code, as received.
    Other(u32),
}

impl OpenFailure {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        match self {
            Self::Prohibited => 1,
            Self::ConnectFailed => 2,
            Self::UnknownType => 3,
            Self::ResourceShortage => 4,
            Self::Other(code) => code,
        }
    }

    pub(crate) const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Prohibited,
            2 => Self::ConnectFailed,
            3 => Self::UnknownType,
            4 => Self::ResourceShortage,
            other => Self::Other(other),
        }
    }
}

/// A client that proved possession of a certified key. Whether it may log in is the embedder's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthAttempt {
    /// The login asked for.
    pub user: String,
    /// The certificate; only its form and the possession of its key are checked.
    pub certificate: Certificate,
    /// What a FIDO authenticator asserted; `None` for keys that are not in one.
    pub security_key: Option<SecurityKeyAssertion>,
    /// What shows this to others, where the server keeps it.
    pub proof: Option<Box<LoginProof>>,
}

/// Something happened. Events come in the order of the peer's messages.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Client: answer with `accept_host` or `reject_host`; nothing goes on before.
    HostIdentity(HostIdentity),
    /// Client: text to show before authentication. Control characters other than line ends are removed.
    Banner(String),
    /// Server: answer with `accept_auth` or `reject_auth`; nothing goes on before.
    AuthAttempt(Box<AuthAttempt>),
    /// Client: the server took one of our credentials; channels can be opened.
    Authenticated,
    /// The peer asks for a channel: answer with `accept_open` or `reject_open`.
    Open {
        /// Its number.
        channel: ChannelId,
        /// What it is.
        open: ChannelOpen,
    },
    /// The peer accepted our channel.
    Opened {
        /// Its number.
        channel: ChannelId,
    },
    /// The peer refused our channel; its number is dead.
    OpenFailed {
        /// Its number.
        channel: ChannelId,
        /// Why.
        reason: OpenFailure,
        /// Text for people.
        message: String,
    },
    /// Data came in. Its window is credited when the embedder calls `consumed`.
    Data {
        /// Where.
        channel: ChannelId,
        /// On which stream.
        stream: DataStream,
        /// At least one byte.
        data: Bytes,
    },
    /// `send` took less than it was given, and there is room again.
    Writable {
        /// Where.
        channel: ChannelId,
    },
    /// The peer sends no more data on this channel; ours may go on.
    Eof {
        /// Where.
        channel: ChannelId,
    },
    /// The channel is gone; its number is dead.
    Closed {
        /// Which.
        channel: ChannelId,
    },
    /// The peer asks something of a channel.
    Request {
        /// Of which.
        channel: ChannelId,
        /// What.
        request: ChannelRequest,
        /// Present when the peer wants an answer that the core has not given by itself.
        reply: Option<ReplyToken>,
    },
    /// The peer answered a channel request of ours.
    RequestAnswered {
        /// Of which channel.
        channel: ChannelId,
        /// Which request.
        request: RequestId,
        /// Whether it was granted.
        is_success: bool,
    },
    /// The peer asks something of the connection.
    GlobalRequest {
        /// What.
        request: GlobalRequest,
        /// Present when the peer wants an answer that the core has not given by itself.
        reply: Option<GlobalReplyToken>,
    },
    /// The peer answered a global request of ours: `Some` with what came along, `None` for failure.
    GlobalAnswered {
        /// Which request.
        request: RequestId,
        /// For `tcpip-forward` with port 0 the port as four bytes, otherwise usually empty.
        success: Option<Bytes>,
    },
    /// Keys were exchanged again.
    Rekeyed,
    /// The peer ended the connection.
    Disconnected {
        /// Why.
        reason: DisconnectReason,
        /// Text for people, without control characters.
        message: String,
    },
}
