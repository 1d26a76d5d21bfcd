//! The way out through an HTTP proxy: what `HTTPS_PROXY` and `NO_PROXY` say, and the request `CONNECT` with its answer.
//!
//! Pure: text and bytes in, decisions and bytes out. Reading the environment, connecting and waiting are
//! `platform/net`'s. What runs inside the connection is always TLS to the other end: the proxy is trusted with nothing.
//!
//! Source: RFC 9110, section 9.3.6 (CONNECT); RFC 7617 (Basic). `NO_PROXY` is read as the Go standard library does.

mod answer;
mod bypass;
mod setting;

pub use answer::{ANSWER_BYTES_MAX, AnswerError, connect_request, parse_answer};
pub use bypass::Bypass;
pub use setting::{HttpProxy, ParseHttpProxyError};
