//! The proxy's entry for machines without an agent: they publish themselves by a stock `ssh -R`, and the proxy serves
//! them in the place of their agents.
//!
//! `publisher` is the connection of a machine; it may do nothing but forward ports. `machine` is what it published, and
//! takes the streams that proxies open to it. `visitor` is the connection of a user to such a machine: it ends here.
//! `target` is the connection to the machine's own sshd, `relay` joins the two channel by channel, `probe` looks which
//! host key the sshd has. `authority` is what Auth is asked for.

mod authority;
mod events;
mod machine;
mod probe;
mod publisher;
mod relay;
mod sessions;
mod target;
mod visitor;

pub use authority::{Challenge, PublicationAuthority, PublicationError, PublishWish, Published, SignWish};

use crate::audit::AuditSink;
use crate::driver::{self, Core};
use crate::policy_view::PolicySource;
use futures::future::BoxFuture;
use publisher::PublisherConnection;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wayleave_net::{BoxStream, Hosting, Known, PublishEntry};
use wayleave_runtime::{Clock, Shutdown};
use wayleave_ssh::{Credential, Limits, LoginProofs, ServerConfig, Timing};
use wayleave_vocab::HostId;

/// Connections of users to one machine at a time that have not proved a user.
const UNAUTHENTICATED_MAX: usize = 512;
/// Version exchange and key exchange.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Authentication, which for a user includes entering the machine.
const AUTH_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence after which a machine is asked whether it is there, and how often before it is given up.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVES_UNANSWERED_MAX: u32 = 3;
/// Connections to the ports of one machine's connection.
const FORWARDS_MAX: usize = 1024;
/// Channels at a time on one user's connection.
const CHANNELS_MAX: usize = 128;

/// Configuration and surroundings of the entry.
pub struct PublishConfig {
    /// The proxy's id.
    pub host_id: HostId,
    /// What is decided by.
    pub policy: Arc<dyn PolicySource>,
    /// The proxy's host key with its certificate; `None` before there is one: nobody is served then.
    pub identity: watch::Receiver<Option<Credential>>,
    /// The Auth Service.
    pub authority: Arc<dyn PublicationAuthority>,
    /// Where events go.
    pub audit: Arc<dyn AuditSink>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// How long connections may go on after shutdown was requested.
    pub drain_grace: Duration,
}

/// The entry.
pub struct PublishListener {
    config: PublishConfig,
}

impl PublishListener {
    /// Builds it; nothing runs yet.
    pub fn new(config: PublishConfig) -> Self {
        Self { config }
    }

    fn server_config(&self) -> Option<ServerConfig> {
        let identity = self.config.identity.borrow().clone()?;
        let mut server = ServerConfig::new(vec![identity]);
        server.proofs = LoginProofs::Kept { cookie: None };
        server.timing = Timing {
            handshake_max: HANDSHAKE_TIMEOUT,
            auth_max: AUTH_TIMEOUT,
            keepalive: Some(KEEPALIVE),
            keepalive_unanswered_max: KEEPALIVES_UNANSWERED_MAX,
            ..Timing::default()
        };
        server.limits = Limits { channels_max: FORWARDS_MAX, ..Limits::default() };
        Some(server)
    }
}

impl PublishEntry for PublishListener {
    fn serve(
        self: Arc<Self>,
        stream: BoxStream,
        client: SocketAddr,
        known: Known,
        hosting: Arc<dyn Hosting>,
        shutdown: Shutdown,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Some(server) = self.server_config() else {
                tracing::warn!("a machine connected before there is a host certificate");
                return;
            };
            let mut core = Core::server(&server, self.config.clock.clone());
            let application = PublisherConnection::new(self, client, hosting, known, &shutdown, &mut core);
            driver::run(stream, core, application).await;
        })
    }
}
