//! Bytes to addresses. Called again with more bytes until the header is complete.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header in bytes that is accepted, fixed part and type-length-value fields included. The format
/// allows 65,551; real ones stay far below this.
pub const HEADER_BYTES_MAX: usize = 4096;

/// Longest line of version 1 in bytes, line end included.
pub const V1_BYTES_MAX: usize = 107;

pub(crate) const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
pub(crate) const V2_FIXED_BYTES: usize = 16;
const V1_PREFIX: &[u8] = b"PROXY ";
/// `PROXY UNKNOWN` and the line end: no header of either version is shorter.
const SHORTEST_BYTES: usize = 15;

/// What [`parse`] found at the start of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A whole header.
    Complete {
        /// The client as the load balancer saw it. `None` when the load balancer speaks for itself (a health
        /// check) or does not know: the address of the connection itself counts then. An IPv4 address is
        /// never in its IPv6-mapped form.
        source: Option<SocketAddr>,
        /// The address that the client connected to; `None` exactly when `source` is.
        destination: Option<SocketAddr>,
        /// Length of the header in bytes: the connection's own bytes begin there.
        consumed: usize,
    },
    /// A header may have begun and goes on.
    NeedMore {
        /// Bytes, counted from the start of the header, without which the next call cannot end. More than
        /// were given, and never more than the whole header has.
        at_least: usize,
    },
}

/// Bytes that are no PROXY header this end accepts. The connection cannot go on: what follows is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderError {
    /// The connection starts with something else.
    #[error("no PROXY protocol header at the start of the connection")]
    Missing,
    /// The header is, or says it is, longer than is accepted.
    #[error("a PROXY protocol header of {header_bytes} bytes or more, at most {header_bytes_max}")]
    TooLong {
        /// How long it is at least.
        header_bytes: usize,
        /// The bound that it breaks.
        header_bytes_max: usize,
    },
    /// A version other than 1 and 2.
    #[error("PROXY protocol version {0}, supported are 1 and 2")]
    Version(u8),
    /// A command other than LOCAL and PROXY.
    #[error("PROXY protocol command {0}, supported are LOCAL (0) and PROXY (1)")]
    Command(u8),
    /// An address family and transport that cannot be behind a TCP connection with an IP address.
    #[error("PROXY protocol family {0:#04x}, supported are TCP over IPv4 (0x11) and over IPv6 (0x21)")]
    Family(u8),
    /// The header contradicts its own format.
    #[error("a malformed PROXY protocol header: {0}")]
    Malformed(&'static str),
}

/// Reads a header from the first bytes of a connection. Bytes behind the header are left alone.
///
/// # Errors
/// As soon as the bytes cannot become an acceptable header, however few they are; see [`ProxyHeaderError`].
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    if begins_like(bytes, &V2_SIGNATURE) {
        parse_v2(bytes)
    } else if begins_like(bytes, V1_PREFIX) {
        parse_v1(bytes)
    } else {
        Err(ProxyHeaderError::Missing)
    }
}

/// True while the bytes agree with the signature as far as both go; so also for no bytes at all.
fn begins_like(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(a, b)| a == b)
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    if bytes.is_empty() {
        return Ok(Parsed::NeedMore { at_least: SHORTEST_BYTES });
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED_BYTES>() else {
        return Ok(Parsed::NeedMore { at_least: V2_FIXED_BYTES });
    };
    let [.., version_command, family, length_high, length_low] = *fixed;
    if version_command >> 4 != 2 {
        return Err(ProxyHeaderError::Version(version_command >> 4));
    }
    let local = match version_command & 0x0f {
        0 => true,
        1 => false,
        command => return Err(ProxyHeaderError::Command(command)),
    };
    let body_bytes = usize::from(u16::from_be_bytes([length_high, length_low]));
    let consumed = V2_FIXED_BYTES + body_bytes;
    if consumed > HEADER_BYTES_MAX {
        return Err(ProxyHeaderError::TooLong { header_bytes: consumed, header_bytes_max: HEADER_BYTES_MAX });
    }
    let address_bytes = match family {
        _ if local => 0,
        0x00 => 0,
        0x11 => V4_ADDRESS_BYTES,
        0x21 => V6_ADDRESS_BYTES,
        other => return Err(ProxyHeaderError::Family(other)),
    };
    if body_bytes < address_bytes {
        return Err(ProxyHeaderError::Malformed("too short for its addresses"));
    }
    let Some(body) = rest.get(..body_bytes) else {
        return Ok(Parsed::NeedMore { at_least: consumed });
    };
    let addresses = match address_bytes {
        V4_ADDRESS_BYTES => v4_addresses(body),
        V6_ADDRESS_BYTES => v6_addresses(body),
        _ => None,
    };
    Ok(complete(addresses, consumed))
}

