//! The connection of a user to a published machine. It ends here: this proxy is the machine's agent.
//!
//! Who he is, he proves by his certificate; what he may do is decided by the policy that this proxy verified, and for
//! SSH by Auth as well, which certifies the key that enters the machine.

use super::authority::SignWish;
use super::events::{self, Refused};
use super::machine::Machine;
use super::publisher::SSH_PORT;
use super::relay::{MESSAGES_MAX, Message, Party, Side};
use super::sessions::Session;
use super::target::{self, Entrance};
use crate::authenticate::{AuthenticateError, Permissions, Trust, authenticate};
use crate::driver::{Application, Core, changed_or_never};
use crate::limits::{self, UserSlot};
use crate::policy_view::PolicyView;
use crate::pump::PumpEnd;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use wayleave_audit::{Event as AuditEvent, Text};
use wayleave_identity::UserPrincipal;
use wayleave_net::BoxStream;
use wayleave_policy::{AppPermit, Context, Denial, NodeView, Permit, SessionOptions};
use wayleave_runtime::{Shutdown, random_bytes};
use wayleave_session::{Connection as Limits, Effect, EndReason, Terms, TooManyConnections};
use wayleave_ssh::{
    AuthAttempt, ChannelId, Credential, DisconnectReason, Event, GlobalReply, KeyPair, LoginProof,
    OpenFailure,
};
use wayleave_vocab::{Login, Mono, NameError, SessionId, UserName, Wall};

/// What the user came for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Ssh,
    App,
}

/// A user who is about to log in.
pub(super) struct Arrival {
    pub(super) service: Service,
    /// What Auth wants in the login, for SSH.
    pub(super) challenge: Vec<u8>,
    /// Where he connected from, as the proxies say.
    pub(super) client: Option<SocketAddr>,
}

/// One connection.
pub(super) struct Visitor {
    pub(super) machine: Arc<Machine>,
    pub(super) service: Service,
    challenge: Vec<u8>,
    pub(super) client: Option<SocketAddr>,
    pub(super) stage: Stage,
    /// Held until somebody is let in.
    unauthenticated: Option<OwnedSemaphorePermit>,
    /// Channels: sessions and connections to ports.
    pub(super) sessions: BTreeMap<ChannelId, Session>,
    /// The other connection, where there is one.
    pub(super) side: Option<Side>,
    pub(super) is_draining: bool,
    /// Names the connection where no session is meant.
    pub(super) id: SessionId,
    pub(super) refusals: u32,
    /// Set when this side ended the connection: why.
    pub(super) end_reason: Option<String>,
    views: watch::Receiver<Option<Arc<PolicyView>>>,
}

/// Who is on the other side.
pub(super) enum Stage {
    Unauthenticated,
    /// Somebody whom the policy let in and the machine has not yet.
    Entering(Box<Candidate>),
    Admitted(Box<Admitted>),
}

/// A user whom the policy let in.
pub(super) struct Candidate {
    attempt: Box<AuthAttempt>,
    admitted: Admitted,
}

/// A user.
pub(super) struct Admitted {
    pub(super) principal: UserPrincipal,
    pub(super) permissions: Permissions,
    /// As whom; none for applications.
    pub(super) login: Option<Login>,
    limits: Limits,
    _slot: UserSlot,
}

impl Admitted {
    /// Told first when data last moved, so that nobody who talks counts as silent.
    pub(super) fn limits(&mut self, last_activity: Mono) -> &mut Limits {
        self.limits.handle_activity(last_activity);
        &mut self.limits
    }
}

/// What work results in.
pub(super) enum Done {
    DecisionsChanged(Watched),
    ShutdownRequested,
    RefusalNoted(Option<String>),
    /// The way into the machine is open, or why not.
    Entrance(Result<Entrance, EnterError>),
    /// The other connection said something, or is gone.
    Said(Option<Message>, mpsc::Receiver<Message>),
    TargetEnded,
    /// What a session should be is in the audit log, or not.
    SessionNoted(ChannelId, Result<(), String>),
    /// What is forwarded is in the audit log, or not.
    ForwardNoted(super::sessions::Forward, Result<(), String>),
    /// A port is connected, or why not.
    Connected(ChannelId, Result<BoxStream, Refused>),
    Noted,
}

