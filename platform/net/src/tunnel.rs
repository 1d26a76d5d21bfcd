//! Drives one multiplexed connection (`wire/mux`) over an asynchronous stream.
//!
//! The machine is shared between the driver ([`TunnelDriver::run`]) and the streams behind one small lock: a stream reads and
//! writes without a task in between, and what goes to the socket is decided when the socket can take it.

use bytes::{Buf, Bytes, BytesMut};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;
use wayleave_mux::{
    Class, Config, ControlError, Event, GoAwayCode, Mux, MuxError, OpenError, ResetCode, Role, SendError,
    StreamId,
};
use wayleave_runtime::{Clock, SystemClock};
use wayleave_vocab::Mono;

/// What one pass reads from the socket.
const READ_BYTES: usize = 64 * 1024;
/// A read of so much shows that there is more where it came from.
const BULK_BYTES_MIN: usize = 4 * 1024;
/// A buffer that has less room is not read into any more.
const ROOM_BYTES_MIN: usize = 16 * 1024;
/// What one pass takes from the machine: it can no longer be overtaken.
const WRITE_BYTES: usize = 64 * 1024;
/// Pieces that one write takes.
const SLICES_MAX: usize = 16;
/// Passes before other tasks get their turn.
const PASSES_MAX: usize = 16;
/// Data of fewer bytes is copied together: a slice of it would keep the whole read of the socket in memory.
const SLICE_BYTES_MIN: usize = 12 * 1024;
/// How long what is queued may take to be sent once a tunnel is being closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long what an abandoned stream has written may wait for the other side to take it.
const LINGER_TIMEOUT: Duration = Duration::from_secs(60);

