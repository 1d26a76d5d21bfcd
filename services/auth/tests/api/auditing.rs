//! The audit log: events of others once and only about themselves, the chain, searching.

use crate::harness::{Cluster, Process, refused};
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;
use wayleave_api::auth::{AuditRecord, EmitEventsRequest, SearchEventsRequest};
use wayleave_audit::{
    Actor, Chain, ChainEntry, ChainHash, Change, ChangedKind, Envelope, Event, EventBudget, Origin, Outcome,
    SessionRef, Text, verify_chain,
};
use wayleave_auth::verify_audit_log;
use wayleave_runtime::{Clock, random_bytes};
use wayleave_store::{Backend, Key, Operation};
use wayleave_vocab::{ClusterName, Login, SessionId};

fn envelope(cluster: &Cluster, host_id: &str, sequence: u64) -> Envelope {
    let event = Event::AuthAttempt {
        user: Text::new("ssh"),
        client_addr: None,
        error: Text::new(format!("event {sequence}")),
    };
    sealed(cluster, host_id, sequence, event)
}

fn sealed(cluster: &Cluster, host_id: &str, sequence: u64, event: Event) -> Envelope {
    let origin =
        Origin { cluster: ClusterName::parse("demo").unwrap(), host_id: host_id.parse().unwrap(), sequence };
    Envelope::new(event, origin, random_bytes(), cluster.clock.wall())
}

fn records(envelopes: &[Envelope]) -> EmitEventsRequest {
    let record = |envelope: &Envelope| AuditRecord {
        sequence: envelope.origin.sequence,
        event_json: envelope.encode(),
    };
    EmitEventsRequest { records: envelopes.iter().map(record).collect() }
}

async fn emit(cluster: &Cluster, process: &Process, envelopes: &[Envelope]) -> Result<u64, tonic::Status> {
    let answer = cluster.host(process).emit_events(records(envelopes)).await?;
    Ok(answer.into_inner().acknowledged_sequence)
}

async fn search(cluster: &Cluster, codes: &[&str]) -> Vec<String> {
    let request = SearchEventsRequest { codes: crate::harness::owned(codes), ..Default::default() };
    cluster.admin().search_events(request).await.unwrap().into_inner().json
}

#[tokio::test]
async fn k_events_are_appended_once_and_only_about_the_sender() {
    let cluster = Cluster::start().await;
    let (node, other) = (cluster.join(&["Node"], "n-1").await, cluster.join(&["Node"], "n-2").await);
    let events: Vec<Envelope> = (1..=250).map(|n| envelope(&cluster, &node.host_id, n)).collect();
    assert_eq!(emit(&cluster, &node, &events[..120]).await.unwrap(), 120);
    assert_eq!(emit(&cluster, &node, &events[..250]).await.unwrap(), 250);
    assert_eq!(emit(&cluster, &node, &events[10..20]).await.unwrap(), 250);
    let found = search(&cluster, &["T3007W"]).await;
    assert_eq!(found.iter().filter(|event| event.contains("\"ssh\"")).count(), 250);
    refused(emit(&cluster, &other, &events[..1]).await, Code::PermissionDenied);
    let mut foreign = envelope(&cluster, &node.host_id, 300);
    foreign.origin.cluster = ClusterName::parse("other").unwrap();
    refused(emit(&cluster, &node, &[foreign]).await, Code::PermissionDenied);
    let nonsense =
        EmitEventsRequest { records: vec![AuditRecord { sequence: 1, event_json: b"{}".to_vec() }] };
    refused(cluster.host(&node).emit_events(nonsense).await, Code::InvalidArgument);
}

