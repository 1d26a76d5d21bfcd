//! SECURITY C: every method against every identity kind.

use crate::harness::{Cluster, HOUR, Keys, Process};
use http::uri::PathAndQuery;
use prost::bytes::{Buf, BufMut, Bytes};
use std::time::Duration;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};
use wayleave_identity::{Principal, UserPrincipal};
use wayleave_keystore::X509Authority;
use wayleave_keystore::X509Request;
use wayleave_rpc::Channel;
use wayleave_runtime::{Clock, random_bytes};
use wayleave_vocab::{ClusterName, UserName};

/// Sends and receives bytes, so that any method can be called with any request.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
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

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// The code with which an empty request to a method is answered.
async fn call(channel: &Channel, method: &str) -> Code {
    let mut client = tonic::client::Grpc::new(channel.clone());
    if let Err(error) = client.ready().await {
        return Status::from_error(error).code();
    }
    let path = PathAndQuery::try_from(method).unwrap();
    let stream = tokio_stream::iter([Bytes::new()]);
    // A stream of one message serves for every shape of method.
    match client.streaming(tonic::Request::new(stream), path, Raw).await {
        Ok(mut answer) => match tokio::time::timeout(HOUR, answer.get_mut().message()).await.unwrap() {
            Ok(_) => Code::Ok,
            Err(status) => status.code(),
        },
        Err(status) => status.code(),
    }
}

/// Every method of the contract.
fn methods() -> Vec<String> {
    let files = protox::compile(["auth.proto"], ["../../api/proto/proto"]).unwrap();
    let auth = files.file.iter().find(|file| file.package() == "wayleave.auth.v1").unwrap();
    auth.service
        .iter()
        .flat_map(|service| {
            service.method.iter().map(|m| format!("/wayleave.auth.v1.{}/{}", service.name(), m.name()))
        })
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nobody,
    /// A user whose roles allow nothing.
    PlainUser,
    Editor,
    Auditor,
    LocalAdmin,
    Node,
    Proxy,
    LockedUser,
    LockedProxy,
    ExpiredUser,
    ExpiredProxy,
    DeletedUser,
    OtherCluster,
}

/// Whether the gate lets a kind through to a method; what the handler says of an empty request is its own matter.
fn passes(kind: Kind, method: &str) -> bool {
    let (service, name) = method.trim_start_matches("/wayleave.auth.v1.").split_once('/').unwrap();
    match kind {
        Kind::OtherCluster => return false,
        _ if service == "Public" => return true,
        Kind::Nobody
        | Kind::LockedUser
        | Kind::LockedProxy
        | Kind::ExpiredUser
        | Kind::ExpiredProxy
        | Kind::DeletedUser => return false,
        _ => {}
    }
    match (service, kind) {
        ("Host", Kind::Proxy) => true,
        ("Host", Kind::Node) => !matches!(
            name,
            "BeginIncarnation"
                | "PublishRoutes"
                | "Publish"
                | "ReportStatus"
                | "Withdraw"
                | "BeginOpensshLogin"
                | "SignOpensshLogin"
        ),
        ("Host", _) | ("Admin", Kind::Node | Kind::Proxy) => false,
        ("Admin", Kind::LocalAdmin) => true,
        ("Admin", _) => match name {
            "CreateToken" | "CreateOpensshToken" | "ForgetHostKey" | "CreateUser" | "ResetUser" => {
                kind == Kind::Editor
            }
            "SignUser" | "RotateAuthority" => false,
            "SearchEvents" => kind == Kind::Auditor,
            "GetOverview" | "ListRoutes" => kind == Kind::Editor,
            _ => true,
        },
        other => panic!("a new service: {other:?}"),
    }
}

