//! Peers that are silent, slow or half-open on every listener (letter A), and bytes that are nothing (letter F).

use crate::agent::{self, Agent};
use crate::cluster::{Cluster, PATIENCE, Proxy, check_echo};
use rustls::ClientConnection;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wayleave_keystore::{Credentials, ServerName, client_config, public_client_config};
use wayleave_net::{BoxStream, Stream, UpgradedStream, connect_tls};
use wayleave_proxy::ProxyProtocol;
use wayleave_vocab::{HostId, HostPort, SystemRole};

/// A control message that agents are sent, not one that they send.
const CONTROL_TOO_LONG: usize = 70 * 1024;
/// How many of each kind stall at once.
const STALLED_OF_EACH: usize = 10;

/// How far a peer goes before it says nothing more.
#[derive(Debug, Clone, Copy)]
enum Stall {
    NoBytes,
    HalfHello,
    NoCertificate,
    TunnelTls,
    TunnelPreface,
    DialTls,
    DialHalf,
    WebTls,
    WebHalf,
    WebSocket,
    PeerNoBytes,
    PeerTls,
}

const STALLS: [Stall; 12] = [
    Stall::NoBytes,
    Stall::HalfHello,
    Stall::NoCertificate,
    Stall::TunnelTls,
    Stall::TunnelPreface,
    Stall::DialTls,
    Stall::DialHalf,
    Stall::WebTls,
    Stall::WebHalf,
    Stall::WebSocket,
    Stall::PeerNoBytes,
    Stall::PeerTls,
];

async fn tcp(address: &HostPort) -> TcpStream {
    TcpStream::connect((address.host(), address.port())).await.unwrap()
}

/// The bytes of a ClientHello that offers a dial.
fn client_hello(cluster: &Cluster) -> Vec<u8> {
    let config = cluster.dial_tls(&Credentials::empty());
    let mut client = ClientConnection::new(config, ServerName::try_from("proxy").unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

async fn dial_tls(cluster: &Cluster, proxy: &Proxy) -> impl Stream {
    let tls = cluster.dial_tls(&cluster.authorities.user("alice"));
    connect_tls(&proxy.web, tls).await.unwrap()
}

async fn web_tls(cluster: &Cluster, proxy: &Proxy) -> impl Stream {
    let tls = public_client_config(Some(&cluster.authorities.trust)).unwrap();
    connect_tls(&proxy.web, tls).await.unwrap()
}

async fn tunnel_tls(cluster: &Cluster, proxy: &Proxy) -> impl Stream {
    let credentials = cluster.authorities.host(HostId::from_random([0xcc; 16]), &[SystemRole::Node]);
    agent::tls(cluster, &proxy.web, &credentials).await.unwrap()
}

async fn peer_tls(cluster: &Cluster, address: &HostPort) -> impl Stream {
    let own = cluster.authorities.host(HostId::from_random([0xdd; 16]), &[SystemRole::Proxy]);
    let trust = &cluster.authorities.trust;
    let tls = client_config(&own, trust, SystemRole::Proxy, None, &[b"h2"]).unwrap();
    connect_tls(address, tls).await.unwrap()
}

async fn begin(cluster: &Cluster, proxy: &Proxy, stall: Stall) -> BoxStream {
    let with = |mut stream: BoxStream, bytes: Vec<u8>| async move {
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    match stall {
        Stall::NoBytes => Box::new(tcp(&proxy.web).await),
        Stall::HalfHello => {
            with(Box::new(tcp(&proxy.web).await), client_hello(cluster)[..100].to_vec()).await
        }
        Stall::NoCertificate => with(Box::new(tcp(&proxy.web).await), client_hello(cluster)).await,
        Stall::TunnelTls => Box::new(tunnel_tls(cluster, proxy).await),
        Stall::TunnelPreface => {
            let preface = wayleave_mux::frame::Preface { window_open_bytes: 65536, peer_streams_max: 16 };
            with(Box::new(tunnel_tls(cluster, proxy).await), preface.encode().to_vec()).await
        }
        Stall::DialTls => Box::new(dial_tls(cluster, proxy).await),
        Stall::DialHalf => with(Box::new(dial_tls(cluster, proxy).await), b"\x00\x40{\"v\"".to_vec()).await,
        Stall::WebTls => Box::new(web_tls(cluster, proxy).await),
        Stall::WebHalf => with(Box::new(web_tls(cluster, proxy).await), b"GET /webapi/".to_vec()).await,
        Stall::WebSocket => {
            let outer = web_tls(cluster, proxy).await;
            Box::new(UpgradedStream::request(outer, "proxy").await.unwrap())
        }
        Stall::PeerNoBytes => Box::new(tcp(&proxy.peer).await),
        Stall::PeerTls => Box::new(peer_tls(cluster, &proxy.peer).await),
    }
}

/// Reads until the other side has closed, however it does that.
async fn until_closed(mut stream: BoxStream, what: &str) {
    let mut rest = [0; 4096];
    let reading = async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} };
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("{what} is never closed"));
}

