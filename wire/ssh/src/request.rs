//! What can be asked over an open connection, typed: channel opens, channel requests, global requests.
//!
//! Every one this implementation knows is a variant; `Unknown` carries the rest, which the core
//! answers with failure by itself.

use crate::encoding::{DecodeError, Put, Reader};
use bytes::Bytes;

/// Longest host name, path, or name of anything, in bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// Longest name of a request or channel type (RFC 4250 section 4.6.1 says 64; extensions are longer).
pub(crate) const NAME_BYTES_MAX: usize = 128;
/// Longest terminal mode string.
const MODES_BYTES_MAX: usize = 4096;
/// Most keys in one `hostkeys-00@openssh.com`.
const HOST_KEYS_MAX: usize = 64;

/// A TCP endpoint as SSH names one: a host name, an address or empty, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TcpEndpoint {
    /// As sent: unresolved, unchecked, possibly empty.
    pub host: String,
    /// 0 asks for any port where one is to be listened on.
    pub port: u16,
}

/// A channel to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelOpen {
    /// `session`: a shell, a command or a subsystem. Client to server.
    Session,
    /// `direct-tcpip`: connect to a TCP endpoint. Client to server.
    DirectTcpip {
        /// Where to connect.
        target: TcpEndpoint,
        /// Who connected to the client.
        originator: TcpEndpoint,
    },
    /// `direct-streamlocal@openssh.com`: connect to a Unix socket. Client to server.
    DirectStreamlocal {
        /// The socket.
        path: String,
    },
    /// `forwarded-tcpip`: somebody connected to a forwarded port. Server to client.
    ForwardedTcpip {
        /// The forwarded address, as it was asked for.
        listener: TcpEndpoint,
        /// Who connected.
        originator: TcpEndpoint,
    },
    /// `forwarded-streamlocal@openssh.com`: somebody connected to a forwarded socket. Server to client.
    ForwardedStreamlocal {
        /// The forwarded socket.
        path: String,
    },
    /// `auth-agent@openssh.com`: talk to the client's agent. Server to client.
    AuthAgent,
    /// `x11`: talk to the client's display. Server to client.
    X11 {
        /// The X client.
        originator: TcpEndpoint,
    },
    /// Anything else.
    Unknown {
        /// Its type.
        kind: String,
    },
}

impl ChannelOpen {
    /// The type on the wire.
    pub fn kind(&self) -> &str {
        match self {
            Self::Session => "session",
            Self::DirectTcpip { .. } => "direct-tcpip",
            Self::DirectStreamlocal { .. } => "direct-streamlocal@openssh.com",
            Self::ForwardedTcpip { .. } => "forwarded-tcpip",
            Self::ForwardedStreamlocal { .. } => "forwarded-streamlocal@openssh.com",
            Self::AuthAgent => "auth-agent@openssh.com",
            Self::X11 { .. } => "x11",
            Self::Unknown { kind } => kind,
        }
    }

    /// Whether a client may open it at a server.
    pub(crate) const fn is_for_server(&self) -> bool {
        matches!(self, Self::Session | Self::DirectTcpip { .. } | Self::DirectStreamlocal { .. })
    }

    /// Whether a server may open it at a client.
    pub(crate) const fn is_for_client(&self) -> bool {
        matches!(
            self,
            Self::ForwardedTcpip { .. }
                | Self::ForwardedStreamlocal { .. }
                | Self::AuthAgent
                | Self::X11 { .. }
        )
    }

    pub(crate) fn parse(kind: &str, reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let open = match kind {
            "session" => Self::Session,
            "direct-tcpip" => {
                Self::DirectTcpip { target: endpoint(reader)?, originator: originator(reader)? }
            }
            "direct-streamlocal@openssh.com" => {
                let path = text(reader, "path")?;
                reader.string_max(TEXT_BYTES_MAX, "reserved")?;
                reader.u32()?;
                Self::DirectStreamlocal { path }
            }
            "forwarded-tcpip" => {
                Self::ForwardedTcpip { listener: endpoint(reader)?, originator: originator(reader)? }
            }
            "forwarded-streamlocal@openssh.com" => {
                let path = text(reader, "path")?;
                reader.string_max(TEXT_BYTES_MAX, "reserved")?;
                Self::ForwardedStreamlocal { path }
            }
            "auth-agent@openssh.com" => Self::AuthAgent,
            "x11" => Self::X11 { originator: originator(reader)? },
            _ => return Ok(Self::Unknown { kind: kind.to_owned() }),
        };
        reader.end()?;
        Ok(open)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::DirectTcpip { target: endpoint, originator }
            | Self::ForwardedTcpip { listener: endpoint, originator } => {
                put_endpoint(out, endpoint);
                put_endpoint(out, originator);
            }
            Self::DirectStreamlocal { path } => {
                out.put_string(path.as_bytes());
                out.put_string(b"");
                out.put_uint(0);
            }
            Self::ForwardedStreamlocal { path } => {
                out.put_string(path.as_bytes());
                out.put_string(b"");
            }
            Self::X11 { originator } => put_endpoint(out, originator),
            Self::Session | Self::AuthAgent | Self::Unknown { .. } => {}
        }
    }
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TerminalSize {
    /// Width in characters.
    pub columns: u32,
    /// Height in characters.
    pub rows: u32,
    /// Width in pixels, 0 when unknown.
    pub width_pixels: u32,
    /// Height in pixels, 0 when unknown.
    pub height_pixels: u32,
}

