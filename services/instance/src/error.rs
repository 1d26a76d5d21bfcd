//! Why a process has no identity, and what its operator does about it.

use std::collections::BTreeSet;
use wayleave_keystore::{CredentialsError, IdentityDirError, TlsConfigError};
use wayleave_net::{ClockComplaint, clock_complaint};
use wayleave_vocab::SystemRole;

/// A process that cannot get or keep its identity.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// There is no identity and no token.
    #[error(
        "this process has not joined the cluster and has no join token: make one with \
         `way tokens add --type {wanted}` and set it as wayleave.auth_token"
    )]
    NoToken {
        /// The roles it needs, as `--type` takes them.
        wanted: String,
    },
    /// There is an identity that lacks a role and no token that could add it.
    #[error(
        "this process has joined without the role {missing}: make a token with `way tokens add --type {missing}`, \
         set it as wayleave.auth_token and start again (its host id stays)"
    )]
    RoleMissing {
        /// The role.
        missing: String,
    },
    /// There is nothing to verify the cluster by.
    #[error(
        "nothing vouches for the cluster yet: set wayleave.ca_pin to a value that `way -c FILE status` prints on the \
         Auth host, or give the proxy a web certificate of a public authority"
    )]
    NothingToTrust,
    /// The identity cannot be read or written.
    #[error("the identity in the data directory cannot be used")]
    Directory(#[source] IdentityDirError),
    /// The identity is damaged.
    #[error(
        "the identity in the data directory is damaged: {0}: delete the data directory and join with a new token"
    )]
    Damaged(String),
    /// The cluster cannot be reached.
    #[error("the Auth Service cannot be reached: {0}")]
    Unreachable(String),
    /// Certificates and a clock do not agree.
    #[error("{0}: set the clocks right; until then this process cannot be sure of the cluster")]
    Clock(ClockComplaint),
    /// What answered is not what is pinned or trusted.
    #[error(
        "whoever answered is not the cluster that this process trusts ({0}): compare wayleave.ca_pin with what \
         `way -c FILE status` prints on the Auth host, and the address with the right one"
    )]
    Untrusted(String),
    /// The cluster refused.
    #[error("the cluster refused: {0}")]
    Refused(String),
    /// The answer of the cluster is unusable.
    #[error("the answer of the Auth Service is unusable: {0}")]
    BadAnswer(String),
    /// Keys or certificates cannot be used.
    #[error("the keys or certificates cannot be used")]
    Credentials(#[source] CredentialsError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] TlsConfigError),
}

impl InstanceError {
    pub(crate) fn from_status(status: &tonic::Status) -> Self {
        if let Some(complaint) = clock_complaint(status) {
            return Self::Clock(complaint);
        }
        if is_untrusted(status) {
            return Self::Untrusted(status_with_sources(status));
        }
        match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
                Self::Unreachable(status_with_sources(status))
            }
            _ => Self::Refused(status.message().to_owned()),
        }
    }
}

/// True when a TLS handshake failed for the certificate of the other side.
fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    let is_bad_certificate = |error: &(dyn std::error::Error + 'static)| {
        matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
    };
    // The source of an IO error is that of what it wraps: look at what it wraps as well.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    is_bad_certificate(error)
        || wrapped.is_some_and(|inner| is_untrusted(inner))
        || error.source().is_some_and(is_untrusted)
}

/// A status and what caused it: the transport hides the interesting part in its sources.
fn status_with_sources(status: &tonic::Status) -> String {
    appended(status.message().to_owned(), std::error::Error::source(status))
}

/// An error and what caused it.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    appended(error.to_string(), error.source())
}

fn appended(mut text: String, mut source: Option<&(dyn std::error::Error + 'static)>) -> String {
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

pub(crate) fn role_list(roles: &BTreeSet<SystemRole>) -> String {
    roles.iter().map(|role| role.as_str().to_lowercase()).collect::<Vec<_>>().join(",")
}
