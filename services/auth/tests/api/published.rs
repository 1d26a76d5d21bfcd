//! Machines that are published by `ssh -R`, and certificates to enter them: what a proxy can get from Auth, and what not.

use crate::harness::{Cluster, HOUR, Process, owned, refused, within};
use bytes::BytesMut;
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;
use wayleave_api::auth::{
    BeginIncarnationRequest, BeginOpensshLoginRequest, BeginOpensshLoginResponse, CreateOpensshTokenRequest,
    CreateOpensshTokenResponse, ForgetHostKeyRequest, PublishRequest, PublishResponse, ResourceRef,
    RouteUpdate, SignOpensshLoginRequest, WithdrawRequest,
};
use wayleave_runtime::{Clock, fill_random, random_bytes};
use wayleave_ssh::{
    CertType, Certificate, ClientConfig, Connection, Credential, Event, KeyPair, LoginProof, LoginProofs,
    PublicKey, ServerConfig,
};
use wayleave_vocab::{Mono, SessionId};

/// A proxy that holds routes, so that what it publishes lives.
struct Proxy {
    process: Process,
    incarnation: u64,
    _routes: tokio::sync::mpsc::Sender<RouteUpdate>,
}

/// A published machine and the key that users are shown.
struct Machine {
    answer: PublishResponse,
    shown: Arc<KeyPair>,
}

fn key() -> Arc<KeyPair> {
    Arc::new(KeyPair::from_seed(&random_bytes()))
}

fn certified(key: &Arc<KeyPair>, line: &str) -> Credential {
    Credential::certified(key.clone(), Certificate::from_openssh(line).unwrap()).unwrap()
}

/// A login on a connection to a host, through memory, and its proof.
fn prove(client: Credential, login: &str, host: Credential, cookie: Option<[u8; 16]>) -> Vec<u8> {
    let entropy = || Box::new(|out: &mut [u8]| fill_random(out));
    let mut config = ServerConfig::new(vec![host]);
    config.proofs = LoginProofs::Kept { cookie };
    let mut server = Connection::server(&config, entropy(), Mono::ZERO);
    let client = ClientConfig::new(login.to_owned(), vec![client]);
    let mut client = Connection::client(&client, entropy(), Mono::ZERO);
    let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
    for _ in 0..64 {
        while let Some(output) = client.poll_output() {
            to_server.extend_from_slice(&output);
        }
        let _taken = server.handle_input(&mut to_server, Mono::ZERO).unwrap();
        while let Some(event) = server.poll_event() {
            if let Event::AuthAttempt(attempt) = event {
                let proof: Box<LoginProof> = attempt.proof.unwrap();
                return proof.encode().to_vec();
            }
        }
        while let Some(output) = server.poll_output() {
            to_client.extend_from_slice(&output);
        }
        let _taken = client.handle_input(&mut to_client, Mono::ZERO).unwrap();
        while let Some(event) = client.poll_event() {
            if let Event::HostIdentity(_) = event {
                client.accept_host().unwrap();
            }
        }
    }
    panic!("nobody logged in");
}

impl Proxy {
    async fn join(cluster: &Cluster, name: &str) -> Self {
        let process = cluster.join(&["Proxy"], name).await;
        let mut host = cluster.host(&process);
        let answer = host.begin_incarnation(BeginIncarnationRequest {}).await.unwrap().into_inner();
        let incarnation = answer.incarnation;
        let (routes, updates) = tokio::sync::mpsc::channel(4);
        let update = RouteUpdate { incarnation, sequence: 1, snapshot: true, ..RouteUpdate::default() };
        routes.send(update).await.unwrap();
        let updates = tokio_stream::wrappers::ReceiverStream::new(updates);
        let mut acks = host.publish_routes(updates).await.unwrap().into_inner();
        assert!(within(acks.message()).await.unwrap().is_some());
        Self { process, incarnation, _routes: routes }
    }

    /// What this proxy shows on its SSH ports.
    fn identity(&self) -> Credential {
        let key = Arc::new(KeyPair::from_seed(self.process.keys[1].ssh.expose_seed()));
        certified(&key, &self.process.answer.certificates[1].ssh_certificate)
    }

    fn wish(&self, publisher: &Credential, name: &str, ports: &[u32]) -> PublishRequest {
        PublishRequest {
            proof: prove(publisher.clone(), "publish", self.identity(), None),
            publication: SessionId::from_random(random_bytes()).to_string(),
            incarnation: self.incarnation,
            name: name.to_owned(),
            ports: ports.to_vec(),
            target_host_key: key().public_key().to_openssh(),
            ssh_public_key: key().public_key().to_openssh(),
            client_address: "127.0.0.1:1".to_owned(),
        }
    }

