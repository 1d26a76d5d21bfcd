//! Dial messages on an asynchronous stream, each with a deadline.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use wayleave_dial::{DecodeError, Heard, body_length, decode_body, decode_request, encode};

/// How long the other side may take to send one dial message.
pub const DIAL_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A dial message that did not arrive or could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The stream failed or ended.
    #[error("the connection ended before the message was complete")]
    Io(#[source] io::Error),
    /// It took too long.
    #[error("no message within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The bytes are no such message.
    #[error("the message cannot be understood")]
    Decode(#[source] DecodeError),
}

/// Reads one message.
///
/// # Errors
/// See [`MessageError`].
pub async fn read_message<M, S>(stream: &mut S, within: Duration) -> Result<M, MessageError>
where
    M: DeserializeOwned,
    S: AsyncRead + Unpin,
{
    let body = read_body(stream, within).await?;
    decode_body(&body).map_err(MessageError::Decode)
}

/// Reads a dial request, or what is to be answered to one that this build cannot carry out; `whom` is what a person would
/// upgrade here.
///
/// # Errors
/// See [`MessageError`].
pub async fn read_dial_request<S>(stream: &mut S, within: Duration, whom: &str) -> Result<Heard, MessageError>
where
    S: AsyncRead + Unpin,
{
    let body = read_body(stream, within).await?;
    decode_request(&body, whom).map_err(MessageError::Decode)
}

async fn read_body<S>(stream: &mut S, within: Duration) -> Result<Vec<u8>, MessageError>
where
    S: AsyncRead + Unpin,
{
    let read = async {
        let mut prefix = [0; 2];
        stream.read_exact(&mut prefix).await.map_err(MessageError::Io)?;
        let mut body = vec![0; body_length(prefix).map_err(MessageError::Decode)?];
        stream.read_exact(&mut body).await.map_err(MessageError::Io)?;
        Ok(body)
    };
    tokio::time::timeout(within, read).await.map_err(|_| MessageError::TimedOut(within))?
}

/// Writes one message and flushes.
///
/// # Errors
/// See [`MessageError`].
pub async fn write_message<M, S>(stream: &mut S, message: &M) -> Result<(), MessageError>
where
    M: Serialize,
    S: AsyncWrite + Unpin,
{
    let bytes = encode(message).map_err(MessageError::Decode)?;
    let write = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    tokio::time::timeout(DIAL_MESSAGE_TIMEOUT, write)
        .await
        .map_err(|_| MessageError::TimedOut(DIAL_MESSAGE_TIMEOUT))?
        .map_err(MessageError::Io)
}
