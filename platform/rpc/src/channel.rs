//! Channels that try several addresses and connect again by themselves.

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint, Uri};
use wayleave_net::connect_any;
use wayleave_vocab::HostPort;

/// How long one call may take; streams are not bound by it.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// A channel that connects when it is first used, to the first of `addresses` that answers, and again after a loss.
pub fn channel(addresses: Vec<HostPort>, tls: Arc<ClientConfig>) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let (addresses, tls) = (addresses.clone(), tls.clone());
        async move { connect_any(&addresses, tls).await.map(TokioIo::new).map_err(io::Error::other) }
    });
    Endpoint::from_static("http://auth.wayleave")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector_lazy(connector)
}
