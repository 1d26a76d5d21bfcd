//! Simulated agents: each has its own certificate, TLS connection and tunnel, and joins what is dialled to the target.

use crate::authority::{Authority, agent_id};
use crate::latency::Latencies;
use crate::options::AgentsOptions;
use crate::{say, wait_end_of_input};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::StreamExt as _;
use prost::Message as _;
use rustls::ClientConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use wayleave_api::CONTROL_VERSIONS;
use wayleave_api::agent::{AgentHello, AgentToProxy, PolicyHeld, ProxyHello, ProxyToAgent};
use wayleave_api::agent::{agent_to_proxy, proxy_to_agent};
use wayleave_dial::{DialRequest, DialResponse};
use wayleave_mux::{Config, Role};
use wayleave_net::{
    DIAL_MESSAGE_TIMEOUT, Tunnel, TunnelEvent, TunnelStream, connect_tls, read_message, splice, write_message,
};
use wayleave_runtime::TaskGroup;
use wayleave_vocab::{HostId, HostPort};

/// Connections under way at a time.
const CONNECTING_MAX: usize = 32;
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);
/// A policy that is newer than any: nothing is sent to who holds it.
const POLICY_HELD: PolicyHeld = PolicyHeld { generation: u64::MAX, counter: u64::MAX };

pub(crate) async fn run(options: AgentsOptions) -> Result<()> {
    let authority = Authority::read(&options.ca)?;
    let (tasks, ended) = (TaskGroup::new(), Arc::new(AtomicU64::new(0)));
    let started = Instant::now();
    let numbers = options.first..options.first + options.count;
    let connecting = futures::stream::iter(numbers).map(|number| {
        let id = agent_id(number);
        let tls = authority.tunnel_tls(id);
        let (tasks, ended, proxy) = (tasks.clone(), ended.clone(), &options.proxy);
        async move {
            let began = Instant::now();
            let on_end = move || {
                ended.fetch_add(1, Ordering::Relaxed);
            };
            let (tunnel, _) = connect(proxy, tls?, options.target, &tasks, |_| {}, on_end).await?;
            greet(&tunnel, id)?;
            Ok::<_, anyhow::Error>(began.elapsed())
        }
    });
    let mut latencies = Latencies::default();
    let mut connecting = std::pin::pin!(connecting.buffer_unordered(CONNECTING_MAX));
    while let Some(connected) = connecting.next().await {
        latencies.add(connected.context("an agent does not connect")?);
    }
    say(&latencies.report(started.elapsed()))?;
    wait_end_of_input().await?;
    let lost = ended.load(Ordering::Relaxed);
    ensure!(lost == 0, "{lost} tunnels ended by themselves");
    Ok(())
}

/// Connects to a proxy and hears its hello. What it says later goes to `on_message`; `on_end` ends the tunnel.
pub(crate) async fn connect(
    proxy: &HostPort,
    tls: Arc<ClientConfig>,
    target: SocketAddr,
    tasks: &TaskGroup,
    mut on_message: impl FnMut(proxy_to_agent::Message) + Send + 'static,
    on_end: impl FnOnce() + Send + 'static,
) -> Result<(Tunnel, ProxyHello)> {
    let stream = connect_tls(proxy, tls).await?;
    let (tunnel, driver) = Tunnel::new(Role::Connector, Config::default(), stream);
    let (said, hello) = oneshot::channel();
    let (mut said, streams) = (Some(said), tasks.clone());
    tasks.spawn_many(async move {
        let on_event = |event| match event {
            TunnelEvent::Opened(stream) => {
                // What goes wrong is seen by the client that waits for an answer.
                streams.spawn_many(async move { drop(answer(stream, target).await) });
            }
            TunnelEvent::Control(bytes) => match ProxyToAgent::decode(bytes).map(|said| said.message) {
                Ok(Some(proxy_to_agent::Message::Hello(hello))) => {
                    if let Some(said) = said.take() {
                        let _ = said.send(hello);
                    }
                }
                Ok(Some(message)) => on_message(message),
                Ok(None) => {}
                Err(error) => eprintln!("a proxy is not understood: {error}"),
            },
            TunnelEvent::Ready | TunnelEvent::GoingAway | TunnelEvent::Drained => {}
        };
        driver.run(on_event).await;
        on_end();
    });
    let hello = tokio::time::timeout(HELLO_TIMEOUT, hello).await.context("no hello")??;
    Ok((tunnel, hello))
}

/// Says who the agent is: from then on the proxy has it.
pub(crate) fn greet(tunnel: &Tunnel, id: HostId) -> Result<()> {
    let hello = AgentHello {
        version: CONTROL_VERSIONS.newest(),
        version_oldest: CONTROL_VERSIONS.oldest(),
        host_id: id.to_string(),
        services: vec!["ssh".to_owned()],
        capabilities: Vec::new(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        policy_held: Some(POLICY_HELD),
        started_ms: 1,
    };
    let message = AgentToProxy { message: Some(agent_to_proxy::Message::Hello(hello)) };
    tunnel.send_control(Bytes::from(message.encode_to_vec()))?;
    Ok(())
}

async fn answer(mut stream: TunnelStream, target: SocketAddr) -> Result<()> {
    let _: DialRequest = read_message(&mut stream, DIAL_MESSAGE_TIMEOUT).await?;
    let joined = TcpStream::connect(target).await?;
    joined.set_nodelay(true)?;
    write_message(&mut stream, &DialResponse::Established { route: None }).await?;
    splice(stream, joined).await?;
    Ok(())
}
