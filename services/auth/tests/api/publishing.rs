//! What proxies and agents are told: proxies, nodes, routes, signed policy.

use crate::harness::{Cluster, HOUR, Process, node_json, refused, within};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use wayleave_api::auth::cluster_event::Event;
use wayleave_api::auth::{
    BeginIncarnationRequest, ClusterEvent, GetStatusRequest, ListNodesRequest, ProxyRecord, RegisterRequest,
    RouteAck, RouteUpdate, WatchClusterRequest,
};
use wayleave_keystore::{IdentityDir, PolicyKeeper, TrustStore};
use wayleave_runtime::Clock;
use wayleave_vocab::{ClusterName, HostId};

struct Watched {
    stream: Streaming<ClusterEvent>,
    initial: Vec<Event>,
}

async fn watch(cluster: &Cluster, process: &Process) -> Watched {
    let request = WatchClusterRequest::default();
    let mut stream = cluster.host(process).watch_cluster(request).await.unwrap().into_inner();
    let mut initial = Vec::new();
    loop {
        match within(stream.message()).await.unwrap().unwrap().event.unwrap() {
            Event::InitialStateSent(_) => return Watched { stream, initial },
            event => initial.push(event),
        }
    }
}

impl Watched {
    /// The next event that is wanted; others are passed over.
    async fn next<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        within(async {
            loop {
                let event = self.stream.message().await.unwrap().unwrap().event.unwrap();
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        })
        .await
    }
}

async fn register_proxy(cluster: &Cluster, process: &Process) {
    let record = ProxyRecord {
        host_id: "whatever".into(),
        name: "proxy-1".into(),
        peer_address: "10.0.0.1:3021".into(),
        direct_address: "10.0.0.1:443".into(),
        public_addresses: vec!["proxy.example.com:443".into()],
        zone: "a".into(),
        ..ProxyRecord::default()
    };
    let request = RegisterRequest { resources_json: Vec::new(), proxy: Some(record) };
    cluster.host(process).register(request).await.unwrap();
}

struct Routes {
    send: mpsc::Sender<RouteUpdate>,
    acks: Streaming<RouteAck>,
}

async fn publish(cluster: &Cluster, process: &Process) -> Routes {
    let (send, receiver) = mpsc::channel(16);
    let stream = ReceiverStream::new(receiver);
    let acks = cluster.host(process).publish_routes(stream).await.unwrap().into_inner();
    Routes { send, acks }
}

impl Routes {
    async fn send(&mut self, update: RouteUpdate) {
        let sequence = update.sequence;
        self.send.send(update).await.unwrap();
        while within(self.acks.message()).await.unwrap().unwrap().sequence < sequence {}
    }
}

