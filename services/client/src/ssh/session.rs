//! What a person sees of a connection: a shell or a command, its exit code, and the forwards beside it.

use crate::failure::{Exit, Failure, SSH_FAILURE};
use crate::output::note;
use crate::ssh::connect::NodeConnection;
use crate::ssh::driver::{DriverError, Notice};
use crate::ssh::endpoint::{Endpoint, Reader, Writer};
use crate::ssh::escape::{Escape, HELP};
use crate::ssh::forward::{ForwardSpec, Taken, listen, listen_socks};
use crate::ssh::{SshArgs, command_line};
use crate::stdio::{Input, Output};
use crate::terminal::{self, RawMode};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep_until, timeout};
use wayleave_runtime::TaskGroup;
use wayleave_ssh::{
    ChannelId, ChannelOpen, ChannelRequest, GlobalRequest, OpenFailure, RequestId, TcpEndpoint,
    encode_terminal_modes,
};
use wayleave_vocab::printable;

/// Connections that were taken and wait for the loop.
const TAKEN_MAX: usize = 16;
/// How long connecting to a local target of `-R` or `-A` may take.
const LOCAL_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a command may go on after nobody reads its output any more.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Length of a break.
const BREAK_MS: u32 = 1000;
/// Value of `TERM` when there is none.
const TERM_ASSUMED: &str = "xterm-256color";

/// The two halves of a local target.
type Halves = (Reader, Writer);

/// A connection with what is done over it.
pub(crate) struct Session {
    driver: NodeConnection,
    args: SshArgs,
    node: String,
    main: Main,
    exit: Option<Exit>,
    raw: Option<RawMode>,
    /// Connections of `-L` and `-D` whose channel is not open yet.
    opening: BTreeMap<ChannelId, Taken>,
    /// Forwards of `-R` that the node has not answered.
    asked: BTreeMap<RequestId, ForwardSpec>,
    /// Forwards of `-R` that the node listens for.
    granted: Vec<ForwardSpec>,
    dialling: FuturesUnordered<BoxFuture<'static, (ChannelId, io::Result<Halves>)>>,
    taken: (Sender<Taken>, Receiver<Taken>),
    tasks: TaskGroup,
    give_up_at: Option<Instant>,
}

/// The channel of the shell or command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Main {
    /// `-N`.
    None,
    /// Asked for.
    Opening(ChannelId),
    /// Running, with the request that started it.
    Running { channel: ChannelId, start: Option<RequestId>, pty: Option<RequestId> },
    /// It is over.
    Over,
}

impl Session {
    pub(crate) fn new(driver: NodeConnection, args: SshArgs, node: String) -> Self {
        Self {
            driver,
            args,
            node,
            main: Main::None,
            exit: None,
            raw: None,
            opening: BTreeMap::new(),
            asked: BTreeMap::new(),
            granted: Vec::new(),
            dialling: FuturesUnordered::new(),
            taken: channel(TAKEN_MAX),
            tasks: TaskGroup::new(),
            give_up_at: None,
        }
    }

    /// Runs to the end; gives the exit code of the command. The terminal is as before when this returns.
    pub(crate) async fn run(mut self) -> Result<Exit, Failure> {
        let result = self.run_inner().await;
        let was_raw = self.raw.take().is_some();
        self.tasks.shutdown().request();
        let exit = match result {
            Ok(exit) => exit,
            Err(failure) => {
                self.driver.finish().await;
                return Err(failure);
            }
        };
        if was_raw {
            note(&format!("Connection to {} closed.", self.node));
        }
        self.driver.finish().await;
        Ok(exit)
    }

