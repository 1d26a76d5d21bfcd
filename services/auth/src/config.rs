//! Settings of the Auth Service, typed. Reading them from YAML is the composition root's part.

use crate::rate_limit::RateLimit;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use wayleave_audit::EventBudget;
use wayleave_resource::{AuthPreferenceSpec, NetworkingSpec};
use wayleave_telemetry::Diagnostics;
use wayleave_vocab::{ClusterName, HostPort, NodeName, Secret, SystemRole, TunnelStrategy};

/// Port of the Auth Service unless configured.
pub const AUTH_PORT: u16 = 3025;

/// Everything the Auth Service is told at start.
#[derive(Clone)]
pub struct AuthConfig {
    /// Name of the cluster; kept from the first start on, another one is refused later.
    pub cluster_name: ClusterName,
    /// Where the admin identity and the audit log live.
    pub data_dir: PathBuf,
    /// Where to listen (port 0 for any).
    pub listen_address: SocketAddr,
    /// Addresses under which clients and agents reach Auth: names of its certificate.
    pub public_addresses: Vec<HostPort>,
    /// Name of this machine, for the certificate and the audit log.
    pub hostname: NodeName,
    /// Join tokens from the file.
    pub static_tokens: Vec<StaticToken>,
    /// How many tunnels agents keep; absent: what the backend has stays.
    pub tunnel_strategy: Option<TunnelStrategy>,
    /// Tunnels and timeouts as the file says; absent: what the backend has stays. Its strategy is not used.
    pub networking: Option<NetworkingSpec>,
    /// Logins and sessions as the file says; absent: what the backend has stays.
    pub authentication: Option<AuthPreferenceSpec>,
    /// How long certificates live.
    pub lifetimes: Lifetimes,
    /// Protection against strangers.
    pub limits: Limits,
    /// What `way status` shows as the version.
    pub version: String,
    /// What `way status` shows as the backend (`sqlite`, `memory`).
    pub backend_name: String,
    /// Where numbers and findings are shown.
    pub diagnostics: Diagnostics,
}

impl AuthConfig {
    /// Defaults for everything but name and directory.
    pub fn new(cluster_name: ClusterName, data_dir: PathBuf, hostname: NodeName) -> Self {
        Self {
            cluster_name,
            data_dir,
            listen_address: SocketAddr::from(([0, 0, 0, 0], AUTH_PORT)),
            public_addresses: Vec::new(),
            hostname,
            static_tokens: Vec::new(),
            tunnel_strategy: None,
            networking: None,
            authentication: None,
            lifetimes: Lifetimes::default(),
            limits: Limits::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            backend_name: "sqlite".to_owned(),
            diagnostics: Diagnostics::default(),
        }
    }
}

/// A join token of the configuration file: it has a secret but no name, and never expires.
#[derive(Clone)]
pub struct StaticToken {
    /// What a process that joins with it may be.
    pub system_roles: Vec<SystemRole>,
    /// What the process presents.
    pub secret: Secret,
}

/// How long what Auth issues lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// User certificates at most, whatever a role allows.
    pub user_max: Duration,
    /// Certificates of processes; they renew after two thirds.
    pub host: Duration,
    /// The identity of the local administrator; rewritten after a third.
    pub local_admin: Duration,
    /// Join tokens when no lifetime is asked for.
    pub token_default: Duration,
    /// Join tokens at most.
    pub token_max: Duration,
    /// Invitations when no lifetime is asked for.
    pub invite_default: Duration,
    /// Invitations at most.
    pub invite_max: Duration,
    /// Resets when no lifetime is asked for.
    pub reset_default: Duration,
    /// Resets at most.
    pub reset_max: Duration,
    /// Nodes without a route are forgotten after this.
    pub idle_node: Duration,
}

const HOUR: Duration = Duration::from_secs(3600);

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            user_max: 30 * HOUR,
            host: 7 * 24 * HOUR,
            local_admin: 12 * HOUR,
            token_default: HOUR / 2,
            token_max: 365 * 24 * HOUR,
            invite_default: HOUR,
            invite_max: 48 * HOUR,
            reset_default: 8 * HOUR,
            reset_max: 24 * HOUR,
            idle_node: 24 * HOUR,
        }
    }
}

/// Bounds on what peers cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Join, login and invitations, per address.
    pub attempts: RateLimit,
    /// Everything else that strangers may ask, per address.
    pub questions: RateLimit,
    /// Audit events, per process of the cluster.
    pub events: EventBudget,
    /// Connections at once.
    pub connections_max: usize,
    /// Connections at once that have not shown a certificate, or not yet.
    pub strangers_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempts: RateLimit { per_minute: 20, burst: 40 },
            questions: RateLimit { per_minute: 120, burst: 480 },
            events: EventBudget::default(),
            connections_max: 15_000,
            strangers_max: 2_000,
        }
    }
}
