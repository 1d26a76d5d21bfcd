//! The loop around one SSH connection: stream, timers, channels and the application's own work.
//!
//! One future does everything, and nothing is spawned: dropping it ends the connection. Work that must
//! not be lost with the connection (the last audit events, the end of processes) is *lasting* and is waited
//! for, within a bound.

use crate::link::Link;
use crate::pump::{PumpEnd, Pumps};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Sleep;
use wayleave_net::BoxStream;
use wayleave_runtime::{Clock, fill_random};
use wayleave_ssh::{
    ChannelId, ClientConfig, Connection, ConnectionError, DataStream, DisconnectReason, Event, Intake,
    ServerConfig,
};
use wayleave_vocab::Mono;

/// Results of work that one turn of the loop takes.
const RESULTS_MAX: usize = 32;
/// How long a goodbye may take to reach a peer that reads slowly.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long lasting work may take after the connection.
const LASTING_TIMEOUT: Duration = Duration::from_secs(15);

/// What is done with a connection.
pub(crate) trait Application: Send {
    /// What its work results in.
    type Done: Send + 'static;

    /// An event that the driver has not dealt with itself. Of channels that are pumped, data and ends are.
    fn on_event(&mut self, core: &mut Core<Self::Done>, event: Event);
    /// Work is done.
    fn on_done(&mut self, core: &mut Core<Self::Done>, done: Self::Done);
    /// A direction of a pumped channel has ended.
    fn on_pump(&mut self, core: &mut Core<Self::Done>, channel: ChannelId, end: PumpEnd);
    /// When [`Application::on_time`] wants to be called.
    fn wakes_at(&self) -> Option<Mono>;
    /// It is that time, or later.
    fn on_time(&mut self, core: &mut Core<Self::Done>);
    /// The connection is over. Lasting work may still be given; verbs do nothing any more.
    fn on_end(&mut self, core: &mut Core<Self::Done>);
}

/// What an application acts on.
pub(crate) struct Core<D> {
    pub(crate) connection: Connection,
    pub(crate) pumps: Pumps,
    pub(crate) clock: Arc<dyn Clock>,
    /// When data last moved in either direction.
    pub(crate) last_activity: Mono,
    work: FuturesUnordered<BoxFuture<'static, D>>,
    lasting: FuturesUnordered<BoxFuture<'static, D>>,
    goodbye: Option<Goodbye>,
}

struct Goodbye {
    reason: DisconnectReason,
    message: String,
}

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(transparent)]
    Failed(ConnectionError),
    #[error("the stream broke: {0}")]
    Stream(io::Error),
    #[error("the other side closed the stream")]
    PeerClosed,
    #[error("the other side said goodbye")]
    Closed,
    #[error("ended from here")]
    Goodbye,
}

impl<D: Send + 'static> Core<D> {
    pub(crate) fn server(config: &ServerConfig, clock: Arc<dyn Clock>) -> Self {
        let entropy = Box::new(|out: &mut [u8]| fill_random(out));
        Self::new(Connection::server(config, entropy, clock.mono()), clock)
    }

    pub(crate) fn client(config: &ClientConfig, clock: Arc<dyn Clock>) -> Self {
        let entropy = Box::new(|out: &mut [u8]| fill_random(out));
        Self::new(Connection::client(config, entropy, clock.mono()), clock)
    }

    fn new(connection: Connection, clock: Arc<dyn Clock>) -> Self {
        let now = clock.mono();
        Self {
            connection,
            pumps: Pumps::default(),
            clock,
            last_activity: now,
            work: FuturesUnordered::new(),
            lasting: FuturesUnordered::new(),
            goodbye: None,
        }
    }

    /// Work that ends with the connection.
    pub(crate) fn start(&mut self, work: impl Future<Output = D> + Send + 'static) {
        self.work.push(Box::pin(work));
    }

    /// Work that is waited for after the connection.
    pub(crate) fn start_lasting(&mut self, work: impl Future<Output = D> + Send + 'static) {
        self.lasting.push(Box::pin(work));
    }

    /// Ends the connection after what has been said. The first reason stays.
    pub(crate) fn end(&mut self, reason: DisconnectReason, message: String) {
        self.goodbye.get_or_insert(Goodbye { reason, message: printable(&message) });
    }

    /// Whether [`Core::end`] was called.
    pub(crate) fn is_ending(&self) -> bool {
        self.goodbye.is_some()
    }

    /// Text for the person at the other end, on the channel's error stream.
    pub(crate) fn say(&mut self, channel: ChannelId, text: &str) {
        let mut line = Bytes::from(format!("wayleave: {}\r\n", printable(text)));
        // A channel that cannot take it has nobody behind it who would read it.
        let _unheard = self.connection.send(channel, DataStream::Stderr, &mut line);
    }

    /// What becomes of a plain stream's channel when one of its directions ends.
    pub(crate) fn end_plain(&mut self, channel: ChannelId, end: PumpEnd) {
        if end == PumpEnd::Outbound {
            self.connection.eof(channel);
        }
        if self.pumps.is_over(channel) {
            self.connection.close(channel);
        }
    }
}

