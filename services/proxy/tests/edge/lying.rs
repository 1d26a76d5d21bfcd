//! What others say of themselves counts for nothing: clients, agents and peers that lie.

use crate::agent::{self, Agent, hello};
use crate::authority::Authorities;
use crate::cluster::{Cluster, PATIENCE, Proxy, ask, check_echo, request, until};
use wayleave_api::agent::AgentHello;
use wayleave_api::auth::cluster_event::Event;
use wayleave_api::auth::{ProxyRecord, ProxyRoutes, RouteUpdate};
use wayleave_dial::{DialRefusal, DialRequest, DialResponse};
use wayleave_keystore::Credentials;
use wayleave_net::{connect_tls, read_message, write_message};
use wayleave_vocab::{HostId, SystemRole};

#[tokio::test]
async fn b_what_a_client_says_of_itself_and_of_the_way_is_overwritten() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let (node, other) = (HostId::from_random([9; 16]), HostId::from_random([8; 16]));
    cluster.auth.add_node(node, "web-1");
    cluster.auth.add_node(other, "web-2");
    let agent = Agent::connect(&cluster, &proxy.web, node).await;
    let victim = Agent::connect(&cluster, &proxy.web, other).await;
    drop(cluster.reach(&proxy, "web-1").await);
    let lie = DialRequest {
        host_id: Some(other),
        from_peer: true,
        client_address: Some("192.0.2.1:1".parse().unwrap()),
        ..request("web-1")
    };
    let tls = cluster.dial_tls(&cluster.authorities.user("alice"));
    let mut stream = ask(connect_tls(&proxy.web, tls).await.unwrap(), &lie).await.unwrap();
    check_echo(&mut *stream).await;
    let seen = agent.requests.lock().unwrap().pop().unwrap();
    assert_eq!(seen.host_id, Some(node));
    assert!(!seen.from_peer);
    assert_eq!(seen.client_address.unwrap().ip().to_string(), "127.0.0.1");
    assert!(victim.requests.lock().unwrap().is_empty(), "the other agent hears nothing");
}

/// Every identity on every protocol of the public port that wants one.
#[tokio::test]
async fn c_each_protocol_serves_its_own_kind_of_identity_only() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let elsewhere = Authorities::new("other");
    let (own, id) = (&cluster.authorities, HostId::from_random([5; 16]));
    let identities = [
        ("a user", own.user("alice"), [false, true]),
        ("an agent", own.host(id, &[SystemRole::Node]), [true, false]),
        ("a proxy", own.host(id, &[SystemRole::Proxy]), [false, false]),
        ("Auth", own.host(id, &[SystemRole::Auth]), [false, false]),
        ("nobody", Credentials::empty(), [false, false]),
        ("a user of another cluster", elsewhere.user("alice"), [false, false]),
        ("an agent of another cluster", elsewhere.host(id, &[SystemRole::Node]), [false, false]),
    ];
    for (who, credentials, [may_tunnel, may_dial]) in identities {
        assert_eq!(tunnels(&cluster, &proxy, &credentials, id).await, may_tunnel, "{who} tunnels");
        assert_eq!(dials(&cluster, &proxy, &credentials).await, may_dial, "{who} dials");
    }
}

/// The proxy takes this identity for an agent.
async fn tunnels(cluster: &Cluster, proxy: &Proxy, credentials: &Credentials, id: HostId) -> bool {
    let Ok(stream) = agent::tls(cluster, &proxy.web, credentials).await else { return false };
    let mut agent = Agent::over(stream, &cluster.tasks);
    agent.say(hello(id));
    agent.heard().await.is_some()
}

/// The proxy answers this identity's dial request.
async fn dials(cluster: &Cluster, proxy: &Proxy, credentials: &Credentials) -> bool {
    let Ok(mut stream) = connect_tls(&proxy.web, cluster.dial_tls(credentials)).await else { return false };
    if write_message(&mut stream, &request("nowhere")).await.is_err() {
        return false;
    }
    read_message::<DialResponse, _>(&mut stream, PATIENCE).await.is_ok()
}

#[tokio::test]
async fn o_an_agent_speaks_for_its_own_id_only() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let (own, victim) = (HostId::from_random([5; 16]), HostId::from_random([6; 16]));
    cluster.auth.add_node(victim, "web-1");
    let credentials = cluster.authorities.host(own, &[SystemRole::Node]);
    for bad in
        [hello(victim), AgentHello { version: 9, version_oldest: 9, ..hello(own) }, AgentHello::default()]
    {
        let stream = agent::tls(&cluster, &proxy.web, &credentials).await.unwrap();
        let mut liar = Agent::over(stream, &cluster.tasks);
        liar.say(bad);
        while liar.heard().await.is_some() {}
    }
    let asking = async {
        loop {
            match cluster.dial(&proxy, "web-1").await {
                Ok(_) => panic!("the liar is reached under the name of another"),
                Err(DialResponse::Refused { refusal: DialRefusal::Offline { .. } }) => return,
                // The node's name has not arrived yet.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("it is offline");
}

/// A proxy of the cluster says that it holds the tunnels of agents that are elsewhere.
#[tokio::test]
async fn o_a_false_route_keeps_nobody_from_the_true_one() {
    let cluster = Cluster::start().await;
    let node = HostId::from_random([9; 16]);
    cluster.auth.add_node(node, "web-1");
    let (home, ingress) = (cluster.proxy(1).await, cluster.proxy(2).await);
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_at = silent.local_addr().unwrap().to_string();
    // One leads nowhere, one to somebody who never answers, one to an honest proxy that has not got it.
    for (number, peer_address) in
        [(0x70_u8, "127.0.0.1:1".to_owned()), (0x71, silent_at), (0x72, ingress.peer.to_string())]
    {
        let liar = HostId::from_random([number; 16]);
        cluster.auth.tell(Event::ProxyPut(ProxyRecord {
            host_id: liar.to_string(),
            incarnation: 77,
            peer_address,
            ..ProxyRecord::default()
        }));
        let claim = RouteUpdate {
            incarnation: 77,
            sequence: u64::MAX,
            snapshot: true,
            host_ids: vec![node.as_bytes().to_vec()],
            ..RouteUpdate::default()
        };
        cluster.auth.tell(Event::Routes(ProxyRoutes { proxy_id: liar.to_string(), update: Some(claim) }));
    }
    let agent = Agent::connect(&cluster, &home.web, node).await;
    for _ in 0..5 {
        check_echo(&mut *cluster.reach(&ingress, "web-1").await).await;
        check_echo(&mut *cluster.reach(&home, "web-1").await).await;
    }
    assert!(agent.requests.lock().unwrap().len() >= 10);
}

#[tokio::test]
async fn k_one_agent_cannot_hold_tunnels_without_end() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let id = HostId::from_random([5; 16]);
    cluster.auth.add_node(id, "web-1");
    let mut agents = Vec::new();
    for _ in 0..12 {
        agents.push(Agent::connect(&cluster, &proxy.web, id).await);
    }
    until(|| agents.iter().filter(|agent| !agent.tunnel.is_ended()).count() == 8).await;
    assert!(!agents.last().unwrap().tunnel.is_ended(), "the oldest go");
    check_echo(&mut *cluster.reach(&proxy, "web-1").await).await;
}
