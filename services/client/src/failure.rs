//! What went wrong, for the person at the terminal: one line, what to do about it, and the exit code.
//!
//! Everything that fails inside the client becomes a [`Failure`] at the place that knows what the user can do.

use std::error::Error;
use std::fmt;
use std::io;
use tonic::{Code, Status};
use wayleave_dial::DialRefusal;
use wayleave_net::{ConnectError, MessageError};
use wayleave_vocab::printable;

/// How `way` ends. The numbers are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0.
    Done,
    /// 1: it did not work.
    Failed,
    /// 2: the command line makes no sense.
    Usage,
    /// 3: not allowed.
    Denied,
    /// 4: no such thing.
    NotFound,
    /// 5: the cluster or the node cannot be reached.
    Unreachable,
    /// 6: the certificate has run out.
    Expired,
    /// What a remote command ended with, or 255 for failures of `way ssh` itself.
    Remote(u8),
}

/// Exit code of `way ssh` when it was not the remote command that failed, as OpenSSH has it.
pub(crate) const SSH_FAILURE: u8 = 255;

impl Exit {
    /// The number.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Denied => 3,
            Self::NotFound => 4,
            Self::Unreachable => 5,
            Self::Expired => 6,
            Self::Remote(code) => code,
        }
    }

    /// What a span says: no words, in which names could be.
    pub(crate) fn for_spans(self) -> String {
        format!("exit {}", self.code())
    }
}

/// Something did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// How the process ends.
    pub(crate) exit: Exit,
    /// What went wrong.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A failure of one kind.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// Exit 1.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// Exit 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Says what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says what to do unless it is said already.
    pub(crate) fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// For `map_err`: what was being done, and the chain of reasons.
    pub(crate) fn doing<E: Error>(what: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self::failed(format!("{what}: {}", chain(&error)))
    }
}

impl fmt::Display for Failure {
    /// `error: …` and, on its own line, `hint: …`. Control characters of peers never reach the terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", printable(&self.message))?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {}", printable(hint))?;
        }
        Ok(())
    }
}

impl Error for Failure {}

/// An error and everything below it, each said once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = source.source();
    }
    text
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // An io::Error hides the error that it was made of from `source`.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| find::<E>(inner)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        from_connect(&error)
    }
}

fn from_connect(error: &ConnectError) -> Failure {
    let text = chain(error);
    if let ConnectError::HttpProxy { .. } | ConnectError::Outbound(_) = error {
        return Failure::new(Exit::Unreachable, text)
            .hint("check HTTPS_PROXY, and NO_PROXY for what is reached without it");
    }
    let ConnectError::Tls { address, .. } = error else {
        return Failure::new(Exit::Unreachable, text)
            .hint("does it run there? Check the address (--proxy) and the network");
    };
    match tls_reason(error, &text) {
        Some(reason) => from_tls(&address.to_string(), &reason),
        None => Failure::new(Exit::Unreachable, text)
            .hint("is that the web address of a Wayleave proxy? Check --proxy"),
    }
}

/// Why a handshake failed. Where two ways were tried, only the text tells.
fn tls_reason(error: &ConnectError, text: &str) -> Option<rustls::Error> {
    use rustls::CertificateError::{Expired, NotValidForName, NotValidYet, UnknownIssuer};
    let told = || {
        [UnknownIssuer, Expired, NotValidYet, NotValidForName]
            .map(rustls::Error::InvalidCertificate)
            .into_iter()
            .find(|known| text.contains(&known.to_string()))
    };
    find::<rustls::Error>(error).cloned().or_else(told)
}

fn from_tls(address: &str, reason: &rustls::Error) -> Failure {
    use rustls::{AlertDescription as Alert, CertificateError, Error as Tls};
    let expired = || {
        Failure::new(Exit::Expired, format!("{address} refused the certificate: it has expired")).hint(format!(
            "log in again with `way login`, or ask for a new identity file; if it is new, the clock of this \
                 machine or of {address} is wrong"
        ))
    };
    match reason {
        Tls::AlertReceived(Alert::CertificateExpired) => expired(),
        Tls::AlertReceived(
            Alert::UnknownCA | Alert::BadCertificate | Alert::AccessDenied | Alert::CertificateUnknown,
        ) => Failure::new(Exit::Denied, format!("{address} does not believe this certificate"))
            .hint("it is of another cluster, or its authority was replaced: log in again with `way login`"),
        Tls::AlertReceived(Alert::NoApplicationProtocol) => {
            Failure::new(Exit::Unreachable, format!("{address} is no Wayleave proxy (or an older one)"))
                .hint("check --proxy: it is the address of the proxy's web port")
        }
        Tls::InvalidCertificate(CertificateError::Expired) => {
            Failure::new(Exit::Unreachable, format!("the certificate of {address} has expired"))
                .hint("check this machine's clock; if it is right, tell the cluster's administrator")
        }
        Tls::InvalidCertificate(CertificateError::NotValidYet) => {
            Failure::new(Exit::Unreachable, format!("the certificate of {address} is not valid yet"))
                .hint("check this machine's clock")
        }
        Tls::InvalidCertificate(CertificateError::UnknownIssuer) => Failure::new(
            Exit::Denied,
            format!("{address} does not prove that it is of this cluster: its authority is not trusted here"),
        )
        .hint("somebody may be in between, or the cluster was made anew: check --ca-pin, or log in again"),
        other => Failure::new(Exit::Unreachable, format!("the TLS handshake with {address} failed: {other}"))
            .hint("check --proxy: it is the address of a Wayleave proxy's web port"),
    }
}

