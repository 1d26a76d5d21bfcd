//! Why a connection ends, and why a verb of the embedder is refused.

use crate::encoding::DecodeError;
use crate::kex::KexError;
use crate::message::DisconnectReason;
use crate::packet::PacketError;
use crate::version::VersionError;
use thiserror::Error;

/// The connection is over. A DISCONNECT that says so is in the output where the peer can read one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConnectionError {
    /// The peer does not speak SSH 2.0.
    #[error("version exchange: {0}")]
    Version(#[from] VersionError),
    /// A packet could not be taken.
    #[error("packet: {0}")]
    Packet(#[from] PacketError),
    /// The key exchange failed.
    #[error("key exchange: {0}")]
    Kex(#[from] KexError),
    /// A message is malformed.
    #[error("malformed message {message}: {source}")]
    Malformed {
        /// The message number.
        message: u8,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A message that must not come now, or that breaks a rule.
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
    /// A limit of this end was passed.
    #[error("too many {0}")]
    Limit(&'static str),
    /// The embedder refused the host key.
    #[error("host key refused")]
    HostKeyRefused,
    /// The server took none of our credentials.
    #[error("permission denied: the server takes {methods_left:?}")]
    AuthenticationFailed {
        /// What the server says could go on, comma separated.
        methods_left: String,
    },
    /// The client failed too often.
    #[error("too many authentication failures")]
    TooManyAuthAttempts,
    /// A deadline passed.
    #[error("{0} took too long")]
    Timeout(Deadline),
    /// Already closed, by either side.
    #[error("connection is closed")]
    Closed,
}

/// What did not happen in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// Version and first key exchange.
    Handshake,
    /// Authentication.
    Authentication,
    /// A later key exchange.
    Rekey,
    /// An answer to a keepalive.
    Keepalive,
}

impl std::fmt::Display for Deadline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Handshake => "handshake",
            Self::Authentication => "authentication",
            Self::Rekey => "key re-exchange",
            Self::Keepalive => "answer to a keepalive",
        })
    }
}

impl ConnectionError {
    /// The code for the peer.
    pub(crate) const fn reason(&self) -> DisconnectReason {
        match self {
            Self::Version(_) => DisconnectReason::ProtocolVersionNotSupported,
            Self::Packet(PacketError::Authentication) => DisconnectReason::MacError,
            Self::Kex(_) | Self::Timeout(Deadline::Handshake | Deadline::Rekey) => {
                DisconnectReason::KeyExchangeFailed
            }
            Self::Packet(_) | Self::Malformed { .. } | Self::Protocol(_) | Self::Limit(_) => {
                DisconnectReason::ProtocolError
            }
            Self::HostKeyRefused => DisconnectReason::HostKeyNotVerifiable,
            Self::AuthenticationFailed { .. } | Self::TooManyAuthAttempts => {
                DisconnectReason::NoMoreAuthMethodsAvailable
            }
            Self::Timeout(Deadline::Authentication | Deadline::Keepalive) => DisconnectReason::ConnectionLost,
            Self::Closed => DisconnectReason::ByApplication,
        }
    }
}

/// A verb that cannot be done now. The connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VerbError {
    /// The connection is not authenticated yet, or closed.
    #[error("connection is not open")]
    NotOpen,
    /// No such channel, or it is closed.
    #[error("no such channel")]
    UnknownChannel,
    /// The channel is not in a state for this: not confirmed yet, or already ended on our side.
    #[error("channel is not in a state for this")]
    WrongState,
    /// A limit of this end: channels, or requests without an answer yet.
    #[error("too many {0}")]
    Limit(&'static str),
    /// The message does not fit a packet that every peer takes.
    #[error("message is too long")]
    TooLong,
}
