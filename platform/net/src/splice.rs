//! Joins two streams: bytes both ways, half-close kept, until both directions ended or one failed.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered before it is written: with what framing adds below, at most 64 KiB and so four TLS records.
const BUFFER_BYTES: usize = 64 * 1024 - 64;
/// Writes of one direction before others get their turn.
const TURNS_MAX: usize = 16;

thread_local! {
    /// What passes right now: a stream owns a buffer only while the other one does not take what was read.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice());
}

/// Copies until both directions ended; gives the bytes from `a` to `b` and from `b` to `a`.
///
/// # Errors
/// The first error of either stream; both are to be dropped then.
pub async fn splice<A, B>(mut a: A, mut b: B) -> io::Result<(u64, u64)>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Direction::default(), Direction::default());
    poll_fn(|cx| {
        let is_there = there.poll_copy(cx, &mut a, &mut b)?.is_ready();
        let is_back = back.poll_copy(cx, &mut b, &mut a)?.is_ready();
        if is_there && is_back { Poll::Ready(Ok((there.copied, back.copied))) } else { Poll::Pending }
    })
    .await
}

/// How far one direction is.
#[derive(Default)]
struct Direction {
    /// Read and not taken yet, from `written` on.
    left: Vec<u8>,
    written: usize,
    /// The source has ended or failed.
    ended: Option<io::Result<()>>,
    needs_flush: bool,
    is_over: bool,
    copied: u64,
}

impl Direction {
    /// Moves what can be moved. Ready when the source has ended and the target knows.
    fn poll_copy<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURNS_MAX {
            if self.is_over {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_left(cx, to))?;
            match self.ended.take() {
                Some(Ok(())) => {
                    self.ended = Some(Ok(()));
                    ready!(Pin::new(to).poll_shutdown(cx))?;
                    self.is_over = true;
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => {}
            }
            let is_dry = SCRATCH.with_borrow_mut(|scratch| self.pass(cx, from, to, scratch))?;
            if is_dry && self.left.is_empty() && self.ended.is_none() {
                if self.needs_flush {
                    ready!(Pin::new(to).poll_flush(cx))?;
                    self.needs_flush = false;
                }
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads until the scratch is full or nothing more is there, and writes that. True in the latter case.
    fn pass<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        scratch: &mut [u8],
    ) -> io::Result<bool>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut buffer = ReadBuf::new(scratch);
        let mut is_dry = false;
        while !is_dry && self.ended.is_none() && buffer.remaining() > 0 {
            let before = buffer.filled().len();
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Pending => is_dry = true,
                Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
                Poll::Ready(ended) => self.ended = Some(ended),
            }
        }
        let mut rest = buffer.filled();
        self.copied += rest.len() as u64;
        while !rest.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    self.needs_flush = true;
                }
                Poll::Pending => {
                    self.left = rest.to_vec();
                    rest = &[];
                }
            }
        }
        Ok(is_dry)
    }

    /// Writes what the target did not take before.
    fn poll_left<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>> {
        while let Some(rest) = self.left.get(self.written..).filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            self.needs_flush = true;
        }
        (self.left, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn bytes_and_half_close_go_both_ways() {
        let (mut left, near) = duplex(1000);
        let (far, mut right) = duplex(70_000);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let copy = sent.clone();
        let ask = async move {
            left.write_all(&copy).await.unwrap();
            left.shutdown().await.unwrap();
            let mut answer = Vec::new();
            left.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answer = async move {
            let mut all = Vec::new();
            right.read_to_end(&mut all).await.unwrap();
            right.write_all(&all).await.unwrap();
            right.shutdown().await.unwrap();
            all
        };
        let (spliced, answer, heard) = tokio::join!(splice(near, far), ask, answer);
        assert_eq!(spliced.unwrap(), (1_000_000, 1_000_000));
        assert!(answer == sent && heard == sent);
    }

    /// Gives some bytes and fails then.
    struct Breaks(Option<&'static [u8]>);

    impl AsyncRead for Breaks {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Some(bytes) = self.0.take() else { return Poll::Ready(Err(io::ErrorKind::TimedOut.into())) };
            buf.put_slice(bytes);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Breaks {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_came_before_a_failure_is_passed_on() {
        let (far, mut right) = duplex(1000);
        let error = splice(Breaks(Some(b"last words")), far).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let mut heard = Vec::new();
        right.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last words");
    }
}
