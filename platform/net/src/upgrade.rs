//! A byte stream in the binary messages of a WebSocket, for the way through balancers that end TLS themselves.
//!
//! What runs inside is always TLS of its own: the WebSocket adds no trust and is trusted with nothing. Half-close is the
//! inner TLS's (`close_notify`); the WebSocket ends with its connection.

use bytes::{Buf, Bytes};
use futures::{Sink as _, Stream as _};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::Error as WebSocketError;
use tokio_tungstenite::tungstenite::handshake::client::{Request, generate_key};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

/// Path that is asked for the upgrade on the public port.
pub const UPGRADE_PATH: &str = "/webapi/connectionupgrade";
/// The WebSocket sub-protocol: TLS of ours in binary messages.
pub const UPGRADE_PROTOCOL: &str = "wayleave";
/// Silence after which a ping is sent: balancers close connections that say nothing for a minute.
pub const UPGRADE_PING_INTERVAL: Duration = Duration::from_secs(30);
/// Pings without any answer after which the connection is dead.
const UNANSWERED_MAX: u32 = 2;
/// What one message carries at most when it is sent here.
const MESSAGE_BYTES: usize = 32 * 1024;
/// Longest message that is taken.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
const BUFFER_BYTES: usize = 8 * 1024;
/// What may wait to be written: some messages, and the pongs among them.
const WRITE_BUFFER_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;

/// The bytes inside a WebSocket.
pub struct UpgradedStream<S> {
    socket: WebSocketStream<S>,
    ahead: Bytes,
    ended: bool,
    ping_at: Pin<Box<Sleep>>,
    unanswered: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> UpgradedStream<S> {
    /// The server's end, after its HTTP answer was sent.
    pub async fn accepted(stream: S) -> Self {
        Self::new(WebSocketStream::from_raw_socket(stream, Role::Server, Some(limits())).await)
    }

    /// The client's end: asks the server `host` (as the HTTP header wants it) for the upgrade. Has no deadline of its own.
    ///
    /// # Errors
    /// When the server answers anything but the upgrade to [`UPGRADE_PROTOCOL`].
    pub async fn request(stream: S, host: &str) -> io::Result<Self> {
        let request = Request::builder()
            .uri(format!("wss://{host}{UPGRADE_PATH}"))
            .header("Host", host)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", generate_key())
            .header("Sec-WebSocket-Protocol", UPGRADE_PROTOCOL)
            .body(())
            .map_err(io::Error::other)?;
        let (socket, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(limits()))
            .await
            .map_err(io_error)?;
        Ok(Self::new(socket))
    }

    fn new(socket: WebSocketStream<S>) -> Self {
        let ping_at = Box::pin(tokio::time::sleep(UPGRADE_PING_INTERVAL));
        Self { socket, ahead: Bytes::new(), ended: false, ping_at, unanswered: 0 }
    }

    fn heard(&mut self) {
        self.unanswered = 0;
        self.ping_at.as_mut().reset(Instant::now() + UPGRADE_PING_INTERVAL);
    }

    /// Pings while nothing is heard. Only a reader that waits counts silence: one that is slow has not listened.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.ping_at.as_mut().poll(cx));
            if self.unanswered >= UNANSWERED_MAX {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.unanswered += 1;
            self.ping_at.as_mut().reset(Instant::now() + UPGRADE_PING_INTERVAL);
            let mut socket = Pin::new(&mut self.socket);
            // Bytes that wait to be written keep the connection alive as well as a ping.
            if socket.as_mut().poll_ready(cx).map_err(io_error)?.is_ready() {
                socket.as_mut().start_send(Message::Ping(Bytes::new())).map_err(io_error)?;
                let _ = socket.poll_flush(cx).map_err(io_error)?;
            }
        }
    }
}

/// The value of `Sec-WebSocket-Accept` for a client's key.
pub fn upgrade_accept_key(key: &[u8]) -> String {
    derive_accept_key(key)
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}

