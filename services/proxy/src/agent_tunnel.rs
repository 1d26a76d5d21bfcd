//! One agent's tunnel, from its TLS handshake to its end.

use crate::cluster::{Broadcast, encode};
use crate::registry::{AgentLife, Registered};
use crate::service::Shared;
use crate::web::ServerTls;
use bytes::Bytes;
use prost::Message;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use wayleave_api::CONTROL_VERSIONS;
use wayleave_api::agent::{AgentHello, AgentToProxy, Drain, ProxyHello, agent_to_proxy, proxy_to_agent};
use wayleave_identity::Principal;
use wayleave_keystore::{Audience, IdentifyError};
use wayleave_mux::{Config, Role};
use wayleave_net::{Admission, Tunnel, TunnelClosed, TunnelEvent};
use wayleave_runtime::{Clock, Shutdown};
use wayleave_vocab::{Capabilities, HostId, PolicyRevision, Versions, printable};

/// How long the agent may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// An agent that a lock shuts out has this long to end its sessions by itself and say why.
const LOCK_GRACE: Duration = Duration::from_secs(3);
/// Control messages that wait to be handled; more end the tunnel.
const CONTROL_QUEUE: usize = 16;
/// Longest control message of an agent.
const CONTROL_BYTES_MAX: u32 = 64 * 1024;
/// Longest control message for an agent: a policy of 64 MiB, its head, and their envelope.
const CONTROL_SENT_BYTES_MAX: u32 = 64 * 1024 * 1024 + 64 * 1024;

/// A tunnel that did not come about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentTunnelError {
    #[error("the certificate identifies no agent")]
    NotAnAgent,
    #[error("the certificate is not believed")]
    Identify(#[source] IdentifyError),
    #[error("a lock is on the agent {0}")]
    Locked(HostId),
    #[error("no hello within {} s", HELLO_TIMEOUT.as_secs())]
    NoHello,
    #[error("the agent's hello is not understood")]
    BadHello,
    #[error("{0}")]
    Version(String),
    #[error("the tunnel ended")]
    Closed(#[source] TunnelClosed),
}

/// A queue of these has room for many from the start, so what is large is elsewhere.
enum News {
    Said(Box<AgentToProxy>),
    GoingAway,
    Drained,
    Closed(Box<TunnelClosed>),
}

/// Serves one tunnel to its end.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    tls: ServerTls,
    client: SocketAddr,
    admission: &Admission,
    shutdown: Shutdown,
) -> Result<(), AgentTunnelError> {
    let host_id = agent_of(shared, &tls)?;
    admission.known();
    // Agents open no streams, and have little to say.
    let config = Config {
        peer_streams_max: 0,
        control_bytes_max: CONTROL_BYTES_MAX,
        control_sent_bytes_max: CONTROL_SENT_BYTES_MAX,
        ..Config::default()
    };
    let (tunnel, driver) = Tunnel::new(Role::Acceptor, config, tls);
    let (sender, mut news) = mpsc::channel(CONTROL_QUEUE);
    let (events, handle) = (sender.clone(), tunnel.clone());
    shared.tasks.spawn_many(async move {
        let reason = driver.run(|event| handle_event(&handle, &events, event)).await;
        let _ = sender.send(News::Closed(Box::new(reason))).await;
    });
    let _closer = CloseOnDrop(tunnel.clone());
    // The agent looks at this first: one that is connected already goes before it is registered here.
    let mut told = say_hello(shared, &tunnel);
    let mut up = {
        let hello = tokio::time::timeout(HELLO_TIMEOUT, first_hello(&mut news))
            .await
            .map_err(|_| AgentTunnelError::NoHello)??;
        check_hello(&hello, host_id)?;
        told.note_held(&hello);
        Up::new(shared, host_id, &hello, &tunnel)
    };
    tracing::info!(agent = %host_id, %client, "an agent is connected");
    let reason = attend(shared, &tunnel, &mut told, &mut news, &mut up, &shutdown).await;
    drop(up);
    tracing::info!(agent = %host_id, reason = &reason as &dyn std::error::Error, "an agent is gone");
    Ok(())
}

