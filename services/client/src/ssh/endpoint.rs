//! The local end of a channel: what is read goes to the channel, what comes is written, at the pace of the slower.
//!
//! There is no task for a channel; the driver polls all ends of its connection.

use crate::ssh::escape::{Escape, EscapeFilter};
use bytes::{Bytes, BytesMut};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;
use wayleave_ssh::{ByteQueue, ChannelId, Connection, DataStream};

/// Most bytes of one read.
const READ_BYTES_MAX: usize = 128 * 1024;
/// The source is read while the channel takes so much.
const ROOM_BYTES_MIN: usize = 16 * 1024;
/// Reads and writes of one turn, so that one channel does not keep the others waiting.
const TURNS_MAX: usize = 8;

/// What is read from.
pub(crate) type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// What is written to.
pub(crate) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The local end of one channel.
pub(crate) struct Endpoint {
    reader: Option<Reader>,
    escapes: Option<EscapeFilter>,
    buffer: BytesMut,
    unsent: Bytes,
    is_eof_due: bool,
    main: Sink,
    stderr: Option<Sink>,
    /// Standard output of a session: its end closes nothing but is told.
    is_session: bool,
    /// The channel is gone: only what came before is still written.
    is_closed: bool,
}

/// Where data of one stream goes.
struct Sink {
    writer: Writer,
    queue: ByteQueue,
    /// Bytes at the front of the queue that did not come over the channel.
    uncounted_bytes: usize,
    state: SinkState,
    is_flushed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SinkState {
    Open,
    /// Nothing more comes: shut it down once the queue is written.
    Ending,
    Ended,
    /// Nobody reads there any more.
    Broken,
}

/// What a turn of an endpoint found out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The person typed an escape.
    Escape(Escape),
    /// Whoever read standard output is gone.
    OutputBroken,
}

impl Endpoint {
    /// A socket or pipe in both directions.
    pub(crate) fn plain(reader: Reader, writer: Writer) -> Self {
        Self::new(Some(reader), writer, None, false)
    }

    /// Standard input (or none), output and error.
    pub(crate) fn session(reader: Option<Reader>, stdout: Writer, stderr: Writer) -> Self {
        Self::new(reader, stdout, Some(stderr), true)
    }

    fn new(reader: Option<Reader>, main: Writer, stderr: Option<Writer>, is_session: bool) -> Self {
        Self {
            is_eof_due: reader.is_none(),
            reader,
            escapes: None,
            buffer: BytesMut::new(),
            unsent: Bytes::new(),
            main: Sink::new(main),
            stderr: stderr.map(Sink::new),
            is_session,
            is_closed: false,
        }
    }

    /// Looks for escapes in what is typed.
    pub(crate) fn with_escapes(mut self) -> Self {
        self.escapes = Some(EscapeFilter::default());
        self
    }

    /// Writes these bytes before what comes over the channel.
    pub(crate) fn with_prefix(mut self, prefix: Bytes) -> Self {
        self.main.uncounted_bytes = prefix.len();
        self.main.queue.push(prefix);
        self
    }

    /// Takes received data.
    pub(crate) fn receive(&mut self, stream: DataStream, data: Bytes) {
        let sink = match (stream, &mut self.stderr) {
            (DataStream::Stderr, Some(stderr)) => stderr,
            (DataStream::Main | DataStream::Stderr, _) => &mut self.main,
        };
        sink.queue.push(data);
        sink.is_flushed = false;
    }

    /// The peer sends no more.
    pub(crate) fn end_receiving(&mut self) {
        for sink in std::iter::once(&mut self.main).chain(&mut self.stderr) {
            if sink.state == SinkState::Open {
                sink.state = SinkState::Ending;
            }
        }
    }

