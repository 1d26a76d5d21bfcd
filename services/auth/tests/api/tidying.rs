//! What goes by itself: expired tokens, locks and invitations, nodes that nobody reaches, processes long gone.

use crate::harness::{Cluster, HOUR, node_json, refused, within};
use tonic::Code;
use wayleave_api::auth::{CreateTokenRequest, ListResourcesRequest, RegisterRequest, RenewRequest};
use wayleave_audit::{ChainEntry, SignedCheckpoint, verify_chain};
use wayleave_keystore::verify_policy_signature;
use wayleave_runtime::Clock;
use wayleave_vocab::ClusterName;

async fn names(cluster: &Cluster, kind: &str) -> usize {
    let request = ListResourcesRequest { kind: kind.into(), ..Default::default() };
    cluster.admin().list_resources(request).await.unwrap().into_inner().json.len()
}

#[tokio::test]
async fn what_has_expired_goes() {
    let cluster = Cluster::start().await;
    let started = cluster.clock.wall();
    let token = |name: &str, hours: u64| CreateTokenRequest {
        name: name.into(),
        system_roles: vec!["Node".into()],
        ttl_ms: hours * 3_600_000,
        ..Default::default()
    };
    cluster.api.create_token(token("short", 1)).await.unwrap();
    cluster.api.create_token(token("long", 3)).await.unwrap();
    cluster.create_user("alice", &["access"], &[]).await;
    let invites = "/secrets/invites".parse().unwrap();
    assert_eq!(cluster.backend.range(&invites, None, 10).await.unwrap().items.len(), 1);
    cluster.clock.advance(2 * HOUR);
    cluster.api.tidy(started).await.unwrap();
    within(async { while names(&cluster, "token").await != 1 {} }).await;
    assert_eq!(cluster.backend.range(&invites, None, 10).await.unwrap().items.len(), 0);
    let secrets = "/secrets/tokens".parse().unwrap();
    assert_eq!(cluster.backend.range(&secrets, None, 10).await.unwrap().items.len(), 1);
    assert_eq!(names(&cluster, "user").await, 1);
}

#[tokio::test]
async fn a_node_without_a_route_for_a_day_is_forgotten() {
    let cluster = Cluster::start().await;
    let started = cluster.clock.wall();
    let node = cluster.join(&["Node"], "web-1").await;
    let json = node_json(&node.host_id, "web-1", "");
    let register = RegisterRequest { resources_json: vec![json], proxy: None };
    cluster.host(&node).register(register.clone()).await.unwrap();
    // The admin identity runs out meanwhile, by the cluster's clock: the backend is asked.
    let key = format!("/resources/node/{}", node.host_id).parse().unwrap();
    cluster.clock.advance(23 * HOUR);
    cluster.api.tidy(started).await.unwrap();
    assert!(cluster.backend.get(&key).await.unwrap().is_some());
    cluster.clock.advance(2 * HOUR);
    cluster.api.tidy(started).await.unwrap();
    assert!(cluster.backend.get(&key).await.unwrap().is_none());
    // It comes back by registering again, and stays until its route is there.
    cluster.host(&node).register(register).await.unwrap();
    assert!(cluster.backend.get(&key).await.unwrap().is_some());
    cluster.api.tidy(started).await.unwrap();
    assert!(cluster.backend.get(&key).await.unwrap().is_some());
}

#[tokio::test]
async fn i_a_checkpoint_covers_the_chain() {
    let cluster = Cluster::start().await;
    let trust = cluster.api.trust_bundle().unwrap();
    cluster.create_user("alice", &["access"], &[]).await;
    cluster.api.tidy(cluster.clock.wall()).await.unwrap();
    cluster.create_user("bob", &["access"], &[]).await;
    let page = cluster.backend.range(&"/audit/events".parse().unwrap(), None, 1000).await.unwrap();
    let entries: Vec<ChainEntry> = page
        .items
        .iter()
        .map(|item| {
            let split = item.value.iter().position(|byte| *byte == b'\n').unwrap();
            ChainEntry {
                index: item.key.name().parse().unwrap(),
                hash: std::str::from_utf8(&item.value[..split]).unwrap().parse().unwrap(),
                bytes: item.value[split + 1..].to_vec(),
            }
        })
        .collect();
    let stored = cluster.backend.range(&"/audit/checkpoints".parse().unwrap(), None, 10).await.unwrap();
    let checkpoint: serde_json::Value = serde_json::from_slice(&stored.items[0].value).unwrap();
    let bytes =
        |name: &str| data_encoding::BASE64.decode(checkpoint[name].as_str().unwrap().as_bytes()).unwrap();
    let checkpoints = [SignedCheckpoint { bytes: bytes("bytes"), signature: bytes("signature") }];
    let verify = |message: &[u8], signature: &[u8]| {
        verify_policy_signature(&trust.policy_keys_pem[0], message, signature).is_ok()
    };
    let name = ClusterName::parse("demo").unwrap();
    let verified = verify_chain(&name, entries.clone(), &checkpoints, &verify).unwrap();
    assert_eq!((verified.checkpoints, verified.uncovered), (1, 2));
    assert!(verify_chain(&name, entries[..1].to_vec(), &checkpoints, &verify).is_err(), "the end is cut off");
}

#[tokio::test]
async fn a_process_that_was_away_for_months_joins_again() {
    let cluster = Cluster::start_with(|config| config.lifetimes.host = 100 * 24 * HOUR).await;
    let node = cluster.join(&["Node"], "web-1").await;
    let renew = RenewRequest {
        system_roles: Vec::new(),
        keys: node.keys.iter().map(crate::harness::Keys::public).collect(),
        additional_principals: Vec::new(),
    };
    cluster.host(&node).renew(renew.clone()).await.unwrap();
    cluster.backend.delete(&format!("/hosts/{}", node.host_id).parse().unwrap()).await.unwrap();
    let told = refused(cluster.host(&node).renew(renew).await, Code::PermissionDenied);
    assert!(told.contains("join with a new token"), "{told}");
}
