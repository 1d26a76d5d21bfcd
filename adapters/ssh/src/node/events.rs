//! What the SSH Service notes in the audit log.

use super::connection::{Done, NodeConnection, Stage};
use super::{ConnectionFacts, NodeAdapter};
use crate::audit::AuditError;
use crate::driver::Core;
use crate::pump::Traffic;
use futures::future::try_join_all;
use std::sync::Arc;
use wayleave_audit::{Event, Outcome, SessionRef, SftpAction, SftpActionKind, SftpTotals, Text};
use wayleave_os::SftpReport;
use wayleave_ssh::DisconnectReason;
use wayleave_vocab::{Login, Mono, SessionId, UserName};

/// Refusals on one connection before it is ended.
const REFUSALS_MAX: u32 = 64;
/// Vain tries of others to take a connection over that are noted; whose it is has no part in them.
const TAKEOVERS_NOTED_MAX: u32 = 64;

/// What a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SessionWork {
    Shell,
    /// The command as the client sent it; bytes that are no text are replaced.
    Exec(String),
    Sftp,
}

impl NodeAdapter {
    /// A session of a user on this node.
    pub(crate) fn session_ref(&self, sid: SessionId, user: &UserName, login: &Login) -> SessionRef {
        SessionRef {
            sid,
            user: Text::new(user.as_str()),
            login: login.clone(),
            server_id: self.config.host_id,
            server_hostname: Text::new(self.config.node.as_str()),
        }
    }

    /// Writes events, all of them or none is believed written.
    pub(crate) async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        try_join_all(events.into_iter().map(|event| self.config.audit.record(event))).await.map(|_| ())
    }
}

impl ConnectionFacts {
    /// Where the client connected from, as text.
    pub(crate) fn client_text(&self) -> Option<Text> {
        self.client.map(|address| Text::new(address.to_string()))
    }
}

impl NodeConnection {
    /// Writes an event that nothing waits for.
    pub(crate) fn note(&self, core: &mut Core<Done>, event: Event) {
        let node = self.node.clone();
        core.start_lasting(async move {
            note(node, event).await;
            Done::Noted
        });
    }

    /// Writes that something on this connection was refused. A client that goes on asking is disconnected, so that
    /// refusals do not fill the journal.
    pub(crate) fn note_refused(&mut self, core: &mut Core<Done>, event: Event) {
        self.note(core, event);
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= REFUSALS_MAX {
            let text = "too many requests were refused on this connection".to_owned();
            core.end(DisconnectReason::ByApplication, text);
        }
    }

    /// Writes that somebody did not get the stream of this connection. Not the user's doing: it goes on, and what more
    /// of that there is goes unwritten, so that nobody fills the journal.
    pub(crate) fn note_takeover_refused(&mut self, core: &mut Core<Done>, event: Event) {
        self.takeovers_refused = self.takeovers_refused.saturating_add(1);
        if self.takeovers_refused <= TAKEOVERS_NOTED_MAX {
            self.note(core, event);
        }
    }

    /// A session of the user who is logged in.
    pub(crate) fn session_ref(&self, sid: SessionId) -> Option<SessionRef> {
        match &self.stage {
            Stage::Admitted(user) => Some(self.node.session_ref(sid, &user.principal.name, &user.login)),
            Stage::Unauthenticated | Stage::Admitting(_) => None,
        }
    }

    /// What is written before a session begins.
    pub(crate) fn start_events(&self, sid: SessionId, work: &SessionWork, interactive: bool) -> Vec<Event> {
        let Some(session) = self.session_ref(sid) else { return Vec::new() };
        let revision = self.view().map(|view| view.revision().to_string()).unwrap_or_default();
        let start = Event::SessionStart {
            session: session.clone(),
            interactive,
            client_addr: self.facts.client_text(),
            policy_revision: Text::new(revision),
        };
        let what = work_event(session, work, Outcome::Success);
        [Some(start), what].into_iter().flatten().collect()
    }

