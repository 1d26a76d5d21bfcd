//! Channels joined to byte streams: what a program or socket writes goes to the channel, and the reverse.
//!
//! A stream is read only while the channel has room for what comes, and a channel's window is credited only
//! when the stream took the bytes: whoever does not read slows nobody but himself. There is no task per
//! channel; the driver polls all pumps of its connection.

use crate::link::next_read_bytes;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;
use wayleave_ssh::{ChannelId, Connection, DataStream};

/// First size of a read.
const READ_BYTES_MIN: usize = 4 * 1024;
/// Largest read.
const READ_BYTES_MAX: usize = 128 * 1024;
/// A stream is read when the channel has room for so much.
const ROOM_BYTES_MIN: usize = 64 * 1024;
/// Reads or writes of one direction before the others get their turn.
const TURNS_MAX: usize = 4;
/// Pieces that one write takes.
const SLICES_MAX: usize = 16;
/// Closed channels whose last data is still being written, at a time.
const LINGERING_MAX: usize = 32;

/// What is read.
pub(crate) type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// What is written to.
pub(crate) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The two directions of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PumpEnd {
    /// Everything read has been given to the channel.
    Outbound,
    /// The peer's data ended and was written, or the stream takes no more.
    Inbound,
}

/// Bytes that went through a channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// From the peer.
    pub(crate) received_bytes: u64,
    /// To the peer.
    pub(crate) sent_bytes: u64,
}

/// All pumps of a connection.
#[derive(Default)]
pub(crate) struct Pumps {
    pumps: BTreeMap<ChannelId, Pump>,
    /// Of channels that the peer closed: what it sent before is written all the same.
    lingering: VecDeque<Pump>,
    scratch: BytesMut,
}

struct Pump {
    main: Lane,
    stderr: Lane,
    inlet: Inlet,
    /// Extended data of the peer: only servers send any, so most pumps have it ended.
    stderr_inlet: Inlet,
    is_outbound_told: bool,
    is_inbound_told: bool,
    traffic: Traffic,
}

/// A stream on its way to the channel.
enum Lane {
    /// Not attached yet.
    Waiting,
    Open {
        reader: Reader,
        pending: Bytes,
        read_bytes: usize,
    },
    Ended,
}

/// One stream of the channel on its way to where it goes.
struct Inlet {
    sink: Sink,
    queue: VecDeque<Bytes>,
    is_eof: bool,
}

/// Where the channel's data goes.
enum Sink {
    /// Not attached yet: data waits, bounded by the window.
    Waiting,
    Open {
        writer: Writer,
        is_dirty: bool,
    },
    Closing(Writer),
    Ended,
}

impl Pumps {
    /// A channel whose streams come later. Its data waits until then.
    pub(crate) fn expect(&mut self, channel: ChannelId) {
        self.pumps.insert(channel, Pump::new());
    }

    /// Joins a channel to streams.
    pub(crate) fn attach(
        &mut self,
        channel: ChannelId,
        main: Reader,
        stderr: Option<Reader>,
        writer: Writer,
    ) {
        let pump = self.pumps.entry(channel).or_insert_with(Pump::new);
        pump.main = Lane::open(main);
        pump.stderr = stderr.map_or(Lane::Ended, Lane::open);
        pump.inlet.sink = Sink::Open { writer, is_dirty: false };
    }

    /// Says where the extended data of a server goes. Without this it is dropped.
    pub(crate) fn attach_stderr(&mut self, channel: ChannelId, writer: Writer) {
        let pump = self.pumps.entry(channel).or_insert_with(Pump::new);
        pump.stderr_inlet.sink = Sink::Open { writer, is_dirty: false };
    }

    /// Joins a channel to a stream with two halves.
    pub(crate) fn attach_stream<S>(&mut self, channel: ChannelId, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        self.attach(channel, Box::new(reader), None, Box::new(writer));
    }

    /// Lets go of a channel's streams.
    pub(crate) fn remove(&mut self, channel: ChannelId) -> Traffic {
        self.pumps.remove(&channel).map(|pump| pump.traffic).unwrap_or_default()
    }

    /// The peer closed a channel: it wants nothing more, and what it sent before is still written.
    pub(crate) fn close(&mut self, channel: ChannelId) -> Traffic {
        let Some(mut pump) = self.pumps.remove(&channel) else { return Traffic::default() };
        let traffic = pump.traffic;
        if !pump.is_inbound_over() && !matches!(pump.inlet.sink, Sink::Waiting) {
            (pump.main, pump.stderr) = (Lane::Ended, Lane::Ended);
            pump.end_of_input();
            if self.lingering.len() >= LINGERING_MAX {
                self.lingering.pop_front();
            }
            self.lingering.push_back(pump);
        }
        traffic
    }

