//! The key and certificate that a process presents, exchangeable while it runs.

use crate::tls::certificates_from_pem;
use arc_swap::ArcSwapOption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::Arc;
use wayleave_vocab::Secret;

/// An ECDSA P-256 key pair for TLS.
pub struct TlsKey(rcgen::KeyPair);

/// A key or certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The key cannot be generated or read.
    #[error("the private key cannot be used")]
    Key(#[source] rcgen::Error),
    /// rustls refuses the key or the pair.
    #[error("the certificate and the private key cannot be used for TLS")]
    Tls(#[source] rustls::Error),
    /// There is no certificate in the text.
    #[error("no certificate was found where one is expected")]
    NoCertificate,
}

impl TlsKey {
    /// A new key.
    ///
    /// # Errors
    /// When the generator fails.
    pub fn generate() -> Result<Self, CredentialsError> {
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map(Self).map_err(CredentialsError::Key)
    }

    /// Reads PKCS#8 PEM.
    ///
    /// # Errors
    /// When it is no such key.
    pub fn from_pem(pem: &Secret) -> Result<Self, CredentialsError> {
        rcgen::KeyPair::from_pem(pem.expose_secret()).map(Self).map_err(CredentialsError::Key)
    }

    /// The key as PKCS#8 PEM.
    pub fn to_pem(&self) -> Secret {
        Secret::new(self.0.serialize_pem())
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki_der(&self) -> Vec<u8> {
        rcgen::PublicKeyData::subject_public_key_info(&self.0)
    }
}

/// What a process presents in TLS handshakes. Clones share; [`Credentials::replace`] changes it for all.
#[derive(Clone, Default)]
pub struct Credentials(Arc<ArcSwapOption<CertifiedKey>>);

impl Credentials {
    /// Nothing yet: servers refuse handshakes, clients present no certificate.
    pub fn empty() -> Self {
        Self::default()
    }

    /// From a chain (leaf first) and its key, both PEM.
    ///
    /// # Errors
    /// When the texts hold no certificate or key, or do not belong together.
    pub fn from_pem(chain_pem: &str, key_pem: &Secret) -> Result<Self, CredentialsError> {
        let credentials = Self::empty();
        credentials.replace(chain_pem, key_pem)?;
        Ok(credentials)
    }

    /// Presents this chain and key from now on.
    ///
    /// # Errors
    /// As [`Credentials::from_pem`]; the old ones stay then.
    pub fn replace(&self, chain_pem: &str, key_pem: &Secret) -> Result<(), CredentialsError> {
        self.0.store(Some(Arc::new(certified_key(chain_pem, key_pem)?)));
        Ok(())
    }

    /// The current leaf, DER.
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.0.load().as_ref().and_then(|c| c.cert.first().cloned())
    }

    pub(crate) fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.load().is_some() { "Credentials(present)" } else { "Credentials(none)" })
    }
}

/// A chain (leaf first) and its key, both PEM, when they belong together.
pub(crate) fn certified_key(chain_pem: &str, key_pem: &Secret) -> Result<CertifiedKey, CredentialsError> {
    let chain: Vec<CertificateDer<'static>> = certificates_from_pem(chain_pem);
    if chain.is_empty() {
        return Err(CredentialsError::NoCertificate);
    }
    let key = private_key_from_pem(key_pem)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(CredentialsError::Tls)
}

fn private_key_from_pem(pem: &Secret) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    use rustls::pki_types::pem::PemObject;
    if let Ok(key) = PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes()) {
        return Ok(key);
    }
    let pair = rcgen::KeyPair::from_pem(pem.expose_secret()).map_err(CredentialsError::Key)?;
    Ok(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der())))
}
