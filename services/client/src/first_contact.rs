//! Reaching the Auth Service through a proxy before there is an identity.
//!
//! The TLS connection ends at Auth, behind the proxy; so the proxy sees no password. Whether it is the right Auth is
//! known from a pin, from an earlier login, or from a web certificate that the system's own authorities vouch for.
//! Without any of them nothing is sent.

use crate::failure::{Exit, Failure, chain};
use crate::home::Home;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::Channel;
use wayleave_api::ALPN_AUTH;
use wayleave_api::auth::public_client::PublicClient;
use wayleave_keystore::{Credentials, Pins, client_config, pinned_client_config};
use wayleave_net::connect_tls;
use wayleave_rpc::channel;
use wayleave_vocab::{HostPort, SystemRole};

/// How long a proxy may take to say which cluster it is of.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer to that, in bytes.
const PING_BYTES_MAX: u64 = 64 * 1024;

/// The part of `/webapi/ping` that matters here.
#[derive(Debug, Deserialize)]
struct Ping {
    #[serde(default)]
    ca_pins: Vec<String>,
}

/// The Auth API for strangers, through `proxy`.
pub(crate) async fn public_api(
    proxy: &HostPort,
    pins: Option<&Pins>,
) -> Result<PublicClient<Channel>, Failure> {
    let tls = match pins.filter(|pins| !pins.is_empty()) {
        Some(pins) => pinned(pins)?,
        None => match Home::find()?.profile(Some(proxy)) {
            Ok(Some(known)) => client_config(
                &Credentials::empty(),
                &known.identity.trust(),
                SystemRole::Auth,
                None,
                &[ALPN_AUTH],
            )
            .map_err(Failure::doing("cannot set up TLS"))?,
            Ok(None) | Err(_) => pinned(&ask_for_pins(proxy).await?)?,
        },
    };
    Ok(PublicClient::new(channel(vec![proxy.clone()], tls)))
}

fn pinned(pins: &Pins) -> Result<Arc<ClientConfig>, Failure> {
    pinned_client_config(pins, SystemRole::Auth, &[ALPN_AUTH]).map_err(Failure::doing("cannot set up TLS"))
}

/// The pins that a proxy states over a connection that a public authority vouches for.
async fn ask_for_pins(proxy: &HostPort) -> Result<Pins, Failure> {
    let ping = tokio::time::timeout(PING_TIMEOUT, ping(proxy)).await.map_err(|_| {
        Failure::new(Exit::Unreachable, format!("{proxy} did not answer within {} s", PING_TIMEOUT.as_secs()))
            .hint("check --proxy and the network")
    })??;
    let pins: Pins =
        ping.ca_pins.join(",").parse().map_err(Failure::doing("the proxy states a bad CA pin"))?;
    if pins.is_empty() {
        return Err(unknown_cluster(proxy, "it states no CA pin"));
    }
    Ok(pins)
}

async fn ping(proxy: &HostPort) -> Result<Ping, Failure> {
    let mut stream = connect_tls(proxy, public_tls()?).await.map_err(|error| match &error {
        wayleave_net::ConnectError::Tls { .. } => {
            unknown_cluster(proxy, "its web certificate is not from a public authority")
        }
        wayleave_net::ConnectError::Tcp { .. }
        | wayleave_net::ConnectError::NoAddress
        | wayleave_net::ConnectError::TimedOut { .. } => {
            Failure::new(Exit::Unreachable, chain(&error)).hint("check --proxy and the network")
        }
    })?;
    let request = format!("GET /webapi/ping HTTP/1.0\r\nHost: {proxy}\r\nAccept: application/json\r\n\r\n");
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        // A server that just closes has said all the same what it had to say.
        match (&mut stream).take(PING_BYTES_MAX).read_to_end(&mut answer).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(0),
            read => read,
        }
    };
    exchange.await.map_err(|e| {
        Failure::new(Exit::Unreachable, format!("{proxy} did not answer: {e}")).hint("check --proxy")
    })?;
    parse_ping(&answer).ok_or_else(|| {
        Failure::new(
            Exit::Unreachable,
            format!("{proxy} is no Wayleave proxy: it does not answer /webapi/ping"),
        )
        .hint("check --proxy: it is the address of the proxy's web port")
    })
}

/// The answer of HTTP/1.0: a status, headers, and a body until the end.
fn parse_ping(answer: &[u8]) -> Option<Ping> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.lines().next()?.split_ascii_whitespace().nth(1)?;
    if status != "200" {
        return None;
    }
    serde_json::from_str(body).ok()
}

/// TLS as a browser does it: the system's authorities and the server's name.
fn public_tls() -> Result<Arc<ClientConfig>, Failure> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "some of the system's authorities cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Failure::doing("cannot set up TLS"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn unknown_cluster(proxy: &HostPort, why: &str) -> Failure {
    Failure::new(Exit::Denied, format!("nothing says that {proxy} is of your cluster: {why}")).hint(
        "ask the administrator for the CA pin (on the Auth host: `way -c /etc/wayleave.yaml status`) and add \
         --ca-pin sha256:…",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_or_refused() {
        let ok =
            b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"ca_pins\":[\"sha256:aa\"],\"x\":1}";
        assert_eq!(parse_ping(ok).unwrap().ca_pins, ["sha256:aa"]);
        for bad in [
            &b""[..],
            b"HTTP/1.0 404 Not Found\r\n\r\n{\"ca_pins\":[]}",
            b"HTTP/1.0 200 OK\r\n\r\n<html>",
            b"SSH-2.0-x\r\n",
        ] {
            assert!(parse_ping(bad).is_none());
        }
    }

    #[test]
    fn d_a_stranger_without_a_pin_is_told_what_to_do() {
        let failure = unknown_cluster(&"p:443".parse().unwrap(), "x");
        assert_eq!(failure.exit, Exit::Denied);
        assert!(failure.hint.unwrap().contains("--ca-pin"));
    }
}
