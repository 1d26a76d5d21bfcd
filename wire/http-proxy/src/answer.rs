//! The request for a connection, and what the proxy says to it.

use crate::setting::HttpProxy;
use wayleave_vocab::{HostPort, SecretBytes};

/// Longest answer: status line and header.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// How much of the proxy's own words is repeated.
const REASON_CHARS_MAX: usize = 64;
const VERSION_START: &[u8] = b"HTTP/1.";
const HEAD_END: &[u8] = b"\r\n\r\n";
const PROXY_LOGIN_REQUIRED: u16 = 407;

/// An answer that is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// What answers speaks something else.
    #[error("what answers there is no HTTP proxy")]
    NotHttp,
    /// The header has no end.
    #[error("the proxy's answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    /// There were bytes behind the answer before anything was said to the other end.
    #[error("the proxy sent something of its own in place of the connection")]
    NotAConnection,
    /// The proxy wants a login, or another one.
    #[error("the proxy asks for a login (407): write it as HTTPS_PROXY=http://user:password@host:port")]
    LoginRequired,
    /// The proxy does not want to.
    #[error("the proxy refused: {status}{reason}")]
    Refused {
        /// The status.
        status: u16,
        /// What it says behind it, cut; with a space in front, or empty.
        reason: String,
    },
}

/// The request that asks `proxy` for a connection to `target`.
pub fn connect_request(proxy: &HttpProxy, target: &HostPort) -> SecretBytes {
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(basic) = proxy.basic() {
        request.extend_from_slice(b"Proxy-Authorization: Basic ");
        request.extend_from_slice(basic.expose_secret().as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    SecretBytes::new(request)
}

/// Looks at everything that the proxy has sent: true when the connection is there, false when more has to come.
///
/// # Errors
/// See [`AnswerError`]; told as early as it is known.
pub fn parse_answer(bytes: &[u8]) -> Result<bool, AnswerError> {
    let known = bytes.len().min(VERSION_START.len());
    if bytes[..known] != VERSION_START[..known] {
        return Err(AnswerError::NotHttp);
    }
    let looked_at = &bytes[..bytes.len().min(ANSWER_BYTES_MAX)];
    let Some(end) = looked_at.windows(HEAD_END.len()).position(|window| window == HEAD_END) else {
        return if bytes.len() >= ANSWER_BYTES_MAX { Err(AnswerError::TooLong) } else { Ok(false) };
    };
    let line_end = bytes.iter().position(|byte| *byte == b'\r').unwrap_or(end);
    let line = std::str::from_utf8(&bytes[..line_end]).map_err(|_| AnswerError::NotHttp)?;
    let (_version, rest) = line.split_once(' ').ok_or(AnswerError::NotHttp)?;
    let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    if status.len() != 3 || !status.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AnswerError::NotHttp);
    }
    let status: u16 = status.parse().map_err(|_| AnswerError::NotHttp)?;
    match status {
        200..=299 if bytes.len() > end + HEAD_END.len() => Err(AnswerError::NotAConnection),
        200..=299 => Ok(true),
        PROXY_LOGIN_REQUIRED => Err(AnswerError::LoginRequired),
        status => Err(AnswerError::Refused { status, reason: shown(reason) }),
    }
}

/// The proxy's words, fit for a terminal and a log.
fn shown(reason: &str) -> String {
    let words: String = reason.trim().chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect();
    if words.is_empty() { words } else { format!(" {words}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_request_names_the_target_and_logs_in() {
        let proxy = HttpProxy::parse("http://Aladdin:open%20sesame@squid:3128").unwrap();
        let request = connect_request(&proxy, &"[2001:db8::1]:443".parse().unwrap());
        // The credentials are the example of RFC 7617.
        assert_eq!(
            std::str::from_utf8(request.expose_secret()).unwrap(),
            "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\
             Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"
        );
        let open = connect_request(&HttpProxy::parse("squid").unwrap(), &"a:1".parse().unwrap());
        assert_eq!(open.expose_secret(), b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
    }

    fn check(answer: &str, expected: Result<bool, AnswerError>) {
        assert_eq!(parse_answer(answer.as_bytes()), expected, "{answer:?}");
    }

    #[test]
    fn a_connection_is_there_when_the_header_has_ended() {
        let whole = "HTTP/1.1 200 Connection established\r\nVia: 1.1 squid\r\n\r\n";
        for length in 0..whole.len() {
            check(&whole[..length], Ok(false));
        }
        check(whole, Ok(true));
        check("HTTP/1.0 200\r\n\r\n", Ok(true));
        check("HTTP/1.1 204 \r\n\r\n", Ok(true));
    }

    #[test]
    fn f_whatever_else_a_proxy_says_is_told_apart() {
        check("SSH-2.0-OpenSSH_9.2\r\n", Err(AnswerError::NotHttp));
        check("\u{16}\u{3}\u{1}", Err(AnswerError::NotHttp));
        check("HTTP/2 200\r\n\r\n", Err(AnswerError::NotHttp));
        check("HTTP/1.1 2000 x\r\n\r\n", Err(AnswerError::NotHttp));
        check("HTTP/1.1 +20 x\r\n\r\n", Err(AnswerError::NotHttp));
        check("HTTP/1.1\r\n\r\n", Err(AnswerError::NotHttp));
        check("HTTP/1.1 200 OK\r\n\r\n<html>", Err(AnswerError::NotAConnection));
        check("HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic\r\n\r\n", Err(AnswerError::LoginRequired));
        let forbidden = AnswerError::Refused { status: 403, reason: " Not [31mhere".into() };
        check("HTTP/1.1 403 Not \u{1b}[31mhere\r\n\r\nbody", Err(forbidden));
        check("HTTP/1.1 301 \r\n\r\n", Err(AnswerError::Refused { status: 301, reason: String::new() }));
        let endless = format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(ANSWER_BYTES_MAX));
        check(&endless[..ANSWER_BYTES_MAX - 1], Ok(false));
        check(&endless[..ANSWER_BYTES_MAX], Err(AnswerError::TooLong));
        check(&format!("{endless}\r\n"), Err(AnswerError::TooLong));
    }

    proptest! {
        #[test]
        fn f_arbitrary_answers_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_answer(&tail);
            let _ = parse_answer(&[b"HTTP/1.1 ".as_slice(), &tail].concat());
        }
    }
}
