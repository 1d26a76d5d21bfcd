//! The frames: what the bytes mean. Reading decides lengths before anything is allocated.

use crate::error::MuxError;
use crate::event::Class;

/// The version this build speaks.
pub const VERSION: u8 = 1;
/// First four bytes of a preface.
pub const MAGIC: [u8; 4] = *b"WLMX";
/// Length of a preface in bytes.
pub const PREFACE_BYTES: usize = 16;
/// Length of a frame header in bytes.
pub const HEADER_BYTES: usize = 8;
/// Longest payload of a data or control frame while the connection carries one stream.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Longest payload of a data or control frame while it carries more.
pub const PAYLOAD_BYTES_SHARED_MAX: usize = 16 * 1024;
/// Longest control message that overtakes the long ones.
pub const CONTROL_SMALL_BYTES_MAX: usize = 64 * 1024;

/// The first bytes of each side: magic, version, three zero bytes, two limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preface {
    /// Credit of every stream from its opening on.
    pub window_open_bytes: u32,
    /// Most streams that the receiver of the preface may have open at once.
    pub peer_streams_max: u32,
}

impl Preface {
    /// The 16 bytes.
    pub fn encode(self) -> [u8; PREFACE_BYTES] {
        let mut out = [0; PREFACE_BYTES];
        let [a, b, c, d] = MAGIC;
        let [e, f, g, h] = self.window_open_bytes.to_be_bytes();
        let [i, j, k, l] = self.peer_streams_max.to_be_bytes();
        out.copy_from_slice(&[a, b, c, d, VERSION, 0, 0, 0, e, f, g, h, i, j, k, l]);
        out
    }

    /// Reads the 16 bytes.
    ///
    /// # Errors
    /// [`MuxError::BadPreface`] for another protocol, [`MuxError::UnsupportedVersion`] for another version.
    pub fn decode(bytes: [u8; PREFACE_BYTES]) -> Result<Self, MuxError> {
        let [a, b, c, d, version, r0, r1, r2, e, f, g, h, i, j, k, l] = bytes;
        if [a, b, c, d] != MAGIC {
            return Err(MuxError::BadPreface);
        }
        if version != VERSION {
            return Err(MuxError::UnsupportedVersion(version));
        }
        if [r0, r1, r2] != [0; 3] {
            return Err(MuxError::BadPreface);
        }
        Ok(Self {
            window_open_bytes: u32::from_be_bytes([e, f, g, h]),
            peer_streams_max: u32::from_be_bytes([i, j, k, l]),
        })
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// 1 to 65,536 bytes of a stream.
    Data = 0,
    /// Opens a stream; payload: class (0 interactive, 1 bulk).
    Open = 1,
    /// Ends the sender's direction of a stream.
    Finish = 2,
    /// Cuts both directions; payload: code (u32).
    Reset = 3,
    /// Grants credit; payload: bytes (u32, not zero).
    Credit = 4,
    /// Part of a short control message: at its start total length (u32), then bytes.
    ControlSmall = 5,
    /// Part of a long control message, in the same form; short ones may come between its parts.
    ControlLarge = 6,
    /// Asks for a pong; payload: nonce (u64).
    Ping = 7,
    /// Answers a ping; payload: its nonce.
    Pong = 8,
    /// The sender takes no more streams; payload: code (u32).
    GoAway = 9,
}

impl Kind {
    fn decode(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Data,
            1 => Self::Open,
            2 => Self::Finish,
            3 => Self::Reset,
            4 => Self::Credit,
            5 => Self::ControlSmall,
            6 => Self::ControlLarge,
            7 => Self::Ping,
            8 => Self::Pong,
            9 => Self::GoAway,
            _ => return None,
        })
    }

    /// The shortest and the longest payload.
    fn payload_bytes(self) -> (u32, u32) {
        const LONGEST: u32 = 64 * 1024;
        match self {
            Self::Data => (1, LONGEST),
            Self::ControlSmall | Self::ControlLarge => (1, LONGEST + 4),
            Self::Open => (1, 1),
            Self::Finish => (0, 0),
            Self::Reset | Self::Credit | Self::GoAway => (4, 4),
            Self::Ping | Self::Pong => (8, 8),
        }
    }

    fn is_of_connection(self) -> bool {
        match self {
            Self::ControlSmall | Self::ControlLarge | Self::Ping | Self::Pong | Self::GoAway => true,
            Self::Data | Self::Open | Self::Finish | Self::Reset | Self::Credit => false,
        }
    }
}

/// A frame's first eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Payload bytes behind the header.
    pub length: u32,
    /// What the frame is.
    pub kind: Kind,
    /// The stream; 0 for those of the whole connection.
    pub stream: u32,
}