#[tokio::test]
async fn i_no_process_writes_what_only_auth_sees_or_what_others_saw() {
    let cluster = Cluster::start().await;
    let node = cluster.join(&["Node"], "n-1").await;
    let (other, proxy) = (cluster.join(&["Node"], "n-2").await, cluster.join(&["Proxy"], "p-1").await);
    let login = Event::UserLogin {
        user: Text::new("alice"),
        method: Text::new("local"),
        client_addr: None,
        outcome: Outcome::Success,
    };
    let change = Event::Changed {
        kind: ChangedKind::Role,
        change: Change::Updated,
        name: Text::new("access"),
        actor: Actor { user: Text::new("alice"), local_admin: true, client_addr: None },
        details: Vec::new(),
    };
    let session = |server: &Process| Event::SessionStart {
        session: SessionRef {
            sid: SessionId::from_random(random_bytes()),
            user: Text::new("alice"),
            login: Login::parse("root").unwrap(),
            server_id: server.host_id.parse().unwrap(),
            server_hostname: Text::new("n-2"),
        },
        interactive: true,
        client_addr: None,
        policy_revision: Text::new("0.1"),
    };
    let send = async |process: &Process, event| {
        let envelope = sealed(&cluster, &process.host_id, 1, event);
        emit(&cluster, process, &[envelope]).await
    };
    for event in [login, change] {
        refused(send(&node, event.clone()).await, Code::PermissionDenied);
        refused(send(&proxy, event).await, Code::PermissionDenied);
    }
    refused(send(&node, session(&other)).await, Code::PermissionDenied);
    assert_eq!(send(&node, session(&node)).await.unwrap(), 1);
    assert_eq!(send(&proxy, session(&other)).await.unwrap(), 1, "a proxy tells of published machines");
    assert_eq!(search(&cluster, &["T2000I"]).await.len(), 2);
}

#[tokio::test]
async fn i_no_process_fills_the_log_faster_than_its_budget() {
    let budget = EventBudget { bytes_per_minute: 20_000, burst_bytes: 30_000 };
    let cluster = Cluster::start_with(|config| config.limits.events = budget).await;
    let (node, other) = (cluster.join(&["Node"], "n-1").await, cluster.join(&["Node"], "n-2").await);
    let events: Vec<Envelope> = (1..=100).map(|n| envelope(&cluster, &node.host_id, n)).collect();
    let bytes: usize = events.iter().map(|event| event.encode().len()).sum();
    assert!((15_000..30_000).contains(&bytes), "{bytes}");
    assert_eq!(emit(&cluster, &node, &events).await.unwrap(), 100);
    let more: Vec<Envelope> = (101..=200).map(|n| envelope(&cluster, &node.host_id, n)).collect();

    let told = emit(&cluster, &node, &more).await.unwrap_err();

    assert_eq!(told.code(), Code::ResourceExhausted);
    assert!(told.message().contains("try again in"), "{told:?}");
    let others = envelope(&cluster, &other.host_id, 1);
    assert_eq!(emit(&cluster, &other, &[others]).await.unwrap(), 1, "each host has its own");
    cluster.clock.advance(Duration::from_secs(60));
    assert_eq!(emit(&cluster, &node, &more).await.unwrap(), 200, "what waited comes later");
}

#[tokio::test]
async fn i_the_chain_verifies_and_shows_tampering() {
    let cluster = Cluster::start().await;
    cluster.create_user("alice", &["access"], &[]).await;
    cluster.lock("l", "user: alice").await;
    let page = cluster.backend.range(&"/audit/events".parse().unwrap(), None, 1000).await.unwrap();
    let mut entries: Vec<ChainEntry> = page
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
    let name = ClusterName::parse("demo").unwrap();
    let verified = verify_chain(&name, entries.clone(), &[], &|_: &[u8], _: &[u8]| true).unwrap();
    let head = cluster.backend.get(&"/audit/head".parse().unwrap()).await.unwrap().unwrap();
    let head: Chain = serde_json::from_slice(&head.value).unwrap();
    assert_eq!(verified.chain, head);
    assert!(head.length >= 3);
    entries[1].bytes =
        String::from_utf8(entries[1].bytes.clone()).unwrap().replace("alice", "mallory").into();
    assert!(verify_chain(&name, entries, &[], &|_: &[u8], _: &[u8]| true).is_err());
}

