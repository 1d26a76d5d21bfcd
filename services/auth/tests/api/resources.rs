//! Resources: reading and writing as roles allow, revisions, what is refused, watching.

use crate::harness::{Cluster, HOUR, node_json, refused, within};
use tonic::Code;
use wayleave_api::auth::resource_event::Event;
use wayleave_api::auth::{
    ExplainRequest, ListNodesRequest, ListResourcesRequest, RegisterRequest, ResourceRef, ResourceWrite,
    WatchResourcesRequest,
};
use wayleave_resource::Resource;

fn write(yaml: &str) -> ResourceWrite {
    ResourceWrite { json: Resource::parse_yaml(yaml).unwrap().remove(0).to_stored_json() }
}

fn reference(kind: &str, name: &str) -> ResourceRef {
    ResourceRef { kind: kind.into(), name: name.into() }
}

fn list(kind: &str) -> ListResourcesRequest {
    ListResourcesRequest { kind: kind.into(), ..Default::default() }
}

const OPS: &str = "kind: role\nversion: v8\nmetadata: {name: ops}\nspec: {allow: {logins: [root]}}\n";

#[tokio::test]
async fn a_resource_is_created_read_changed_and_deleted() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    let created = admin.create_resource(write(OPS)).await.unwrap().into_inner().json;
    let created = Resource::parse_json(&created).unwrap();
    assert!(created.metadata().revision.is_some());
    refused(admin.create_resource(write(OPS)).await, Code::AlreadyExists);
    let read = admin.get_resource(reference("role", "ops")).await.unwrap().into_inner().json;
    assert_eq!(Resource::parse_json(&read).unwrap(), created);
    admin.upsert_resource(ResourceWrite { json: read.clone() }).await.unwrap();
    let told = refused(admin.upsert_resource(ResourceWrite { json: read }).await, Code::Aborted);
    assert!(told.contains("changed meanwhile"), "{told}");
    admin.delete_resource(reference("role", "ops")).await.unwrap();
    refused(admin.get_resource(reference("role", "ops")).await, Code::NotFound);
    refused(admin.delete_resource(reference("role", "ops")).await, Code::NotFound);
}

#[tokio::test]
async fn what_cannot_be_enforced_or_is_not_for_people_is_refused() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    let token = "kind: token\nversion: v2\nmetadata: {name: t}\nspec: {roles: [node]}\n";
    refused(admin.create_resource(write(token)).await, Code::InvalidArgument);
    let node = node_json("00000000-0000-4000-8000-000000000000", "web-1", "");
    refused(admin.create_resource(ResourceWrite { json: node }).await, Code::InvalidArgument);
    let pattern =
        "kind: role\nversion: v8\nmetadata: {name: r}\nspec: {allow: {node_labels: {env: '^($'}}}\n";
    refused(admin.create_resource(write(pattern)).await, Code::InvalidArgument);
    for json in ["", "{}", "[]", "null", "{\"kind\":\"role\"}", "{\"kind\":\"nonsense\"}"] {
        refused(admin.create_resource(ResourceWrite { json: json.into() }).await, Code::InvalidArgument);
    }
    let strict = "{\"kind\":\"role\",\"version\":\"v8\",\"metadata\":{\"name\":\"r\"},\"spec\":{\"options\":{\"record_session\":{\"default\":\"strict\"}},\"allow\":{}}}";
    let told =
        refused(admin.create_resource(ResourceWrite { json: strict.into() }).await, Code::InvalidArgument);
    assert!(told.contains("strict"), "{told}");
    refused(
        admin.delete_resource(reference("cluster_networking_config", "cluster-networking-config")).await,
        Code::InvalidArgument,
    );
    refused(admin.delete_resource(reference("cert_authority", "user")).await, Code::InvalidArgument);
}

#[tokio::test]
async fn a_role_in_use_is_not_deleted() {
    let cluster = Cluster::start().await;
    cluster.role("ops", "{allow: {}}").await;
    cluster.create_user("alice", &["ops"], &[]).await;
    let told = refused(cluster.admin().delete_resource(reference("role", "ops")).await, Code::Aborted);
    assert!(told.contains("alice"), "{told}");
    let user = "kind: user\nversion: v2\nmetadata: {name: bob}\nspec: {roles: [nonsense]}\n";
    refused(cluster.admin().create_resource(write(user)).await, Code::InvalidArgument);
}

