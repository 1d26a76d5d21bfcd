//! TLS handshakes as the server, whose failure the other side can read.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Who is refused has so long to read why, and may go on for so long that he has not read it.
const PARTING_DEADLINE: Duration = Duration::from_secs(1);
const PARTING_BYTES_MAX: u64 = 256 * 1024;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It took too long.
    #[error("no complete TLS handshake within the deadline")]
    TimedOut,
    /// One side refused the other, or left.
    #[error("TLS failed")]
    Tls(#[source] io::Error),
}

/// A handshake that failed, and whose connection may still be open.
#[must_use = "dropped, the other side may see a reset and no reason"]
pub struct FailedHandshake<IO> {
    error: HandshakeError,
    refused: Option<IO>,
}

/// Does the server's part of a handshake.
///
/// # Errors
/// [`FailedHandshake`], which is to be [parted](FailedHandshake::part) from.
pub async fn accept_tls<IO>(
    acceptor: &TlsAcceptor,
    stream: IO,
    deadline: Duration,
) -> Result<TlsStream<IO>, FailedHandshake<IO>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match tokio::time::timeout(deadline, acceptor.accept(stream).into_fallible()).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err((error, stream))) => {
            Err(FailedHandshake { error: HandshakeError::Tls(error), refused: Some(stream) })
        }
        Err(_) => Err(FailedHandshake { error: HandshakeError::TimedOut, refused: None }),
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> FailedHandshake<IO> {
    /// Lets the other side read why it was refused, for a second at most; gives the reason.
    pub async fn part(self) -> HandshakeError {
        if let Some(stream) = self.refused {
            let _ = tokio::time::timeout(PARTING_DEADLINE, drain(stream)).await;
        }
        self.error
    }
}

/// Closing while something that the other side sent is unread resets the connection, and a client that is still writing
/// then learns of nothing else.
async fn drain(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = stream.take(PARTING_BYTES_MAX);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map(drop)
}
