//! The connection of a machine that publishes itself. Forwarding of the ports that its certificate lists is all it may.

use super::PublishListener;
use super::authority::{PublicationError, PublishWish, Published};
use super::machine::{Machine, Offer, Wanted};
use super::probe;
use crate::driver::{Application, Core, changed_or_never};
use crate::policy_view::PolicyView;
use crate::pump::PumpEnd;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use wayleave_audit::{Event as AuditEvent, Text};
use wayleave_identity::{DecodePrincipalError, PUBLISH_OPTION, Publisher};
use wayleave_net::{BoxStream, Hosted, Hosting, Known};
use wayleave_runtime::{Shutdown, random_bytes};
use wayleave_ssh::{
    AuthAttempt, CertType, CertificateError, ChannelId, ChannelOpen, DisconnectReason, Event, GlobalReply,
    GlobalReplyToken, GlobalRequest, KeyPair, LoginProof, OpenFailure, PublicKey, TcpEndpoint,
};
use wayleave_vocab::{HostId, Mono, NodeName, SessionId, Wall};

/// The port that is a machine's SSH.
pub(super) const SSH_PORT: u16 = 22;
/// Names at a time on one connection, and requests that wait.
const MACHINES_MAX: usize = 64;
const REQUESTS_MAX: usize = 128;
/// Connections that wait to be opened.
const WANTED_MAX: usize = 256;
/// What goes to a user at once, in bytes.
const PIPE_BYTES: usize = 64 * 1024;
/// Pause before a renewal that failed is tried again.
const RENEW_RETRY: Duration = Duration::from_secs(60);

/// One connection.
pub(super) struct PublisherConnection {
    entry: Arc<PublishListener>,
    client: SocketAddr,
    hosting: Arc<dyn Hosting>,
    stage: Stage,
    /// Called when somebody is let in.
    known: Option<Known>,
    machines: BTreeMap<String, Entry>,
    /// Ports that are asked for, one at a time.
    requests: VecDeque<(TcpEndpoint, Option<GlobalReplyToken>)>,
    is_publishing: bool,
    wanted: mpsc::Sender<Wanted>,
    /// Channels that the machine has not confirmed yet.
    opening: BTreeMap<ChannelId, oneshot::Sender<Result<BoxStream, String>>>,
    /// When the certificates of what is published are renewed.
    renew_at: Option<Mono>,
    /// When the connection ends at the latest, once the proxy drains.
    leaves_at: Option<Mono>,
}

enum Stage {
    Unauthenticated,
    Admitted { publisher: Publisher, proof: Box<LoginProof> },
}

/// A name that is published on this connection.
struct Entry {
    name: NodeName,
    ports: BTreeSet<u16>,
    publication: SessionId,
    shown: Arc<KeyPair>,
    target_key: Option<PublicKey>,
    live: Option<Live>,
}

/// What makes it reachable.
struct Live {
    host_id: HostId,
    offer: watch::Sender<Offer>,
    _registration: Box<dyn Send>,
}

/// What work results in.
pub(super) enum Done {
    ShutdownRequested,
    RefusalNoted,
    Wanted(Wanted, mpsc::Receiver<Wanted>),
    Probed(String, u16, Option<PublicKey>),
    Published {
        key: String,
        port: Option<u16>,
        result: Result<Published, PublicationError>,
    },
    /// The cluster may know a machine no more.
    Forgotten(String, watch::Receiver<u64>),
    /// Somebody may have locked a machine.
    PolicyChanged(watch::Receiver<Option<Arc<PolicyView>>>),
    Withdrawn,
}

/// Why somebody is not let in.
#[derive(Debug, thiserror::Error)]
enum AdmissionError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the certificate is for other addresses")]
    SourceAddress,
    #[error("the certificate is no publisher's")]
    NoPublisher,
    #[error(transparent)]
    Option(#[from] DecodePrincipalError),
    #[error("the certificate is of another cluster, or this proxy has no policy yet")]
    OtherCluster,
    #[error("the login cannot be proven")]
    NoProof,
}

