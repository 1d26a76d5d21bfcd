//! A cluster of one node for a test: authorities, a policy that can change, an audit log that can fail, and
//! the adapter behind a loopback listener.

use futures::future::BoxFuture;
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::watch;
use wayleave_adapter_ssh::{
    AuditError, AuditSink, LocalSwitches, NodeAdapter, NodeConfig, PolicySource, PolicyView,
};
use wayleave_audit::Event;
use wayleave_dial::{DialRequest, DialTarget, VERSION};
use wayleave_identity::{Principal, SSH_EXTENSION, UserPrincipal};
use wayleave_net::{Adapter, Inbound};
use wayleave_os::Launcher;
use wayleave_policy::{LockSet, Policy, Settings};
use wayleave_resource::{
    LabelSelector, Lock, LockSpec, LockTarget, Metadata, Role, RoleConditions, RoleOptions, RoleSpec,
    RoleVersion,
};
use wayleave_runtime::{Clock, SystemClock, TaskGroup, random_bytes};
use wayleave_ssh::{CertType, Certificate, CertificateTemplate, Credential, KeyPair, Options};
use wayleave_vocab::{
    ClusterName, HostId, Labels, Login, NodeName, PolicyRevision, ResourceName, RoleName, TraceId, UserName,
    Wall,
};

/// How the host certificate calls the node.
pub(crate) const NODE: &str = "node.test";

/// Everything a test needs. Its tasks end with it.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) audit: Arc<Recorder>,
    pub(crate) authorities: Authorities,
    pub(crate) policy: Arc<Cluster>,
    pub(crate) labels: watch::Sender<Labels>,
    pub(crate) tasks: TaskGroup,
    pub(crate) adapter: Arc<NodeAdapter>,
}

/// The keys that sign.
#[derive(Clone)]
pub(crate) struct Authorities {
    pub(crate) user: Arc<KeyPair>,
    pub(crate) host: Arc<KeyPair>,
}

/// What is special about a world.
pub(crate) struct Setting {
    pub(crate) options: RoleOptions,
    pub(crate) switches: LocalSwitches,
    pub(crate) drain_grace: Duration,
}

impl Default for Setting {
    fn default() -> Self {
        let options = RoleOptions { forward_agent: Some(true), ..RoleOptions::default() };
        Self { options, switches: LocalSwitches::default(), drain_grace: Duration::from_secs(30) }
    }
}

/// The policy, as tests change it.
pub(crate) struct Cluster {
    views: watch::Sender<Option<Arc<PolicyView>>>,
    authority_line: String,
}

impl Cluster {
    pub(crate) fn new(user_authority: &KeyPair) -> Self {
        Self { views: watch::Sender::new(None), authority_line: user_authority.public_key().to_openssh() }
    }

    /// Publishes roles and locks.
    pub(crate) fn publish(&self, roles: &[Role], locks: &[Lock]) {
        self.publish_with(Settings::default(), roles, locks);
    }

    /// The same with settings of the cluster.
    pub(crate) fn publish_with(&self, settings: Settings, roles: &[Role], locks: &[Lock]) {
        let policy = Policy::new(cluster(), settings, roles);
        let view = PolicyView::new(
            PolicyRevision::default(),
            [self.authority_line.as_str()],
            policy,
            LockSet::new(locks),
        );
        self.views.send_replace(Some(Arc::new(view)));
    }

    /// Takes the policy away.
    pub(crate) fn withdraw(&self) {
        self.views.send_replace(None);
    }
}

impl PolicySource for Cluster {
    fn views(&self) -> watch::Receiver<Option<Arc<PolicyView>>> {
        self.views.subscribe()
    }

    fn locks_age(&self, _now: Wall) -> Duration {
        Duration::ZERO
    }
}

/// Keeps events; fails when told to.
#[derive(Default)]
pub(crate) struct Recorder {
    events: Mutex<Vec<Event>>,
    is_failing: AtomicBool,
}

impl AuditSink for Recorder {
    fn record(&self, event: Event) -> BoxFuture<'_, Result<(), AuditError>> {
        Box::pin(async move {
            if self.is_failing.load(Ordering::SeqCst) {
                return Err(AuditError("the disk is full".to_owned()));
            }
            self.events.lock().unwrap().push(event);
            Ok(())
        })
    }
}

impl Recorder {
    pub(crate) fn fail(&self) {
        self.is_failing.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has(&self, matches: impl Fn(&Event) -> bool) -> bool {
        self.events.lock().unwrap().iter().any(matches)
    }

    pub(crate) fn count(&self, matches: impl Fn(&Event) -> bool) -> usize {
        self.events.lock().unwrap().iter().filter(|event| matches(event)).count()
    }

    pub(crate) fn text(&self) -> String {
        format!("{:#?}", self.events.lock().unwrap())
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Setting::default()).await
    }

