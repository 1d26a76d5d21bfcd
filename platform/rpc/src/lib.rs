//! gRPC over our own TLS: channels for callers, and who is calling for servers; and how a process that trusts nobody
//! yet learns whom to trust.

mod channel;
mod incoming;
mod public;
mod refusal;

pub use channel::{
    CALL_TIMEOUT, PEER_CONNECTION_WINDOW_BYTES, PEER_FRAME_BYTES_MAX, PEER_STREAM_WINDOW_BYTES, channel,
    channel_through, peer_channel,
};
pub use incoming::{Caller, RpcStream};
pub use public::{PublicPinsError, public_pins};
pub use refusal::Channel;
