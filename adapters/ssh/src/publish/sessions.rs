//! What a user does on a published machine: sessions and forwards through its sshd, connections to its TCP ports.
//!
//! Each is asked of the policy, noted in the audit log and then passed on, in this order.

use super::events::{self, Refused};
use super::visitor::{Done, Service, Stage, Visitor, answer_global, reject};
use crate::driver::Core;
use crate::limits;
use crate::node::{copies_files, refused_address};
use crate::pump::Traffic;
use std::collections::VecDeque;
use std::net::IpAddr;
use wayleave_audit::{Event, Outcome, PortAction, Text};
use wayleave_net::BoxStream;
use wayleave_policy::{AppPermit, Permit};
use wayleave_runtime::random_bytes;
use wayleave_ssh::{
    ChannelId, ChannelOpen, ChannelRequest, GlobalReplyToken, GlobalRequest, OpenFailure, ReplyToken,
    TcpEndpoint,
};
use wayleave_vocab::{Mono, SessionId};

use super::relay::Message;

/// Requests of one session that wait for the audit log.
const REQUESTS_QUEUED_MAX: usize = 64;
/// The one subsystem.
const SFTP: &str = "sftp";
/// What a session that could not begin returns, as ssh does for its own failures.
const FAILURE_STATUS: u32 = 255;

/// A channel of the user.
pub(super) struct Session {
    id: SessionId,
    since: Mono,
    kind: Kind,
    exit_code: Option<u32>,
}

enum Kind {
    /// Through the machine's sshd.
    Ssh(Progress),
    /// A connection to a port of the machine.
    App { port: u16, is_open: bool },
}

/// How far a session through the sshd is.
struct Progress {
    has_terminal: bool,
    /// Something runs or ran.
    is_started: bool,
    /// What is being noted, and what waits for that.
    noting: Option<(ChannelRequest, Option<ReplyToken>)>,
    queue: VecDeque<(ChannelRequest, Option<ReplyToken>)>,
}

/// A forward that is being noted.
pub(super) enum Forward {
    Local(ChannelId, ChannelOpen),
    Remote(GlobalRequest, Option<GlobalReplyToken>),
}

impl Session {
    fn new(kind: Kind, since: Mono) -> Self {
        Self { id: SessionId::from_random(random_bytes()), since, kind, exit_code: None }
    }

    pub(super) const fn is_ssh(&self) -> bool {
        matches!(self.kind, Kind::Ssh(_))
    }
}

impl Visitor {
    pub(super) fn on_open(&mut self, core: &mut Core<Done>, channel: ChannelId, open: ChannelOpen) {
        match (self.service, open) {
            (Service::App, ChannelOpen::DirectTcpip { target, .. }) => self.open_app(core, channel, &target),
            (Service::Ssh, ChannelOpen::Session) => self.open_session(core, channel),
            (Service::Ssh, open @ ChannelOpen::DirectTcpip { .. })
            | (Service::Ssh, open @ ChannelOpen::DirectStreamlocal { .. }) => {
                self.open_forward(core, channel, open);
            }
            // Only a server opens these, and the SSH core has refused them already.
            (
                Service::Ssh,
                ChannelOpen::ForwardedTcpip { .. }
                | ChannelOpen::ForwardedStreamlocal { .. }
                | ChannelOpen::AuthAgent
                | ChannelOpen::X11 { .. }
                | ChannelOpen::Unknown { .. },
            ) => reject(core, channel, OpenFailure::Prohibited, "not offered here"),
            (Service::App, _) => {
                let text = "there are only the ports of this application here";
                reject(core, channel, OpenFailure::Prohibited, text);
            }
        }
    }

    fn open_session(&mut self, core: &mut Core<Done>, channel: ChannelId) {
        let progress =
            Progress { has_terminal: false, is_started: false, noting: None, queue: VecDeque::new() };
        let session = Session::new(Kind::Ssh(progress), core.clock.mono());
        if let Err(refused) = self.permit(core.clock.wall()) {
            self.note_session_refused(core, &refused.reason);
            return reject(core, channel, OpenFailure::Prohibited, &refused.text);
        }
        if let Err(text) = self.count(core, session.id) {
            self.note_session_refused(core, &text);
            return reject(core, channel, OpenFailure::ResourceShortage, &text);
        }
        self.sessions.insert(channel, session);
        if let Some(side) = &mut self.side {
            side.offer(channel, ChannelOpen::Session);
        }
    }

