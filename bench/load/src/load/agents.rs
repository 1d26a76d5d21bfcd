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
use wayleave_api::CONTROL_VERSION;
use wayleave_api::agent::{AgentHello, AgentToProxy, PolicyHeld, agent_to_proxy};
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
            connect(proxy, tls?, id, options.target, &tasks, ended).await?;
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

async fn connect(
    proxy: &HostPort,
    tls: Arc<ClientConfig>,
    id: HostId,
    target: SocketAddr,
    tasks: &TaskGroup,
    ended: Arc<AtomicU64>,
) -> Result<()> {
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
            TunnelEvent::Control(_) => {
                if let Some(said) = said.take() {
                    let _ = said.send(());
                }
            }
            TunnelEvent::Ready | TunnelEvent::GoingAway | TunnelEvent::Drained => {}
        };
        driver.run(on_event).await;
        ended.fetch_add(1, Ordering::Relaxed);
    });
    tokio::time::timeout(HELLO_TIMEOUT, hello).await.context("no hello")??;
    let hello = AgentHello {
        version: CONTROL_VERSION,
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
