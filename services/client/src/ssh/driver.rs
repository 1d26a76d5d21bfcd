//! The loop around one SSH connection of ours: the stream, the timers and the local ends of channels.
//!
//! One future does everything; [`Driver::next`] gives what needs a decision and can be dropped at any time.

use crate::failure::{Exit, Failure};
use crate::ssh::endpoint::{Endpoint, Finding};
use crate::ssh::escape::Escape;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::io::poll_read_buf;
use wayleave_runtime::{Clock, SystemClock, fill_random};
use wayleave_ssh::{
    ChannelId, ChannelOpen, ChannelRequest, ClientConfig, Connection, ConnectionError, DataStream,
    DisconnectReason, Event, GlobalReply, HostIdentity, Intake, OpenFailure, RequestId,
};
use wayleave_vocab::Mono;

/// Room for each read of the stream.
const READ_BYTES: usize = 128 * 1024;
/// How long a goodbye may take to leave.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Something that the driver leaves to its user.
#[derive(Debug)]
pub(crate) enum Notice {
    /// Answer with `accept_host`, or give up.
    Host(Box<HostIdentity>),
    /// Text before authentication.
    Banner(String),
    /// Channels can be opened.
    Authenticated,
    /// Our channel is open.
    Opened(ChannelId),
    /// Our channel was refused.
    OpenFailed { channel: ChannelId, reason: OpenFailure, message: String },
    /// The node asks for a channel.
    Offered { channel: ChannelId, open: ChannelOpen },
    /// Data on a channel without a local end: say `consumed`.
    Data { channel: ChannelId, stream: DataStream, data: Bytes },
    /// A channel without a local end takes data again.
    Writable,
    /// A request on a channel; it was answered with no, if it wanted an answer.
    Request { channel: ChannelId, request: ChannelRequest },
    /// Our request was answered.
    Answered { request: RequestId, is_granted: bool },
    /// Our global request was answered.
    GlobalAnswered { request: RequestId, success: Option<Bytes> },
    /// A channel is gone, and what came over it is written.
    Closed(ChannelId),
    /// The person typed an escape.
    Escape(Escape),
    /// Whoever read our standard output is gone.
    OutputBroken(ChannelId),
}

/// Why the connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DriverError {
    /// The protocol failed, here or there.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The stream broke.
    #[error("the connection broke: {0}")]
    Stream(String),
    /// The stream ended without a goodbye.
    #[error("the connection was closed")]
    Closed,
    /// The node said goodbye.
    #[error("the node ended the connection: {0}")]
    Goodbye(String),
}

/// One connection over a stream.
pub(crate) struct Driver<S> {
    connection: Connection,
    stream: S,
    input: BytesMut,
    is_hungry: bool,
    is_stream_ended: bool,
    output: Bytes,
    is_flushed: bool,
    endpoints: BTreeMap<ChannelId, Endpoint>,
    clock: SystemClock,
    timer: Pin<Box<Sleep>>,
    timer_at: Option<Mono>,
    notices: VecDeque<Notice>,
    findings: Vec<Finding>,
    over: Option<DriverError>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Starts the client's side on a stream.
    pub(crate) fn new(stream: S, config: &ClientConfig) -> Self {
        let clock = SystemClock::new();
        let entropy = Box::new(|out: &mut [u8]| fill_random(out));
        Self {
            connection: Connection::client(config, entropy, clock.mono()),
            stream,
            input: BytesMut::with_capacity(READ_BYTES),
            is_hungry: true,
            is_stream_ended: false,
            output: Bytes::new(),
            is_flushed: true,
            endpoints: BTreeMap::new(),
            timer: Box::pin(sleep_until(Instant::now())),
            clock,
            timer_at: None,
            notices: VecDeque::new(),
            findings: Vec::new(),
            over: None,
        }
    }

    /// The connection, for its verbs; what they make is sent by the next call of [`Driver::next`].
    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Joins a channel with its local end.
    pub(crate) fn attach(&mut self, channel: ChannelId, endpoint: Endpoint) {
        self.endpoints.insert(channel, endpoint);
    }

