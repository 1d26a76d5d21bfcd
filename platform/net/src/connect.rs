//! Outbound connections: TCP and TLS with deadlines around the whole attempt.

use crate::accept::tune;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wayleave_vocab::HostPort;

/// How long one attempt may take: names, TCP and TLS together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Connects over TCP, trying every address of the name.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_tcp(address: &HostPort) -> Result<TcpStream, ConnectError> {
    let attempt = TcpStream::connect((address.host(), address.port()));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, attempt)
        .await
        .map_err(|_| ConnectError::TimedOut { address: address.clone(), within: CONNECT_TIMEOUT })?
        .map_err(|source| ConnectError::Tcp { address: address.clone(), source })?;
    tune(&stream);
    Ok(stream)
}

/// Connects over TLS. The server name sent is the host of the address.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_tls(
    address: &HostPort,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let attempt = async {
        let stream = connect_tcp(address).await?;
        tls_over(address, config, stream).await
    };
    tokio::time::timeout(CONNECT_TIMEOUT, attempt)
        .await
        .map_err(|_| ConnectError::TimedOut { address: address.clone(), within: CONNECT_TIMEOUT })?
}

/// Connects over TLS to the first of several addresses that answers.
///
/// # Errors
/// That of the last address.
pub async fn connect_any(
    addresses: &[HostPort],
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let mut last = ConnectError::NoAddress;
    for address in addresses {
        match connect_tls(address, config.clone()).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                tracing::debug!(%address, %error, "an address did not answer");
                last = error;
            }
        }
    }
    Err(last)
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
    let name = ServerName::try_from(address.host().to_owned()).map_err(|e| ConnectError::Tls {
        address: address.clone(),
        source: io::Error::new(io::ErrorKind::InvalidInput, e),
    })?;
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|source| ConnectError::Tls { address: address.clone(), source })
}
