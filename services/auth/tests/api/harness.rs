//! A running Auth Service and the callers of its API.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::{Code, Status};
use wayleave_api::ALPN_AUTH;
use wayleave_api::auth::admin_client::AdminClient;
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::auth::public_client::PublicClient;
use wayleave_api::auth::{
    CreateTokenRequest, CreateTokenResponse, CreateUserRequest, JoinRequest, JoinResponse, PublicKeys,
    SignUserRequest, UserCertificates,
};
use wayleave_auth::{AuthConfig, AuthService, Limits, LocalApi, RateLimit, admin_identity_path};
use wayleave_keystore::{
    Credentials, Pins, TlsKey, TrustStore, client_config, pinned_client_config, read_private,
};
use wayleave_resource::Resource;
use wayleave_rpc::Channel;
use wayleave_runtime::{Clock, ManualClock, Shutdown, SystemClock, TaskGroup, random_bytes};
use wayleave_ssh::KeyPair;
use wayleave_store::{Backend, HistoryLimits, MemoryBackend};
use wayleave_vocab::{ClusterName, HostPort, NodeName, Secret, SystemRole};

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct Cluster {
    pub(crate) directory: TempDir,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) address: SocketAddr,
    pub(crate) api: LocalApi,
    tasks: TaskGroup,
    shutdown: Shutdown,
}

/// Keys of one identity.
pub(crate) struct Keys {
    pub(crate) tls: TlsKey,
    pub(crate) ssh: KeyPair,
}

impl Keys {
    pub(crate) fn new() -> Self {
        Self { tls: TlsKey::generate().unwrap(), ssh: KeyPair::from_seed(&random_bytes()) }
    }

    pub(crate) fn public(&self) -> PublicKeys {
        PublicKeys { tls_spki_der: self.tls.spki_der(), ssh_public_key: self.ssh.public_key().to_openssh() }
    }
}

/// A process that has joined.
pub(crate) struct Process {
    pub(crate) host_id: String,
    pub(crate) keys: Vec<Keys>,
    pub(crate) answer: JoinResponse,
}

pub(crate) fn memory(clock: &Arc<ManualClock>) -> Arc<dyn Backend> {
    Arc::new(MemoryBackend::new(HistoryLimits::default(), clock.clone()))
}

