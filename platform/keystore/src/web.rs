//! Web certificates of files: the one that fits the name a client asks for, exchangeable while they are served.

use crate::credentials::{CredentialsError, certified_key};
use crate::tls::TlsConfigError;
use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::Arc;
use wayleave_vocab::Secret;
use webpki::EndEntityCert;

/// A chain (leaf first) and its key, both PEM.
pub struct PemPair {
    /// The chain.
    pub chain: String,
    /// The key.
    pub key: Secret,
}

/// Certificates for the web, in order of preference. Clones share; [`WebCertificates::replace`] changes them for all.
#[derive(Clone)]
pub struct WebCertificates(Arc<ArcSwap<Vec<Arc<CertifiedKey>>>>);

/// Certificates that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum WebCertificatesError {
    /// There is none.
    #[error("there is no certificate")]
    Empty,
    /// One of the pairs cannot be used.
    #[error("pair {} of the certificates cannot be used", .number + 1)]
    Pair {
        /// Which one, from 0.
        number: usize,
        /// Why not.
        #[source]
        source: CredentialsError,
    },
}

impl WebCertificates {
    /// Serves these.
    ///
    /// # Errors
    /// See [`WebCertificatesError`].
    pub fn from_pem(pairs: &[PemPair]) -> Result<Self, WebCertificatesError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(certified(pairs)?))))
    }

    /// Serves these from the next handshake on.
    ///
    /// # Errors
    /// See [`WebCertificatesError`]; the old ones stay then.
    pub fn replace(&self, pairs: &[PemPair]) -> Result<(), WebCertificatesError> {
        self.0.store(Arc::new(certified(pairs)?));
        Ok(())
    }

    /// The first that is for `name`; else the first.
    fn for_name(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let all = self.0.load();
        let name = name.and_then(|name| ServerName::try_from(name).ok());
        let fits = |certified: &&Arc<CertifiedKey>| {
            let leaf = certified.cert.first().and_then(|leaf| EndEntityCert::try_from(leaf).ok());
            leaf.zip(name.as_ref())
                .is_some_and(|(leaf, name)| leaf.verify_is_valid_for_subject_name(name).is_ok())
        };
        all.iter().find(fits).or_else(|| all.first()).cloned()
    }
}

impl fmt::Debug for WebCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebCertificates({})", self.0.load().len())
    }
}

fn certified(pairs: &[PemPair]) -> Result<Vec<Arc<CertifiedKey>>, WebCertificatesError> {
    if pairs.is_empty() {
        return Err(WebCertificatesError::Empty);
    }
    let one = |(number, pair): (usize, &PemPair)| {
        let certified = certified_key(&pair.chain, &pair.key);
        certified.map(Arc::new).map_err(|source| WebCertificatesError::Pair { number, source })
    };
    pairs.iter().enumerate().map(one).collect()
}

/// A server configuration for browsers and balancers: TLS 1.2 too, and nobody is asked for a certificate.
///
/// # Errors
/// When the provider lacks a version of TLS.
pub fn web_server_config(
    certificates: &WebCertificates,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsConfigError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsConfigError)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ByName(certificates.clone())));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct ByName(WebCertificates);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.for_name(hello.server_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(names: &[&str]) -> PemPair {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        PemPair { chain: certificate.pem(), key: Secret::new(key.serialize_pem()) }
    }

    fn check(certificates: &WebCertificates, pairs: &[PemPair], name: Option<&str>, expected: usize) {
        let expected = certified(pairs).unwrap()[expected].cert.clone();
        assert_eq!(certificates.for_name(name).unwrap().cert, expected, "{name:?}");
    }

    #[test]
    fn the_certificate_for_the_name_is_served_else_the_first() {
        let pairs = [pair(&["a.example.com"]), pair(&["*.apps.example.com", "b.example.com"]), pair(&["c"])];
        let certificates = WebCertificates::from_pem(&pairs).unwrap();
        check(&certificates, &pairs, Some("a.example.com"), 0);
        check(&certificates, &pairs, Some("B.example.com"), 1);
        check(&certificates, &pairs, Some("x.apps.example.com"), 1);
        check(&certificates, &pairs, Some("x.y.apps.example.com"), 0);
        check(&certificates, &pairs, Some("other"), 0);
        check(&certificates, &pairs, Some("192.0.2.1"), 0);
        check(&certificates, &pairs, None, 0);
    }

    #[test]
    fn bad_pairs_are_refused_and_the_old_ones_stay() {
        let good = [pair(&["a"])];
        let certificates = WebCertificates::from_pem(&good).unwrap();
        let mixed = PemPair { chain: pair(&["b"]).chain, key: pair(&["b"]).key };
        let empty = PemPair { chain: String::new(), key: pair(&["b"]).key };
        for bad in [vec![pair(&["b"]), mixed], vec![empty], Vec::new()] {
            assert!(certificates.replace(&bad).is_err());
        }
        check(&certificates, &good, None, 0);
        let new = [pair(&["b"])];
        certificates.replace(&new).unwrap();
        check(&certificates, &new, None, 0);
    }
}