    /// What went through so far.
    pub(crate) fn traffic(&self, channel: ChannelId) -> Traffic {
        self.pumps.get(&channel).map(|pump| pump.traffic).unwrap_or_default()
    }

    /// Data of the peer.
    pub(crate) fn receive(
        &mut self,
        connection: &mut Connection,
        channel: ChannelId,
        stream: DataStream,
        data: Bytes,
    ) {
        let bytes = data.len();
        if let Some(pump) = self.pumps.get_mut(&channel)
            && let inlet = pump.inlet_of(stream)
            && inlet.takes()
        {
            inlet.queue.push_back(data);
            pump.traffic.received_bytes += bytes as u64;
            return;
        }
        // Nobody wants it: the window is given back, so that the peer is not stuck.
        connection.consumed(channel, bytes);
    }

    /// The peer sends no more.
    pub(crate) fn receive_eof(&mut self, channel: ChannelId) {
        if let Some(pump) = self.pumps.get_mut(&channel) {
            pump.end_of_input();
        }
    }

    /// The peer reads no more: what is read would be for nobody.
    pub(crate) fn stop_outbound(&mut self, channel: ChannelId) {
        if let Some(pump) = self.pumps.get_mut(&channel) {
            (pump.main, pump.stderr) = (Lane::Ended, Lane::Ended);
        }
    }

    /// The stream takes no more.
    pub(crate) fn stop_inbound(&mut self, connection: &mut Connection, channel: ChannelId) {
        if let Some(pump) = self.pumps.get_mut(&channel) {
            let unwritten = pump.inlet.end().saturating_add(pump.stderr_inlet.end());
            connection.consumed(channel, unwritten);
        }
    }

    /// Moves what can be moved, a bounded amount for each. True when something was, and then it is to be called
    /// again; ends go to `ended`.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
        ended: &mut Vec<(ChannelId, PumpEnd)>,
    ) -> bool {
        let mut has_moved = false;
        for pump in &mut self.lingering {
            has_moved |= pump.poll_inbound(cx, |_| {});
        }
        self.lingering.retain(|pump| !pump.is_inbound_over());
        for (&channel, pump) in &mut self.pumps {
            has_moved |= pump.poll_inbound(cx, |written| connection.consumed(channel, written));
            let Pump { main, stderr, traffic, .. } = pump;
            for (lane, stream) in [(main, DataStream::Main), (stderr, DataStream::Stderr)] {
                let sent = lane.poll(cx, connection, channel, stream, &mut self.scratch);
                traffic.sent_bytes += sent as u64;
                has_moved |= sent > 0;
            }
            if pump.is_outbound_over() && !std::mem::replace(&mut pump.is_outbound_told, true) {
                ended.push((channel, PumpEnd::Outbound));
            }
            if pump.is_inbound_over() && !std::mem::replace(&mut pump.is_inbound_told, true) {
                ended.push((channel, PumpEnd::Inbound));
            }
        }
        has_moved || !ended.is_empty()
    }

    /// Whether both directions have ended.
    pub(crate) fn is_over(&self, channel: ChannelId) -> bool {
        self.pumps.get(&channel).is_none_or(|pump| pump.is_outbound_over() && pump.is_inbound_over())
    }
}

impl Pump {
    fn new() -> Self {
        Self {
            main: Lane::Waiting,
            stderr: Lane::Waiting,
            inlet: Inlet { sink: Sink::Waiting, queue: VecDeque::new(), is_eof: false },
            stderr_inlet: Inlet { sink: Sink::Ended, queue: VecDeque::new(), is_eof: false },
            is_outbound_told: false,
            is_inbound_told: false,
            traffic: Traffic::default(),
        }
    }

    fn is_outbound_over(&self) -> bool {
        matches!((&self.main, &self.stderr), (Lane::Ended, Lane::Ended))
    }

    fn is_inbound_over(&self) -> bool {
        matches!((&self.inlet.sink, &self.stderr_inlet.sink), (Sink::Ended, Sink::Ended))
    }

    fn inlet_of(&mut self, stream: DataStream) -> &mut Inlet {
        match stream {
            DataStream::Main => &mut self.inlet,
            DataStream::Stderr => &mut self.stderr_inlet,
        }
    }

    /// The peer sends no more on either stream.
    fn end_of_input(&mut self) {
        (self.inlet.is_eof, self.stderr_inlet.is_eof) = (true, true);
    }