    pub(crate) async fn with(setting: Setting) -> Self {
        let authorities = Authorities { user: new_key(), host: new_key() };
        let policy = Arc::new(Cluster::new(&authorities.user));
        policy.publish(&[role("access", setting.options.clone())], &[]);
        let audit = Arc::new(Recorder::default());
        let labels = watch::Sender::new(Labels::default());
        let identity = authorities.host_credential(&[NODE, "node"]);
        let adapter = Arc::new(NodeAdapter::new(NodeConfig {
            host_id: host_id(),
            node: NodeName::parse("node").unwrap(),
            labels: labels.subscribe(),
            policy: policy.clone(),
            identity: watch::Sender::new(Some(identity)).subscribe(),
            audit: audit.clone(),
            switches: setting.switches,
            launcher: Launcher::own_binary(),
            clock: Arc::new(SystemClock::new()),
            drain_grace: setting.drain_grace,
        }));
        let directory = tempfile::tempdir().unwrap();
        let known = format!("@cert-authority * {}\n", authorities.host.public_key());
        std::fs::write(directory.path().join("known_hosts"), known).unwrap();
        let tasks = TaskGroup::new();
        let address = serve(&tasks, adapter.clone()).await;
        let world = Self { directory, address, audit, authorities, policy, labels, tasks, adapter };
        world.write_user("alice", &world.authorities.user, &Certified::default());
        world
    }

    /// A path in the world's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A key with its certificate, as files that `-i` names.
    pub(crate) fn write_user(&self, file: &str, authority: &KeyPair, certified: &Certified) {
        let key = new_key();
        let certificate = certified.certificate(&key, authority);
        self.write_key(file, &key, &certificate);
    }

    pub(crate) fn write_key(&self, file: &str, key: &KeyPair, certificate: &Certificate) {
        std::fs::write(self.path(file), key.to_openssh("test key").as_bytes()).unwrap();
        std::fs::set_permissions(self.path(file), Permissions::from_mode(0o600)).unwrap();
        std::fs::write(self.path(&format!("{file}.pub")), key.public_key().to_openssh()).unwrap();
        let certificate = certificate.to_openssh();
        std::fs::write(self.path(&format!("{file}-cert.pub")), certificate).unwrap();
    }

    /// The options that all of OpenSSH's programs take.
    pub(crate) fn options(&self, user: &str) -> Vec<String> {
        let mut options = vec!["-F".to_owned(), "none".to_owned()];
        for option in [
            format!("UserKnownHostsFile={}", self.path("known_hosts").display()),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            format!("IdentityFile={}", self.path(user).display()),
            format!("CertificateFile={}", self.path(&format!("{user}-cert.pub")).display()),
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            "BatchMode=yes".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            format!("HostKeyAlias={NODE}"),
            format!("Port={}", self.address.port()),
            format!("User={}", own_login()),
        ] {
            options.extend(["-o".to_owned(), option]);
        }
        options
    }

    /// `ssh` as a user, to be given more arguments; the host follows.
    pub(crate) fn ssh(&self, user: &str, more: &[&str]) -> Command {
        let mut ssh = Command::new("ssh");
        // Of options given twice, ssh takes the first.
        ssh.args(more).args(self.options(user)).arg("127.0.0.1");
        ssh.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        ssh
    }

    /// What a command at the node gives.
    pub(crate) async fn run(&self, command: &str) -> Output {
        self.ssh("alice", &[]).arg(command).output().await.unwrap()
    }

    /// An `ssh_config` for programs that call ssh themselves.
    pub(crate) fn write_config(&self, user: &str) -> PathBuf {
        let mut text = "Host *\n".to_owned();
        for option in self.options(user).iter().skip(2).filter(|word| *word != "-o") {
            text.push_str(&option.replacen('=', " ", 1));
            text.push('\n');
        }
        let path = self.path("config");
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.shutdown().request();
    }
}

impl Authorities {
    /// A host's key with a certificate for these names.
    pub(crate) fn host_credential(&self, names: &[&str]) -> Credential {
        let key = new_key();
        let template = CertificateTemplate {
            key: key.public_key(),
            kind: CertType::Host,
            serial: 1,
            key_id: "host".to_owned(),
            principals: names.iter().map(|name| (*name).to_owned()).collect(),
            valid_after: Wall::from_secs(0),
            valid_before: Wall::from_secs(u64::MAX / 1000),
            critical_options: Options::new(),
            extensions: Options::new(),
        };
        Credential::certified(key, template.sign(&self.host, &random_bytes()).unwrap()).unwrap()
    }
}

