//! Session channels: their requests in order, one process each, and their end.

use super::admission::Refused;
use super::connection::{Done, NodeConnection, Stage, reject_open};
use super::events::{self, SessionWork};
use super::process::{self, Command, Ended, Process, ProcessStart};
use crate::driver::Core;
use crate::limits;
use crate::pump::{PumpEnd, Traffic};
use std::collections::VecDeque;
use std::path::PathBuf;
use wayleave_audit::{Event, Text};
use wayleave_os::{
    AcceptedEnvironment, ChildSpec, ChildStreams, ConnectionAddresses, Exit, TerminalSpec, Work,
};
use wayleave_runtime::random_bytes;
use wayleave_ssh::{ChannelId, ChannelRequest, OpenFailure, ReplyToken};
use wayleave_vocab::{Mono, SessionId};

/// What a session that could not begin returns, as ssh does for its own failures.
const FAILURE_STATUS: u32 = 255;
/// Requests of one session that wait for the one before them.
const REQUESTS_QUEUED_MAX: usize = 64;

/// A session channel.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) stage: SessionStage,
    /// Requests that came while another one was being dealt with.
    queue: VecDeque<(ChannelRequest, Option<ReplyToken>)>,
    /// Set when the channel is gone and only the process is not.
    closed: Option<Traffic>,
}

/// How far a session is.
pub(crate) enum SessionStage {
    /// What is started next is being described.
    Preparing(Preparation),
    /// The same, while the agent's socket is made.
    AwaitingAgent(Preparation),
    /// A process is being started.
    Starting { reply: Option<ReplyToken>, since: Mono },
    /// It runs, or its output is not all sent.
    Running(Running),
    /// Nothing more happens here.
    Over,
}

/// What is known before a process is started.
#[derive(Default)]
pub(crate) struct Preparation {
    pub(crate) terminal: Option<TerminalSpec>,
    pub(crate) environment: AcceptedEnvironment,
    pub(crate) agent_socket: Option<PathBuf>,
}

/// A process and what is left of it.
pub(crate) struct Running {
    /// Absent when it was let go.
    process: Option<Process>,
    since: Mono,
    exit: Option<Exit>,
    is_output_over: bool,
}

impl Session {
    fn new() -> Self {
        Self {
            id: SessionId::from_random(random_bytes()),
            stage: SessionStage::Preparing(Preparation::default()),
            queue: VecDeque::new(),
            closed: None,
        }
    }

    fn is_busy(&self) -> bool {
        matches!(self.stage, SessionStage::AwaitingAgent(_) | SessionStage::Starting { .. })
    }

    /// Tells the process something. False when there is none or it does not listen.
    pub(crate) fn command(&self, command: Command) -> bool {
        match &self.stage {
            SessionStage::Running(Running { process: Some(process), .. }) => {
                process.try_send(command).is_ok()
            }
            _ => false,
        }
    }

    fn let_go(&mut self) {
        if let SessionStage::Running(running) = &mut self.stage {
            running.process = None;
        }
    }
}

impl NodeConnection {
    /// The client asks for a session.
    pub(crate) fn open_session(&mut self, core: &mut Core<Done>, channel: ChannelId) {
        let session = Session::new();
        if let Err(refused) = self.permit(core.clock.wall()) {
            self.note_session_refused(core, &refused.reason);
            return reject_open(core, channel, OpenFailure::Prohibited, &refused.text);
        }
        let Stage::Admitted(user) = &mut self.stage else { return };
        if let Err(refusal) =
            user.limits(core.last_activity).handle_open(session.id, limits::now(&*core.clock))
        {
            let text = refusal.to_string();
            self.note_session_refused(core, &text);
            return reject_open(core, channel, OpenFailure::ResourceShortage, &text);
        }
        self.sessions.insert(channel, session);
        core.pumps.expect(channel);
        // Refused only when the connection is over, which the driver sees.
        let _over = core.connection.accept_open(channel);
    }

    /// A request on a channel: at once, or after those before it.
    pub(crate) fn on_request(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        request: ChannelRequest,
        reply: Option<ReplyToken>,
    ) {
        match self.sessions.get_mut(&channel) {
            Some(session) if session.is_busy() && session.queue.len() < REQUESTS_QUEUED_MAX => {
                session.queue.push_back((request, reply));
            }
            Some(session) if !session.is_busy() => self.handle_request(core, channel, request, reply),
            _ => answer(core, reply, false),
        }
    }

    /// Deals with the requests that waited.
    pub(crate) fn resume_requests(&mut self, core: &mut Core<Done>, channel: ChannelId) {
        while let Some(session) = self.sessions.get_mut(&channel)
            && !session.is_busy()
            && let Some((request, reply)) = session.queue.pop_front()
        {
            self.handle_request(core, channel, request, reply);
        }
    }

