//! The Auth Service as a whole: built from settings and a backend, bound to its port, run until shutdown.

use crate::admin_identity::{self, AdminIdentityError};
use crate::audit_events;
use crate::audit_log::{AuditLog, AuditWriter};
use crate::auth_core::{AuthCore, HashedToken, unknown_secret};
use crate::authorities::HostNames;
use crate::authorities::SubjectKeys;
use crate::bootstrap::{BootstrapError, bootstrap};
use crate::config::AuthConfig;
use crate::gate::Gate;
use crate::housekeeping;
use crate::instances;
use crate::listener::{Acceptors, Listener};
use crate::local_api::LocalApi;
use crate::metered_backend::MeteredBackend;
use crate::metrics::{self, AuthMetrics};
use crate::mirror::Mirror;
use crate::overview::Reports;
use crate::password::PasswordHasher;
use crate::rate_limit::{RateLimit, RateLimiter};
use crate::records::Records;
use crate::routes::Routes;
use crate::rpc_admin::AdminService;
use crate::rpc_host::HostService;
use crate::rpc_public::PublicService;
use crate::slots::Slots;
use crate::snapshots::{PublishError, Publisher, Snapshots};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use wayleave_api::auth::PublicKeys;
use wayleave_api::auth::admin_server::AdminServer;
use wayleave_api::auth::host_server::HostServer;
use wayleave_api::auth::public_server::PublicServer;
use wayleave_audit::EventBudgets;
use wayleave_ca::is_renewal_due;
use wayleave_identity::HostPrincipal;
use wayleave_keystore::{Credentials, CredentialsError, TlsConfigError, TlsKey, TrustStore};
use wayleave_net::{BindError, bind};
use wayleave_runtime::{Clock, Shutdown, TaskGroup, random_bytes};
use wayleave_ssh::KeyPair;
use wayleave_store::{Backend, StoreError, Watch};
use wayleave_vocab::SystemRole;

/// Largest request; resources of one call are bounded by this.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long tasks may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Refusals of known callers that are noted for one address.
const NOTED_DENIALS: RateLimit = RateLimit { per_minute: 60, burst: 120 };
/// How often it is looked whether Auth's own certificate must be renewed.
const CERTIFICATE_REVIEW_INTERVAL: Duration = Duration::from_secs(60);