/// What decisions depend on beside the user.
pub(super) struct Watched {
    views: watch::Receiver<Option<Arc<PolicyView>>>,
    offer: watch::Receiver<super::machine::Offer>,
}

impl Watched {
    /// Waits for a change; a source that is gone changes no more.
    async fn changed(mut self) -> Done {
        tokio::select! {
            () = changed_or_never(&mut self.views) => {}
            () = changed_or_never(&mut self.offer) => {}
        }
        Done::DecisionsChanged(self)
    }
}

/// Why somebody is not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdmissionError {
    #[error(transparent)]
    Certificate(#[from] AuthenticateError),
    #[error(transparent)]
    Login(#[from] NameError),
    #[error(transparent)]
    Denied(#[from] Denial),
    #[error(transparent)]
    TooManyConnections(#[from] TooManyConnections),
    #[error(transparent)]
    Enter(#[from] EnterError),
    #[error("there is no verified policy yet")]
    NoPolicy,
    #[error("the proxy is shutting down")]
    ShuttingDown,
}

/// Why the machine was not entered for a user whom the policy let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnterError {
    #[error("Auth gave no certificate: {0}")]
    Certificate(String),
    #[error("the machine was not reached: {0}")]
    Connect(String),
    #[error("the machine's sshd did not let the user in: {0}")]
    Target(String),
}

impl AdmissionError {
    /// What the client may read; without it the client is only refused, and may try another key.
    fn user_text(&self) -> Option<String> {
        match self {
            Self::Certificate(error) => error.user_text(),
            Self::Login(error) => Some(format!("access denied: {error}")),
            Self::Denied(denial) => Some(denial.user_text()),
            Self::TooManyConnections(error) => Some(format!("access denied: {error}")),
            Self::Enter(error) => Some(error.to_string()),
            Self::NoPolicy => Some("this proxy has no policy yet; try again".to_owned()),
            Self::ShuttingDown => Some("this proxy is shutting down; try again".to_owned()),
        }
    }
}

/// A refused login: who, if a certificate proved it, and why.
struct Rejection {
    user: Option<UserName>,
    error: AdmissionError,
}

impl Visitor {
    pub(super) fn new(
        machine: Arc<Machine>,
        arrival: Arrival,
        unauthenticated: OwnedSemaphorePermit,
        shutdown: &Shutdown,
        core: &mut Core<Done>,
    ) -> Self {
        let Arrival { service, challenge, client } = arrival;
        let views = machine.entry.config.policy.views();
        let watched = Watched { views: views.clone(), offer: machine.offer.clone() };
        core.start(watched.changed());
        let signal = shutdown.clone();
        core.start(async move {
            signal.requested().await;
            Done::ShutdownRequested
        });
        Self {
            machine,
            service,
            challenge,
            client,
            stage: Stage::Unauthenticated,
            unauthenticated: Some(unauthenticated),
            sessions: BTreeMap::new(),
            side: None,
            is_draining: shutdown.is_requested(),
            id: SessionId::from_random(random_bytes()),
            refusals: 0,
            end_reason: None,
            views,
        }
    }

    fn view(&self) -> Option<Arc<PolicyView>> {
        self.views.borrow().clone()
    }

    /// The revision that decides, for the audit log.
    pub(super) fn revision(&self) -> String {
        self.view().map(|view| view.revision().to_string()).unwrap_or_default()
    }

    /// Asks the policy of the moment about SSH.
    fn decide_ssh(
        &self,
        principal: &UserPrincipal,
        login: &Login,
        locks_age: Duration,
        now: Wall,
    ) -> Result<Permit, AdmissionError> {
        let view = self.view().ok_or(AdmissionError::NoPolicy)?;
        let labels = self.machine.offer.borrow().labels.clone();
        let node = NodeView { name: &self.machine.name, host_id: &self.machine.host_id, labels: &labels };
        let context = Context { locks: view.locks(), locks_age };
        Ok(view.policy().decide_ssh(principal, &node, login, &context, now)?)
    }

    /// Asks the policy of the moment about the ports.
    fn decide_app(
        &self,
        principal: &UserPrincipal,
        locks_age: Duration,
        now: Wall,
    ) -> Result<AppPermit, AdmissionError> {
        let view = self.view().ok_or(AdmissionError::NoPolicy)?;
        let labels = self.machine.offer.borrow().labels.clone();
        let app = NodeView { name: &self.machine.name, host_id: &self.machine.host_id, labels: &labels };
        let context = Context { locks: view.locks(), locks_age };
        Ok(view.policy().decide_app(principal, &app, &context, now)?)
    }

    fn locks_age(&self, now: Wall) -> Duration {
        self.machine.entry.config.policy.locks_age(now)
    }

    /// A fresh permit for one more thing on this connection, or what operators and the user may read.
    pub(super) fn permit(&self, now: Wall) -> Result<Permit, Refused> {
        let Stage::Admitted(user) = &self.stage else {
            return Err(Refused::new("nobody is logged in", "access denied"));
        };
        if self.is_draining {
            return Err(Refused::plain("the proxy is shutting down"));
        }
        let Some(login) = &user.login else {
            return Err(Refused::plain("there are only the ports of this application here"));
        };
        self.decide_ssh(&user.principal, login, self.locks_age(now), now).map_err(refused)
    }

    /// The same for a connection to a port.
    pub(super) fn app_permit(&self, now: Wall) -> Result<AppPermit, Refused> {
        let Stage::Admitted(user) = &self.stage else {
            return Err(Refused::new("nobody is logged in", "access denied"));
        };
        if self.is_draining {
            return Err(Refused::plain("the proxy is shutting down"));
        }
        self.decide_app(&user.principal, self.locks_age(now), now).map_err(refused)
    }

    fn on_auth_attempt(&mut self, core: &mut Core<Done>, mut attempt: Box<AuthAttempt>) {
        let proof = attempt.proof.take();
        let now = core.clock.wall();
        match self.judge(core, &attempt, now) {
            Ok((admitted, None)) => self.admit(core, admitted),
            Ok((admitted, Some(permit))) => {
                self.stage = Stage::Entering(Box::new(Candidate { attempt, admitted }));
                let (machine, challenge) = (self.machine.clone(), std::mem::take(&mut self.challenge));
                let client = self.client;
                core.start(
                    async move { Done::Entrance(enter(permit, machine, challenge, proof, client).await) },
                );
            }
            Err(rejection) => self.refuse(core, &attempt, &rejection),
        }
    }

    /// Who comes in, with the permit to enter the machine where there is one to be entered.
    fn judge(
        &self,
        core: &Core<Done>,
        attempt: &AuthAttempt,
        now: Wall,
    ) -> Result<(Admitted, Option<Permit>), Box<Rejection>> {
        let nobody = |error: AdmissionError| Box::new(Rejection { user: None, error });
        let view = self.view().ok_or(AdmissionError::NoPolicy).map_err(nobody)?;
        let trust = Trust { authorities: view.user_authorities(), cluster: view.cluster() };
        let client = self.client.map(|address| address.ip().to_canonical());
        let named = match self.service {
            Service::Ssh => Some(attempt.user.as_str()),
            Service::App => None,
        };
        let user = authenticate(&attempt.certificate, named, &trust, client, now)
            .map_err(|error| nobody(error.into()))?;
        let principal = user.principal;
        let of_user = |error| Box::new(Rejection { user: Some(principal.name.clone()), error });
        if self.is_draining {
            return Err(of_user(AdmissionError::ShuttingDown));
        }
        let age = self.locks_age(now);
        let (login, permit, options) = match self.service {
            Service::Ssh => {
                let login = Login::parse(attempt.user.as_str()).map_err(|e| of_user(e.into()))?;
                let permit = self.decide_ssh(&principal, &login, age, now).map_err(of_user)?;
                let options = permit.options().clone();
                (Some(login), Some(permit), options)
            }
            Service::App => {
                let permit = self.decide_app(&principal, age, now).map_err(of_user)?;
                (None, None, permit.options().clone())
            }
        };
        let slot = self.machine.slots.take(&principal.name, options.max_connections);
        let slot = slot.map_err(|error| of_user(error.into()))?;
        let terms = self.terms(&options, principal.not_after);
        let limits = Limits::new(terms, limits::now(&*core.clock));
        Ok((Admitted { principal, permissions: user.permissions, login, limits, _slot: slot }, permit))
    }

    /// Connections to ports are not counted as sessions: a browser makes many.
    fn terms(&self, options: &SessionOptions, ends: Wall) -> Terms {
        let terms = limits::terms(options, ends);
        match self.service {
            Service::Ssh => terms,
            Service::App => Terms { max_sessions: None, ..terms },
        }
    }

    fn on_entrance(&mut self, core: &mut Core<Done>, entrance: Result<Entrance, EnterError>) {
        match entrance {
            Ok(entrance) => {
                let (tell, hear) = mpsc::channel(MESSAGES_MAX);
                let (answer, said) = mpsc::channel(MESSAGES_MAX);
                self.side = Some(Side::new(Party::User, tell));
                core.start(next(said));
                let clock = core.clock.clone();
                core.start(async move {
                    target::run(entrance, answer, hear, clock).await;
                    Done::TargetEnded
                });
            }
            Err(error) => self.not_entered(core, error),
        }
    }

    fn not_entered(&mut self, core: &mut Core<Done>, error: EnterError) {
        self.side = None;
        if let Stage::Entering(candidate) = std::mem::replace(&mut self.stage, Stage::Unauthenticated) {
            let Candidate { attempt, admitted } = *candidate;
            let user = Some(admitted.principal.name.clone());
            self.refuse(core, &attempt, &Rejection { user, error: error.into() });
        }
    }

    fn admit(&mut self, core: &mut Core<Done>, admitted: Admitted) {
        self.stage = Stage::Admitted(Box::new(admitted));
        self.unauthenticated = None;
        // Refused only when the connection is over, which the driver sees.
        let _over = core.connection.accept_auth();
        // The policy may have changed while the machine was being entered.
        self.recheck(core);
    }

    fn refuse(&mut self, core: &mut Core<Done>, attempt: &AuthAttempt, rejection: &Rejection) {
        self.stage = Stage::Unauthenticated;
        let Rejection { user, error } = rejection;
        tracing::debug!(%error, login = attempt.user, "a user is not let in");
        let (reason, client_addr) = (Text::new(error.to_string()), self.client_text());
        let event = match user {
            Some(user) => AuditEvent::SessionRejected {
                user: Text::new(user.as_str()),
                login: Text::new(attempt.user.as_str()),
                server_id: self.machine.host_id,
                server_hostname: Text::new(self.machine.name.as_str()),
                reason,
                client_addr,
            },
            None => {
                let said = format!("{} (login {})", attempt.certificate.key_id(), attempt.user);
                AuditEvent::AuthAttempt { user: Text::new(said), client_addr, error: reason }
            }
        };
        let (listener, text) = (self.machine.entry.clone(), error.user_text());
        core.start_lasting(async move {
            events::note(listener, event).await;
            Done::RefusalNoted(text)
        });
    }

    /// Judges the running connection by the policy of the moment: its certificate may have run out where sessions outlive
    /// it, and old knowledge of locks stops only what is new.
    fn recheck(&mut self, core: &mut Core<Done>) {
        let Stage::Admitted(user) = &self.stage else { return };
        let now = limits::now(&*core.clock);
        let ends = user.principal.not_after;
        let ageless = UserPrincipal { not_after: Wall::from_ms(u64::MAX), ..user.principal.clone() };
        let options = match &user.login {
            Some(login) => self
                .decide_ssh(&ageless, login, Duration::ZERO, now.wall)
                .map(|permit| permit.options().clone()),
            None => {
                self.decide_app(&ageless, Duration::ZERO, now.wall).map(|permit| permit.options().clone())
            }
        };
        let decision = match options {
            Ok(options) => Ok(self.terms(&options, ends)),
            Err(AdmissionError::Denied(denial)) => {
                tracing::info!(%denial, "a running SSH connection is no longer allowed");
                Err(limits::end_reason(denial))
            }
            Err(_) => Err(EndReason::PolicyChanged),
        };
        if let Stage::Admitted(user) = &mut self.stage {
            user.limits(core.last_activity).handle_decision(decision, now);
        }
        self.apply_limits(core);
    }

    pub(super) fn apply_limits(&mut self, core: &mut Core<Done>) {
        let Stage::Admitted(user) = &mut self.stage else { return };
        let Some(Effect::End(reason)) = user.limits(core.last_activity).poll_effect() else { return };
        if core.is_ending() {
            return;
        }
        tracing::info!(%reason, "an SSH connection is ended");
        self.end_reason = Some(reason.to_string());
        let event = AuditEvent::ClientDisconnect {
            user: Text::new(user.principal.name.as_str()),
            sid: Some(self.id),
            server_id: self.machine.host_id,
            cause: limits::disconnect_cause(&reason),
            reason: Text::new(reason.to_string()),
        };
        self.note(core, event);
        let text = format!("the session is ended: {reason}");
        for (channel, session) in &self.sessions {
            if session.is_ssh() {
                core.say(*channel, &text);
            }
        }
        core.end(DisconnectReason::ByApplication, text);
    }

    fn on_shutdown(&mut self, core: &mut Core<Done>) {
        self.is_draining = true;
        let Stage::Admitted(user) = &mut self.stage else {
            let text = "the service is stopping: connect again".to_owned();
            return core.end(DisconnectReason::ByApplication, text);
        };
        let (now, grace) = (limits::now(&*core.clock), self.machine.entry.config.drain_grace);
        user.limits(core.last_activity).handle_drain(now.mono.after(grace), now);
        self.apply_limits(core);
    }

    fn on_said(&mut self, core: &mut Core<Done>, said: Option<Message>, hear: mpsc::Receiver<Message>) {
        let Some(message) = said else {
            let text = "the sshd does not trust the cluster's openssh authority, or has no such account: see TrustedUserCAKeys";
            return match &self.stage {
                Stage::Entering(_) => self.not_entered(core, EnterError::Target(text.to_owned())),
                Stage::Unauthenticated => {}
                Stage::Admitted(_) => {
                    core.end(DisconnectReason::ByApplication, "the machine ended the connection".to_owned());
                }
            };
        };
        core.start(next(hear));
        match message {
            Message::Ready => {
                if let Stage::Entering(candidate) = std::mem::replace(&mut self.stage, Stage::Unauthenticated)
                {
                    self.admit(core, candidate.admitted);
                }
            }
            Message::Refused(text) => self.not_entered(core, EnterError::Target(text)),
            message => self.on_relayed(core, message),
        }
        self.end_if_alone(core);
    }

    fn end_if_alone(&self, core: &mut Core<Done>) {
        if self.side.as_ref().is_some_and(|side| side.check().is_err()) {
            core.end(DisconnectReason::ByApplication, "the machine ended the connection".to_owned());
        }
    }
}

async fn next(mut hear: mpsc::Receiver<Message>) -> Done {
    Done::Said(hear.recv().await, hear)
}

fn refused(error: AdmissionError) -> Refused {
    let text = error.user_text().unwrap_or_else(|| "access denied".to_owned());
    Refused { reason: error.to_string(), text }
}

/// Gets a certificate for one connection and opens it.
async fn enter(
    permit: Permit,
    machine: Arc<Machine>,
    challenge: Vec<u8>,
    proof: Option<Box<LoginProof>>,
    client: Option<SocketAddr>,
) -> Result<Entrance, EnterError> {
    let proof = proof.ok_or_else(|| EnterError::Certificate("the login cannot be proven".to_owned()))?;
    let pinned = machine.offer.borrow().target_key.clone();
    let pinned = pinned.ok_or_else(|| EnterError::Connect("it offers no SSH any more".to_owned()))?;
    let key = Arc::new(KeyPair::from_seed(&random_bytes()));
    let wish = SignWish { host_id: machine.host_id, challenge, proof: *proof, key: key.public_key(), client };
    let certificate = machine.entry.config.authority.sign_login(wish).await;
    let certificate = certificate.map_err(|error| EnterError::Certificate(error.to_string()))?;
    let credential = Credential::certified(key, certificate)
        .ok_or_else(|| EnterError::Certificate("it is over another key".to_owned()))?;
    let stream = machine.connect(SSH_PORT, client).await.map_err(EnterError::Connect)?;
    Ok(Entrance { stream, login: permit.login().clone(), credential, pinned })
}

impl Application for Visitor {
    type Done = Done;

    fn on_event(&mut self, core: &mut Core<Done>, event: Event) {
        match event {
            Event::AuthAttempt(attempt) => self.on_auth_attempt(core, attempt),
            Event::Open { channel, open } => self.on_open(core, channel, open),
            Event::Opened { channel } => {
                if let Some(side) = &mut self.side {
                    side.on_opened(core, channel);
                }
            }
            Event::OpenFailed { channel, reason, message } => {
                if let Some(side) = &mut self.side {
                    side.on_open_failed(channel, reason, message);
                }
            }
            Event::Request { channel, request, reply } => self.on_request(core, channel, request, reply),
            Event::RequestAnswered { request, is_success, .. } => {
                if let Some(side) = &mut self.side {
                    side.on_answered(request, is_success);
                }
            }
            Event::GlobalRequest { request, reply } => self.on_global(core, request, reply),
            Event::Closed { channel } => self.on_closed(core, channel),
            // The driver's, a client's, or without an answer.
            Event::GlobalAnswered { .. }
            | Event::Data { .. }
            | Event::Eof { .. }
            | Event::Writable { .. }
            | Event::Rekeyed
            | Event::Disconnected { .. }
            | Event::HostIdentity(_)
            | Event::Banner(_)
            | Event::Authenticated => {}
        }
        self.end_if_alone(core);
    }

    fn on_done(&mut self, core: &mut Core<Done>, done: Done) {
        match done {
            Done::DecisionsChanged(watched) => {
                core.start(watched.changed());
                self.recheck(core);
            }
            Done::ShutdownRequested => self.on_shutdown(core),
            Done::RefusalNoted(Some(text)) => core.end(DisconnectReason::NoMoreAuthMethodsAvailable, text),
            // Refused only when the connection is over, which the driver sees.
            Done::RefusalNoted(None) => drop(core.connection.reject_auth()),
            Done::Entrance(entrance) => self.on_entrance(core, entrance),
            Done::Said(message, hear) => self.on_said(core, message, hear),
            Done::SessionNoted(channel, noted) => self.on_session_noted(core, channel, noted),
            Done::ForwardNoted(forward, noted) => self.on_forward_noted(core, forward, noted),
            Done::Connected(channel, connected) => self.on_connected(core, channel, connected),
            // The end of its messages says the same.
            Done::TargetEnded | Done::Noted => {}
        }
    }

    fn on_pump(&mut self, core: &mut Core<Done>, channel: ChannelId, end: PumpEnd) {
        match &mut self.side {
            Some(side) => side.on_pump(core, channel, end),
            None => core.end_plain(channel, end),
        }
    }

    fn wakes_at(&self) -> Option<Mono> {
        match &self.stage {
            Stage::Admitted(user) => user.limits.poll_timeout(),
            Stage::Unauthenticated | Stage::Entering(_) => None,
        }
    }

    fn on_time(&mut self, core: &mut Core<Done>) {
        if let Stage::Admitted(user) = &mut self.stage {
            user.limits(core.last_activity).handle_timeout(limits::now(&*core.clock));
        }
        self.apply_limits(core);
    }

    fn on_end(&mut self, core: &mut Core<Done>) {
        let reason = self.end_reason.clone().unwrap_or_else(|| "the client disconnected".to_owned());
        for (channel, session) in std::mem::take(&mut self.sessions) {
            let traffic = core.pumps.traffic(channel);
            self.note_end(core, &session, Some(reason.clone()), traffic);
        }
        self.side = None;
    }
}

/// Refuses a channel.
pub(super) fn reject(core: &mut Core<Done>, channel: ChannelId, failure: OpenFailure, text: &str) {
    // Refused only when the connection is over, which the driver sees.
    let _over = core.connection.reject_open(channel, failure, text);
}

/// Answers a global request if an answer is wanted.
pub(super) fn answer_global(core: &mut Core<Done>, reply: Option<wayleave_ssh::GlobalReplyToken>) {
    if let Some(reply) = reply {
        core.connection.respond_global(reply, GlobalReply::Failure);
    }
}
