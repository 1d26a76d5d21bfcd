//! The application on one connection of a user: state, and who deals with what.

use super::admission::{Admitted, Candidate};
use super::agent_forwarding::{AgentForwarding, AgentListener};
use super::forwarded::Streams;
use super::forwarding_local::OpenRefusal;
use super::forwarding_remote::{Forwards, Incoming, Listening};
use super::process::{Ended, ProcessStart};
use super::sessions::Session;
use super::{ConnectionFacts, NodeAdapter};
use crate::driver::{Application, Core, changed_or_never};
use crate::limits;
use crate::policy_view::PolicyView;
use crate::pump::PumpEnd;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::mpsc::Receiver;
use tokio::sync::{OwnedSemaphorePermit, watch};
use wayleave_audit::{Event as AuditEvent, PortAction, Text};
use wayleave_net::{BoxStream, ResumptionEvent};
use wayleave_os::{Account, AccountError, SpawnError, UserListener};
use wayleave_runtime::{Shutdown, random_bytes};
use wayleave_session::{Effect, EndReason};
use wayleave_ssh::{
    ChannelId, ChannelOpen, DisconnectReason, Event, GlobalReply, GlobalReplyToken, GlobalRequest,
    OpenFailure,
};
use wayleave_vocab::{Labels, Mono, SessionId};

/// One connection.
pub(crate) struct NodeConnection {
    pub(crate) node: Arc<NodeAdapter>,
    pub(crate) facts: ConnectionFacts,
    pub(crate) stage: Stage,
    /// Held until somebody is let in.
    pub(crate) unauthenticated: Option<OwnedSemaphorePermit>,
    pub(crate) sessions: BTreeMap<ChannelId, Session>,
    pub(crate) forwards: Forwards,
    pub(crate) agent: AgentForwarding,
    /// Streams whose channel the client has not confirmed yet.
    pub(crate) unconfirmed: BTreeMap<ChannelId, Unconfirmed>,
    /// Forwarded connections that are open.
    pub(crate) streams: Streams,
    pub(crate) is_draining: bool,
    /// Names the connection where no session is meant, for forwards.
    pub(crate) id: SessionId,
    /// How often something was refused on this connection.
    pub(crate) refusals: u32,
    pub(crate) takeovers_refused: u32,
    /// Set when this side ended the connection: why.
    pub(crate) end_reason: Option<String>,
    views: watch::Receiver<Option<Arc<PolicyView>>>,
}

/// A stream that the client was offered.
pub(crate) struct Unconfirmed {
    pub(crate) stream: BoxStream,
    /// The listener that it came to, if that is a forwarded port.
    pub(crate) listener: Option<String>,
}

/// Who is on the other side.
pub(crate) enum Stage {
    /// Nobody yet.
    Unauthenticated,
    /// Somebody of whom the machine's account is being looked up.
    Admitting(Box<Candidate>),
    /// A user.
    Admitted(Box<Admitted>),
}

/// What work results in.
pub(crate) enum Done {
    /// The policy or the labels of this node have changed.
    DecisionsChanged(Watched),
    /// Shutdown was requested.
    ShutdownRequested,
    /// The account of the login.
    AccountFound(Result<Account, AccountError>),
    /// A refused login is in the audit log.
    RefusalNoted(Option<String>),
    /// A process runs, or why not.
    ProcessStarted(ChannelId, ProcessStart),
    /// A process has ended, or was let go.
    ProcessEnded(ChannelId, Ended),
    /// The agent's socket is there, or why not.
    AgentListening(Result<UserListener, SpawnError>),
    /// A program of the user wants the client's agent.
    AgentWanted(AgentListener, UnixStream),
    /// A target was connected, or why not.
    Connected(ChannelId, String, Result<BoxStream, OpenRefusal>),
    /// A listener is there, or why not.
    Listening(Listening),
    /// Somebody connected to a listener.
    Incoming(Incoming),
    /// An event that nothing waits for was written.
    Noted,
    /// Something happened to the stream, and where the next such news comes from.
    Resumption(ResumptionEvent, Receiver<ResumptionEvent>),
}

/// What decisions depend on beside the user.
pub(crate) struct Watched {
    views: watch::Receiver<Option<Arc<PolicyView>>>,
    labels: watch::Receiver<Labels>,
}

impl Watched {
    /// Waits for a change; a source that is gone changes no more.
    async fn changed(mut self) -> Done {
        tokio::select! {
            () = changed_or_never(&mut self.views) => {}
            () = changed_or_never(&mut self.labels) => {}
        }
        Done::DecisionsChanged(self)
    }
}

