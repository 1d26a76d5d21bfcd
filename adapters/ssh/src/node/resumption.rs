//! The stream under a connection was lost and waits, its client came back, or nobody did.
//!
//! The connection itself goes on all the time: locks, roles and expiry end it while it waits as they do otherwise.

use super::NodeAdapter;
use super::connection::{Done, NodeConnection, Stage};
use super::events;
use crate::driver::Core;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use wayleave_audit::{Event, Outcome, ResumptionAction, Text};
use wayleave_identity::UserPrincipal;
use wayleave_net::ResumptionEvent;
use wayleave_policy::Context;
use wayleave_ssh::DisconnectReason;
use wayleave_vocab::UserName;

impl NodeAdapter {
    /// How long a stream of the user waits, by the policy of the moment.
    pub(super) fn max_detached_of(&self, user: &UserPrincipal) -> Result<Duration, String> {
        let view = self.config.policy.views().borrow().clone();
        let view = view.ok_or("this node has no policy yet; try again")?;
        let now = self.config.clock.wall();
        let context = Context { locks: view.locks(), locks_age: self.config.policy.locks_age(now) };
        view.policy().max_detached(user, &context, now).map_err(|denial| denial.user_text())
    }
}

/// The next event, and where the others come from.
pub(crate) async fn next(mut events: Receiver<ResumptionEvent>) -> Done {
    match events.recv().await {
        Some(event) => Done::Resumption(event, events),
        None => std::future::pending().await,
    }
}

impl NodeConnection {
    pub(crate) fn on_resumption(
        &mut self,
        core: &mut Core<Done>,
        event: ResumptionEvent,
        events: Receiver<ResumptionEvent>,
    ) {
        core.start(next(events));
        match event {
            ResumptionEvent::Detached => {
                tracing::info!("the connection under an SSH connection was lost; it waits for its client");
                let event = self.resumption(ResumptionAction::Detached, None, None, Outcome::Success);
                self.note(core, event);
            }
            ResumptionEvent::Reattach { user, client_address, answer } => {
                self.on_reattach(core, &user, client_address, answer);
            }
            ResumptionEvent::Refused { user, client_address, reason } => {
                let outcome = events::failure(&reason);
                let event =
                    self.resumption(ResumptionAction::Resumed, user.as_ref(), client_address, outcome);
                self.note_takeover_refused(core, event);
            }
            ResumptionEvent::Expired { answer } => self.on_expired(core, answer),
        }
    }

    /// A client that proved to be the stream's is back: it is judged as if it came for the first time.
    fn on_reattach(
        &mut self,
        core: &mut Core<Done>,
        user: &UserPrincipal,
        client_address: Option<SocketAddr>,
        answer: oneshot::Sender<Result<(), String>>,
    ) {
        let decision = self.may_resume(user, core.clock.wall());
        let outcome = match &decision {
            Ok(()) => Outcome::Success,
            Err(refused) => events::failure(&refused.reason),
        };
        let event = self.resumption(ResumptionAction::Resumed, Some(&user.name), client_address, outcome);
        if decision.is_ok() {
            tracing::info!("the client of an SSH connection is back");
        }
        let node = self.node.clone();
        core.start_lasting(async move {
            let noted = node.record(vec![event]).await.map_err(|error| error.to_string());
            let said = match (decision, noted) {
                (Err(refused), _) => Err(refused.text),
                (Ok(()), Err(_)) => Err("this node cannot write its audit log".to_owned()),
                (Ok(()), Ok(())) => Ok(()),
            };
            // Whoever asked may have gone.
            let _ = answer.send(said);
            Done::Noted
        });
    }

    fn on_expired(&mut self, core: &mut Core<Done>, answer: oneshot::Sender<()>) {
        tracing::info!("nobody came back for an SSH connection in time");
        let event = self.resumption(ResumptionAction::Expired, None, None, Outcome::Success);
        let node = self.node.clone();
        core.start_lasting(async move {
            events::note(node, event).await;
            // Whoever asked may have gone.
            let _ = answer.send(());
            Done::Noted
        });
        let text = "the connection was lost, and nobody came back in time".to_owned();
        core.end(DisconnectReason::ConnectionLost, text);
    }

    fn resumption(
        &self,
        action: ResumptionAction,
        by: Option<&UserName>,
        client: Option<SocketAddr>,
        outcome: Outcome,
    ) -> Event {
        let own = match &self.stage {
            Stage::Admitted(user) => Some(&user.principal.name),
            Stage::Unauthenticated | Stage::Admitting(_) => None,
        };
        let config = &self.node.config;
        Event::Resumption {
            user: Text::new(by.or(own).map_or("", UserName::as_str)),
            sid: self.id,
            server_id: config.host_id,
            server_hostname: Text::new(config.node.as_str()),
            action,
            client_addr: client
                .map(|address| Text::new(address.to_string()))
                .or_else(|| self.facts.client_text()),
            outcome,
        }
    }
}