#[tokio::test]
async fn c_reading_and_writing_is_as_roles_allow() {
    let cluster = Cluster::start().await;
    cluster.role("ops", "{allow: {}}").await;
    let mut reader = cluster
        .user_with_role("reader", "{allow: {rules: [{resources: [role], verbs: [list, read]}]}}")
        .await;
    reader.get_resource(reference("role", "ops")).await.unwrap();
    assert_eq!(reader.list_resources(list("role")).await.unwrap().into_inner().json.len(), 5);
    refused(reader.upsert_resource(write(OPS)).await, Code::PermissionDenied);
    refused(reader.delete_resource(reference("role", "ops")).await, Code::PermissionDenied);
    refused(reader.list_resources(list("user")).await, Code::PermissionDenied);
    refused(reader.get_resource(reference("user", "reader")).await, Code::PermissionDenied);
    refused(reader.get_resource(reference("user", "nobody")).await, Code::PermissionDenied);
    let kinds = |kinds: &[&str]| WatchResourcesRequest { kinds: crate::harness::owned(kinds) };
    refused(reader.watch_resources(kinds(&["role", "user"])).await, Code::PermissionDenied);
    reader.watch_resources(kinds(&["role"])).await.unwrap();
    refused(reader.watch_resources(kinds(&[])).await, Code::InvalidArgument);
    refused(reader.list_resources(list("nonsense")).await, Code::InvalidArgument);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let cluster = Cluster::start().await;
    for n in 0..7 {
        cluster.role(&format!("r{n}"), "{allow: {}}").await;
    }
    let (mut token, mut pages, mut all) = (String::new(), 0, 0);
    loop {
        let request = ListResourcesRequest { kind: "role".into(), page_size: 4, page_token: token };
        let page = cluster.admin().list_resources(request).await.unwrap().into_inner();
        pages += 1;
        all += page.json.len();
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((pages, all), (3, 10));
}

#[tokio::test]
async fn a_watch_tells_what_is_there_and_what_changes_and_ends_with_a_lock() {
    let cluster = Cluster::start().await;
    cluster.create_user("ed", &["editor"], &[]).await;
    let mut ed = cluster.user("ed").await;
    let request = WatchResourcesRequest { kinds: vec!["lock".into()] };
    cluster.lock("one", "user: somebody").await;
    let mut events = ed.watch_resources(request).await.unwrap().into_inner();
    let mut next = async || within(events.message()).await.map(|event| event.unwrap().event.unwrap());
    assert!(matches!(next().await.unwrap(), Event::PutJson(json) if json.contains("\"one\"")));
    assert!(matches!(next().await.unwrap(), Event::InitialStateSent(_)));
    cluster.lock("two", "user: somebody").await;
    assert!(matches!(next().await.unwrap(), Event::PutJson(json) if json.contains("\"two\"")));
    cluster.admin().delete_resource(reference("lock", "one")).await.unwrap();
    assert!(matches!(next().await.unwrap(), Event::Deleted(deleted) if deleted.name == "one"));
    cluster.lock("three", "user: ed").await;
    let ended = next().await.expect_err("the lock ends the watch");
    assert_eq!(ended.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn nodes_are_listed_as_the_caller_may_enter_them() {
    let cluster = Cluster::start().await;
    for (name, labels) in [("web-1", "env: dev"), ("db-1", "env: prod")] {
        let process = cluster.join(&["Node"], name).await;
        let json = node_json(&process.host_id, name, labels);
        let request = RegisterRequest { resources_json: vec![json], proxy: None };
        cluster.host(&process).register(request).await.unwrap();
    }
    let mut dev = cluster.user_with_role("dev", "{allow: {logins: [ubuntu], node_labels: {env: dev}}}").await;
    let nodes = dev.list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!(nodes.len(), 1);
    assert!(nodes[0].json.contains("web-1") && !nodes[0].online);
    assert_eq!(nodes[0].logins, ["ubuntu"]);
    assert_eq!(cluster.admin().list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes.len(), 2);
    let explain = |user: &str, login: &str, target: &str| ExplainRequest {
        user: user.into(),
        action: "ssh".into(),
        login: login.into(),
        target: target.into(),
        ..Default::default()
    };
    assert!(dev.explain(explain("dev", "ubuntu", "web-1")).await.unwrap().into_inner().allowed);
    refused(dev.explain(explain("dev", "ubuntu", "db-1")).await, Code::NotFound);
    refused(dev.explain(explain("other", "ubuntu", "web-1")).await, Code::PermissionDenied);
    let answer = cluster.admin().explain(explain("dev", "root", "db-1")).await.unwrap().into_inner();
    assert!(!answer.allowed && answer.trace_json.contains("of-dev"), "{answer:?}");
    let _ = HOUR;
}

#[tokio::test]
async fn what_a_user_may_do_with_resources_is_explained() {
    let cluster = Cluster::start().await;
    cluster.role("lister", "{allow: {rules: [{resources: [token, event], verbs: [list]}]}}").await;
    cluster.create_user("lena", &["lister"], &[]).await;
    let mut lena = cluster.user("lena").await;
    let ask = |user: &str, verb: &str, kind: &str| ExplainRequest {
        user: user.into(),
        action: verb.into(),
        login: String::new(),
        target: kind.into(),
        ..Default::default()
    };
    for (verb, kind, allowed) in [
        ("list", "token", true),
        ("list", "tokens", true),
        ("list", "event", true),
        ("create", "token", false),
        ("list", "role", false),
    ] {
        let answer = lena.explain(ask("", verb, kind)).await.unwrap().into_inner();
        assert_eq!(answer.allowed, allowed, "{verb} {kind}: {answer:?}");
        assert_eq!(answer.trace_json.contains("lister"), allowed, "{verb} {kind}: {answer:?}");
    }
    let of_others = cluster.admin().explain(ask("lena", "list", "token")).await.unwrap().into_inner();
    assert!(of_others.allowed);
    refused(lena.explain(ask("other", "list", "token")).await, Code::PermissionDenied);
    refused(lena.explain(ask("", "dance", "token")).await, Code::InvalidArgument);
    refused(lena.explain(ask("", "list", "dance")).await, Code::InvalidArgument);
}

#[tokio::test]
async fn it_is_told_who_gains_and_who_loses_before_a_role_is_written() {
    let cluster = Cluster::start().await;
    let process = cluster.join(&["Node"], "db-1").await;
    let json = node_json(&process.host_id, "db-1", "env: prod");
    let request = RegisterRequest { resources_json: vec![json], proxy: None };
    cluster.host(&process).register(request).await.unwrap();
    cluster.role("ops", "{allow: {logins: [ops], node_labels: {env: prod}}}").await;
    cluster.create_user("olga", &["ops"], &[]).await;
    cluster.create_user("other", &["access"], &[]).await;
    let ask = |yaml: &str| {
        let resources = wayleave_resource::Resource::parse_yaml(yaml).unwrap();
        let resources_json = resources.iter().map(wayleave_resource::Resource::to_stored_json).collect();
        ExplainRequest { action: "write".into(), resources_json, ..Default::default() }
    };
    let changed = "kind: role\nversion: v8\nmetadata: {name: ops}\nspec: {allow: {logins: [root], \
                   node_labels: {env: prod}, rules: [{resources: [token], verbs: [list]}]}}\n";

    let answer = cluster.admin().explain(ask(changed)).await.unwrap().into_inner();

    let told = "2 gained\n+ olga: ssh root@db-1\n+ olga: list token\n1 lost\n- olga: ssh ops@db-1\n";
    assert_eq!(answer.summary, told);
    let trace: serde_json::Value = serde_json::from_str(&answer.trace_json).unwrap();
    assert_eq!(trace["losses"][0]["login"], "ops", "{trace}");
    let user = "kind: user\nversion: v2\nmetadata: {name: nick}\nspec: {roles: [ops]}\n";
    let answer = cluster.admin().explain(ask(user)).await.unwrap().into_inner();
    assert_eq!(answer.summary, "1 gained\n+ nick: ssh ops@db-1\n0 lost\n");
    let again = cluster.admin().explain(ask(changed)).await.unwrap().into_inner();
    assert_eq!(again.summary, told, "nothing was written");
    let lock = "kind: lock\nversion: v2\nmetadata: {name: l}\nspec: {target: {user: olga}}\n";
    refused(cluster.admin().explain(ask(lock)).await, Code::InvalidArgument);
    refused(cluster.user("olga").await.explain(ask(changed)).await, Code::PermissionDenied);
}
