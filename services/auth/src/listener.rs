//! The port of the Auth Service: who may connect, TLS, and the streams on which proxies forward clients.
//!
//! Accepting never waits on a peer. A connection that has not shown a certificate takes one of few slots.

use crate::connection::{Connection, Identity, serve};
use crate::gate::Gate;
use crate::slots::{Slots, Taken};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use wayleave_api::{ALPN_AUTH, ALPN_FORWARD};
use wayleave_dial::{ForwardHeader, VERSION};
use wayleave_keystore::{
    ClientAuth, Credentials, TlsConfigError, TrustStore, principal_from_certificate, server_config,
};
use wayleave_net::{HandshakeError, accept_tls, read_message, tune};
use wayleave_runtime::TaskGroup;
use wayleave_vocab::SystemRole;

/// ALPN of plain gRPC clients.
pub(crate) const ALPN_HTTP2: &[u8] = b"h2";
/// TLS, and the header of a forwarded client, must be complete after this.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// TLS for clients that connect here and for those that a proxy forwards.
#[derive(Clone)]
pub(crate) struct Acceptors {
    direct: TlsAcceptor,
    forwarded: TlsAcceptor,
}

impl Acceptors {
    pub(crate) fn new(credentials: &Credentials, trust: &TrustStore) -> Result<Self, TlsConfigError> {
        let direct = [ALPN_AUTH, ALPN_HTTP2, ALPN_FORWARD];
        let inner = [ALPN_AUTH, ALPN_HTTP2];
        Ok(Self {
            direct: TlsAcceptor::from(server_config(credentials, trust, ClientAuth::Optional, &direct)?),
            forwarded: TlsAcceptor::from(server_config(credentials, trust, ClientAuth::Optional, &inner)?),
        })
    }
}

/// Accepts connections until shutdown.
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) acceptors: Acceptors,
    pub(crate) gate: Gate,
    pub(crate) slots: Slots,
}

/// Why a connection was closed before it could ask anything. At DEBUG only: strangers cause it at will.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Handshake(HandshakeError),
    #[error("no protocol was agreed")]
    Protocol,
    #[error("the certificate names nobody")]
    Identity(#[source] wayleave_keystore::IdentifyError),
    #[error("only a proxy may forward clients")]
    NotAProxy,
    #[error("the forward header is wrong")]
    Header(#[source] wayleave_net::MessageError),
    #[error("too many clients of one address that have shown no certificate")]
    TooMany,
    #[error("the forward header is of version {0}, this build reads {VERSION}")]
    HeaderVersion(u8),
}

impl Listener {
    pub(crate) async fn run(self, group: TaskGroup) {
        let shutdown = group.shutdown();
        while let Some(accepted) = shutdown.until(self.socket.accept()).await {
            match accepted {
                Ok((stream, peer)) => self.start(stream, peer, &group),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn start(&self, stream: TcpStream, peer: SocketAddr, group: &TaskGroup) {
        let Some(slots) = self.slots.take(peer.ip()) else {
            tracing::debug!(%peer, "closed: too many connections");
            return;
        };
        let (acceptors, gate) = (self.acceptors.clone(), self.gate.clone());
        let owner = group.clone();
        group.spawn_many(async move {
            if let Err(reason) = open(stream, peer, &acceptors, gate, slots, owner).await {
                let source = std::error::Error::source(&reason).map(ToString::to_string);
                tracing::debug!(%peer, %reason, source, "connection refused");
            }
        });
    }
}

async fn open(
    stream: TcpStream,
    peer: SocketAddr,
    acceptors: &Acceptors,
    gate: Gate,
    mut slots: Taken,
    group: TaskGroup,
) -> Result<(), Refused> {
    tune(&stream);
    let stream = handshake(&acceptors.direct, stream).await?;
    let identity = identify(&stream)?;
    if stream.get_ref().1.alpn_protocol() == Some(ALPN_FORWARD) {
        return open_forwarded(stream, &identity, acceptors, gate, slots, group).await;
    }
    require_http2(&stream)?;
    slots.end_if_known(&identity);
    serve(stream, Connection { identity, client_address: peer }, gate, group).await;
    drop(slots);
    Ok(())
}

async fn open_forwarded<IO>(
    mut stream: TlsStream<IO>,
    proxy: &Identity,
    acceptors: &Acceptors,
    gate: Gate,
    mut slots: Taken,
    group: TaskGroup,
) -> Result<(), Refused>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match proxy {
        Identity::Host(host) if host.system_roles.contains(&SystemRole::Proxy) => {}
        Identity::Host(_) | Identity::User(_) | Identity::Stranger => return Err(Refused::NotAProxy),
    }
    gate.check_forwarder(proxy).map_err(|_| Refused::NotAProxy)?;
    let header: ForwardHeader =
        read_message(&mut stream, HANDSHAKE_DEADLINE).await.map_err(Refused::Header)?;
    if header.v != VERSION {
        return Err(Refused::HeaderVersion(header.v));
    }
    let client_address = header.client_address;
    // The proxy is known: from here on the slot is the client's.
    slots.belongs_to(client_address.ip()).map_err(|_| Refused::TooMany)?;
    let inner = handshake(&acceptors.forwarded, stream).await?;
    let identity = identify(&inner)?;
    require_http2(&inner)?;
    slots.end_if_known(&identity);
    serve(inner, Connection { identity, client_address }, gate, group).await;
    drop(slots);
    Ok(())
}

async fn handshake<IO>(acceptor: &TlsAcceptor, stream: IO) -> Result<TlsStream<IO>, Refused>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match accept_tls(acceptor, stream, HANDSHAKE_DEADLINE).await {
        Ok(stream) => Ok(stream),
        Err(failed) => Err(Refused::Handshake(failed.part().await)),
    }
}

/// Who the verified certificate names; the handshake has verified it, or there is none.
fn identify<IO>(stream: &TlsStream<IO>) -> Result<Identity, Refused> {
    match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        None => Ok(Identity::Stranger),
        Some(leaf) => principal_from_certificate(leaf).map(Identity::from).map_err(Refused::Identity),
    }
}

fn require_http2<IO>(stream: &TlsStream<IO>) -> Result<(), Refused> {
    match stream.get_ref().1.alpn_protocol() {
        Some(protocol) if protocol == ALPN_AUTH || protocol == ALPN_HTTP2 => Ok(()),
        Some(_) | None => Err(Refused::Protocol),
    }
}