/// The Auth Service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The cluster cannot be found or made.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The backend failed.
    #[error("the backend cannot be used")]
    Store(#[from] StoreError),
    /// Policy cannot be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Auth's own certificate.
    #[error("the certificate of the Auth Service cannot be used: {0}")]
    Certificate(String),
    /// Auth's own key.
    #[error("the certificate of the Auth Service cannot be used")]
    Credentials(#[from] CredentialsError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
}

/// The Auth Service cannot be bound to its port.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The socket has no address.
    #[error("the listening socket has no address")]
    Address(#[source] std::io::Error),
    /// The identity of the local administrator.
    #[error(transparent)]
    AdminIdentity(#[from] AdminIdentityError),
}

/// An Auth Service that is built and does nothing yet.
pub struct AuthService {
    core: Arc<AuthCore>,
    publisher: Publisher,
    audit: AuditWriter,
    mirror_watch: Watch,
    route_watch: Watch,
    credentials: Credentials,
    trust: TrustStore,
    acceptors: Acceptors,
}

/// An Auth Service that has its port.
pub struct BoundAuthService {
    service: AuthService,
    socket: TcpListener,
    address: SocketAddr,
}

impl AuthService {
    /// Finds or makes the cluster in `backend` and reads what there is. Starts no task and binds no port.
    ///
    /// # Errors
    /// See [`BuildError`]; another cluster name than the backend's is a clear error.
    pub async fn build(
        config: AuthConfig,
        backend: Arc<dyn Backend>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, BuildError> {
        let diagnostics = config.diagnostics.clone();
        let records = Records::new(Arc::new(MeteredBackend::new(backend, &diagnostics)));
        let found = bootstrap(&config, &records, clock.wall()).await?;
        if found.created {
            tracing::info!(cluster = %found.cluster.name, "a new cluster was made");
        }
        let authorities = Arc::new(found.authorities);
        let (mirror, mirror_watch) = Mirror::load(&records, found.cluster.name.clone()).await?;
        let snapshots = Arc::new(Snapshots::new(records.backend().bounds()));
        let mirror = Arc::new(mirror);
        let (routes, route_watch) = Routes::load(&records, clock.clone()).await?;
        let publisher = Publisher {
            records: records.clone(),
            mirror: mirror.clone(),
            authorities: authorities.clone(),
            snapshots: snapshots.clone(),
            clock: clock.clone(),
            generation: found.cluster.generation,
        };
        publisher.publish().await?;
        let (log, audit) =
            AuditLog::new(records.clone(), clock.clone(), found.cluster.name.clone(), found.host_id);
        let trust = TrustStore::empty();
        trust.replace(&found.cluster.name, &authorities.host_ca_pem(), &authorities.user_ca_pem());
        let credentials = Credentials::empty();
        let acceptors = Acceptors::new(&credentials, &trust)?;
        let core = Arc::new(AuthCore {
            static_tokens: HashedToken::all(&config),
            attempts: RateLimiter::new(config.limits.attempts),
            questions: RateLimiter::new(config.limits.questions),
            event_budgets: Mutex::new(EventBudgets::new(config.limits.events)),
            noted_denials: RateLimiter::new(NOTED_DENIALS),
            no_secret: unknown_secret(),
            passwords: PasswordHasher::new(),
            generation: found.cluster.generation,
            host_id: found.host_id,
            audit: log,
            metrics: AuthMetrics::new(&diagnostics.metrics),
            reports: Reports::default(),
            routes: Arc::new(routes),
            config,
            clock,
            records,
            authorities,
            mirror,
            snapshots,
        });
        core.present(&credentials)?;
        metrics::register(&diagnostics, &core);
        Ok(Self { core, publisher, audit, mirror_watch, route_watch, credentials, trust, acceptors })
    }

    /// Opens the port and writes the identity of the local administrator.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn bind(self) -> Result<BoundAuthService, StartError> {
        let socket = bind("the Auth Service", self.core.config.listen_address).await?;
        let address = socket.local_addr().map_err(StartError::Address)?;
        self.core.write_admin_identity(&reachable(address).to_string())?;
        Ok(BoundAuthService { service: self, socket, address })
    }

    /// What the same process may ask without a connection.
    pub fn local_api(&self) -> LocalApi {
        LocalApi::new(self.core.clone())
    }
}

impl BoundAuthService {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the same process may ask without a connection, once [`BoundAuthService::run`] runs.
    pub fn local_api(&self) -> LocalApi {
        self.service.local_api()
    }

    /// Serves until shutdown, then ends what runs.
    pub async fn run(self, shutdown: Shutdown) {
        let Self { service, socket, address } = self;
        let AuthService { core, publisher, audit, mirror_watch, route_watch, credentials, trust, acceptors } =
            service;
        let group = TaskGroup::with_shutdown(shutdown.child());
        // The log ends last: what is being answered is still noted.
        let log_group = TaskGroup::new();
        log_group.spawn("audit log", audit.run(log_group.shutdown()));
        let follow = core.mirror.clone().run(core.records.clone(), mirror_watch, log_group.shutdown());
        log_group.spawn("mirror", follow);
        let follow = core.routes.clone().run(core.records.clone(), route_watch, group.shutdown());
        group.spawn("routes", follow);
        group.spawn("policy publisher", publisher.run(group.shutdown()));
        group.spawn("housekeeping", housekeeping::run(core.clone(), group.shutdown()));
        group.spawn("own certificate", renew(core.clone(), credentials, trust, group.shutdown()));
        let reachable = reachable(address).to_string();
        group.spawn("local admin", admin_identity::run(core.clone(), reachable.clone(), group.shutdown()));
        group.spawn("instance", instances::run(core.clone(), reachable, group.shutdown()));
        let slots = Slots::new(core.config.limits.connections_max, core.config.limits.strangers_max);
        let gate = Gate::new(core.clone(), services(&core, &group));
        let listener = Listener { socket, acceptors, gate, slots };
        tracing::info!(%address, cluster = %core.authorities.cluster(), "the Auth Service listens");
        core.note(audit_events::service("started")).await;
        core.note_restored().await;
        listener.run(group.clone()).await;
        core.note(audit_events::service("stopping")).await;
        let (calls_ended, log_ended) =
            (group.finish(STOP_DEADLINE).await, log_group.finish(STOP_DEADLINE).await);
        if !calls_ended || !log_ended {
            tracing::warn!("tasks of the Auth Service did not end in time");
        }
    }
}

fn services(core: &Arc<AuthCore>, group: &TaskGroup) -> tonic::service::Routes {
    let public = PublicServer::new(PublicService(core.clone()));
    let host = HostServer::new(HostService { core: core.clone(), group: group.clone() });
    let admin = AdminServer::new(AdminService { core: core.clone(), group: group.clone() });
    let mut routes = tonic::service::Routes::builder();
    routes
        .add_service(public.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(host.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(admin.max_decoding_message_size(REQUEST_BYTES_MAX));
    routes.routes()
}

/// An address that can be dialled from this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Presents a new certificate when half of its life has passed, and when the authority that issued it has rotated; what
/// Auth itself believes follows the authorities.
async fn renew(core: Arc<AuthCore>, credentials: Credentials, trust: TrustStore, shutdown: Shutdown) {
    let mut issued = core.clock.wall();
    let mut changes = core.authorities.changes();
    loop {
        let has_rotated = tokio::select! {
            () = shutdown.requested() => return,
            changed = changes.changed() => changed.is_ok(),
            () = tokio::time::sleep(CERTIFICATE_REVIEW_INTERVAL) => false,
        };
        let now = core.clock.wall();
        if has_rotated {
            let authorities = &core.authorities;
            trust.replace(authorities.cluster(), &authorities.host_ca_pem(), &authorities.user_ca_pem());
        } else if !is_renewal_due(issued, core.config.lifetimes.host / 2, now) {
            continue;
        }
        match core.present(&credentials) {
            Ok(()) => issued = now,
            Err(error) => tracing::warn!(%error, "the certificate of the Auth Service was not renewed"),
        }
    }
}

impl AuthCore {
    /// Issues Auth's own certificate and presents it from now on. The chain ends with the authority, so that a joining
    /// process can compare it with its pin.
    fn present(&self, credentials: &Credentials) -> Result<(), BuildError> {
        let now = self.clock.wall();
        let cluster = self.authorities.cluster();
        let principal = HostPrincipal {
            host_id: self.host_id,
            cluster: cluster.clone(),
            system_roles: [SystemRole::Auth].into(),
            not_after: wayleave_vocab::Wall::from_secs(now.after(self.config.lifetimes.host).as_secs()),
        };
        let mut names = HostNames {
            dns_names: vec![
                self.host_id.to_string(),
                format!("{}.{cluster}", self.host_id),
                format!("auth.{cluster}"),
                self.config.hostname.to_string(),
                "localhost".to_owned(),
            ],
            ip_addresses: vec![IpAddr::from([127, 0, 0, 1])],
        };
        for address in &self.config.public_addresses {
            match address.host().parse() {
                Ok(ip) => names.ip_addresses.push(ip),
                Err(_) => names.dns_names.push(address.host().to_owned()),
            }
        }
        names.dns_names.sort();
        names.dns_names.dedup();
        let key = TlsKey::generate()?;
        let ssh = KeyPair::from_seed(&random_bytes()).public_key().to_openssh();
        let public = PublicKeys { tls_spki_der: key.spki_der(), ssh_public_key: ssh };
        let failed = |error: crate::request_error::RequestError| BuildError::Certificate(error.to_string());
        let keys = SubjectKeys::parse(Some(&public)).map_err(failed)?;
        let issued = self.authorities.issue_host(&principal, &names, &keys, now).map_err(failed)?;
        credentials.replace(&issued.tls_chain_pem, &key.to_pem())?;
        Ok(())
    }
}
