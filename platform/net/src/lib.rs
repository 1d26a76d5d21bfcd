//! Connections: accepting, recognising, connecting, tunnels, and the seam to protocol adapters.
//!
//! No protocol of a resource is known here, and no rule about who may do what.

mod accept;
mod accept_tls;
mod adapter;
mod addresses;
mod clock;
mod connect;
mod hello;
mod lobby;
mod message;
mod outbound;
mod read_ahead;
mod refused_address;
mod severable;
mod splice;
mod stream;
mod told;
mod tunnel;
mod turnstile;
mod upgrade;

pub use accept::{BindError, accept_loop, bind, tune};
pub use accept_tls::{FailedHandshake, HandshakeError, accept_tls};
pub use adapter::{
    Adapter, Dialed, Dialer, Entry, Hosted, Hosting, Inbound, Known, PublishEntry, ResumptionEvent,
};
pub use addresses::{AddressBook, CONNECT_STAGGER, LEARNED_ADDRESSES_MAX, connect_first};
pub use clock::{ClockComplaint, clock_complaint};
pub use connect::{
    ClusterStream, ConnectError, connect_cluster, connect_tcp, connect_tls, connect_tls_straight, tls_over,
};
pub use hello::{HELLO_BYTES_MAX, HELLO_TIMEOUT, Hello, HelloError, read_hello, read_proxy_header};
pub use lobby::{Admission, Lobby, Slots};
pub use message::{DIAL_MESSAGE_TIMEOUT, MessageError, read_dial_request, read_message, write_message};
pub use outbound::{HttpProxyError, Outbound, OutboundError};
pub use read_ahead::ReadAhead;
pub use refused_address::address_refusal;
pub use severable::Severable;
pub use splice::splice;
pub use stream::{BoxStream, Rewind, Stream};
pub use told::{ToldError, connect_told, connect_told_straight};
pub use tunnel::{Tunnel, TunnelClosed, TunnelDriver, TunnelEvent, TunnelStream};
pub use turnstile::Turnstile;
pub use upgrade::{
    UPGRADE_PATH, UPGRADE_PING_INTERVAL, UPGRADE_PROTOCOL, UpgradedStream, upgrade_accept_key,
};