impl Header {
    /// The eight bytes. The length must fit 24 bits.
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        debug_assert!(self.length < 1 << 24, "a payload length has 24 bits");
        let [_, a, b, c] = self.length.to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind as u8, d, e, f, g]
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MuxError::UnknownKind`], [`MuxError::BadLength`] when the kind does not allow the length,
    /// [`MuxError::WrongStream`] when the kind does not belong on the stream.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, MuxError> {
        let [a, b, c, kind_byte, d, e, f, g] = bytes;
        let kind = Kind::decode(kind_byte).ok_or(MuxError::UnknownKind(kind_byte))?;
        let length = u32::from_be_bytes([0, a, b, c]);
        let stream = u32::from_be_bytes([d, e, f, g]);
        let (shortest, longest) = kind.payload_bytes();
        if length < shortest || length > longest {
            return Err(MuxError::BadLength { kind: kind_byte, length });
        }
        if (stream == 0) != kind.is_of_connection() {
            return Err(MuxError::WrongStream { kind: kind_byte, stream });
        }
        Ok(Self { length, kind, stream })
    }
}

/// A class as its byte on the wire.
pub fn class_byte(class: Class) -> u8 {
    match class {
        Class::Interactive => 0,
        Class::Bulk => 1,
    }
}

/// A class from its byte on the wire.
///
/// # Errors
/// [`MuxError::UnknownClass`] for any other byte.
pub fn class_from_byte(byte: u8) -> Result<Class, MuxError> {
    match byte {
        0 => Ok(Class::Interactive),
        1 => Ok(Class::Bulk),
        other => Err(MuxError::UnknownClass(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(header: Header, golden: [u8; 8]) {
        assert_eq!(header.encode(), golden);
        assert_eq!(Header::decode(golden), Ok(header));
    }

    #[test]
    fn every_header_has_its_golden_bytes() {
        check(Header { length: 65536, kind: Kind::Data, stream: 3 }, [1, 0, 0, 0, 0, 0, 0, 3]);
        check(Header { length: 1, kind: Kind::Open, stream: 0x0102_0304 }, [0, 0, 1, 1, 1, 2, 3, 4]);
        check(Header { length: 0, kind: Kind::Finish, stream: 2 }, [0, 0, 0, 2, 0, 0, 0, 2]);
        check(Header { length: 4, kind: Kind::Reset, stream: 2 }, [0, 0, 4, 3, 0, 0, 0, 2]);
        check(Header { length: 4, kind: Kind::Credit, stream: 2 }, [0, 0, 4, 4, 0, 0, 0, 2]);
        check(Header { length: 300, kind: Kind::ControlSmall, stream: 0 }, [0, 1, 44, 5, 0, 0, 0, 0]);
        check(Header { length: 65540, kind: Kind::ControlLarge, stream: 0 }, [1, 0, 4, 6, 0, 0, 0, 0]);
        check(Header { length: 8, kind: Kind::Ping, stream: 0 }, [0, 0, 8, 7, 0, 0, 0, 0]);
        check(Header { length: 8, kind: Kind::Pong, stream: 0 }, [0, 0, 8, 8, 0, 0, 0, 0]);
        check(Header { length: 4, kind: Kind::GoAway, stream: 0 }, [0, 0, 4, 9, 0, 0, 0, 0]);
    }

    #[test]
    fn the_preface_has_its_golden_bytes() {
        let preface = Preface { window_open_bytes: 65536, peer_streams_max: 16384 };
        let golden = *b"WLMX\x01\0\0\0\0\x01\0\0\0\0\x40\0";
        assert_eq!(preface.encode(), golden);
        assert_eq!(Preface::decode(golden), Ok(preface));
        assert_eq!(
            Preface::decode(*b"WLMX\x02\0\0\0\0\x01\0\0\0\0\x40\0"),
            Err(MuxError::UnsupportedVersion(2))
        );
        assert_eq!(Preface::decode(*b"GET / HTTP/1.1\r\n"), Err(MuxError::BadPreface));
    }

    #[test]
    fn f_lengths_and_streams_that_do_not_fit_the_kind_are_refused() {
        let refused = [
            [1, 0, 1, 0, 0, 0, 0, 1],
            [0, 0, 0, 0, 0, 0, 0, 1],
            [0, 0, 4, 0, 0, 0, 0, 0],
            [0, 0, 8, 7, 0, 0, 0, 1],
            [0, 0, 7, 7, 0, 0, 0, 0],
            [0xff, 0xff, 0xff, 6, 0, 0, 0, 0],
            [0, 0, 0, 10, 0, 0, 0, 0],
        ];
        for bytes in refused {
            assert!(Header::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn f_arbitrary_headers_never_panic(bytes: [u8; 8], preface: [u8; 16]) {
            if let Ok(header) = Header::decode(bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
            if let Ok(read) = Preface::decode(preface) {
                prop_assert_eq!(read.encode(), preface);
            }
        }
    }
}
