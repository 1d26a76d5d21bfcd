//! What the machine tells its driver, and the words it uses.

use bytes::Bytes;
use std::fmt;
use std::time::Duration;

/// One stream of a connection; never 0, never used twice on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub(crate) u32);

impl StreamId {
    /// The id's number on the wire.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// How urgent a stream is, declared by who opens it. An interactive stream that sends much is treated as
/// bulk for as long as it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Small messages that somebody waits for.
    Interactive,
    /// Volume; yields to interactive streams but is never starved.
    Bulk,
}

/// Why a stream was cut, a number of the application; these are the ones that the multiplexer itself uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetCode(pub u32);

impl ResetCode {
    /// The one who used the stream went away.
    pub const CANCELLED: Self = Self(1);
    /// The stream was not accepted: over the limit, or the side is draining. Nothing was processed.
    pub const REFUSED: Self = Self(2);
}

/// Why a side takes no more streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoAwayCode(pub u32);

impl GoAwayCode {
    /// The side is leaving; existing streams may finish.
    pub const DRAIN: Self = Self(0);
    /// The peer broke the protocol; the connection is about to be closed.
    pub const VIOLATION: Self = Self(1);
}

/// Something that happened on the connection, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer's preface came: streams can be opened.
    Ready,
    /// The peer opened a stream.
    StreamOpened {
        /// The new stream.
        id: StreamId,
        /// As the peer declared it.
        class: Class,
    },
    /// Bytes of a stream, never empty. Say [`Mux::consumed`](crate::Mux::consumed) once they are used up.
    Data {
        /// The stream.
        id: StreamId,
        /// The bytes, without a copy where they are long.
        bytes: Bytes,
    },
    /// The peer will send no more on this stream.
    Finished {
        /// The stream.
        id: StreamId,
    },
    /// The peer cut the stream in both directions; it is forgotten.
    Reset {
        /// The stream.
        id: StreamId,
        /// The peer's reason.
        code: ResetCode,
    },
    /// A stream that had refused bytes takes some again.
    Writable {
        /// The stream.
        id: StreamId,
    },
    /// A whole control message.
    Control(Bytes),
    /// A ping was answered.
    Pong {
        /// The time it took.
        round_trip: Duration,
    },
    /// The peer takes no more streams from this side.
    GoAway {
        /// The peer's reason.
        code: GoAwayCode,
    },
    /// One side is going away and the last stream has closed.
    Drained,
}