    fn count(&mut self, core: &Core<Done>, id: SessionId) -> Result<(), String> {
        let Stage::Admitted(user) = &mut self.stage else { return Err("access denied".to_owned()) };
        let counted = user.limits(core.last_activity).handle_open(id, limits::now(&*core.clock));
        counted.map_err(|refusal| refusal.to_string())
    }

    /// Whether the user may forward ports on this connection now.
    fn may_forward(&self, core: &Core<Done>) -> Result<Permit, Refused> {
        let is_certified = matches!(&self.stage, Stage::Admitted(user) if user.permissions.port_forwarding);
        if !is_certified {
            return Err(Refused::plain("your certificate does not permit port forwarding"));
        }
        let permit = self.permit(core.clock.wall())?;
        if !permit.options().port_forwarding {
            return Err(Refused::new(
                "no role allows port forwarding",
                "your roles do not allow port forwarding",
            ));
        }
        Ok(permit)
    }

    fn open_forward(&mut self, core: &mut Core<Done>, channel: ChannelId, open: ChannelOpen) {
        let (address, literal) = match &open {
            ChannelOpen::DirectTcpip { target, .. } => {
                (format!("{}:{}", target.host, target.port), target.host.parse::<IpAddr>().ok())
            }
            ChannelOpen::DirectStreamlocal { path } => (path.clone(), None),
            _ => return reject(core, channel, OpenFailure::Prohibited, "not offered here"),
        };
        let allowed = self.may_forward(core).and_then(|permit| match literal.and_then(refused_address) {
            Some(why) => Err(Refused::plain(format!("{address} is refused: {why}"))),
            None => Ok(permit),
        });
        match allowed {
            Ok(permit) => self.note_forward(
                core,
                permit,
                PortAction::LocalStart,
                &address,
                Forward::Local(channel, open),
            ),
            Err(refused) => {
                let outcome = events::failure(&refused.reason);
                if let Some(event) = self.port_event(PortAction::LocalStart, &address, outcome) {
                    self.note_refused(core, event);
                }
                reject(core, channel, OpenFailure::Prohibited, &refused.text);
            }
        }
    }

    /// Writes a forward to the audit log; it is passed on after that.
    fn note_forward(
        &self,
        core: &mut Core<Done>,
        permit: Permit,
        action: PortAction,
        address: &str,
        forward: Forward,
    ) {
        let event = self.port_event(action, address, Outcome::Success);
        let listener = self.machine.entry.clone();
        core.start(async move {
            let noted = listener.record(event.into_iter().collect()).await;
            tracing::debug!(user = %permit.user(), "a forward is noted");
            Done::ForwardNoted(forward, noted.map_err(|error| error.to_string()))
        });
    }

    pub(super) fn on_forward_noted(
        &mut self,
        core: &mut Core<Done>,
        forward: Forward,
        noted: Result<(), String>,
    ) {
        if let Err(reason) = &noted {
            tracing::warn!(reason, "a forward is refused while the audit log cannot be written");
        }
        match (forward, noted, &mut self.side) {
            (Forward::Local(channel, open), Ok(()), Some(side)) => side.offer(channel, open),
            (Forward::Remote(request, reply), Ok(()), Some(side)) => side.forward_global(request, reply),
            (Forward::Local(channel, _), _, _) => {
                let text = "refused while the proxy cannot write its audit log";
                reject(core, channel, OpenFailure::Prohibited, text);
            }
            (Forward::Remote(_, reply), _, _) => answer_global(core, reply),
        }
    }

    pub(super) fn on_global(
        &mut self,
        core: &mut Core<Done>,
        request: GlobalRequest,
        reply: Option<GlobalReplyToken>,
    ) {
        let address = match &request {
            GlobalRequest::TcpipForward { listener } => format!("{}:{}", listener.host, listener.port),
            GlobalRequest::StreamlocalForward { path } => path.clone(),
            GlobalRequest::CancelTcpipForward { .. } | GlobalRequest::CancelStreamlocalForward { .. } => {
                match &mut self.side {
                    Some(side) => side.forward_global(request, reply),
                    None => answer_global(core, reply),
                }
                return;
            }
            GlobalRequest::Keepalive
            | GlobalRequest::HostKeys { .. }
            | GlobalRequest::NoMoreSessions
            | GlobalRequest::Unknown { .. } => return answer_global(core, reply),
        };
        match self.may_forward(core) {
            Ok(permit) => {
                let forward = Forward::Remote(request, reply);
                self.note_forward(core, permit, PortAction::RemoteStart, &address, forward);
            }
            Err(refused) => {
                let outcome = events::failure(&refused.reason);
                if let Some(event) = self.port_event(PortAction::RemoteStart, &address, outcome) {
                    self.note_refused(core, event);
                }
                answer_global(core, reply);
            }
        }
    }

