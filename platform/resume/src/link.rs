//! The machine over a connection: frames in and out, without a task, and without a copy more than framing needs.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::io::poll_read_buf;
use wayleave_net::BoxStream;
use wayleave_resume::{Effect, End, Segment, Stream};
use wayleave_resume_wire::{DATA_HEADER_BYTES, Frame, data_header};
use wayleave_runtime::{Clock, SystemClock};
use wayleave_vocab::Mono;

/// Smallest and largest read of the connection.
const READ_BYTES_MIN: usize = 4 * 1024;
const READ_BYTES_MAX: usize = 128 * 1024;
/// From so much on the rest of a frame is read into the user's own buffer.
const DIRECT_BYTES_MIN: usize = 8 * 1024;
/// What is read for a user who does not read while he waits to write: all that the other end can have under way.
const AHEAD_BYTES_MAX: usize = wayleave_resume::KEPT_BYTES_MAX + READ_BYTES_MAX;

/// What happened that the link's owner must deal with.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// The connection is gone, and why.
    Lost(String),
    /// Nobody attached in time.
    Expired,
    /// A frame that is not the machine's.
    Frame(Box<Frame>),
}

/// One end of a stream with the connection that carries it now.
pub(crate) struct Link {
    pub(crate) machine: Stream,
    connection: Option<BoxStream>,
    /// Read and not yet understood.
    input: BytesMut,
    read_bytes: usize,
    /// Bytes of the frame of data under way that are still to come.
    data_left: usize,
    /// The user's, who has not read them yet.
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
    /// On its way out.
    output: VecDeque<Bytes>,
    is_flushed: bool,
    /// A loss that was found out and not told.
    overdue: Option<LinkEvent>,
    clock: SystemClock,
    timer: Option<(Mono, Pin<Box<Sleep>>)>,
}

impl Link {
    pub(crate) fn new(machine: impl FnOnce(Mono) -> Stream, connection: BoxStream) -> Self {
        let clock = SystemClock::new();
        Self {
            machine: machine(clock.mono()),
            connection: Some(connection),
            input: BytesMut::new(),
            read_bytes: READ_BYTES_MIN,
            data_left: 0,
            ready: VecDeque::new(),
            ready_bytes: 0,
            output: VecDeque::new(),
            is_flushed: true,
            overdue: None,
            clock,
            timer: None,
        }
    }

    pub(crate) fn now(&self) -> Mono {
        self.clock.mono()
    }

    /// Sends a frame that is not the machine's, before what the machine sends next.
    pub(crate) fn say(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        self.output.push_back(bytes.freeze());
    }

    /// The connection is gone; what was under way on it counts for nothing.
    pub(crate) fn detach(&mut self) {
        let now = self.now();
        self.machine.handle_lost(now);
        self.connection = None;
        self.overdue = None;
        self.input = BytesMut::new();
        self.data_left = 0;
        self.output.clear();
        self.is_flushed = true;
    }

    /// Another connection carries the stream from here on; `input` was read from it already.
    ///
    /// # Errors
    /// When the other end wants to start where that is impossible: nothing has changed then.
    pub(crate) fn attach(
        &mut self,
        connection: BoxStream,
        input: BytesMut,
        received: u64,
    ) -> Result<(), wayleave_resume::Violation> {
        let now = self.now();
        self.machine.handle_attached(received, now)?;
        self.connection = Some(connection);
        self.input = input;
        self.data_left = 0;
        self.output.clear();
        Ok(())
    }

    /// Lets what was said out as far as it goes at once, and closes the connection.
    pub(crate) fn close(&mut self, cx: &mut Context<'_>) {
        let _ = self.send(cx);
        if let Some(mut connection) = self.connection.take() {
            let _ = Pin::new(&mut connection).poll_shutdown(cx);
        }
    }

