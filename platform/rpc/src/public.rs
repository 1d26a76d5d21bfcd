//! Trust that a public authority lends: a proxy whose web certificate the system's authorities vouch for says whose
//! cluster it serves, as pins of the host authority.

use hyper::body::{Body, Incoming};
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use wayleave_keystore::{Pins, TlsConfigError, public_client_config};
use wayleave_net::{ConnectError, connect_tls};
use wayleave_vocab::HostPort;

/// How long a proxy may take to say which cluster it is of.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer to that.
const PING_BYTES_MAX: usize = 64 * 1024;
const PING_PATH: &str = "/webapi/ping";

/// No pins could be learned.
#[derive(Debug, thiserror::Error)]
pub enum PublicPinsError {
    /// Nobody answers there.
    #[error("the proxy cannot be reached")]
    Unreachable(#[source] ConnectError),
    /// No public authority vouches for who answers there: nothing that it says counts.
    #[error("the web certificate is not one that the system's authorities vouch for")]
    Untrusted(#[source] ConnectError),
    /// It answers, but not as a proxy does.
    #[error("{0} does not answer as a proxy does: {1}")]
    NotAProxy(HostPort, String),
    /// It did not answer in time.
    #[error("{proxy} did not answer within {} s", PING_TIMEOUT.as_secs())]
    TimedOut {
        /// Who was asked.
        proxy: HostPort,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] TlsConfigError),
}

/// The part of the answer that matters here.
#[derive(Debug, Deserialize)]
struct Ping {
    ca_pins: Vec<String>,
}

/// The pins of the cluster behind `proxy`, told over TLS that the system's authorities vouch for; never empty.
///
/// # Errors
/// See [`PublicPinsError`]; only [`PublicPinsError::Unreachable`] and [`PublicPinsError::TimedOut`] may pass by themselves.
pub async fn public_pins(proxy: &HostPort) -> Result<Pins, PublicPinsError> {
    let tls = public_client_config(None).map_err(PublicPinsError::Tls)?;
    let asking = async {
        let stream = connect_tls(proxy, tls).await.map_err(|error| match error {
            error @ ConnectError::Tls { .. } => PublicPinsError::Untrusted(error),
            error => PublicPinsError::Unreachable(error),
        })?;
        let answer = ping(stream, proxy).await.and_then(|body| parse(&body));
        answer.map_err(|reason| PublicPinsError::NotAProxy(proxy.clone(), reason))
    };
    tokio::time::timeout(PING_TIMEOUT, asking)
        .await
        .map_err(|_| PublicPinsError::TimedOut { proxy: proxy.clone() })?
}

fn parse(body: &[u8]) -> Result<Pins, String> {
    let ping: Ping = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let pins: Pins = ping.ca_pins.join(",").parse().map_err(|e| format!("{e}"))?;
    if pins.is_empty() { Err("it states no CA pin".to_owned()) } else { Ok(pins) }
}

/// The body of the proxy's answer.
async fn ping<S>(stream: S, proxy: &HostPort) -> Result<Vec<u8>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::get(PING_PATH)
        .header(HOST, proxy.to_string())
        .header(ACCEPT, "application/json")
        .body(String::new())
        .map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let mut connection = pin!(connection);
    let mut exchange = pin!(async {
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        if answer.status() != StatusCode::OK {
            return Err(format!("it says {} to {PING_PATH}", answer.status()));
        }
        read_body(answer.into_body()).await
    });
    tokio::select! {
        biased;
        answer = exchange.as_mut() => answer,
        // The connection may end before the last of the body was looked at.
        ended = connection.as_mut() => {
            ended.map_err(|e| e.to_string())?;
            exchange.await
        }
    }
}

async fn read_body(mut body: Incoming) -> Result<Vec<u8>, String> {
    let mut whole = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|e| e.to_string())?;
        let Some(data) = frame.data_ref() else { continue };
        if whole.len().saturating_add(data.len()) > PING_BYTES_MAX {
            return Err(format!("more than {PING_BYTES_MAX} bytes"));
        }
        whole.extend_from_slice(data);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn asked(answer: &[u8]) -> Result<Pins, String> {
        let (near, mut far) = tokio::io::duplex(1024);
        let address: HostPort = "proxy.example.com:443".parse().unwrap();
        let serve = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(far.read_u8().await.unwrap());
            }
            let _ = far.write_all(answer).await;
            drop(far);
            String::from_utf8(head).unwrap()
        };
        let ask = async { ping(near, &address).await.and_then(|body| parse(&body)) };
        let (asked, head) = tokio::join!(ask, serve);
        assert!(head.starts_with("GET /webapi/ping HTTP/1.1\r\nhost: proxy.example.com:443\r\n"), "{head}");
        asked
    }

    fn answer(body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn pins_are_read_from_the_answer() {
        let pin = format!("sha256:{}", "0a".repeat(32));
        let expected: Pins = pin.parse().unwrap();
        let body = format!("{{\"cluster_name\":\"demo\",\"ca_pins\":[\"{pin}\"]}}");
        assert_eq!(asked(&answer(&body)).await.unwrap(), expected);
        let chunked = format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        assert_eq!(asked(chunked.as_bytes()).await.unwrap(), expected);
        let until_end = format!("HTTP/1.0 200 OK\r\n\r\n{body}");
        assert_eq!(asked(until_end.as_bytes()).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn f_answers_of_others_give_no_pins() {
        let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(PING_BYTES_MAX + 1));
        for bad in [
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
            b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}".to_vec(),
            Vec::new(),
            endless.into_bytes(),
            answer("{}"),
            answer("<html>"),
            answer("{\"ca_pins\":[]}"),
            answer("{\"ca_pins\":[\"sha256:12\"]}"),
        ] {
            assert!(asked(&bad).await.is_err(), "{}", String::from_utf8_lossy(&bad));
        }
    }
}
