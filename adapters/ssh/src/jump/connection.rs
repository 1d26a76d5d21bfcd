//! The application on one connection to the entry.

use super::JumpEntry;
use super::target::parse_target;
use crate::authenticate::{AuthenticateError, Trust, authenticate};
use crate::driver::{Application, Core, changed_or_never};
use crate::limits;
use crate::policy_view::PolicyView;
use crate::pump::PumpEnd;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wayleave_audit::{Event as AuditEvent, Text};
use wayleave_dial::{DialRefusal, DialRequest, DialTarget, VERSION};
use wayleave_identity::UserPrincipal;
use wayleave_net::{Dialed, Dialer, Known};
use wayleave_policy::{Denial, LockMatch, Subject};
use wayleave_runtime::{Shutdown, random_bytes};
use wayleave_session::{Connection as Limits, Effect, EndReason, Terms};
use wayleave_ssh::{
    AuthAttempt, ChannelId, ChannelOpen, DisconnectReason, Event, GlobalReply, OpenFailure, TcpEndpoint,
};
use wayleave_vocab::{Mono, SessionId, TraceId, Wall};

/// How long a dial may take before the channel is refused.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// One connection.
pub(super) struct JumpConnection {
    entry: Arc<JumpEntry>,
    client: SocketAddr,
    dialer: Arc<dyn Dialer>,
    views: watch::Receiver<Option<Arc<PolicyView>>>,
    stage: Stage,
    /// To be told when somebody is let in.
    known: Option<Known>,
    /// Channels that count as sessions, for drain.
    channels: BTreeMap<ChannelId, SessionId>,
}

enum Stage {
    Unauthenticated,
    Admitted(Box<Admitted>),
}

struct Admitted {
    principal: UserPrincipal,
    limits: Limits,
}

/// What work results in.
pub(super) enum Done {
    PolicyChanged(watch::Receiver<Option<Arc<PolicyView>>>),
    ShutdownRequested,
    RefusalNoted(Option<String>),
    Dialled(ChannelId, Result<Dialed, DialRefusal>),
    Noted,
}