    async fn publish(&self, cluster: &Cluster, publisher: &Credential, name: &str) -> Machine {
        let shown = key();
        let request = PublishRequest {
            ssh_public_key: shown.public_key().to_openssh(),
            ..self.wish(publisher, name, &[22])
        };
        let answer = cluster.host(&self.process).publish(request).await.unwrap().into_inner();
        Machine { answer, shown }
    }

    async fn challenge(&self, cluster: &Cluster, machine: &Machine) -> BeginOpensshLoginResponse {
        let request = BeginOpensshLoginRequest { host_id: machine.answer.host_id.clone() };
        cluster.host(&self.process).begin_openssh_login(request).await.unwrap().into_inner()
    }

    async fn sign(
        &self,
        cluster: &Cluster,
        machine: &Machine,
        challenge: &BeginOpensshLoginResponse,
        proof: Vec<u8>,
    ) -> Result<Certificate, tonic::Status> {
        let request = SignOpensshLoginRequest {
            host_id: machine.answer.host_id.clone(),
            challenge: challenge.challenge.clone(),
            proof,
            ssh_public_key: key().public_key().to_openssh(),
            client_address: "127.0.0.1:1".to_owned(),
        };
        let answer = cluster.host(&self.process).sign_openssh_login(request).await?.into_inner();
        Ok(Certificate::from_openssh(&answer.ssh_certificate).unwrap())
    }
}

impl Machine {
    /// What users are shown in its place.
    fn identity(&self) -> Credential {
        certified(&self.shown, &self.answer.host_certificate)
    }
}

fn cookie(challenge: &BeginOpensshLoginResponse) -> Option<[u8; 16]> {
    Some(challenge.cookie.as_slice().try_into().unwrap())
}

async fn token(cluster: &Cluster, name: &str, names: &[&str]) -> (CreateOpensshTokenResponse, Credential) {
    let key = key();
    let request = CreateOpensshTokenRequest {
        name: name.to_owned(),
        names: owned(names),
        ports: vec![22, 8080],
        ssh_public_key: key.public_key().to_openssh(),
        ..CreateOpensshTokenRequest::default()
    };
    let answer = cluster.admin().create_openssh_token(request).await.unwrap().into_inner();
    let credential = certified(&key, &answer.ssh_certificate);
    (answer, credential)
}

/// A user who may enter everything as root, and his SSH credential.
async fn user(cluster: &Cluster, name: &str, role: &str) -> Credential {
    cluster.create_user(name, &[role], &["root"]).await;
    let (certificates, keys) = cluster.sign(name, HOUR).await;
    certified(&Arc::new(KeyPair::from_seed(keys.ssh.expose_seed())), &certificates.ssh_certificate)
}

#[tokio::test]
async fn who_logs_in_on_a_machine_gets_a_certificate_for_one_connection() {
    let cluster = Cluster::start().await;
    let proxy = Proxy::join(&cluster, "p-1").await;
    let (answer, publisher) = token(&cluster, "web", &["web-1"]).await;
    let machine = proxy.publish(&cluster, &publisher, "web-1").await;
    let alice = user(&cluster, "alice", "access").await;
    let challenge = proxy.challenge(&cluster, &machine).await;
    let proof = prove(alice, "root", machine.identity(), cookie(&challenge));
    let certificate = proxy.sign(&cluster, &machine, &challenge, proof).await.unwrap();
    let authority = PublicKey::from_openssh(&answer.openssh_ca_ssh[0]).unwrap();
    let now = cluster.clock.wall();
    certificate.verify(&[authority], CertType::User, Some("root"), &[], now).unwrap();
    assert_eq!(certificate.principals(), ["root"]);
    assert!(certificate.valid_before() <= now.after(Duration::from_secs(60)));
    // The machine's host certificate is for its names only.
    let host = Certificate::from_openssh(&machine.answer.host_certificate).unwrap();
    let id = &machine.answer.host_id;
    assert_eq!(host.principals(), [format!("{id}.demo"), id.clone(), "web-1".into(), "web-1.demo".into()]);
}