    /// The next thing to decide. Can be dropped and called again.
    ///
    /// # Errors
    /// When the connection is over.
    pub(crate) async fn next(&mut self) -> Result<Notice, DriverError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Says goodbye and lets it out, briefly.
    pub(crate) async fn finish(mut self) {
        if !self.connection.is_closed() {
            self.connection.disconnect(DisconnectReason::ByApplication, "bye");
        }
        let goodbye = poll_fn(|cx| {
            loop {
                match self.poll_output(cx) {
                    Ok(true) => {}
                    Ok(false) if self.output.is_empty() => break,
                    Ok(false) => return Poll::Pending,
                    Err(_) => return Poll::Ready(()),
                }
            }
            Pin::new(&mut self.stream).poll_shutdown(cx).map(|_| ())
        });
        // A node that does not read loses our goodbye.
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Notice, DriverError>> {
        loop {
            if let Some(notice) = self.notices.pop_front() {
                return Poll::Ready(Ok(notice));
            }
            let mut is_moved = self.poll_timer(cx);
            is_moved |= self.take_input();
            is_moved |= self.poll_endpoints(cx);
            match self.poll_stream(cx) {
                Ok(more) => is_moved |= more,
                Err(error) => {
                    self.over.get_or_insert(DriverError::Stream(error.to_string()));
                }
            }
            if !self.notices.is_empty() {
                continue;
            }
            if let Some(over) = self.over.clone()
                && self.is_drained()
            {
                return Poll::Ready(Err(over));
            }
            if !is_moved {
                return Poll::Pending;
            }
        }
    }

    /// Whether what came before the end was written.
    fn is_drained(&mut self) -> bool {
        self.endpoints.values_mut().for_each(Endpoint::close);
        self.endpoints.values().all(Endpoint::is_over)
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let at = self.connection.poll_timeout();
        if at != self.timer_at {
            self.timer_at = at;
            if let Some(at) = at {
                self.timer.as_mut().reset(Instant::from_std(self.clock.instant(at)));
            }
        }
        if at.is_none() || self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.timer_at = None;
        if let Err(error) = self.connection.handle_timeout(self.clock.mono()) {
            self.over.get_or_insert(error.into());
        }
        true
    }

    /// Lets the connection look at what was read, and sorts its events.
    fn take_input(&mut self) -> bool {
        let had = self.input.len();
        if had > 0 || !self.is_hungry {
            match self.connection.handle_input(&mut self.input, self.clock.mono()) {
                Ok(intake) => self.is_hungry = intake == Intake::Hungry,
                Err(error) => {
                    self.is_hungry = true;
                    self.over.get_or_insert(error.into());
                }
            }
        }
        let mut is_moved = self.input.len() != had;
        while let Some(event) = self.connection.poll_event() {
            self.on_event(event);
            is_moved = true;
        }
        is_moved
    }

    fn on_event(&mut self, event: Event) {
        let notice = match event {
            Event::HostIdentity(identity) => Notice::Host(Box::new(identity)),
            Event::Banner(text) => Notice::Banner(text),
            Event::Authenticated => Notice::Authenticated,
            Event::Opened { channel } => Notice::Opened(channel),
            Event::OpenFailed { channel, reason, message } => Notice::OpenFailed { channel, reason, message },
            Event::Open { channel, open } => Notice::Offered { channel, open },
            Event::Data { channel, stream, data } => match self.endpoints.get_mut(&channel) {
                Some(endpoint) => return endpoint.receive(stream, data),
                None => Notice::Data { channel, stream, data },
            },
            Event::Writable { channel } if self.endpoints.contains_key(&channel) => return,
            Event::Writable { .. } => Notice::Writable,
            Event::Eof { channel } => {
                if let Some(endpoint) = self.endpoints.get_mut(&channel) {
                    endpoint.end_receiving();
                }
                return;
            }
            Event::Closed { channel } => match self.endpoints.get_mut(&channel) {
                Some(endpoint) => return endpoint.close(),
                None => Notice::Closed(channel),
            },
            Event::Request { channel, request, reply } => {
                if let Some(reply) = reply {
                    self.connection.respond(reply, false);
                }
                Notice::Request { channel, request }
            }
            Event::RequestAnswered { request, is_success, .. } => {
                Notice::Answered { request, is_granted: is_success }
            }
            Event::GlobalRequest { reply, .. } => {
                if let Some(reply) = reply {
                    self.connection.respond_global(reply, GlobalReply::Failure);
                }
                return;
            }
            Event::GlobalAnswered { request, success } => Notice::GlobalAnswered { request, success },
            Event::Disconnected { message, .. } => {
                self.over.get_or_insert(DriverError::Goodbye(message));
                return;
            }
            Event::Rekeyed | Event::AuthAttempt(_) => return,
        };
        self.notices.push_back(notice);
    }

    fn poll_endpoints(&mut self, cx: &mut Context<'_>) -> bool {
        let mut is_moved = false;
        let mut over = Vec::new();
        for (channel, endpoint) in &mut self.endpoints {
            is_moved |= endpoint.poll(cx, *channel, &mut self.connection, &mut self.findings);
            for finding in self.findings.drain(..) {
                self.notices.push_back(match finding {
                    Finding::Escape(escape) => Notice::Escape(escape),
                    Finding::OutputBroken => Notice::OutputBroken(*channel),
                });
            }
            if endpoint.is_over() {
                over.push(*channel);
            }
        }
        for channel in over {
            self.endpoints.remove(&channel);
            self.notices.push_back(Notice::Closed(channel));
            is_moved = true;
        }
        is_moved
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut is_moved = self.poll_output(cx)?;
        if self.connection.is_closed() && self.over.is_none() {
            self.over = Some(DriverError::Closed);
        }
        if self.is_hungry && !self.is_stream_ended && self.over.is_none() {
            self.input.reserve(READ_BYTES);
            match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input) {
                Poll::Pending => {}
                Poll::Ready(Ok(0)) => {
                    self.is_stream_ended = true;
                    self.over = Some(DriverError::Closed);
                    is_moved = true;
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.is_stream_ended = true;
                    self.over = Some(DriverError::Closed);
                    is_moved = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(_)) => is_moved = true,
            }
        }
        Ok(is_moved)
    }

