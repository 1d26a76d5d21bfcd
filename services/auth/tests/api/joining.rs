//! Tokens, joining, renewal, more roles, and what is told to whom.

use crate::harness::{Cluster, HOUR, Keys, Process, join_request, node_json, owned, refused};
use std::time::Duration;
use tonic::Code;
use wayleave_api::auth::{
    CreateTokenRequest, ProxyRecord, RegisterRequest, RenewRequest, ResourceRef, SearchEventsRequest,
};
use wayleave_auth::StaticToken;
use wayleave_identity::Principal;
use wayleave_keystore::{Credentials, principal_from_certificate};
use wayleave_ssh::Certificate;
use wayleave_vocab::{Secret, SystemRole};

fn principal(process: &Process, index: usize) -> Principal {
    let certificate = &process.answer.certificates[index];
    let credentials =
        Credentials::from_pem(&certificate.tls_chain_pem, &process.keys[index].tls.to_pem()).unwrap();
    principal_from_certificate(&credentials.leaf().unwrap()).unwrap()
}

#[tokio::test]
async fn a_process_joins_and_holds_one_certificate_for_each_role() {
    let cluster = Cluster::start().await;
    let process = cluster.join(&["Node", "App"], "web-1").await;
    let roles: Vec<&str> = process.answer.certificates.iter().map(|c| c.role.as_str()).collect();
    assert_eq!(roles, ["Instance", "Node", "App"]);
    let Principal::Host(instance) = principal(&process, 0) else { panic!("a user") };
    assert_eq!(instance.host_id.to_string(), process.host_id);
    assert_eq!(instance.system_roles, [SystemRole::Node, SystemRole::App].into());
    let Principal::Host(node) = principal(&process, 1) else { panic!("a user") };
    assert_eq!(node.system_roles, [SystemRole::Node].into());
    let ssh = Certificate::from_openssh(&process.answer.certificates[1].ssh_certificate).unwrap();
    for name in ["web-1", "web-1.demo", &process.host_id, &format!("{}.demo", process.host_id)] {
        assert!(ssh.principals().iter().any(|p| p == name), "{name} in {:?}", ssh.principals());
    }
    let trust = process.answer.trust.unwrap();
    assert!(trust.snapshot.unwrap().head.is_some());
    assert_eq!(trust.policy_keys_pem.len(), 1);
}

#[tokio::test]
async fn a_token_that_does_not_count_is_told_nothing_more() {
    let cluster = Cluster::start().await;
    let token = cluster.token(&["Node"]).await;
    let expiring = cluster
        .api
        .create_token(CreateTokenRequest {
            name: "short".into(),
            system_roles: owned(&["Node"]),
            ttl_ms: 60_000,
            ..Default::default()
        })
        .await
        .unwrap();
    cluster.clock.advance(Duration::from_secs(61));
    let mut told = Vec::new();
    for (name, secret) in [
        (token.name.as_str(), "00000000000000000000000000000000"),
        ("unknown", token.secret.as_str()),
        (expiring.name.as_str(), expiring.secret.as_str()),
        ("", "no-such-static-token"),
        ("-bad name-", "x"),
    ] {
        let (request, _) = join_request(name, secret, &["Node"], "web-1");
        told.push(refused(cluster.public().join(request).await, Code::PermissionDenied));
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("way tokens add"), "{told:?}");
    // The operator's log has each reason, and no secret.
    let events =
        cluster.admin().search_events(SearchEventsRequest::default()).await.unwrap().into_inner().json;
    let all = events.join("\n");
    for reason in ["wrong secret", "there is no token unknown", "has expired"] {
        assert!(all.contains(reason), "{reason} in {all}");
    }
    assert!(!all.contains(&token.secret) && !all.contains(&expiring.secret));
}

#[tokio::test]
async fn a_good_token_for_other_roles_says_so() {
    let cluster = Cluster::start().await;
    let token = cluster.token(&["Node"]).await;
    let (request, _) = join_request(&token.name, &token.secret, &["Proxy"], "web-1");
    let told = refused(cluster.public().join(request).await, Code::PermissionDenied);
    assert!(told.contains("Node") && told.contains("Proxy"), "{told}");
    for roles in [&["Auth"][..], &["Node", "Node"], &["nonsense"], &[]] {
        let (request, _) = join_request(&token.name, &token.secret, roles, "web-1");
        refused(cluster.public().join(request).await, Code::InvalidArgument);
    }
    let (mut request, _) = join_request(&token.name, &token.secret, &["Node"], "web-1");
    request.keys.pop();
    refused(cluster.public().join(request).await, Code::InvalidArgument);
}

