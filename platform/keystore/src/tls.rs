//! TLS configurations made of credentials and trust. TLS 1.3 among ourselves; everything is looked up per handshake.

use crate::credentials::Credentials;
use crate::trust::{
    Audience, IdentifyError, Pins, TrustStore, principal_from_certificate, verify_server_with_root,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
pub use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use std::sync::Arc;
use wayleave_identity::Principal;
use wayleave_vocab::{HostId, SystemRole, Wall};

/// Whether a server asks its clients for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Never.
    None,
    /// It asks; a client without one is let in as nobody, one with a bad one is refused.
    Optional,
    /// It must be there and be good.
    Required,
}

/// A TLS configuration that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("TLS cannot be set up")]
pub struct TlsConfigError(#[source] pub(crate) Error);

/// A server configuration that presents `credentials` and believes `trust`. Who asks nobody for a certificate serves
/// balancers too, and so speaks TLS 1.2 beside 1.3.
///
/// # Errors
/// When the provider lacks TLS 1.3.
pub fn server_config(
    credentials: &Credentials,
    trust: &TrustStore,
    client_auth: ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsConfigError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions: &[_] = match client_auth {
        ClientAuth::None => rustls::ALL_VERSIONS,
        ClientAuth::Optional | ClientAuth::Required => &[&rustls::version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(TlsConfigError)?;
    let builder = match client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional | ClientAuth::Required => {
            builder.with_client_cert_verifier(Arc::new(ClusterClients {
                trust: trust.clone(),
                mandatory: client_auth == ClientAuth::Required,
                algorithms: provider.signature_verification_algorithms,
            }))
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(Presents(credentials.clone())));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// A client configuration that presents `credentials` and accepts servers of the cluster: a process that holds
/// `server_role`, and, when `server_id` is given, exactly that one.
///
/// # Errors
/// When the provider lacks TLS 1.3.
pub fn client_config(
    credentials: &Credentials,
    trust: &TrustStore,
    server_role: SystemRole,
    server_id: Option<HostId>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let verifier = |algorithms| {
        Arc::new(ClusterServer { trust: trust.clone(), role: server_role, id: server_id, algorithms })
            as Arc<dyn ServerCertVerifier>
    };
    build_client(credentials, verifier, alpn)
}

/// A client configuration for a process that trusts nobody yet: the server's chain must hold an authority whose key
/// is pinned and the leaf must be signed by it for a process that holds `server_role`.
///
/// # Errors
/// When the provider lacks TLS 1.3.
pub fn pinned_client_config(
    pins: &Pins,
    server_role: SystemRole,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let verifier = |algorithms| {
        Arc::new(PinnedServer { pins: pins.clone(), role: server_role, algorithms })
            as Arc<dyn ServerCertVerifier>
    };
    build_client(&Credentials::empty(), verifier, alpn)
}

/// A client configuration as a browser's: the server has a certificate for its name that the system's own authorities
/// vouch for (`SSL_CERT_FILE` and `SSL_CERT_DIR` in their place); or it is a proxy of the cluster that `trust` knows.
/// For HTTP/1.1; nothing is presented.
///
/// # Errors
/// When the provider lacks a version of TLS.
pub fn public_client_config(trust: Option<&TrustStore>) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    let verifier = PublicServer { trust: trust.cloned(), provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsConfigError)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// All certificates in a PEM text, in order; other PEM blocks are passed over.
pub(crate) fn certificates_from_pem(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect()
}

fn build_client(
    credentials: &Credentials,
    verifier: impl FnOnce(WebPkiSupportedAlgorithms) -> Arc<dyn ServerCertVerifier>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let mut provider = aws_lc_rs::default_provider();
    // First what costs least for each byte; servers of ours follow the client's order.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let provider = Arc::new(provider);
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsConfigError)?
        .dangerous()
        .with_custom_certificate_verifier(verifier(provider.signature_verification_algorithms))
        .with_client_cert_resolver(Arc::new(Presents(credentials.clone())));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Presents the current credentials on either side.
#[derive(Debug)]
struct Presents(Credentials);

impl ResolvesServerCert for Presents {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.current()
    }
}

impl ResolvesClientCert for Presents {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.current()
    }

    fn has_certs(&self) -> bool {
        self.0.current().is_some()
    }
}

/// Accepts clients of the cluster, users and processes alike.
#[derive(Debug)]
struct ClusterClients {
    trust: TrustStore,
    mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for ClusterClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        self.trust
            .identify(&chain, Audience::Client, Wall::from_secs(now.as_secs()))
            .map(|_| ClientCertVerified::assertion())
            .map_err(refused)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Accepts a process of the cluster that holds a role, whatever name it was dialled by.
#[derive(Debug)]
struct ClusterServer {
    trust: TrustStore,
    role: SystemRole,
    id: Option<HostId>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ClusterServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        let principal =
            self.trust.identify(&chain, Audience::Server, Wall::from_secs(now.as_secs())).map_err(refused)?;
        let host = principal.as_host_with(self.role).ok_or_else(wrong_server)?;
        match self.id {
            Some(id) if id != host.host_id => Err(wrong_server()),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Accepts a process whose chain ends at a pinned authority.
#[derive(Debug)]
struct PinnedServer {
    pins: Pins,
    role: SystemRole,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates
            .iter()
            .find(|certificate| self.pins.contains(certificate))
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let root = CertificateDer::from(root.to_vec());
        verify_server_with_root(leaf, intermediates, &root, Wall::from_secs(now.as_secs()))
            .map_err(|e| refused(IdentifyError::Untrusted(e)))?;
        match principal_from_certificate(leaf).map_err(refused)? {
            Principal::Host(host) if host.system_roles.contains(&self.role) => {
                Ok(ServerCertVerified::assertion())
            }
            Principal::Host(_) | Principal::User(_) => Err(wrong_server()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Accepts a server that the system's authorities vouch for by its name, or a proxy of the cluster.
#[derive(Debug)]
struct PublicServer {
    trust: Option<TrustStore>,
    provider: Arc<CryptoProvider>,
}

impl PublicServer {
    fn is_proxy(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> bool {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        let principal = self
            .trust
            .as_ref()
            .and_then(|trust| trust.identify(&chain, Audience::Server, Wall::from_secs(now.as_secs())).ok());
        principal.is_some_and(|principal| principal.as_host_with(SystemRole::Proxy).is_some())
    }
}

impl ServerCertVerifier for PublicServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.is_proxy(leaf, intermediates, now) {
            return Ok(ServerCertVerified::assertion());
        }
        // Read when they are needed, which is seldom, instead of being kept by every process.
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "some of the system's authorities cannot be read");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|_| Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        verifier.verify_server_cert(leaf, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn refused(error: IdentifyError) -> Error {
    let reason = match error {
        IdentifyError::Untrusted(webpki::Error::CertExpired { .. }) => CertificateError::Expired,
        IdentifyError::Untrusted(webpki::Error::CertNotValidYet { .. }) => CertificateError::NotValidYet,
        // An authority of the same name with another key: a stranger all the same.
        IdentifyError::Untrusted(
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey,
        ) => CertificateError::UnknownIssuer,
        other => CertificateError::Other(rustls::OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(reason)
}

fn wrong_server() -> Error {
    Error::InvalidCertificate(CertificateError::NotValidForName)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o_an_authority_of_the_same_name_with_another_key_is_a_stranger() {
        let stranger = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        for error in [webpki::Error::UnknownIssuer, webpki::Error::InvalidSignatureForPublicKey] {
            assert_eq!(refused(IdentifyError::Untrusted(error)), stranger);
        }
    }
}
