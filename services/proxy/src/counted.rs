//! Counts the streams that clients have through this proxy, so that a drain can wait for them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wayleave_net::BoxStream;

/// How many there are.
#[derive(Clone, Default)]
pub(crate) struct StreamCount(Arc<AtomicUsize>);

impl StreamCount {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a stream until it is dropped.
    pub(crate) fn count(&self, stream: BoxStream) -> BoxStream {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::new(Counted { stream, count: self.clone() })
    }
}

struct Counted {
    stream: BoxStream,
    count: StreamCount,
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
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
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

    #[test]
    fn a_stream_counts_until_it_is_dropped() {
        let count = StreamCount::default();
        let (near, _far) = tokio::io::duplex(1);
        let stream = count.count(Box::new(near));
        assert_eq!(count.get(), 1);
        drop(stream);
        assert_eq!(count.get(), 0);
    }
}
