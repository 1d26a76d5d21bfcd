//! What sessions may do and how long they live: the options of all roles of a user and of the cluster, merged.

use std::num::NonZeroU32;
use std::time::Duration;
use wayleave_resource::{AuthPreferenceSpec, LockingMode, NetworkingSpec, RoleOptions};
use wayleave_vocab::Ttl;

/// How long a session waits for its client where roles say nothing.
pub const MAX_DETACHED: Ttl = Ttl(Duration::from_secs(300));

/// What the cluster says where roles do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What old knowledge of locks means.
    pub locking_mode: LockingMode,
    /// Sessions end when their certificate does.
    pub disconnect_expired_cert: bool,
    /// How long a session may be silent.
    pub client_idle_timeout: Option<Ttl>,
    /// Life of a certificate where nothing shorter is set.
    pub default_session_ttl: Ttl,
    /// Silence after which an SSH client is probed.
    pub keep_alive_interval: Ttl,
    /// How many probes may go unanswered.
    pub keep_alive_count_max: u32,
}

impl Settings {
    /// The settings of a cluster.
    pub fn new(preference: &AuthPreferenceSpec, networking: &NetworkingSpec) -> Self {
        Self {
            locking_mode: preference.locking_mode,
            disconnect_expired_cert: preference.disconnect_expired_cert,
            client_idle_timeout: networking.client_idle_timeout,
            default_session_ttl: preference.default_session_ttl,
            keep_alive_interval: networking.keep_alive_interval,
            keep_alive_count_max: networking.keep_alive_count_max,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(&AuthPreferenceSpec::default(), &NetworkingSpec::default())
    }
}

/// Options of one user's sessions, merged over all his roles.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SessionOptions {
    /// SSH agent forwarding.
    pub forward_agent: bool,
    /// SSH port forwarding, in both directions.
    pub port_forwarding: bool,
    /// SCP and SFTP.
    pub ssh_file_copy: bool,
    /// X11 forwarding.
    pub permit_x11_forwarding: bool,
    /// Sessions end when their certificate does.
    pub disconnect_expired_cert: bool,
    /// How long a session may be silent; absent: for ever.
    pub client_idle_timeout: Option<Ttl>,
    /// Most sessions on one connection; absent: no limit.
    pub max_sessions: Option<NonZeroU32>,
    /// Most connections of the user; absent: no limit.
    pub max_connections: Option<NonZeroU32>,
    /// How long a session waits for its client after the connection was lost.
    pub max_detached: Ttl,
    /// Longest life of a certificate; absent: no role says.
    pub max_session_ttl: Option<Ttl>,
    /// What old knowledge of locks means.
    pub lock: LockingMode,
}

impl SessionOptions {
    /// Merges as the field does: the shortest time, the fewest sessions, the strictest lock; one yes is enough for
    /// forwarding, one no ends file copy.
    pub(crate) fn merge<'a>(roles: impl Iterator<Item = &'a RoleOptions>, settings: &Settings) -> Self {
        let mut merged = Self {
            forward_agent: false,
            port_forwarding: false,
            ssh_file_copy: true,
            permit_x11_forwarding: false,
            disconnect_expired_cert: settings.disconnect_expired_cert,
            client_idle_timeout: settings.client_idle_timeout,
            max_sessions: None,
            max_connections: None,
            max_detached: MAX_DETACHED,
            max_session_ttl: None,
            lock: settings.locking_mode,
        };
        let mut max_detached = None;
        for role in roles {
            merged.forward_agent |= role.forward_agent.unwrap_or(false);
            merged.port_forwarding |= role.port_forwarding.unwrap_or(true);
            merged.ssh_file_copy &= role.ssh_file_copy.unwrap_or(true);
            merged.permit_x11_forwarding |= role.permit_x11_forwarding.unwrap_or(false);
            merged.disconnect_expired_cert |= role.disconnect_expired_cert.unwrap_or(false);
            merged.client_idle_timeout = least(merged.client_idle_timeout, role.client_idle_timeout);
            merged.max_sessions = least(merged.max_sessions, role.max_sessions);
            merged.max_connections = least(merged.max_connections, role.max_connections);
            max_detached = least(max_detached, role.max_detached);
            merged.max_session_ttl = least(merged.max_session_ttl, role.max_session_ttl);
            merged.lock = merged.lock.max(role.lock.unwrap_or_default());
        }
        merged.max_detached = max_detached.unwrap_or(MAX_DETACHED);
        merged
    }

    /// The idle timeout as a plain duration.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.client_idle_timeout.map(|ttl| ttl.0)
    }
}

/// The smaller one; absence is no limit.
pub(crate) fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (limit, None) | (None, limit) => limit,
    }
}