#[tokio::test]
async fn a_stalled_peers_on_every_listener_delay_nobody_and_are_closed_in_time() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let node = HostId::from_random([9; 16]);
    cluster.auth.add_node(node, "web-1");
    let mut stalled = Vec::new();
    for stall in STALLS {
        for _ in 0..STALLED_OF_EACH {
            stalled.push((stall, begin(&cluster, &proxy, stall).await));
        }
    }
    let _agent = Agent::connect(&cluster, &proxy.web, node).await;
    let mut stream = cluster.reach(&proxy, "web-1").await;
    check_echo(&mut *stream).await;
    let closed = stalled.into_iter().map(|(stall, stream)| async move {
        until_closed(stream, &format!("{stall:?}")).await;
    });
    futures::future::join_all(closed).await;
    check_echo(&mut *stream).await;
}

#[tokio::test]
async fn a_listener_full_of_silent_peers_lets_a_good_client_in() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config(1);
    config.connections_max = 6;
    let proxy = cluster.proxy_with(config, |service| service).await;
    let node = HostId::from_random([9; 16]);
    cluster.auth.add_node(node, "web-1");
    let _agent = Agent::connect(&cluster, &proxy.web, node).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(tcp(&proxy.web).await);
    }
    let tls = cluster.dial_tls(&cluster.authorities.user("alice"));
    let trying = async {
        loop {
            if let Ok(stream) = connect_tls(&proxy.web, tls.clone()).await {
                return stream;
            }
            tokio::task::yield_now().await;
        }
    };
    let stream = tokio::time::timeout(PATIENCE, trying).await.expect("a stranger gives way");
    let mut stream = crate::cluster::ask(stream, &crate::cluster::request("web-1")).await.unwrap();
    check_echo(&mut *stream).await;
    // The ones that are known stay, however many strangers come.
    for _ in 0..20 {
        silent.push(tcp(&proxy.web).await);
    }
    check_echo(&mut *stream).await;
}

#[tokio::test]
async fn f_bytes_that_are_nothing_close_their_own_connection_only() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let node = HostId::from_random([9; 16]);
    cluster.auth.add_node(node, "web-1");
    let _agent = Agent::connect(&cluster, &proxy.web, node).await;
    let mut good = cluster.reach(&proxy, "web-1").await;
    let oversized_control = {
        let preface = wayleave_mux::frame::Preface { window_open_bytes: 65536, peer_streams_max: 16 };
        let mut bytes = preface.encode().to_vec();
        bytes.extend_from_slice(&[0xff; 64]);
        bytes
    };
    let record = [&[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 0x4000]].concat();
    let head = format!("GET /webapi/ping HTTP/1.1\r\nHost: p\r\nX-Long: {}\r\n\r\n", "x".repeat(64 * 1024));
    let cases: Vec<(&str, BoxStream, Vec<u8>)> = vec![
        ("noise", Box::new(tcp(&proxy.web).await), vec![0xff; 100]),
        ("plain HTTP", Box::new(tcp(&proxy.web).await), b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("SSH", Box::new(tcp(&proxy.web).await), b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ("an endless hello", Box::new(tcp(&proxy.web).await), record.repeat(2)),
        ("a PROXY header", Box::new(tcp(&proxy.web).await), b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec()),
        ("a long dial request", Box::new(dial_tls(&cluster, &proxy).await), vec![0xff; 2]),
        ("no dial request", Box::new(dial_tls(&cluster, &proxy).await), b"\x00\x02{]".to_vec()),
        ("no tunnel", Box::new(tunnel_tls(&cluster, &proxy).await), vec![0xff; 64]),
        ("bad frames", Box::new(tunnel_tls(&cluster, &proxy).await), oversized_control),
        ("long headers", Box::new(web_tls(&cluster, &proxy).await), head.into_bytes()),
        ("no HTTP", Box::new(web_tls(&cluster, &proxy).await), vec![0xff; 64]),
        ("noise to peers", Box::new(tcp(&proxy.peer).await), vec![0xff; 100]),
        ("no HTTP/2", Box::new(peer_tls(&cluster, &proxy.peer).await), vec![0xff; 64]),
    ];
    for (what, mut stream, bytes) in cases {
        let _may_be_closed_already = stream.write_all(&bytes).await;
        let _may_be_closed_already = stream.flush().await;
        until_closed(stream, what).await;
        check_echo(&mut *good).await;
    }
}

#[tokio::test]
async fn f_an_agent_that_says_too_much_or_opens_streams_loses_its_tunnel() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let long = Agent::connect(&cluster, &proxy.web, HostId::from_random([9; 16])).await;
    long.tunnel.send_control(vec![0; CONTROL_TOO_LONG].into()).unwrap();
    let mut fast = Agent::connect(&cluster, &proxy.web, HostId::from_random([8; 16])).await;
    for _ in 0..3000 {
        let _full_at_some_time = fast.tunnel.send_control(vec![0xff; 8].into());
    }
    let opening = Agent::connect(&cluster, &proxy.web, HostId::from_random([7; 16])).await;
    assert!(opening.tunnel.open(wayleave_mux::Class::Bulk).is_err(), "agents open no streams");
    while fast.heard().await.is_some() {}
    crate::cluster::until(|| long.tunnel.is_ended() && fast.tunnel.is_ended()).await;
    assert!(!opening.tunnel.is_ended());
}