impl PublisherConnection {
    pub(super) fn new(
        entry: Arc<PublishListener>,
        client: SocketAddr,
        hosting: Arc<dyn Hosting>,
        known: Known,
        shutdown: &Shutdown,
        core: &mut Core<Done>,
    ) -> Self {
        let signal = shutdown.clone();
        core.start(async move {
            signal.requested().await;
            Done::ShutdownRequested
        });
        let (wanted, waiting) = mpsc::channel(WANTED_MAX);
        core.start(next_wanted(waiting));
        core.start(next_policy(entry.config.policy.views()));
        Self {
            entry,
            client,
            hosting,
            stage: Stage::Unauthenticated,
            known: Some(known),
            machines: BTreeMap::new(),
            requests: VecDeque::new(),
            is_publishing: false,
            wanted,
            opening: BTreeMap::new(),
            renew_at: None,
            leaves_at: None,
        }
    }

    fn on_auth_attempt(&mut self, core: &mut Core<Done>, mut attempt: Box<AuthAttempt>) {
        let proof = attempt.proof.take();
        match self.judge(&attempt, proof, core.clock.wall()) {
            Ok((publisher, proof)) => {
                self.stage = Stage::Admitted { publisher, proof };
                if let Some(known) = self.known.take() {
                    known();
                }
                // Refused only when the connection is over, which the driver sees.
                let _over = core.connection.accept_auth();
            }
            Err(error) => {
                tracing::debug!(%error, "a publisher is not let in");
                let event = AuditEvent::AuthAttempt {
                    user: Text::new(attempt.certificate.key_id()),
                    client_addr: Some(Text::new(self.client.to_string())),
                    error: Text::new(error.to_string()),
                };
                let entry = self.entry.clone();
                core.start_lasting(async move {
                    if let Err(error) = entry.config.audit.record(event).await {
                        tracing::error!(%error, "an event was not written to the audit log");
                    }
                    Done::RefusalNoted
                });
            }
        }
    }

    fn judge(
        &self,
        attempt: &AuthAttempt,
        proof: Option<Box<LoginProof>>,
        now: Wall,
    ) -> Result<(Publisher, Box<LoginProof>), AdmissionError> {
        let config = &self.entry.config;
        let view = config.policy.views().borrow().clone().ok_or(AdmissionError::OtherCluster)?;
        let certificate = &attempt.certificate;
        let authorities = view.host_authorities();
        let verified = certificate.verify(authorities, CertType::User, None, &[PUBLISH_OPTION], now)?;
        if let Some(networks) = verified.source_networks
            && !networks.iter().any(|network| network.contains(self.client.ip().to_canonical()))
        {
            return Err(AdmissionError::SourceAddress);
        }
        let option = certificate.critical_options().get(PUBLISH_OPTION).ok_or(AdmissionError::NoPublisher)?;
        let publisher = Publisher::decode(option)?;
        if *view.cluster() != publisher.cluster {
            return Err(AdmissionError::OtherCluster);
        }
        Ok((publisher, proof.ok_or(AdmissionError::NoProof)?))
    }

    /// A port that is asked for. Whatever is refused ends the connection: stock clients show the reason only so.
    fn on_forward(&mut self, core: &mut Core<Done>, listener: TcpEndpoint, reply: Option<GlobalReplyToken>) {
        if self.requests.len() >= REQUESTS_MAX {
            return refuse(core, "too many forwards at once".to_owned());
        }
        self.requests.push_back((listener, reply));
        self.publish_next(core);
    }