/// Something asked of one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelRequest {
    /// `pty-req`: a terminal for what is started next.
    Pty {
        /// Value of `TERM`.
        term: String,
        /// Its size.
        size: TerminalSize,
        /// Encoded modes (RFC 4254 section 8); see [`terminal_modes`].
        modes: Bytes,
    },
    /// `shell`: start the login shell.
    Shell,
    /// `exec`: start a command.
    Exec {
        /// The command line, for the login shell to interpret; any bytes but NUL.
        command: Bytes,
    },
    /// `subsystem`: start a named service such as `sftp`.
    Subsystem {
        /// Its name.
        name: String,
    },
    /// `env`: a variable for what is started next.
    Env {
        /// Its name.
        name: String,
        /// Its value, any bytes.
        value: Bytes,
    },
    /// `window-change`: the terminal was resized.
    WindowChange {
        /// The new size.
        size: TerminalSize,
    },
    /// `signal`: send a signal to what runs.
    Signal {
        /// Its name without `SIG`.
        name: String,
    },
    /// `exit-status`: what ran has ended by itself.
    ExitStatus {
        /// Its status.
        status: u32,
    },
    /// `exit-signal`: what ran was ended by a signal.
    ExitSignal {
        /// Its name without `SIG`.
        signal: String,
        /// Whether it dumped core.
        core_dumped: bool,
        /// Text for people.
        message: String,
    },
    /// `auth-agent-req@openssh.com`: offer the client's agent to what is started next.
    AuthAgent,
    /// `x11-req`: offer the client's display to what is started next.
    X11 {
        /// Only one connection.
        is_single_connection: bool,
        /// Such as `MIT-MAGIC-COOKIE-1`.
        protocol: String,
        /// In hexadecimal.
        cookie: String,
        /// The screen number.
        screen: u32,
    },
    /// `eow@openssh.com`: the peer reads no more of this channel.
    EndOfWrite,
    /// `xon-xoff`: whether the client may do flow control itself.
    XonXoff {
        /// It may.
        client_can_do: bool,
    },
    /// `break` (RFC 4335).
    Break {
        /// Its length.
        milliseconds: u32,
    },
    /// `keepalive@openssh.com`; the core answers it.
    Keepalive,
    /// Anything else.
    Unknown {
        /// Its name.
        name: String,
        /// What follows the name, undecoded.
        data: Bytes,
    },
}

impl ChannelRequest {
    /// The name on the wire.
    pub fn name(&self) -> &str {
        match self {
            Self::Pty { .. } => "pty-req",
            Self::Shell => "shell",
            Self::Exec { .. } => "exec",
            Self::Subsystem { .. } => "subsystem",
            Self::Env { .. } => "env",
            Self::WindowChange { .. } => "window-change",
            Self::Signal { .. } => "signal",
            Self::ExitStatus { .. } => "exit-status",
            Self::ExitSignal { .. } => "exit-signal",
            Self::AuthAgent => "auth-agent-req@openssh.com",
            Self::X11 { .. } => "x11-req",
            Self::EndOfWrite => "eow@openssh.com",
            Self::XonXoff { .. } => "xon-xoff",
            Self::Break { .. } => "break",
            Self::Keepalive => "keepalive@openssh.com",
            Self::Unknown { name, .. } => name,
        }
    }

