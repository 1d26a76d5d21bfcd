//! Through a balancer that ends TLS: everything runs inside a WebSocket.

use crate::agent::{Agent, hello};
use crate::cluster::{Cluster, PATIENCE, Proxy, ask, check_echo, request, until};
use rustls::ClientConfig;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use wayleave_api::agent::proxy_to_agent;
use wayleave_api::auth::BeginIncarnationRequest;
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::{ALPN_AUTH, ALPN_TUNNEL};
use wayleave_keystore::{
    ClientAuth, Credentials, ServerName, client_config, public_client_config, server_config,
};
use wayleave_net::{AddressBook, UpgradedStream, connect_cluster, connect_tls, tls_over};
use wayleave_rpc::channel_through;
use wayleave_vocab::{HostId, HostPort, SystemRole};

/// What the balancer does with each request.
#[derive(Clone, Copy)]
enum Balancer {
    Plain,
    /// Adds these header lines.
    Adding(&'static str),
}

/// A balancer: ends TLS with its own certificate, knows no ALPN, and speaks HTTP over TLS to the proxy.
async fn balancer(cluster: &Cluster, proxy: &Proxy, kind: Balancer) -> HostPort {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = HostPort::from_socket(listener.local_addr().unwrap());
    let trust = &cluster.authorities.trust;
    let own = cluster.authorities.host(HostId::from_random([0xb0; 16]), &[SystemRole::Proxy]);
    let front = server_config(&own, trust, ClientAuth::None, &[]).unwrap();
    let back = client_config(&Credentials::empty(), trust, SystemRole::Proxy, None, &[b"http/1.1"]).unwrap();
    let (to, group) = (proxy.web.clone(), cluster.tasks.clone());
    cluster.tasks.spawn("balancer", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (front, back, to) = (front.clone(), back.clone(), to.clone());
            group.spawn_many(async move {
                let _ = carry(stream, front, back, to, kind).await;
            });
        }
    });
    address
}

