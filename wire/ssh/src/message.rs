//! Message numbers (RFC 4250 section 4.1) and reason codes.

pub(crate) const DISCONNECT: u8 = 1;
pub(crate) const IGNORE: u8 = 2;
pub(crate) const UNIMPLEMENTED: u8 = 3;
pub(crate) const DEBUG: u8 = 4;
pub(crate) const SERVICE_REQUEST: u8 = 5;
pub(crate) const SERVICE_ACCEPT: u8 = 6;
pub(crate) const EXT_INFO: u8 = 7;
pub(crate) const KEXINIT: u8 = 20;
pub(crate) const NEWKEYS: u8 = 21;
pub(crate) const KEX_ECDH_INIT: u8 = 30;
pub(crate) const KEX_ECDH_REPLY: u8 = 31;
pub(crate) const USERAUTH_REQUEST: u8 = 50;
pub(crate) const USERAUTH_FAILURE: u8 = 51;
pub(crate) const USERAUTH_SUCCESS: u8 = 52;
pub(crate) const USERAUTH_BANNER: u8 = 53;
pub(crate) const USERAUTH_PK_OK: u8 = 60;
pub(crate) const GLOBAL_REQUEST: u8 = 80;
pub(crate) const REQUEST_SUCCESS: u8 = 81;
pub(crate) const REQUEST_FAILURE: u8 = 82;
pub(crate) const CHANNEL_OPEN: u8 = 90;
pub(crate) const CHANNEL_OPEN_CONFIRMATION: u8 = 91;
pub(crate) const CHANNEL_OPEN_FAILURE: u8 = 92;
pub(crate) const CHANNEL_WINDOW_ADJUST: u8 = 93;
pub(crate) const CHANNEL_DATA: u8 = 94;
pub(crate) const CHANNEL_EXTENDED_DATA: u8 = 95;
pub(crate) const CHANNEL_EOF: u8 = 96;
pub(crate) const CHANNEL_CLOSE: u8 = 97;
pub(crate) const CHANNEL_REQUEST: u8 = 98;
pub(crate) const CHANNEL_SUCCESS: u8 = 99;
pub(crate) const CHANNEL_FAILURE: u8 = 100;

/// First number of the authentication protocol; the transport owns everything below.
pub(crate) const TRANSPORT_END: u8 = 50;
/// First number of the connection protocol.
pub(crate) const CONNECTION_START: u8 = 80;

/// Why a connection ends (RFC 4250 section 4.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisconnectReason {
    /// 2: the peer broke the protocol.
    ProtocolError,
    /// 3: no common algorithm, or the exchange did not verify.
    KeyExchangeFailed,
    /// 5: a packet did not authenticate.
    MacError,
    /// 7: the service asked for is not there.
    ServiceNotAvailable,
    /// 8: the version line is not SSH 2.0.
    ProtocolVersionNotSupported,
    /// 9: the host key was refused.
    HostKeyNotVerifiable,
    /// 10: the peer went silent or the stream broke.
    ConnectionLost,
    /// 11: orderly end.
    ByApplication,
    /// 12: too many of something.
    TooManyConnections,
    /// 14: nothing left to authenticate with.
    NoMoreAuthMethodsAvailable,
    /// Any other code, as received.
    Other(u32),
}

impl DisconnectReason {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        match self {
            Self::ProtocolError => 2,
            Self::KeyExchangeFailed => 3,
            Self::MacError => 5,
            Self::ServiceNotAvailable => 7,
            Self::ProtocolVersionNotSupported => 8,
            Self::HostKeyNotVerifiable => 9,
            Self::ConnectionLost => 10,
            Self::ByApplication => 11,
            Self::TooManyConnections => 12,
            Self::NoMoreAuthMethodsAvailable => 14,
            Self::Other(code) => code,
        }
    }

    pub(crate) const fn from_code(code: u32) -> Self {
        match code {
            2 => Self::ProtocolError,
            3 => Self::KeyExchangeFailed,
            5 => Self::MacError,
            7 => Self::ServiceNotAvailable,
            8 => Self::ProtocolVersionNotSupported,
            9 => Self::HostKeyNotVerifiable,
            10 => Self::ConnectionLost,
            11 => Self::ByApplication,
            12 => Self::TooManyConnections,
            14 => Self::NoMoreAuthMethodsAvailable,
            other => Self::Other(other),
        }
    }
}