    async fn run_inner(&mut self) -> Result<Exit, Failure> {
        self.start_forwards().await?;
        if !self.args.no_command {
            let opened = self.driver.connection().open(&ChannelOpen::Session);
            self.main = Main::Opening(opened.map_err(Failure::doing("cannot open a session"))?);
        }
        let wants_tty = self.wants_tty();
        let mut signals = Signals::new(wants_tty).map_err(Failure::doing("cannot watch for signals"))?;
        loop {
            let is_idle = self.main == Main::Over && self.driver.connection().channel_count() == 0;
            if is_idle {
                return Ok(self.exit.unwrap_or(Exit::Remote(SSH_FAILURE)));
            }
            let give_up_at = self.give_up_at;
            tokio::select! {
                notice = self.driver.next() => match notice {
                    Ok(notice) => {
                        if let Some(exit) = self.on_notice(notice)? {
                            return Ok(exit);
                        }
                    }
                    Err(error) => return self.on_end(error),
                },
                Some(taken) = self.taken.1.recv() => self.on_taken(taken),
                Some((channel, target)) = self.dialling.next(), if !self.dialling.is_empty() => {
                    self.on_dialled(channel, target);
                }
                () = resized(&mut signals.resize) => self.tell_size(),
                () = ended(&mut signals.end) => return Ok(Exit::Remote(SSH_FAILURE)),
                () = wait_until(give_up_at) => return Ok(Exit::Remote(SSH_FAILURE)),
            }
        }
    }

    /// The connection is over. That is no failure once the command's exit is known.
    fn on_end(&mut self, error: DriverError) -> Result<Exit, Failure> {
        match self.exit {
            Some(exit) => Ok(exit),
            None => Err(error.into()),
        }
    }

    async fn start_forwards(&mut self) -> Result<(), Failure> {
        for spec in &self.args.local {
            listen(spec, self.taken.0.clone(), &self.tasks).await?;
        }
        for spec in &self.args.dynamic {
            listen_socks(spec, self.taken.0.clone(), &self.tasks).await?;
        }
        for spec in &self.args.remote {
            let request = GlobalRequest::TcpipForward { listener: spec.listen.clone() };
            let id = self
                .driver
                .connection()
                .global_request(&request, true)
                .map_err(Failure::doing("cannot ask for the remote forward"))?;
            if let Some(id) = id {
                self.asked.insert(id, spec.clone());
            }
        }
        Ok(())
    }

    fn wants_tty(&self) -> bool {
        let is_shell = self.args.command.is_empty();
        !self.args.no_command && !self.args.no_tty && (self.args.tty || (is_shell && terminal::is_terminal()))
    }

    /// Asks for everything that the shell or command needs, without waiting in between.
    fn start(&mut self, id: ChannelId) -> Result<(), Failure> {
        let doing = |error| Failure::doing("cannot start the session")(error);
        let wants_tty = self.wants_tty();
        let connection = self.driver.connection();
        if self.args.forward_agent {
            connection.request(id, &ChannelRequest::AuthAgent, false).map_err(doing)?;
        }
        let pty = if wants_tty {
            let pty = ChannelRequest::Pty {
                term: std::env::var("TERM").unwrap_or_else(|_| TERM_ASSUMED.to_owned()),
                size: terminal::size(),
                modes: encode_terminal_modes(&terminal::modes()),
            };
            connection.request(id, &pty, true).map_err(doing)?
        } else {
            None
        };
        for (name, value) in locale() {
            connection.request(id, &ChannelRequest::Env { name, value }, false).map_err(doing)?;
        }
        let request = if self.args.command.is_empty() {
            ChannelRequest::Shell
        } else {
            ChannelRequest::Exec { command: command_line(&self.args.command).into() }
        };
        let start = connection.request(id, &request, true).map_err(doing)?;
        let is_typed = wants_tty && terminal::is_terminal();
        if is_typed {
            self.raw = Some(RawMode::enter().map_err(Failure::doing("cannot set up the terminal"))?);
        }
        let input: Option<Reader> = if self.args.no_stdin { None } else { Some(Box::new(Input::open())) };
        let endpoint = Endpoint::session(input, Box::new(Output::stdout()), Box::new(Output::stderr()));
        self.driver.attach(id, if is_typed { endpoint.with_escapes() } else { endpoint });
        self.main = Main::Running { channel: id, start, pty };
        Ok(())
    }

