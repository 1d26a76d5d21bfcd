//! The agent as a whole: tunnels, registration, adapters.

use crate::config::AgentConfig;
use crate::metrics::{self, AgentMetrics};
use crate::{proxy_list, registration, tunnels};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wayleave_api::auth::cluster_event::Event;
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::auth::{PolicyDelta, PolicySnapshot, SignedHead, WatchClusterRequest};
use wayleave_keystore::PolicyKeeperError;
use wayleave_net::Adapter;
use wayleave_resumable::{Budget, Resumptions, ResumptionsConfig};
use wayleave_runtime::{Clock, Shutdown, SystemClock, TaskGroup};
use wayleave_telemetry::{Diagnostics, Registry, Tracer};
use wayleave_tunnel::{Connected, PROXIES_MAX, ProxyList};

/// Longest event: a policy of 64 MiB, its head, and their envelope.
const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024 + 64 * 1024;
/// How long tasks may take to end once they are asked to.
pub(crate) const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What the parts of the agent share.
pub(crate) struct Shared {
    pub(crate) config: AgentConfig,
    pub(crate) adapters: Vec<Arc<dyn Adapter>>,
    pub(crate) clock: SystemClock,
    pub(crate) tasks: TaskGroup,
    /// Streams outlive the tunnels' own tasks during a drain.
    pub(crate) streams: TaskGroup,
    pub(crate) stream_shutdown: Shutdown,
    pub(crate) connected: watch::Sender<Vec<Connected>>,
    pub(crate) metrics: AgentMetrics,
    pub(crate) tracer: Tracer,
    /// Streams that outlive the tunnels that carry them.
    pub(crate) resumptions: Arc<Resumptions>,
    /// Where proxies answer, as the cluster says.
    pub(crate) known_proxies: watch::Sender<Vec<String>>,
}

/// An agent that is built and does nothing yet.
pub struct AgentService {
    shared: Shared,
    resources: watch::Receiver<Vec<String>>,
}

/// How the agent is doing.
#[derive(Clone)]
pub struct AgentStatus(watch::Receiver<Vec<Connected>>);

impl AgentStatus {
    /// To how many proxies tunnels are up.
    pub fn tunnels(&self) -> usize {
        self.0.borrow().len()
    }

    /// Waits for the number to change.
    pub async fn changed(&mut self) {
        let _ = self.0.changed().await;
    }
}

impl AgentService {
    /// Joins the parts. `resources` is what the agent serves (stored form, JSON), now and later.
    pub fn build(
        config: AgentConfig,
        adapters: Vec<Arc<dyn Adapter>>,
        resources: watch::Receiver<Vec<String>>,
    ) -> Self {
        let known_proxies = watch::Sender::new(Vec::new());
        let resumptions = Resumptions::new(ResumptionsConfig {
            credentials: config.tls.clone(),
            trust: config.trust.clone(),
            clock: Arc::new(SystemClock::new()),
            budget: Budget::default(),
            proxies: known_proxies.subscribe(),
        });
        let shared = Shared {
            config,
            adapters,
            clock: SystemClock::new(),
            tasks: TaskGroup::new(),
            streams: TaskGroup::new(),
            stream_shutdown: Shutdown::new(),
            connected: watch::Sender::new(Vec::new()),
            metrics: AgentMetrics::new(&Registry::default()),
            tracer: Tracer::off(),
            resumptions,
            known_proxies,
        };
        Self { shared, resources }
    }

    /// Shows numbers and findings where the process shows its own.
    #[must_use]
    pub fn diagnostics(mut self, diagnostics: &Diagnostics) -> Self {
        self.shared.metrics = AgentMetrics::new(&diagnostics.metrics);
        self.shared.tracer = diagnostics.tracer.clone();
        metrics::register(diagnostics, self.status());
        self
    }

    /// How the agent is doing, from now on.
    pub fn status(&self) -> AgentStatus {
        AgentStatus(self.shared.connected.subscribe())
    }

    /// Runs until shutdown, then drains.
    pub async fn run(self, shutdown: Shutdown) {
        let shared = Arc::new(self.shared);
        let registering = registration::run(shared.clone(), self.resources, shutdown.clone());
        let tunnelling = tunnels::run(shared.clone(), shutdown);
        tokio::join!(registering, tunnelling);
        shared.tasks.finish(END_TIMEOUT).await;
    }
}

impl Shared {
    /// Takes a policy, from whoever relays it.
    pub(crate) fn accept_policy(&self, snapshot: &PolicySnapshot) -> Result<(), PolicyKeeperError> {
        let Some(head) = &snapshot.head else { return Ok(()) };
        let now = self.clock.wall();
        self.config.policy.accept_successions(snapshot.links());
        self.config.policy.accept_snapshot(&snapshot.payload, &head.payload, &head.signature, now)
    }

    /// Takes a change of policy, from whoever relays it.
    pub(crate) fn accept_delta(&self, delta: &PolicyDelta) -> Result<(), PolicyKeeperError> {
        let Some(head) = &delta.head else { return Ok(()) };
        let now = self.clock.wall();
        self.config.policy.accept_successions(delta.links());
        self.config.policy.accept_delta(&delta.payload, &head.payload, &head.signature, now)
    }

    /// Takes the statement which policy is the newest, from whoever relays it.
    pub(crate) fn accept_head(&self, head: &SignedHead) -> Result<(), PolicyKeeperError> {
        let now = self.clock.wall();
        self.config.policy.accept_head(&head.payload, &head.signature, now).map(|_| ())
    }

    /// Asks Auth for the proxies, and takes newer policy that comes with the answer. What Auth says cannot be forged on
    /// the way.
    pub(crate) async fn ask_auth(&self) -> Result<ProxyList, tonic::Status> {
        let held = self.config.policy.revision();
        let request =
            WatchClusterRequest { policy_generation: held.generation, policy_counter: held.counter };
        let mut events = HostClient::new(self.config.auth.clone())
            .max_decoding_message_size(EVENT_BYTES_MAX)
            .watch_cluster(request)
            .await?
            .into_inner();
        let (mut proxies, mut revision) = (Vec::new(), 0);
        while let Some(event) = events.message().await? {
            revision = revision.max(event.revision);
            let taken = match event.event {
                Some(Event::ProxyPut(proxy)) if proxies.len() <= PROXIES_MAX => {
                    proxies.push(proxy);
                    Ok(())
                }
                Some(Event::Snapshot(snapshot)) => self.accept_policy(&snapshot),
                Some(Event::Delta(delta)) => self.accept_delta(&delta),
                Some(Event::Head(head)) => self.accept_head(&head),
                Some(Event::InitialStateSent(_)) => {
                    let addresses = proxy_list::addresses(&proxies);
                    // Clients that lost a proxy are told of the others.
                    self.known_proxies.send_replace(addresses.iter().map(ToString::to_string).collect());
                    if let Some(book) = &self.config.addresses {
                        book.learn(addresses);
                    }
                    return Ok(proxy_list::proxies(&proxies, revision));
                }
                _ => Ok(()),
            };
            if let Err(error) = taken {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "Auth sent a policy that is refused"
                );
            }
        }
        Err(tonic::Status::unavailable("the stream ended before the cluster's state was sent"))
    }
}