fn change(incarnation: u64, base: u64, sequence: u64, added: &[&str], removed: &[&str]) -> RouteUpdate {
    let ids = |ids: &[&str]| ids.iter().map(|id| id.parse::<HostId>().unwrap().as_bytes().to_vec()).collect();
    RouteUpdate {
        incarnation,
        base,
        sequence,
        added: ids(added),
        removed: ids(removed),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_proxy_is_told_of_proxies_nodes_routes_and_policy() {
    let cluster = Cluster::start().await;
    let (proxy, node) = (cluster.join(&["Proxy"], "p-1").await, cluster.join(&["Node"], "web-1").await);
    let mut client = cluster.host(&proxy);
    let begun = client.begin_incarnation(BeginIncarnationRequest {}).await.unwrap().into_inner();
    assert_eq!(begun.incarnation, 1);
    register_proxy(&cluster, &proxy).await;
    let json = node_json(&node.host_id, "web-1", "env: dev");
    cluster.host(&node).register(RegisterRequest { resources_json: vec![json], proxy: None }).await.unwrap();
    let mut routes = publish(&cluster, &proxy).await;
    routes.send(change(1, 0, 1, &[&node.host_id], &[])).await;

    let mut watched = watch(&cluster, &proxy).await;
    let found = |wanted: &dyn Fn(&Event) -> bool| watched.initial.iter().any(wanted);
    assert!(found(&|e| matches!(e, Event::NodePutJson(json) if json.contains("web-1"))));
    assert!(found(&|e| matches!(e, Event::ProxyPut(p) if p.host_id == proxy.host_id && p.incarnation == 1
        && p.zone == "a" && p.direct_address == "10.0.0.1:443" && p.peer_address == "10.0.0.1:3021")));
    assert!(found(&|e| matches!(e, Event::Routes(r) if r.update.as_ref().unwrap().host_ids.len() == 1)));
    assert!(found(&|e| matches!(e, Event::Networking(n) if n.tunnel_strategy_json.contains("agent_mesh"))));
    assert!(found(&|e| matches!(e, Event::Snapshot(s) if s.head.is_some())));
    let online = cluster.admin().list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes[0].online;
    assert!(online);

    routes.send(change(1, 1, 2, &[], &[&node.host_id])).await;
    let update = watched.next(|e| if let Event::Routes(r) = e { r.update } else { None }).await;
    assert_eq!((update.base, update.sequence, update.removed.len()), (1, 2, 1));
    cluster.host(&node).register(RegisterRequest::default()).await.unwrap();
    let gone = watched.next(|e| if let Event::NodeDeletedHostId(id) = e { Some(id) } else { None }).await;
    assert_eq!(gone, node.host_id);
}

#[tokio::test]
async fn a_user_is_told_where_the_proxies_are() {
    let cluster = Cluster::start().await;
    cluster.create_user("alice", &["access"], &[]).await;
    assert!(cluster.sign("alice", HOUR).await.0.proxy_addresses.is_empty());
    let (first, second) = (cluster.join(&["Proxy"], "p-1").await, cluster.join(&["Proxy"], "p-2").await);
    register_proxy(&cluster, &first).await;
    register_proxy(&cluster, &second).await;
    assert_eq!(cluster.sign("alice", HOUR).await.0.proxy_addresses, ["proxy.example.com:443"]);
}

#[tokio::test]
async fn an_agent_is_told_of_proxies_and_policy_only() {
    let cluster = Cluster::start().await;
    let (proxy, node) = (cluster.join(&["Proxy"], "p-1").await, cluster.join(&["Node"], "web-1").await);
    register_proxy(&cluster, &proxy).await;
    let json = node_json(&node.host_id, "web-1", "");
    cluster.host(&node).register(RegisterRequest { resources_json: vec![json], proxy: None }).await.unwrap();
    let mut routes = publish(&cluster, &proxy).await;
    routes.send(change(1, 0, 1, &[&node.host_id], &[])).await;
    let watched = watch(&cluster, &node).await;
    let kinds: BTreeSet<&str> = watched
        .initial
        .iter()
        .map(|event| match event {
            Event::Networking(_) => "networking",
            Event::ProxyPut(_) => "proxy",
            Event::Snapshot(_) | Event::Head(_) => "policy",
            other => panic!("an agent is told {other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["networking", "policy", "proxy"].into());
}

#[tokio::test]
async fn o_what_is_published_is_believed_by_the_gate_of_agents() {
    let cluster = Cluster::start().await;
    let process = cluster.join(&["Proxy"], "p-1").await;
    let trust = process.answer.trust.clone().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let keeper = PolicyKeeper::open(
        IdentityDir::open(&directory.path().join("identity")).unwrap(),
        ClusterName::parse("demo").unwrap(),
        trust.policy_keys_pem,
        TrustStore::empty(),
    )
    .unwrap();
    let believe = |snapshot: wayleave_api::auth::PolicySnapshot| {
        let head = snapshot.head.unwrap();
        keeper
            .accept_snapshot(&snapshot.payload, &head.payload, &head.signature, cluster.clock.wall())
            .unwrap();
    };
    believe(trust.snapshot.unwrap());
    let before = keeper.revision();
    let mut watched = watch(&cluster, &process).await;
    cluster.lock("l", "user: alice").await;
    // Who holds the one before is told what changed.
    let delta = watched.next(|e| if let Event::Delta(d) = e { Some(d) } else { None }).await;
    let head = delta.head.unwrap();
    keeper.accept_delta(&delta.payload, &head.payload, &head.signature, cluster.clock.wall()).unwrap();
    assert_eq!(keeper.revision().counter, before.counter + 1);
    assert_eq!(keeper.watch().borrow().as_ref().unwrap().parts().locks.len(), 1);
}

#[tokio::test]
async fn a_restart_serves_the_same_policy() {
    let cluster = Cluster::start().await;
    cluster.lock("l", "user: alice").await;
    let process = cluster.join(&["Proxy"], "p-1").await;
    let mut watched = watch(&cluster, &process).await;
    // The snapshot with the lock may come with the initial state or after it.
    let has_lock = |event: &Event| {
        let payload = match event {
            Event::Snapshot(snapshot) => &snapshot.payload,
            Event::Delta(delta) => &delta.payload,
            _ => return false,
        };
        String::from_utf8_lossy(payload).contains("alice")
    };
    if !watched.initial.iter().any(has_lock) {
        watched.next(|event| has_lock(&event).then_some(())).await;
    }
    let before = cluster.admin().get_status(GetStatusRequest {}).await.unwrap().into_inner();
    drop(watched);
    let (backend, clock, directory) = cluster.stop().await;
    let cluster = Cluster::start_on(backend, clock, directory, |_| {}).await;
    let after = cluster.admin().get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(after.policy_counter, before.policy_counter);
}

#[tokio::test]
async fn a_lost_lease_makes_routes_suspect_and_a_new_life_replaces_them() {
    let cluster = Cluster::start().await;
    let (proxy, other) = (cluster.join(&["Proxy"], "p-1").await, cluster.join(&["Proxy"], "p-2").await);
    let node = cluster.join(&["Node"], "web-1").await;
    let mut routes = publish(&cluster, &proxy).await;
    routes.send(change(1, 0, 1, &[&node.host_id], &[])).await;
    let mut watched = watch(&cluster, &other).await;
    drop(routes);
    // The publisher ends with its stream; then nobody keeps the lease alive.
    let lost = async {
        loop {
            cluster.clock.advance(Duration::from_secs(5));
            cluster.backend.maintain().await.unwrap();
            let wanted = |e| if let Event::RoutesLeaseLostProxyId(id) = e { Some(id) } else { None };
            if let Ok(id) = tokio::time::timeout(Duration::from_millis(50), watched.next(wanted)).await {
                return id;
            }
        }
    };
    assert_eq!(within(lost).await, proxy.host_id);
    let mut newer = publish(&cluster, &proxy).await;
    newer.send(change(2, 0, 1, &[], &[])).await;
    let update = watched.next(|e| if let Event::Routes(r) = e { r.update } else { None }).await;
    assert_eq!((update.incarnation, update.snapshot), (2, true));
    let mut older = publish(&cluster, &proxy).await;
    older.send.send(change(1, 0, 9, &[&node.host_id], &[])).await.unwrap();
    refused(within(older.acks.message()).await, Code::Aborted);
}

#[tokio::test]
async fn routes_that_are_withdrawn_go_at_once_and_only_those() {
    let cluster = Cluster::start().await;
    let (proxy, other) = (cluster.join(&["Proxy"], "p-1").await, cluster.join(&["Proxy"], "p-2").await);
    let node = cluster.join(&["Node"], "web-1").await;
    let mut watched = watch(&cluster, &other).await;
    let withdrawn = |incarnation| RouteUpdate { incarnation, withdrawn: true, ..RouteUpdate::default() };
    let mut routes = publish(&cluster, &proxy).await;
    routes.send(change(1, 0, 1, &[&node.host_id], &[])).await;
    // Another life has begun: what the first one says of itself is not about that.
    let mut newer = publish(&cluster, &proxy).await;
    newer.send(change(2, 0, 1, &[&node.host_id], &[])).await;
    routes.send.send(withdrawn(1)).await.unwrap();
    assert!(within(routes.acks.message()).await.unwrap().is_none(), "the stream ends");
    newer.send(change(2, 1, 2, &[], &[])).await;
    newer.send.send(withdrawn(2)).await.unwrap();
    assert!(within(newer.acks.message()).await.unwrap().is_none());
    let (mut last, mut lost) = (0, None);
    while lost.is_none() {
        (last, lost) = watched
            .next(|event| match event {
                Event::Routes(routes) => Some((routes.update.unwrap().incarnation, None)),
                Event::RoutesLeaseLostProxyId(id) => Some((last, Some(id))),
                _ => None,
            })
            .await;
    }
    assert_eq!((last, lost), (2, Some(proxy.host_id)));
}

#[tokio::test]
async fn f_wrong_route_updates_end_the_stream() {
    let cluster = Cluster::start().await;
    let proxy = cluster.join(&["Proxy"], "p-1").await;
    for update in
        [change(1, 7, 8, &[], &[]), RouteUpdate { added: vec![vec![1; 15]], ..change(1, 0, 1, &[], &[]) }]
    {
        let mut routes = publish(&cluster, &proxy).await;
        routes.send.send(update).await.unwrap();
        refused(within(routes.acks.message()).await, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn j_a_locked_proxy_loses_its_watch() {
    let cluster = Cluster::start().await;
    let proxy = cluster.join(&["Proxy"], "p-1").await;
    let mut watched = watch(&cluster, &proxy).await;
    cluster.lock("l", &format!("server_id: {}", proxy.host_id)).await;
    let ended = within(async {
        loop {
            match watched.stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the watch ended without a reason"),
                Err(status) => return status,
            }
        }
    })
    .await;
    assert_eq!(ended.code(), Code::PermissionDenied);
    let _ = HOUR;
}

#[tokio::test]
async fn a_second_node_of_the_same_name_is_another_record() {
    let cluster = Cluster::start().await;
    for _ in 0..2 {
        let node = cluster.join(&["Node"], "web-1").await;
        let json = node_json(&node.host_id, "web-1", "");
        cluster
            .host(&node)
            .register(RegisterRequest { resources_json: vec![json], proxy: None })
            .await
            .unwrap();
    }
    assert_eq!(cluster.admin().list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes.len(), 2);
}

#[tokio::test]
async fn j_a_role_that_is_taken_away_is_published_until_certificates_with_it_have_run_out() {
    let cluster = Cluster::start().await;
    let node = cluster.join(&["Node"], "n-1").await;
    cluster.create_user("alice", &["access", "auditor"], &[]).await;
    let mut watched = watch(&cluster, &node).await;
    let put = |roles: &str| {
        format!("kind: user\nversion: v2\nmetadata: {{name: alice}}\nspec: {{roles: [{roles}]}}\n")
    };
    let mut held = watched.initial.iter().find_map(|event| match event {
        Event::Snapshot(snapshot) => Some(wayleave_ca::Snapshot::decode(&snapshot.payload).unwrap()),
        _ => None,
    });
    let mut withdrawn = |event| {
        let now = match event {
            Event::Snapshot(snapshot) => wayleave_ca::Snapshot::decode(&snapshot.payload).unwrap(),
            Event::Delta(delta) => {
                let delta = wayleave_ca::Delta::decode(&delta.payload).unwrap();
                held.as_ref().unwrap().apply(&delta).unwrap()
            }
            _ => return None,
        };
        let entry = |w: &wayleave_ca::Withdrawal| (w.user.to_string(), w.role.to_string());
        let entries = now.parts().withdrawn.iter().map(entry).collect::<Vec<_>>();
        held = Some(now);
        Some(entries)
    };
    let taken = |roles: &[&str]| -> Vec<(String, String)> {
        roles.iter().map(|role| ("alice".to_owned(), (*role).to_owned())).collect()
    };

    cluster.put(&put("auditor")).await;
    watched.next(|event| withdrawn(event).filter(|found| *found == taken(&["access"]))).await;
    cluster.put(&put("editor")).await;
    watched.next(|event| withdrawn(event).filter(|found| *found == taken(&["access", "auditor"]))).await;
    cluster.put(&put("access")).await;
    watched.next(|event| withdrawn(event).filter(|found| *found == taken(&["auditor", "editor"]))).await;

    cluster.clock.advance(HOUR * 31);
    cluster.lock("later", "user: nobody").await;
    watched.next(|event| withdrawn(event).filter(Vec::is_empty)).await;
}