    /// Gives the user what there is; reads from the connection if there is nothing. Ready without bytes is the end.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<io::Result<()>, LinkEvent>> {
        let before = buf.filled().len();
        loop {
            if self.give(buf) || buf.remaining() == 0 {
                return Poll::Ready(Ok(Ok(())));
            }
            match self.machine.end() {
                End::Finished => {
                    // The acknowledgement of the end: it is what the other end waits for.
                    self.send(cx)?;
                    return Poll::Ready(Ok(Ok(())));
                }
                End::Reset => return Poll::Ready(Ok(Err(io::ErrorKind::ConnectionReset.into()))),
                End::Open if self.machine.is_aborted() => {
                    return Poll::Ready(Ok(Err(io::ErrorKind::ConnectionReset.into())));
                }
                End::Open => {}
            }
            if self.understand()? {
                continue;
            }
            self.send(cx)?;
            if self.poll_fill(cx, Some(&mut *buf))?.is_pending() {
                self.poll_timer(cx)?;
                return Poll::Pending;
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(Ok(())));
            }
        }
    }

    /// Takes bytes of the user's. `is_ahead` is set when bytes for the reader came in while there was no room.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        is_ahead: &mut bool,
    ) -> Poll<Result<io::Result<usize>, LinkEvent>> {
        if self.machine.is_aborted() {
            return Poll::Ready(Ok(Err(io::ErrorKind::ConnectionReset.into())));
        }
        if self.machine.is_finished() {
            return Poll::Ready(Ok(Err(io::ErrorKind::BrokenPipe.into())));
        }
        self.send(cx)?;
        if self.machine.room() == 0 {
            let now = self.now();
            self.machine.handle_blocked(now);
            self.send(cx)?;
        }
        // The acknowledgement that makes room may stand behind data that the user does not read before he has written.
        while self.machine.room() == 0
            && self.ready_bytes < AHEAD_BYTES_MAX
            && self.machine.end() == End::Open
        {
            let moved = self.understand()?;
            *is_ahead |= self.ready_bytes > 0;
            if moved {
                continue;
            }
            if self.poll_fill(cx, None)?.is_pending() {
                break;
            }
        }
        let room = self.machine.room().min(data.len());
        let Some(taken) = data.get(..room).filter(|taken| !taken.is_empty() || data.is_empty()) else {
            self.poll_timer(cx)?;
            return Poll::Pending;
        };
        let mut framed = BytesMut::with_capacity(DATA_HEADER_BYTES + taken.len());
        framed.extend_from_slice(&data_header(taken.len()));
        framed.extend_from_slice(taken);
        self.machine.handle_write(framed.freeze(), DATA_HEADER_BYTES);
        // They are taken: whoever is told of a loss now would write them again.
        self.overdue = self.send(cx).err();
        Poll::Ready(Ok(Ok(taken.len())))
    }

    /// Sends what there is; ready when the connection has taken all of it.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkEvent>> {
        self.send(cx)?;
        // What waits while there is no connection, waits here: the user goes on.
        if !self.machine.is_attached() || (self.output.is_empty() && self.is_flushed) {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Ends this direction; ready when that was sent.
    pub(crate) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkEvent>> {
        self.machine.handle_finish();
        ready!(self.poll_flush(cx))?;
        if self.machine.is_all_sent() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Sees to everything but the user's bytes, which are thrown away: for an end whose user is gone.
    pub(crate) fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkEvent>> {
        loop {
            self.ready.clear();
            self.ready_bytes = 0;
            self.send(cx)?;
            if self.machine.is_settled() || self.machine.is_aborted() {
                return Poll::Ready(Ok(()));
            }
            if self.understand()? {
                continue;
            }
            if self.poll_fill(cx, None)?.is_pending() {
                self.poll_timer(cx)?;
                return Poll::Pending;
            }
        }
    }

    /// Looks at the time.
    pub(crate) fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<(), LinkEvent> {
        loop {
            let Some(at) = self.machine.poll_timeout() else { return Ok(()) };
            let deadline = Instant::from_std(self.clock.instant(at));
            let (armed, sleep) = self.timer.get_or_insert_with(|| (at, Box::pin(sleep_until(deadline))));
            // Fired early it does no harm, and is armed again: it is moved only when something is due before.
            if at < *armed {
                *armed = at;
                sleep.as_mut().reset(deadline);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.timer = None;
            let now = self.now();
            self.machine.handle_timeout(now);
            if let Some(effect) = self.machine.poll_effect() {
                match effect {
                    Effect::GiveUp => return Err(LinkEvent::Lost("it answers nothing any more".to_owned())),
                    Effect::Expire => return Err(LinkEvent::Expired),
                }
            }
            self.send(cx)?;
        }
    }

    /// Understands what was read; true when that brought the user or the machine something.
    fn understand(&mut self) -> Result<bool, LinkEvent> {
        let now = self.now();
        let violation = |error: wayleave_resume::Violation| LinkEvent::Lost(error.to_string());
        let mut is_moved = false;
        loop {
            if self.data_left > 0 {
                let count = self.data_left.min(self.input.len());
                if count == 0 {
                    return Ok(is_moved);
                }
                self.machine.handle_data(count, now).map_err(violation)?;
                self.data_left -= count;
                self.ready.push_back(self.input.split_to(count).freeze());
                self.ready_bytes += count;
                is_moved = true;
                continue;
            }
            let decoded =
                Frame::decode(&mut self.input).map_err(|error| LinkEvent::Lost(error.to_string()))?;
            let Some(frame) = decoded else { return Ok(is_moved) };
            is_moved = true;
            match frame {
                Frame::Data { bytes } => self.data_left = bytes,
                Frame::Fin => self.machine.handle_fin(now).map_err(violation)?,
                Frame::Reset => self.machine.handle_reset(),
                Frame::Ask => self.machine.handle_ask(now),
                Frame::Acknowledge { received } => {
                    self.machine.handle_acknowledge(received, now).map_err(violation)?;
                }
                Frame::Ping { received } => self.machine.handle_ping(received, now).map_err(violation)?,
                Frame::Pong { received } => self.machine.handle_pong(received, now).map_err(violation)?,
                other => return Err(LinkEvent::Frame(Box::new(other))),
            }
            if self.machine.end() != End::Open && self.machine.is_aborted() {
                return Ok(true);
            }
        }
    }

    /// Reads once from the connection: the rest of a long frame to the user himself, everything else to be understood.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        user: Option<&mut ReadBuf<'_>>,
    ) -> Poll<Result<(), LinkEvent>> {
        let lost = |error: &dyn std::fmt::Display| LinkEvent::Lost(error.to_string());
        let Some(connection) = &mut self.connection else { return Poll::Pending };
        // A buffer that would have to be zeroed first gains nothing by it.
        let room = user.as_ref().map_or(0, |user| user.initialized().len() - user.filled().len());
        let direct = self.data_left.min(room);
        if let Some(user) = user.filter(|_| direct >= DIRECT_BYTES_MIN && self.input.is_empty()) {
            let mut part = ReadBuf::new(user.initialize_unfilled_to(direct));
            ready!(Pin::new(connection).poll_read(cx, &mut part)).map_err(|error| lost(&error))?;
            let count = part.filled().len();
            if count == 0 {
                return Poll::Ready(Err(LinkEvent::Lost("it was closed".to_owned())));
            }
            let now = self.clock.mono();
            self.machine.handle_data(count, now).map_err(|error| lost(&error))?;
            self.data_left -= count;
            user.advance(count);
            return Poll::Ready(Ok(()));
        }
        self.input.reserve(self.read_bytes);
        let read =
            ready!(poll_read_buf(Pin::new(connection), cx, &mut self.input)).map_err(|error| lost(&error))?;
        if read == 0 {
            return Poll::Ready(Err(LinkEvent::Lost("it was closed".to_owned())));
        }
        if read >= self.read_bytes {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        } else if read < self.read_bytes / 4 {
            self.read_bytes = (self.read_bytes / 2).max(READ_BYTES_MIN);
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what there is, as far as the connection takes it.
    pub(crate) fn send(&mut self, cx: &mut Context<'_>) -> Result<(), LinkEvent> {
        if let Some(event) = self.overdue.take() {
            return Err(event);
        }
        let now = self.now();
        loop {
            let Some(connection) = &mut self.connection else { return Ok(()) };
            let Some(front) = self.output.front_mut() else {
                match self.machine.poll_segment(now) {
                    Some(segment) => push(&mut self.output, segment),
                    None => break,
                }
                continue;
            };
            match Pin::new(connection).poll_write(cx, front) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(LinkEvent::Lost("it takes nothing any more".to_owned())),
                Poll::Ready(Ok(count)) => {
                    front.advance(count.min(front.len()));
                    if front.is_empty() {
                        self.output.pop_front();
                    }
                    self.is_flushed = false;
                }
                Poll::Ready(Err(error)) => return Err(LinkEvent::Lost(error.to_string())),
            }
        }
        if !self.is_flushed
            && let Some(connection) = &mut self.connection
            && let Poll::Ready(flushed) = Pin::new(connection).poll_flush(cx)
        {
            flushed.map_err(|error| LinkEvent::Lost(error.to_string()))?;
            self.is_flushed = true;
        }
        Ok(())
    }

    /// Moves what is ready to the user; false when there is nothing.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let mut is_given = false;
        while let Some(front) = self.ready.front_mut() {
            let count = front.len().min(buf.remaining());
            if count == 0 {
                break;
            }
            buf.put_slice(front.get(..count).unwrap_or_default());
            front.advance(count);
            self.ready_bytes -= count;
            is_given = true;
            if front.is_empty() {
                self.ready.pop_front();
            }
        }
        is_given
    }
}

fn push(output: &mut VecDeque<Bytes>, segment: Segment) {
    let frame = match segment {
        Segment::Whole(framed) => return output.push_back(framed),
        Segment::Rest(rest) => {
            output.push_back(Bytes::copy_from_slice(&data_header(rest.len())));
            return output.push_back(rest);
        }
        Segment::Fin => Frame::Fin,
        Segment::Reset => Frame::Reset,
        Segment::Ask => Frame::Ask,
        Segment::Acknowledge { received } => Frame::Acknowledge { received },
        Segment::Ping { received } => Frame::Ping { received },
        Segment::Pong { received } => Frame::Pong { received },
    };
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    output.push_back(bytes.freeze());
}
