//! A stream that somebody else can end.

use futures::future::BoxFuture;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that fails in both directions once it is severed. Who waits to read notices at once, and who only writes does
/// not: it is for one task that does both.
pub struct Severable<S> {
    stream: S,
    /// None once it has happened.
    severed: Option<BoxFuture<'static, ()>>,
}

impl<S> Severable<S> {
    /// Ends `stream` when `severed` completes.
    pub fn new(stream: S, severed: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { stream, severed: Some(Box::pin(severed)) }
    }

    /// Whether it is severed by now.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.severed.as_mut().is_some_and(|severed| severed.as_mut().poll(cx).is_ready()) {
            self.severed = None;
        }
        self.check()
    }

    fn check(&self) -> io::Result<()> {
        if self.severed.is_some() { Ok(()) } else { Err(io::ErrorKind::ConnectionAborted.into()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Severable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.look(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Severable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
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
    use wayleave_runtime::Shutdown;

    #[tokio::test]
    async fn a_severed_stream_wakes_who_reads_and_carries_nothing() {
        let (near, mut far) = tokio::io::duplex(16);
        let severed = Shutdown::new();
        let until = severed.clone();
        let mut stream = Severable::new(near, async move { until.requested().await });
        stream.write_all(b"a").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'a');
        let (read, ()) = tokio::join!(stream.read_u8(), async { severed.request() });
        assert!(read.is_err());
        far.write_all(b"b").await.unwrap();
        assert!(stream.read_u8().await.is_err());
        assert!(stream.write_all(b"c").await.is_err());
    }
}