    /// Writes, and tells how many bytes are dealt with.
    fn poll_inbound(&mut self, cx: &mut Context<'_>, mut consumed: impl FnMut(usize)) -> bool {
        let has_moved = self.inlet.poll(cx, &mut consumed);
        self.stderr_inlet.poll(cx, &mut consumed) || has_moved
    }
}

impl Inlet {
    /// Whether data is kept for a sink that is there or may come.
    fn takes(&self) -> bool {
        !matches!(self.sink, Sink::Ended)
    }

    /// Gives up writing; returns how many bytes were left.
    fn end(&mut self) -> usize {
        self.sink = Sink::Ended;
        self.queue.drain(..).map(|data| data.len()).sum()
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut consumed: impl FnMut(usize)) -> bool {
        let mut has_moved = false;
        for _ in 0..TURNS_MAX {
            match self.poll_write_once(cx) {
                Poll::Pending => return has_moved,
                Poll::Ready(Ok(0)) => break,
                Poll::Ready(Ok(written)) => {
                    consumed(written);
                    has_moved = true;
                }
                Poll::Ready(Err(_)) => {
                    consumed(self.end());
                    return true;
                }
            }
        }
        has_moved
    }

    /// One write, or the end of the stream after all of them. Zero: there is nothing to do.
    fn poll_write_once(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &mut self.sink {
            Sink::Waiting | Sink::Ended => Poll::Ready(Ok(0)),
            Sink::Open { writer, is_dirty } if !self.queue.is_empty() => {
                let written = std::task::ready!(poll_write_queue(writer, cx, &self.queue))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                *is_dirty = true;
                advance(&mut self.queue, written);
                Poll::Ready(Ok(written))
            }
            Sink::Open { writer, is_dirty } if *is_dirty => {
                std::task::ready!(Pin::new(writer).poll_flush(cx))?;
                *is_dirty = false;
                self.poll_write_once(cx)
            }
            Sink::Open { .. } if !self.is_eof => Poll::Ready(Ok(0)),
            Sink::Open { .. } => {
                if let Sink::Open { writer, .. } = std::mem::replace(&mut self.sink, Sink::Ended) {
                    self.sink = Sink::Closing(writer);
                }
                self.poll_write_once(cx)
            }
            Sink::Closing(writer) => {
                std::task::ready!(Pin::new(writer).poll_shutdown(cx))?;
                self.sink = Sink::Ended;
                Poll::Ready(Ok(0))
            }
        }
    }
}

impl Lane {
    fn open(reader: Reader) -> Self {
        Self::Open { reader, pending: Bytes::new(), read_bytes: READ_BYTES_MIN }
    }

    /// Reads and sends; returns how many bytes were read.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
        channel: ChannelId,
        stream: DataStream,
        scratch: &mut BytesMut,
    ) -> usize {
        let Self::Open { reader, pending, read_bytes } = self else { return 0 };
        let mut moved = 0;
        for _ in 0..TURNS_MAX {
            if !pending.is_empty() {
                let sent = connection.send(channel, stream, pending);
                if sent.is_err() {
                    *self = Self::Ended;
                    return moved;
                }
                if !pending.is_empty() {
                    return moved;
                }
            }
            if connection.send_room(channel) < ROOM_BYTES_MIN {
                return moved;
            }
            scratch.reserve(*read_bytes);
            match poll_read_buf(Pin::new(reader), cx, scratch) {
                Poll::Pending => return moved,
                Poll::Ready(Ok(0) | Err(_)) => {
                    *self = Self::Ended;
                    return moved;
                }
                Poll::Ready(Ok(read)) => {
                    *read_bytes = next_read_bytes(*read_bytes, read, READ_BYTES_MIN, READ_BYTES_MAX);
                    *pending = scratch.split().freeze();
                    moved += read;
                }
            }
        }
        moved
    }
}

fn poll_write_queue(
    writer: &mut Writer,
    cx: &mut Context<'_>,
    queue: &VecDeque<Bytes>,
) -> Poll<io::Result<usize>> {
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let mut count = 0;
    for (slice, data) in slices.iter_mut().zip(queue) {
        *slice = IoSlice::new(data);
        count += 1;
    }
    Pin::new(writer).poll_write_vectored(cx, slices.get(..count).unwrap_or_default())
}

fn advance(queue: &mut VecDeque<Bytes>, mut written: usize) {
    while written > 0
        && let Some(front) = queue.front_mut()
    {
        let part = written.min(front.len());
        front.advance(part);
        written -= part;
        if front.is_empty() {
            queue.pop_front();
        }
    }
}
