//! Counts the streams that run through this proxy, so that a drain can wait for them, and their bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wayleave_net::BoxStream;
use wayleave_telemetry::Counter;

/// How many there are.
#[derive(Clone, Default)]
pub(crate) struct StreamCount(Arc<AtomicUsize>);

impl StreamCount {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a stream until it is dropped, and the bytes that are written to it and read from it.
    pub(crate) fn count(&self, stream: BoxStream, written: Counter, read: Counter) -> BoxStream {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::new(Counted { stream, count: self.clone(), written, read })
    }
}

struct Counted {
    stream: BoxStream,
    count: StreamCount,
    written: Counter,
    read: Counter,
}

impl Counted {
    fn note_written(&self, polled: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = polled {
            self.written.add(*count as u64);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.read.add(buf.filled().len().saturating_sub(before) as u64);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note_written(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note_written(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_stream_counts_until_it_is_dropped() {
        let count = StreamCount::default();
        let (near, mut far) = tokio::io::duplex(16);
        let (written, read) = (Counter::default(), Counter::default());
        let mut stream = count.count(Box::new(near), written.clone(), read.clone());
        assert_eq!(count.get(), 1);
        stream.write_all(b"abc").await.unwrap();
        far.write_all(b"de").await.unwrap();
        stream.read_exact(&mut [0; 2]).await.unwrap();
        assert_eq!((written.get(), read.get()), (3, 2));
        drop(stream);
        assert_eq!(count.get(), 0);
    }
}
