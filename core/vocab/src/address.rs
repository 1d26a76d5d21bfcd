//! Network addresses as people write them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// `host:port`; the host is a DNS name, an IPv4 address or an IPv6 address (in brackets when written).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// Text that is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an address of the form host:port ({problem})")]
pub struct ParseHostPortError {
    /// What was given, cut to 64 characters.
    pub given: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl HostPort {
    /// Reads `host:port`, or `host` alone with `default_port`. A leading `https://` and a trailing `/` are dropped.
    pub fn parse(s: &str, default_port: Option<u16>) -> Result<Self, ParseHostPortError> {
        let fail = |problem| ParseHostPortError { given: s.chars().take(64).collect(), problem };
        let rest = s.trim();
        let rest = rest.strip_prefix("https://").unwrap_or(rest);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = split(rest).map_err(fail)?;
        let port = match port {
            Some(port) => {
                port.parse::<u16>().map_err(|_| fail("the port is not a number from 0 to 65535"))?
            }
            None => default_port.ok_or_else(|| fail("the port is missing"))?,
        };
        let valid = host.parse::<IpAddr>().is_ok()
            || host.len() <= 253
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
                && !host.starts_with('-');
        if host.is_empty() || !valid {
            return Err(fail("the host is neither a name nor an IP address"));
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// The address of a socket.
    pub fn from_socket(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }

    /// The host without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same host with another port.
    pub fn with_port(&self, port: u16) -> Self {
        Self { host: self.host.clone(), port }
    }
}

fn split(s: &str) -> Result<(&str, Option<&str>), &'static str> {
    if let Some(rest) = s.strip_prefix('[') {
        let (host, tail) = rest.split_once(']').ok_or("the bracket is not closed")?;
        host.parse::<Ipv6Addr>().map_err(|_| "no IPv6 address in the brackets")?;
        return match tail.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if tail.is_empty() => Ok((host, None)),
            None => Err("something other than a port behind the bracket"),
        };
    }
    if s.matches(':').count() > 1 {
        s.parse::<Ipv6Addr>().map_err(|_| "more than one colon")?;
        return Ok((s, None));
    }
    Ok(match s.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (s, None),
    })
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for HostPort {
    type Err = ParseHostPortError;

    fn from_str(s: &str) -> Result<Self, ParseHostPortError> {
        Self::parse(s, None)
    }
}

impl Serialize for HostPort {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, default_port: Option<u16>, expected: Option<&str>) {
        let got = HostPort::parse(input, default_port).ok().map(|a| a.to_string());
        assert_eq!(got.as_deref(), expected, "{input:?}");
    }

    #[test]
    fn addresses_are_read_in_every_common_form() {
        check("example.com:443", None, Some("example.com:443"));
        check("https://example.com/", Some(443), Some("example.com:443"));
        check("[::1]:3080", None, Some("[::1]:3080"));
        check("::1", Some(22), Some("[::1]:22"));
        check("10.0.0.1", None, None);
        check("host:99999", None, None);
        check("-oProxyCommand:22", None, None);
        check("a b:22", None, None);
        check("[::1", Some(1), None);
    }
}