#[tokio::test]
async fn static_tokens_and_whole_tokens_join() {
    let cluster = Cluster::start_with(|config| {
        config.static_tokens = vec![StaticToken {
            system_roles: vec![SystemRole::Node],
            secret: Secret::new("with.dots.in-it".into()),
        }];
    })
    .await;
    let token = cluster.token(&["Node"]).await;
    for (name, secret) in [
        ("", "with.dots.in-it"),
        ("with.dots", "in-it"),
        ("", format!("{}.{}", token.name, token.secret).as_str()),
    ] {
        let (request, _) = join_request(name, secret, &["Node"], "web-1");
        cluster.public().join(request).await.unwrap();
    }
}

#[tokio::test]
async fn a_deleted_token_joins_nobody() {
    let cluster = Cluster::start().await;
    let token = cluster.token(&["Node"]).await;
    let reference = ResourceRef { kind: "token".into(), name: token.name.clone() };
    cluster.admin().delete_resource(reference).await.unwrap();
    let (request, _) = join_request(&token.name, &token.secret, &["Node"], "web-1");
    refused(cluster.public().join(request).await, Code::PermissionDenied);
}

#[tokio::test]
async fn e_renewal_keeps_the_host_id_and_gives_no_more_roles() {
    let cluster = Cluster::start().await;
    let process = cluster.join(&["Node"], "web-1").await;
    let keys = [Keys::new(), Keys::new()];
    let request = |roles: &[&str]| RenewRequest {
        system_roles: owned(roles),
        keys: keys.iter().map(Keys::public).collect(),
        additional_principals: Vec::new(),
    };
    let renewed = cluster.host(&process).renew(request(&["Node"])).await.unwrap().into_inner();
    assert_eq!(renewed.host_id, process.host_id);
    refused(cluster.host(&process).renew(request(&["Proxy"])).await, Code::PermissionDenied);
    // The certificate of one role does not renew into that of another.
    let both = cluster.join(&["Node", "App"], "web-2").await;
    let mut as_node = wayleave_api::auth::host_client::HostClient::new(cluster.channel_of(&both, 1));
    refused(as_node.renew(request(&["App"])).await, Code::PermissionDenied);
}

#[tokio::test]
async fn another_token_adds_roles_and_keeps_the_host_id() {
    let cluster = Cluster::start().await;
    let process = cluster.join(&["Node"], "web-1").await;
    let token = cluster.token(&["App"]).await;
    let (request, _) = join_request(&token.name, &token.secret, &["Node", "App"], "web-1");
    let extended = cluster.host(&process).extend_roles(request).await.unwrap().into_inner();
    assert_eq!(extended.host_id, process.host_id);
    assert_eq!(extended.certificates.len(), 3);
    let (request, _) = join_request(&token.name, &token.secret, &["Proxy"], "web-1");
    refused(cluster.host(&process).extend_roles(request).await, Code::PermissionDenied);
    let (request, _) = join_request("x", "y", &["Node", "App"], "web-1");
    refused(cluster.host(&process).extend_roles(request).await, Code::PermissionDenied);
}

#[tokio::test]
async fn k_a_process_registers_itself_and_nobody_else() {
    let cluster = Cluster::start().await;
    let (node, other) = (cluster.join(&["Node"], "web-1").await, cluster.join(&["App"], "app-1").await);
    let register = |json: String| RegisterRequest { resources_json: vec![json], proxy: None };
    let mut client = cluster.host(&node);
    client.register(register(node_json(&node.host_id, "web-1", "env: dev"))).await.unwrap();
    let own = |name: &str, labels: &str| register(node_json(&node.host_id, name, labels));
    refused(client.register(register(node_json(&other.host_id, "web-1", ""))).await, Code::PermissionDenied);
    refused(client.register(own("other-name", "")).await, Code::PermissionDenied);
    refused(client.register(own("web-1", "wayleave.dev/zone: x")).await, Code::PermissionDenied);
    refused(client.register(register("{}".into())).await, Code::InvalidArgument);
    let lock = "{\"kind\":\"lock\",\"version\":\"v2\",\"metadata\":{\"name\":\"l\"},\"spec\":{\"target\":{\"user\":\"x\"}}}";
    refused(client.register(register(lock.into())).await, Code::PermissionDenied);
    let as_app = register(node_json(&other.host_id, "app-1", ""));
    refused(cluster.host(&other).register(as_app).await, Code::PermissionDenied);
    let proxy = wayleave_api::auth::ProxyRecord { name: "p".into(), ..Default::default() };
    let as_proxy = RegisterRequest { resources_json: Vec::new(), proxy: Some(proxy) };
    refused(client.register(as_proxy).await, Code::PermissionDenied);
}

