//! TLS to a backend's server: its certificate is verified, name included, and ours is presented where it asks.

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files of TLS to a backend's server, all PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerTls {
    /// Whom to believe; the system's certificate authorities when left out.
    pub ca_file: Option<PathBuf>,
    /// The certificate chain to present, with its key.
    pub client: Option<ClientFiles>,
}

/// A certificate chain and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// Files that TLS cannot be set up with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerTlsError {
    /// A file cannot be read or holds no certificate or key.
    #[error("{} cannot be used for TLS to the backend ({reason}): it must be a PEM file", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The system has no certificate authorities.
    #[error("this system has no certificate authorities: name the one of the backend's server in a CA file")]
    NoRoots,
    /// The library refused.
    #[error("TLS to the backend cannot be set up")]
    Tls(#[from] rustls::Error),
}

pub(crate) fn client_config(files: &ServerTls, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, ServerTlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(files.ca_file.as_deref())?);
    let mut config = match &files.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let key = PrivateKeyDer::from_pem_file(&client.key).map_err(|error| file(&client.key, error))?;
            builder.with_client_auth_cert(certificates(&client.certificate)?, key)?
        }
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, ServerTlsError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| file(path, error))?;
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs().certs;
            let (added, _) = roots.add_parsable_certificates(system);
            if added == 0 {
                return Err(ServerTlsError::NoRoots);
            }
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServerTlsError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| file(path, error))?;
    let all: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| file(path, error))?;
    if all.is_empty() { Err(file(path, "it holds no certificate")) } else { Ok(all) }
}

fn file(path: &Path, reason: impl ToString) -> ServerTlsError {
    ServerTlsError::File { path: path.to_owned(), reason: reason.to_string() }
}
