//! Machines that a lock shuts out: what a proxy does with their tunnels, without their help.

use crate::agent::{self, Agent, hello};
use crate::cluster::{Cluster, check_echo, until};
use crate::relaying::signed_policy;
use tokio::io::AsyncReadExt;
use wayleave_api::auth::cluster_event::Event;
use wayleave_resource::LockTarget;
use wayleave_vocab::{HostId, SystemRole};

#[tokio::test]
async fn j_an_agent_that_a_lock_shuts_out_is_cut_whatever_it_does() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let (stolen, other) = (HostId::from_random([9; 16]), HostId::from_random([8; 16]));
    cluster.auth.add_node(stolen, "web-1");
    cluster.auth.add_node(other, "web-2");
    // It answers and obeys no lock.
    let agent = Agent::connect(&cluster, &proxy.web, stolen).await;
    let bystander = Agent::connect(&cluster, &proxy.web, other).await;
    let mut session = cluster.reach(&proxy, "web-1").await;
    check_echo(&mut *session).await;
    let mut kept = cluster.reach(&proxy, "web-2").await;

    cluster.auth.tell(Event::Snapshot(signed_policy(&cluster, 1, vec![LockTarget::ServerId(stolen)])));

    until(|| agent.tunnel.is_ended()).await;
    let mut rest = Vec::new();
    let _reset_or_end = session.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "the session through it ends");
    assert!(!bystander.tunnel.is_ended());
    check_echo(&mut *kept).await;
    assert!(cluster.dial(&proxy, "web-1").await.is_err());
    let credentials = cluster.authorities.host(stolen, &[SystemRole::Node]);
    if let Ok(stream) = agent::tls(&cluster, &proxy.web, &credentials).await {
        let mut again = Agent::over(stream, &cluster.tasks);
        again.say(hello(stolen));
        assert!(again.heard().await.is_none(), "it is not let in again");
    }

    cluster.auth.tell(Event::Snapshot(signed_policy(&cluster, 2, Vec::new())));

    let is_back = async {
        loop {
            let stream = agent::tls(&cluster, &proxy.web, &credentials).await.unwrap();
            let mut again = Agent::over(stream, &cluster.tasks);
            again.say(hello(stolen));
            if again.heard().await.is_some() {
                return;
            }
        }
    };
    tokio::time::timeout(crate::cluster::PATIENCE, is_back)
        .await
        .expect("it is let in when the lock is gone");
}

/// A lock on either end of a peer connection ends what runs over it; the other end sees to that.
#[tokio::test]
async fn j_a_lock_on_a_proxy_ends_what_runs_between_it_and_its_peers() {
    let cluster = Cluster::start().await;
    let (home, ingress) = (cluster.proxy(1).await, cluster.proxy(2).await);
    let node = HostId::from_random([9; 16]);
    cluster.auth.add_node(node, "web-1");
    let agent = Agent::connect(&cluster, &home.web, node).await;
    for (step, locked) in [(1, home.id), (3, ingress.id)] {
        let mut session = cluster.reach(&ingress, "web-1").await;
        check_echo(&mut *session).await;
        cluster.auth.tell(Event::Snapshot(signed_policy(&cluster, step, vec![LockTarget::ServerId(locked)])));
        let mut rest = Vec::new();
        let reading = tokio::time::timeout(crate::cluster::PATIENCE, session.read_to_end(&mut rest));
        let _reset_or_end = reading.await.expect("the session through the peer ends");
        assert!(rest.is_empty());
        until(|| agent.tunnel.stream_count() == 0).await;
        assert!(cluster.dial(&ingress, "web-1").await.is_err(), "and there is no new one");
        check_echo(&mut *cluster.reach(&home, "web-1").await).await;
        cluster.auth.tell(Event::Snapshot(signed_policy(&cluster, step + 1, Vec::new())));
    }
    check_echo(&mut *cluster.reach(&ingress, "web-1").await).await;
}
