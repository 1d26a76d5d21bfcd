//! Two proxies: dials through the peer, drains, restarts, and the switch of the strategy; and what peers may ask.

use crate::agent::Agent;
use crate::cluster::{Cluster, PATIENCE, ask, check_echo, request, until};
use bytes::{Buf, BufMut, Bytes};
use std::time::{Duration, Instant};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};
use wayleave_api::agent::proxy_to_agent;
use wayleave_api::auth::cluster_event::Event;
use wayleave_api::auth::{ProxyRecord, ProxyRoutes, RouteUpdate};
use wayleave_api::peer::PeerPingRequest;
use wayleave_api::peer::peer_client::PeerClient;
use wayleave_dial::{DialRefusal, DialRequest, DialResponse, MESSAGE_BYTES_MAX, body_length, decode_body};
use wayleave_keystore::client_config;
use wayleave_net::connect_tls;
use wayleave_telemetry::Diagnostics;
use wayleave_vocab::{HostId, SystemRole};

fn node() -> HostId {
    HostId::from_random([9; 16])
}

#[tokio::test]
async fn a_dial_goes_through_the_peer_and_a_draining_ingress_waits_for_it() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let (home, ingress) = (cluster.proxy(1).await, cluster.proxy(2).await);
    let agent = Agent::connect(&cluster, &home.web, node()).await;
    let mut stream = cluster.reach(&ingress, "web-1").await;
    check_echo(&mut *stream).await;
    assert!(agent.requests.lock().unwrap().last().unwrap().from_peer);
    ingress.shutdown.request();
    until(|| cluster.auth.proxies().iter().any(|p| p.host_id == ingress.id.to_string() && p.draining)).await;
    let refused = tokio::net::TcpStream::connect((ingress.web.host(), ingress.web.port())).await;
    assert!(refused.is_err(), "nothing new is taken");
    check_echo(&mut *stream).await;
    assert_eq!(ingress.ended.running(), 1, "it waits for the stream");
    drop(stream);
    assert!(ingress.ended.drained(PATIENCE).await);
    check_echo(&mut *cluster.reach(&home, "web-1").await).await;
}

#[tokio::test]
async fn a_draining_home_tells_its_agents_and_lets_streams_finish() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let (home, other) = (cluster.proxy(1).await, cluster.proxy(2).await);
    let mut agent = Agent::connect(&cluster, &home.web, node()).await;
    let mut through_home = cluster.reach(&home, "web-1").await;
    let mut through_other = cluster.reach(&other, "web-1").await;
    home.shutdown.request();
    while !matches!(agent.heard().await.unwrap(), proxy_to_agent::Message::Drain(_)) {}
    // It dials elsewhere first, then leaves: what runs goes on, and nothing new comes this way.
    let elsewhere = Agent::connect(&cluster, &other.web, node()).await;
    agent.tunnel.go_away();
    check_echo(&mut *cluster.reach(&other, "web-1").await).await;
    until(|| !elsewhere.requests.lock().unwrap().is_empty()).await;
    check_echo(&mut *through_home).await;
    check_echo(&mut *through_other).await;
    assert_eq!(home.ended.running(), 1);
    drop((through_home, through_other));
    assert!(home.ended.drained(PATIENCE).await);
    assert!(agent.tunnel.is_ended(), "a tunnel that is empty ends");
}

#[tokio::test]
async fn a_tunnel_that_takes_no_more_streams_is_not_dialled() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let proxy = cluster.proxy(1).await;
    let old = Agent::connect(&cluster, &proxy.web, node()).await;
    let mut held = cluster.reach(&proxy, "web-1").await;
    let new = Agent::connect(&cluster, &proxy.web, node()).await;
    new.tunnel.go_away();
    let asked = old.requests.lock().unwrap().len();
    // The newer one is empty and so it ends; the older one is what there is.
    until(|| new.tunnel.is_ended()).await;
    check_echo(&mut *cluster.reach(&proxy, "web-1").await).await;
    assert!(old.requests.lock().unwrap().len() > asked);
    assert!(new.requests.lock().unwrap().is_empty());
    check_echo(&mut *held).await;
}

