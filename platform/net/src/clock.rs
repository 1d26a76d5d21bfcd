//! Handshakes that fail for the time on somebody's clock, told apart so that the message can name the clock.

use rustls::{AlertDescription, CertificateError};
use std::error::Error;
use std::time::Duration;
use std::{fmt, io};

/// What a failed handshake says of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockComplaint {
    /// The other side's certificate has expired, by the clock here.
    Expired,
    /// The other side's certificate is not valid yet, by the clock here.
    NotYetValid,
    /// The certificate presented here has expired or is not valid yet, by the other side's clock.
    RefusedThere,
    /// The certificate that Auth issued is not valid yet, by the clock here.
    IssuedAhead,
    /// Auth's clock is ahead of the one here: what it issues now is not valid here yet.
    AuthAhead {
        /// How far.
        by: Duration,
    },
}

impl fmt::Display for ClockComplaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "the certificate of the other side has expired by the clock of this machine",
            Self::NotYetValid => {
                "the certificate of the other side is not valid yet by the clock of this machine"
            }
            Self::RefusedThere => {
                "the certificate of this process is out of date by the clock of the other side"
            }
            Self::IssuedAhead => {
                "the certificate that the Auth Service issued is not valid yet by the clock of this machine"
            }
            Self::AuthAhead { by } => {
                return write!(
                    f,
                    "the clock of the Auth Service is {} s ahead of that of this machine",
                    by.as_secs()
                );
            }
        })
    }
}

/// Whether a clock is what an error is about, or something below it.
pub fn clock_complaint(error: &(dyn Error + 'static)) -> Option<ClockComplaint> {
    let told = error.downcast_ref::<rustls::Error>().and_then(of_handshake);
    // An io::Error hides what it was made of from `source`.
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    told.or_else(|| inner.and_then(|inner| clock_complaint(inner)))
        .or_else(|| error.source().and_then(clock_complaint))
}

fn of_handshake(error: &rustls::Error) -> Option<ClockComplaint> {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => Some(ClockComplaint::Expired),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Some(ClockComplaint::NotYetValid),
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            Some(ClockComplaint::RefusedThere)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConnectError;

    fn check(error: rustls::Error, expected: Option<ClockComplaint>) {
        let address = "proxy:443".parse().unwrap();
        let source = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(clock_complaint(&ConnectError::Tls { address, source }), expected);
    }

    #[test]
    fn a_clock_that_is_ahead_is_told_with_its_distance() {
        let told = ClockComplaint::AuthAhead { by: Duration::from_secs(600) }.to_string();
        assert_eq!(told, "the clock of the Auth Service is 600 s ahead of that of this machine");
    }

    #[test]
    fn only_what_is_about_time_is_blamed_on_a_clock() {
        check(CertificateError::Expired.into(), Some(ClockComplaint::Expired));
        check(CertificateError::NotValidYet.into(), Some(ClockComplaint::NotYetValid));
        check(CertificateError::UnknownIssuer.into(), None);
        let alert = |description| rustls::Error::AlertReceived(description);
        check(alert(AlertDescription::CertificateExpired), Some(ClockComplaint::RefusedThere));
        check(alert(AlertDescription::BadCertificate), None);
    }
}
