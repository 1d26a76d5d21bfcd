//! The Auth Service: `auth_service:`.

use crate::section::{Section, parse_path, parse_secret};
use crate::value::ValueOrPath;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;
use wayleave_vocab::{ClusterName, HostPort, Secret, SystemRole, TunnelStrategy};

/// The Auth Service.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// The file says something of tunnels' and sessions' timeouts: it overrides what the backend has.
    pub states_networking: bool,
    /// The file says something of logins and locks: it overrides what the backend has.
    pub states_authentication: bool,
    /// The cluster's name; the machine's host name when `None`.
    pub cluster_name: Option<ClusterName>,
    /// Where the Auth API listens.
    pub listen_addr: SocketAddr,
    /// Names and addresses for its certificate, and for others to dial.
    pub public_addrs: Vec<HostPort>,
    /// Tokens that live as long as they stand in the file.
    pub static_tokens: Vec<StaticToken>,
    /// What agents do without news of locks.
    pub locking_mode: LockingMode,
    /// How long a user's certificates live unless a role says less.
    pub default_session_ttl: Duration,
    /// After how long without input a session ends; `None` for never.
    pub client_idle_timeout: Option<Duration>,
    /// True when a session ends with its certificate.
    pub disconnect_expired_cert: bool,
    /// How often an idle session is probed.
    pub keep_alive_interval: Duration,
    /// After how many unanswered probes it ends.
    pub keep_alive_count_max: NonZeroU32,
    /// The cluster's tunnel strategy; `None` when the file does not say, and what the backend has stays.
    pub tunnel_strategy: Option<TunnelStrategy>,
}

/// A token from the file.
#[derive(Debug, Clone)]
pub enum StaticToken {
    /// `roles:secret`, or `roles:/path` of a file with the secret.
    Inline {
        /// What the joining process may be; never empty.
        roles: BTreeSet<SystemRole>,
        /// The secret.
        secret: ValueOrPath<Secret>,
    },
    /// The path of a file that holds `roles:secret`; its text is read by [`StaticToken::parse`].
    File(PathBuf),
}

/// A static token that cannot be read. It never repeats the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no static token: {problem}; expected roles:secret, roles:/path or /path")]
pub struct ParseStaticTokenError {
    /// What is wrong with it.
    pub problem: String,
}

/// What an agent does when it has heard nothing about locks for 5 minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockingMode {
    /// It goes on, audited and shown.
    BestEffort,
    /// It refuses new sessions.
    Strict,
}

impl StaticToken {
    /// Reads `roles:secret`, `roles:/path` or `/path`.
    pub fn parse(text: &str) -> Result<Self, ParseStaticTokenError> {
        parse_token(text).map_err(|problem| ParseStaticTokenError { problem })
    }
}

fn parse_token(text: &str) -> Result<StaticToken, String> {
    if text.starts_with('/') {
        return parse_path(text).map(StaticToken::File);
    }
    let Some((roles, secret)) = text.split_once(':') else {
        return Err("there is no colon between roles and secret".to_owned());
    };
    let mut set = BTreeSet::new();
    for role in roles.split(',') {
        // The word may be a misplaced secret: it is not repeated.
        let known = role.trim().parse::<SystemRole>().map_err(|_| {
            let known: Vec<String> =
                SystemRole::ALL.iter().map(|role| role.as_str().to_lowercase()).collect();
            format!("a word before the colon is no system role: there are {}", known.join(", "))
        })?;
        set.insert(known);
    }
    Ok(StaticToken::Inline { roles: set, secret: parse_secret(secret.trim())? })
}

/// Reads the section if it is there and on.
pub(crate) fn read(section: &Section<'_>) -> Option<AuthConfig> {
    let cluster_name = section.name("cluster_name", ClusterName::parse);
    let listen_addr = section.listen("listen_addr");
    let default_port = listen_addr.map(|address| address.port()).filter(|port| *port != 0);
    let public_addrs = section.addresses("public_addr", default_port);
    let static_tokens = section.tokens("tokens", parse_token);
    let authentication = section.section("authentication");
    let locking_modes = [("best_effort", LockingMode::BestEffort), ("strict", LockingMode::Strict)];
    let locking_mode = authentication.choice("locking_mode", &locking_modes);
    let default_session_ttl = authentication.duration("default_session_ttl");
    let client_idle_timeout = section.duration_or_never("client_idle_timeout");
    let disconnect_expired_cert = section.flag("disconnect_expired_cert");
    let keep_alive_interval = section.duration("keep_alive_interval");
    let keep_alive_count_max = section.count("keep_alive_count_max");
    let tunnel_strategy = read_strategy(&section.section("tunnel_strategy"));
    let has_strategy = section.place_of("tunnel_strategy").is_some();
    let states = |keys: &[&str]| keys.iter().any(|key| section.place_of(key).is_some());
    Some(AuthConfig {
        states_networking: states(&["client_idle_timeout", "keep_alive_interval", "keep_alive_count_max"]),
        states_authentication: states(&["authentication", "disconnect_expired_cert"]),
        cluster_name,
        listen_addr: listen_addr?,
        public_addrs,
        static_tokens,
        locking_mode: locking_mode?,
        default_session_ttl: default_session_ttl?,
        client_idle_timeout: client_idle_timeout?,
        disconnect_expired_cert: disconnect_expired_cert?,
        keep_alive_interval: keep_alive_interval?,
        keep_alive_count_max: u32::try_from(keep_alive_count_max?).ok().and_then(NonZeroU32::new)?,
        tunnel_strategy: if has_strategy { Some(tunnel_strategy?) } else { None },
    })
}

fn read_strategy(section: &Section<'_>) -> Option<TunnelStrategy> {
    let options = [("agent_mesh", false), ("proxy_peering", true)];
    let is_peering = section.choice("type", &options);
    let count = section.count("agent_connection_count");
    let is_set = section.place_of("agent_connection_count").is_some();
    if is_peering? {
        let count = if is_set { u16::try_from(count?).ok()? } else { 1 };
        return Some(TunnelStrategy::ProxyPeering { agent_connection_count: NonZeroU16::new(count)? });
    }
    if is_set {
        section.refuse(
            "agent_connection_count",
            "a count with type: agent_mesh",
            "type: proxy_peering, or no count: under agent_mesh every proxy gets a tunnel",
        );
    }
    Some(TunnelStrategy::AgentMesh)
}
