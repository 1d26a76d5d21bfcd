//! PROXY protocol headers, versions 1 and 2: the line or block that a load balancer puts in front of a
//! connection to say who is at its other end.
//!
//! Pure: bytes in, addresses out. Whether a header is required, allowed or refused from a given neighbour is
//! decided by the listener (`platform/net`), never here. What type-length-value fields say (SNI, checksum,
//! endpoint ids) is not read: they are counted and skipped.
//!
//! Source: "The PROXY protocol, versions 1 & 2", haproxy.org.

mod decode;
mod encode;

pub use decode::{HEADER_BYTES_MAX, Parsed, ProxyHeaderError, V1_BYTES_MAX, parse};
pub use encode::encode_v2;