    /// Writes what the connection has to say; true when some of it was written.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut is_moved = false;
        loop {
            if self.output.is_empty() {
                match self.connection.poll_output() {
                    Some(output) => self.output = output,
                    None => break,
                }
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.output) {
                Poll::Pending => return Ok(is_moved),
                Poll::Ready(written) => {
                    let written = written?;
                    if written == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    self.output.advance(written);
                    (is_moved, self.is_flushed) = (true, false);
                }
            }
        }
        if !self.is_flushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            flushed?;
            self.is_flushed = true;
        }
        Ok(is_moved)
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        let text = error.to_string();
        match error {
            DriverError::Connection(ConnectionError::AuthenticationFailed { .. }) => Self::new(
                Exit::Denied,
                "the node refused this login: your roles do not allow it there",
            )
            .hint(
                "`way explain USER ssh LOGIN@NODE` tells which rule decided; `way ls -v` shows your logins",
            ),
            DriverError::Connection(ConnectionError::HostKeyRefused) => Self::new(Exit::Denied, text),
            DriverError::Connection(_) => Self::failed(text),
            DriverError::Stream(_) | DriverError::Closed => Self::new(Exit::Unreachable, text)
                .hint("a proxy, the agent or the network went away: connect again"),
            DriverError::Goodbye(_) => Self::failed(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::test_node::{BURST_BYTES, connected, pattern};
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, empty, sink};
    use wayleave_net::BoxStream;
    use wayleave_ssh::TcpEndpoint;

    type Node = Driver<BoxStream>;

    /// Opens a session and asks for a command.
    async fn exec(driver: &mut Node, command: &'static str) -> ChannelId {
        let channel = driver.connection().open(&ChannelOpen::Session).unwrap();
        while !matches!(driver.next().await.unwrap(), Notice::Opened(opened) if opened == channel) {}
        let request = ChannelRequest::Exec { command: Bytes::from_static(command.as_bytes()) };
        driver.connection().request(channel, &request, true).unwrap();
        channel
    }

    /// Runs until the channel is gone; gives the exit status.
    async fn until_closed(driver: &mut Node, channel: ChannelId) -> Option<u32> {
        let mut exit = None;
        loop {
            match driver.next().await.unwrap() {
                Notice::Request { request: ChannelRequest::ExitStatus { status }, .. } => exit = Some(status),
                Notice::Closed(closed) if closed == channel => return exit,
                _ => {}
            }
        }
    }

    /// Takes everything that is written to it, in small bites.
    #[derive(Clone, Default)]
    struct Collected(Arc<Mutex<Vec<u8>>>);

    impl AsyncWrite for Collected {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            let bite = &data[..data.len().min(10_000)];
            self.0.lock().unwrap().extend_from_slice(bite);
            Poll::Ready(Ok(bite.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn the_exit_status_and_every_byte_of_output_arrive() {
        let mut driver = connected().await;
        let channel = exec(&mut driver, "burst").await;
        let out = Collected::default();
        driver.attach(channel, Endpoint::session(None, Box::new(out.clone()), Box::new(sink())));
        assert_eq!(until_closed(&mut driver, channel).await, Some(3));
        assert!(*out.0.lock().unwrap() == pattern(BURST_BYTES));
    }

    #[tokio::test]
    async fn input_goes_to_the_command_and_its_end_too() {
        let mut driver = connected().await;
        let channel = exec(&mut driver, "cat").await;
        let sent = pattern(700_000);
        let input = std::io::Cursor::new(sent.clone());
        let out = Collected::default();
        let endpoint = Endpoint::session(Some(Box::new(input)), Box::new(out.clone()), Box::new(sink()));
        driver.attach(channel, endpoint);
        assert_eq!(until_closed(&mut driver, channel).await, Some(0));
        assert!(*out.0.lock().unwrap() == sent);
    }

    #[tokio::test]
    async fn a_command_without_input_sees_its_end_at_once() {
        let mut driver = connected().await;
        let channel = exec(&mut driver, "cat").await;
        driver.attach(channel, Endpoint::session(None, Box::new(sink()), Box::new(sink())));
        assert_eq!(until_closed(&mut driver, channel).await, Some(0));
    }

    #[tokio::test]
    async fn an_output_that_nobody_reads_ends_the_command() {
        let mut driver = connected().await;
        let channel = exec(&mut driver, "burst").await;
        let (out, reader) = duplex(16);
        drop(reader);
        driver.attach(channel, Endpoint::session(Some(Box::new(empty())), Box::new(out), Box::new(sink())));
        while !matches!(driver.next().await.unwrap(), Notice::OutputBroken(_)) {}
        driver.connection().request(channel, &ChannelRequest::EndOfWrite, false).unwrap();
        assert!(until_closed(&mut driver, channel).await.is_some());
    }

    #[tokio::test]
    async fn a_slow_reader_holds_up_only_its_own_channel() {
        let mut driver = connected().await;
        let slow = exec(&mut driver, "burst").await;
        let (out, _reader) = duplex(16);
        driver.attach(slow, Endpoint::session(None, Box::new(out), Box::new(sink())));
        let quick = exec(&mut driver, "exit 5").await;
        driver.attach(quick, Endpoint::session(None, Box::new(sink()), Box::new(sink())));
        assert_eq!(until_closed(&mut driver, quick).await, Some(5));
    }

    #[tokio::test]
    async fn a_forwarded_connection_carries_bytes_and_half_close() {
        let mut driver = connected().await;
        let target = TcpEndpoint { host: "db".into(), port: 1 };
        let open = ChannelOpen::DirectTcpip { target: target.clone(), originator: target };
        let channel = driver.connection().open(&open).unwrap();
        while !matches!(driver.next().await.unwrap(), Notice::Opened(_)) {}
        let (near, mut far) = duplex(1000);
        let (reader, writer) = tokio::io::split(near);
        let endpoint = Endpoint::plain(Box::new(reader), Box::new(writer));
        driver.attach(channel, endpoint.with_prefix(Bytes::from_static(b"hi ")));
        let client = async {
            far.write_all(b"there").await.unwrap();
            far.shutdown().await.unwrap();
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            got
        };
        let (_, got) = tokio::join!(until_closed(&mut driver, channel), client);
        assert_eq!(got, b"hi there");
    }

    #[tokio::test]
    async fn refusals_and_hang_ups_are_told() {
        let mut driver = connected().await;
        let target = TcpEndpoint { host: "refused".into(), port: 1 };
        let open = ChannelOpen::DirectTcpip { target: target.clone(), originator: target };
        driver.connection().open(&open).unwrap();
        let notice = driver.next().await.unwrap();
        assert!(matches!(notice, Notice::OpenFailed { reason: OpenFailure::Prohibited, .. }), "{notice:?}");

        let channel = exec(&mut driver, "refuse").await;
        driver.attach(channel, Endpoint::session(None, Box::new(sink()), Box::new(sink())));
        while !matches!(driver.next().await.unwrap(), Notice::Answered { is_granted: false, .. }) {}

        exec(&mut driver, "hang up").await;
        let end = loop {
            if let Err(error) = driver.next().await {
                break error;
            }
        };
        assert_eq!(end, DriverError::Closed);
        assert_eq!(Failure::from(end).exit, Exit::Unreachable);
    }
}