    /// A request on a channel: at once, or after what is being noted.
    pub(super) fn on_request(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        request: ChannelRequest,
        reply: Option<ReplyToken>,
    ) {
        let session = self.sessions.get_mut(&channel).map(|session| &mut session.kind);
        match session {
            Some(Kind::Ssh(progress)) if progress.noting.is_none() => {
                self.handle_request(core, channel, request, reply);
            }
            Some(Kind::Ssh(progress)) if progress.queue.len() < REQUESTS_QUEUED_MAX => {
                progress.queue.push_back((request, reply));
            }
            _ => answer(core, reply, false),
        }
    }

    fn handle_request(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        request: ChannelRequest,
        reply: Option<ReplyToken>,
    ) {
        match &request {
            ChannelRequest::Shell | ChannelRequest::Exec { .. } | ChannelRequest::Subsystem { .. } => {
                self.start(core, channel, request, reply);
            }
            ChannelRequest::Pty { .. } => {
                let may = matches!(&self.stage, Stage::Admitted(user) if user.permissions.terminal);
                if !may {
                    let text = "your certificate does not permit a terminal";
                    self.note_session_refused(core, text);
                    return answer(core, reply, false);
                }
                if let Some(progress) = self.progress(channel) {
                    progress.has_terminal = true;
                }
                self.pass(channel, request, reply);
            }
            ChannelRequest::AuthAgent => self.forward_agent(core, channel, request, reply),
            ChannelRequest::Env { .. }
            | ChannelRequest::WindowChange { .. }
            | ChannelRequest::Signal { .. }
            | ChannelRequest::Break { .. }
            | ChannelRequest::EndOfWrite => self.pass(channel, request, reply),
            ChannelRequest::X11 { .. } => {
                self.note_agent_or_x11(
                    core,
                    channel,
                    "x11",
                    events::failure("X11 forwarding is not offered"),
                );
                answer(core, reply, false);
            }
            ChannelRequest::ExitStatus { .. }
            | ChannelRequest::ExitSignal { .. }
            | ChannelRequest::XonXoff { .. }
            | ChannelRequest::Keepalive
            | ChannelRequest::Unknown { .. } => answer(core, reply, false),
        }
    }

    fn progress(&mut self, channel: ChannelId) -> Option<&mut Progress> {
        match self.sessions.get_mut(&channel).map(|session| &mut session.kind) {
            Some(Kind::Ssh(progress)) => Some(progress),
            Some(Kind::App { .. }) | None => None,
        }
    }

    fn pass(&mut self, channel: ChannelId, request: ChannelRequest, reply: Option<ReplyToken>) {
        if let Some(side) = &mut self.side {
            side.forward_request(channel, request, reply);
        }
    }

    /// Whether the user's agent may be reached on this connection now.
    fn may_forward_agent(&self, core: &Core<Done>) -> bool {
        let is_certified = matches!(&self.stage, Stage::Admitted(user) if user.permissions.agent_forwarding);
        let allowed = self.permit(core.clock.wall()).is_ok_and(|permit| permit.options().forward_agent);
        is_certified && allowed
    }

    fn forward_agent(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        request: ChannelRequest,
        reply: Option<ReplyToken>,
    ) {
        if self.may_forward_agent(core) {
            self.note_agent_or_x11(core, channel, "agent", Outcome::Success);
            return self.pass(channel, request, reply);
        }
        self.note_agent_or_x11(core, channel, "agent", events::failure("no role allows agent forwarding"));
        answer(core, reply, false);
    }

    fn note_agent_or_x11(&mut self, core: &mut Core<Done>, channel: ChannelId, what: &str, outcome: Outcome) {
        let id = self.sessions.get(&channel).map_or(self.id, |session| session.id);
        let Some(session) = self.session_ref(id) else { return };
        let is_refused = outcome != Outcome::Success;
        let event = Event::Forward { session, what: Text::new(what), outcome };
        if is_refused { self.note_refused(core, event) } else { self.note(core, event) }
    }

