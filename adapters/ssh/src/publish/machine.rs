//! A machine that was published: it is dialled like a node, and this proxy is its agent.

use super::authority::Published;
use super::visitor::{Arrival, Service, Visitor};
use super::{AUTH_TIMEOUT, CHANNELS_MAX, HANDSHAKE_TIMEOUT, PublishListener, UNAUTHENTICATED_MAX};
use crate::driver::{self, Core};
use crate::limits::UserSlots;
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::Instrument;
use wayleave_dial::{DialRequest, DialTarget};
use wayleave_net::{Adapter, BoxStream, Inbound};
use wayleave_runtime::Shutdown;
use wayleave_ssh::{Credential, KeyPair, Limits, LoginProofs, PublicKey, ServerConfig, Timing};
use wayleave_vocab::{HostId, Labels, NodeName};

/// How long the machine may take to connect to its own port.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// A published machine.
pub(super) struct Machine {
    pub(super) entry: Arc<PublishListener>,
    pub(super) host_id: HostId,
    pub(super) name: NodeName,
    pub(super) offer: watch::Receiver<Offer>,
    pub(super) slots: UserSlots,
    wanted: mpsc::Sender<Wanted>,
    unauthenticated: Arc<Semaphore>,
}

/// What a machine offers, as it stands.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) labels: Labels,
    pub(super) tcp_ports: BTreeSet<u16>,
    /// The host key of its sshd, where it has SSH to enter.
    pub(super) target_key: Option<PublicKey>,
    /// What users are shown.
    identity: Credential,
}

impl Offer {
    /// What was published; none if the certificate is over another key than the one that is shown.
    pub(super) fn new(
        published: &Published,
        ports: &BTreeSet<u16>,
        target_key: Option<PublicKey>,
        shown: &Arc<KeyPair>,
    ) -> Option<Self> {
        let target_key = target_key.filter(|_| !published.tcp_only);
        let is_tcp = |port: &u16| target_key.is_none() || *port != super::publisher::SSH_PORT;
        Some(Self {
            labels: published.labels.clone(),
            tcp_ports: ports.iter().copied().filter(is_tcp).collect(),
            identity: Credential::certified(shown.clone(), published.host_certificate.clone())?,
            target_key,
        })
    }
}

/// Somebody wants a connection to a port of the machine.
pub(super) struct Wanted {
    pub(super) name: NodeName,
    pub(super) port: u16,
    pub(super) client: Option<SocketAddr>,
    pub(super) answer: oneshot::Sender<Result<BoxStream, String>>,
}

impl Machine {
    pub(super) fn new(
        entry: Arc<PublishListener>,
        host_id: HostId,
        name: NodeName,
        offer: watch::Receiver<Offer>,
        wanted: mpsc::Sender<Wanted>,
    ) -> Self {
        let unauthenticated = Arc::new(Semaphore::new(UNAUTHENTICATED_MAX));
        Self { entry, host_id, name, offer, slots: UserSlots::default(), wanted, unauthenticated }
    }

    /// Connects to a port through the machine's own connection.
    pub(super) async fn connect(&self, port: u16, client: Option<SocketAddr>) -> Result<BoxStream, String> {
        let (answer, answered) = oneshot::channel();
        let gone = || format!("{} is gone", self.name);
        let wanted = Wanted { name: self.name.clone(), port, client, answer };
        self.wanted.try_send(wanted).map_err(|_| gone())?;
        match tokio::time::timeout(CONNECT_TIMEOUT, answered).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(format!("{} did not connect to its port {port} in time", self.name)),
        }
    }

    async fn serve_stream(self: Arc<Self>, inbound: Inbound, shutdown: Shutdown) {
        let Ok(slot) = self.unauthenticated.clone().try_acquire_owned() else {
            tracing::warn!("too many SSH connections that have not authenticated");
            return;
        };
        let (service, cookie, challenge) = match &inbound.request.target {
            DialTarget::App { .. } => (Service::App, None, Vec::new()),
            DialTarget::Ssh { .. } => match self.entry.config.authority.begin_login(self.host_id).await {
                Ok(given) => (Service::Ssh, Some(given.cookie), given.challenge),
                Err(error) => {
                    tracing::warn!(%error, machine = %self.name, "nobody can enter a machine now");
                    return;
                }
            },
        };
        let mut server = ServerConfig::new(vec![self.offer.borrow().identity.clone()]);
        server.proofs = LoginProofs::Kept { cookie };
        server.timing =
            Timing { handshake_max: HANDSHAKE_TIMEOUT, auth_max: AUTH_TIMEOUT, ..Timing::default() };
        server.limits = Limits { channels_max: CHANNELS_MAX, ..Limits::default() };
        let arrival = Arrival { service, challenge, client: inbound.request.client_address };
        let mut core = Core::server(&server, self.entry.config.clock.clone());
        let visitor = Visitor::new(self, arrival, slot, &shutdown, &mut core);
        driver::run(inbound.stream, core, visitor).await;
    }
}

impl Adapter for Machine {
    fn serves(&self, request: &DialRequest) -> bool {
        let offer = self.offer.borrow();
        request.host_id.is_none_or(|id| id == self.host_id)
            && match &request.target {
                DialTarget::Ssh { .. } => offer.target_key.is_some(),
                DialTarget::App { .. } => !offer.tcp_ports.is_empty(),
            }
    }

    fn serve(self: Arc<Self>, inbound: Inbound, shutdown: Shutdown) -> BoxFuture<'static, ()> {
        let span = tracing::debug_span!("published", trace_id = %inbound.request.trace_id);
        Box::pin(self.serve_stream(inbound, shutdown).instrument(span))
    }
}
