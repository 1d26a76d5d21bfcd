//! The proxy that `HTTPS_PROXY` names.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use wayleave_vocab::{HostPort, Secret};

/// The port of a proxy that is written without one.
const HTTP_PORT: u16 = 80;
/// Longest user name and password, together, in bytes.
const CREDENTIALS_BYTES_MAX: usize = 1024;

/// An HTTP proxy, and how to log in there.
#[derive(Clone)]
pub struct HttpProxy {
    address: HostPort,
    /// `user:password` in Base64.
    basic: Option<Secret>,
}

/// A proxy that cannot be used. The text itself is not repeated: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseHttpProxyError {
    /// It is reached by something else than plain HTTP.
    #[error("only proxies of the form http://[user:password@]host[:port] are supported")]
    Scheme,
    /// The part behind user and password is no address.
    #[error("the host or the port of the proxy cannot be read ({0})")]
    Address(&'static str),
    /// User and password are no text, are too long, or the user's name has a colon.
    #[error(
        "the user or password of the proxy cannot be read: other characters than letters and digits are written as %XX"
    )]
    Credentials,
}

impl HttpProxy {
    /// Reads `http://[user:password@]host[:port][/]`; the scheme may be left out.
    ///
    /// # Errors
    /// See [`ParseHttpProxyError`].
    pub fn parse(text: &str) -> Result<Self, ParseHttpProxyError> {
        let text = text.trim();
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(ParseHttpProxyError::Scheme),
            None => text,
        };
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, rest),
        };
        let address = HostPort::parse(address, Some(HTTP_PORT))
            .map_err(|error| ParseHttpProxyError::Address(error.problem))?;
        let basic = credentials.map(basic).transpose()?;
        Ok(Self { address, basic })
    }

    /// Where it is.
    pub fn address(&self) -> &HostPort {
        &self.address
    }

    /// What `Proxy-Authorization: Basic` carries, if it asks for a login.
    pub(crate) fn basic(&self) -> Option<&Secret> {
        self.basic.as_ref()
    }
}

/// Without user and password.
impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.address, f)
    }
}

fn basic(credentials: &str) -> Result<Secret, ParseHttpProxyError> {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let user = decode_percent(user).filter(|user| !user.contains(&b':'));
    let (Some(user), Some(password)) = (user, decode_percent(password)) else {
        return Err(ParseHttpProxyError::Credentials);
    };
    let whole = Secret::new(
        String::from_utf8([user.as_slice(), b":", &password].concat())
            .ok()
            .filter(|text| text.len() <= CREDENTIALS_BYTES_MAX && !text.chars().any(char::is_control))
            .ok_or(ParseHttpProxyError::Credentials)?,
    );
    Ok(Secret::new(STANDARD.encode(whole.expose_secret())))
}

fn decode_percent(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            byte => byte,
        });
    }
    Some(decoded)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(&str, Option<&str>), ParseHttpProxyError>) {
        let parsed = HttpProxy::parse(text);
        let got = parsed.map(|proxy| {
            let basic = proxy.basic().map(|basic| STANDARD.decode(basic.expose_secret()).unwrap());
            (proxy.address().to_string(), basic.map(|bytes| String::from_utf8(bytes).unwrap()))
        });
        assert_eq!(got, expected.map(|(a, b)| (a.to_owned(), b.map(str::to_owned))), "{text}");
    }

    #[test]
    fn proxies_are_read_as_people_write_them() {
        check("http://squid.example.com:3128", Ok(("squid.example.com:3128", None)));
        check(" HTTP://squid/ ", Ok(("squid:80", None)));
        check("10.0.0.1:3128", Ok(("10.0.0.1:3128", None)));
        check("http://[fd00::1]:3128/", Ok(("[fd00::1]:3128", None)));
        check("http://ann:se%40cret%3a@squid:3128", Ok(("squid:3128", Some("ann:se@cret:"))));
        check("http://ann@squid:3128", Ok(("squid:3128", Some("ann:"))));
        check("http://ann:p@ss@squid:3128", Ok(("squid:3128", Some("ann:p@ss"))));
    }

    #[test]
    fn m_what_cannot_be_read_is_refused_without_its_password() {
        check("https://squid:3128", Err(ParseHttpProxyError::Scheme));
        check("socks5://squid:1080", Err(ParseHttpProxyError::Scheme));
        for bad in [
            "http://ann:%zz@squid",
            "http://a%3ab:c@squid",
            "http://ann:%0d%0a@squid",
            "http://ann:%ff@squid",
        ] {
            check(bad, Err(ParseHttpProxyError::Credentials));
        }
        let long = format!("http://ann:{}@squid", "x".repeat(CREDENTIALS_BYTES_MAX));
        assert_eq!(HttpProxy::parse(&long).unwrap_err(), ParseHttpProxyError::Credentials);
        for bad in
            ["", "http://", "http://ann:secret@", "http://ann:secret@squid:99999", "http://ann:secret@a b"]
        {
            let error = HttpProxy::parse(bad).unwrap_err();
            assert!(matches!(error, ParseHttpProxyError::Address(_)), "{bad}: {error:?}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
        let proxy = HttpProxy::parse("http://ann:secret@squid:3128").unwrap();
        assert_eq!(format!("{proxy:?}"), "squid:3128");
    }
}