/// Why somebody is not let in.
#[derive(Debug, thiserror::Error)]
enum AdmissionError {
    #[error(transparent)]
    Certificate(#[from] AuthenticateError),
    #[error(transparent)]
    Denied(#[from] Denial),
    #[error("lock {} on {}", .0.name, .0.target)]
    Locked(LockMatch),
    #[error("there is no verified policy yet")]
    NoPolicy,
}

impl AdmissionError {
    /// What the client may read; without it the client is only refused, and may try another key.
    fn user_text(&self) -> Option<String> {
        match self {
            Self::Certificate(error) => error.user_text(),
            Self::Denied(denial) => Some(denial.user_text()),
            Self::Locked(lock) => Some(EndReason::Locked { message: lock.message.clone() }.to_string()),
            Self::NoPolicy => Some("this proxy has no policy yet; try again".to_owned()),
        }
    }
}

impl JumpConnection {
    pub(super) fn new(
        entry: Arc<JumpEntry>,
        client: SocketAddr,
        dialer: Arc<dyn Dialer>,
        known: Known,
        shutdown: &Shutdown,
        core: &mut Core<Done>,
    ) -> Self {
        let views = entry.config.policy.views();
        core.start(changed(views.clone()));
        let signal = shutdown.clone();
        core.start(async move {
            signal.requested().await;
            Done::ShutdownRequested
        });
        Self {
            entry,
            client,
            dialer,
            views,
            stage: Stage::Unauthenticated,
            known: Some(known),
            channels: BTreeMap::new(),
        }
    }

    fn view(&self) -> Option<Arc<PolicyView>> {
        self.views.borrow().clone()
    }

    fn on_auth_attempt(&mut self, core: &mut Core<Done>, attempt: &AuthAttempt) {
        match self.judge(attempt, core.clock.wall()) {
            Ok((principal, terms)) => {
                let limits = Limits::new(terms, limits::now(&*core.clock));
                self.stage = Stage::Admitted(Box::new(Admitted { principal, limits }));
                if let Some(known) = self.known.take() {
                    known();
                }
                // Refused only when the connection is over, which the driver sees.
                let _over = core.connection.accept_auth();
            }
            Err(error) => {
                tracing::debug!(%error, "a user is not let in");
                let text = error.user_text();
                let event = AuditEvent::AuthAttempt {
                    user: Text::new(attempt.certificate.key_id()),
                    client_addr: Some(Text::new(self.client.to_string())),
                    error: Text::new(error.to_string()),
                };
                let entry = self.entry.clone();
                core.start_lasting(async move {
                    note(entry, event).await;
                    Done::RefusalNoted(text)
                });
            }
        }
    }

    fn judge(&self, attempt: &AuthAttempt, now: Wall) -> Result<(UserPrincipal, Terms), AdmissionError> {
        let view = self.view().ok_or(AdmissionError::NoPolicy)?;
        let trust = Trust { authorities: view.user_authorities(), cluster: view.cluster() };
        let client = Some(self.client.ip().to_canonical());
        let user = authenticate(&attempt.certificate, None, &trust, client, now)?;
        let terms = decide(&view, &user.principal, now)?;
        Ok((user.principal, terms))
    }

    /// Judges the running connection by the policy of the moment.
    fn recheck(&mut self, core: &mut Core<Done>) {
        let now = limits::now(&*core.clock);
        let view = self.view();
        let Stage::Admitted(user) = &mut self.stage else { return };
        let decision = match view {
            None => Err(EndReason::PolicyChanged),
            Some(view) => decide(&view, &user.principal, now.wall).map_err(|error| match error {
                AdmissionError::Locked(lock) => EndReason::Locked { message: lock.message },
                AdmissionError::Denied(denial) => limits::end_reason(denial),
                AdmissionError::Certificate(_) | AdmissionError::NoPolicy => EndReason::PolicyChanged,
            }),
        };
        user.limits.handle_decision(decision, now);
        self.apply_limits(core);
    }

    fn apply_limits(&mut self, core: &mut Core<Done>) {
        let Stage::Admitted(user) = &mut self.stage else { return };
        let Some(Effect::End(reason)) = user.limits.poll_effect() else { return };
        tracing::info!(%reason, "an SSH connection is ended");
        let event = AuditEvent::ClientDisconnect {
            user: Text::new(user.principal.name.as_str()),
            sid: None,
            server_id: self.entry.config.host_id,
            cause: limits::disconnect_cause(&reason),
            reason: Text::new(reason.to_string()),
        };
        let entry = self.entry.clone();
        core.start_lasting(async move {
            note(entry, event).await;
            Done::Noted
        });
        core.end(DisconnectReason::ByApplication, format!("the connection is ended: {reason}"));
    }

    fn on_shutdown(&mut self, core: &mut Core<Done>) {
        let (now, grace) = (limits::now(&*core.clock), self.entry.config.drain_grace);
        match &mut self.stage {
            Stage::Admitted(user) => user.limits.handle_drain(now.mono.after(grace), now),
            Stage::Unauthenticated => {
                let text = "the service is stopping: connect again".to_owned();
                core.end(DisconnectReason::ByApplication, text);
            }
        }
        self.apply_limits(core);
    }

    fn on_open(&mut self, core: &mut Core<Done>, channel: ChannelId, open: ChannelOpen) {
        match open {
            ChannelOpen::DirectTcpip { target, .. } => {
                if let Err(text) = self.dial(core, channel, &target) {
                    tracing::debug!(text, "a jump is refused");
                    reject(core, channel, OpenFailure::Prohibited, &text);
                }
            }
            ChannelOpen::Session => {
                let text = "this is an entry to nodes and has no sessions of its own: use ssh -J";
                reject(core, channel, OpenFailure::Prohibited, text);
            }
            ChannelOpen::DirectStreamlocal { .. }
            | ChannelOpen::ForwardedTcpip { .. }
            | ChannelOpen::ForwardedStreamlocal { .. }
            | ChannelOpen::AuthAgent
            | ChannelOpen::X11 { .. }
            | ChannelOpen::Unknown { .. } => {
                reject(core, channel, OpenFailure::Prohibited, "this is an entry to nodes only");
            }
        }
    }

    fn dial(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        target: &TcpEndpoint,
    ) -> Result<(), String> {
        let now = limits::now(&*core.clock);
        let view = self.view().ok_or("this proxy has no policy")?;
        let Stage::Admitted(user) = &mut self.stage else { return Err("access denied".to_owned()) };
        if user.principal.not_after <= now.wall {
            return Err("your certificate has expired: log in again".to_owned());
        }
        let node =
            parse_target(&target.host, target.port, view.cluster()).map_err(|error| error.to_string())?;
        let id = SessionId::from_random(random_bytes());
        user.limits.handle_open(id, now).map_err(|refusal| refusal.to_string())?;
        self.channels.insert(channel, id);
        let request = DialRequest {
            v: VERSION,
            target: DialTarget::Ssh { node },
            host_id: None,
            client_address: Some(self.client),
            trace_id: TraceId::from_random(random_bytes()),
            from_peer: false,
            report_route: false,
            resume: None,
            needs: std::collections::BTreeSet::new(),
        };
        let dialer = self.dialer.clone();
        core.start(async move {
            let dialled = tokio::time::timeout(DIAL_TIMEOUT, dialer.dial(request)).await;
            let timed_out = || DialRefusal::TimedOut { detail: "the node".to_owned() };
            Done::Dialled(channel, dialled.unwrap_or_else(|_| Err(timed_out())))
        });
        Ok(())
    }

    fn on_dialled(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        dialled: Result<Dialed, DialRefusal>,
    ) {
        match dialled {
            Ok(Dialed { stream, .. }) => {
                core.pumps.attach_stream(channel, stream);
                // Refused only when the connection is over, which the driver sees.
                let _over = core.connection.accept_open(channel);
            }
            Err(refusal) => {
                let failure = match &refusal {
                    DialRefusal::Denied { .. } | DialRefusal::Invalid { .. } => OpenFailure::Prohibited,
                    DialRefusal::Unavailable { .. } => OpenFailure::ResourceShortage,
                    DialRefusal::UnknownTarget { .. }
                    | DialRefusal::Ambiguous { .. }
                    | DialRefusal::Offline { .. }
                    | DialRefusal::NotHere { .. }
                    | DialRefusal::TimedOut { .. } => OpenFailure::ConnectFailed,
                };
                reject(core, channel, failure, &refusal.to_string());
                self.on_closed(core, channel);
            }
        }
    }

    fn on_closed(&mut self, core: &mut Core<Done>, channel: ChannelId) {
        core.pumps.close(channel);
        if let (Stage::Admitted(user), Some(id)) = (&mut self.stage, self.channels.remove(&channel)) {
            user.limits.handle_close(id, limits::now(&*core.clock));
        }
        self.apply_limits(core);
    }
}

impl Application for JumpConnection {
    type Done = Done;

    fn on_event(&mut self, core: &mut Core<Done>, event: Event) {
        match event {
            Event::AuthAttempt(attempt) => self.on_auth_attempt(core, &attempt),
            Event::Open { channel, open } => self.on_open(core, channel, open),
            Event::Closed { channel } => self.on_closed(core, channel),
            Event::Request { reply: Some(reply), .. } => core.connection.respond(reply, false),
            Event::GlobalRequest { reply: Some(reply), .. } => {
                core.connection.respond_global(reply, GlobalReply::Failure);
            }
            // The driver's, a client's, or without an answer.
            Event::Request { .. }
            | Event::GlobalRequest { .. }
            | Event::Opened { .. }
            | Event::OpenFailed { .. }
            | Event::RequestAnswered { .. }
            | Event::GlobalAnswered { .. }
            | Event::Data { .. }
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
            Done::PolicyChanged(views) => {
                core.start(changed(views));
                if let Some(view) = self.view() {
                    view.keepalive().apply(&mut core.connection);
                }
                self.recheck(core);
            }
            Done::ShutdownRequested => self.on_shutdown(core),
            Done::RefusalNoted(Some(text)) => core.end(DisconnectReason::NoMoreAuthMethodsAvailable, text),
            // Refused only when the connection is over, which the driver sees.
            Done::RefusalNoted(None) => drop(core.connection.reject_auth()),
            Done::Dialled(channel, dialled) => self.on_dialled(core, channel, dialled),
            Done::Noted => {}
        }
    }

    fn on_pump(&mut self, core: &mut Core<Done>, channel: ChannelId, end: PumpEnd) {
        core.end_plain(channel, end);
    }

    fn wakes_at(&self) -> Option<Mono> {
        match &self.stage {
            Stage::Admitted(user) => user.limits.poll_timeout(),
            Stage::Unauthenticated => None,
        }
    }

    fn on_time(&mut self, core: &mut Core<Done>) {
        if let Stage::Admitted(user) = &mut self.stage {
            user.limits.handle_activity(core.last_activity);
            user.limits.handle_timeout(limits::now(&*core.clock));
        }
        self.apply_limits(core);
    }

    fn on_end(&mut self, _core: &mut Core<Done>) {}
}

/// What a user of the cluster is granted here: nothing while locked. Silence is for the node to judge.
fn decide(view: &PolicyView, principal: &UserPrincipal, now: Wall) -> Result<Terms, AdmissionError> {
    let subject = Subject::from(principal);
    if let Some(lock) = view.locks().on_subject(subject, now) {
        return Err(AdmissionError::Locked(lock));
    }
    let options = view.policy().session_options(subject, now)?;
    let ends = options.disconnect_expired_cert.then_some(principal.not_after);
    Ok(Terms { idle_timeout: None, ends, max_sessions: None })
}

async fn changed(mut views: watch::Receiver<Option<Arc<PolicyView>>>) -> Done {
    changed_or_never(&mut views).await;
    Done::PolicyChanged(views)
}

async fn note(entry: Arc<JumpEntry>, event: AuditEvent) {
    if let Err(error) = entry.config.audit.record(event).await {
        tracing::error!(%error, "an event was not written to the audit log");
    }
}

fn reject(core: &mut Core<Done>, channel: ChannelId, failure: OpenFailure, text: &str) {
    // Refused only when the connection is over, which the driver sees.
    let _over = core.connection.reject_open(channel, failure, text);
}
