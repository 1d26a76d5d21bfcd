//! The agent's SSH Service: users enter this machine.
//!
//! `connection` is the application on a connection; it hands each concern to its module: `admission` (who
//! comes in), `sessions` and `request` (shells, commands, file transfer), `forwarding_local` (`-L`),
//! `forwarding_remote` (`-R`), `agent_forwarding` (`-A`), `resumption` (the stream was lost, or is back), `events` and
//! `forwarded` (what is audited).

mod address_policy;
mod admission;
mod agent_forwarding;
mod connection;
mod events;
mod file_copy;
mod forwarded;
mod forwarding_local;
mod forwarding_remote;
mod process;
mod request;
mod resumption;
mod sessions;

pub(crate) use address_policy::refusal as refused_address;
pub(crate) use file_copy::copies_files;

use crate::audit::AuditSink;
use crate::driver::{self, Core};
use crate::limits::{Keepalive, UserSlots};
use crate::policy_view::PolicySource;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tracing::Instrument;
use wayleave_dial::{DialRequest, DialTarget};
use wayleave_identity::UserPrincipal;
use wayleave_net::{Adapter, Inbound};
use wayleave_os::Launcher;
use wayleave_policy::Settings;
use wayleave_runtime::{Clock, Shutdown};
use wayleave_ssh::{Credential, Limits, ServerConfig};
use wayleave_vocab::{HostId, Labels, NodeName};

/// Connections at a time that have not proved a user.
const UNAUTHENTICATED_MAX: usize = 512;
/// Version exchange and key exchange.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Authentication: a person may have to touch a key.
const AUTH_TIMEOUT: Duration = Duration::from_secs(30);
/// Channels at a time on one connection.
const CHANNELS_MAX: usize = 128;

/// What the agent's own configuration allows. It can forbid what roles allow, never the reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalSwitches {
    /// `-L`, `-D` and `-R`.
    pub port_forwarding: bool,
    /// SFTP and scp.
    pub ssh_file_copy: bool,
    /// `-A`.
    pub forward_agent: bool,
}

impl Default for LocalSwitches {
    fn default() -> Self {
        Self { port_forwarding: true, ssh_file_copy: true, forward_agent: true }
    }
}

/// Configuration and surroundings of an agent's SSH Service.
pub struct NodeConfig {
    /// The id that Auth assigned.
    pub host_id: HostId,
    /// What people call this machine.
    pub node: NodeName,
    /// Static labels and those of commands, now and later.
    pub labels: watch::Receiver<Labels>,
    /// What is decided by.
    pub policy: Arc<dyn PolicySource>,
    /// The host key with its certificate, now and later; `None` before there is one: nobody is served then.
    pub identity: watch::Receiver<Option<Credential>>,
    /// Where events go.
    pub audit: Arc<dyn AuditSink>,
    /// What this machine forbids.
    pub switches: LocalSwitches,
    /// Starts users' processes.
    pub launcher: Launcher,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// How long sessions may go on after shutdown was requested.
    pub drain_grace: Duration,
}

/// The agent's SSH Service.
pub struct NodeAdapter {
    config: NodeConfig,
    unauthenticated: Arc<Semaphore>,
    slots: UserSlots,
}

/// What the dial request says of a connection. It traces; it proves nothing.
#[derive(Debug, Clone, Copy)]
struct ConnectionFacts {
    client: Option<SocketAddr>,
}

impl NodeAdapter {
    /// Builds it; nothing runs yet.
    pub fn new(config: NodeConfig) -> Self {
        Self {
            config,
            unauthenticated: Arc::new(Semaphore::new(UNAUTHENTICATED_MAX)),
            slots: UserSlots::default(),
        }
    }

    fn server_config(&self) -> Option<ServerConfig> {
        let identity = self.config.identity.borrow().clone()?;
        let mut server = ServerConfig::new(vec![identity]);
        // Nobody is let in before there is a policy; then its own numbers count.
        let keepalive = self.config.policy.views().borrow().as_ref().map(|view| view.keepalive());
        let keepalive = keepalive.unwrap_or_else(|| Keepalive::of(&Settings::default()));
        server.timing = keepalive.timing(HANDSHAKE_TIMEOUT, AUTH_TIMEOUT);
        server.limits = Limits { channels_max: CHANNELS_MAX, ..Limits::default() };
        Some(server)
    }

    async fn serve_stream(self: Arc<Self>, inbound: Inbound, shutdown: Shutdown) {
        let Some(mut server) = self.server_config() else {
            tracing::warn!("an SSH connection came before there is a host certificate");
            return;
        };
        let Ok(slot) = self.unauthenticated.clone().try_acquire_owned() else {
            tracing::warn!("too many SSH connections that have not authenticated");
            return;
        };
        let facts = ConnectionFacts { client: inbound.request.client_address };
        if inbound.resumption.is_some() {
            // The stream sees to its own life, and may wait for longer than SSH would.
            server.timing.keepalive = None;
        }
        let mut core = Core::server(&server, self.config.clock.clone());
        if let Some(events) = inbound.resumption {
            core.start(resumption::next(events));
        }
        let application = connection::NodeConnection::new(self, facts, slot, &shutdown, &mut core);
        driver::run(inbound.stream, core, application).await;
    }
}

impl Adapter for NodeAdapter {
    fn serves(&self, request: &DialRequest) -> bool {
        match &request.target {
            // The proxy has resolved the name to this host; what it says of the user counts for nothing.
            DialTarget::Ssh { .. } => request.host_id.is_none_or(|id| id == self.config.host_id),
            DialTarget::App { .. } => false,
        }
    }

    fn max_detached(&self, user: &UserPrincipal) -> Result<Duration, String> {
        self.max_detached_of(user)
    }

    fn serve(self: Arc<Self>, inbound: Inbound, shutdown: Shutdown) -> BoxFuture<'static, ()> {
        let span = tracing::debug_span!("ssh", trace_id = %inbound.request.trace_id);
        Box::pin(self.serve_stream(inbound, shutdown).instrument(span))
    }
}