    fn publish_next(&mut self, core: &mut Core<Done>) {
        if self.is_publishing || self.leaves_at.is_some() {
            return;
        }
        let Some((listener, _)) = self.requests.front() else { return };
        let listener = listener.clone();
        let Stage::Admitted { publisher, .. } = &self.stage else { return };
        let name = match NodeName::parse(listener.host.as_str()) {
            Ok(name) if publisher.covers(&name, listener.port) => name,
            Ok(_) | Err(_) => {
                let names: Vec<&str> = publisher.names.iter().map(NodeName::as_str).collect();
                let ports: Vec<String> = publisher.ports.iter().map(ToString::to_string).collect();
                return refuse(
                    core,
                    format!(
                        "{:?} port {} is not what this token is for: use -R NAME:PORT:localhost:PORT with {} and {}",
                        listener.host,
                        listener.port,
                        names.join(", "),
                        ports.join(", ")
                    ),
                );
            }
        };
        let wants_ssh = listener.port == SSH_PORT && !publisher.tcp_only;
        let key = name.as_str().to_ascii_lowercase();
        if self.machines.len() >= MACHINES_MAX && !self.machines.contains_key(&key) {
            return refuse(core, format!("more than {MACHINES_MAX} names on one connection"));
        }
        self.is_publishing = true;
        self.machines.entry(key.clone()).or_insert_with(|| Entry {
            name: name.clone(),
            ports: BTreeSet::new(),
            publication: SessionId::from_random(random_bytes()),
            shown: Arc::new(KeyPair::from_seed(&random_bytes())),
            target_key: None,
            live: None,
        });
        if wants_ssh {
            self.probe(core, key, &listener);
        } else {
            self.publish(core, &key, Some(listener.port));
        }
    }

    /// Looks which host key the machine's sshd has, over the very port that is being published.
    fn probe(&mut self, core: &mut Core<Done>, key: String, listener: &TcpEndpoint) {
        let (answer, connected) = oneshot::channel();
        self.open(core, listener.clone(), None, answer);
        let (clock, port) = (self.entry.config.clock.clone(), listener.port);
        core.start(async move {
            let found = match connected.await {
                Ok(Ok(stream)) => probe::host_key(stream, clock).await,
                Ok(Err(_)) | Err(_) => None,
            };
            Done::Probed(key, port, found)
        });
    }

    fn on_probed(&mut self, core: &mut Core<Done>, key: String, port: u16, found: Option<PublicKey>) {
        let Some(entry) = self.machines.get_mut(&key) else { return };
        if found.is_none() {
            let text = format!("no sshd answers behind port {port} of {}", entry.name);
            return refuse(core, text);
        }
        entry.target_key = found;
        self.publish(core, &key, Some(port));
    }

    /// Asks Auth to publish a name with one more port, or as it is.
    fn publish(&self, core: &mut Core<Done>, key: &str, port: Option<u16>) {
        let (Some(entry), Stage::Admitted { proof, .. }) = (self.machines.get(key), &self.stage) else {
            return;
        };
        let wish = PublishWish {
            proof: (**proof).clone(),
            publication: entry.publication,
            incarnation: self.hosting.incarnation(),
            name: entry.name.clone(),
            ports: entry.ports.iter().copied().chain(port).collect(),
            target_key: entry.target_key.clone(),
            shown_key: entry.shown.public_key(),
            client: self.client,
        };
        let (listener, key) = (self.entry.clone(), key.to_owned());
        core.start(async move {
            let result = listener.config.authority.publish(wish).await;
            Done::Published { key, port, result }
        });
    }

    fn on_published(
        &mut self,
        core: &mut Core<Done>,
        key: &str,
        port: Option<u16>,
        result: Result<Published, PublicationError>,
    ) {
        if self.leaves_at.is_some() {
            return;
        }
        let published = match result {
            Ok(published) => published,
            // What runs is renewed later.
            Err(PublicationError::Unavailable(reason)) if port.is_none() => {
                tracing::warn!(reason, "a published machine could not be renewed, trying again");
                let retry = core.clock.mono().after(RENEW_RETRY);
                self.renew_at = Some(self.renew_at.map_or(retry, |at| at.min(retry)));
                return;
            }
            Err(error) => return refuse(core, error.to_string()),
        };
        let Some(entry) = self.machines.get_mut(key) else { return };
        entry.ports.extend(port);
        let offer = Offer::new(&published, &entry.ports, entry.target_key.clone(), &entry.shown);
        let Some(offer) = offer else {
            return refuse(core, "Auth certified another key than it was asked to".to_owned());
        };
        let ends = published.host_certificate.valid_before();
        let half = ends.since(core.clock.wall()) / 2;
        let renew_at = core.clock.mono().after(half);
        self.renew_at = Some(self.renew_at.map_or(renew_at, |at| at.min(renew_at)));
        match &entry.live {
            Some(live) => {
                live.offer.send_replace(offer);
            }
            None => self.go_live(core, key, published.host_id, offer),
        }
        // Auth may not have known of a lock when it was asked, and this connection not have been there when it came.
        self.leave_if_locked(core);
        if port.is_some() && !core.is_ending() {
            self.is_publishing = false;
            if let Some((_, Some(reply))) = self.requests.pop_front() {
                core.connection.respond_global(reply, GlobalReply::Success);
            }
            self.publish_next(core);
        }
    }

