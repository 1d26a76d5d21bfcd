//! `-A`: programs of the user reach the client's agent through a socket that only they can open.
//!
//! A connection has one socket, made when the first session asks for it.

use super::NodeAdapter;
use super::admission::Refused;
use super::connection::{Done, NodeConnection, Stage, Unconfirmed};
use super::forwarding_remote::StopOnDrop;
use super::sessions::{Preparation, SessionStage, answer};
use crate::driver::Core;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use wayleave_audit::{Event, Outcome, Text};
use wayleave_os::{Account, SpawnError, UserListener};
use wayleave_policy::Permit;
use wayleave_runtime::Shutdown;
use wayleave_ssh::{ChannelId, ChannelOpen, ReplyToken};

/// Pause after a failed accept, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The agent's socket of a connection.
#[derive(Default)]
pub(crate) enum AgentForwarding {
    /// Nobody asked, or it could not be made.
    #[default]
    Off,
    /// Being made; these sessions wait for it.
    Starting(Vec<(ChannelId, Option<ReplyToken>)>),
    /// There, until this is dropped.
    On { path: PathBuf, _stop: StopOnDrop },
}

/// The socket, and what ends it.
pub(crate) struct AgentListener {
    listener: UserListener,
    stop: Shutdown,
}

impl NodeConnection {
    /// A session asks for the client's agent.
    pub(crate) fn prepare_agent(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        reply: Option<ReplyToken>,
    ) {
        let permit = match self.may_forward_agent(core) {
            Ok(permit) => permit,
            Err(refused) => {
                self.note_agent_or_x11(core, channel, "agent", &refused.reason);
                return answer(core, reply, false);
            }
        };
        let Some(session) = self.sessions.get_mut(&channel) else { return answer(core, reply, false) };
        let SessionStage::Preparing(preparation) = &mut session.stage else {
            return answer(core, reply, false);
        };
        if let AgentForwarding::On { path, .. } = &self.agent {
            preparation.agent_socket = Some(path.clone());
            return answer(core, reply, true);
        }
        session.stage = SessionStage::AwaitingAgent(std::mem::take(preparation));
        match &mut self.agent {
            AgentForwarding::Starting(waiting) => waiting.push((channel, reply)),
            AgentForwarding::Off | AgentForwarding::On { .. } => {
                self.agent = AgentForwarding::Starting(vec![(channel, reply)]);
                self.start_agent(core, permit);
            }
        }
    }

    fn may_forward_agent(&self, core: &Core<Done>) -> Result<Permit, Refused> {
        if !self.node.config.switches.forward_agent {
            return Err(Refused::plain("agent forwarding is off in the agent's configuration"));
        }
        if !matches!(&self.stage, Stage::Admitted(user) if user.permissions.agent_forwarding) {
            return Err(Refused::plain("the certificate does not permit agent forwarding"));
        }
        let permit = self.permit(core.clock.wall())?;
        if !permit.options().forward_agent {
            return Err(Refused::plain("no role allows agent forwarding"));
        }
        Ok(permit)
    }

    fn start_agent(&self, core: &mut Core<Done>, permit: Permit) {
        let Stage::Admitted(user) = &self.stage else { return };
        let event = self.session_ref(self.id).map(|session| Event::Forward {
            session,
            what: Text::new("agent"),
            outcome: Outcome::Success,
        });
        let event = event.into_iter().collect();
        let (node, account) = (self.node.clone(), user.account.clone());
        core.start(async move { Done::AgentListening(listen(permit, node, event, account).await) });
    }

    /// The socket is there, or why not: the sessions that waited go on.
    pub(crate) fn on_agent_listening(
        &mut self,
        core: &mut Core<Done>,
        listening: Result<UserListener, SpawnError>,
    ) {
        let (now, path) = match listening {
            // The policy may have changed while the socket was made.
            Ok(_) if self.may_forward_agent(core).is_err() => (AgentForwarding::Off, None),
            Ok(listener) => {
                let (path, stop) = (listener.path().to_owned(), Shutdown::new());
                core.start(accept(AgentListener { listener, stop: stop.clone() }));
                (AgentForwarding::On { path: path.clone(), _stop: StopOnDrop(stop) }, Some(path))
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a socket for agent forwarding was not made");
                (AgentForwarding::Off, None)
            }
        };
        let AgentForwarding::Starting(waiting) = std::mem::replace(&mut self.agent, now) else { return };
        for (channel, reply) in waiting {
            if let Some(session) = self.sessions.get_mut(&channel)
                && let SessionStage::AwaitingAgent(preparation) = &mut session.stage
            {
                let preparation = std::mem::take(preparation);
                session.stage =
                    SessionStage::Preparing(Preparation { agent_socket: path.clone(), ..preparation });
            }
            answer(core, reply, path.is_some());
            self.resume_requests(core, channel);
        }
    }

    /// A program of the user wants the agent: the client is asked for it, if the user may still forward it.
    pub(crate) fn on_agent_wanted(
        &mut self,
        core: &mut Core<Done>,
        wanted: AgentListener,
        stream: UnixStream,
    ) {
        if wanted.stop.is_requested() {
            return;
        }
        core.start(accept(wanted));
        if let Err(refused) = self.may_forward_agent(core) {
            tracing::debug!(reason = refused.reason, "a connection to the agent was refused");
            return;
        }
        match core.connection.open(&ChannelOpen::AuthAgent) {
            Ok(channel) => {
                let unconfirmed = Unconfirmed { stream: Box::new(stream), listener: None };
                self.unconfirmed.insert(channel, unconfirmed);
            }
            Err(error) => tracing::debug!(%error, "a connection to the agent was dropped"),
        }
    }
}

async fn listen(
    permit: Permit,
    node: Arc<NodeAdapter>,
    event: Vec<Event>,
    account: Account,
) -> Result<UserListener, SpawnError> {
    let recorded = node.record(event).await;
    recorded.map_err(|error| SpawnError::Broken { reason: error.to_string() })?;
    tracing::debug!(user = %permit.user(), "an agent is forwarded");
    node.config.launcher.listen_for_agent(account).await
}

async fn accept(socket: AgentListener) -> Done {
    loop {
        match socket.stop.until(socket.listener.accept()).await {
            None => return Done::Noted,
            Some(Ok(stream)) => return Done::AgentWanted(socket, stream),
            Some(Err(error)) => {
                tracing::debug!(%error, "a connection to the agent was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
