//! Large reads for those who ask in small pieces.
//!
//! rustls asks for 4 KiB at a time, which is four system calls for each record of a bulk stream. While whole buffers are
//! there to be read, they are read at once and handed on in the pieces that are asked for. A connection that is idle, or
//! has little to say, is read directly and owns no buffer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// What one read takes at most: four full TLS records.
const AHEAD_BYTES: usize = 64 * 1024;
/// A read of so much shows that there is more where it came from.
const BULK_BYTES_MIN: usize = 4 * 1024;

/// A stream that is read ahead while it is busy. Writes go straight through.
#[derive(Debug)]
pub struct ReadAhead<S> {
    inner: S,
    /// Empty, and without an allocation, unless the stream is busy.
    ahead: Vec<u8>,
    taken: usize,
    is_busy: bool,
}

impl<S> ReadAhead<S> {
    /// Nothing is read yet.
    pub fn new(inner: S) -> Self {
        Self { inner, ahead: Vec::new(), taken: 0, is_busy: false }
    }

    /// Hands on what was read ahead, as much as fits.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let left = self.ahead.get(self.taken..).unwrap_or_default();
        let piece = left.get(..buf.remaining()).unwrap_or(left);
        buf.put_slice(piece);
        self.taken += piece.len();
        if self.taken >= self.ahead.len() {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.taken = 0;
        self.ahead.clear();
        if !self.is_busy {
            self.ahead = Vec::new();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            if !this.is_busy || buf.remaining() >= AHEAD_BYTES {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
                this.is_busy = buf.filled().len() - before >= BULK_BYTES_MIN;
                return Poll::Ready(Ok(()));
            }
            this.ahead.reserve_exact(AHEAD_BYTES);
            let read = poll_read_buf(Pin::new(&mut this.inner), cx, &mut this.ahead);
            this.is_busy = matches!(read, Poll::Ready(Ok(BULK_BYTES_MIN..)));
            if this.ahead.is_empty() {
                this.forget();
            }
            ready!(read)?;
        }
        this.give(buf);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// Reads all in pieces of one size, and gives how many reads of the stream below that took.
    async fn check(sent: &[u8], piece_bytes: usize) -> usize {
        let (near, mut far) = duplex(sent.len().max(1));
        far.write_all(sent).await.unwrap();
        drop(far);
        let mut stream = ReadAhead::new(Counted { inner: near, reads: 0 });
        let (mut got, mut piece) = (Vec::new(), vec![0; piece_bytes]);
        loop {
            let read = stream.read(&mut piece).await.unwrap();
            if read == 0 {
                break;
            }
            got.extend_from_slice(&piece[..read]);
        }
        assert!(got == sent, "bytes in order, {piece_bytes} at a time");
        assert_eq!(stream.ahead.capacity(), 0, "nothing is kept");
        stream.inner.reads
    }

    struct Counted<S> {
        inner: S,
        reads: usize,
    }

    impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.reads += 1;
            Pin::new(&mut self.inner).poll_read(cx, buf)
        }
    }

    #[tokio::test]
    async fn a_bulk_stream_is_read_in_large_pieces() {
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        assert!(check(&sent, 4096).await <= 1_000_000 / AHEAD_BYTES + 4);
        check(&sent, 5).await;
        check(&sent, 300_000).await;
        check(&sent[..7000], 4096).await;
        check(&[], 4096).await;
    }

    #[tokio::test]
    async fn a_stream_that_is_idle_again_owns_no_buffer() {
        let (near, mut far) = duplex(1 << 20);
        let mut stream = ReadAhead::new(near);
        far.write_all(&[7; 200_000]).await.unwrap();
        let mut rest = 200_000;
        let mut piece = [0; 4096];
        while rest > 0 {
            rest -= stream.read(&mut piece).await.unwrap();
        }
        let waits = tokio::select! {
            biased;
            _ = stream.read(&mut piece) => false,
            () = std::future::ready(()) => true,
        };
        assert!(waits);
        assert_eq!(stream.ahead.capacity(), 0);
    }
}