impl NodeConnection {
    pub(crate) fn new(
        node: Arc<NodeAdapter>,
        facts: ConnectionFacts,
        unauthenticated: OwnedSemaphorePermit,
        shutdown: &Shutdown,
        core: &mut Core<Done>,
    ) -> Self {
        let views = node.config.policy.views();
        let watched = Watched { views: views.clone(), labels: node.config.labels.clone() };
        core.start(watched.changed());
        let signal = shutdown.clone();
        core.start(async move {
            signal.requested().await;
            Done::ShutdownRequested
        });
        Self {
            node,
            facts,
            stage: Stage::Unauthenticated,
            unauthenticated: Some(unauthenticated),
            sessions: BTreeMap::new(),
            forwards: Forwards::default(),
            agent: AgentForwarding::default(),
            unconfirmed: BTreeMap::new(),
            streams: Streams::default(),
            is_draining: shutdown.is_requested(),
            id: SessionId::from_random(random_bytes()),
            refusals: 0,
            takeovers_refused: 0,
            end_reason: None,
            views,
        }
    }

    /// The policy of the moment.
    pub(crate) fn view(&self) -> Option<Arc<PolicyView>> {
        self.views.borrow().clone()
    }

    /// Does what the limits of the connection ask for.
    pub(crate) fn apply_limits(&mut self, core: &mut Core<Done>) {
        let Stage::Admitted(user) = &mut self.stage else { return };
        if let Some(Effect::End(reason)) = user.limits(core.last_activity).poll_effect() {
            self.terminate(core, &reason);
        }
    }

    /// Ends everything on this connection, with a word to the user.
    fn terminate(&mut self, core: &mut Core<Done>, reason: &EndReason) {
        if core.is_ending() {
            return;
        }
        tracing::info!(%reason, "an SSH connection is ended");
        self.end_reason = Some(reason.to_string());
        if let Stage::Admitted(user) = &self.stage {
            let event = AuditEvent::ClientDisconnect {
                user: Text::new(user.principal.name.as_str()),
                sid: Some(self.id),
                server_id: self.node.config.host_id,
                cause: limits::disconnect_cause(reason),
                reason: Text::new(reason.to_string()),
            };
            self.note(core, event);
        }
        let text = format!("the session is ended: {reason}");
        self.stop_sessions(core, &text);
        for channel in self.unconfirmed.keys() {
            core.connection.abort(*channel);
        }
        self.unconfirmed.clear();
        core.end(DisconnectReason::ByApplication, text);
    }

    fn on_shutdown(&mut self, core: &mut Core<Done>) {
        self.is_draining = true;
        let Stage::Admitted(user) = &mut self.stage else {
            let text = "the service is stopping: connect again".to_owned();
            return core.end(DisconnectReason::ByApplication, text);
        };
        let (now, grace) = (limits::now(&*core.clock), self.node.config.drain_grace);
        user.limits(core.last_activity).handle_drain(now.mono.after(grace), now);
        for channel in self.sessions.keys() {
            core.say(*channel, &format!("the service is stopping; sessions end in {} s", grace.as_secs()));
        }
        self.apply_limits(core);
    }

    fn on_open(&mut self, core: &mut Core<Done>, channel: ChannelId, open: ChannelOpen) {
        match open {
            ChannelOpen::Session => self.open_session(core, channel),
            ChannelOpen::DirectTcpip { target, .. } => self.open_tcp(core, channel, target),
            ChannelOpen::DirectStreamlocal { path } => self.open_unix(core, channel, path),
            // Only a server opens these, and the SSH core has refused them already.
            ChannelOpen::ForwardedTcpip { .. }
            | ChannelOpen::ForwardedStreamlocal { .. }
            | ChannelOpen::AuthAgent
            | ChannelOpen::X11 { .. }
            | ChannelOpen::Unknown { .. } => {
                reject_open(core, channel, OpenFailure::Prohibited, "not offered here");
            }
        }
    }

    fn on_global(&mut self, core: &mut Core<Done>, request: GlobalRequest, reply: Option<GlobalReplyToken>) {
        match request {
            GlobalRequest::TcpipForward { listener } => self.listen_tcp(core, listener, reply),
            GlobalRequest::StreamlocalForward { path } => self.listen_unix(core, path, reply),
            GlobalRequest::CancelTcpipForward { listener } => self.cancel_tcp(core, &listener, reply),
            GlobalRequest::CancelStreamlocalForward { path } => self.cancel_unix(core, &path, reply),
            GlobalRequest::Keepalive
            | GlobalRequest::HostKeys { .. }
            | GlobalRequest::NoMoreSessions
            | GlobalRequest::Unknown { .. } => answer_global(core, reply, GlobalReply::Failure),
        }
    }

