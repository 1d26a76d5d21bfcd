//! gRPC over our own TLS: channels for callers, and who is calling for servers.

mod channel;
mod incoming;

pub use channel::{CALL_TIMEOUT, channel, channel_through};
pub use incoming::{Caller, RpcStream};