    /// A shell, a command or SFTP: noted first.
    fn start(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        request: ChannelRequest,
        reply: Option<ReplyToken>,
    ) {
        let permit = match self.may_start(core, channel, &request) {
            Ok(permit) => permit,
            Err(refused) => return self.refuse_start(core, channel, &request, reply, &refused),
        };
        let Some(id) = self.sessions.get(&channel).map(|session| session.id) else { return };
        let interactive = self.progress(channel).is_some_and(|progress| progress.has_terminal);
        let Some(session) = self.session_ref(id) else { return };
        let start = Event::SessionStart {
            session: session.clone(),
            interactive,
            client_addr: self.client_text(),
            policy_revision: Text::new(self.revision()),
        };
        let what = self.work_event(channel, &request, Outcome::Success);
        let events = [Some(start), what].into_iter().flatten().collect();
        if let Some(progress) = self.progress(channel) {
            progress.is_started = true;
            progress.noting = Some((request, reply));
        }
        let listener = self.machine.entry.clone();
        core.start(async move {
            let noted = listener.record(events).await;
            tracing::debug!(user = %permit.user(), login = %permit.login(), "a session is noted");
            Done::SessionNoted(channel, noted.map_err(|error| error.to_string()))
        });
    }

    fn may_start(
        &mut self,
        core: &Core<Done>,
        channel: ChannelId,
        request: &ChannelRequest,
    ) -> Result<Permit, Refused> {
        if self.progress(channel).is_none_or(|progress| progress.is_started) {
            return Err(Refused::plain("one channel is for one command"));
        }
        let permit = self.permit(core.clock.wall())?;
        let copies = match request {
            ChannelRequest::Subsystem { name } if name != SFTP => {
                return Err(Refused::plain(format!("there is no subsystem {name:?} here; there is sftp")));
            }
            ChannelRequest::Subsystem { .. } => true,
            ChannelRequest::Exec { command } => copies_files(&String::from_utf8_lossy(command)),
            _ => false,
        };
        if copies && !permit.options().ssh_file_copy {
            return Err(Refused::new("a role forbids file copy", "your roles do not allow file copy"));
        }
        Ok(permit)
    }

    fn refuse_start(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        request: &ChannelRequest,
        reply: Option<ReplyToken>,
        refused: &Refused,
    ) {
        match self.work_event(channel, request, events::failure(&refused.reason)) {
            Some(event) => self.note_refused(core, event),
            None => self.note_session_refused(core, &refused.reason),
        }
        fail(core, channel, &refused.text, reply);
    }

    fn work_event(&self, channel: ChannelId, request: &ChannelRequest, outcome: Outcome) -> Option<Event> {
        let session = self.session_ref(self.sessions.get(&channel)?.id)?;
        match request {
            ChannelRequest::Exec { command } => {
                let command = Text::new(String::from_utf8_lossy(command).into_owned());
                Some(Event::Exec { session, command, exit_code: None, outcome })
            }
            ChannelRequest::Subsystem { name } => {
                Some(Event::Subsystem { session, name: Text::new(name.as_str()), outcome })
            }
            _ => None,
        }
    }

    pub(super) fn on_session_noted(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        noted: Result<(), String>,
    ) {
        let Some((request, reply)) = self.progress(channel).and_then(|progress| progress.noting.take())
        else {
            return;
        };
        match noted {
            Ok(()) => self.pass(channel, request, reply),
            Err(reason) => {
                tracing::warn!(reason, "a session is refused while the audit log cannot be written");
                fail(core, channel, "refused while the proxy cannot write its audit log", reply);
            }
        }
        while let Some(progress) = self.progress(channel)
            && progress.noting.is_none()
            && let Some((request, reply)) = progress.queue.pop_front()
        {
            self.handle_request(core, channel, request, reply);
        }
    }

    /// What the machine's connection said of channels.
    pub(super) fn on_relayed(&mut self, core: &mut Core<Done>, message: Message) {
        let is_refused = match &message {
            Message::Open { open: ChannelOpen::AuthAgent, .. } => !self.may_forward_agent(core),
            // The machine's sshd offers nothing else than connections to forwarded ports.
            Message::Open { .. } => self.may_forward(core).is_err(),
            _ => false,
        };
        let Some(side) = &mut self.side else { return };
        if is_refused {
            return side.refuse(message);
        }
        if let Message::Request { key, request: ChannelRequest::ExitStatus { status }, .. } = &message
            && let Some(channel) = side.channel(*key)
            && let Some(session) = self.sessions.get_mut(&channel)
        {
            session.exit_code = Some(*status);
        }
        side.on_message(core, message);
    }