    /// Notes that what a session should be was refused.
    pub(crate) fn note_work_refused(
        &mut self,
        core: &mut Core<Done>,
        sid: SessionId,
        work: &SessionWork,
        reason: &str,
    ) {
        let outcome = Outcome::Failure { error: Text::new(reason) };
        let event = self.session_ref(sid).and_then(|session| work_event(session, work, outcome));
        match event {
            Some(event) => self.note_refused(core, event),
            None => self.note_session_refused(core, reason),
        }
    }

    /// Notes that a session was refused.
    pub(crate) fn note_session_refused(&mut self, core: &mut Core<Done>, reason: &str) {
        if let Stage::Admitted(user) = &self.stage {
            let event = Event::SessionRejected {
                user: Text::new(user.principal.name.as_str()),
                login: Text::new(user.login.as_str()),
                server_id: self.node.config.host_id,
                server_hostname: Text::new(self.node.config.node.as_str()),
                reason: Text::new(reason),
                client_addr: self.facts.client_text(),
            };
            self.note_refused(core, event);
        }
    }
}

/// Writes an event that nothing waits for.
pub(crate) async fn note(node: Arc<NodeAdapter>, event: Event) {
    if let Err(error) = node.config.audit.record(event).await {
        tracing::error!(%error, "an event was not written to the audit log");
    }
}

/// How long something took that ends now.
pub(crate) fn duration_ms(core: &Core<Done>, since: Mono) -> u64 {
    u64::try_from(core.clock.mono().since(since).as_millis()).unwrap_or(u64::MAX)
}

/// What went through a channel, for the audit log.
pub(crate) fn traffic(through: Traffic) -> wayleave_audit::Traffic {
    let Traffic { received_bytes, sent_bytes } = through;
    wayleave_audit::Traffic { bytes_received: received_bytes, bytes_sent: sent_bytes }
}

/// What was done over SFTP in a session.
pub(crate) fn sftp_summary(session: SessionRef, report: SftpReport) -> Event {
    let SftpReport { counts, actions, actions_omitted } = report;
    let totals = SftpTotals {
        files_read: counts.files_read,
        files_written: counts.files_written,
        bytes_read: counts.bytes_read,
        bytes_written: counts.bytes_written,
        removed: counts.removed,
        other_changes: counts.other_changes,
        failures: counts.failures,
    };
    let text = |path: &[u8]| Text::new(String::from_utf8_lossy(path));
    let actions = actions.iter().map(|action| SftpAction {
        action: sftp_action_kind(action.kind),
        path: text(&action.path),
        target: (!action.target.is_empty()).then(|| text(&action.target)),
    });
    Event::SftpSummary { session, totals, actions: actions.collect(), actions_omitted }
}

fn sftp_action_kind(kind: wayleave_os::SftpActionKind) -> SftpActionKind {
    use wayleave_os::SftpActionKind as Done;
    match kind {
        Done::Read => SftpActionKind::Read,
        Done::Write => SftpActionKind::Write,
        Done::Remove => SftpActionKind::Remove,
        Done::Rename => SftpActionKind::Rename,
        Done::MakeDirectory => SftpActionKind::MakeDirectory,
        Done::RemoveDirectory => SftpActionKind::RemoveDirectory,
        Done::Link => SftpActionKind::Link,
        Done::Change => SftpActionKind::Change,
    }
}

/// A failure in the audit log.
pub(crate) fn failure(reason: &str) -> Outcome {
    Outcome::Failure { error: Text::new(reason) }
}

/// A shell has no event beside the session's.
fn work_event(session: SessionRef, work: &SessionWork, outcome: Outcome) -> Option<Event> {
    match work {
        SessionWork::Shell => None,
        SessionWork::Exec(command) => {
            Some(Event::Exec { session, command: Text::new(command.as_str()), exit_code: None, outcome })
        }
        SessionWork::Sftp => Some(Event::Subsystem { session, name: Text::new("sftp"), outcome }),
    }
}
