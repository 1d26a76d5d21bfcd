//! Agents, peers and clients of other releases: newer ones are served as far as this one goes, others are told why not.

use crate::agent::{self, Agent, hello};
use crate::cluster::{Cluster, Proxy, ask, check_echo, request, until};
use crate::peering::peer_dial;
use prost::bytes::BufMut;
use tokio::io::AsyncWriteExt;
use tonic::Code;
use wayleave_api::agent::AgentHello;
use wayleave_api::peer::PeerPingRequest;
use wayleave_api::peer::peer_client::PeerClient;
use wayleave_dial::{DialRefusal, DialRequest, DialResponse, Resume};
use wayleave_keystore::client_config;
use wayleave_net::{DIAL_MESSAGE_TIMEOUT, connect_tls, read_message};
use wayleave_vocab::{HostId, SystemRole};

fn node() -> HostId {
    HostId::from_random([9; 16])
}

fn resumable() -> DialRequest {
    DialRequest { resume: Some(Resume::New), ..request("web-1") }
}

async fn dialled(cluster: &Cluster, proxy: &Proxy, request: &DialRequest) -> Result<(), DialRefusal> {
    let tls = cluster.dial_tls(&cluster.authorities.user("alice"));
    match ask(connect_tls(&proxy.web, tls).await.unwrap(), request).await {
        Ok(_) => Ok(()),
        Err(DialResponse::Refused { refusal }) => Err(refusal),
        Err(DialResponse::Established { .. }) => unreachable!(),
    }
}

/// It says more than this release knows, and speaks a newer version beside this one.
fn newer_hello() -> AgentHello {
    let capabilities = vec!["resume".into(), "teleportation".into()];
    AgentHello { version: 7, version_oldest: 1, capabilities, release: "9.1".into(), ..hello(node()) }
}

#[tokio::test]
async fn an_agent_of_a_newer_release_is_served_through_every_proxy() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let (home, ingress) = (cluster.proxy(1).await, cluster.proxy(2).await);
    let agent = Agent::connect_saying(&cluster, &home.web, node(), newer_hello()).await;
    for proxy in [&home, &ingress] {
        check_echo(&mut *cluster.reach(proxy, "web-1").await).await;
        dialled(&cluster, proxy, &resumable()).await.unwrap();
    }
    let asked = agent.requests.lock().unwrap().pop().unwrap();
    assert_eq!(asked.resume, Some(Resume::New));
}

#[tokio::test]
async fn what_an_older_agent_cannot_do_is_refused_before_it_is_asked() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let (home, ingress) = (cluster.proxy(1).await, cluster.proxy(2).await);
    let older = AgentHello { capabilities: Vec::new(), ..hello(node()) };
    let agent = Agent::connect_saying(&cluster, &home.web, node(), older).await;
    for proxy in [&home, &ingress] {
        check_echo(&mut *cluster.reach(proxy, "web-1").await).await;
        agent.requests.lock().unwrap().clear();
        let refusal = dialled(&cluster, proxy, &resumable()).await.unwrap_err();
        assert!(refusal.to_string().ends_with("upgrade the agent of web-1"), "{refusal}");
        assert!(
            matches!(&refusal, DialRefusal::Invalid { missing: Some(missing), .. } if missing == "resume"),
            "{refusal:?}"
        );
        assert!(agent.requests.lock().unwrap().is_empty(), "the agent hears nothing of it");
        dialled(&cluster, proxy, &request("web-1")).await.unwrap();
    }
}

#[tokio::test]
async fn an_agent_that_speaks_no_common_version_is_refused() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let credentials = cluster.authorities.host(node(), &[SystemRole::Node]);
    let stream = agent::tls(&cluster, &proxy.web, &credentials).await.unwrap();
    let mut newer = Agent::over(stream, &cluster.tasks);
    newer.say(AgentHello { version: 9, version_oldest: 8, ..newer_hello() });
    while newer.heard().await.is_some() {}
    until(|| newer.tunnel.is_ended()).await;
}

#[tokio::test]
async fn a_client_of_a_newer_release_is_served_or_told_what_to_upgrade() {
    let cluster = Cluster::start().await;
    cluster.auth.add_node(node(), "web-1");
    let proxy = cluster.proxy(1).await;
    let _agent = Agent::connect_saying(&cluster, &proxy.web, node(), newer_hello()).await;
    drop(cluster.reach(&proxy, "web-1").await);
    let plain = serde_json::to_string(&request("web-1")).unwrap();
    let with = |more: &str| plain.replacen('{', &format!("{{{more},"), 1);
    for (json, expected) in [
        (with(r#""colour":"red""#), None),
        (with(r#""needs":["teleportation"]"#), Some("(teleportation): upgrade the proxy")),
        (plain.replace(r#""v":1"#, r#""v":9"#), Some("who dials version 9: upgrade the proxy")),
        (plain.replace(r#""kind":"ssh""#, r#""kind":"desktop""#), Some("upgrade the proxy")),
    ] {
        let tls = cluster.dial_tls(&cluster.authorities.user("alice"));
        let mut stream = connect_tls(&proxy.web, tls).await.unwrap();
        let mut message = Vec::new();
        message.put_u16(u16::try_from(json.len()).unwrap());
        message.put_slice(json.as_bytes());
        stream.write_all(&message).await.unwrap();
        let answer: DialResponse = read_message(&mut stream, DIAL_MESSAGE_TIMEOUT).await.unwrap();
        match (answer, expected) {
            (DialResponse::Established { .. }, None) => {}
            (DialResponse::Refused { refusal }, Some(expected)) => {
                assert!(refusal.to_string().ends_with(expected), "{refusal}");
            }
            (answer, _) => panic!("{json}: {answer:?}"),
        }
    }
}

#[tokio::test]
async fn peers_of_other_releases_agree_on_a_version_or_say_which_to_upgrade() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let peer = HostId::from_random([0x66; 16]);
    let own = cluster.authorities.host(peer, &[SystemRole::Proxy]);
    let tls = client_config(&own, &cluster.authorities.trust, SystemRole::Proxy, None, &[b"h2"]).unwrap();
    let mut client = PeerClient::new(wayleave_rpc::channel(proxy.peer.clone(), tls));
    let ping = |version: u32, version_oldest: u32| PeerPingRequest {
        version,
        version_oldest,
        capabilities: vec!["teleportation".into()],
        release: "9.1".into(),
    };
    let pong = client.ping(ping(9, 1)).await.unwrap().into_inner();
    assert_eq!((pong.version, pong.version_oldest), (1, 1));
    assert!(pong.capabilities.contains(&"resume".to_owned()), "{pong:?}");
    let refused = client.ping(ping(9, 2)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for part in ["speaks version 1", "versions 2 to 9", "(release 9.1)", "upgrade proxy"] {
        assert!(refused.message().contains(part), "{refused}");
    }
    let newer = DialRequest { v: 9, from_peer: true, host_id: Some(node()), ..request("web-1") };
    match peer_dial(&cluster, &proxy.peer, &newer).await {
        DialResponse::Refused { refusal } => {
            assert!(refusal.to_string().ends_with("upgrade the proxy in between"), "{refusal}");
        }
        established @ DialResponse::Established { .. } => panic!("{established:?}"),
    }
}