    /// Starts what was asked for, described by the requests before. The stage must be `Preparing`.
    pub(crate) fn start_work(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        work: SessionWork,
        command: Option<Vec<u8>>,
        reply: Option<ReplyToken>,
    ) {
        let permit = match self.permit(core.clock.wall()) {
            Ok(permit) => permit,
            Err(refused) => return self.refuse_work(core, channel, &work, reply, &refused),
        };
        let (Stage::Admitted(user), Some(session)) = (&self.stage, self.sessions.get_mut(&channel)) else {
            return answer(core, reply, false);
        };
        let stage = SessionStage::Starting { reply, since: core.clock.mono() };
        let SessionStage::Preparing(preparation) = std::mem::replace(&mut session.stage, stage) else {
            return;
        };
        let Preparation { terminal, environment, agent_socket } = preparation;
        let has_terminal = terminal.is_some();
        let session_id = session.id;
        let task = match (&work, command) {
            (SessionWork::Sftp, _) => Work::Sftp,
            (SessionWork::Exec(_), Some(command)) => Work::Exec { command, terminal },
            (SessionWork::Shell | SessionWork::Exec(_), _) => Work::Shell { terminal },
        };
        let spec = ChildSpec {
            account: user.account.clone(),
            work: task,
            environment,
            connection: self.facts.client.map(addresses),
            agent_socket,
        };
        let events = self.start_events(session_id, &work, has_terminal);
        let node = self.node.clone();
        core.start_lasting(async move {
            Done::ProcessStarted(channel, process::start(permit, node, events, spec).await)
        });
    }

    /// A process runs, or why not.
    pub(crate) fn on_process_started(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        start: ProcessStart,
    ) {
        let Some(session) = self.sessions.get_mut(&channel) else { return };
        let stage = std::mem::replace(&mut session.stage, SessionStage::Over);
        let SessionStage::Starting { reply, since } = stage else { return };
        match start {
            Ok((child, streams)) => {
                let (handle, commands) = process::handle();
                let is_wanted = session.closed.is_none() && !core.connection.is_closed();
                if self.end_reason.is_some() {
                    // The queue is empty: it takes one.
                    let _queued = handle.try_send(Command::Kill);
                }
                let process = is_wanted.then_some(handle);
                session.stage =
                    SessionStage::Running(Running { process, since, exit: None, is_output_over: false });
                core.start_lasting(async move {
                    Done::ProcessEnded(channel, process::hold(child, commands).await)
                });
                if is_wanted {
                    attach(core, channel, streams);
                    answer(core, reply, true);
                }
                self.resume_requests(core, channel);
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a session's process was not started"
                );
                let (id, reason) = (session.id, format!("not started: {error}"));
                self.note_end(core, id, since, Traffic::default(), (None, Some(reason)));
                fail(core, channel, &error.user_text(), reply);
                self.forget_closed(channel);
            }
        }
    }

    /// A process has ended, or was let go.
    pub(crate) fn on_process_ended(&mut self, core: &mut Core<Done>, channel: ChannelId, ended: Ended) {
        let Ended { exit, sftp } = ended;
        if let Some(report) = sftp
            && let Some(session) =
                self.sessions.get(&channel).and_then(|session| self.session_ref(session.id))
        {
            self.note(core, events::sftp_summary(session, report));
        }
        core.pumps.stop_inbound(&mut core.connection, channel);
        let Some(session) = self.sessions.get_mut(&channel) else { return };
        let SessionStage::Running(running) = &mut session.stage else { return };
        running.process = None;
        let is_over = exit.is_none() || session.closed.is_some() || core.connection.is_closed();
        running.exit = exit;
        if is_over || running.is_output_over {
            self.finish_session(core, channel);
        }
    }

    /// A direction of a session's channel has ended.
    pub(crate) fn on_session_pump(&mut self, core: &mut Core<Done>, channel: ChannelId, end: PumpEnd) {
        let Some(session) = self.sessions.get_mut(&channel) else { return };
        let SessionStage::Running(running) = &mut session.stage else { return };
        match end {
            PumpEnd::Outbound => {
                // The client hears of the end of output with the exit status: at an end of both directions stock
                // clients close the channel, and a status that comes later would be lost.
                running.is_output_over = true;
                if running.exit.is_some() {
                    self.finish_session(core, channel);
                }
            }
            // The process reads no more, or has read everything; its exit decides.
            PumpEnd::Inbound => {}
        }
    }

    /// Says how it ended, to the client and to the audit log.
    fn finish_session(&mut self, core: &mut Core<Done>, channel: ChannelId) {
        let Some(session) = self.sessions.get_mut(&channel) else { return };
        let traffic = session.closed.unwrap_or_else(|| core.pumps.traffic(channel));
        let SessionStage::Running(running) = std::mem::replace(&mut session.stage, SessionStage::Over) else {
            return;
        };
        let id = session.id;
        tracing::debug!(session_id = %id, "a session ends");
        let (exit_code, reason) = match (&self.end_reason, &running.exit) {
            (_, Some(Exit::Code(code))) => (Some(*code), self.end_reason.clone()),
            (Some(reason), _) => (None, Some(reason.clone())),
            (None, Some(Exit::Signal { name, .. })) => (None, Some(format!("signal {name}"))),
            (None, None) if core.connection.is_closed() => (None, Some("the client disconnected".to_owned())),
            (None, None) => (None, Some("the client closed the channel".to_owned())),
        };
        self.note_end(core, id, running.since, traffic, (exit_code, reason));
        let how = running.exit.map(|exit| match exit {
            Exit::Code(status) => ChannelRequest::ExitStatus { status },
            Exit::Signal { name, core_dumped } => {
                ChannelRequest::ExitSignal { signal: name, core_dumped, message: String::new() }
            }
        });
        if let Some(how) = how {
            // A channel that takes no request is closed by the client already.
            let _closed = core.connection.request(channel, &how, false);
        }
        core.connection.eof(channel);
        core.connection.close(channel);
        self.forget_closed(channel);
    }

    /// A channel of any kind is gone.
    pub(crate) fn on_closed(&mut self, core: &mut Core<Done>, channel: ChannelId) {
        let traffic = core.pumps.close(channel);
        self.stream_ends(core, channel, traffic);
        let Some(session) = self.sessions.get_mut(&channel) else { return };
        session.closed = Some(traffic);
        session.queue.clear();
        session.let_go();
        let id = session.id;
        self.forget_closed(channel);
        if let Stage::Admitted(user) = &mut self.stage {
            user.limits(core.last_activity).handle_close(id, limits::now(&*core.clock));
        }
        self.apply_limits(core);
    }

    /// Drops a session of which nothing is left.
    fn forget_closed(&mut self, channel: ChannelId) {
        let is_over = self.sessions.get(&channel).is_some_and(|session| {
            session.closed.is_some()
                && !matches!(session.stage, SessionStage::Starting { .. } | SessionStage::Running(_))
        });
        if is_over {
            self.sessions.remove(&channel);
        }
    }

    /// Cuts every session with a word to the user; what runs is ended.
    pub(crate) fn stop_sessions(&mut self, core: &mut Core<Done>, text: &str) {
        for (channel, session) in &mut self.sessions {
            session.closed.get_or_insert_with(|| core.pumps.remove(*channel));
            core.say(*channel, text);
            if !session.command(Command::Kill) {
                session.let_go();
            }
        }
    }

    /// The connection is gone: what runs is let go, unless it is being killed.
    pub(crate) fn end_sessions(&mut self, core: &mut Core<Done>) {
        for (channel, session) in &mut self.sessions {
            if session.closed.is_none() {
                session.closed = Some(core.pumps.remove(*channel));
                session.let_go();
            }
        }
    }

    /// `how`: the exit code, and why it ended if not by itself.
    fn note_end(
        &self,
        core: &mut Core<Done>,
        id: SessionId,
        since: Mono,
        traffic: Traffic,
        (exit_code, reason): (Option<u32>, Option<String>),
    ) {
        let Some(session) = self.session_ref(id) else { return };
        let event = Event::SessionEnd {
            session,
            duration_ms: events::duration_ms(core, since),
            traffic: Some(events::traffic(traffic)),
            exit_code,
            reason: reason.map(Text::new),
        };
        self.note(core, event);
    }

    /// Refuses what a session should be, with a word to the user.
    pub(crate) fn refuse_work(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        work: &SessionWork,
        reply: Option<ReplyToken>,
        refused: &Refused,
    ) {
        if let Some(session) = self.sessions.get(&channel) {
            self.note_work_refused(core, session.id, work, &refused.reason);
        }
        if let Some(session) = self.sessions.get_mut(&channel) {
            session.stage = SessionStage::Over;
        }
        fail(core, channel, &refused.text, reply);
    }
}