    fn on_notice(&mut self, notice: Notice) -> Result<Option<Exit>, Failure> {
        match notice {
            Notice::Opened(channel) if self.main == Main::Opening(channel) => self.start(channel)?,
            Notice::Opened(channel) => self.on_opened(channel),
            Notice::OpenFailed { channel, reason, message } if self.main == Main::Opening(channel) => {
                return Err(refused("a session", reason, &message));
            }
            Notice::OpenFailed { channel, reason, message } => self.on_open_failed(channel, reason, &message),
            Notice::Offered { channel, open } => self.on_offered(channel, open),
            Notice::Request { channel, request } => self.on_request(channel, request),
            Notice::Answered { request, is_granted: false } => {
                return self.on_refused(request).map(|()| None);
            }
            Notice::GlobalAnswered { request, success } => {
                self.on_forward_answer(request, success.as_deref())
            }
            Notice::Closed(channel) => {
                if matches!(self.main, Main::Running { channel: main, .. } if main == channel) {
                    self.main = Main::Over;
                }
            }
            Notice::Escape(escape) => return self.on_escape(escape),
            Notice::OutputBroken(channel) => {
                // As OpenSSH: the node's command is told that nobody reads, and has a moment to end.
                let _ = self.driver.connection().request(channel, &ChannelRequest::EndOfWrite, false);
                self.give_up_at = Some(Instant::now() + UNREAD_TIMEOUT);
            }
            Notice::Data { channel, data, .. } => self.driver.connection().consumed(channel, data.len()),
            Notice::Host(_)
            | Notice::Banner(_)
            | Notice::Authenticated
            | Notice::Writable
            | Notice::Answered { .. } => {}
        }
        Ok(None)
    }

    fn on_request(&mut self, channel: ChannelId, request: ChannelRequest) {
        let is_main = matches!(self.main, Main::Running { channel: main, .. } if main == channel);
        if !is_main {
            return;
        }
        match request {
            ChannelRequest::ExitStatus { status } => {
                // As OpenSSH: the low byte is what a process can end with.
                self.exit = Some(Exit::Remote(u8::try_from(status & 0xff).unwrap_or(SSH_FAILURE)));
            }
            // Its output was closed from here.
            ChannelRequest::ExitSignal { .. } if self.give_up_at.is_some() => {
                self.exit = Some(Exit::Remote(SSH_FAILURE));
            }
            ChannelRequest::ExitSignal { signal, core_dumped, message } => {
                let core = if core_dumped { " (core dumped)" } else { "" };
                let why = if message.is_empty() { String::new() } else { format!(": {message}") };
                self.say(&format!("the command was ended by the signal {signal}{core}{why}"));
                self.exit = Some(Exit::Remote(SSH_FAILURE));
            }
            other => tracing::debug!(request = other.name(), "a request of the node was ignored"),
        }
    }

    fn on_refused(&mut self, request: RequestId) -> Result<(), Failure> {
        let Main::Running { start, pty, .. } = self.main else { return Ok(()) };
        if pty == Some(request) {
            self.raw = None;
            self.say("the node gives no terminal");
        }
        if start == Some(request) {
            return Err(Failure::new(Exit::Denied, "the node refused to start the shell or command")
                .hint("`way explain` tells what your roles allow there"));
        }
        Ok(())
    }

    fn on_escape(&mut self, escape: Escape) -> Result<Option<Exit>, Failure> {
        match escape {
            Escape::Disconnect => {
                self.show("~.\r\n");
                return Ok(Some(Exit::Remote(SSH_FAILURE)));
            }
            Escape::Suspend => {
                self.raw = None;
                terminal::suspend();
                self.raw = Some(RawMode::enter().map_err(Failure::doing("cannot set up the terminal"))?);
                self.tell_size();
            }
            Escape::Break => self.ask_main(&ChannelRequest::Break { milliseconds: BREAK_MS }),
            Escape::Rekey => {
                // Only a connection that is ending refuses.
                let _ = self.driver.connection().rekey();
            }
            Escape::Help => self.show(HELP),
        }
        Ok(None)
    }

