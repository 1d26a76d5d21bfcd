//! The stream under a connection: reads into one buffer, writes what the connection seals.

use bytes::{Buf, Bytes, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;
use wayleave_net::BoxStream;
use wayleave_ssh::Connection;

/// First size of a read; an idle connection holds no more.
const READ_BYTES_MIN: usize = 4 * 1024;
/// Largest read.
const READ_BYTES_MAX: usize = 128 * 1024;

/// A stream with its buffers.
pub(crate) struct Link {
    stream: BoxStream,
    /// Read and not yet taken by the connection.
    pub(crate) input: BytesMut,
    read_bytes: usize,
    output: Bytes,
    is_dirty: bool,
}

impl Link {
    pub(crate) fn new(stream: BoxStream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            read_bytes: READ_BYTES_MIN,
            output: Bytes::new(),
            is_dirty: false,
        }
    }

    /// Reads once. Zero is the end of the stream.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.is_empty() && self.input.capacity() > self.read_bytes.saturating_mul(4) {
            self.input = BytesMut::new();
        }
        self.input.reserve(self.read_bytes);
        let read = std::task::ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input))?;
        self.read_bytes = next_read_bytes(self.read_bytes, read, READ_BYTES_MIN, READ_BYTES_MAX);
        Poll::Ready(Ok(read))
    }

    /// Writes what the connection has, until it has no more (ready) or the stream takes no more (pending).
    /// The flag tells whether anything was written.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> (Poll<io::Result<()>>, bool) {
        let mut has_moved = false;
        loop {
            if self.output.is_empty() {
                match connection.poll_output() {
                    Some(output) => self.output = output,
                    None => return (self.poll_flush(cx), has_moved),
                }
                continue;
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.output) {
                Poll::Pending => return (Poll::Pending, has_moved),
                Poll::Ready(Ok(0)) => return (Poll::Ready(Err(io::ErrorKind::WriteZero.into())), has_moved),
                Poll::Ready(Ok(written)) => {
                    self.output.advance(written.min(self.output.len()));
                    self.is_dirty = true;
                    has_moved = true;
                }
                Poll::Ready(Err(error)) => return (Poll::Ready(Err(error)), has_moved),
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_dirty {
            std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.is_dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all that the connection has.
    pub(crate) async fn write_all(&mut self, connection: &mut Connection) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_write(cx, connection).0).await
    }

    /// Ends our direction and waits for the peer to end its own, so that no unread byte turns the end into a
    /// reset that overtakes the goodbye.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        use tokio::io::AsyncWriteExt;
        self.stream.shutdown().await?;
        loop {
            self.input.clear();
            if std::future::poll_fn(|cx| self.poll_read(cx)).await? == 0 {
                return Ok(());
            }
        }
    }
}

/// Grows with full reads, shrinks with small ones, so that only bulk transfers hold large buffers.
pub(crate) fn next_read_bytes(asked: usize, read: usize, min: usize, max: usize) -> usize {
    if read >= asked {
        (asked * 2).min(max)
    } else if read < asked / 4 {
        (asked / 2).max(min)
    } else {
        asked
    }
}