async fn carry(
    stream: TcpStream,
    front: Arc<rustls::ServerConfig>,
    back: Arc<ClientConfig>,
    to: HostPort,
    kind: Balancer,
) -> std::io::Result<()> {
    let mut client = TlsAcceptor::from(front).accept(stream).await?;
    let upstream = TcpStream::connect((to.host(), to.port())).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut proxy = TlsConnector::from(back).connect(name, upstream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    if let Balancer::Adding(lines) = kind {
        head.truncate(head.len() - 2);
        head.extend_from_slice(lines.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    proxy.write_all(&head).await?;
    proxy.flush().await?;
    tokio::io::copy_bidirectional(&mut client, &mut proxy).await?;
    Ok(())
}

struct Rig {
    cluster: Cluster,
    proxy: Proxy,
    outer: Arc<ClientConfig>,
}

async fn rig(trust_x_forwarded_for: bool) -> Rig {
    let cluster = Cluster::start().await;
    let proxy = if trust_x_forwarded_for {
        cluster.proxy_with(cluster.config(1), |service| service.trust_x_forwarded_for(true)).await
    } else {
        cluster.proxy(1).await
    };
    let outer = public_client_config(Some(&cluster.authorities.trust)).unwrap();
    Rig { cluster, proxy, outer }
}

impl Rig {
    fn auth_tls(&self) -> Arc<ClientConfig> {
        let own = self.cluster.authorities.host(self.proxy.id, &[SystemRole::Proxy]);
        let trust = &self.cluster.authorities.trust;
        client_config(&own, trust, SystemRole::Auth, None, &[ALPN_AUTH]).unwrap()
    }

    /// An agent that comes through the balancer.
    async fn agent(&self, balancer: &HostPort, id: HostId) -> Agent {
        let own = self.cluster.authorities.host(id, &[SystemRole::Node]);
        let trust = &self.cluster.authorities.trust;
        let tls = client_config(&own, trust, SystemRole::Proxy, None, &[ALPN_TUNNEL]).unwrap();
        let stream = connect_cluster(balancer, tls, &self.outer).await.unwrap();
        let mut agent = Agent::over(stream, &self.cluster.tasks);
        agent.say(hello(id));
        assert!(matches!(agent.heard().await, Some(proxy_to_agent::Message::Hello(_))));
        agent
    }
}

#[tokio::test]
async fn tunnels_dials_and_auth_go_through_a_balancer_that_ends_tls() {
    let rig = rig(false).await;
    let balancer = balancer(&rig.cluster, &rig.proxy, Balancer::Plain).await;
    let node = HostId::from_random([9; 16]);
    rig.cluster.auth.add_node(node, "web-1");
    let agent = rig.agent(&balancer, node).await;
    drop(rig.cluster.reach(&rig.proxy, "web-1").await);
    let tls = rig.cluster.dial_tls(&rig.cluster.authorities.user("alice"));
    let stream = connect_cluster(&balancer, tls, &rig.outer).await.unwrap();
    let mut stream = ask(stream, &request("web-1")).await.unwrap();
    check_echo(&mut *stream).await;
    let sent = vec![7; 3_000_000];
    let (mut read, mut write) = tokio::io::split(stream);
    let write = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut all = Vec::new();
    let ((), read) = tokio::join!(write, read.read_to_end(&mut all));
    assert_eq!(read.unwrap(), sent.len());
    assert!(all == sent && !agent.tunnel.is_ended());
    let channel = channel_through(AddressBook::new(vec![balancer]), rig.auth_tls(), rig.outer.clone());
    HostClient::new(channel).begin_incarnation(BeginIncarnationRequest {}).await.unwrap();
    assert_eq!(rig.cluster.auth.forwarded().len(), 1);
}

#[tokio::test]
async fn nothing_is_tried_inside_a_websocket_when_the_direct_way_is_there() {
    let rig = rig(false).await;
    let tls = rig.cluster.dial_tls(&rig.cluster.authorities.user("alice"));
    // Nobody is believed by this one: were it used, connecting would fail.
    let none = public_client_config(None).unwrap();
    connect_cluster(&rig.proxy.web, tls, &none).await.unwrap();
}

#[tokio::test]
async fn d_a_balancer_that_nobody_vouches_for_is_refused() {
    let rig = rig(false).await;
    let balancer = balancer(&rig.cluster, &rig.proxy, Balancer::Plain).await;
    let tls = rig.cluster.dial_tls(&rig.cluster.authorities.user("alice"));
    let none = public_client_config(None).unwrap();
    let error = connect_cluster(&balancer, tls, &none).await.err().unwrap();
    assert!(matches!(error, wayleave_net::ConnectError::Tls { .. }), "{error}");
}

#[tokio::test]
async fn b_inside_a_websocket_there_is_no_web_and_no_further_websocket() {
    let rig = rig(false).await;
    let host = rig.proxy.web.to_string();
    let outer = connect_tls(&rig.proxy.web, rig.outer.clone()).await.unwrap();
    let socket = UpgradedStream::request(outer, &host).await.unwrap();
    let inner = tls_over(&rig.proxy.web, rig.outer.clone(), socket).await;
    assert!(inner.is_err(), "TLS for the web is not answered inside");
    let plain = connect_tls(&rig.proxy.web, rig.outer.clone()).await.unwrap();
    let mut socket = UpgradedStream::request(plain, &host).await.unwrap();
    socket.write_all(b"GET /webapi/ping HTTP/1.1\r\n\r\n").await.unwrap();
    socket.flush().await.unwrap();
    assert!(!matches!(socket.read(&mut [0; 16]).await, Ok(1..)), "bytes that are no TLS are not answered");
}

#[tokio::test]
async fn b_a_clients_address_is_the_balancers_word_only_when_it_is_trusted_and_alone() {
    let cases = [
        (false, "X-Forwarded-For: 192.0.2.7\r\n", Some("127.0.0.1")),
        (true, "X-Forwarded-For: 192.0.2.7\r\n", Some("192.0.2.7")),
        (true, "X-Forwarded-For: 10.0.0.1, 192.0.2.7\r\n", None),
        (true, "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 192.0.2.7\r\n", None),
    ];
    for (is_trusted, lines, expected) in cases {
        let rig = rig(is_trusted).await;
        let balancer = balancer(&rig.cluster, &rig.proxy, Balancer::Adding(lines)).await;
        let channel = channel_through(AddressBook::new(vec![balancer]), rig.auth_tls(), rig.outer.clone());
        let called = HostClient::new(channel).begin_incarnation(BeginIncarnationRequest {}).await;
        assert_eq!(called.is_ok(), expected.is_some(), "{lines}");
        let seen: Vec<String> =
            rig.cluster.auth.forwarded().iter().map(|address| address.ip().to_string()).collect();
        assert_eq!(seen, Vec::from_iter(expected.map(str::to_owned)), "{lines}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_websocket() {
    let rig = rig(false).await;
    let balancer = balancer(&rig.cluster, &rig.proxy, Balancer::Plain).await;
    let node = HostId::from_random([9; 16]);
    rig.cluster.auth.add_node(node, "web-1");
    let agent = Agent::connect(&rig.cluster, &rig.proxy.web, node).await;
    drop(rig.cluster.reach(&rig.proxy, "web-1").await);
    let tls = rig.cluster.dial_tls(&rig.cluster.authorities.user("alice"));
    let stream = connect_cluster(&balancer, tls, &rig.outer).await.unwrap();
    let mut stream = ask(stream, &request("web-1")).await.unwrap();
    check_echo(&mut *stream).await;
    until(|| agent.tunnel.stream_count() == 1).await;
    drop(stream);
    until(|| agent.tunnel.stream_count() == 0).await;
    agent.tunnel.close();
    rig.proxy.shutdown.request();
    assert!(rig.proxy.ended.drained(PATIENCE).await, "nothing keeps the proxy");
}