/// Ends a session that could not begin. Stock clients show nothing of why a request was refused, so it is
/// granted, says why on its error stream, and ends as a failed command does.
fn fail(core: &mut Core<Done>, channel: ChannelId, text: &str, reply: Option<ReplyToken>) {
    answer(core, reply, true);
    core.say(channel, text);
    // A channel that takes no request is closed by the client already.
    let _closed =
        core.connection.request(channel, &ChannelRequest::ExitStatus { status: FAILURE_STATUS }, false);
    core.connection.eof(channel);
    core.connection.close(channel);
}

/// Answers a channel request if an answer is wanted.
pub(crate) fn answer(core: &mut Core<Done>, reply: Option<ReplyToken>, is_success: bool) {
    if let Some(reply) = reply {
        core.connection.respond(reply, is_success);
    }
}

fn attach(core: &mut Core<Done>, channel: ChannelId, streams: ChildStreams) {
    match streams {
        ChildStreams::Pipes { stdin, stdout, stderr } => {
            core.pumps.attach(channel, Box::new(stdout), Some(Box::new(stderr)), Box::new(stdin));
        }
        ChildStreams::Terminal { reader, writer } => {
            core.pumps.attach(channel, Box::new(reader), None, Box::new(writer));
        }
    }
}

/// The agent listens nowhere, so the server's end has no address of its own.
fn addresses(client: std::net::SocketAddr) -> ConnectionAddresses {
    let own = match client {
        std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    ConnectionAddresses { client, server: std::net::SocketAddr::new(own, 22) }
}