const V4_ADDRESS_BYTES: usize = 12;
const V6_ADDRESS_BYTES: usize = 36;

fn v4_addresses(body: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (source, rest) = body.split_first_chunk::<4>()?;
    let (destination, rest) = rest.split_first_chunk::<4>()?;
    let (source_port, destination_port) = ports(rest)?;
    let address = |ip: [u8; 4], port| SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port);
    Some((address(*source, source_port), address(*destination, destination_port)))
}

fn v6_addresses(body: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (source, rest) = body.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    let (source_port, destination_port) = ports(rest)?;
    let address = |ip: [u8; 16], port| SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port);
    Some((address(*source, source_port), address(*destination, destination_port)))
}

fn ports(bytes: &[u8]) -> Option<(u16, u16)> {
    let (&[a, b, c, d], _) = bytes.split_first_chunk::<4>()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    let Some(end) = bytes.iter().take(V1_BYTES_MAX).position(|&b| b == b'\n') else {
        if bytes.len() >= V1_BYTES_MAX {
            return Err(ProxyHeaderError::TooLong {
                header_bytes: bytes.len(),
                header_bytes_max: V1_BYTES_MAX,
            });
        }
        let missing = if bytes.last() == Some(&b'\r') { 1 } else { 2 };
        return Ok(Parsed::NeedMore {
            at_least: (bytes.len() + missing).clamp(SHORTEST_BYTES, V1_BYTES_MAX),
        });
    };
    let line = bytes
        .get(..end)
        .and_then(|line| line.strip_suffix(b"\r"))
        .ok_or(ProxyHeaderError::Malformed("the line does not end in CR LF"))?;
    let line = std::str::from_utf8(line).map_err(|_| ProxyHeaderError::Malformed("the line is not text"))?;
    Ok(complete(v1_addresses(line)?, end + 1))
}

fn v1_addresses(line: &str) -> Result<Option<(SocketAddr, SocketAddr)>, ProxyHeaderError> {
    use ProxyHeaderError::Malformed;
    let mut words = line.split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    match family {
        // Whatever stands behind UNKNOWN is to be ignored (section 2.1).
        "UNKNOWN" => return Ok(None),
        "TCP4" | "TCP6" => {}
        _ => return Err(Malformed("the family is not TCP4, TCP6 or UNKNOWN")),
    }
    let mut word = || words.next().ok_or(Malformed("a field is missing"));
    let (source, destination) = (word()?, word()?);
    let (source_port, destination_port) = (word()?, word()?);
    if words.next().is_some() {
        return Err(Malformed("there is more behind the ports"));
    }
    let address = |text: &str| match family {
        "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        _ => text.parse::<Ipv6Addr>().ok().map(|ip| ip.to_canonical()),
    };
    let source = address(source).ok_or(Malformed("the source is no address of its family"))?;
    let destination = address(destination).ok_or(Malformed("the destination is no address of its family"))?;
    let source = SocketAddr::new(source, decimal_port(source_port)?);
    Ok(Some((source, SocketAddr::new(destination, decimal_port(destination_port)?))))
}

/// A port as the format writes it: digits only, no sign, no leading zero.
fn decimal_port(text: &str) -> Result<u16, ProxyHeaderError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let plain = digits && (text == "0" || !text.starts_with('0'));
    let port = if plain { text.parse().ok() } else { None };
    port.ok_or(ProxyHeaderError::Malformed("a port is not a number from 0 to 65535"))
}

fn complete(addresses: Option<(SocketAddr, SocketAddr)>, consumed: usize) -> Parsed {
    let (source, destination) = addresses.unzip();
    Parsed::Complete { source, destination, consumed }
}