thread_local! {
    /// Scratch for reading, so that a tunnel with little to say owns no buffer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// A handle to one connection. Clones share it; dropping handles does not close it.
#[derive(Clone)]
pub struct Tunnel(Arc<Shared>);

/// Something that happened on a tunnel.
pub enum TunnelEvent {
    /// The other side is there: streams can be opened.
    Ready,
    /// The other side opened a stream.
    Opened(TunnelStream),
    /// A control message.
    Control(Bytes),
    /// The other side takes no more streams.
    GoingAway,
    /// One side is going away and the last stream has closed.
    Drained,
}

/// Why a tunnel ended.
#[derive(Debug, thiserror::Error)]
pub enum TunnelClosed {
    /// The connection failed or the other side closed it.
    #[error("the connection was lost")]
    Io(#[source] io::Error),
    /// The other side broke the protocol or fell silent.
    #[error("the tunnel failed")]
    Protocol(#[source] MuxError),
    /// The other side closed it.
    #[error("the other side closed the tunnel")]
    ByPeer,
    /// [`Tunnel::close`] was called.
    #[error("the tunnel was closed")]
    Here,
}

struct Shared {
    state: Mutex<State>,
    clock: SystemClock,
}

struct State {
    mux: Mux,
    slots: HashMap<StreamId, Slot>,
    /// Streams whose user finished and went away before everything was sent, and until when they may.
    lingering: Vec<(StreamId, Mono)>,
    /// Waits for something to send.
    driver: Option<Waker>,
    /// Waits for the tunnel to be closed, whatever else the driver waits for.
    closer: Option<Waker>,
    /// The tunnel is being closed, at the latest then.
    closing: Option<Mono>,
    ended: bool,
}

/// What a stream's user has yet to take: first `received`, then `tail`.
#[derive(Default)]
struct Slot {
    received: VecDeque<Bytes>,
    tail: BytesMut,
    finished: bool,
    reset: Option<ResetCode>,
    shut_down: bool,
    abandoned: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Tunnel {
    /// Takes a stream (after its TLS handshake). Nothing moves until the driver runs.
    pub fn new<S>(role: Role, config: Config, stream: S) -> (Self, TunnelDriver<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let clock = SystemClock::new();
        let mux = Mux::new(role, config, clock.mono());
        let state = State {
            mux,
            slots: HashMap::new(),
            lingering: Vec::new(),
            driver: None,
            closer: None,
            closing: None,
            ended: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), clock });
        let driver = TunnelDriver {
            shared: shared.clone(),
            stream,
            input: BytesMut::new(),
            is_busy: false,
            ended: None,
            output: VecDeque::new(),
            timer: None,
        };
        (Self(shared), driver)
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&self, class: Class) -> Result<TunnelStream, OpenError> {
        let mut state = self.0.lock();
        if state.ended || state.closing.is_some() {
            return Err(OpenError::GoingAway);
        }
        let id = state.mux.open(class, self.0.clock.mono())?;
        state.slots.insert(id, Slot::default());
        state.wake_driver();
        drop(state);
        Ok(TunnelStream { shared: self.0.clone(), id })
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn send_control(&self, message: Bytes) -> Result<(), ControlError> {
        let mut state = self.0.lock();
        let sent = state.mux.send_control(message);
        state.wake_driver();
        sent
    }

    /// Tells the other side to open no more streams here; those that exist go on.
    pub fn go_away(&self) {
        let mut state = self.0.lock();
        state.mux.go_away(GoAwayCode::DRAIN);
        state.wake_driver();
    }

    /// Sends what is queued and closes the connection; streams that still exist are cut. One that takes nothing any
    /// more is closed after a few seconds.
    pub fn close(&self) {
        self.close_within(CLOSE_TIMEOUT);
    }

    fn close_within(&self, time: Duration) {
        let by = self.0.clock.mono().after(time);
        let mut state = self.0.lock();
        state.closing.get_or_insert(by);
        state.wake_driver();
        if let Some(waker) = state.closer.take() {
            waker.wake();
        }
    }

    /// Streams that are open.
    pub fn stream_count(&self) -> usize {
        self.0.lock().slots.len()
    }

    /// The connection is gone.
    pub fn is_ended(&self) -> bool {
        self.0.lock().ended
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    fn slot_mut(&mut self, id: StreamId) -> Option<&mut Slot> {
        self.slots.get_mut(&id)
    }

    /// Moves what the machine has to say to the slots; gives what the tunnel's owner must hear.
    fn dispatch(&mut self, shared: &Arc<Shared>, heard: &mut Vec<TunnelEvent>) {
        while let Some(event) = self.mux.poll_event() {
            match event {
                Event::Ready => heard.push(TunnelEvent::Ready),
                Event::StreamOpened { id, .. } => {
                    self.slots.insert(id, Slot::default());
                    heard.push(TunnelEvent::Opened(TunnelStream { shared: shared.clone(), id }));
                }
                Event::Data { id, bytes } => match self.slot_mut(id) {
                    Some(slot) if slot.abandoned => {}
                    Some(slot) => {
                        slot.push(&bytes);
                        slot.wake_reader();
                    }
                    None => self.mux.reset(id, ResetCode::CANCELLED),
                },
                Event::Finished { id } => {
                    if let Some(slot) = self.slot_mut(id) {
                        slot.finished = true;
                        slot.wake_reader();
                    }
                }
                Event::Reset { id, code } => {
                    if let Some(slot) = self.slot_mut(id) {
                        slot.reset = Some(code);
                        slot.wake_reader();
                        slot.wake_writer();
                    }
                }
                Event::Writable { id } => {
                    if let Some(slot) = self.slot_mut(id) {
                        slot.wake_writer();
                    }
                }
                Event::Control(message) => heard.push(TunnelEvent::Control(message)),
                Event::Pong { .. } => {}
                Event::GoAway { .. } => heard.push(TunnelEvent::GoingAway),
                Event::Drained => heard.push(TunnelEvent::Drained),
            }
        }
    }

    /// Forgets the streams whose last bytes have been sent. False when there is none that lingers.
    fn forget_lingering(&mut self, now: Mono) -> bool {
        if self.lingering.is_empty() {
            return false;
        }
        let all_is_out = !self.mux.has_output();
        let (mux, slots) = (&mut self.mux, &mut self.slots);
        self.lingering.retain(|(id, until)| {
            let unsent = (mux.queued_bytes(*id) > 0 || !all_is_out) && now < *until;
            if !unsent {
                mux.reset(*id, ResetCode::CANCELLED);
                slots.remove(id);
            }
            unsent
        });
        true
    }

    fn end(&mut self) {
        self.ended = true;
        for slot in self.slots.values_mut() {
            slot.wake_reader();
            slot.wake_writer();
        }
    }
}

impl Slot {
    fn push(&mut self, bytes: &Bytes) {
        if bytes.len() < SLICE_BYTES_MIN {
            self.tail.extend_from_slice(bytes);
        } else {
            self.close_tail();
            self.received.push_back(bytes.clone());
        }
        if self.tail.len() >= SLICE_BYTES_MIN {
            self.close_tail();
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.received.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// Moves as much as there is and fits; gives how much that was.
    fn take(&mut self, buf: &mut ReadBuf<'_>) -> usize {
        let before = buf.remaining();
        while let Some(front) = self.received.front_mut() {
            let count = front.len().min(buf.remaining());
            buf.put_slice(&front[..count]);
            front.advance(count);
            if !front.is_empty() {
                return before - buf.remaining();
            }
            self.received.pop_front();
        }
        let count = self.tail.len().min(buf.remaining());
        buf.put_slice(&self.tail[..count]);
        self.tail.advance(count);
        if self.tail.is_empty() {
            self.tail = BytesMut::new();
        }
        before - buf.remaining()
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

/// Moves bytes between the machine and the connection. Owned by the task that runs it.
pub struct TunnelDriver<S> {
    shared: Arc<Shared>,
    stream: S,
    input: BytesMut,
    /// The last read brought much: the next ones go to a buffer of their own, whose slices streams take.
    is_busy: bool,
    /// How reading ended, once what came before is handled.
    ended: Option<TunnelClosed>,
    output: VecDeque<Bytes>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TunnelDriver<S> {
    /// Runs until the tunnel ends and says why. `on_event` is called in order and must not block.
    ///
    /// Dropping the future closes the connection and ends all streams.
    pub async fn run(mut self, mut on_event: impl FnMut(TunnelEvent)) -> TunnelClosed {
        let mut heard = Vec::new();
        poll_fn(|cx| {
            for _ in 0..PASSES_MAX {
                let pass = self.pass(cx, &mut heard);
                heard.drain(..).for_each(&mut on_event);
                match pass {
                    Poll::Ready(Pass::Again) => {}
                    Poll::Ready(Pass::Closed(reason)) => return Poll::Ready(reason),
                    Poll::Pending => return Poll::Pending,
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    fn pass(&mut self, cx: &mut Context<'_>, heard: &mut Vec<TunnelEvent>) -> Poll<Pass> {
        let mut progress = false;
        match self.poll_read(cx, heard) {
            Poll::Ready(Ok(())) => progress = true,
            Poll::Ready(Err(reason)) => {
                self.flush_last(cx);
                return Poll::Ready(Pass::Closed(reason));
            }
            Poll::Pending => {}
        }
        match self.poll_write(cx, heard) {
            Poll::Ready(Ok(Written::Some)) => progress = true,
            Poll::Ready(Ok(Written::LastOne)) => {
                let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
                return Poll::Ready(Pass::Closed(TunnelClosed::Here));
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Pass::Closed(TunnelClosed::Io(error))),
            Poll::Pending => {}
        }
        match self.poll_timer(cx) {
            Poll::Ready(Ok(())) => progress = true,
            Poll::Ready(Err(reason)) => return Poll::Ready(Pass::Closed(reason)),
            Poll::Pending => {}
        }
        if progress { Poll::Ready(Pass::Again) } else { Poll::Pending }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        heard: &mut Vec<TunnelEvent>,
    ) -> Poll<Result<(), TunnelClosed>> {
        if let Some(reason) = self.ended.take() {
            return Poll::Ready(Err(reason));
        }
        std::task::ready!(self.poll_fill(cx))?;
        let mut state = self.shared.lock();
        let handled = state.mux.handle_input(&mut self.input, self.shared.clock.mono());
        state.dispatch(&self.shared, heard);
        drop(state);
        if self.input.is_empty() && !self.is_busy {
            self.input = BytesMut::new();
        }
        Poll::Ready(handled.map_err(TunnelClosed::Protocol))
    }

    /// Reads once, or as much as is there while much comes.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelClosed>> {
        if !self.is_busy {
            let read = std::task::ready!(self.poll_fill_little(cx)).map_err(TunnelClosed::Io)?;
            self.is_busy = read >= BULK_BYTES_MIN;
            return Poll::Ready(if read == 0 { Err(TunnelClosed::ByPeer) } else { Ok(()) });
        }
        let before = self.input.len();
        if self.input.capacity() - before < ROOM_BYTES_MIN {
            self.input.reserve(READ_BYTES);
        }
        while self.input.len() < self.input.capacity() {
            let reason = match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input) {
                Poll::Ready(Ok(1..)) => continue,
                Poll::Ready(Ok(0)) => TunnelClosed::ByPeer,
                Poll::Ready(Err(error)) => TunnelClosed::Io(error),
                Poll::Pending => break,
            };
            self.ended = Some(reason);
            break;
        }
        let read = self.input.len() - before;
        self.is_busy = read >= BULK_BYTES_MIN;
        match self.ended.take() {
            Some(reason) if read == 0 => return Poll::Ready(Err(reason)),
            ended => self.ended = ended,
        }
        if read == 0 {
            self.input = BytesMut::from(&self.input[..]);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_fill_little(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (stream, input) = (&mut self.stream, &mut self.input);
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            std::task::ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
            input.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        heard: &mut Vec<TunnelEvent>,
    ) -> Poll<io::Result<Written>> {
        if self.output.is_empty() {
            let mut parts = Vec::new();
            let mut state = self.shared.lock();
            let now = self.shared.clock.mono();
            state.mux.poll_output_parts(&mut parts, WRITE_BYTES, now);
            if state.forget_lingering(now) {
                state.mux.poll_output_parts(&mut parts, WRITE_BYTES, now);
            }
            state.dispatch(&self.shared, heard);
            self.output = parts.into();
            if self.output.is_empty() {
                if state.closing.is_some() {
                    return Poll::Ready(Ok(Written::LastOne));
                }
                state.driver = Some(cx.waker().clone());
                drop(state);
                let _ = Pin::new(&mut self.stream).poll_flush(cx)?;
                return Poll::Pending;
            }
        }
        while !self.output.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut used = 0;
            for (slice, part) in slices.iter_mut().zip(&self.output) {
                *slice = IoSlice::new(part);
                used += 1;
            }
            let slices = slices.get(..used).unwrap_or_default();
            let count = match Pin::new(&mut self.stream).poll_write_vectored(cx, slices)? {
                Poll::Ready(count) => count,
                Poll::Pending => {
                    let _ = Pin::new(&mut self.stream).poll_flush(cx)?;
                    return Poll::Pending;
                }
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            advance(&mut self.output, count);
        }
        Poll::Ready(Ok(Written::Some))
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelClosed>> {
        loop {
            let at = {
                let mut state = self.shared.lock();
                if !state.closer.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    state.closer = Some(cx.waker().clone());
                }
                if state.closing.is_some_and(|by| by <= self.shared.clock.mono()) {
                    return Poll::Ready(Err(TunnelClosed::Here));
                }
                [state.mux.poll_timeout(), state.closing].into_iter().flatten().min()
            };
            let Some(at) = at else { return Poll::Pending };
            let at = tokio::time::Instant::from_std(self.shared.clock.instant(at));
            if at <= tokio::time::Instant::now() {
                let mut state = self.shared.lock();
                let handled = state.mux.handle_timeout(self.shared.clock.mono());
                return Poll::Ready(handled.map_err(TunnelClosed::Protocol));
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.deadline() > at || timer.is_elapsed() {
                timer.as_mut().reset(at);
            }
            std::task::ready!(timer.as_mut().poll(cx));
        }
    }

    /// After a violation the machine has one more frame that tells the other side.
    fn flush_last(&mut self, cx: &mut Context<'_>) {
        let mut last = BytesMut::new();
        self.output.iter().for_each(|part| last.extend_from_slice(part));
        self.shared.lock().mux.poll_output(&mut last, WRITE_BYTES, self.shared.clock.mono());
        let _ = Pin::new(&mut self.stream).poll_write(cx, &last);
        let _ = Pin::new(&mut self.stream).poll_flush(cx);
    }
}

/// Drops what was written.
fn advance(parts: &mut VecDeque<Bytes>, mut written: usize) {
    while written > 0
        && let Some(front) = parts.front_mut()
    {
        let part = written.min(front.len());
        front.advance(part);
        written -= part;
        if front.is_empty() {
            parts.pop_front();
        }
    }
}

enum Pass {
    Again,
    Closed(TunnelClosed),
}

enum Written {
    Some,
    LastOne,
}

impl<S> Drop for TunnelDriver<S> {
    fn drop(&mut self) {
        self.shared.lock().end();
    }
}

/// One stream of a tunnel. Dropping it cuts what is not finished; behind a shutdown, what was written still goes out.
pub struct TunnelStream {
    shared: Arc<Shared>,
    id: StreamId,
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let now = self.shared.clock.mono();
        let mut state = self.shared.lock();
        let state = &mut *state;
        let Some(slot) = state.slots.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let taken = slot.take(buf);
        if taken > 0 {
            state.mux.consumed(self.id, taken, now);
            if state.mux.has_output() {
                state.wake_driver();
            }
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() == 0 || slot.finished {
            return Poll::Ready(Ok(()));
        }
        if slot.reset.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.ended {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        slot.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let now = self.shared.clock.mono();
        let mut state = self.shared.lock();
        let state = &mut *state;
        let Some(slot) = state.slots.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if slot.reset.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.ended {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let count = state.mux.send_capacity(self.id).min(buf.len());
        if count == 0 && !buf.is_empty() {
            slot.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match state.mux.send(self.id, Bytes::copy_from_slice(&buf[..count]), now) {
            Ok(()) => {
                state.wake_driver();
                Poll::Ready(Ok(count))
            }
            Err(SendError::Blocked(_)) => {
                slot.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(SendError::Closed(_)) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = self.shared.clock.mono();
        let mut state = self.shared.lock();
        state.mux.finish(self.id, now);
        if let Some(slot) = state.slot_mut(self.id) {
            slot.shut_down = true;
        }
        state.wake_driver();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let ended = state.ended;
        match state.slot_mut(self.id) {
            Some(slot) if slot.shut_down && slot.reset.is_none() && !ended => {
                slot.abandoned = true;
                slot.received = VecDeque::new();
                slot.tail = BytesMut::new();
                let until = self.shared.clock.mono().after(LINGER_TIMEOUT);
                state.lingering.push((self.id, until));
            }
            _ => {
                state.slots.remove(&self.id);
                state.mux.reset(self.id, ResetCode::CANCELLED);
            }
        }
        state.wake_driver();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;
    use wayleave_runtime::TaskGroup;

    struct End {
        tunnel: Tunnel,
        events: mpsc::Receiver<TunnelEvent>,
    }

    fn end(role: Role, stream: tokio::io::DuplexStream, tasks: &TaskGroup) -> End {
        let (tunnel, driver) = Tunnel::new(role, Config::default(), stream);
        let (sender, events) = mpsc::channel(64);
        tasks.spawn("tunnel", async move {
            driver
                .run(|event| {
                    sender.try_send(event).unwrap_or_else(|_| panic!("the test keeps up with its events"))
                })
                .await;
        });
        End { tunnel, events }
    }

    async fn pair(tasks: &TaskGroup) -> (End, End) {
        let (a, b) = tokio::io::duplex(64 * 1024);
        let (mut a, mut b) = (end(Role::Connector, a, tasks), end(Role::Acceptor, b, tasks));
        assert!(matches!(a.events.recv().await, Some(TunnelEvent::Ready)));
        assert!(matches!(b.events.recv().await, Some(TunnelEvent::Ready)));
        (a, b)
    }

    async fn opened(end: &mut End) -> TunnelStream {
        match end.events.recv().await {
            Some(TunnelEvent::Opened(stream)) => stream,
            _ => panic!("a stream was expected"),
        }
    }

    #[tokio::test]
    async fn bytes_and_half_close_go_both_ways_and_control_arrives() {
        let tasks = TaskGroup::new();
        let (a, mut b) = pair(&tasks).await;
        let mut near = a.tunnel.open(Class::Interactive).unwrap();
        let mut far = opened(&mut b).await;
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let copy = sent.clone();
        let send = async move {
            near.write_all(&copy).await.unwrap();
            near.shutdown().await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let receive = async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            far.write_all(b"thanks").await.unwrap();
            far.shutdown().await.unwrap();
            let mut rest = [0; 1];
            let _ = far.read(&mut rest).await;
            all
        };
        let (answer, received) = tokio::join!(send, receive);
        assert_eq!(answer, b"thanks");
        assert_eq!(received, sent);
        b.tunnel.send_control(Bytes::from_static(b"hello")).unwrap();
        let mut a = a;
        assert!(matches!(a.events.recv().await, Some(TunnelEvent::Control(m)) if m == "hello"));
        a.tunnel.close();
        b.tunnel.close();
        assert!(tasks.finish(std::time::Duration::from_secs(1)).await);
    }

    #[tokio::test]
    async fn g_a_tunnel_closes_though_the_other_side_takes_nothing() {
        let tasks = TaskGroup::new();
        let (near, _silent) = tokio::io::duplex(16);
        let (tunnel, driver) = Tunnel::new(Role::Connector, Config::default(), near);
        tunnel.send_control(Bytes::from_static(b"more than the pipe holds")).unwrap();
        let closing = tunnel.clone();
        tasks.spawn("closer", async move {
            tokio::task::yield_now().await;
            closing.close_within(Duration::from_millis(20));
        });
        let ended = tokio::time::timeout(Duration::from_secs(10), driver.run(|_| {})).await;
        assert!(matches!(ended, Ok(TunnelClosed::Here)), "silence would end it later");
    }

    #[test]
    fn f_small_frames_do_not_keep_the_reads_they_came_in() {
        let mut slot = Slot::default();
        let read = Bytes::from(vec![7; READ_BYTES]);
        for at in 0..20_000 {
            slot.push(&read.slice(at..at + 1));
        }
        assert!(slot.received.len() <= 20_000 / SLICE_BYTES_MIN);
        slot.push(&read);
        slot.push(&read.slice(..3));
        let mut all = Vec::new();
        let mut room = [0; 999];
        loop {
            let mut buf = ReadBuf::new(&mut room);
            if slot.take(&mut buf) == 0 {
                break;
            }
            all.extend_from_slice(buf.filled());
        }
        assert_eq!(all, vec![7; 20_000 + READ_BYTES + 3]);
    }

    #[tokio::test]
    async fn g_an_unread_stream_stalls_nobody_and_a_dead_tunnel_ends_its_streams() {
        let tasks = TaskGroup::new();
        let (a, mut b) = pair(&tasks).await;
        let mut stuck = a.tunnel.open(Class::Bulk).unwrap();
        let _unread = opened(&mut b).await;
        let flood = vec![7; 1 << 20];
        let blocked = async { while stuck.write_all(&flood).await.is_ok() {} };
        let mut near = a.tunnel.open(Class::Interactive).unwrap();
        let mut far = opened(&mut b).await;
        let echo = async {
            for _ in 0..100 {
                near.write_all(b"k").await.unwrap();
                let mut key = [0; 1];
                far.read_exact(&mut key).await.unwrap();
            }
            b.tunnel.close();
            let mut byte = [0; 1];
            assert!(!matches!(near.read(&mut byte).await, Ok(1)));
        };
        tokio::join!(blocked, echo);
    }
}