    fn tell_size(&mut self) {
        self.ask_main(&ChannelRequest::WindowChange { size: terminal::size() });
    }

    fn ask_main(&mut self, request: &ChannelRequest) {
        if let Main::Running { channel, .. } = self.main {
            // A channel that is ending takes no requests.
            let _ = self.driver.connection().request(channel, request, false);
        }
    }

    fn on_taken(&mut self, taken: Taken) {
        let open =
            ChannelOpen::DirectTcpip { target: taken.target.clone(), originator: taken.originator.clone() };
        match self.driver.connection().open(&open) {
            Ok(channel) => {
                self.opening.insert(channel, taken);
            }
            Err(error) => self.say(&format!("a forwarded connection was dropped: {error}")),
        }
    }

    fn on_opened(&mut self, channel: ChannelId) {
        let Some(taken) = self.opening.remove(&channel) else { return };
        let (reader, writer) = taken.stream.into_split();
        let endpoint = Endpoint::plain(Box::new(reader), Box::new(writer));
        let endpoint = match taken.socks {
            Some(version) => endpoint.with_prefix(Bytes::from_static(version.answer(true))),
            None => endpoint,
        };
        self.driver.attach(channel, endpoint);
    }

    fn on_open_failed(&mut self, channel: ChannelId, reason: OpenFailure, message: &str) {
        let Some(taken) = self.opening.remove(&channel) else { return };
        let TcpEndpoint { host, port } = &taken.target;
        self.say(&refused(&format!("a connection to {host}:{port}"), reason, message).message);
        if let Some(version) = taken.socks {
            // A fresh socket takes a few bytes at once, or its client is gone.
            let _ = taken.stream.try_write(version.answer(false));
        }
    }

    fn on_offered(&mut self, channel: ChannelId, open: ChannelOpen) {
        match open {
            ChannelOpen::ForwardedTcpip { listener, .. } => {
                let granted = self.granted.iter().find(|spec| {
                    spec.listen.port == listener.port
                        && (spec.listen.host == listener.host || self.granted.len() == 1)
                });
                match granted {
                    Some(spec) => {
                        let target = spec.target.clone();
                        self.dialling.push(Box::pin(async move { (channel, connect_tcp(&target).await) }));
                    }
                    None => self.reject(channel, OpenFailure::Prohibited, "nobody asked for this"),
                }
            }
            ChannelOpen::AuthAgent if self.args.forward_agent => {
                self.dialling.push(Box::pin(async move { (channel, connect_agent().await) }));
            }
            other => {
                tracing::debug!(kind = other.kind(), "a channel of the node was refused");
                self.reject(channel, OpenFailure::Prohibited, "nobody asked for this");
            }
        }
    }

    fn on_dialled(&mut self, channel: ChannelId, target: io::Result<Halves>) {
        match target {
            Ok((reader, writer)) => {
                if self.driver.connection().accept_open(channel).is_ok() {
                    self.driver.attach(channel, Endpoint::plain(reader, writer));
                }
            }
            Err(error) => {
                self.say(&format!("a forwarded connection has no target: {error}"));
                self.reject(channel, OpenFailure::ConnectFailed, "the target cannot be reached");
            }
        }
    }

    fn reject(&mut self, channel: ChannelId, reason: OpenFailure, message: &str) {
        // A connection that is ending needs no refusal.
        let _ = self.driver.connection().reject_open(channel, reason, message);
    }