#[tokio::test]
async fn a_restarted_proxy_is_a_new_life_of_the_same_id() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let (home, other) = (cluster.proxy(1).await, cluster.proxy(2).await);
    let agent = Agent::connect(&cluster, &home.web, node()).await;
    drop(cluster.reach(&other, "web-1").await);
    agent.tunnel.close();
    home.shutdown.request();
    assert!(home.ended.drained(PATIENCE).await);
    let again = cluster.proxy(1).await;
    let _agent = Agent::connect(&cluster, &again.web, node()).await;
    check_echo(&mut *cluster.reach(&other, "web-1").await).await;
}

#[tokio::test]
async fn two_lives_of_a_proxy_serve_at_the_same_time() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let mut config = cluster.config(1);
    config.drain_timeout = PATIENCE;
    let old = cluster.proxy_with(config, |service| service).await;
    let other = cluster.proxy(2).await;
    let before = Agent::connect(&cluster, &old.web, node()).await;
    let mut held = cluster.reach(&other, "web-1").await;
    old.shutdown.request();
    let new = cluster.proxy(1).await;
    // What the old life holds is reached for as long as the new one does not hold it.
    check_echo(&mut *cluster.reach(&other, "web-1").await).await;
    let after = Agent::connect(&cluster, &new.web, node()).await;
    let dialled = || after.requests.lock().unwrap().len();
    while dialled() == 0 {
        check_echo(&mut *cluster.reach(&other, "web-1").await).await;
    }
    check_echo(&mut *held).await;
    assert_eq!(old.ended.running(), 1, "it waits for the stream");
    drop(held);
    before.tunnel.close();
    assert!(old.ended.drained(PATIENCE).await);
    // Its farewell is not one of the new life.
    for _ in 0..20 {
        let known = dialled();
        let mut stream = cluster.dial(&other, "web-1").await.expect("its tunnel is up");
        check_echo(&mut *stream).await;
        assert!(dialled() > known);
    }
}

#[tokio::test]
async fn a_proxy_that_leaves_takes_its_routes_with_it() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let mut config = cluster.config(1);
    config.drain_timeout = Duration::from_millis(200);
    let home = cluster.proxy_with(config, |service| service).await;
    let diagnostics = Diagnostics::default();
    let shown = diagnostics.clone();
    let ingress = cluster.proxy_with(cluster.config(2), |service| service.diagnostics(&shown)).await;
    // It stays until it is cut.
    let _agent = Agent::connect(&cluster, &home.web, node()).await;
    check_echo(&mut *cluster.reach(&ingress, "web-1").await).await;
    home.shutdown.request();
    assert!(home.ended.drained(PATIENCE).await);
    let ended = Instant::now();
    let shows = |line: &str| diagnostics.metrics.render().lines().any(|found| found == line);
    until(|| shows("proxy_routes{state=\"fresh\"} 0") && shows("proxy_routes{state=\"suspect\"} 0")).await;
    assert!(ended.elapsed() < Duration::from_secs(20), "nobody waits until they expire");
}

#[tokio::test]
async fn what_is_missing_of_a_peers_routes_is_asked_for() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let (home, ingress) = (cluster.proxy(1).await, cluster.proxy(2).await);
    let _agent = Agent::connect(&cluster, &home.web, node()).await;
    drop(cluster.reach(&ingress, "web-1").await);
    let nobody = HostId::from_random([0x55; 16]);
    let unheld = DialRequest { from_peer: true, host_id: Some(nobody), ..request("web-1") };
    // Each such answer is a statement of its own.
    let mut last = 0;
    while last < 30 {
        let DialResponse::Refused { refusal: DialRefusal::NotHere { sequence, .. } } =
            peer_dial(&cluster, &home.peer, &unheld).await
        else {
            panic!("it is not there")
        };
        last = sequence;
    }
    let incarnation =
        cluster.auth.proxies().iter().find(|p| p.host_id == home.id.to_string()).unwrap().incarnation;
    // One came, and the one before it did not.
    let removed = vec![node().as_bytes().to_vec()];
    let update =
        RouteUpdate { incarnation, base: last - 2, sequence: last - 1, removed, ..Default::default() };
    cluster.auth.tell(Event::Routes(ProxyRoutes { proxy_id: home.id.to_string(), update: Some(update) }));
    cluster.auth.add_node(nobody, "web-2");
    let is_told = async {
        while let Err(DialResponse::Refused { refusal: DialRefusal::UnknownTarget { .. } }) =
            cluster.dial(&ingress, "web-2").await
        {}
    };
    tokio::time::timeout(PATIENCE, is_told).await.unwrap();
    check_echo(&mut *cluster.reach(&ingress, "web-1").await).await;
}