    /// The channel is gone.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
        self.reader = None;
        self.end_receiving();
    }

    /// Whether everything that came was written, after the channel was closed.
    pub(crate) fn is_over(&self) -> bool {
        self.is_closed && self.main.is_done() && self.stderr.as_ref().is_none_or(Sink::is_done)
    }

    /// Moves what can be moved; true when something was.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        connection: &mut Connection,
        findings: &mut Vec<Finding>,
    ) -> bool {
        let mut is_moved = self.poll_write(cx, channel, connection, findings);
        if !self.is_closed {
            is_moved |= self.poll_read(cx, channel, connection, findings);
            let is_over =
                !self.is_session && self.main.is_done() && self.reader.is_none() && !self.is_eof_due;
            if is_over && self.unsent.is_empty() {
                connection.close(channel);
            }
        }
        is_moved
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        connection: &mut Connection,
        findings: &mut Vec<Finding>,
    ) -> bool {
        let was_broken = self.main.state == SinkState::Broken;
        let mut written = self.main.poll(cx);
        if let Some(stderr) = &mut self.stderr {
            let more = stderr.poll(cx);
            written = Moved { is_moved: written.is_moved | more.is_moved, bytes: written.bytes + more.bytes };
        }
        if written.bytes > 0 {
            connection.consumed(channel, written.bytes);
        }
        if self.main.state == SinkState::Broken && !was_broken && !self.is_closed {
            if self.is_session {
                findings.push(Finding::OutputBroken);
            } else {
                connection.abort(channel);
            }
        }
        written.is_moved
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        connection: &mut Connection,
        findings: &mut Vec<Finding>,
    ) -> bool {
        let mut is_moved = false;
        for _ in 0..TURNS_MAX {
            if !self.unsent.is_empty() {
                match connection.send(channel, DataStream::Main, &mut self.unsent) {
                    Ok(sent) => is_moved |= sent > 0,
                    // The channel takes no more: nothing that is read matters now.
                    Err(_) => (self.unsent, self.reader) = (Bytes::new(), None),
                }
                if !self.unsent.is_empty() {
                    return is_moved;
                }
            }
            if self.is_eof_due {
                connection.eof(channel);
                self.is_eof_due = false;
                return true;
            }
            let Some(reader) = &mut self.reader else { return is_moved };
            let room = connection.send_room(channel);
            if room < ROOM_BYTES_MIN {
                // `send` told the connection that we wait only if it was given too much.
                return is_moved;
            }
            self.buffer.reserve(room.min(READ_BYTES_MAX));
            match poll_read_buf(Pin::new(reader), cx, &mut self.buffer) {
                Poll::Pending => return is_moved,
                Poll::Ready(Ok(0) | Err(_)) => (self.reader, self.is_eof_due) = (None, true),
                Poll::Ready(Ok(_)) => {
                    let read = self.buffer.split().freeze();
                    self.unsent = match &mut self.escapes {
                        None => read,
                        Some(escapes) => {
                            escapes.filter(&read, |escape| findings.push(Finding::Escape(escape)))
                        }
                    };
                }
            }
            is_moved = true;
        }
        // There may be more: come back after the others.
        cx.waker().wake_by_ref();
        is_moved
    }
}

/// What was written in a turn.
#[derive(Clone, Copy, Default)]
struct Moved {
    is_moved: bool,
    /// Bytes whose window can be credited.
    bytes: usize,
}

impl Sink {
    fn new(writer: Writer) -> Self {
        Self { writer, queue: ByteQueue::new(), uncounted_bytes: 0, state: SinkState::Open, is_flushed: true }
    }

    fn is_done(&self) -> bool {
        matches!(self.state, SinkState::Ended | SinkState::Broken)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Moved {
        let mut moved = Moved::default();
        while !self.queue.is_empty() {
            let taken = match self.state {
                // Ended sinks get no data; broken ones swallow it, so that the connection goes on.
                SinkState::Broken | SinkState::Ended => self.queue.len(),
                SinkState::Open | SinkState::Ending => {
                    match Pin::new(&mut self.writer).poll_write(cx, self.queue.front()) {
                        Poll::Pending => return moved,
                        Poll::Ready(Ok(written)) if written > 0 => written,
                        Poll::Ready(Ok(_) | Err(_)) => {
                            self.state = SinkState::Broken;
                            continue;
                        }
                    }
                }
            };
            self.queue.advance(taken);
            let uncounted = taken.min(self.uncounted_bytes);
            self.uncounted_bytes -= uncounted;
            moved.bytes += taken - uncounted;
            moved.is_moved = true;
        }
        if self.state == SinkState::Ending {
            match Pin::new(&mut self.writer).poll_shutdown(cx) {
                Poll::Pending => {}
                Poll::Ready(_) => {
                    self.state = SinkState::Ended;
                    moved.is_moved = true;
                }
            }
        } else if !self.is_flushed
            && self.state == SinkState::Open
            && Pin::new(&mut self.writer).poll_flush(cx).is_ready()
        {
            self.is_flushed = true;
        }
        moved
    }
}