#[tokio::test]
async fn i_whoever_holds_a_backend_can_tell_whether_its_log_is_whole() {
    let cluster = Cluster::start().await;
    cluster.create_user("alice", &["access"], &[]).await;
    // Checkpoints come every few minutes.
    tokio::time::pause();
    while cluster.backend.range(&CHECKPOINTS.parse().unwrap(), None, 10).await.unwrap().items.is_empty() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    tokio::time::resume();
    cluster.lock("l", "user: alice").await;
    let (backend, ..) = cluster.stop().await;

    let whole = verify_audit_log(backend.clone()).await.unwrap();

    let verified = whole.log.unwrap();
    assert!(verified.checkpoints == 1 && verified.uncovered >= 1, "{verified:?}");
    assert!(verified.chain.length > verified.uncovered && whole.last_checkpoint.is_some());
    let checkpoint = backend.range(&CHECKPOINTS.parse().unwrap(), None, 10).await.unwrap().items.remove(0);
    let event = |index: u64| Key::parse(&format!("/audit/events/{index:020}")).unwrap();
    let second = backend.get(&event(1)).await.unwrap().unwrap();
    let last = event(verified.chain.length - 1);
    let head = Key::parse("/audit/head").unwrap();
    let shorter: Chain = Chain {
        length: verified.chain.length - 1,
        last: hash_of(&*backend, event(verified.chain.length - 2)).await,
    };
    let mut changed = second.value.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    let forged = String::from_utf8(checkpoint.value.to_vec()).unwrap().replacen(
        "signature\":\"",
        "signature\":\"AAAA",
        1,
    );
    let put =
        |key: &Key, value: Vec<u8>| Operation::Put { key: key.clone(), value: value.into(), lease: None };
    let delete = |key: &Key| Operation::Delete { key: key.clone() };
    check_broken(&backend, vec![put(&event(1), changed)], "entry 1 does not follow").await;
    check_broken(&backend, vec![put(&event(1), b"nothing".to_vec())], "is no entry").await;
    check_broken(&backend, vec![delete(&event(1))], "entry 1 is missing").await;
    check_broken(&backend, vec![delete(&last)], "were written").await;
    let start = serde_json::to_vec(&Chain::beginning(&ClusterName::parse("demo").unwrap())).unwrap();
    check_broken(&backend, vec![put(&head, start)], "knows").await;
    check_broken(&backend, vec![put(&checkpoint.key, forged.into_bytes())], "is not signed by the cluster")
        .await;
    // What no checkpoint covers can be cut off by whoever holds the backend, and is counted.
    backend
        .batch(vec![], vec![delete(&last), put(&head, serde_json::to_vec(&shorter).unwrap())])
        .await
        .unwrap();
    let cut = verify_audit_log(backend.clone()).await.unwrap().log.unwrap();
    assert_eq!(cut.uncovered, verified.uncovered - 1);
}

const CHECKPOINTS: &str = "/audit/checkpoints";

async fn hash_of(backend: &dyn Backend, key: Key) -> ChainHash {
    let item = backend.get(&key).await.unwrap().unwrap();
    let split = item.value.iter().position(|byte| *byte == b'\n').unwrap();
    std::str::from_utf8(&item.value[..split]).unwrap().parse().unwrap()
}

/// Changes something, looks what is said of it, and puts back what was there.
async fn check_broken(backend: &Arc<dyn Backend>, operations: Vec<Operation>, expected: &str) {
    let mut back = Vec::new();
    for operation in &operations {
        let (Operation::Put { key, .. } | Operation::Delete { key }) = operation else {
            panic!("{operation:?}")
        };
        let value = backend.get(key).await.unwrap().unwrap().value;
        back.push(Operation::Put { key: key.clone(), value, lease: None });
    }
    backend.batch(vec![], operations).await.unwrap();
    let fault = verify_audit_log(backend.clone()).await.unwrap().log.unwrap_err();
    assert!(fault.to_string().contains(expected), "{fault}, not {expected}");
    backend.batch(vec![], back).await.unwrap();
}