pub(crate) fn config(directory: &Path) -> AuthConfig {
    let mut config = AuthConfig::new(
        ClusterName::parse("demo").unwrap(),
        directory.to_owned(),
        NodeName::parse("auth-1").unwrap(),
    );
    config.listen_address = SocketAddr::from(([127, 0, 0, 1], 0));
    let plenty = RateLimit { per_minute: 100_000, burst: 100_000 };
    config.limits = Limits { attempts: plenty, questions: plenty, ..Limits::default() };
    config
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut AuthConfig)) -> Self {
        let clock = Arc::new(ManualClock::new(SystemClock::new().wall()));
        Self::start_on(memory(&clock), clock, tempfile::tempdir().unwrap(), change).await
    }

    pub(crate) async fn start_on(
        backend: Arc<dyn Backend>,
        clock: Arc<ManualClock>,
        directory: TempDir,
        change: impl FnOnce(&mut AuthConfig),
    ) -> Self {
        let mut config = config(directory.path());
        change(&mut config);
        let service = AuthService::build(config, backend.clone(), clock.clone()).await.unwrap();
        let bound = service.bind().await.unwrap();
        let (address, api) = (bound.address(), bound.local_api());
        let (tasks, shutdown) = (TaskGroup::new(), Shutdown::new());
        tasks.spawn("auth", bound.run(shutdown.clone()));
        Self { directory, clock, backend, address, api, tasks, shutdown }
    }

    /// Stops the service and keeps what outlives it.
    pub(crate) async fn stop(mut self) -> (Arc<dyn Backend>, Arc<ManualClock>, TempDir) {
        self.shutdown.request();
        assert!(self.tasks.finish(PATIENCE).await, "the service stops in time");
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        (self.backend.clone(), self.clock.clone(), directory)
    }

    pub(crate) fn address(&self) -> HostPort {
        HostPort::from_socket(self.address)
    }

    fn pins(&self) -> Pins {
        self.api.ca_pins().join(",").parse().unwrap()
    }

    pub(crate) fn trust(&self) -> TrustStore {
        let trust = TrustStore::empty();
        let bundle = self.api.trust_bundle().unwrap();
        trust.replace(&ClusterName::parse("demo").unwrap(), &bundle.host_ca_pem, "");
        trust
    }

    /// A channel of whoever has no certificate.
    pub(crate) fn stranger(&self) -> Channel {
        let tls = pinned_client_config(&self.pins(), SystemRole::Auth, &[ALPN_AUTH]).unwrap();
        wayleave_rpc::channel(self.address(), tls)
    }

    /// A channel that presents a certificate.
    pub(crate) fn channel(&self, chain_pem: &str, key_pem: &Secret) -> Channel {
        let credentials = Credentials::from_pem(chain_pem, key_pem).unwrap();
        let tls = client_config(&credentials, &self.trust(), SystemRole::Auth, None, &[ALPN_AUTH]).unwrap();
        wayleave_rpc::channel(self.address(), tls)
    }

    pub(crate) fn public(&self) -> PublicClient<Channel> {
        PublicClient::new(self.stranger())
    }

    /// The local administrator, by the identity file.
    pub(crate) fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.admin_channel())
    }

    pub(crate) fn admin_channel(&self) -> Channel {
        let bytes = read_private(&admin_identity_path(self.directory.path())).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        // The TLS key and its chain are in front of the SSH key.
        let (tls, _) = text.split_once("-----BEGIN OPENSSH PRIVATE KEY-----").unwrap();
        let (key, chain) = tls.split_once("-----BEGIN CERTIFICATE-----").unwrap();
        let key = &key[key.find("-----BEGIN PRIVATE KEY-----").unwrap()..];
        self.channel(&format!("-----BEGIN CERTIFICATE-----{chain}"), &Secret::new(key.to_owned()))
    }

    pub(crate) async fn token(&self, roles: &[&str]) -> CreateTokenResponse {
        let request = CreateTokenRequest { system_roles: owned(roles), ..CreateTokenRequest::default() };
        self.api.create_token(request).await.unwrap()
    }

    pub(crate) async fn join(&self, roles: &[&str], hostname: &str) -> Process {
        let token = self.token(roles).await;
        let (request, keys) = join_request(&token.name, &token.secret, roles, hostname);
        let answer = self.public().join(request).await.unwrap().into_inner();
        Process { host_id: answer.host_id.clone(), keys, answer }
    }

    /// A channel with the certificate at a place of the answer: 0 is the instance.
    pub(crate) fn channel_of(&self, process: &Process, index: usize) -> Channel {
        let chain = &process.answer.certificates[index].tls_chain_pem;
        self.channel(chain, &process.keys[index].tls.to_pem())
    }

    pub(crate) fn host(&self, process: &Process) -> HostClient<Channel> {
        HostClient::new(self.channel_of(process, 0))
    }

    pub(crate) async fn create_user(&self, name: &str, roles: &[&str], logins: &[&str]) -> String {
        let request = CreateUserRequest {
            name: name.to_owned(),
            roles: owned(roles),
            logins: owned(logins),
            ..CreateUserRequest::default()
        };
        self.api.create_user(request).await.unwrap().invite_token
    }

    pub(crate) async fn sign(&self, name: &str, ttl: Duration) -> (UserCertificates, Keys) {
        let keys = Keys::new();
        let request = SignUserRequest {
            user: name.to_owned(),
            keys: Some(keys.public()),
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap(),
        };
        (self.api.sign_user(request).await.unwrap(), keys)
    }

    /// A user that exists, with a certificate of one hour.
    pub(crate) async fn user(&self, name: &str) -> AdminClient<Channel> {
        let (certificates, keys) = self.sign(name, HOUR).await;
        AdminClient::new(self.channel(&certificates.tls_chain_pem, &keys.tls.to_pem()))
    }

    /// A user with a role of his own, given in YAML below `spec:`.
    pub(crate) async fn user_with_role(&self, name: &str, spec: &str) -> AdminClient<Channel> {
        self.role(&format!("of-{name}"), spec).await;
        self.create_user(name, &[&format!("of-{name}")], &[]).await;
        self.user(name).await
    }

    pub(crate) async fn role(&self, name: &str, spec: &str) {
        self.put(&format!("kind: role\nversion: v8\nmetadata: {{name: {name}}}\nspec: {spec}\n")).await;
    }

    /// Writes a resource as the local administrator.
    pub(crate) async fn put(&self, yaml: &str) -> Resource {
        let resource = Resource::parse_yaml(yaml).unwrap().remove(0);
        self.api.upsert_resource(resource).await.unwrap()
    }

    pub(crate) async fn lock(&self, name: &str, target: &str) {
        self.put(&format!(
            "kind: lock\nversion: v2\nmetadata: {{name: {name}}}\nspec: {{target: {{{target}}}}}"
        ))
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.request();
    }
}

pub(crate) fn join_request(
    name: &str,
    secret: &str,
    roles: &[&str],
    hostname: &str,
) -> (JoinRequest, Vec<Keys>) {
    let keys: Vec<Keys> = (0..=roles.len()).map(|_| Keys::new()).collect();
    let request = JoinRequest {
        token_name: name.to_owned(),
        token_secret: secret.to_owned(),
        system_roles: owned(roles),
        hostname: hostname.to_owned(),
        keys: keys.iter().map(Keys::public).collect(),
        version: "0".to_owned(),
        additional_principals: Vec::new(),
    };
    (request, keys)
}

pub(crate) fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

pub(crate) fn node_json(host_id: &str, hostname: &str, labels: &str) -> String {
    let yaml = format!(
        "kind: node\nversion: v2\nmetadata: {{name: {host_id}, labels: {{{labels}}}}}\nspec: {{hostname: {hostname}, version: '0'}}"
    );
    Resource::parse_yaml(&yaml).unwrap().remove(0).to_stored_json()
}

/// The refusal of a call that must not succeed.
#[track_caller]
pub(crate) fn refused<T>(result: Result<T, Status>, code: Code) -> String {
    match result {
        Ok(_) => panic!("the call succeeded, {code:?} was expected"),
        Err(status) => {
            assert_eq!(status.code(), code, "{status:?}");
            status.message().to_owned()
        }
    }
}

/// Waits for something, not for ever.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

/// A port that nobody listens on any more, for a start that must fail because it is taken.
pub(crate) async fn taken_port() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}
