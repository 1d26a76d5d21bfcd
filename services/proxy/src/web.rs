//! The public port: recognises each connection and hands it to who serves it.

use crate::agent_tunnel;
use crate::client_dial;
use crate::config::ProxyProtocol;
use crate::service::Shared;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use wayleave_api::{ALPN_AUTH, ALPN_DIAL, ALPN_TUNNEL};
use wayleave_net::{BoxStream, HELLO_TIMEOUT, Hello, Rewind, read_hello, read_proxy_header};
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
pub(crate) async fn serve(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr, shutdown: Shutdown) {
    let served = match &shared.config.proxy_protocol {
        ProxyProtocol::Off => serve_hello(&shared, Box::new(stream), peer, shutdown).await,
        ProxyProtocol::RequiredFrom(networks) if !contains(networks, peer.ip()) => {
            tracing::debug!(%peer, "not a load balancer of proxy_protocol_from: closed");
            return;
        }
        ProxyProtocol::RequiredFrom(_) => match read_proxy_header(stream).await {
            Ok((source, stream)) => {
                serve_hello(&shared, Box::new(stream), source.unwrap_or(peer), shutdown).await
            }
            Err(error) => Err(error.into()),
        },
    };
    if let Err(error) = served {
        shared.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tracing::debug!(%peer, error = &*error as &dyn std::error::Error, "a connection was closed");
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn serve_hello(
    shared: &Arc<Shared>,
    stream: BoxStream,
    client: SocketAddr,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    let (hello, stream) = read_hello(stream).await?;
    match route(&hello) {
        Destination::Auth => Ok(shared.passthrough.carry(stream, client).await?),
        Destination::Tunnel => {
            let tls = handshake(&shared.tunnel_tls, stream).await?;
            Ok(agent_tunnel::serve(shared, tls, client, shutdown).await?)
        }
        Destination::Dial => {
            let tls = handshake(&shared.dial_tls, stream).await?;
            Ok(client_dial::serve(shared, tls, client, shutdown).await?)
        }
        Destination::Web => {
            let tls = handshake(&shared.web_tls, stream).await?;
            serve_http(shared, tls, shutdown).await
        }
    }
}

pub(crate) type ServerTls = tokio_rustls::server::TlsStream<Rewind<BoxStream>>;

async fn handshake(
    config: &Arc<rustls::ServerConfig>,
    stream: Rewind<BoxStream>,
) -> Result<ServerTls, Failure> {
    let accept = TlsAcceptor::from(config.clone()).accept(stream);
    Ok(tokio::time::timeout(HELLO_TIMEOUT, accept).await.map_err(|_| "no TLS handshake in time")??)
}

async fn serve_http(shared: &Shared, tls: ServerTls, shutdown: Shutdown) -> Result<(), Failure> {
    let service = TowerToHyperService::new(shared.rest.clone());
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
    Ok(())
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
