//! Channels that try several addresses and connect again by themselves.

use crate::refusal::{Channel, Noting, Refusal};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Endpoint, Uri};
use wayleave_net::{
    AddressBook, ConnectError, Severable, ToldError, connect_cluster, connect_tls_straight, connect_told,
    connect_told_straight,
};
use wayleave_runtime::Shutdown;
use wayleave_vocab::HostPort;

/// How long one call may take; streams are not bound by it.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same between peers, where sessions and the routes of all wait for a connection that leads nowhere any more.
const PEER_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const PEER_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
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
    let refusal = Refusal::default();
    let noted = refusal.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let (address, tls, noted) = (address.clone(), tls.clone(), noted.clone());
        async move {
            noted.forget();
            let stream = connect_tls_straight(&address, tls).await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(Noting::new(stream, noted)))
        }
    });
    Channel::new(endpoint().connect_with_connector_lazy(connector), refusal)
}

/// As [`channel`], to a peer, at the address that it told the cluster: with windows and frames for the streams of users.
/// Its connections, and all that runs over them, end when `severed` is requested.
pub fn peer_channel(
    address: HostPort,
    tls: Arc<ClientConfig>,
    severed: Shutdown,
) -> tonic::transport::Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let (address, tls, severed) = (address.clone(), tls.clone(), severed.clone());
        async move {
            let stream = connect_told_straight(&address, tls).await.map_err(io::Error::other)?;
            let severed = async move { severed.requested().await };
            Ok::<_, io::Error>(TokioIo::new(Severable::new(stream, severed)))
        }
    });
    endpoint()
        .http2_keep_alive_interval(PEER_KEEPALIVE_INTERVAL)
        .keep_alive_timeout(PEER_KEEPALIVE_TIMEOUT)
        .initial_stream_window_size(PEER_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(PEER_CONNECTION_WINDOW_BYTES)
        .max_frame_size(PEER_FRAME_BYTES_MAX)
        .connect_with_connector_lazy(connector)
}

/// As [`channel`], to whichever of several addresses answers. They may be proxies behind a balancer which ends TLS: there
/// it goes on inside a WebSocket, over a connection by `outer` (see
/// [`public_client_config`](wayleave_keystore::public_client_config)).
pub fn channel_through(addresses: AddressBook, tls: Arc<ClientConfig>, outer: Arc<ClientConfig>) -> Channel {
    let refusal = Refusal::default();
    let noted = refusal.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let (addresses, tls, outer, noted) = (addresses.clone(), tls.clone(), outer.clone(), noted.clone());
        async move {
            noted.forget();
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
            let stream = addresses.connect(connect).await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(Noting::new(stream, noted)))
        }
    });
    Channel::new(endpoint().connect_with_connector_lazy(connector), refusal)
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://auth.wayleave")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::{Service as _, ServiceExt as _};
    use wayleave_keystore::{HelloSize, probe_config};

    #[tokio::test]
    async fn l_a_peer_at_a_metadata_or_link_local_address_is_not_dialled() {
        for told in ["169.254.169.254:80", "[fe80::1]:3021", "168.63.129.16:80"] {
            let tls = probe_config(b"h2", HelloSize::Usual).unwrap();
            let mut channel = peer_channel(told.parse().unwrap(), tls, Shutdown::new());
            let request = hyper::Request::get("/").body(tonic::body::Body::empty()).unwrap();
            let refused = channel.ready().await.unwrap().call(request).await.unwrap_err();
            let mut reasons = std::iter::successors(Some(&refused as &dyn std::error::Error), |e| e.source());
            assert!(
                reasons.any(|reason| reason.to_string().contains("is not dialled")),
                "{told}: {refused:?}"
            );
        }
    }
}