    fn go_live(&mut self, core: &mut Core<Done>, key: &str, host_id: HostId, offer: Offer) {
        let Some(entry) = self.machines.get_mut(key) else { return };
        let (offer, offers) = watch::channel(offer);
        let machine =
            Machine::new(self.entry.clone(), host_id, entry.name.clone(), offers, self.wanted.clone());
        let Hosted { forgotten, registration } = self.hosting.host(host_id, Arc::new(machine));
        let name = entry.name.clone();
        tracing::info!(%name, %host_id, client = %self.client, "a machine is published");
        core.start(next_forgotten(key.to_owned(), forgotten));
        entry.live = Some(Live { host_id, offer, _registration: registration });
    }

    /// Ends the connection when a lock is on a machine that it publishes: a stolen machine does not leave by itself.
    fn leave_if_locked(&mut self, core: &mut Core<Done>) {
        let Some(view) = self.entry.config.policy.views().borrow().clone() else { return };
        let now = core.clock.wall();
        let mut live = self.machines.values().filter_map(|entry| entry.live.as_ref());
        let Some(lock) = live.find_map(|live| view.locks().on_host(&live.host_id, now)) else { return };
        tracing::info!(lock = %lock.name, "a published machine is locked");
        // Before the connection has ended, for whoever would dial it meanwhile.
        self.machines.values_mut().for_each(|entry| entry.live = None);
        refuse(core, lock.user_text());
    }

    /// Opens a channel to a port of the machine.
    fn open(
        &mut self,
        core: &mut Core<Done>,
        listener: TcpEndpoint,
        client: Option<SocketAddr>,
        answer: oneshot::Sender<Result<BoxStream, String>>,
    ) {
        let originator = client.unwrap_or(self.client);
        let originator = TcpEndpoint { host: originator.ip().to_string(), port: originator.port() };
        match core.connection.open(&ChannelOpen::ForwardedTcpip { listener, originator }) {
            Ok(channel) => {
                self.opening.insert(channel, answer);
            }
            Err(error) => {
                // Nobody waits any more when the user is gone.
                let _gone = answer.send(Err(error.to_string()));
            }
        }
    }

    fn on_wanted(&mut self, core: &mut Core<Done>, wanted: Wanted) {
        let Wanted { name, port, client, answer } = wanted;
        self.open(core, TcpEndpoint { host: name.to_string(), port }, client, answer);
    }

    fn on_opened(&mut self, core: &mut Core<Done>, channel: ChannelId) {
        let Some(answer) = self.opening.remove(&channel) else { return core.connection.abort(channel) };
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        match answer.send(Ok(Box::new(far))) {
            Ok(()) => core.pumps.attach_stream(channel, near),
            Err(_) => core.connection.abort(channel),
        }
    }

    /// Nobody new reaches the machine through this proxy; who is there may stay for the time of a drain.
    fn on_shutdown(&mut self, core: &mut Core<Done>) {
        self.leaves_at = Some(core.clock.mono().after(self.entry.config.drain_grace));
        self.requests.clear();
        self.machines.values_mut().for_each(|entry| entry.live = None);
        self.leave_if_done(core);
    }

    /// The machine then finds another proxy, or this one again.
    fn leave_if_done(&self, core: &mut Core<Done>) {
        let Some(at) = self.leaves_at else { return };
        if core.connection.channel_count() == 0 || at <= core.clock.mono() {
            core.end(DisconnectReason::ByApplication, "this proxy is stopping: connect again".to_owned());
        }
    }
}

impl Application for PublisherConnection {
    type Done = Done;

