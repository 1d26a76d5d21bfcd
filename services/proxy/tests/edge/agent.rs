//! An agent that takes every stream and sends back what it is sent.

use crate::cluster::Cluster;
use bytes::Bytes;
use prost::Message;
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use wayleave_api::agent::{
    AgentHello, AgentToProxy, PolicyHeld, ProxyToAgent, agent_to_proxy, proxy_to_agent,
};
use wayleave_api::{ALPN_TUNNEL, CONTROL_VERSIONS};
use wayleave_dial::{DialRequest, DialResponse};
use wayleave_keystore::{Credentials, client_config};
use wayleave_mux::{Config, Role};
use wayleave_net::{
    BoxStream, DIAL_MESSAGE_TIMEOUT, ReadAhead, Stream, Tunnel, TunnelEvent, TunnelStream, connect_tls,
    read_message, write_message,
};
use wayleave_runtime::TaskGroup;
use wayleave_vocab::{HostId, HostPort, SystemRole};

pub(crate) struct Agent {
    pub(crate) tunnel: Tunnel,
    /// What the proxy says.
    pub(crate) control: mpsc::Receiver<proxy_to_agent::Message>,
    /// The dial requests that came.
    pub(crate) requests: Arc<Mutex<Vec<DialRequest>>>,
}

impl Agent {
    /// Connects to a proxy with an honest certificate and hello, and waits for the proxy's hello.
    pub(crate) async fn connect(cluster: &Cluster, proxy: &HostPort, id: HostId) -> Self {
        Self::connect_saying(cluster, proxy, id, hello(id)).await
    }

    /// The same with a hello of another release.
    pub(crate) async fn connect_saying(
        cluster: &Cluster,
        proxy: &HostPort,
        id: HostId,
        hello: AgentHello,
    ) -> Self {
        let credentials = cluster.authorities.host(id, &[SystemRole::Node]);
        let stream: BoxStream = Box::new(tls(cluster, proxy, &credentials).await.unwrap());
        let mut agent = Self::over(stream, &cluster.tasks);
        agent.say(hello);
        assert!(matches!(agent.heard().await, Some(proxy_to_agent::Message::Hello(_))));
        agent
    }

    /// Speaks over a stream, and says nothing by itself.
    pub(crate) fn over<S: Stream>(stream: S, tasks: &TaskGroup) -> Self {
        let (tunnel, driver) = Tunnel::new(Role::Connector, Config::default(), stream);
        let (sender, control) = mpsc::channel(1024);
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (group, noted) = (tasks.clone(), requests.clone());
        tasks.spawn_many(async move {
            driver
                .run(|event| match event {
                    TunnelEvent::Opened(stream) => {
                        let noted = noted.clone();
                        group.spawn_many(async move { echo(stream, noted).await });
                    }
                    TunnelEvent::Control(bytes) => {
                        if let Some(message) = ProxyToAgent::decode(bytes).unwrap().message {
                            sender.try_send(message).unwrap();
                        }
                    }
                    TunnelEvent::Ready | TunnelEvent::GoingAway | TunnelEvent::Drained => {}
                })
                .await;
        });
        Self { tunnel, control, requests }
    }

    pub(crate) fn say(&self, hello: AgentHello) {
        let message = AgentToProxy { message: Some(agent_to_proxy::Message::Hello(hello)) };
        self.tunnel.send_control(Bytes::from(message.encode_to_vec())).unwrap();
    }

    /// Says which policy it holds.
    pub(crate) fn say_policy_held(&self, counter: u64) {
        let held = PolicyHeld { generation: 1, counter };
        let message = AgentToProxy { message: Some(agent_to_proxy::Message::PolicyHeld(held)) };
        self.tunnel.send_control(Bytes::from(message.encode_to_vec())).unwrap();
    }

    /// The next thing that the proxy says; `None` when the tunnel has ended.
    pub(crate) async fn heard(&mut self) -> Option<proxy_to_agent::Message> {
        self.control.recv().await
    }
}

pub(crate) fn hello(id: HostId) -> AgentHello {
    AgentHello {
        version: CONTROL_VERSIONS.newest(),
        version_oldest: CONTROL_VERSIONS.oldest(),
        host_id: id.to_string(),
        services: vec!["ssh".into()],
        capabilities: Vec::new(),
        release: "test".into(),
        policy_held: None,
        started_ms: 1,
    }
}

/// TLS as an agent begins it, with any certificate.
pub(crate) async fn tls(
    cluster: &Cluster,
    proxy: &HostPort,
    credentials: &Credentials,
) -> Result<TlsStream<ReadAhead<tokio::net::TcpStream>>, wayleave_net::ConnectError> {
    let trust = &cluster.authorities.trust;
    let config = client_config(credentials, trust, SystemRole::Proxy, None, &[ALPN_TUNNEL]).unwrap();
    connect_tls(proxy, config).await
}

async fn echo(mut stream: TunnelStream, noted: Arc<Mutex<Vec<DialRequest>>>) {
    let Ok(request) = read_message::<DialRequest, _>(&mut stream, DIAL_MESSAGE_TIMEOUT).await else { return };
    noted.lock().unwrap().push(request);
    if write_message(&mut stream, &DialResponse::Established { route: None }).await.is_err() {
        return;
    }
    let (mut read, mut write) = tokio::io::split(stream);
    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
        let _ = write.shutdown().await;
    }
}