/// Text that cannot steer a terminal: messages of locks, for instance, are written by people.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Waits for news of a source; one that is gone changes no more.
pub(crate) async fn changed_or_never<T>(source: &mut watch::Receiver<T>) {
    if source.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Runs a connection to its end, and its lasting work after that.
pub(crate) async fn run<A: Application>(stream: BoxStream, mut core: Core<A::Done>, mut application: A) {
    let mut link = Link::new(stream);
    let stop = drive(&mut link, &mut core, &mut application).await;
    tracing::debug!(%stop, "an SSH connection ends");
    say_goodbye(&mut link, &mut core, &stop).await;
    drop(link);
    core.work.clear();
    // Whatever the reason was, verbs do nothing from here on.
    core.connection.disconnect(DisconnectReason::ConnectionLost, "");
    application.on_end(&mut core);
    let lasting = async {
        while let Some(done) = core.lasting.next().await {
            application.on_done(&mut core, done);
        }
    };
    if tokio::time::timeout(LASTING_TIMEOUT, lasting).await.is_err() {
        tracing::warn!("work of an SSH connection did not end in time and was dropped");
    }
}

async fn drive<A: Application>(link: &mut Link, core: &mut Core<A::Done>, application: &mut A) -> Stop {
    let mut timer = Timer::default();
    loop {
        let intake = match take_input(link, core, application) {
            Ok(intake) => intake,
            Err(error) => return Stop::Failed(error),
        };
        if core.is_ending() {
            return Stop::Goodbye;
        }
        if core.connection.is_closed() {
            return Stop::Closed;
        }
        timer.arm([core.connection.poll_timeout(), application.wakes_at()], core.clock.mono());
        let mut turn = Turn::default();
        let polled = std::future::poll_fn(|cx| turn.poll(cx, link, core, &mut timer, intake)).await;
        if let Err(stop) = polled {
            return stop;
        }
        let now = core.clock.mono();
        if turn.has_data_moved {
            core.last_activity = now;
        }
        for done in turn.results {
            application.on_done(core, done);
        }
        for (channel, end) in turn.ended {
            application.on_pump(core, channel, end);
        }
        if turn.is_time {
            if let Err(error) = core.connection.handle_timeout(now) {
                return Stop::Failed(error);
            }
            if application.wakes_at().is_some_and(|at| at <= now) {
                application.on_time(core);
            }
        }
    }
}

/// Hands in what was read and deals with the events, until all of it is taken or something must happen first.
fn take_input<A: Application>(
    link: &mut Link,
    core: &mut Core<A::Done>,
    application: &mut A,
) -> Result<Intake, ConnectionError> {
    loop {
        let taken = core.connection.handle_input(&mut link.input, core.clock.mono());
        let mut has_events = false;
        while let Some(event) = core.connection.poll_event() {
            has_events = true;
            dispatch(core, application, event);
        }
        let intake = taken?;
        if intake == Intake::Hungry || !has_events || core.is_ending() {
            return Ok(intake);
        }
    }
}

fn dispatch<A: Application>(core: &mut Core<A::Done>, application: &mut A, event: Event) {
    match event {
        Event::Data { channel, stream, data } => {
            core.last_activity = core.clock.mono();
            core.pumps.receive(&mut core.connection, channel, stream, data);
        }
        Event::Eof { channel } => core.pumps.receive_eof(channel),
        // Pumps look for room by themselves.
        Event::Writable { .. } | Event::Rekeyed => {}
        Event::Disconnected { reason, message } => {
            tracing::debug!(?reason, message, "the other side said goodbye");
        }
        event => application.on_event(core, event),
    }
}

async fn say_goodbye<D: Send + 'static>(link: &mut Link, core: &mut Core<D>, stop: &Stop) {
    match stop {
        Stop::Stream(_) | Stop::PeerClosed => return,
        Stop::Failed(_) | Stop::Closed | Stop::Goodbye => {}
    }
    if let Some(Goodbye { reason, message }) = core.goodbye.take() {
        // What was said on channels goes first; whoever does not read it is told by the disconnect alone.
        let _unsaid = tokio::time::timeout(GOODBYE_TIMEOUT, link.write_all(&mut core.connection)).await;
        core.connection.disconnect(reason, &message);
    }
    let ending = async {
        link.write_all(&mut core.connection).await?;
        link.close().await
    };
    // The peer may be gone: there is nobody left to tell.
    let _unheard = tokio::time::timeout(GOODBYE_TIMEOUT, ending).await;
}

