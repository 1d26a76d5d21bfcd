//! Channels that try several addresses and connect again by themselves.

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint, Uri};
use wayleave_net::{
    AddressBook, ConnectError, ToldError, connect_cluster, connect_tls_straight, connect_told,
};
use wayleave_vocab::HostPort;

/// How long one call may take; streams are not bound by it.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Window of one stream between peers, both ways.
pub const PEER_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Window of a whole connection between peers: it never binds before its streams do.
pub const PEER_CONNECTION_WINDOW_BYTES: u32 = i32::MAX as u32;
/// Longest frame between peers: a whole message of 64 KiB.
pub const PEER_FRAME_BYTES_MAX: u32 = 64 * 1024;

/// A channel that connects when it is first used, and again after a loss.
///
/// It never goes through a WebSocket or an HTTP proxy: see [`channel_through`].
pub fn channel(address: HostPort, tls: Arc<ClientConfig>) -> Channel {
    connect_lazy(&endpoint(), address, tls)
}

/// As [`channel`], to a peer: with windows and frames for the streams of users.
pub fn peer_channel(address: HostPort, tls: Arc<ClientConfig>) -> Channel {
    let endpoint = endpoint()
        .initial_stream_window_size(PEER_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(PEER_CONNECTION_WINDOW_BYTES)
        .max_frame_size(PEER_FRAME_BYTES_MAX);
    connect_lazy(&endpoint, address, tls)
}

fn connect_lazy(endpoint: &Endpoint, address: HostPort, tls: Arc<ClientConfig>) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let (address, tls) = (address.clone(), tls.clone());
        async move { connect_tls_straight(&address, tls).await.map(TokioIo::new).map_err(io::Error::other) }
    });
    endpoint.connect_with_connector_lazy(connector)
}

/// As [`channel`], to whichever of several addresses answers. They may be proxies behind a balancer which ends TLS: there
/// it goes on inside a WebSocket, over a connection by `outer` (see
/// [`public_client_config`](wayleave_keystore::public_client_config)).
pub fn channel_through(addresses: AddressBook, tls: Arc<ClientConfig>, outer: Arc<ClientConfig>) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let (addresses, tls, outer) = (addresses.clone(), tls.clone(), outer.clone());
        async move {
            let connect = |address: HostPort| {
                let (tls, outer, is_configured) =
                    (tls.clone(), outer.clone(), addresses.is_configured(&address));
                async move {
                    if is_configured {
                        return connect_cluster(&address, tls, &outer).await;
                    }
                    connect_told(&address, tls).await.map_err(|error| match error {
                        ToldError::Connect(error) => error,
                        refused @ ToldError::Refused { .. } => {
                            ConnectError::Tcp { address, source: io::Error::other(refused) }
                        }
                    })
                }
            };
            addresses.connect(connect).await.map(TokioIo::new).map_err(io::Error::other)
        }
    });
    endpoint().connect_with_connector_lazy(connector)
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://auth.wayleave")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}