/// It is who the certificate says, and speaks a version that this proxy does.
fn check_hello(hello: &AgentHello, agent: HostId) -> Result<(), AgentTunnelError> {
    if hello.host_id != agent.to_string() {
        return Err(AgentTunnelError::BadHello);
    }
    let theirs = Versions::told(hello.version, hello.version_oldest);
    CONTROL_VERSIONS.agree(theirs).map(|_| ()).map_err(|unsupported| {
        let own = concat!("this proxy (release ", env!("CARGO_PKG_VERSION"), ")");
        let other = format!("agent {agent} (release {})", printable(&hello.release));
        let text = unsupported.explain(own, &other);
        tracing::warn!("an agent is refused: {text}");
        AgentTunnelError::Version(text)
    })
}

/// Tells the agent which proxy this is and what the cluster looks like.
fn say_hello(shared: &Shared, tunnel: &Tunnel) -> Told {
    let broadcast = shared.cluster.broadcast.subscribe();
    let view = broadcast.borrow().view.clone();
    let hello = ProxyHello {
        version: CONTROL_VERSIONS.newest(),
        version_oldest: CONTROL_VERSIONS.oldest(),
        proxy_id: shared.config.host_id.to_string(),
        incarnation: shared.routes.incarnation().0,
        capabilities: Capabilities::own().names().map(str::to_owned).collect(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        view: Some(shared.cluster.view()),
    };
    send(tunnel, encode(proxy_to_agent::Message::Hello(hello)));
    Told {
        broadcast,
        view,
        policy: PolicyRevision::default(),
        told_whole: PolicyRevision::default(),
        head: Bytes::new(),
    }
}

/// An agent that is reachable here; dropping it makes it unreachable.
struct Up<'a> {
    shared: &'a Shared,
    host_id: HostId,
    registered: Registered<'a>,
    has_left: bool,
}

impl<'a> Up<'a> {
    fn new(shared: &'a Shared, host_id: HostId, hello: &AgentHello, tunnel: &Tunnel) -> Self {
        let registered = shared.registry.register(host_id, AgentLife::of(hello), tunnel.clone());
        shared.routes.tunnel_up(host_id, shared.clock.mono());
        shared.metrics.tunnels_accepted.increment();
        Self { shared, host_id, registered, has_left: false }
    }

    /// The tunnel takes no more streams.
    fn leave(&mut self) {
        if !std::mem::replace(&mut self.has_left, true) {
            self.registered.leave();
            self.shared.routes.tunnel_down(self.host_id, self.shared.clock.mono());
        }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.leave();
        self.shared.metrics.tunnels_ended.increment();
    }
}

/// Closes the tunnel when whoever attends to it goes away.
struct CloseOnDrop(Tunnel);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn agent_of(shared: &Shared, tls: &ServerTls) -> Result<HostId, AgentTunnelError> {
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let principal = shared
        .config
        .trust
        .identify(chain, Audience::Client, shared.clock.wall())
        .map_err(AgentTunnelError::Identify)?;
    match principal {
        // A stolen machine does not shut itself out.
        Principal::Host(host) if shared.is_locked(host.host_id) => {
            Err(AgentTunnelError::Locked(host.host_id))
        }
        Principal::Host(host) if host.system_roles.iter().any(|role| role.is_agent()) => Ok(host.host_id),
        Principal::Host(_) | Principal::User(_) => Err(AgentTunnelError::NotAnAgent),
    }
}

fn handle_event(tunnel: &Tunnel, news: &mpsc::Sender<News>, event: TunnelEvent) {
    let item = match event {
        TunnelEvent::Control(bytes) => match AgentToProxy::decode(bytes) {
            Ok(message) => News::Said(Box::new(message)),
            Err(error) => {
                tracing::debug!(%error, "an agent sent an unreadable control message: closing its tunnel");
                return tunnel.close();
            }
        },
        TunnelEvent::GoingAway => News::GoingAway,
        TunnelEvent::Drained => News::Drained,
        TunnelEvent::Opened(_) | TunnelEvent::Ready => return,
    };
    if news.try_send(item).is_err() {
        tracing::debug!("an agent sends control messages faster than they are handled: closing its tunnel");
        tunnel.close();
    }
}

