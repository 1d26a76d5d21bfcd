//! A `Dial` call as a byte stream.

use super::codec::{CHUNK_BYTES_MAX, Part, Reader, message};
use bytes::{Buf, Bytes};
use hyper::body::Body as _;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::PollSender;
use tonic::Status;
use tonic::body::Body;
use wayleave_runtime::TaskGroup;

/// Messages under way in one direction.
pub(super) const MESSAGES_MAX: usize = 4;
/// How long the end of an abandoned call is waited for.
const REAP_TIMEOUT: Duration = Duration::from_secs(10);

/// Both directions of one call.
pub(crate) struct PeerStream {
    send: PollSender<Bytes>,
    receive: Option<Body>,
    reader: Reader,
    /// Received, and not taken apart yet.
    frame: Bytes,
    ahead: Bytes,
    received_end: bool,
    tasks: TaskGroup,
}

impl PeerStream {
    /// Joins what is sent and what is received. Abandoned calls are ended by a task of `tasks`.
    pub(super) fn new(send: tokio::sync::mpsc::Sender<Bytes>, receive: Body, tasks: TaskGroup) -> Self {
        Self {
            send: PollSender::new(send),
            receive: Some(receive),
            reader: Reader::default(),
            frame: Bytes::new(),
            ahead: Bytes::new(),
            received_end: false,
            tasks,
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<()>> {
        ready!(self.send.poll_reserve(cx)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        let sent = self.send.send_item(message(data));
        Poll::Ready(sent.map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }

    /// Waits for data or the end of it.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.ahead.is_empty() && !self.received_end {
            match self.reader.next(&mut self.frame).map_err(io::Error::other)? {
                Some(Part::Data(data)) => self.ahead = data,
                Some(Part::End) => self.received_end = true,
                None => self.frame = ready!(self.poll_frame(cx))?,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let Some(receive) = &mut self.receive else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let status = match ready!(Pin::new(receive).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => return Poll::Ready(Ok(data)),
                Err(frame) => frame.trailers_ref().and_then(Status::from_header_map),
            },
            Some(Err(status)) => Some(status),
            None => None,
        };
        self.receive = None;
        Poll::Ready(Err(match status {
            Some(status) if status.code() != tonic::Code::Ok => io::Error::other(status),
            Some(_) | None => io::ErrorKind::ConnectionReset.into(),
        }))
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_receive(cx))?;
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let count = buf.len().min(CHUNK_BYTES_MAX);
        ready!(self.poll_send(cx, &buf[..count]))?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.send.is_closed() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_send(cx, &[]))?;
        self.send.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for PeerStream {
    /// Ends the call without a reset: a proxy that cancels many dials must not look like an attack on HTTP/2. This
    /// side's direction ends, the other side sees that and ends its own, which is waited for.
    fn drop(&mut self) {
        self.send.close();
        let Some(mut receive) = self.receive.take() else { return };
        self.tasks.spawn_many(async move {
            let drain = async {
                while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut receive).poll_frame(cx)).await {}
            };
            let _ = tokio::time::timeout(REAP_TIMEOUT, drain).await;
        });
    }
}