    /// The client has answered a channel that we asked for.
    fn on_confirmed(&mut self, core: &mut Core<Done>, channel: ChannelId) {
        let Some(Unconfirmed { stream, listener }) = self.unconfirmed.remove(&channel) else {
            return core.connection.abort(channel);
        };
        core.pumps.attach_stream(channel, stream);
        if let Some(address) = listener {
            self.stream_begins(core, channel, PortAction::RemoteConnectionStop, address);
        }
    }

    /// The client wants a stream not.
    fn on_unconfirmed(&mut self, core: &mut Core<Done>, channel: ChannelId) {
        if let Some(Unconfirmed { listener: Some(address), .. }) = self.unconfirmed.remove(&channel) {
            let reason = "the client did not take the connection";
            self.note_port_failed(core, PortAction::RemoteConnection, &address, reason);
        }
    }
}

impl Application for NodeConnection {
    type Done = Done;

    fn on_event(&mut self, core: &mut Core<Done>, event: Event) {
        match event {
            Event::AuthAttempt(attempt) => self.on_auth_attempt(core, attempt),
            Event::Open { channel, open } => self.on_open(core, channel, open),
            Event::Opened { channel } => self.on_confirmed(core, channel),
            Event::OpenFailed { channel, .. } => self.on_unconfirmed(core, channel),
            Event::Request { channel, request, reply } => self.on_request(core, channel, request, reply),
            Event::GlobalRequest { request, reply } => self.on_global(core, request, reply),
            Event::Closed { channel } => self.on_closed(core, channel),
            // We ask the client nothing that has an answer.
            Event::RequestAnswered { .. } | Event::GlobalAnswered { .. } => {}
            // The driver's, or a client's.
            Event::Data { .. }
            | Event::Eof { .. }
            | Event::Writable { .. }
            | Event::Rekeyed
            | Event::Disconnected { .. }
            | Event::HostIdentity(_)
            | Event::Banner(_)
            | Event::Authenticated => {}
        }
    }

    fn on_done(&mut self, core: &mut Core<Done>, done: Done) {
        match done {
            Done::DecisionsChanged(watched) => {
                core.start(watched.changed());
                if let Some(view) = self.view() {
                    view.keepalive().apply(&mut core.connection);
                }
                self.recheck(core);
            }
            Done::ShutdownRequested => self.on_shutdown(core),
            Done::AccountFound(found) => self.on_account(core, found),
            Done::RefusalNoted(text) => self.on_refusal_noted(core, text),
            Done::ProcessStarted(channel, start) => self.on_process_started(core, channel, start),
            Done::ProcessEnded(channel, ended) => self.on_process_ended(core, channel, ended),
            Done::AgentListening(listening) => self.on_agent_listening(core, listening),
            Done::AgentWanted(wanted, stream) => self.on_agent_wanted(core, wanted, stream),
            Done::Connected(channel, address, connected) => {
                self.on_connected(core, channel, address, connected);
            }
            Done::Listening(listening) => self.on_listening(core, listening),
            Done::Incoming(incoming) => self.on_incoming(core, incoming),
            Done::Noted => {}
            Done::Resumption(event, events) => self.on_resumption(core, event, events),
        }
    }

    fn on_pump(&mut self, core: &mut Core<Done>, channel: ChannelId, end: PumpEnd) {
        if self.sessions.contains_key(&channel) {
            self.on_session_pump(core, channel, end);
        } else {
            core.end_plain(channel, end);
        }
    }

    fn wakes_at(&self) -> Option<Mono> {
        match &self.stage {
            Stage::Admitted(user) => user.poll_timeout(),
            Stage::Unauthenticated | Stage::Admitting(_) => None,
        }
    }

    fn on_time(&mut self, core: &mut Core<Done>) {
        if let Stage::Admitted(user) = &mut self.stage {
            user.limits(core.last_activity).handle_timeout(limits::now(&*core.clock));
        }
        self.apply_limits(core);
    }

    fn on_end(&mut self, core: &mut Core<Done>) {
        self.end_sessions(core);
        self.end_forwards(core);
    }
}

/// Refuses a channel.
pub(crate) fn reject_open(core: &mut Core<Done>, channel: ChannelId, failure: OpenFailure, text: &str) {
    // Refused only when the connection is over, which the driver sees.
    let _over = core.connection.reject_open(channel, failure, text);
}

/// Answers a global request if an answer is wanted.
pub(crate) fn answer_global(core: &mut Core<Done>, reply: Option<GlobalReplyToken>, answer: GlobalReply) {
    if let Some(reply) = reply {
        core.connection.respond_global(reply, answer);
    }
}