#[tokio::test]
async fn o_a_proxy_gets_no_certificate_for_a_user_who_did_not_just_log_in_on_that_machine() {
    let cluster = Cluster::start().await;
    let (proxy, other_proxy) = (Proxy::join(&cluster, "p-1").await, Proxy::join(&cluster, "p-2").await);
    let (_, publisher) = token(&cluster, "web", &["web-1", "web-2"]).await;
    let machine = proxy.publish(&cluster, &publisher, "web-1").await;
    let other = proxy.publish(&cluster, &publisher, "web-2").await;
    let alice = user(&cluster, "alice", "access").await;
    let prove_as = |host: Credential, cookie| prove(alice.clone(), "root", host, cookie);
    let challenge = proxy.challenge(&cluster, &machine).await;
    let wrong = [
        ("a login without the challenge", prove_as(machine.identity(), None)),
        ("a login on another machine", prove_as(other.identity(), cookie(&challenge))),
        ("a login at the proxy's own port", prove_as(proxy.identity(), cookie(&challenge))),
    ];
    for (what, proof) in wrong {
        let text = refused(proxy.sign(&cluster, &machine, &challenge, proof).await, Code::PermissionDenied);
        assert!(!text.is_empty(), "{what}");
    }
    let good = || prove_as(machine.identity(), cookie(&challenge));
    // Another proxy, with this proof and with a challenge of its own.
    let refuse = |result| refused(result, Code::PermissionDenied);
    let _text = refuse(other_proxy.sign(&cluster, &machine, &challenge, good()).await);
    let own = other_proxy.challenge(&cluster, &machine).await;
    let proof = prove_as(machine.identity(), cookie(&own));
    let _text = refuse(other_proxy.sign(&cluster, &machine, &own, proof).await);
    // The challenge of another machine, one that was made up, one that is old.
    let of_other = proxy.challenge(&cluster, &other).await;
    let _text = refuse(
        proxy.sign(&cluster, &machine, &of_other, prove_as(machine.identity(), cookie(&of_other))).await,
    );
    let mut made_up = challenge.clone();
    made_up.challenge[20] ^= 1;
    let _text = refuse(proxy.sign(&cluster, &machine, &made_up, good()).await);
    let proof = good();
    cluster.clock.advance(Duration::from_secs(121));
    let _text = refuse(proxy.sign(&cluster, &machine, &challenge, proof).await);
}

#[tokio::test]
async fn e_auth_asks_the_policy_itself() {
    let cluster = Cluster::start().await;
    let proxy = Proxy::join(&cluster, "p-1").await;
    let (_, publisher) = token(&cluster, "web", &["web-1"]).await;
    let machine = proxy.publish(&cluster, &publisher, "web-1").await;
    cluster.role("elsewhere", "{allow: {logins: [root], node_labels: {env: lab}}}").await;
    let alice = user(&cluster, "alice", "access").await;
    let cases = [
        (user(&cluster, "bob", "elsewhere").await, "root"),
        // Not in the certificate.
        (alice.clone(), "daemon"),
        // Not signed by the user authority.
        (publisher.clone(), "root"),
    ];
    for (credential, login) in cases {
        let challenge = proxy.challenge(&cluster, &machine).await;
        let proof = prove(credential, login, machine.identity(), cookie(&challenge));
        let _text = refused(proxy.sign(&cluster, &machine, &challenge, proof).await, Code::PermissionDenied);
    }
    cluster.lock("alice", "user: alice").await;
    let challenge = proxy.challenge(&cluster, &machine).await;
    let proof = prove(alice, "root", machine.identity(), cookie(&challenge));
    let _text = refused(proxy.sign(&cluster, &machine, &challenge, proof).await, Code::PermissionDenied);
}

#[tokio::test]
async fn d_only_a_publisher_who_connected_to_the_calling_proxy_publishes() {
    let cluster = Cluster::start().await;
    let (proxy, other) = (Proxy::join(&cluster, "p-1").await, Proxy::join(&cluster, "p-2").await);
    let (_, publisher) = token(&cluster, "web", &["web-1"]).await;
    let alice = user(&cluster, "alice", "access").await;
    let mut host = cluster.host(&proxy.process);
    let mut refuse = async |request: PublishRequest, part: &str| {
        let text = refused(host.publish(request).await, Code::PermissionDenied);
        assert!(text.contains(part), "{part} in {text}");
    };
    refuse(other.wish(&publisher, "web-1", &[22]), "did not connect to the calling proxy").await;
    refuse(proxy.wish(&publisher, "web-2", &[22]), "is not for port 22 of web-2").await;
    refuse(proxy.wish(&publisher, "web-1", &[22, 80]), "is not for port 80 of web-1").await;
    refuse(proxy.wish(&alice, "web-1", &[22]), "the publisher").await;
    // Without a host key there is no SSH.
    let bare = PublishRequest { target_host_key: String::new(), ..proxy.wish(&publisher, "web-1", &[22]) };
    refuse(bare, "no host key").await;
    let late = proxy.wish(&publisher, "web-1", &[22]);
    let token = ResourceRef { kind: "token".into(), name: "web".into() };
    cluster.admin().delete_resource(token).await.unwrap();
    refuse(late, "there is no token").await;
}