    /// A connection to a port of the machine.
    fn open_app(&mut self, core: &mut Core<Done>, channel: ChannelId, target: &TcpEndpoint) {
        let port = target.port;
        let session = Session::new(Kind::App { port, is_open: false }, core.clock.mono());
        let id = session.id;
        let Some(app) = self.app_ref(id, port) else {
            return reject(core, channel, OpenFailure::Prohibited, "access denied");
        };
        let client_addr = self.client_text();
        let is_published = self.machine.offer.borrow().tcp_ports.contains(&port);
        let allowed = self.app_permit(core.clock.wall()).and_then(|permit| match is_published {
            true => Ok(permit),
            false => Err(Refused::plain(format!("port {port} of {} is not published", self.machine.name))),
        });
        let allowed = match allowed {
            Ok(permit) => self.count(core, id).map(|()| permit).map_err(Refused::plain),
            Err(refused) => Err(refused),
        };
        match allowed {
            Ok(permit) => {
                self.sessions.insert(channel, session);
                let start = Event::AppSessionStart { app, client_addr, outcome: Outcome::Success };
                let (machine, client) = (self.machine.clone(), self.client);
                core.start(async move {
                    Done::Connected(channel, connect(permit, &machine, port, client, start).await)
                });
            }
            Err(refused) => {
                let outcome = events::failure(&refused.reason);
                self.note_refused(core, Event::AppSessionStart { app, client_addr, outcome });
                reject(core, channel, OpenFailure::Prohibited, &refused.text);
            }
        }
    }

    pub(super) fn on_connected(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        connected: Result<BoxStream, Refused>,
    ) {
        match connected {
            Ok(stream) => {
                if let Some(Session { kind: Kind::App { is_open, .. }, .. }) = self.sessions.get_mut(&channel)
                {
                    *is_open = true;
                }
                core.pumps.attach_stream(channel, stream);
                // Refused only when the connection is over, which the driver sees.
                let _over = core.connection.accept_open(channel);
            }
            Err(refused) => {
                reject(core, channel, OpenFailure::ConnectFailed, &refused.text);
                self.on_closed(core, channel);
            }
        }
    }

    pub(super) fn on_closed(&mut self, core: &mut Core<Done>, channel: ChannelId) {
        let traffic = core.pumps.traffic(channel);
        match &mut self.side {
            Some(side) => side.on_closed(core, channel),
            None => drop(core.pumps.close(channel)),
        }
        let Some(session) = self.sessions.remove(&channel) else { return };
        self.note_end(core, &session, None, traffic);
        if let Stage::Admitted(user) = &mut self.stage {
            user.limits(core.last_activity).handle_close(session.id, limits::now(&*core.clock));
        }
        self.apply_limits(core);
    }

    /// Writes how a session ended, if it began.
    pub(super) fn note_end(
        &self,
        core: &mut Core<Done>,
        session: &Session,
        reason: Option<String>,
        traffic: Traffic,
    ) {
        let duration = core.clock.mono().since(session.since);
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let event = match &session.kind {
            Kind::Ssh(progress) if progress.is_started => {
                let (exit_code, reason) = (session.exit_code, reason.map(Text::new));
                self.session_ref(session.id).map(|session| Event::SessionEnd {
                    session,
                    duration_ms,
                    traffic: None,
                    exit_code,
                    reason,
                })
            }
            Kind::App { port, is_open: true } => {
                self.app_ref(session.id, *port).map(|app| Event::AppSessionEnd {
                    app,
                    duration_ms,
                    bytes_received: traffic.received_bytes,
                    bytes_sent: traffic.sent_bytes,
                })
            }
            Kind::Ssh(_) | Kind::App { .. } => None,
        };
        if let Some(event) = event {
            self.note(core, event);
        }
    }
}

/// Notes the connection and makes it.
async fn connect(
    permit: AppPermit,
    machine: &super::machine::Machine,
    port: u16,
    client: Option<std::net::SocketAddr>,
    start: Event,
) -> Result<BoxStream, Refused> {
    if let Err(error) = machine.entry.record(vec![start]).await {
        return Err(Refused::new(error.to_string(), "refused while the proxy cannot write its audit log"));
    }
    tracing::debug!(user = %permit.user(), app = %permit.app(), port, "an application is connected");
    machine.connect(port, client).await.map_err(Refused::plain)
}

/// Ends a session that could not begin. Stock clients show nothing of why a request was refused, so it is granted, says
/// why on its error stream, and ends as a failed command does.
fn fail(core: &mut Core<Done>, channel: ChannelId, text: &str, reply: Option<ReplyToken>) {
    answer(core, reply, true);
    core.say(channel, text);
    let status = ChannelRequest::ExitStatus { status: FAILURE_STATUS };
    // A channel that takes no request is closed by the client already.
    let _closed = core.connection.request(channel, &status, false);
    core.connection.eof(channel);
    core.connection.close(channel);
}

fn answer(core: &mut Core<Done>, reply: Option<ReplyToken>, is_success: bool) {
    if let Some(reply) = reply {
        core.connection.respond(reply, is_success);
    }
}
