//! What a connection is, before anybody answers it: an optional PROXY header, then a TLS ClientHello.
//!
//! The bytes are read ahead and given back, so that the connection can still be terminated here or passed on
//! unterminated. A hello is read until it is complete, across segments and records, at most [`HELLO_BYTES_MAX`].

use crate::stream::Rewind;
use bytes::{Buf, BytesMut};
use rustls::server::Acceptor;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use wayleave_proxy_protocol::{Parsed, ProxyHeaderError};

/// Longest ClientHello with its record headers.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;
/// How long a client may take to send it.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 4096;

/// What a ClientHello asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Server name indication.
    pub server_name: Option<String>,
    /// Protocols offered, in order.
    pub alpn: Vec<Vec<u8>>,
}

impl Hello {
    /// Whether a protocol is offered.
    pub fn offers(&self, protocol: &[u8]) -> bool {
        self.alpn.iter().any(|p| p == protocol)
    }
}

/// A connection whose first bytes were no beginning that is served here.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The stream failed or ended.
    #[error("the connection ended before its hello was complete")]
    Io(#[source] io::Error),
    /// It took too long.
    #[error("no complete hello within {} s", HELLO_TIMEOUT.as_secs())]
    TimedOut,
    /// More than [`HELLO_BYTES_MAX`].
    #[error("a hello of more than {HELLO_BYTES_MAX} bytes")]
    TooLong,
    /// Not TLS.
    #[error("not a TLS ClientHello")]
    NotTls(#[source] rustls::Error),
    /// A PROXY header is required and is not there, or is malformed.
    #[error("the PROXY protocol header is missing or malformed")]
    ProxyHeader(#[source] ProxyHeaderError),
}

/// Reads a required PROXY protocol header; gives the client's address, or `None` for a health check of the balancer.
///
/// # Errors
/// See [`HelloError`].
pub async fn read_proxy_header<S>(mut stream: S) -> Result<(Option<SocketAddr>, Rewind<S>), HelloError>
where
    S: AsyncRead + Unpin,
{
    let read = async {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            match wayleave_proxy_protocol::parse(&buffer).map_err(HelloError::ProxyHeader)? {
                Parsed::Complete { source, consumed, .. } => {
                    buffer.advance(consumed);
                    return Ok((source, buffer));
                }
                Parsed::NeedMore { .. } => read_more(&mut stream, &mut buffer).await?,
            }
        }
    };
    let (source, ahead) =
        tokio::time::timeout(HELLO_TIMEOUT, read).await.map_err(|_| HelloError::TimedOut)??;
    Ok((source, Rewind::new(ahead.freeze(), stream)))
}

/// Reads a ClientHello and gives the connection back as if nothing had been read.
///
/// # Errors
/// See [`HelloError`].
pub async fn read_hello<S>(mut stream: S) -> Result<(Hello, Rewind<S>), HelloError>
where
    S: AsyncRead + Unpin,
{
    let read = async {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        let mut acceptor = Acceptor::default();
        let mut fed = 0;
        loop {
            read_more(&mut stream, &mut buffer).await?;
            let mut unread = &buffer[fed..];
            while !unread.is_empty() {
                let count = acceptor.read_tls(&mut unread as &mut dyn Read).map_err(HelloError::Io)?;
                fed += count;
                match acceptor.accept() {
                    Ok(Some(accepted)) => return Ok((hello_of(&accepted), buffer)),
                    Ok(None) => {}
                    Err((error, _)) => return Err(HelloError::NotTls(error)),
                }
            }
        }
    };
    let (hello, ahead) =
        tokio::time::timeout(HELLO_TIMEOUT, read).await.map_err(|_| HelloError::TimedOut)??;
    Ok((hello, Rewind::new(ahead.freeze(), stream)))
}

fn hello_of(accepted: &rustls::server::Accepted) -> Hello {
    let hello = accepted.client_hello();
    Hello {
        server_name: hello.server_name().map(str::to_owned),
        alpn: hello.alpn().map(|protocols| protocols.map(<[u8]>::to_vec).collect()).unwrap_or_default(),
    }
}

async fn read_more<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> Result<(), HelloError> {
    if buffer.len() >= HELLO_BYTES_MAX {
        return Err(HelloError::TooLong);
    }
    match stream.read_buf(buffer).await.map_err(HelloError::Io)? {
        0 => Err(HelloError::Io(io::ErrorKind::UnexpectedEof.into())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use std::sync::Arc;
    use tokio::io::AsyncWriteExt;

    fn client_hello(alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = ServerName::try_from("proxy.example.com").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut out = Vec::new();
        client.write_tls(&mut out).unwrap();
        out
    }

    #[tokio::test]
    async fn a_post_quantum_hello_in_single_bytes_is_understood_and_given_back() {
        let bytes = client_hello(&[b"wayleave-dial/1", b"h2"]);
        assert!(bytes.len() > 1200, "the hello carries a hybrid key share");
        let (mut near, far) = tokio::io::duplex(64);
        let sent = bytes.clone();
        let writer = async move {
            for byte in sent {
                near.write_all(&[byte]).await.unwrap();
            }
            drop(near);
        };
        let reader = async {
            let (hello, mut stream) = read_hello(far).await.unwrap();
            assert!(hello.offers(b"wayleave-dial/1") && hello.offers(b"h2") && !hello.offers(b"http/1.1"));
            assert_eq!(hello.server_name.as_deref(), Some("proxy.example.com"));
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, bytes);
        };
        tokio::join!(writer, reader);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_or_half_hello_ends_at_its_deadline() {
        for count in [0, 40] {
            let (mut near, far) = tokio::io::duplex(64);
            near.write_all(&client_hello(&[])[..count]).await.unwrap();
            assert!(matches!(read_hello(far).await, Err(HelloError::TimedOut)));
        }
    }

    #[tokio::test]
    async fn f_endless_and_foreign_bytes_are_refused() {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(matches!(read_hello(far).await, Err(HelloError::NotTls(_))));
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let record = [&[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 0x4000]].concat();
        near.write_all(&record).await.unwrap();
        near.write_all(&record).await.unwrap();
        assert!(read_hello(far).await.is_err());
    }
}
