//! TLS by hand, for a client that believes anybody: what is behind a listener is looked at, not trusted.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longer than any deadline of a listener.
const READ_LIMIT: Duration = Duration::from_secs(45);

/// A TLS connection of such a client.
pub type TlsClient = StreamOwned<ClientConnection, TcpStream>;

/// Connects and shakes hands, with a protocol (ALPN) and, from an identity file, as somebody.
///
/// # Errors
/// When the other side does not want to.
///
/// # Panics
/// When the identity file holds no key and certificate.
pub fn tls_connect(address: SocketAddr, protocol: &[u8], identity: Option<&Path>) -> io::Result<TlsClient> {
    tls_over(TcpStream::connect(address)?, protocol, identity)
}

/// The same over a connection on which something was said before.
///
/// # Errors
/// When the other side does not want to.
///
/// # Panics
/// When the identity file holds no key and certificate.
pub fn tls_over(socket: TcpStream, protocol: &[u8], identity: Option<&Path>) -> io::Result<TlsClient> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believer(provider)));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let (chain, key) = credentials(path);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let address = socket.peer_addr()?;
    socket.set_read_timeout(Some(READ_LIMIT))?;
    socket.set_write_timeout(Some(READ_LIMIT))?;
    socket.set_nodelay(true)?;
    let connection = ClientConnection::new(Arc::new(config), ServerName::from(address.ip())).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// True when nothing came for as long as such a client waits.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Asks for `/webapi/ping` on a proxy's public port, from nothing.
///
/// # Panics
/// When it does not answer.
pub fn web_ping(address: SocketAddr) {
    let mut stream = tls_connect(address, b"http/1.1", None).unwrap();
    stream.write_all(b"GET /webapi/ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

/// The TLS key and its chain: the certificates before the SSH key.
fn credentials(path: &Path) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let text = std::fs::read_to_string(path).unwrap();
    let (tls, _) = text.split_once("-----BEGIN OPENSSH").unwrap();
    let chain = CertificateDer::pem_slice_iter(tls.as_bytes()).map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_slice(tls.as_bytes()).unwrap())
}

/// Takes every certificate whose key is really there.
#[derive(Debug)]
struct Believer(Arc<CryptoProvider>);

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
