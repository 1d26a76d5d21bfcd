//! Bytes both ways between standard input and output and a stream, in large pieces and without a task.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Each direction's buffer.
const BUFFER_BYTES: usize = 128 * 1024;
/// How long the far side may go on after our input has ended.
const LINGER: Duration = Duration::from_secs(10);

/// How long the far side may take to end when nobody is left here.
const FAREWELL: Duration = Duration::from_secs(2);

/// Copies until the far side ends, or our input has ended and the far side does not end in time. What the far side
/// sends is written out before this returns. When our own end breaks, the far side is told before that.
pub(crate) async fn pump<I, O, S>(mut input: I, mut output: O, mut stream: S) -> io::Result<()>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Direction::new(), Direction::new());
    let is_up_open = poll_fn(|cx| {
        if down.poll_copy(cx, &mut stream, &mut output)?.is_ready() {
            return Poll::Ready(Ok::<_, io::Error>(false));
        }
        up.poll_copy(cx, &mut input, &mut stream)?.map(|()| Ok(true))
    });
    let copied = match is_up_open.await {
        Ok(true) => {
            let rest = poll_fn(|cx| down.poll_copy(cx, &mut stream, &mut output));
            match tokio::time::timeout(LINGER, rest).await {
                // Nobody speaks here any more: the far side may well be short about it.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                rest => rest.unwrap_or(Ok(())),
            }
        }
        Ok(false) => return Ok(()),
        Err(error) => Err(error),
    };
    if copied.is_err() {
        farewell(&mut stream, &mut down.buffer).await;
    }
    copied
}

/// Says that nothing more comes, and takes what is under way until the far side has understood: a connection that is
/// closed with bytes unread is reset, and what was said last may be lost with it.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, buffer: &mut [u8]) {
    let goodbye = async {
        stream.shutdown().await?;
        while stream.read(buffer).await? > 0 {}
        io::Result::Ok(())
    };
    // A far side that is gone needs no goodbye.
    let _ = tokio::time::timeout(FAREWELL, goodbye).await;
}

/// One direction.
struct Direction {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    is_ended: bool,
    is_flushed: bool,
}

impl Direction {
    fn new() -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { buffer, start: 0, end: 0, is_ended: false, is_flushed: true }
    }

    /// Moves what can be moved. Ready when the source has ended and the target knows.
    fn poll_copy<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            let is_source_dry = self.poll_fill(cx, from)?;
            while let Some(piece) = self.buffer.get(self.start..self.end).filter(|piece| !piece.is_empty()) {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, piece))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.start += written;
                self.is_flushed = false;
            }
            (self.start, self.end) = (0, 0);
            if self.is_ended {
                return Pin::new(&mut *to).poll_shutdown(cx);
            }
            if is_source_dry {
                if !self.is_flushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.is_flushed = true;
                }
                return Poll::Pending;
            }
        }
    }

    /// Reads until the buffer is full or nothing more is there; true in the latter case.
    fn poll_fill<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, from: &mut R) -> io::Result<bool> {
        while !self.is_ended {
            let Some(free) = self.buffer.get_mut(self.end..).filter(|free| !free.is_empty()) else {
                return Ok(false);
            };
            let mut free = ReadBuf::new(free);
            match Pin::new(&mut *from).poll_read(cx, &mut free) {
                Poll::Pending => return Ok(true),
                // A peer that is cut off says no goodbye in TLS; what runs inside has its own.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Poll::Ready(result) => result?,
            }
            let read = free.filled().len();
            self.end += read;
            self.is_ended = read == 0;
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_far_end_ends_it() {
        let (near, mut far) = duplex(1000);
        let (input, mut typed) = duplex(1000);
        let (output, mut shown) = duplex(1000);
        let big: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        let expected = big.clone();

        let remote = async move {
            let mut got = vec![0; 5];
            far.read_exact(&mut got).await.unwrap();
            assert_eq!(got, b"hello");
            far.write_all(&big).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let local = async {
            typed.write_all(b"hello").await.unwrap();
            let mut got = Vec::new();
            shown.read_to_end(&mut got).await.unwrap();
            got
        };
        let (result, (), got) = tokio::join!(pump(input, output, near), remote, local);
        result.unwrap();
        assert_eq!(got, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn the_far_side_of_a_broken_output_is_told_and_not_cut_off() {
        let (near, far) = duplex(1000);
        let (input, _typed) = duplex(1000);
        let (output, shown) = duplex(1000);
        drop(shown);
        let (mut heard, mut said) = tokio::io::split(far);
        let remote = async {
            let talking = async { while said.write_all(&[0; 5000]).await.is_ok() {} };
            let mut nothing = [0];
            tokio::select! {
                () = talking => panic!("it was cut off"),
                end = heard.read(&mut nothing) => assert_eq!(end.unwrap(), 0),
            }
            drop(heard);
            drop(said);
        };
        let (result, ()) = tokio::join!(pump(input, output, near), remote);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test(start_paused = true)]
    async fn g_an_ended_input_does_not_wait_for_ever() {
        let (near, _far) = duplex(1000);
        let (input, typed) = duplex(1000);
        let (output, _shown) = duplex(1000);
        drop(typed);
        pump(input, output, near).await.unwrap();
    }
}
