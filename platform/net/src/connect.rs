//! Outbound connections: TCP and TLS with deadlines around the whole attempt; and the way to the cluster's public port
//! through a balancer that ends TLS itself.

use crate::accept::tune;
use crate::outbound::{HttpProxyError, Outbound, OutboundError};
use crate::read_ahead::ReadAhead;
use crate::stream::BoxStream;
use crate::upgrade::UpgradedStream;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wayleave_vocab::HostPort;

/// How long it may take to reach an address: names and TCP together.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one attempt may take, TLS included: a proxy that has just come back lets thousands wait for their turn.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
const HTTPS_PORT: u16 = 443;

/// A connection that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name is unknown or nobody listens there.
    #[error("cannot reach {address}")]
    Tcp {
        /// Where.
        address: HostPort,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The TLS handshake failed: no trust, or another protocol.
    #[error("{address} was reached, but the TLS handshake failed")]
    Tls {
        /// Where.
        address: HostPort,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The HTTP proxy of this process does not lead there.
    #[error("{address} cannot be reached through the HTTP proxy {proxy}")]
    HttpProxy {
        /// Where.
        address: HostPort,
        /// Through whom.
        proxy: HostPort,
        /// Why not.
        #[source]
        source: HttpProxyError,
    },
    /// The environment names an HTTP proxy that cannot be used, and nothing is reached past it.
    #[error("the way out is not clear: correct the environment or unset it")]
    Outbound(#[source] OutboundError),
    /// There is no address to try.
    #[error("no address is configured")]
    NoAddress,
    /// It took too long.
    #[error("{address} did not answer within {} s", .within.as_secs())]
    TimedOut {
        /// Where.
        address: HostPort,
        /// The deadline.
        within: Duration,
    },
}

/// Connects over TCP, trying every address of the name; through the HTTP proxy of the environment, if there is one and
/// `NO_PROXY` does not except the address.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_tcp(address: &HostPort) -> Result<TcpStream, ConnectError> {
    let outbound = Outbound::of_process().map_err(|error| ConnectError::Outbound(error.clone()))?;
    connect_tcp_by(outbound, address).await
}

pub(crate) async fn connect_tcp_by(
    outbound: &Outbound,
    address: &HostPort,
) -> Result<TcpStream, ConnectError> {
    let stream = within(CONNECT_TIMEOUT, address, outbound.connect(address)).await?;
    tune(&stream);
    Ok(stream)
}

/// Connects over TLS past any HTTP proxy, for proxies of the cluster among each other.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_tls_straight(
    address: &HostPort,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<ReadAhead<TcpStream>>, ConnectError> {
    let attempt = async {
        let stream = connect_tcp_by(&Outbound::default(), address).await?;
        tls_over(address, config, ReadAhead::new(stream)).await
    };
    within(ATTEMPT_TIMEOUT, address, attempt).await
}

/// Connects over TLS, on a connection by [`connect_tcp`]. The server name sent is the host of the address.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_tls(
    address: &HostPort,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<ReadAhead<TcpStream>>, ConnectError> {
    let attempt = async {
        let stream = connect_tcp(address).await?;
        tls_over(address, config, ReadAhead::new(stream)).await
    };
    within(ATTEMPT_TIMEOUT, address, attempt).await
}

/// A TLS connection to the cluster, direct or inside a WebSocket.
pub type ClusterStream = TlsStream<BoxStream>;

/// Connects to the cluster's public port by the protocols of `inner`. Where something on the way ends TLS and speaks
/// other ones, the same TLS runs inside a WebSocket, over a connection by `outer`.
///
/// Trust rests on `inner` alone; `outer` only finds the way.
///
/// # Errors
/// See [`ConnectError`]. When neither way leads there, the source of [`ConnectError::Tls`] tells of both.
pub async fn connect_cluster(
    address: &HostPort,
    inner: Arc<ClientConfig>,
    outer: &Arc<ClientConfig>,
) -> Result<ClusterStream, ConnectError> {
    let attempt = async {
        let direct = match connect_direct(address, inner.clone()).await {
            Err(ConnectError::Tls { source, .. }) if is_answer(&source) => source,
            connected => return connected,
        };
        match upgrade(address, outer.clone()).await {
            Ok(stream) => {
                tracing::debug!(%address, error = %direct, "TLS ends on the way: going on inside a WebSocket");
                checked_alpn(address, tls_over(address, inner, stream).await?)
            }
            Err(upgrade) => Err(tls_error(address, io::Error::other(NoWay { direct, upgrade }))),
        }
    };
    within(ATTEMPT_TIMEOUT, address, attempt).await
}

/// Neither way leads to the cluster.
#[derive(Debug, thiserror::Error)]
#[error("{direct} (through a WebSocket: {upgrade})")]
struct NoWay {
    #[source]
    direct: io::Error,
    upgrade: io::Error,
}

async fn connect_direct(
    address: &HostPort,
    config: Arc<ClientConfig>,
) -> Result<ClusterStream, ConnectError> {
    let stream: BoxStream = Box::new(ReadAhead::new(connect_tcp(address).await?));
    checked_alpn(address, tls_over(address, config, stream).await?)
}

/// A server that agreed to no protocol is not the one that was meant.
pub(crate) fn checked_alpn(address: &HostPort, stream: ClusterStream) -> Result<ClusterStream, ConnectError> {
    if stream.get_ref().1.alpn_protocol().is_some() {
        return Ok(stream);
    }
    let reason = "the server does not know the protocol";
    Err(tls_error(address, io::Error::new(io::ErrorKind::InvalidData, reason)))
}

/// Something at the other end speaks TLS, but not with us; as opposed to a connection that broke.
fn is_answer(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// A WebSocket to the proxy behind whatever ends TLS at `address`.
async fn upgrade(address: &HostPort, config: Arc<ClientConfig>) -> Result<BoxStream, io::Error> {
    let outer = match connect_tcp(address).await {
        Ok(stream) => tls_over(address, config, ReadAhead::new(stream)).await,
        Err(error) => Err(error),
    };
    let outer = outer.map_err(|error| match error {
        ConnectError::Tls { source, .. } | ConnectError::Tcp { source, .. } => source,
        error @ (ConnectError::HttpProxy { .. }
        | ConnectError::Outbound(_)
        | ConnectError::NoAddress
        | ConnectError::TimedOut { .. }) => io::Error::other(error),
    })?;
    let host = if address.port() == HTTPS_PORT {
        let text = address.to_string();
        text.strip_suffix(":443").unwrap_or(&text).to_owned()
    } else {
        address.to_string()
    };
    Ok(Box::new(UpgradedStream::request(outer, &host).await?))
}

pub(crate) async fn within<T, E: From<ConnectError>>(
    limit: Duration,
    address: &HostPort,
    attempt: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::time::timeout(limit, attempt)
        .await
        .map_err(|_| ConnectError::TimedOut { address: address.clone(), within: limit })?
}

fn tls_error(address: &HostPort, source: io::Error) -> ConnectError {
    ConnectError::Tls { address: address.clone(), source }
}

/// Runs a TLS handshake over a stream that is there already.
///
/// # Errors
/// [`ConnectError::Tls`].
pub async fn tls_over<S>(
    address: &HostPort,
    config: Arc<ClientConfig>,
    stream: S,
) -> Result<TlsStream<S>, ConnectError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let name = ServerName::try_from(address.host().to_owned())
        .map_err(|e| tls_error(address, io::Error::new(io::ErrorKind::InvalidInput, e)))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|source| tls_error(address, source))
}