    pub(crate) fn parse(name: &str, reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let request = match name {
            "pty-req" => Self::Pty {
                term: text(reader, "terminal name")?,
                size: size(reader)?,
                modes: Bytes::copy_from_slice(reader.string_max(MODES_BYTES_MAX, "modes")?),
            },
            "shell" => Self::Shell,
            "exec" => Self::Exec { command: without_nul(reader.string()?)? },
            "subsystem" => Self::Subsystem { name: text(reader, "subsystem")? },
            "env" => {
                Self::Env { name: text(reader, "variable name")?, value: without_nul(reader.string()?)? }
            }
            "window-change" => Self::WindowChange { size: size(reader)? },
            "signal" => Self::Signal { name: text(reader, "signal")? },
            "exit-status" => Self::ExitStatus { status: reader.u32()? },
            "exit-signal" => exit_signal(reader)?,
            "auth-agent-req@openssh.com" => Self::AuthAgent,
            "x11-req" => Self::X11 {
                is_single_connection: reader.bool()?,
                protocol: text(reader, "X11 protocol")?,
                cookie: text(reader, "X11 cookie")?,
                screen: reader.u32()?,
            },
            "eow@openssh.com" => Self::EndOfWrite,
            "xon-xoff" => Self::XonXoff { client_can_do: reader.bool()? },
            "break" => Self::Break { milliseconds: reader.u32()? },
            "keepalive@openssh.com" => return Ok(Self::Keepalive),
            _ => {
                let data = Bytes::copy_from_slice(reader.rest());
                return Ok(Self::Unknown { name: name.to_owned(), data });
            }
        };
        reader.end()?;
        Ok(request)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Pty { term, size, modes } => {
                out.put_string(term.as_bytes());
                put_size(out, size);
                out.put_string(modes);
            }
            Self::Exec { command } => out.put_string(command),
            Self::Subsystem { name } | Self::Signal { name } => out.put_string(name.as_bytes()),
            Self::Env { name, value } => {
                out.put_string(name.as_bytes());
                out.put_string(value);
            }
            Self::WindowChange { size } => put_size(out, size),
            Self::ExitStatus { status } => out.put_uint(*status),
            Self::ExitSignal { signal, core_dumped, message } => {
                out.put_string(signal.as_bytes());
                out.put_bool(*core_dumped);
                out.put_string(message.as_bytes());
                out.put_string(b"");
            }
            Self::X11 { is_single_connection, protocol, cookie, screen } => {
                out.put_bool(*is_single_connection);
                out.put_string(protocol.as_bytes());
                out.put_string(cookie.as_bytes());
                out.put_uint(*screen);
            }
            Self::XonXoff { client_can_do } => out.put_bool(*client_can_do),
            Self::Break { milliseconds } => out.put_uint(*milliseconds),
            Self::Unknown { data, .. } => out.put_raw(data),
            Self::Shell | Self::AuthAgent | Self::EndOfWrite | Self::Keepalive => {}
        }
    }
}

/// Something asked of the whole connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GlobalRequest {
    /// `tcpip-forward`: listen on this endpoint. Port 0 asks for any; the answer says which.
    TcpipForward {
        /// Where to listen.
        listener: TcpEndpoint,
    },
    /// `cancel-tcpip-forward`.
    CancelTcpipForward {
        /// As it was asked for.
        listener: TcpEndpoint,
    },
    /// `streamlocal-forward@openssh.com`: listen on this Unix socket.
    StreamlocalForward {
        /// The socket.
        path: String,
    },
    /// `cancel-streamlocal-forward@openssh.com`.
    CancelStreamlocalForward {
        /// As it was asked for.
        path: String,
    },
    /// `keepalive@openssh.com`; the core answers it.
    Keepalive,
    /// `hostkeys-00@openssh.com`: further keys of the host.
    HostKeys {
        /// Public key blobs, unverified.
        keys: Vec<Bytes>,
    },
    /// `no-more-sessions@openssh.com`; the core enforces it.
    NoMoreSessions,
    /// Anything else.
    Unknown {
        /// Its name.
        name: String,
        /// What follows the name, undecoded.
        data: Bytes,
    },
}

impl GlobalRequest {
    /// The name on the wire.
    pub fn name(&self) -> &str {
        match self {
            Self::TcpipForward { .. } => "tcpip-forward",
            Self::CancelTcpipForward { .. } => "cancel-tcpip-forward",
            Self::StreamlocalForward { .. } => "streamlocal-forward@openssh.com",
            Self::CancelStreamlocalForward { .. } => "cancel-streamlocal-forward@openssh.com",
            Self::Keepalive => "keepalive@openssh.com",
            Self::HostKeys { .. } => "hostkeys-00@openssh.com",
            Self::NoMoreSessions => "no-more-sessions@openssh.com",
            Self::Unknown { name, .. } => name,
        }
    }