impl From<MessageError> for Failure {
    fn from(error: MessageError) -> Self {
        if let Some(reason) = find::<rustls::Error>(&error) {
            return from_tls("the proxy", reason);
        }
        Self::new(Exit::Unreachable, format!("the proxy did not answer: {}", chain(&error)))
            .hint("try again; if it persists, ask the administrator whether the proxies are well")
    }
}

impl From<DialRefusal> for Failure {
    fn from(refusal: DialRefusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            DialRefusal::UnknownTarget { .. } => Self::new(Exit::NotFound, text)
                .hint("a machine appears there once its agent has joined and your roles allow you in"),
            DialRefusal::Ambiguous { .. } => Self::failed(text),
            DialRefusal::Offline { .. } => {
                Self::new(Exit::Unreachable, text).hint("is the machine up and its agent running?")
            }
            DialRefusal::NotHere { .. } | DialRefusal::Unavailable { .. } => {
                Self::new(Exit::Unreachable, text).hint("try again in a moment")
            }
            DialRefusal::Denied { .. } => {
                Self::new(Exit::Denied, text).hint("`way explain` tells which rule decided")
            }
            DialRefusal::Invalid { .. } => Self::failed(text)
                .hint("`way` and the proxy may be of different releases: compare `way version`"),
            DialRefusal::TimedOut { .. } => {
                Self::new(Exit::Unreachable, text).hint("is the machine reachable and its agent running?")
            }
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if let Some(error) = status.source()
            && let Some(connect) = find::<ConnectError>(error)
        {
            return from_connect(connect);
        }
        if let Some(error) = status.source()
            && let Some(reason) = find::<rustls::Error>(error)
        {
            return from_tls("the Auth Service", reason);
        }
        let text = if status.message().is_empty() {
            format!("the Auth Service answered {:?}", status.code())
        } else {
            status.message().to_owned()
        };
        from_code(status.code(), text)
    }
}

fn from_code(code: Code, text: String) -> Failure {
    match code {
        Code::PermissionDenied | Code::Unauthenticated => Failure::new(Exit::Denied, text),
        Code::NotFound => Failure::new(Exit::NotFound, text),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Failure::new(
            Exit::Unreachable,
            format!("the Auth Service cannot be reached or did not answer: {text}"),
        )
        .hint("check the address (--proxy), and that the proxy and the Auth Service run"),
        Code::Aborted => {
            Failure::failed(text).hint("somebody else changed it meanwhile: look again and repeat")
        }
        Code::ResourceExhausted => Failure::failed(text).hint("wait a little and try again"),
        Code::Unimplemented => {
            Failure::failed(text).hint("the cluster may be of another release: compare `way version`")
        }
        Code::Ok
        | Code::AlreadyExists
        | Code::Unknown
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss => Failure::failed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(failure: impl Into<Failure>, code: u8) {
        let failure = failure.into();
        assert_eq!(failure.exit.code(), code, "{failure}");
    }

    #[test]
    fn every_grpc_code_has_its_exit_code() {
        check(Status::permission_denied("no"), 3);
        check(Status::unauthenticated("wrong password"), 3);
        check(Status::not_found("no user"), 4);
        check(Status::unavailable("down"), 5);
        check(Status::deadline_exceeded("slow"), 5);
        check(Status::already_exists("is there"), 1);
        check(Status::invalid_argument("bad"), 1);
        check(Status::internal("broken"), 1);
    }

    #[test]
    fn every_refusal_of_a_proxy_has_its_exit_code() {
        let (name, detail) = (String::from("web-1"), String::from("x"));
        check(DialRefusal::UnknownTarget { name: name.clone() }, 4);
        check(DialRefusal::Ambiguous { name: name.clone(), count: 2 }, 1);
        check(DialRefusal::Offline { name, detail: detail.clone() }, 5);
        check(DialRefusal::Denied { detail: detail.clone() }, 3);
        check(DialRefusal::Unavailable { detail: detail.clone() }, 5);
        check(DialRefusal::TimedOut { detail: detail.clone() }, 5);
        check(DialRefusal::invalid(detail), 1);
    }

    #[test]
    fn a_refused_certificate_is_told_apart_from_a_dead_proxy() {
        let address: wayleave_vocab::HostPort = "proxy:3080".parse().unwrap();
        let tls = |error| ConnectError::Tls {
            address: address.clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        };
        let expired = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired);
        check(tls(expired), 6);
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let both_ways = io::Error::other(format!("{unknown} (through a WebSocket: no)"));
        check(ConnectError::Tls { address: address.clone(), source: both_ways }, 3);
        check(tls(unknown), 3);
        check(ConnectError::NoAddress, 5);
    }

    #[test]
    fn m_control_characters_of_a_peer_do_not_reach_the_terminal() {
        let failure = Failure::from(Status::not_found("no \u{1b}[2Juser\u{7}"));
        assert_eq!(failure.to_string(), "error: no \\u001b[2Juser\\u0007");
    }
}