#[tokio::test]
async fn a_proxy_headers_are_required_from_balancers_and_refused_from_others() {
    let cluster = Cluster::start().await;
    let header = "PROXY TCP4 192.0.2.7 127.0.0.1 4000 443\r\n";
    let rig = |networks: &str| ProxyProtocol::RequiredFrom(vec![networks.parse().unwrap()]);
    let mut config = cluster.config(1);
    config.proxy_protocol = rig("127.0.0.0/8");
    let proxy = cluster.proxy_with(config, |service| service).await;
    let mut half = tcp(&proxy.web).await;
    half.write_all(&header.as_bytes()[..20]).await.unwrap();
    let mut without = tcp(&proxy.web).await;
    without.write_all(&client_hello(&cluster)).await.unwrap();
    until_closed(Box::new(without), "a hello without a header").await;
    let seen = auth_through(&cluster, &proxy, header).await;
    assert_eq!(seen.as_deref(), Some("192.0.2.7:4000"));
    until_closed(Box::new(half), "half a header").await;
    let mut config = cluster.config(2);
    config.proxy_protocol = rig("10.0.0.0/8");
    let other = cluster.proxy_with(config, |service| service).await;
    assert_eq!(auth_through(&cluster, &other, header).await, None);
    assert_eq!(auth_through(&cluster, &other, "").await, None, "who is no balancer is refused");
}

/// Begins a connection to Auth behind `header`; gives the address that Auth is told, or nothing when it is refused.
async fn auth_through(cluster: &Cluster, proxy: &Proxy, header: &str) -> Option<String> {
    let own = cluster.authorities.host(HostId::from_random([0xee; 16]), &[SystemRole::Node]);
    let trust = &cluster.authorities.trust;
    let tls = client_config(&own, trust, SystemRole::Auth, None, &[wayleave_api::ALPN_AUTH]).unwrap();
    let mut stream = tcp(&proxy.web).await;
    stream.write_all(header.as_bytes()).await.unwrap();
    let tls = wayleave_net::tls_over(&proxy.web, Arc::clone(&tls), stream).await;
    tls.ok()?;
    cluster.auth.forwarded().last().map(ToString::to_string)
}

/// Who is refused in the handshake can read why, also when he has sent more than was read.
#[tokio::test]
async fn a_refusal_is_no_reset() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let nonsense = vec![0xff; 64 * 1024];
    let after_hello = [client_hello(&cluster), nonsense.clone()].concat();
    for (address, sent) in [(&proxy.web, after_hello), (&proxy.peer, nonsense)] {
        let (mut stream, mut heard) = (tcp(address).await, Vec::new());
        stream.write_all(&sent).await.unwrap();
        let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard));
        reading.await.unwrap().expect("no reset");
        assert!(!heard.is_empty(), "{address}");
    }
}