fn io_error(error: WebSocketError) -> io::Error {
    match error {
        WebSocketError::Io(error) => error,
        WebSocketError::ConnectionClosed | WebSocketError::AlreadyClosed => {
            io::ErrorKind::ConnectionReset.into()
        }
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for UpgradedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.ahead.is_empty() {
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut this.socket).poll_next(cx) {
                Poll::Ready(Some(Ok(Message::Binary(bytes)))) => {
                    this.heard();
                    this.ahead = bytes;
                }
                Poll::Ready(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => this.heard(),
                Poll::Ready(Some(Ok(Message::Text(_) | Message::Frame(_)))) => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                Poll::Ready(Some(Ok(Message::Close(_))) | None) => this.ended = true,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io_error(error))),
                Poll::Pending => return this.poll_silence(cx),
            }
        }
        let count = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..count]);
        this.ahead.advance(count);
        if this.ahead.is_empty() {
            this.ahead = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for UpgradedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut socket = Pin::new(&mut self.socket);
        ready!(socket.as_mut().poll_ready(cx)).map_err(io_error)?;
        let count = buf.len().min(MESSAGE_BYTES);
        let message = Message::Binary(Bytes::copy_from_slice(&buf[..count]));
        socket.start_send(message).map_err(io_error)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io_error)
    }

    /// The inner TLS has said that this direction ends; a WebSocket cannot end one direction.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    async fn pair() -> (UpgradedStream<DuplexStream>, UpgradedStream<DuplexStream>) {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let near = WebSocketStream::from_raw_socket(near, Role::Client, Some(limits())).await;
        (UpgradedStream::new(near), UpgradedStream::accepted(far).await)
    }

    #[tokio::test]
    async fn bytes_go_both_ways() {
        let (near, far) = pair().await;
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut near_read, mut near_write) = tokio::io::split(near);
        let (mut far_read, mut far_write) = tokio::io::split(far);
        let write = async {
            near_write.write_all(&sent).await.unwrap();
            near_write.flush().await.unwrap();
        };
        let echo = async {
            let mut all = vec![0; sent.len()];
            far_read.read_exact(&mut all).await.unwrap();
            far_write.write_all(&all).await.unwrap();
            far_write.flush().await.unwrap();
        };
        let read = async {
            let mut all = vec![0; sent.len()];
            near_read.read_exact(&mut all).await.unwrap();
            assert!(all == sent);
        };
        tokio::join!(write, echo, read);
    }

    #[tokio::test]
    async fn f_oversized_text_and_foreign_bytes_end_the_stream() {
        let frame = |first: u8, length: u64| {
            let mut frame = vec![first, 0xff];
            frame.extend_from_slice(&length.to_be_bytes());
            frame.extend_from_slice(&[0; 4]);
            frame
        };
        let cases: [Vec<u8>; 5] = [
            frame(0x82, MESSAGE_BYTES_MAX as u64 + 1),
            frame(0x82, u64::MAX),
            vec![0x81, 0x81, 0, 0, 0, 0, b'x'],
            vec![0x82, 0x01, b'x'],
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        ];
        for bytes in cases {
            let (mut raw, far) = tokio::io::duplex(1024);
            let mut far = UpgradedStream::accepted(far).await;
            raw.write_all(&bytes).await.unwrap();
            assert!(far.read_u8().await.is_err(), "{bytes:02x?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn g_a_silent_other_side_ends_and_one_that_answers_does_not() {
        let (near, mut far) = pair().await;
        let (mut near_read, mut near_write) = tokio::io::split(near);
        let began = Instant::now();
        let read = async { near_read.read_u8().await.unwrap() };
        let late = async {
            let waited = 10 * UPGRADE_PING_INTERVAL;
            assert!(tokio::time::timeout(waited, far.read_u8()).await.is_err(), "only pings arrive");
            far.write_all(b"k").await.unwrap();
            far.flush().await.unwrap();
        };
        let (byte, ()) = tokio::join!(read, late);
        assert_eq!(byte, b'k');
        assert!(began.elapsed() >= 10 * UPGRADE_PING_INTERVAL);
        let silent = near_read.read_u8().await.unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        near_write.shutdown().await.unwrap();
    }
}
