//! What others say of themselves counts for nothing: clients, agents and peers that lie.

use crate::agent::Agent;
use crate::cluster::{Cluster, ask, check_echo, request};
use wayleave_dial::DialRequest;
use wayleave_net::connect_tls;
use wayleave_vocab::HostId;

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