    fn on_event(&mut self, core: &mut Core<Done>, event: Event) {
        match event {
            Event::AuthAttempt(attempt) => self.on_auth_attempt(core, attempt),
            Event::Open { channel, .. } => {
                let text = "this port is for publishing machines: use ssh -N -R";
                // Refused only when the connection is over, which the driver sees.
                let _over = core.connection.reject_open(channel, OpenFailure::Prohibited, text);
            }
            Event::Opened { channel } => self.on_opened(core, channel),
            Event::OpenFailed { channel, message, .. } => {
                if let Some(answer) = self.opening.remove(&channel) {
                    // Nobody waits any more when the user is gone.
                    let _gone =
                        answer.send(Err(format!("the machine cannot connect to its port: {message}")));
                }
            }
            Event::Closed { channel } => {
                self.opening.remove(&channel);
                core.pumps.close(channel);
                self.leave_if_done(core);
            }
            Event::GlobalRequest { request: GlobalRequest::TcpipForward { listener }, reply } => {
                self.on_forward(core, listener, reply);
            }
            Event::GlobalRequest { reply: Some(reply), .. } => {
                core.connection.respond_global(reply, GlobalReply::Failure);
            }
            Event::Request { reply: Some(reply), .. } => core.connection.respond(reply, false),
            // The driver's, a client's, or without an answer.
            Event::Request { .. }
            | Event::GlobalRequest { .. }
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
            Done::ShutdownRequested => self.on_shutdown(core),
            // Refused only when the connection is over, which the driver sees.
            Done::RefusalNoted => drop(core.connection.reject_auth()),
            Done::Wanted(wanted, waiting) => {
                core.start(next_wanted(waiting));
                self.on_wanted(core, wanted);
            }
            Done::Probed(key, port, found) => self.on_probed(core, key, port, found),
            Done::Published { key, port, result } => self.on_published(core, &key, port, result),
            Done::Forgotten(key, forgotten) => {
                // An earlier connection may have withdrawn it: Auth tells.
                core.start(next_forgotten(key.clone(), forgotten));
                self.publish(core, &key, None);
            }
            Done::PolicyChanged(views) => {
                core.start(next_policy(views));
                self.leave_if_locked(core);
            }
            Done::Withdrawn => {}
        }
    }

    fn on_pump(&mut self, core: &mut Core<Done>, channel: ChannelId, end: PumpEnd) {
        core.end_plain(channel, end);
    }

    fn wakes_at(&self) -> Option<Mono> {
        self.leaves_at.or(self.renew_at)
    }

    fn on_time(&mut self, core: &mut Core<Done>) {
        self.leave_if_done(core);
        if self.renew_at.is_some_and(|at| at <= core.clock.mono()) {
            self.renew_at = None;
            let live = self.machines.iter().filter(|(_, entry)| entry.live.is_some());
            for key in live.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
                self.publish(core, &key, None);
            }
        }
    }

    /// The machine is gone: so is what it published, here at once and in the cluster as soon as Auth is told.
    fn on_end(&mut self, core: &mut Core<Done>) {
        for entry in std::mem::take(&mut self.machines).into_values() {
            let Entry { name, publication, live, .. } = entry;
            if let Some(live) = live {
                tracing::info!(%name, host_id = %live.host_id, "a machine is gone");
            }
            let listener = self.entry.clone();
            core.start_lasting(async move {
                if let Err(error) = listener.config.authority.withdraw(name, publication).await {
                    tracing::warn!(%error, "Auth does not know yet that a machine is gone");
                }
                Done::Withdrawn
            });
        }
    }
}

async fn next_wanted(mut waiting: mpsc::Receiver<Wanted>) -> Done {
    match waiting.recv().await {
        Some(wanted) => Done::Wanted(wanted, waiting),
        // This connection holds a sender itself.
        None => std::future::pending().await,
    }
}

async fn next_forgotten(key: String, mut forgotten: watch::Receiver<u64>) -> Done {
    changed_or_never(&mut forgotten).await;
    Done::Forgotten(key, forgotten)
}

async fn next_policy(mut views: watch::Receiver<Option<Arc<PolicyView>>>) -> Done {
    changed_or_never(&mut views).await;
    Done::PolicyChanged(views)
}

fn refuse(core: &mut Core<Done>, text: String) {
    tracing::info!(text, "a publisher is refused");
    core.end(DisconnectReason::ByApplication, text);
}