    fn on_forward_answer(&mut self, request: RequestId, success: Option<&[u8]>) {
        let Some(mut spec) = self.asked.remove(&request) else { return };
        let Some(answer) = success else {
            let TcpEndpoint { host, port } = &spec.listen;
            return self.say(&format!("the node refused to listen on {host}:{port}"));
        };
        if spec.listen.port == 0 {
            let port =
                answer.first_chunk::<4>().and_then(|port| u16::try_from(u32::from_be_bytes(*port)).ok());
            spec.listen.port = port.unwrap_or(0);
            let TcpEndpoint { host, port } = &spec.target;
            self.say(&format!("the node listens on port {} for {host}:{port}", spec.listen.port));
        }
        self.granted.push(spec);
    }

    /// A line for the person, also while the terminal is raw.
    fn say(&self, text: &str) {
        let end = if self.raw.is_some() { "\r\n" } else { "\n" };
        self.show(&format!("way: {}{end}", printable(text)));
    }

    /// Text of our own, as it is.
    #[expect(clippy::unused_self, reason = "reads as an act of the session")]
    fn show(&self, text: &str) {
        // Nobody to tell when standard error is gone.
        let _ = io::Write::write_all(&mut io::stderr().lock(), text.as_bytes());
    }
}

/// Locale variables, which OpenSSH's packages send too; the node takes those that it allows.
fn locale() -> Vec<(String, Bytes)> {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let is_locale = name == "LANG" || name == "COLORTERM" || name.starts_with("LC_");
            is_locale.then(|| (name, Bytes::copy_from_slice(value.as_encoded_bytes())))
        })
        .collect()
}

fn refused(what: &str, reason: OpenFailure, message: &str) -> Failure {
    let exit = match reason {
        OpenFailure::Prohibited => Exit::Denied,
        OpenFailure::ConnectFailed => Exit::Unreachable,
        OpenFailure::UnknownType | OpenFailure::ResourceShortage | OpenFailure::Other(_) => Exit::Failed,
    };
    let why = match (reason, message) {
        (OpenFailure::Prohibited, "") => "not allowed",
        (OpenFailure::ConnectFailed, "") => "the target cannot be reached",
        (OpenFailure::UnknownType, "") => "it is not known there",
        (OpenFailure::ResourceShortage, "") => "too many at once",
        (OpenFailure::Other(_), "") => "no reason was given",
        (_, message) => message,
    };
    Failure::new(exit, format!("the node refused {what}: {why}"))
}

async fn connect_tcp(target: &TcpEndpoint) -> io::Result<Halves> {
    let stream = timeout(LOCAL_CONNECT_TIMEOUT, TcpStream::connect((target.host.as_str(), target.port)));
    let stream = stream.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    Ok((Box::new(reader), Box::new(writer)))
}

async fn connect_agent() -> io::Result<Halves> {
    let path = std::env::var_os("SSH_AUTH_SOCK")
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "SSH_AUTH_SOCK names no agent"))?;
    let stream = timeout(LOCAL_CONNECT_TIMEOUT, UnixStream::connect(path));
    let stream = stream.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let (reader, writer) = stream.into_split();
    Ok((Box::new(reader), Box::new(writer)))
}

/// Signals that matter while the terminal is ours.
struct Signals {
    resize: Option<Signal>,
    end: Vec<Signal>,
}

impl Signals {
    /// Without a terminal the system's own reactions are right, and nothing is watched.
    fn new(has_tty: bool) -> io::Result<Self> {
        if !has_tty {
            return Ok(Self { resize: None, end: Vec::new() });
        }
        let end = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()];
        Ok(Self {
            resize: Some(signal(SignalKind::window_change())?),
            end: end.into_iter().map(signal).collect::<io::Result<_>>()?,
        })
    }
}

async fn resized(resize: &mut Option<Signal>) {
    match resize {
        Some(resize) => {
            resize.recv().await;
        }
        None => pending().await,
    }
}

async fn ended(signals: &mut [Signal]) {
    if signals.is_empty() {
        return pending().await;
    }
    futures::future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
