//! The public port: recognises each connection and hands it to who serves it.

use crate::agent_tunnel;
use crate::client_dial;
use crate::config::ProxyProtocol;
use crate::metrics::Protocol;
use crate::service::Shared;
use crate::upgrade::{self, Agreed};
use axum::body::Body;
use futures::future::BoxFuture;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use wayleave_api::{ALPN_AUTH, ALPN_DIAL, ALPN_TUNNEL};
use wayleave_net::{
    Admission, BoxStream, HELLO_TIMEOUT, Hello, ReadAhead, Rewind, Turnstile, UPGRADE_PATH, UpgradedStream,
    accept_tls, read_hello, read_proxy_header,
};
use wayleave_runtime::Shutdown;

/// How long a client may take to send the head of an HTTP request.
const HTTP_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const HTTP_BUFFER_BYTES: usize = 32 * 1024;

/// What a connection on the public port is.
#[derive(Debug, PartialEq, Eq)]
enum Destination {
    Auth,
    Tunnel,
    Dial,
    Web,
}

/// One parse, one decision: the first protocol in the client's list that is served here.
fn route(hello: &Hello) -> Destination {
    for protocol in &hello.alpn {
        match protocol.as_slice() {
            ALPN_AUTH => return Destination::Auth,
            ALPN_TUNNEL => return Destination::Tunnel,
            ALPN_DIAL => return Destination::Dial,
            _ => {}
        }
    }
    Destination::Web
}

/// Serves one connection to its end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    admission: Admission,
    shutdown: Shutdown,
) {
    let arrived = |client, depth| Arrived { client, depth, admission: admission.clone() };
    let served = match &shared.config.proxy_protocol {
        ProxyProtocol::Off => {
            serve_hello(&shared, Box::new(ReadAhead::new(stream)), arrived(peer, Depth::Outer), shutdown)
                .await
        }
        ProxyProtocol::RequiredFrom(networks) if !contains(networks, peer.ip()) => {
            tracing::debug!(%peer, "not a load balancer of proxy_protocol_from: closed");
            return;
        }
        ProxyProtocol::RequiredFrom(_) => match Box::pin(read_proxy_header(stream)).await {
            Ok((source, stream)) => {
                let arrived = arrived(source.unwrap_or(peer), Depth::Outer);
                serve_hello(&shared, Box::new(ReadAhead::new(stream)), arrived, shutdown).await
            }
            Err(error) => Err(error.into()),
        },
    };
    if let Err(error) = served {
        shared.metrics.refused.increment();
        tracing::debug!(%peer, error = &*error as &dyn std::error::Error, "a connection was closed");
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where a TLS connection runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// On the public port itself.
    Outer,
    /// Inside a WebSocket; there is no further one inside that.
    Upgraded,
}

/// A connection about which nothing is known yet but this.
struct Arrived {
    client: SocketAddr,
    depth: Depth,
    admission: Admission,
}

fn serve_hello(
    shared: &Arc<Shared>,
    stream: BoxStream,
    arrived: Arrived,
    shutdown: Shutdown,
) -> BoxFuture<'_, Result<(), Failure>> {
    Box::pin(async move {
        let Arrived { client, depth, admission } = arrived;
        let (hello, stream) = Box::pin(read_hello(stream)).await?;
        match (route(&hello), depth) {
            // Who that is, only Auth will know: to this proxy it stays a stranger.
            (Destination::Auth, _) => {
                shared.metrics.connection(Protocol::Auth);
                Ok(Box::pin(shared.passthrough.carry(stream, client)).await?)
            }
            (Destination::Tunnel, _) => {
                shared.metrics.connection(Protocol::Tunnel);
                let tls = handshake(shared, &shared.tunnel_turns, &shared.tunnel_tls, stream).await?;
                Ok(Box::pin(agent_tunnel::serve(shared, tls, client, &admission, shutdown)).await?)
            }
            (Destination::Dial, _) => {
                shared.metrics.connection(Protocol::Dial);
                let tls = handshake(shared, &shared.client_turns, &shared.dial_tls, stream).await?;
                Ok(Box::pin(client_dial::serve(shared, tls, client, &admission, shutdown)).await?)
            }
            (Destination::Web, Depth::Outer) => {
                shared.metrics.connection(Protocol::Web);
                let tls = handshake(shared, &shared.client_turns, &shared.web_tls, stream).await?;
                let served = Box::pin(serve_http(shared, tls, client, shutdown.clone()));
                let Some(agreed) = served.await? else {
                    return Ok(());
                };
                let upgraded = tokio::time::timeout(HELLO_TIMEOUT, agreed.stream);
                let upgraded = upgraded.await.map_err(|_| "the upgrade did not come about in time")??;
                let stream = UpgradedStream::accepted(TokioIo::new(upgraded)).await;
                let arrived = Arrived { client: agreed.client, depth: Depth::Upgraded, admission };
                serve_hello(shared, Box::new(stream), arrived, shutdown).await
            }
            (Destination::Web, Depth::Upgraded) => {
                Err("inside a WebSocket there are only tunnels, dials and Auth".into())
            }
        }
    })
}

