//! The answer to most requests: a code and a sentence (section 7 of the draft).

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum StatusCode {
    /// Done.
    Ok = 0,
    /// Nothing more to read.
    EndOfFile = 1,
    /// There is no such file.
    NoSuchFile = 2,
    /// The user may not.
    PermissionDenied = 3,
    /// It did not work.
    Failure = 4,
    /// The request makes no sense.
    BadMessage = 5,
    /// Not connected; only clients say so to themselves.
    NoConnection = 6,
    /// The connection was lost; only clients say so to themselves.
    ConnectionLost = 7,
    /// This server does not do that.
    Unsupported = 8,
}

impl StatusCode {
    /// The number on the wire.
    pub fn to_u32(self) -> u32 {
        self as u32
    }

    /// Reads a number; what version 3 does not know is a failure.
    pub fn from_u32(number: u32) -> Self {
        match number {
            0 => Self::Ok,
            1 => Self::EndOfFile,
            2 => Self::NoSuchFile,
            3 => Self::PermissionDenied,
            5 => Self::BadMessage,
            6 => Self::NoConnection,
            7 => Self::ConnectionLost,
            8 => Self::Unsupported,
            _ => Self::Failure,
        }
    }

    /// The sentence that goes with it when there is nothing better to say.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Ok => "Success",
            Self::EndOfFile => "End of file",
            Self::NoSuchFile => "No such file",
            Self::PermissionDenied => "Permission denied",
            Self::Failure => "Failure",
            Self::BadMessage => "Bad message",
            Self::NoConnection => "No connection",
            Self::ConnectionLost => "Connection lost",
            Self::Unsupported => "Operation unsupported",
        }
    }
}

/// A status as a client receives it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// The code.
    pub code: StatusCode,
    /// The server's sentence, or ours when it sent none; without control characters.
    pub message: String,
}
