//! Connections to addresses that another machine has told: the one way in which agents and proxies dial a proxy that is not
//! in their configuration.

use crate::accept::tune;
use crate::connect::{
    ATTEMPT_TIMEOUT, CONNECT_TIMEOUT, ClusterStream, ConnectError, checked_alpn, tls_over, within,
};
use crate::outbound::Outbound;
use crate::read_ahead::ReadAhead;
use crate::refused_address::address_refusal;
use crate::stream::BoxStream;
use rustls::ClientConfig;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use wayleave_vocab::HostPort;

/// Most addresses of one name that are looked at.
const ADDRESSES_MAX: usize = 16;

/// A told address that gave no connection.
#[derive(Debug, thiserror::Error)]
pub enum ToldError {
    /// Nobody is led there.
    #[error("{address} was told by the cluster, and {resolved} is not dialled: {why}")]
    Refused {
        /// What was told.
        address: HostPort,
        /// What it means.
        resolved: SocketAddr,
        /// Why not.
        why: &'static str,
    },
    /// It did not come about.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// Connects over TLS to an address that somebody told, unless it is one that nobody is led to (see [`address_refusal`]): a
/// name counts by what it means, and that is what is connected. There is no way through a WebSocket.
///
/// # Errors
/// See [`ToldError`].
pub async fn connect_told(address: &HostPort, tls: Arc<ClientConfig>) -> Result<ClusterStream, ToldError> {
    let attempt = async {
        let stream: BoxStream =
            Box::new(ReadAhead::new(within(CONNECT_TIMEOUT, address, tcp(address)).await?));
        let stream = tls_over(address, tls, stream).await.map_err(ToldError::Connect)?;
        checked_alpn(address, stream).map_err(ToldError::Connect)
    };
    within(ATTEMPT_TIMEOUT, address, attempt).await
}

/// The same past any HTTP proxy, for proxies of the cluster among each other.
///
/// # Errors
/// See [`ToldError`].
pub async fn connect_told_straight(
    address: &HostPort,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<ReadAhead<TcpStream>>, ToldError> {
    let attempt = async {
        let stream = ReadAhead::new(within(CONNECT_TIMEOUT, address, tcp_straight(address)).await?);
        tls_over(address, tls, stream).await.map_err(ToldError::Connect)
    };
    within(ATTEMPT_TIMEOUT, address, attempt).await
}

async fn tcp(address: &HostPort) -> Result<TcpStream, ToldError> {
    let outbound =
        Outbound::of_process().map_err(|e| ToldError::Connect(ConnectError::Outbound(e.clone())))?;
    if outbound.is_proxied(address) {
        // The HTTP proxy finds out what a name means.
        if let Some(ip) = address.host().parse::<IpAddr>().ok()
            && let Some(why) = address_refusal(ip)
        {
            let resolved = SocketAddr::new(ip, address.port());
            return Err(ToldError::Refused { address: address.clone(), resolved, why });
        }
        let stream = outbound.connect(address).await.map_err(ToldError::Connect)?;
        tune(&stream);
        return Ok(stream);
    }
    tcp_straight(address).await
}

async fn tcp_straight(address: &HostPort) -> Result<TcpStream, ToldError> {
    let unreachable = |source| ToldError::Connect(ConnectError::Tcp { address: address.clone(), source });
    let found = tokio::net::lookup_host((address.host(), address.port())).await.map_err(unreachable)?;
    let found: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    if let Some((resolved, why)) =
        found.iter().find_map(|found| address_refusal(found.ip()).map(|why| (*found, why)))
    {
        return Err(ToldError::Refused { address: address.clone(), resolved, why });
    }
    let stream = TcpStream::connect(&found[..]).await.map_err(unreachable)?;
    tune(&stream);
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{RootCertStore, crypto::aws_lc_rs};

    fn tls() -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
    }

    #[tokio::test]
    async fn l_nobody_is_led_to_metadata_services_and_link_local_addresses() {
        for told in
            ["169.254.169.254:80", "[fe80::1]:443", "[::ffff:169.254.169.254]:443", "168.63.129.16:80"]
        {
            let refused = connect_told(&told.parse().unwrap(), tls()).await;
            assert!(matches!(refused, Err(ToldError::Refused { .. })), "{told}");
            let refused = connect_told_straight(&told.parse().unwrap(), tls()).await;
            assert!(matches!(refused, Err(ToldError::Refused { .. })), "{told} of a peer");
        }
    }

    #[tokio::test]
    async fn a_machine_is_reached_by_name() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connected = tcp(&format!("127.0.0.1:{port}").parse().unwrap()).await;
        assert!(connected.is_ok(), "{connected:?}");
    }
}