#[tokio::test]
async fn a_proxy_that_pushes_no_routes_is_known_by_what_auth_tells() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let mut config = cluster.config(1);
    config.pushes_routes = false;
    let home = cluster.proxy_with(config, |service| service).await;
    let ingress = cluster.proxy(2).await;
    let _agent = Agent::connect(&cluster, &home.web, node()).await;
    drop(cluster.reach(&home, "web-1").await);
    let refused = loop {
        match cluster.dial(&ingress, "web-1").await.err().unwrap() {
            DialResponse::Refused { refusal: DialRefusal::UnknownTarget { .. } } => {}
            other => break other,
        }
    };
    assert!(matches!(refused, DialResponse::Refused { refusal: DialRefusal::Offline { .. } }), "{refused:?}");
    let incarnation =
        cluster.auth.proxies().iter().find(|p| p.host_id == home.id.to_string()).unwrap().incarnation;
    let host_ids = vec![node().as_bytes().to_vec()];
    let update = RouteUpdate { incarnation, sequence: 1, snapshot: true, host_ids, ..Default::default() };
    cluster.auth.tell(Event::Routes(ProxyRoutes { proxy_id: home.id.to_string(), update: Some(update) }));
    check_echo(&mut *cluster.reach(&ingress, "web-1").await).await;
}

#[tokio::test]
async fn peers_are_served_while_the_strategy_is_peering() {
    let cluster = Cluster::start().await;
    cluster.auth.set_strategy("{\"type\":\"agent_mesh\"}");
    cluster.auth.add_node(node(), "web-1");
    let (home, other) = (cluster.proxy_without_peering(1).await, cluster.proxy_without_peering(2).await);
    let _agent = Agent::connect(&cluster, &home.web, node()).await;
    check_echo(&mut *cluster.reach(&home, "web-1").await).await;
    assert!(cluster.auth.proxies().iter().all(|proxy| proxy.peer_address.is_empty()));
    assert!(matches!(cluster.dial(&other, "web-1").await, Err(DialResponse::Refused { .. })));
    cluster.auth.set_strategy("{\"type\":\"proxy_peering\",\"agent_connection_count\":1}");
    check_echo(&mut *cluster.reach(&other, "web-1").await).await;
    assert!(cluster.auth.proxies().iter().all(|proxy| !proxy.peer_address.is_empty()));
}

#[tokio::test]
async fn c_a_peer_is_the_proxy_that_is_expected() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let (home, ingress) = (cluster.proxy(1).await, cluster.proxy(2).await);
    let claimed = HostId::from_random([0x77; 16]);
    // Somebody says that a third proxy is where the first one is.
    cluster.auth.tell(Event::ProxyPut(ProxyRecord {
        host_id: claimed.to_string(),
        incarnation: 77,
        peer_address: home.peer.to_string(),
        ..ProxyRecord::default()
    }));
    let own = cluster.authorities.host(ingress.id, &[SystemRole::Proxy]);
    let trust = &cluster.authorities.trust;
    let expecting = |id| client_config(&own, trust, SystemRole::Proxy, Some(id), &[b"h2"]).unwrap();
    assert!(connect_tls(&home.peer, expecting(claimed)).await.is_err());
    assert!(connect_tls(&home.peer, expecting(home.id)).await.is_ok());
    let _agent = Agent::connect(&cluster, &home.web, node()).await;
    check_echo(&mut *cluster.reach(&ingress, "web-1").await).await;
}