#[tokio::test]
async fn k_a_name_belongs_to_one_publication_and_its_host_key_stays() {
    let cluster = Cluster::start().await;
    let (proxy, other) = (Proxy::join(&cluster, "p-1").await, Proxy::join(&cluster, "p-2").await);
    let (_, publisher) = token(&cluster, "web", &["web-1"]).await;
    let (_, second) = token(&cluster, "web2", &["web-1", "n-1"]).await;
    let shown = key().public_key().to_openssh();
    let first = PublishRequest { target_host_key: shown.clone(), ..proxy.wish(&publisher, "web-1", &[22]) };
    let mut host = cluster.host(&proxy.process);
    let answer = host.publish(first.clone()).await.unwrap().into_inner();
    // The same publication may renew and add ports; another one is refused, at whichever proxy.
    let more = PublishRequest { ports: vec![22, 8080], ..first.clone() };
    assert_eq!(host.publish(more).await.unwrap().into_inner().host_id, answer.host_id);
    for (by, publisher) in [(&proxy, &publisher), (&other, &second)] {
        let request = PublishRequest { target_host_key: shown.clone(), ..by.wish(publisher, "WEB-1", &[22]) };
        let text = refused(cluster.host(&by.process).publish(request).await, Code::AlreadyExists);
        assert!(text.contains("published by another connection"), "{text}");
    }
    // Nobody else withdraws it.
    let withdraw = WithdrawRequest { name: "web-1".into(), publication: first.publication.clone() };
    cluster.host(&other.process).withdraw(withdraw.clone()).await.unwrap();
    let nodes = cluster.api_nodes().await;
    assert!(nodes.contains(&answer.host_id), "{nodes:?}");
    // A node that joins does not take its name.
    let text = {
        let token = cluster.token(&["Node"]).await;
        let (request, _) = crate::harness::join_request(&token.name, &token.secret, &["Node"], "web-1");
        refused(cluster.public().join(request).await, Code::PermissionDenied)
    };
    assert!(text.contains("another node"), "{text}");
    host.withdraw(withdraw).await.unwrap();
    assert!(!cluster.api_nodes().await.contains(&answer.host_id));
    // Another host key under the name waits for an administrator.
    let changed = || other.wish(&second, "web-1", &[22]);
    let text = refused(cluster.host(&other.process).publish(changed()).await, Code::PermissionDenied);
    assert!(text.contains("has changed"), "{text}");
    cluster.admin().forget_host_key(ForgetHostKeyRequest { name: "web-1".into() }).await.unwrap();
    let again = cluster.host(&other.process).publish(changed()).await.unwrap().into_inner();
    assert_eq!(again.host_id, answer.host_id);
    // The name of a node that has an agent.
    let node = cluster.join(&["Node"], "n-1").await;
    let register = wayleave_api::auth::RegisterRequest {
        resources_json: vec![crate::harness::node_json(&node.host_id, "n-1", "")],
        proxy: None,
    };
    cluster.host(&node).register(register).await.unwrap();
    let text = refused(
        cluster.host(&other.process).publish(other.wish(&second, "n-1", &[22])).await,
        Code::PermissionDenied,
    );
    assert!(text.contains("another host"), "{text}");
}

