//! What is noted of users on published machines.

use super::visitor::{Done, Stage, Visitor};
use crate::audit::AuditError;
use crate::driver::Core;
use futures::future::try_join_all;
use std::sync::Arc;
use wayleave_audit::{AppRef, Event, Outcome, PortAction, SessionRef, Text};
use wayleave_ssh::DisconnectReason;
use wayleave_vocab::SessionId;

use super::PublishListener;

/// Refusals on one connection before it is ended.
const REFUSALS_MAX: u32 = 64;

/// A refusal of something on a running connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// For operators.
    pub(super) reason: String,
    /// For the user.
    pub(super) text: String,
}

impl Refused {
    pub(super) fn new(reason: impl Into<String>, text: impl Into<String>) -> Self {
        Self { reason: reason.into(), text: text.into() }
    }

    /// The same text for both.
    pub(super) fn plain(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { reason: text.clone(), text }
    }
}

impl PublishListener {
    /// Writes events, all of them or none is believed written.
    pub(super) async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        try_join_all(events.into_iter().map(|event| self.config.audit.record(event))).await.map(|_| ())
    }
}

/// Writes an event that nothing waits for.
pub(super) async fn note(listener: Arc<PublishListener>, event: Event) {
    if let Err(error) = listener.config.audit.record(event).await {
        tracing::error!(%error, "an event was not written to the audit log");
    }
}

/// A failure in the audit log.
pub(super) fn failure(reason: &str) -> Outcome {
    Outcome::Failure { error: Text::new(reason) }
}

impl Visitor {
    pub(super) fn client_text(&self) -> Option<Text> {
        self.client.map(|address| Text::new(address.to_string()))
    }

    /// Writes an event that nothing waits for.
    pub(super) fn note(&self, core: &mut Core<Done>, event: Event) {
        let listener = self.machine.entry.clone();
        core.start_lasting(async move {
            note(listener, event).await;
            Done::Noted
        });
    }

    /// Writes that something was refused. A client that goes on asking is disconnected, so that refusals do not fill the
    /// journal.
    pub(super) fn note_refused(&mut self, core: &mut Core<Done>, event: Event) {
        self.note(core, event);
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= REFUSALS_MAX {
            let text = "too many requests were refused on this connection".to_owned();
            core.end(DisconnectReason::ByApplication, text);
        }
    }

    /// A session of the user who entered.
    pub(super) fn session_ref(&self, sid: SessionId) -> Option<SessionRef> {
        let Stage::Admitted(user) = &self.stage else { return None };
        Some(SessionRef {
            sid,
            user: Text::new(user.principal.name.as_str()),
            login: user.login.clone()?,
            server_id: self.machine.host_id,
            server_hostname: Text::new(self.machine.name.as_str()),
        })
    }

    /// A connection of the user to a port.
    pub(super) fn app_ref(&self, sid: SessionId, port: u16) -> Option<AppRef> {
        let Stage::Admitted(user) = &self.stage else { return None };
        Some(AppRef {
            sid,
            user: Text::new(user.principal.name.as_str()),
            app_name: Text::new(self.machine.name.as_str()),
            target_port: port,
            server_id: self.machine.host_id,
        })
    }

    pub(super) fn port_event(&self, action: PortAction, address: &str, outcome: Outcome) -> Option<Event> {
        let session = self.session_ref(self.id)?;
        Some(Event::Port {
            session,
            action,
            addr: Text::new(address),
            duration_ms: None,
            traffic: None,
            outcome,
        })
    }

    /// Notes that a session was refused.
    pub(super) fn note_session_refused(&mut self, core: &mut Core<Done>, reason: &str) {
        let Stage::Admitted(user) = &self.stage else { return };
        let event = Event::SessionRejected {
            user: Text::new(user.principal.name.as_str()),
            login: Text::new(user.login.as_ref().map_or("", |login| login.as_str())),
            server_id: self.machine.host_id,
            server_hostname: Text::new(self.machine.name.as_str()),
            reason: Text::new(reason),
            client_addr: self.client_text(),
        };
        self.note_refused(core, event);
    }
}
