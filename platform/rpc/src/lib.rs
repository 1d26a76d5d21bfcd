//! gRPC over our own TLS: channels for callers, and who is calling for servers; and how a process that trusts nobody
//! yet learns whom to trust.

mod channel;
mod incoming;
mod public;

pub use channel::{CALL_TIMEOUT, channel, channel_through};
pub use incoming::{Caller, RpcStream};
pub use public::{PublicPinsError, public_pins};