/// Neither what runs is renewed, nor does another token, another proxy or another name of its case bring it back.
#[tokio::test]
async fn j_a_machine_on_which_a_lock_is_cannot_be_published() {
    let cluster = Cluster::start().await;
    let (proxy, other) = (Proxy::join(&cluster, "p-1").await, Proxy::join(&cluster, "p-2").await);
    let (_, publisher) = token(&cluster, "web", &["web-1", "web-2"]).await;
    let (_, second) = token(&cluster, "web2", &["web-1"]).await;
    let wish = proxy.wish(&publisher, "web-1", &[22]);
    let host_id = cluster.host(&proxy.process).publish(wish.clone()).await.unwrap().into_inner().host_id;

    cluster.lock("stolen", &format!("server_id: {host_id}")).await;

    let requests = [
        (&proxy, wish.clone()),
        (&proxy, PublishRequest { ports: vec![22, 8080], ..wish.clone() }),
        (&proxy, proxy.wish(&second, "WEB-1", &[22])),
        (&other, other.wish(&second, "web-1", &[22])),
    ];
    for (by, request) in requests {
        let text = refused(cluster.host(&by.process).publish(request).await, Code::PermissionDenied);
        assert!(text.contains("locked"), "{text}");
    }
    let free = proxy.wish(&publisher, "web-2", &[22]);
    cluster.host(&proxy.process).publish(free).await.unwrap();
}

#[tokio::test]
async fn a_machine_whose_proxy_died_is_taken_over() {
    let cluster = Cluster::start().await;
    let (proxy, other) = (Proxy::join(&cluster, "p-1").await, Proxy::join(&cluster, "p-2").await);
    let (_, publisher) = token(&cluster, "web", &["web-1"]).await;
    let shown = key().public_key().to_openssh();
    let wish =
        |by: &Proxy| PublishRequest { target_host_key: shown.clone(), ..by.wish(&publisher, "web-1", &[22]) };
    cluster.host(&proxy.process).publish(wish(&proxy)).await.unwrap();
    let text = refused(cluster.host(&other.process).publish(wish(&other)).await, Code::AlreadyExists);
    assert!(text.contains("another connection"), "{text}");
    // A new life of the proxy: the connections of the old one are gone.
    cluster.host(&proxy.process).begin_incarnation(BeginIncarnationRequest {}).await.unwrap();
    cluster.host(&other.process).publish(wish(&other)).await.unwrap();
}

#[tokio::test]
async fn e_an_agent_does_not_register_what_only_a_proxy_enforces() {
    let cluster = Cluster::start().await;
    let node = cluster.join(&["Node"], "n-1").await;
    let json = crate::harness::node_json(&node.host_id, "n-1", "");
    for wrong in [
        json.replace("\"enforced_by\":\"agent\"", "\"enforced_by\":\"proxy\""),
        json.replace("\"enforced_by\":\"agent\"", "\"enforced_by\":\"agent\",\"tcp_ports\":[80]"),
    ] {
        assert_ne!(wrong, json);
        let register = wayleave_api::auth::RegisterRequest { resources_json: vec![wrong], proxy: None };
        let _text = refused(cluster.host(&node).register(register).await, Code::PermissionDenied);
    }
}

#[tokio::test]
async fn a_bad_request_for_a_token_says_what_is_wrong() {
    let cluster = Cluster::start().await;
    let good = CreateOpensshTokenRequest {
        names: owned(&["web-1"]),
        ports: vec![22],
        ssh_public_key: key().public_key().to_openssh(),
        ..CreateOpensshTokenRequest::default()
    };
    let wrong = [
        (CreateOpensshTokenRequest { names: vec![], ..good.clone() }, "--names"),
        (CreateOpensshTokenRequest { ports: vec![], ..good.clone() }, "--ports"),
        (CreateOpensshTokenRequest { ports: vec![65536], ..good.clone() }, "65535"),
        (CreateOpensshTokenRequest { ports: vec![0], ..good.clone() }, "65535"),
        (CreateOpensshTokenRequest { ssh_public_key: "ssh-rsa AAAA".into(), ..good.clone() }, "Ed25519"),
        (CreateOpensshTokenRequest { ttl_ms: 1, ..good.clone() }, "lives from"),
    ];
    for (request, part) in wrong {
        let text = refused(cluster.admin().create_openssh_token(request).await, Code::InvalidArgument);
        assert!(text.contains(part), "{part} in {text}");
    }
    cluster.admin().create_openssh_token(good).await.unwrap();
}

impl Cluster {
    /// The host ids of all nodes that are stored.
    async fn api_nodes(&self) -> Vec<String> {
        let request = wayleave_api::auth::ListResourcesRequest { kind: "node".into(), ..Default::default() };
        let json = self.admin().list_resources(request).await.unwrap().into_inner().json;
        let name = |json: &String| {
            let node: serde_json::Value = serde_json::from_str(json).unwrap();
            node["metadata"]["name"].as_str().unwrap().to_owned()
        };
        json.iter().map(name).collect()
    }
}
