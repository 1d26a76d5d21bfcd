//! The host key and its certificate, as stored text.

use std::sync::Arc;
use wayleave_ssh::{Certificate, Credential, KeyPair, ParseKeyError, PrivateKeyError};

/// Text that is no host identity.
#[derive(Debug, thiserror::Error)]
pub enum HostIdentityError {
    /// The private key cannot be read.
    #[error("the SSH host key cannot be read")]
    Key(#[source] PrivateKeyError),
    /// The certificate cannot be read.
    #[error("the SSH host certificate cannot be read")]
    Certificate(#[source] ParseKeyError),
    /// The certificate is over another key.
    #[error("the SSH host certificate is over another key than the host key")]
    OtherKey,
}

/// The identity of an SSH server: an Ed25519 key in OpenSSH's PEM form and its certificate as a line.
///
/// # Errors
/// When either cannot be read or they do not belong together.
pub fn host_identity(key_pem: &str, certificate_line: &str) -> Result<Credential, HostIdentityError> {
    let key = KeyPair::from_openssh(key_pem).map_err(HostIdentityError::Key)?;
    let certificate = Certificate::from_openssh(certificate_line).map_err(HostIdentityError::Certificate)?;
    Credential::certified(Arc::new(key), certificate).ok_or(HostIdentityError::OtherKey)
}
