//! The proxy's SSH entry for plain `ssh -J`: it joins channels to the streams of nodes and opens nothing else.
//!
//! A user certificate of the cluster is enough to ask; the name that the client gives is not looked at, since
//! stock `ssh -J proxy node` sends the local user's. Whether the user may enter the node is decided by the
//! agent, where the SSH inside ends. The strict locking of stale policy is the agent's, too.

mod connection;
mod target;

use crate::audit::AuditSink;
use crate::driver::{self, Core};
use crate::limits::Keepalive;
use crate::policy_view::PolicySource;
use connection::JumpConnection;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wayleave_net::{BoxStream, Dialer, Entry, Known};
use wayleave_policy::Settings;
use wayleave_runtime::{Clock, Shutdown};
use wayleave_ssh::{Credential, Limits, ServerConfig};
use wayleave_vocab::HostId;

/// Version exchange and key exchange.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Authentication: a person may have to touch a key.
const AUTH_TIMEOUT: Duration = Duration::from_secs(30);
/// Channels at a time on one connection.
const CHANNELS_MAX: usize = 64;
/// Channels of one connection that are being dialled.
const DIALS_MAX: usize = 8;

/// Configuration and surroundings of a proxy's SSH entry.
pub struct JumpConfig {
    /// The proxy's id.
    pub host_id: HostId,
    /// What certificates are judged by.
    pub policy: Arc<dyn PolicySource>,
    /// The host key with its certificate, now and later; `None` before there is one: nobody is served then.
    pub identity: watch::Receiver<Option<Credential>>,
    /// Where events go.
    pub audit: Arc<dyn AuditSink>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// How long connections may go on after shutdown was requested.
    pub drain_grace: Duration,
}

/// The proxy's SSH entry.
pub struct JumpEntry {
    config: JumpConfig,
}

impl JumpEntry {
    /// Builds it; nothing runs yet.
    pub fn new(config: JumpConfig) -> Self {
        Self { config }
    }

    fn server_config(&self) -> Option<ServerConfig> {
        let identity = self.config.identity.borrow().clone()?;
        let mut server = ServerConfig::new(vec![identity]);
        // Nobody is let in before there is a policy; then its own numbers count.
        let keepalive = self.config.policy.views().borrow().as_ref().map(|view| view.keepalive());
        let keepalive = keepalive.unwrap_or_else(|| Keepalive::of(&Settings::default()));
        server.timing = keepalive.timing(HANDSHAKE_TIMEOUT, AUTH_TIMEOUT);
        server.limits =
            Limits { channels_max: CHANNELS_MAX, opens_pending_max: DIALS_MAX, ..Limits::default() };
        Some(server)
    }
}

impl Entry for JumpEntry {
    fn serve(
        self: Arc<Self>,
        stream: BoxStream,
        client: SocketAddr,
        known: Known,
        dialer: Arc<dyn Dialer>,
        shutdown: Shutdown,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Some(server) = self.server_config() else {
                tracing::warn!("an SSH connection came before there is a host certificate");
                return;
            };
            let mut core = Core::server(&server, self.config.clock.clone());
            let application = JumpConnection::new(self, client, dialer, known, &shutdown, &mut core);
            driver::run(stream, core, application).await;
        })
    }
}
