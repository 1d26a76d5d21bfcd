//! What goes wrong: with the connection, and with single calls.

use bytes::Bytes;
use std::time::Duration;

/// Ends the connection: the peer broke the protocol or fell silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MuxError {
    /// The first bytes are not this protocol's.
    #[error("the peer does not speak the tunnel protocol")]
    BadPreface,
    /// The peer speaks a version that this build does not.
    #[error("the peer speaks tunnel version {0}, this side version {ours}", ours = crate::frame::VERSION)]
    UnsupportedVersion(u8),
    /// A frame kind that does not exist.
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    /// A length that the kind does not allow.
    #[error("a frame of kind {kind} with {length} bytes")]
    BadLength {
        /// The kind's number.
        kind: u8,
        /// The declared payload length.
        length: u32,
    },
    /// A frame on a stream where its kind has no place (data on 0, a ping elsewhere).
    #[error("a frame of kind {kind} on stream {stream}")]
    WrongStream {
        /// The kind's number.
        kind: u8,
        /// The declared stream.
        stream: u32,
    },
    /// A frame for a stream that was never opened.
    #[error("a frame for stream {0}, which was never opened")]
    NeverOpened(u32),
    /// A stream id that the peer may not open, or that does not rise.
    #[error("the peer opened stream {0}, which is not its next")]
    BadOpen(u32),
    /// A class that does not exist.
    #[error("a stream of unknown class {0}")]
    UnknownClass(u8),
    /// More data than the stream had credit for.
    #[error("stream {0} sent more than its credit")]
    OverCredit(u32),
    /// Credit that adds up to more than a window may be, or to nothing.
    #[error("stream {0} was granted impossible credit")]
    BadCredit(u32),
    /// Data, or a second finish, behind a finish.
    #[error("stream {0} went on after its finish")]
    AfterFinish(u32),
    /// A control message longer than the bound.
    #[error("a control message of {0} bytes")]
    ControlTooLong(u32),
    /// More pings at once than any honest peer sends.
    #[error("too many pings")]
    PingFlood,
    /// The peer causes answers faster than it reads them.
    #[error("the peer does not read the answers it causes")]
    Backlog,
    /// Nothing was received for this long.
    #[error("nothing was heard from the peer for {0:?}")]
    Silent(Duration),
}

/// Why a stream was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The peer's preface has not come yet: wait for [`Event::Ready`](crate::Event::Ready).
    #[error("the tunnel is not ready")]
    NotReady,
    /// The peer said that it takes no more streams: use another connection.
    #[error("the tunnel is draining")]
    GoingAway,
    /// The peer's limit of concurrent streams is reached.
    #[error("the tunnel carries as many streams as its peer allows")]
    TooManyStreams,
    /// More opens are waiting for the socket than are sensible.
    #[error("the tunnel is not writable")]
    Backlog,
    /// All ids of this connection are used up: reconnect.
    #[error("the tunnel's stream ids are used up")]
    IdsExhausted,
    /// The connection has failed.
    #[error("the tunnel has failed: {0}")]
    Failed(MuxError),
}

/// Why bytes were not taken; they are given back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The stream's send queue has no room for them: wait for [`Event::Writable`](crate::Event::Writable).
    #[error("the stream's send queue is full")]
    Blocked(Bytes),
    /// The stream is finished, reset or unknown.
    #[error("the stream is closed")]
    Closed(Bytes),
}

/// Why a control message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Longer than [`Config::control_sent_bytes_max`](crate::Config::control_sent_bytes_max).
    #[error("a control message of {0} bytes is too long")]
    TooLong(usize),
    /// Too much is queued already.
    #[error("the control queue is full")]
    Full,
    /// The connection has failed.
    #[error("the tunnel has failed: {0}")]
    Failed(MuxError),
}