/// In a box, because it is large and is handed from task to task, each of which would have room for one of its own.
pub(crate) type ServerTls = Box<tokio_rustls::server::TlsStream<Rewind<BoxStream>>>;

/// Boxed, so that a connection that lives for weeks has no room for its handshake.
fn handshake<'a>(
    shared: &'a Shared,
    turns: &'a Turnstile,
    config: &'a Arc<rustls::ServerConfig>,
    stream: Rewind<BoxStream>,
) -> BoxFuture<'a, Result<ServerTls, Failure>> {
    let arrived = Instant::now();
    let accept = move |stream| async move {
        let began = Instant::now();
        shared.metrics.handshake_waits.observe_since(arrived);
        let accepted = accept_tls(&TlsAcceptor::from(config.clone()), stream, HELLO_TIMEOUT).await;
        match &accepted {
            Ok(_) => shared.metrics.handshakes.observe_since(began),
            Err(_) => shared.metrics.handshakes_failed.increment(),
        }
        accepted
    };
    Box::pin(async move {
        // Others need not wait until one that was refused has read why.
        match turns.pass(stream, accept).await? {
            Ok(tls) => Ok(Box::new(tls)),
            Err(failed) => Err(failed.part().await.into()),
        }
    })
}

/// Serves HTTP requests until the connection ends or is to become something else.
async fn serve_http(
    shared: &Shared,
    tls: ServerTls,
    client: SocketAddr,
    shutdown: Shutdown,
) -> Result<Option<Agreed>, Failure> {
    let agreed = Arc::new(Mutex::new(None));
    let trust_forwarded_for = shared.trust_x_forwarded_for;
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let (router, agreed) = (shared.rest.clone(), agreed.clone());
        async move {
            if request.uri().path() != UPGRADE_PATH {
                return router.oneshot(request.map(Body::new)).await;
            }
            let (answer, upgrade) = upgrade::answer(request, client, trust_forwarded_for);
            *agreed.lock().unwrap_or_else(PoisonError::into_inner) = upgrade;
            Ok(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP_HEADER_TIMEOUT)
        .max_buf_size(HTTP_BUFFER_BYTES)
        .serve_connection(TokioIo::new(tls), service)
        .with_upgrades();
    tokio::pin!(connection);
    tokio::select! {
        served = connection.as_mut() => served?,
        () = shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await?;
        }
    }
    let agreed = agreed.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok(agreed)
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(alpn: &[&[u8]], expected: Destination) {
        let hello = Hello { server_name: None, alpn: alpn.iter().map(|p| p.to_vec()).collect() };
        assert_eq!(route(&hello), expected, "{alpn:?}");
    }

    #[test]
    fn b_the_first_protocol_that_is_served_decides() {
        check(&[], Destination::Web);
        check(&[b"h2", b"http/1.1"], Destination::Web);
        check(&[b"wayleave-auth/1"], Destination::Auth);
        check(&[b"wayleave-tunnel/1"], Destination::Tunnel);
        check(&[b"x", b"wayleave-dial/1", b"wayleave-auth/1"], Destination::Dial);
        check(&[b"WAYLEAVE-AUTH/1"], Destination::Web);
    }
}
