//! Web certificates in files: read at start, and again at an interval, since who renews them tells nobody.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wayleave_keystore::{PemPair, WebCertificates, WebCertificatesError};
use wayleave_runtime::Shutdown;
use wayleave_vocab::Secret;

/// Longest file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A certificate with its chain, and its key: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebKeyPair {
    /// The chain, leaf first.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// Web certificates, and where they come from.
pub struct WebFiles {
    pairs: Vec<WebKeyPair>,
    reload_interval: Option<Duration>,
    certificates: WebCertificates,
    read: u64,
}

/// Files that hold no certificates that can be served.
#[derive(Debug, thiserror::Error)]
pub enum WebFilesError {
    /// One cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What is in them cannot be served.
    #[error("the web certificates cannot be used")]
    Certificates(#[source] WebCertificatesError),
}

impl WebFiles {
    /// Reads the files. The first pair is served to clients that ask for no name, or for one that no pair is for.
    /// Without an interval they are read this once.
    ///
    /// # Errors
    /// See [`WebFilesError`].
    pub fn open(pairs: Vec<WebKeyPair>, reload_interval: Option<Duration>) -> Result<Self, WebFilesError> {
        let (texts, read) = read_all(&pairs)?;
        let certificates = WebCertificates::from_pem(&texts).map_err(WebFilesError::Certificates)?;
        Ok(Self { pairs, reload_interval, certificates, read })
    }

    pub(crate) fn certificates(&self) -> &WebCertificates {
        &self.certificates
    }

    /// Reads the files again and again until shutdown. What cannot be used leaves the old certificates in place.
    pub(crate) async fn follow(mut self, shutdown: Shutdown) {
        let Some(interval) = self.reload_interval else { return shutdown.requested().await };
        while shutdown.until(tokio::time::sleep(interval)).await.is_some() {
            let pairs = self.pairs.clone();
            let read = tokio::task::spawn_blocking(move || read_all(&pairs)).await;
            let Ok(read) = read else { continue };
            match read.and_then(|(texts, hash)| self.take(&texts, hash)) {
                Ok(true) => tracing::info!("the web certificates have changed: the new ones are served"),
                Ok(false) => {}
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        "the web certificates were read again and cannot be used: the old ones stay"
                    );
                }
            }
        }
    }

    /// True when they were new.
    fn take(&mut self, texts: &[PemPair], read: u64) -> Result<bool, WebFilesError> {
        if read == self.read {
            return Ok(false);
        }
        self.certificates.replace(texts).map_err(WebFilesError::Certificates)?;
        self.read = read;
        Ok(true)
    }
}

/// The texts, and a number that changes with them.
fn read_all(pairs: &[WebKeyPair]) -> Result<(Vec<PemPair>, u64), WebFilesError> {
    let mut hasher = DefaultHasher::new();
    let mut read = |path: &Path| {
        let text = read_text(path).map_err(|source| WebFilesError::Read { path: path.to_owned(), source })?;
        text.hash(&mut hasher);
        Ok(text)
    };
    let texts = pairs
        .iter()
        .map(|pair| Ok(PemPair { chain: read(&pair.cert_file)?, key: Secret::new(read(&pair.key_file)?) }))
        .collect::<Result<_, WebFilesError>>()?;
    Ok((texts, hasher.finish()))
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let count = fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if count as u64 > FILE_BYTES_MAX {
        let reason = format!("it has more than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(text)
}
