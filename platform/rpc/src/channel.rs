//! Channels that try several addresses and connect again by themselves.

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint, Uri};
use wayleave_net::{ClusterStream, ConnectError, connect_any, connect_cluster};
use wayleave_vocab::HostPort;

/// How long one call may take; streams are not bound by it.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// A channel that connects when it is first used, to the first of `addresses` that answers, and again after a loss.
///
/// It never goes through a WebSocket: see [`channel_through`].
pub fn channel(addresses: Vec<HostPort>, tls: Arc<ClientConfig>) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let (addresses, tls) = (addresses.clone(), tls.clone());
        async move { connect_any(&addresses, tls).await.map(TokioIo::new).map_err(io::Error::other) }
    });
    endpoint().connect_with_connector_lazy(connector)
}

/// As [`channel`], for addresses that may be proxies behind a balancer which ends TLS: there it goes on inside a
/// WebSocket, over a connection by `outer` (see [`public_client_config`](wayleave_keystore::public_client_config)).
pub fn channel_through(
    addresses: Vec<HostPort>,
    tls: Arc<ClientConfig>,
    outer: Arc<ClientConfig>,
) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let (addresses, tls, outer) = (addresses.clone(), tls.clone(), outer.clone());
        async move { connect_one(&addresses, &tls, &outer).await.map(TokioIo::new).map_err(io::Error::other) }
    });
    endpoint().connect_with_connector_lazy(connector)
}

async fn connect_one(
    addresses: &[HostPort],
    tls: &Arc<ClientConfig>,
    outer: &Arc<ClientConfig>,
) -> Result<ClusterStream, ConnectError> {
    let mut last = ConnectError::NoAddress;
    for address in addresses {
        match connect_cluster(address, tls.clone(), outer).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                tracing::debug!(%address, %error, "an address did not answer");
                last = error;
            }
        }
    }
    Err(last)
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://auth.wayleave")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}
