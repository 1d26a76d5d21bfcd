//! One tunnel: the dial, the hellos, and what arrives on it.

use crate::service::Shared;
use bytes::Bytes;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use wayleave_api::agent::{AgentHello, AgentToProxy, PolicyHeld, ProxyHello, ProxyToAgent};
use wayleave_api::agent::{agent_to_proxy, proxy_to_agent};
use wayleave_api::{ALPN_TUNNEL, CONTROL_VERSIONS};
use wayleave_dial::{DialRefusal, DialResponse, Heard, Resume};
use wayleave_identity::UserPrincipal;
use wayleave_keystore::{Audience, client_config, public_client_config};
use wayleave_mux::{Config, Role};
use wayleave_net::{
    BoxStream, ClusterStream, ConnectError, DIAL_MESSAGE_TIMEOUT, Inbound, ToldError, Tunnel, TunnelClosed,
    TunnelEvent, TunnelStream, connect_cluster, connect_told, read_dial_request, write_message,
};
use wayleave_resumable::Begun;
use wayleave_runtime::Clock;
use wayleave_telemetry::{SpanKind, span_id};
use wayleave_tunnel::Connected;
use wayleave_vocab::{Capabilities, HostId, HostPort, Incarnation, SystemRole, Versions, printable};

/// How long the proxy may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest control message of a proxy: a policy of 64 MiB, its head, and their envelope.
const CONTROL_BYTES_MAX: u32 = 64 * 1024 * 1024 + 64 * 1024;
/// Longest control message that proxies take.
const CONTROL_SENT_BYTES_MAX: u32 = 64 * 1024;
/// Control messages that wait to be handled; more end the tunnel.
const CONTROL_QUEUE: usize = 64;
/// What they may come to together.
const CONTROL_WAITING_BYTES_MAX: usize = 2 * CONTROL_BYTES_MAX as usize;