#[tokio::test]
async fn o_a_lying_peer_reaches_only_what_is_held_here_and_says_so() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let (home, other) = (cluster.proxy(1).await, cluster.proxy(2).await);
    let _agent = Agent::connect(&cluster, &home.web, node()).await;
    drop(cluster.reach(&other, "web-1").await);
    let from_peer = DialRequest { from_peer: true, host_id: Some(node()), ..request("web-1") };
    let refusal = |answer| match answer {
        DialResponse::Refused { refusal } => refusal,
        DialResponse::Established { .. } => panic!("it is refused"),
    };
    // One hop only: the second proxy does not pass it on to the first.
    let not_here = refusal(peer_dial(&cluster, &other.peer, &from_peer).await);
    assert!(matches!(not_here, DialRefusal::NotHere { .. }), "{not_here}");
    for bad in [
        DialRequest { from_peer: false, ..from_peer.clone() },
        DialRequest { host_id: None, ..from_peer.clone() },
        DialRequest { v: 9, ..from_peer.clone() },
    ] {
        let refused = refusal(peer_dial(&cluster, &home.peer, &bad).await);
        assert!(matches!(refused, DialRefusal::Invalid { .. }), "{refused}");
    }
    assert!(matches!(
        peer_dial(&cluster, &home.peer, &from_peer).await,
        DialResponse::Established { route: None }
    ));
}

/// The answer to a `Dial` call of some third proxy.
pub(crate) async fn peer_dial(
    cluster: &Cluster,
    address: &wayleave_vocab::HostPort,
    dial: &DialRequest,
) -> DialResponse {
    let own = cluster.authorities.host(HostId::from_random([0x66; 16]), &[SystemRole::Proxy]);
    let tls = client_config(&own, &cluster.authorities.trust, SystemRole::Proxy, None, &[b"h2"]).unwrap();
    let mut grpc = tonic::client::Grpc::new(wayleave_rpc::channel(address.clone(), tls));
    grpc.ready().await.unwrap();
    let first = Bytes::from(wayleave_dial::encode(dial).unwrap());
    let path = http::uri::PathAndQuery::from_static("/wayleave.peer.v1.PeerDial/Dial");
    let messages = tokio_stream::once(first);
    let answer = grpc.streaming(tonic::Request::new(messages), path, Plain).await.unwrap();
    let message = answer.into_inner().message().await.unwrap().unwrap();
    assert!(message.len() <= MESSAGE_BYTES_MAX);
    let length = body_length([message[0], message[1]]).unwrap();
    decode_body(&message[2..2 + length]).unwrap()
}

/// Messages that are plain bytes.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = input.remaining();
        Ok(Some(input.copy_to_bytes(length)))
    }
}

/// Who may call the peer service: the proxies of this cluster, and nobody else.
#[tokio::test]
async fn c_only_proxies_of_the_cluster_are_peers() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let elsewhere = crate::authority::Authorities::new("other");
    let id = HostId::from_random([0x66; 16]);
    let own = &cluster.authorities;
    for (who, credentials, is_peer) in [
        ("a proxy", own.host(id, &[SystemRole::Proxy]), true),
        ("an agent", own.host(id, &[SystemRole::Node]), false),
        ("Auth", own.host(id, &[SystemRole::Auth]), false),
        ("a user", own.user("alice"), false),
        ("nobody", wayleave_keystore::Credentials::empty(), false),
        ("a proxy of another cluster", elsewhere.host(id, &[SystemRole::Proxy]), false),
    ] {
        let tls = client_config(&credentials, &own.trust, SystemRole::Proxy, None, &[b"h2"]).unwrap();
        let mut client = PeerClient::new(wayleave_rpc::channel(proxy.peer.clone(), tls));
        let pinged = client.ping(PeerPingRequest { version: 1, ..PeerPingRequest::default() }).await;
        match pinged {
            Ok(_) => assert!(is_peer, "{who} may not"),
            Err(status) => assert!(!is_peer && status.code() != Code::Ok, "{who}: {status}"),
        }
    }
    let tls = cluster.dial_tls(&own.user("alice"));
    let unknown = ask(connect_tls(&proxy.web, tls).await.unwrap(), &request("nowhere")).await;
    assert!(matches!(
        unknown.err(),
        Some(DialResponse::Refused { refusal: DialRefusal::UnknownTarget { .. } })
    ));
}