/// A certificate that another cluster's authority issued, for a local administrator.
fn of_other_cluster(cluster: &Cluster) -> (String, Keys) {
    let now = cluster.clock.wall();
    let authority = X509Authority::generate("user CA of other", random_bytes(), now).unwrap();
    let principal = Principal::User(UserPrincipal {
        name: UserName::parse("eve").unwrap(),
        cluster: ClusterName::parse("demo").unwrap(),
        roles: Default::default(),
        logins: Default::default(),
        traits: Default::default(),
        local_admin: true,
        not_after: now.after(HOUR),
    });
    let keys = Keys::new();
    let request = X509Request {
        principal: &principal,
        common_name: "eve",
        spki_der: &keys.tls.spki_der(),
        dns_names: &[],
        ip_addresses: &[],
        not_before: now.before(HOUR),
        not_after: now.after(HOUR),
        server: false,
        client: true,
        serial: random_bytes(),
    };
    (authority.issue(&request).unwrap(), keys)
}

async fn signed(cluster: &Cluster, name: &str, roles: &[&str], ttl: Duration) -> Channel {
    cluster.create_user(name, roles, &[]).await;
    let (certificates, keys) = cluster.sign(name, ttl).await;
    cluster.channel(&certificates.tls_chain_pem, &keys.tls.to_pem())
}

