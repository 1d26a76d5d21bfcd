//! Handshakes for diagnosis only: they verify nobody, so that one can see what stands at an address. Nothing that is worth
//! anything may be sent through such a connection, and nothing that it says may be believed.

use crate::tls::TlsConfigError;
use rustls::client::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;

/// Bytes by which a large hello is longer than the usual one: several packets on any network.
const LARGE_PADDING_BYTES: usize = 4_000;
/// Longest name of a protocol in a hello.
const PROTOCOL_BYTES_MAX: usize = 250;

/// How long the ClientHello is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelloSize {
    /// One packet on any network: no key of the post-quantum kind.
    Small,
    /// As everything else here sends it: two packets on most networks.
    Usual,
    /// Several packets.
    Large,
}

/// A client configuration that believes whoever answers. It asks for one protocol.
///
/// # Errors
/// When the provider lacks TLS 1.3.
pub fn probe_config(alpn: &[u8], size: HelloSize) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let mut provider: CryptoProvider = aws_lc_rs::default_provider();
    if size == HelloSize::Small {
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    }
    let provider = Arc::new(provider);
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map_err(TlsConfigError)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    if size == HelloSize::Large {
        let names = 0..LARGE_PADDING_BYTES / PROTOCOL_BYTES_MAX;
        config.alpn_protocols.extend(names.map(|n| format!("{n:.>PROTOCOL_BYTES_MAX$}").into_bytes()));
    }
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
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
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello_bytes(size: HelloSize) -> usize {
        let config = probe_config(b"wayleave-tunnel/1", size).unwrap();
        let name = ServerName::try_from("proxy.example.com").unwrap();
        let mut connection = rustls::ClientConnection::new(config, name).unwrap();
        let mut hello = Vec::new();
        connection.write_tls(&mut hello).unwrap();
        hello.len()
    }

    #[test]
    fn hellos_are_as_long_as_they_say() {
        assert!(hello_bytes(HelloSize::Small) < 600);
        assert!((1_200..2_500).contains(&hello_bytes(HelloSize::Usual)));
        assert!((5_000..8_000).contains(&hello_bytes(HelloSize::Large)));
    }
}