async fn first_hello(news: &mut mpsc::Receiver<News>) -> Result<AgentHello, AgentTunnelError> {
    match news.recv().await {
        Some(News::Said(said)) => match said.message {
            Some(agent_to_proxy::Message::Hello(hello)) => Ok(hello),
            Some(_) | None => Err(AgentTunnelError::BadHello),
        },
        Some(News::Closed(reason)) => Err(AgentTunnelError::Closed(*reason)),
        Some(News::GoingAway | News::Drained) | None => Err(AgentTunnelError::BadHello),
    }
}

/// Tells the agent what changes in the cluster, until the tunnel ends.
async fn attend(
    shared: &Shared,
    tunnel: &Tunnel,
    told: &mut Told,
    news: &mut mpsc::Receiver<News>,
    up: &mut Up<'_>,
    shutdown: &Shutdown,
) -> TunnelClosed {
    let host_id = up.host_id;
    let mut policies = shared.policy.watch();
    let mut cut_at = shared.is_locked(host_id).then(Instant::now);
    told.tell(tunnel);
    let mut draining = false;
    loop {
        tokio::select! {
            item = news.recv() => match item {
                Some(News::Closed(reason)) => return *reason,
                Some(News::GoingAway) => up.leave(),
                Some(News::Drained) => tunnel.close(),
                Some(News::Said(said)) => {
                    // It could not use what changed.
                    if let Some(agent_to_proxy::Message::PolicyHeld(_)) = said.message {
                        told.tell_whole_policy(tunnel);
                    }
                }
                None => return TunnelClosed::Here,
            },
            Ok(()) = told.broadcast.changed() => told.tell(tunnel),
            Ok(()) = policies.changed() => {
                cut_at = shared.is_locked(host_id).then(|| cut_at.unwrap_or_else(|| Instant::now() + LOCK_GRACE));
            }
            () = sleep_until(cut_at.unwrap_or_else(Instant::now)), if cut_at.is_some() => {
                tracing::info!(agent = %host_id, "a lock ends the tunnel of an agent");
                cut_at = None;
                tunnel.close();
            }
            () = shutdown.requested(), if !draining => {
                draining = true;
                let grace_ms = u64::try_from(shared.config.drain_timeout.as_millis()).unwrap_or(u64::MAX);
                send(tunnel, encode(proxy_to_agent::Message::Drain(Drain { grace_ms })));
            }
        }
    }
}

/// What one agent has been told.
struct Told {
    broadcast: watch::Receiver<Broadcast>,
    view: Bytes,
    policy: PolicyRevision,
    /// The newest revision that it asked for as a whole.
    told_whole: PolicyRevision,
    head: Bytes,
}

impl Told {
    /// The agent has said what it holds.
    fn note_held(&mut self, hello: &AgentHello) {
        if let Some(held) = &hello.policy_held {
            self.policy = PolicyRevision { generation: held.generation, counter: held.counter };
        }
    }

    /// The whole policy, once for each revision.
    fn tell_whole_policy(&mut self, tunnel: &Tunnel) {
        let now = self.broadcast.borrow().snapshot.clone();
        if let Some((message, revision)) = now
            && self.told_whole < revision
        {
            (self.policy, self.told_whole) = (revision, revision);
            send(tunnel, message);
        }
    }

    fn tell(&mut self, tunnel: &Tunnel) {
        let now = self.broadcast.borrow_and_update().clone();
        if now.view != self.view {
            self.view = now.view.clone();
            send(tunnel, now.view.clone());
        }
        if let Some((message, revision)) = &now.snapshot
            && *revision > self.policy
        {
            let held = std::mem::replace(&mut self.policy, *revision);
            match now.delta.as_ref().filter(|(_, from)| *from == held) {
                Some((delta, _)) => send(tunnel, delta.clone()),
                None => send(tunnel, message.clone()),
            }
        }
        if now.head != self.head {
            self.head = now.head.clone();
            send(tunnel, now.head.clone());
        }
    }
}

fn send(tunnel: &Tunnel, message: Bytes) {
    if message.is_empty() {
        return;
    }
    if let Err(error) = tunnel.send_control(message) {
        tracing::debug!(%error, "an agent does not take control messages: closing its tunnel");
        tunnel.close();
    }
}