#[tokio::test]
async fn every_write_is_in_the_log_with_its_author() {
    let cluster = Cluster::start().await;
    cluster.create_user("ed", &["editor"], &[]).await;
    let mut ed = cluster.user("ed").await;
    let json = "{\"kind\":\"lock\",\"version\":\"v2\",\"metadata\":{\"name\":\"l\"},\"spec\":{\"target\":{\"user\":\"x\"}}}";
    ed.upsert_resource(wayleave_api::auth::ResourceWrite { json: json.into() }).await.unwrap();
    let locks = search(&cluster, &["TLK00I"]).await;
    assert_eq!(locks.len(), 1);
    assert!(locks[0].contains("\"user\":\"ed\""), "{locks:?}");
    let users = search(&cluster, &["T1002I"]).await;
    assert!(
        users[0].contains("local-admin@auth-1") && users[0].contains("\"local_admin\":true"),
        "{users:?}"
    );
    refused(ed.search_events(SearchEventsRequest::default()).await, Code::PermissionDenied);
    cluster.create_user("audrey", &["auditor"], &[]).await;
    assert!(cluster.user("audrey").await.search_events(SearchEventsRequest::default()).await.is_ok());
    let denied = search(&cluster, &["WAD00W"]).await;
    assert!(denied[0].contains("SearchEvents") && denied[0].contains("\"ed\""), "{denied:?}");
}

#[tokio::test]
async fn a_search_is_by_time_and_bounded() {
    let cluster = Cluster::start().await;
    let node = cluster.join(&["Node"], "n-1").await;
    let early = cluster.clock.wall();
    let events: Vec<Envelope> = (1..=600).map(|n| envelope(&cluster, &node.host_id, n)).collect();
    emit(&cluster, &node, &events).await.unwrap();
    cluster.clock.advance(Duration::from_secs(60));
    let late: Vec<Envelope> = (601..=602).map(|n| envelope(&cluster, &node.host_id, n)).collect();
    emit(&cluster, &node, &late).await.unwrap();
    let request = |from_ms, limit| SearchEventsRequest {
        from_ms,
        limit,
        codes: vec!["T3007W".into()],
        ..Default::default()
    };
    let mut admin = cluster.admin();
    let newest = admin.search_events(request(early.as_ms() + 1, 0)).await.unwrap().into_inner().json;
    assert_eq!(newest.len(), 2);
    let some = admin.search_events(request(0, 5)).await.unwrap().into_inner().json;
    assert_eq!(some.len(), 5);
    assert!(some[0].contains("event 602") && some[2].contains("event 600"), "{some:?}");
    let all = admin.search_events(request(0, 0)).await.unwrap().into_inner();
    assert_eq!(all.json.iter().filter(|event| event.contains("\"ssh\"")).count(), 602);
    assert_eq!(all.next, 0);
}

#[tokio::test]
async fn a_search_goes_on_where_it_stopped() {
    let cluster = Cluster::start().await;
    let node = cluster.join(&["Node"], "n-1").await;
    let events: Vec<Envelope> = (1..=600).map(|n| envelope(&cluster, &node.host_id, n)).collect();
    emit(&cluster, &node, &events).await.unwrap();
    let mut admin = cluster.admin();
    let mut found = Vec::new();
    let mut before = 0;
    loop {
        let codes = vec!["T3007W".into()];
        let request = SearchEventsRequest { codes, limit: 97, before, ..Default::default() };
        let page = admin.search_events(request).await.unwrap().into_inner();
        found.extend(page.json.into_iter().filter(|event| event.contains("\"ssh\"")));
        before = page.next;
        if before == 0 {
            break;
        }
    }
    let expected: Vec<String> = (1..=600).rev().map(|n| format!("\"event {n}\"")).collect();
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(&expected).all(|(event, text)| event.contains(text)));
}
