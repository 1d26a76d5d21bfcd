//! Addresses to bytes, for whatever stands in front of a Wayleave listener: tests and the load generator.

use crate::decode::V2_SIGNATURE;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const COMMAND_LOCAL: u8 = 0x20;
const COMMAND_PROXY: u8 = 0x21;
const FAMILY_UNSPECIFIED: u8 = 0x00;
const FAMILY_TCP4: u8 = 0x11;
const FAMILY_TCP6: u8 = 0x21;

/// A header of version 2 that names `source` and `destination`, or, for `None`, one that says the sender
/// speaks for itself, as in a health check. A pair of mixed families is written as IPv6.
pub fn encode_v2(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let Some((source, destination)) = addresses else {
        return header(COMMAND_LOCAL, FAMILY_UNSPECIFIED, &[], &[]);
    };
    let mut ports = source.port().to_be_bytes().to_vec();
    ports.extend_from_slice(&destination.port().to_be_bytes());
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            header(COMMAND_PROXY, FAMILY_TCP4, &[a.octets(), b.octets()].concat(), &ports)
        }
        (a, b) => {
            let ips = [as_v6(a).octets(), as_v6(b).octets()].concat();
            header(COMMAND_PROXY, FAMILY_TCP6, &ips, &ports)
        }
    }
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn header(command: u8, family: u8, ips: &[u8], ports: &[u8]) -> Vec<u8> {
    let length =
        u16::try_from(ips.len() + ports.len()).expect("two addresses and two ports are 36 bytes at most");
    let mut out = V2_SIGNATURE.to_vec();
    out.extend_from_slice(&[command, family]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(ips);
    out.extend_from_slice(ports);
    out
}
