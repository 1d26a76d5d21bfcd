//! `GET /webapi/connectionupgrade`: a WebSocket for clients behind a balancer that ends TLS. Inside it runs a TLS
//! connection that is recognised as on the public port itself.

use axum::body::Body;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL};
use http::header::{HeaderName, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use std::net::{IpAddr, SocketAddr};
use wayleave_net::{UPGRADE_PROTOCOL, upgrade_accept_key};

/// Length of a `Sec-WebSocket-Key`: 16 bytes in base64 (RFC 6455, section 4.1).
const KEY_CHARS: usize = 24;
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// An upgrade that was agreed to.
pub(crate) struct Agreed {
    /// Gives the stream once the answer has been sent.
    pub(crate) stream: OnUpgrade,
    /// Where the client is.
    pub(crate) client: SocketAddr,
}

/// Why there is no upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("only GET over HTTP/1.1 can be upgraded")]
    Method,
    #[error("this is for WebSockets (RFC 6455) with the sub-protocol {UPGRADE_PROTOCOL}")]
    NotOurs,
    #[error("the header {0} must be there once")]
    Header(&'static str),
    #[error("X-Forwarded-For must hold one address")]
    ForwardedFor,
}

/// Answers one request. `peer` connected; with `trust_forwarded_for` the balancer's word on the client counts instead.
pub(crate) fn answer(
    mut request: Request<hyper::body::Incoming>,
    peer: SocketAddr,
    trust_forwarded_for: bool,
) -> (Response<Body>, Option<Agreed>) {
    let agreed = accept_key(request.method(), request.version(), request.headers())
        .and_then(|key| Ok((key, client_address(request.headers(), peer, trust_forwarded_for)?)));
    match agreed {
        Ok((key, client)) => {
            let answer = Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(CONNECTION, "Upgrade")
                .header(UPGRADE, "websocket")
                .header(SEC_WEBSOCKET_ACCEPT, key)
                .header(SEC_WEBSOCKET_PROTOCOL, UPGRADE_PROTOCOL)
                .body(Body::empty())
                .expect("the headers are constants and a base64 text");
            (answer, Some(Agreed { stream: hyper::upgrade::on(&mut request), client }))
        }
        Err(refused) => {
            tracing::debug!(%peer, %refused, "no upgrade");
            let mut answer = Response::new(Body::from(format!("{refused}\n")));
            *answer.status_mut() = StatusCode::BAD_REQUEST;
            (answer, None)
        }
    }
}

/// The answer to the client's key, when the request is one that is served here.
fn accept_key(method: &Method, version: Version, headers: &HeaderMap) -> Result<String, Refused> {
    if method != Method::GET || version != Version::HTTP_11 {
        return Err(Refused::Method);
    }
    single(headers, &HOST, "Host")?;
    let upgrade = single(headers, &UPGRADE, "Upgrade")?;
    let version = single(headers, &SEC_WEBSOCKET_VERSION, "Sec-WebSocket-Version")?;
    let key = single(headers, &SEC_WEBSOCKET_KEY, "Sec-WebSocket-Key")?;
    let is_ours = list(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        && upgrade.eq_ignore_ascii_case("websocket")
        && version == "13"
        && key.len() == KEY_CHARS
        && list(headers, &SEC_WEBSOCKET_PROTOCOL).any(|token| token == UPGRADE_PROTOCOL);
    if is_ours { Ok(upgrade_accept_key(key.as_bytes())) } else { Err(Refused::NotOurs) }
}

/// The value of a header that must be there exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName, shown: &'static str) -> Result<&'a str, Refused> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (Some(Ok(value)), None) => Ok(value.trim()),
        _ => Err(Refused::Header(shown)),
    }
}

/// The members of a header that holds a list, over all its lines.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// One address, told by the balancer in front; a chain of them could have been begun by the client.
fn client_address(headers: &HeaderMap, peer: SocketAddr, is_trusted: bool) -> Result<SocketAddr, Refused> {
    if !is_trusted || !headers.contains_key(X_FORWARDED_FOR) {
        return Ok(peer);
    }
    let value = single(headers, &X_FORWARDED_FOR, "X-Forwarded-For").map_err(|_| Refused::ForwardedFor)?;
    let address = value.parse::<SocketAddr>().ok();
    // Balancers leave the port out as a rule: 0 says that it is not known.
    let address = address.or_else(|| value.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 0)));
    address.ok_or(Refused::ForwardedFor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const GOOD: [(&str, &str); 6] = [
        ("host", "proxy.example.com"),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "other, wayleave"),
    ];

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn check(pairs: &[(&'static str, &str)], expected: Result<&str, Refused>) {
        let key = accept_key(&Method::GET, Version::HTTP_11, &headers(pairs));
        assert_eq!(key.as_deref().map_err(|e| *e), expected, "{pairs:?}");
    }

    #[test]
    fn the_example_of_rfc_6455_is_answered() {
        check(&GOOD, Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    }

    #[test]
    fn b_missing_doubled_and_foreign_headers_are_refused() {
        for (left_out, (name, _)) in GOOD.iter().enumerate() {
            let mut without = GOOD.to_vec();
            without.remove(left_out);
            let key = accept_key(&Method::GET, Version::HTTP_11, &headers(&without));
            assert!(key.is_err(), "without {name}");
        }
        let doubled = |name, value| [&GOOD[..], &[(name, value)]].concat();
        check(&doubled("sec-websocket-key", GOOD[4].1), Err(Refused::Header("Sec-WebSocket-Key")));
        check(&doubled("upgrade", "h2c"), Err(Refused::Header("Upgrade")));
        check(&doubled("host", "other.example.com"), Err(Refused::Header("Host")));
        let good = headers(&GOOD);
        assert_eq!(accept_key(&Method::POST, Version::HTTP_11, &good), Err(Refused::Method));
        assert_eq!(accept_key(&Method::GET, Version::HTTP_10, &good), Err(Refused::Method));
    }

    #[test]
    fn b_x_forwarded_for_counts_only_when_trusted_and_alone() {
        let peer: SocketAddr = "10.0.0.1:4000".parse().unwrap();
        let check = |values: &[&str], is_trusted, expected: Result<&str, Refused>| {
            let pairs: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
            let found = client_address(&headers(&pairs), peer, is_trusted);
            assert_eq!(found, expected.map(|address| address.parse().unwrap()), "{values:?} {is_trusted}");
        };
        check(&[], true, Ok("10.0.0.1:4000"));
        check(&["192.0.2.7"], false, Ok("10.0.0.1:4000"));
        check(&["192.0.2.7, 192.0.2.8"], false, Ok("10.0.0.1:4000"));
        check(&["192.0.2.7"], true, Ok("192.0.2.7:0"));
        check(&["192.0.2.7:99"], true, Ok("192.0.2.7:99"));
        check(&["2001:db8::1"], true, Ok("[2001:db8::1]:0"));
        check(&["192.0.2.7, 192.0.2.8"], true, Err(Refused::ForwardedFor));
        check(&["192.0.2.7", "192.0.2.8"], true, Err(Refused::ForwardedFor));
        check(&["unknown"], true, Err(Refused::ForwardedFor));
        check(&[""], true, Err(Refused::ForwardedFor));
    }
}