/// What a user's certificate says.
pub(crate) struct Certified {
    pub(crate) kind: CertType,
    pub(crate) name: &'static str,
    pub(crate) cluster: &'static str,
    pub(crate) roles: &'static [&'static str],
    pub(crate) principals: Vec<String>,
    pub(crate) valid_after: Wall,
    pub(crate) valid_before: Wall,
    pub(crate) critical_options: Options,
    pub(crate) extensions: Options,
    pub(crate) has_identity: bool,
}

impl Default for Certified {
    fn default() -> Self {
        let permits = ["permit-pty", "permit-port-forwarding", "permit-agent-forwarding"];
        Self {
            kind: CertType::User,
            name: "alice",
            cluster: "demo",
            roles: &["access"],
            principals: vec![own_login()],
            valid_after: wall().before(Duration::from_secs(60)),
            valid_before: wall().after(Duration::from_secs(3600)),
            critical_options: Options::new(),
            extensions: permits.map(|name| (name.to_owned(), String::new())).into(),
            has_identity: true,
        }
    }
}

impl Certified {
    pub(crate) fn certificate(&self, key: &KeyPair, authority: &KeyPair) -> Certificate {
        let logins = self.principals.iter().filter_map(|name| Login::parse(name.as_str()).ok());
        let principal = Principal::User(UserPrincipal {
            name: UserName::parse(self.name).unwrap(),
            cluster: ClusterName::parse(self.cluster).unwrap(),
            roles: self.roles.iter().map(|role| RoleName::parse(*role).unwrap()).collect(),
            logins: logins.collect(),
            traits: Default::default(),
            local_admin: false,
            not_after: self.valid_before,
        });
        let mut extensions = self.extensions.clone();
        if self.has_identity {
            let identity = String::from_utf8(principal.encode()).unwrap();
            extensions.insert(SSH_EXTENSION.to_owned(), identity);
        }
        CertificateTemplate {
            key: key.public_key(),
            kind: self.kind,
            serial: 7,
            key_id: self.name.to_owned(),
            principals: self.principals.clone(),
            valid_after: self.valid_after,
            valid_before: self.valid_before,
            critical_options: self.critical_options.clone(),
            extensions,
        }
        .sign(authority, &random_bytes())
        .unwrap()
    }
}

/// Feeds accepted connections to an adapter, as a tunnel would.
async fn serve(tasks: &TaskGroup, adapter: Arc<NodeAdapter>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (group, shutdown) = (tasks.clone(), tasks.shutdown());
    tasks.spawn("listener", async move {
        while let Some(Ok((stream, client))) = shutdown.until(listener.accept()).await {
            wayleave_net::tune(&stream);
            let inbound =
                Inbound { stream: Box::new(stream), request: dial_request(client), resumption: None };
            group.spawn_many(adapter.clone().serve(inbound, shutdown.clone()));
        }
    });
    address
}

pub(crate) fn dial_request(client: SocketAddr) -> DialRequest {
    DialRequest {
        v: VERSION,
        target: DialTarget::Ssh { node: NodeName::parse("node").unwrap() },
        host_id: Some(host_id()),
        client_address: Some(client),
        trace_id: TraceId::from_random(random_bytes()),
        from_peer: false,
        report_route: false,
        resume: None,
        needs: std::collections::BTreeSet::new(),
    }
}

/// A role that enters every node as the user that runs the tests.
pub(crate) fn role(name: &str, options: RoleOptions) -> Role {
    let allow = RoleConditions {
        logins: vec![own_login()],
        node_labels: LabelSelector::from([("*".to_owned(), vec!["*".to_owned()])]),
        ..RoleConditions::default()
    };
    Role {
        name: RoleName::parse(name).unwrap(),
        version: RoleVersion::V8,
        metadata: Metadata::default(),
        spec: RoleSpec { options, allow, deny: RoleConditions::default() },
    }
}

/// A lock on a user.
pub(crate) fn lock(user: &str, message: &str) -> Lock {
    Lock {
        name: ResourceName::parse("lock-1").unwrap(),
        metadata: Metadata::default(),
        spec: LockSpec {
            target: LockTarget::User(UserName::parse(user).unwrap()),
            message: message.to_owned(),
            expires: None,
            created_at: None,
            created_by: None,
        },
    }
}

pub(crate) fn new_key() -> Arc<KeyPair> {
    Arc::new(KeyPair::from_seed(&random_bytes()))
}

pub(crate) fn cluster() -> ClusterName {
    ClusterName::parse("demo").unwrap()
}

pub(crate) fn host_id() -> HostId {
    HostId::from_random([3; 16])
}

pub(crate) fn wall() -> Wall {
    SystemClock::new().wall()
}

/// The user that runs the tests.
pub(crate) fn own_login() -> String {
    nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().unwrap().name
}

/// What a program printed.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