#[tokio::test]
async fn unchanged_registration_writes_nothing() {
    let cluster = Cluster::start().await;
    let node = cluster.join(&["Node"], "web-1").await;
    let json = node_json(&node.host_id, "web-1", "env: dev");
    let request = RegisterRequest { resources_json: vec![json], proxy: None };
    let mut client = cluster.host(&node);
    client.register(request.clone()).await.unwrap();
    let key = format!("/resources/node/{}", node.host_id).parse().unwrap();
    let before = cluster.backend.get(&key).await.unwrap().unwrap().revision;
    client.register(request).await.unwrap();
    assert_eq!(cluster.backend.get(&key).await.unwrap().unwrap().revision, before);
    client.register(RegisterRequest::default()).await.unwrap();
    assert_eq!(cluster.backend.get(&key).await.unwrap(), None);
}

#[tokio::test]
async fn m_a_token_is_stored_hashed_and_apart() {
    let cluster = Cluster::start().await;
    let token = cluster.token(&["Node"]).await;
    for prefix in ["/resources", "/secrets", "/audit", "/hosts"] {
        let page = cluster.backend.range(&prefix.parse().unwrap(), None, 1000).await.unwrap();
        for item in page.items {
            assert!(!String::from_utf8_lossy(&item.value).contains(&token.secret), "{}", item.key);
        }
    }
}

#[tokio::test]
async fn a_locked_process_does_not_renew() {
    let cluster = Cluster::start().await;
    let process = cluster.join(&["Node"], "web-1").await;
    cluster.lock("l", &format!("server_id: {}", process.host_id)).await;
    let told =
        refused(cluster.host(&process).register(RegisterRequest::default()).await, Code::PermissionDenied);
    assert!(told.contains("locked"), "{told}");
    let _ = HOUR;
}

/// A renewal of one role with names besides the host's.
fn renewal(role: &str, names: &[&str]) -> RenewRequest {
    RenewRequest {
        system_roles: owned(&[role]),
        keys: [Keys::new(), Keys::new()].iter().map(Keys::public).collect(),
        additional_principals: owned(names),
    }
}

#[tokio::test]
async fn o_a_proxy_is_not_certified_under_the_name_of_a_node() {
    let cluster = Cluster::start().await;
    let node = cluster.join(&["Node"], "web-1").await;
    let resources_json = vec![node_json(&node.host_id, "web-1", "")];
    cluster.host(&node).register(RegisterRequest { resources_json, proxy: None }).await.unwrap();
    let proxy = cluster.join(&["Proxy"], "p-1").await;
    for name in ["web-1", "WEB-1", "web-1.demo", &node.host_id, &format!("{}.demo", node.host_id)] {
        let told =
            refused(cluster.host(&proxy).renew(renewal("Proxy", &[name])).await, Code::PermissionDenied);
        assert!(told.contains("choose") || told.contains("no process chooses"), "{told}");
    }
    cluster.host(&proxy).renew(renewal("Proxy", &["p.example.com"])).await.unwrap();
    // Nor does it join under one.
    let token = cluster.token(&["Proxy"]).await;
    for hostname in ["web-1", "web-1.demo", &node.host_id] {
        let (request, _) = join_request(&token.name, &token.secret, &["Proxy"], hostname);
        refused(cluster.public().join(request).await, Code::PermissionDenied);
    }
}

#[tokio::test]
async fn d_an_agent_is_not_certified_as_another_host_or_a_proxy() {
    let cluster = Cluster::start().await;
    let victim = cluster.join(&["Node"], "web-1").await;
    let proxy = cluster.join(&["Proxy"], "p-1").await;
    let record = ProxyRecord {
        name: "p-1".into(),
        public_addresses: vec!["p.example.com:443".into()],
        ..Default::default()
    };
    let registration = RegisterRequest { resources_json: Vec::new(), proxy: Some(record) };
    cluster.host(&proxy).register(registration).await.unwrap();
    let token = cluster.token(&["Node"]).await;
    for hostname in [&victim.host_id, &format!("{}.demo", victim.host_id), "p.example.com", "P.Example.com"] {
        let (request, _) = join_request(&token.name, &token.secret, &["Node"], hostname);
        refused(cluster.public().join(request).await, Code::PermissionDenied);
    }
    let agent = cluster.join(&["Node"], "web-2").await;
    for name in [victim.host_id.as_str(), "p.example.com", "p-1.demo"] {
        refused(cluster.host(&agent).renew(renewal("Node", &[name])).await, Code::PermissionDenied);
    }
    // Its own id is its name anyway, and another node's host name is ambiguous, not stolen.
    cluster.host(&agent).renew(renewal("Node", &[agent.host_id.as_str()])).await.unwrap();
    cluster.join(&["Node"], "web-1").await;
}
