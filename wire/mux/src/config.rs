//! Limits and timers of one connection.

use std::time::Duration;

/// Which end of the connection this is; decides the parity of stream ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Dialled the connection (an agent): opens odd ids, pings when idle.
    Connector,
    /// Accepted the connection (a proxy): opens even ids.
    Acceptor,
}

/// What one connection may use. Every field has a default in [`Config::default`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Most streams that the peer may have open at once; told to the peer in the preface.
    pub peer_streams_max: u32,
    /// Credit that every stream has from its opening without asking; told to the peer in the preface.
    pub window_open_bytes: u32,
    /// Credit of a stream that has begun to carry data, while [`Config::window_pool_bytes`] lasts.
    pub window_initial_bytes: u32,
    /// Credit that a stream which keeps its window full may grow to.
    pub window_max_bytes: u32,
    /// What all streams together may be granted above `window_open_bytes` each. The peer can make this
    /// side hold at most `streams x window_open_bytes + window_pool_bytes`.
    pub window_pool_bytes: u64,
    /// Most unsent bytes queued in one stream before [`Mux::send`](crate::Mux::send) refuses.
    pub send_queue_bytes: usize,
    /// Longest control message accepted from the peer.
    pub control_bytes_max: u32,
    /// Longest control message taken for sending; what the peer accepts.
    pub control_sent_bytes_max: u32,
    /// Silence after which the connector pings; the acceptor waits half as long again.
    pub keepalive: Duration,
    /// Silence after which the connection is dead.
    pub dead_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            peer_streams_max: 16_384,
            window_open_bytes: 64 * 1024,
            window_initial_bytes: 256 * 1024,
            window_max_bytes: 4 * 1024 * 1024,
            window_pool_bytes: 256 * 1024 * 1024,
            send_queue_bytes: 256 * 1024,
            control_bytes_max: 64 * 1024 * 1024,
            control_sent_bytes_max: 64 * 1024 * 1024,
            keepalive: Duration::from_secs(5),
            dead_after: Duration::from_secs(15),
        }
    }
}