/// What one wait brought.
struct Turn<D> {
    results: Vec<D>,
    ended: Vec<(ChannelId, PumpEnd)>,
    has_data_moved: bool,
    is_time: bool,
}

impl<D> Default for Turn<D> {
    fn default() -> Self {
        Self { results: Vec::new(), ended: Vec::new(), has_data_moved: false, is_time: false }
    }
}

impl<D: Send + 'static> Turn<D> {
    /// Ready when anything happened; everything that can move gets its turn each time.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link,
        core: &mut Core<D>,
        timer: &mut Timer,
        intake: Intake,
    ) -> Poll<Result<(), Stop>> {
        self.has_data_moved |= core.pumps.poll(cx, &mut core.connection, &mut self.ended);
        let mut has_happened = self.has_data_moved;
        let (written, has_written) = link.poll_write(cx, &mut core.connection);
        has_happened |= has_written;
        if let Poll::Ready(Err(error)) = written {
            return Poll::Ready(Err(Stop::Stream(error)));
        }
        if intake == Intake::Hungry
            && let Poll::Ready(read) = link.poll_read(cx)
        {
            match read {
                Ok(0) => return Poll::Ready(Err(Stop::PeerClosed)),
                Ok(_) => has_happened = true,
                Err(error) => return Poll::Ready(Err(Stop::Stream(error))),
            }
        }
        for work in [&mut core.work, &mut core.lasting] {
            while self.results.len() < RESULTS_MAX
                && let Poll::Ready(Some(done)) = work.poll_next_unpin(cx)
            {
                self.results.push(done);
            }
        }
        self.is_time = timer.poll(cx);
        if has_happened || self.is_time || !self.results.is_empty() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}

/// One timer for everything. It is moved only when something is due earlier; fired early, it does no harm.
#[derive(Default)]
struct Timer {
    armed: Option<(Mono, Pin<Box<Sleep>>)>,
}

impl Timer {
    fn arm(&mut self, wanted: [Option<Mono>; 2], now: Mono) {
        let Some(at) = wanted.into_iter().flatten().min() else { return };
        match &mut self.armed {
            Some((armed, _)) if *armed <= at => {}
            Some((armed, sleep)) => {
                *armed = at;
                sleep.as_mut().reset(tokio::time::Instant::now() + at.since(now));
            }
            None => self.armed = Some((at, Box::pin(tokio::time::sleep(at.since(now))))),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((_, sleep)) = &mut self.armed else { return false };
        let is_time = sleep.as_mut().poll(cx).is_ready();
        if is_time {
            self.armed = None;
        }
        is_time
    }
}