    pub(crate) fn parse(name: &str, reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let request = match name {
            "tcpip-forward" => Self::TcpipForward { listener: endpoint(reader)? },
            "cancel-tcpip-forward" => Self::CancelTcpipForward { listener: endpoint(reader)? },
            "streamlocal-forward@openssh.com" => Self::StreamlocalForward { path: text(reader, "path")? },
            "cancel-streamlocal-forward@openssh.com" => {
                Self::CancelStreamlocalForward { path: text(reader, "path")? }
            }
            "keepalive@openssh.com" => return Ok(Self::Keepalive),
            "hostkeys-00@openssh.com" => {
                let mut keys = Vec::new();
                while !reader.is_empty() {
                    if keys.len() == HOST_KEYS_MAX {
                        return Err(DecodeError::TooLong("host keys"));
                    }
                    keys.push(Bytes::copy_from_slice(reader.string()?));
                }
                Self::HostKeys { keys }
            }
            "no-more-sessions@openssh.com" => Self::NoMoreSessions,
            _ => {
                let data = Bytes::copy_from_slice(reader.rest());
                return Ok(Self::Unknown { name: name.to_owned(), data });
            }
        };
        reader.end()?;
        Ok(request)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::TcpipForward { listener } | Self::CancelTcpipForward { listener } => {
                put_endpoint(out, listener);
            }
            Self::StreamlocalForward { path } | Self::CancelStreamlocalForward { path } => {
                out.put_string(path.as_bytes());
            }
            Self::HostKeys { keys } => keys.iter().for_each(|key| out.put_string(key)),
            Self::Unknown { data, .. } => out.put_raw(data),
            Self::Keepalive | Self::NoMoreSessions => {}
        }
    }
}

/// Decodes the modes of a `pty-req`: pairs of opcode and value, up to the end marker.
///
/// Opcodes from 160 on have no defined value: decoding stops there, as RFC 4254 section 8 says.
pub fn terminal_modes(modes: &[u8]) -> Vec<(u8, u32)> {
    let mut reader = Reader::new(modes);
    let mut pairs = Vec::new();
    while let Ok(opcode @ 1..160) = reader.u8() {
        let Ok(value) = reader.u32() else { break };
        pairs.push((opcode, value));
    }
    pairs
}

/// Encodes modes for [`ChannelRequest::Pty`].
pub fn encode_terminal_modes(pairs: &[(u8, u32)]) -> Bytes {
    let mut out = Vec::with_capacity(pairs.len() * 5 + 1);
    for (opcode, value) in pairs {
        out.put_byte(*opcode);
        out.put_uint(*value);
    }
    out.put_byte(0);
    out.into()
}

fn exit_signal(reader: &mut Reader<'_>) -> Result<ChannelRequest, DecodeError> {
    let signal = text(reader, "signal")?;
    let core_dumped = reader.bool()?;
    let message = String::from_utf8_lossy(reader.string_max(TEXT_BYTES_MAX, "message")?).into_owned();
    reader.string_max(TEXT_BYTES_MAX, "language")?;
    Ok(ChannelRequest::ExitSignal { signal, core_dumped, message })
}

fn text(reader: &mut Reader<'_>, what: &'static str) -> Result<String, DecodeError> {
    reader.text(TEXT_BYTES_MAX, what).map(str::to_owned)
}

fn without_nul(bytes: &[u8]) -> Result<Bytes, DecodeError> {
    if bytes.contains(&0) {
        return Err(DecodeError::Invalid("NUL byte"));
    }
    Ok(Bytes::copy_from_slice(bytes))
}

fn endpoint(reader: &mut Reader<'_>) -> Result<TcpEndpoint, DecodeError> {
    let host = text(reader, "host")?;
    let port = u16::try_from(reader.u32()?).map_err(|_| DecodeError::Invalid("port"))?;
    Ok(TcpEndpoint { host, port })
}

/// The originator is only told to people: a port out of range (some clients send -1) counts as 0.
fn originator(reader: &mut Reader<'_>) -> Result<TcpEndpoint, DecodeError> {
    let host = text(reader, "originator")?;
    Ok(TcpEndpoint { host, port: u16::try_from(reader.u32()?).unwrap_or(0) })
}

fn put_endpoint(out: &mut Vec<u8>, endpoint: &TcpEndpoint) {
    out.put_string(endpoint.host.as_bytes());
    out.put_uint(u32::from(endpoint.port));
}

fn size(reader: &mut Reader<'_>) -> Result<TerminalSize, DecodeError> {
    Ok(TerminalSize {
        columns: reader.u32()?,
        rows: reader.u32()?,
        width_pixels: reader.u32()?,
        height_pixels: reader.u32()?,
    })
}

fn put_size(out: &mut Vec<u8>, size: &TerminalSize) {
    for value in [size.columns, size.rows, size.width_pixels, size.height_pixels] {
        out.put_uint(value);
    }
}