/// A dial that gave no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("the proxy cannot be reached")]
    Connect(#[source] ConnectError),
    #[error("the proxy cannot be reached where the cluster says it is")]
    Told(#[source] ToldError),
    #[error("TLS cannot be set up")]
    Tls(#[source] wayleave_keystore::TlsConfigError),
    #[error("the proxy's certificate identifies no proxy")]
    NotAProxy,
    #[error("a lock is on the proxy {0}")]
    Locked(HostId),
    #[error("the proxy {wanted} was wanted, {found} answered")]
    OtherProxy { wanted: HostId, found: HostId },
    #[error("already connected to this proxy")]
    AlreadyConnected(Connected, Surplus),
    #[error("the tunnel ended before the hello: {0}")]
    Closed(TunnelClosed),
    #[error("no hello within {} s", HELLO_TIMEOUT.as_secs())]
    NoHello,
    #[error("the proxy's hello is not understood")]
    BadHello,
    #[error("{0}")]
    Version(String),
}

/// What a tunnel tells the agent.
pub(crate) enum TunnelNews {
    Message(ProxyToAgent, Waiting),
    Closed(TunnelClosed),
}

/// Bytes of control messages that wait to be handled.
#[derive(Default)]
struct WaitingBytes(Arc<AtomicUsize>);

/// The share of one message, which ends with it.
pub(crate) struct Waiting {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

impl WaitingBytes {
    /// None when too much waits already.
    fn take(&self, bytes: usize) -> Option<Waiting> {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        let waiting = Waiting { all: self.0.clone(), bytes };
        (before.saturating_add(bytes) <= CONTROL_WAITING_BYTES_MAX).then_some(waiting)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A tunnel after the hellos.
pub(crate) struct Established {
    pub(crate) tunnel: Tunnel,
    pub(crate) proxy: Connected,
    pub(crate) hello: ProxyHello,
    pub(crate) news: mpsc::Receiver<TunnelNews>,
}

/// Dials one proxy. Dropping the future gives the attempt up.
pub(crate) async fn dial(
    shared: &Arc<Shared>,
    address: &HostPort,
    wanted: Option<HostId>,
    avoid: &[Connected],
) -> Result<Established, DialError> {
    let config = &shared.config;
    let tls = client_config(&config.tls, &config.trust, SystemRole::Proxy, None, &[ALPN_TUNNEL])
        .map_err(DialError::Tls)?;
    let stream = match wanted {
        // An address that the configuration names leads to whoever answers there.
        None => {
            let outer = public_client_config(Some(&config.trust)).map_err(DialError::Tls)?;
            connect_cluster(address, tls, &outer).await.map_err(DialError::Connect)?
        }
        Some(_) => connect_told(address, tls).await.map_err(DialError::Told)?,
    };
    let proxy_id = proxy_of(shared, &stream)?;
    if let Some(wanted) = wanted
        && wanted != proxy_id
    {
        return Err(DialError::OtherProxy { wanted, found: proxy_id });
    }
    let policy = config.policy.watch().borrow().clone();
    if policy.is_some_and(|policy| policy.is_host_locked(proxy_id, shared.clock.wall())) {
        return Err(DialError::Locked(proxy_id));
    }
    let mux = Config {
        control_bytes_max: CONTROL_BYTES_MAX,
        control_sent_bytes_max: CONTROL_SENT_BYTES_MAX,
        ..Config::default()
    };
    let (tunnel, driver) = Tunnel::new(Role::Connector, mux, stream);
    let (sender, mut news) = mpsc::channel(CONTROL_QUEUE);
    let (owner, handle) = (shared.clone(), tunnel.clone());
    shared.tasks.spawn_many(async move {
        let (events, waiting) = (sender.clone(), WaitingBytes::default());
        let on_event = |event| handle_event(&owner, proxy_id, &handle, (&events, &waiting), event);
        let reason = driver.run(on_event).await;
        let _ = sender.send(TunnelNews::Closed(reason)).await;
    });
    let closer = Surplus(Some(tunnel.clone()));
    let hello = tokio::time::timeout(HELLO_TIMEOUT, first_hello(&mut news))
        .await
        .map_err(|_| DialError::NoHello)??;
    check_hello(&hello, proxy_id)?;
    let proxy = Connected { proxy: proxy_id, incarnation: Incarnation(hello.incarnation) };
    if avoid.contains(&proxy) {
        return Err(DialError::AlreadyConnected(proxy, closer));
    }
    // Only now, so that a proxy never sends streams on a tunnel that is not wanted.
    send_hello(shared, &tunnel);
    closer.keep();
    Ok(Established { tunnel, proxy, hello, news })
}

/// It is who the certificate says, and speaks a version that this agent does.
fn check_hello(hello: &ProxyHello, proxy: HostId) -> Result<(), DialError> {
    if hello.proxy_id != proxy.to_string() {
        return Err(DialError::BadHello);
    }
    let theirs = Versions::told(hello.version, hello.version_oldest);
    CONTROL_VERSIONS.agree(theirs).map(|_| ()).map_err(|unsupported| {
        let own = concat!("this agent (release ", env!("CARGO_PKG_VERSION"), ")");
        let other = format!("proxy {proxy} (release {})", printable(&hello.release));
        DialError::Version(unsupported.explain(own, &other))
    })
}

/// The tunnel of an attempt that is given up: dropping this closes it.
pub(crate) struct Surplus(Option<Tunnel>);

impl std::fmt::Debug for Surplus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Surplus")
    }
}

impl Surplus {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Surplus {
    fn drop(&mut self) {
        if let Some(tunnel) = &self.0 {
            tunnel.close();
        }
    }
}

fn proxy_of(shared: &Shared, stream: &ClusterStream) -> Result<HostId, DialError> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let principal = shared.config.trust.identify(chain, Audience::Server, shared.clock.wall());
    match principal.as_ref().map(|p| p.as_host_with(SystemRole::Proxy)) {
        Ok(Some(host)) => Ok(host.host_id),
        Ok(None) | Err(_) => Err(DialError::NotAProxy),
    }
}

fn send_hello(shared: &Shared, tunnel: &Tunnel) {
    let config = &shared.config;
    let held = config.policy.revision();
    let hello = AgentHello {
        version: CONTROL_VERSIONS.newest(),
        version_oldest: CONTROL_VERSIONS.oldest(),
        host_id: config.host_id.to_string(),
        services: config.services.clone(),
        capabilities: Capabilities::own().names().map(str::to_owned).collect(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        policy_held: Some(PolicyHeld { generation: held.generation, counter: held.counter }),
        started_ms: config.started_ms,
    };
    let message = AgentToProxy { message: Some(agent_to_proxy::Message::Hello(hello)) };
    if let Err(error) = tunnel.send_control(Bytes::from(message.encode_to_vec())) {
        tracing::debug!(%error, "the hello could not be sent");
    }
}

/// Asks for the whole policy, by saying what is held.
pub(crate) fn ask_for_policy(shared: &Shared, tunnel: &Tunnel) {
    let held = shared.config.policy.revision();
    let held = PolicyHeld { generation: held.generation, counter: held.counter };
    let message = AgentToProxy { message: Some(agent_to_proxy::Message::PolicyHeld(held)) };
    if let Err(error) = tunnel.send_control(Bytes::from(message.encode_to_vec())) {
        tracing::debug!(%error, "the whole policy could not be asked for");
    }
}

async fn first_hello(news: &mut mpsc::Receiver<TunnelNews>) -> Result<ProxyHello, DialError> {
    match news.recv().await {
        Some(TunnelNews::Message(
            ProxyToAgent { message: Some(proxy_to_agent::Message::Hello(hello)) },
            _waiting,
        )) => Ok(hello),
        Some(TunnelNews::Message(..)) => Err(DialError::BadHello),
        Some(TunnelNews::Closed(reason)) => Err(DialError::Closed(reason)),
        None => Err(DialError::BadHello),
    }
}

fn handle_event(
    shared: &Arc<Shared>,
    proxy: HostId,
    tunnel: &Tunnel,
    (news, waiting): (&mpsc::Sender<TunnelNews>, &WaitingBytes),
    event: TunnelEvent,
) {
    match event {
        TunnelEvent::Opened(stream) => {
            let owner = shared.clone();
            shared.streams.spawn_many(async move { serve_stream(&owner, proxy, stream).await });
        }
        TunnelEvent::Control(bytes) => match (waiting.take(bytes.len()), ProxyToAgent::decode(bytes)) {
            (Some(waiting), Ok(message)) => {
                if news.try_send(TunnelNews::Message(message, waiting)).is_err() {
                    too_fast(tunnel);
                }
            }
            (None, Ok(_)) => too_fast(tunnel),
            (_, Err(error)) => {
                tracing::warn!(%error, "a proxy sent an unreadable control message: closing its tunnel");
                tunnel.close();
            }
        },
        TunnelEvent::Drained => tunnel.close(),
        TunnelEvent::Ready | TunnelEvent::GoingAway => {}
    }
}

fn too_fast(tunnel: &Tunnel) {
    tracing::warn!("a proxy sends control messages faster than they are handled: closing its tunnel");
    tunnel.close();
}

async fn serve_stream(shared: &Arc<Shared>, proxy: HostId, mut stream: TunnelStream) {
    let request = match read_dial_request(&mut stream, DIAL_MESSAGE_TIMEOUT, "the agent").await {
        Ok(Heard::Request(request)) => *request,
        Ok(Heard::Refused(refusal)) => {
            shared.metrics.streams_refused.increment();
            return refuse(stream, refusal).await;
        }
        Err(error) => {
            tracing::debug!(%error, "a stream did not begin with a dial request");
            return;
        }
    };
    let (own, trace) = (shared.config.host_id, *request.trace_id.as_bytes());
    let parent = match request.from_peer {
        // Through a peer: the home proxy's own part of the trace.
        true => span_id(&trace, proxy.as_bytes(), "dial"),
        false => span_id(&trace, proxy.as_bytes(), "attempt by tunnel"),
    };
    let id = span_id(&trace, own.as_bytes(), "stream");
    let mut span = shared.tracer.begin("agent.stream", SpanKind::Server, trace, id, Some(parent));
    let adapter = shared.adapters.iter().find(|adapter| adapter.serves(&request));
    let refusal = if request.host_id != Some(shared.config.host_id) {
        Some("this stream was meant for another agent".to_owned())
    } else if adapter.is_none() {
        Some("this agent does not serve such a resource".to_owned())
    } else {
        None
    };
    let (Some(adapter), None) = (adapter, &refusal) else {
        shared.metrics.streams_refused.increment();
        span.fail(|| "refused".to_owned());
        return refuse(stream, DialRefusal::invalid(refusal.unwrap_or_default())).await;
    };
    if let Err(error) = write_message(&mut stream, &DialResponse::Established { route: None }).await {
        tracing::debug!(%error, "a dial request could not be answered");
        return;
    }
    shared.metrics.streams_taken.increment();
    let _held = shared.metrics.streams.hold();
    let stream: BoxStream = Box::new(stream);
    let (adapter, shutdown) = (adapter.clone(), shared.stream_shutdown.clone());
    match request.resume {
        None => adapter.serve(Inbound { stream, request, resumption: None }, shutdown).await,
        Some(Resume::New) => {
            let gate = adapter.clone();
            let max_detached = Arc::new(move |user: &UserPrincipal| gate.max_detached(user));
            let Begun { stream, events, keeper } = shared.resumptions.begin(stream, max_detached);
            let inbound = Inbound { stream: Box::new(stream), request, resumption: Some(events) };
            // The keeper ends when the client has everything, or will not come for it any more.
            tokio::join!(adapter.serve(inbound, shutdown), keeper);
        }
        Some(Resume::Reattach) => shared.resumptions.reattach(stream, request.client_address).await,
    }
}

async fn refuse(mut stream: TunnelStream, refusal: DialRefusal) {
    let _ = write_message(&mut stream, &DialResponse::Refused { refusal }).await;
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_version(version: u32, version_oldest: u32, expected: Option<&str>) {
        let proxy = HostId::from_random([1; 16]);
        let hello = ProxyHello {
            version,
            version_oldest,
            proxy_id: proxy.to_string(),
            capabilities: vec!["teleportation".into()],
            release: "9.1".into(),
            ..ProxyHello::default()
        };
        let refused = check_hello(&hello, proxy).err().map(|error| error.to_string());
        assert_eq!(refused.is_some(), expected.is_some(), "{refused:?}");
        if let (Some(refused), Some(expected)) = (refused, expected) {
            assert!(refused.contains("release 9.1") && refused.ends_with(expected), "{refused}");
        }
    }

    #[test]
    fn a_proxy_of_a_newer_release_is_used_if_it_speaks_this_version_too() {
        check_version(1, 0, None);
        check_version(7, 1, None);
        check_version(7, 2, Some(concat!("upgrade this agent (release ", env!("CARGO_PKG_VERSION"), ")")));
        check_version(0, 0, Some("(release 9.1)"));
    }

    #[test]
    fn f_a_proxy_cannot_pile_up_policies_in_an_agents_memory() {
        let (waiting, longest) = (WaitingBytes::default(), CONTROL_BYTES_MAX as usize);
        let first = waiting.take(longest);
        let second = waiting.take(longest);
        assert!(first.is_some() && second.is_some() && waiting.take(1).is_none());
        drop(first);
        drop(waiting.take(longest).expect("what was refused takes no room"));
        drop(second);
        assert_eq!(waiting.0.load(Ordering::Relaxed), 0);
    }
}