fn as_role(cluster: &Cluster, process: &Process) -> Channel {
    cluster.channel_of(process, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c_every_method_against_every_identity_kind() {
    // The handshake goes by the machine's clock, what is allowed by the cluster's: what runs out in between is refused
    // by the gate. Processes of the first start live for an hour.
    let first = Cluster::start_with(|config| config.lifetimes.host = HOUR).await;
    let expired = first.join(&["Proxy"], "p-2").await;
    let (backend, clock, directory) = first.stop().await;
    let cluster =
        Cluster::start_on(backend, clock, directory, |config| config.lifetimes.host = 100 * HOUR).await;
    cluster.role("nothing", "{allow: {}}").await;
    let locked = cluster.join(&["Proxy"], "p-1").await;
    let (node, proxy) = (cluster.join(&["Node"], "n-1").await, cluster.join(&["Proxy"], "p-3").await);
    let (other_pem, other_keys) = of_other_cluster(&cluster);
    let callers = [
        (Kind::Nobody, cluster.stranger()),
        (Kind::PlainUser, signed(&cluster, "plain", &["nothing"], 10 * HOUR).await),
        (Kind::Editor, signed(&cluster, "editor", &["editor"], 10 * HOUR).await),
        (Kind::Auditor, signed(&cluster, "auditor", &["auditor"], 10 * HOUR).await),
        (Kind::LocalAdmin, cluster.admin_channel()),
        (Kind::Node, as_role(&cluster, &node)),
        (Kind::Proxy, as_role(&cluster, &proxy)),
        (Kind::LockedUser, signed(&cluster, "locked", &["editor"], 10 * HOUR).await),
        (Kind::LockedProxy, as_role(&cluster, &locked)),
        (Kind::ExpiredUser, signed(&cluster, "expired", &["editor"], 2 * HOUR).await),
        (Kind::ExpiredProxy, as_role(&cluster, &expired)),
        (Kind::DeletedUser, signed(&cluster, "deleted", &["editor"], 10 * HOUR).await),
        (Kind::OtherCluster, cluster.channel(&other_pem, &other_keys.tls.to_pem())),
    ];
    cluster.lock("proxy", &format!("server_id: {}", locked.host_id)).await;
    cluster.lock("user", "user: locked").await;
    let reference = wayleave_api::auth::ResourceRef { kind: "user".into(), name: "deleted".into() };
    cluster.admin().delete_resource(reference).await.unwrap();
    cluster.clock.advance(3 * HOUR);
    let mut wrong = Vec::new();
    for (kind, channel) in &callers {
        for method in methods() {
            let code = call(channel, &method).await;
            let stopped = matches!(
                code,
                Code::Unauthenticated
                    | Code::PermissionDenied
                    | Code::Unavailable
                    | Code::Unknown
                    | Code::Cancelled
            );
            // Handlers refuse an empty request in their own way; where they too say "denied", the gate's word is not
            // to be told from theirs.
            let handler_denies = matches!(
                method.rsplit('/').next().unwrap(),
                "Join" | "Login" | "BeginInvite" | "AcceptInvite" | "ExtendRoles"
            );
            let expected = passes(*kind, &method);
            if stopped == expected && !(expected && handler_denies) {
                wrong.push(format!("{kind:?} {method}: {code:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn c_a_method_that_does_not_exist_is_refused() {
    let cluster = Cluster::start().await;
    for method in [
        "/wayleave.auth.v1.Admin/Nonsense",
        "/x/y",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ] {
        assert_eq!(call(&cluster.stranger(), method).await, Code::NotFound, "{method}");
    }
}

#[tokio::test]
async fn e_a_role_that_was_taken_is_not_used_any_more() {
    let cluster = Cluster::start().await;
    cluster.create_user("alice", &["access", "auditor"], &[]).await;
    let mut alice = cluster.user("alice").await;
    let search = wayleave_api::auth::SearchEventsRequest::default();
    alice.search_events(search.clone()).await.unwrap();
    cluster.put("kind: user\nversion: v2\nmetadata: {name: alice}\nspec: {roles: [access]}\n").await;
    crate::harness::refused(alice.search_events(search.clone()).await, Code::PermissionDenied);
    // What is given back counts for the certificate again; what is new needs a new one, unless it denies.
    cluster.role("no-audit", "{allow: {}, deny: {rules: [{resources: [event], verbs: ['*']}]}}").await;
    cluster
        .put("kind: user\nversion: v2\nmetadata: {name: alice}\nspec: {roles: [access, auditor, no-audit]}\n")
        .await;
    crate::harness::refused(alice.search_events(search).await, Code::PermissionDenied);
}

#[tokio::test]
async fn e_nobody_widens_a_role_that_he_was_given_since_he_logged_in() {
    let cluster = Cluster::start().await;
    cluster.role("role-writer", "{allow: {rules: [{resources: [role], verbs: [read, update]}]}}").await;
    cluster.role("dev", "{allow: {logins: [dev]}}").await;
    cluster.role("other", "{allow: {logins: [dev]}}").await;
    cluster.create_user("rob", &["role-writer"], &[]).await;
    let mut rob = cluster.user("rob").await;
    let write = |role: &str, spec: &str| {
        let yaml = format!("kind: role\nversion: v8\nmetadata: {{name: {role}}}\nspec: {spec}\n");
        let json = wayleave_resource::Resource::parse_yaml(&yaml).unwrap().remove(0).to_stored_json();
        wayleave_api::auth::ResourceWrite { json }
    };
    cluster.put("kind: user\nversion: v2\nmetadata: {name: rob}\nspec: {roles: [role-writer, dev]}\n").await;

    let wider = write("dev", "{allow: {logins: [dev, root]}}");
    crate::harness::refused(rob.upsert_resource(wider).await, Code::PermissionDenied);

    rob.upsert_resource(write("dev", "{allow: {logins: []}}")).await.unwrap();
    rob.upsert_resource(write("other", "{allow: {logins: [dev, root]}}")).await.unwrap();
}

#[tokio::test]
async fn e_nobody_widens_himself_by_writing_resources() {
    let cluster = Cluster::start().await;
    cluster.create_user("ed", &["editor"], &[]).await;
    let mut ed = cluster.user("ed").await;
    let write = |yaml: &str| {
        let json = wayleave_resource::Resource::parse_yaml(yaml).unwrap().remove(0).to_stored_json();
        wayleave_api::auth::ResourceWrite { json }
    };
    let own_user = write("kind: user\nversion: v2\nmetadata: {name: ed}\nspec: {roles: [editor, auditor]}\n");
    crate::harness::refused(ed.upsert_resource(own_user).await, Code::PermissionDenied);
    let own_role = write(
        "kind: role\nversion: v8\nmetadata: {name: editor}\nspec: {allow: {logins: [root], node_labels: {'*': '*'}}}\n",
    );
    crate::harness::refused(ed.upsert_resource(own_role).await, Code::PermissionDenied);
    let other = write("kind: role\nversion: v8\nmetadata: {name: ops}\nspec: {allow: {logins: [root]}}\n");
    ed.upsert_resource(other).await.unwrap();
}
