//! The process as a whole: `wayleave:`.

use crate::section::Section;
use crate::storage::{self, StorageConfig};
use crate::value::{CaPin, LogOutput, ValueOrPath};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;
use wayleave_vocab::{HostPort, NodeName, Secret};

/// What concerns the whole process.
#[derive(Debug, Clone)]
pub struct InstanceConfig {
    /// What the machine is called in the cluster; its host name when `None`.
    pub nodename: Option<NodeName>,
    /// Where identity, journal and database live. Absolute.
    pub data_dir: PathBuf,
    /// A file for the process id.
    pub pid_file: Option<PathBuf>,
    /// With what a process without an identity joins. `None` is an error only then.
    pub join: Option<JoinConfig>,
    /// Pins of the cluster's host CA; a joining process accepts any of them.
    pub ca_pins: Vec<ValueOrPath<CaPin>>,
    /// Where the rest of the cluster is.
    pub upstream: Upstream,
    /// The process's own log.
    pub log: LogConfig,
    /// Where numbers and health are served; nowhere when `None`.
    pub diag_addr: Option<SocketAddr>,
    /// How long to go on as before when asked to stop.
    pub shutdown_delay: Duration,
    /// How long a drain waits for sessions; at least a second.
    pub shutdown_timeout: Duration,
    /// Bounds on clients.
    pub connection_limits: ConnectionLimits,
    /// The Auth Service's backend; without meaning where Auth does not run.
    pub storage: StorageConfig,
}

/// How a new process joins.
#[derive(Debug, Clone)]
pub struct JoinConfig {
    /// The join method.
    pub method: JoinMethod,
    /// The token: from `auth_token` or `join_params.token_name`. It is the whole token unless
    /// `secret` is given, and then its name.
    pub token: ValueOrPath<Secret>,
    /// The token's secret, from `join_params.token_secret`.
    pub secret: Option<ValueOrPath<Secret>>,
}

/// How a joining process proves that it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinMethod {
    /// By a token's secret.
    Token,
}

/// Where a process finds its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// The Auth Service runs in this very process. The addresses are what the file says besides:
    /// nothing needs them, though an agent in the same process may dial `proxy_server`.
    LocalAuth {
        /// `wayleave.auth_server` or `auth_servers`, if given.
        auth_servers: Vec<HostPort>,
        /// `wayleave.proxy_server`, if given.
        proxy_server: Option<HostPort>,
    },
    /// The Auth API, dialled directly: one or more addresses, whichever answers. A proxy always has this one, or local
    /// Auth.
    AuthServers(Vec<HostPort>),
    /// A proxy: its pass-through leads to Auth, and agents keep their tunnels to it.
    ProxyServer(HostPort),
}

/// The process's own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Where lines go.
    pub output: LogOutput,
    /// The least severe lines that are written.
    pub severity: LogSeverity,
    /// The shape of a line.
    pub format: LogFormat,
}

/// Severity of a log line, most severe first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogSeverity {
    /// A human must act.
    Error,
    /// Unusual.
    Warn,
    /// State that a user sees.
    Info,
    /// Decisions, with names and addresses.
    Debug,
    /// Per packet.
    Trace,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Bounds on what clients may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Most connections at one time on each listener.
    pub max_connections: NonZeroU32,
}

/// What runs in this process, as far as `wayleave:` depends on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Services {
    pub(crate) auth: bool,
    pub(crate) proxy: bool,
}

pub(crate) fn read(root: &Section<'_>, services: Services) -> Option<InstanceConfig> {
    let section = root.section("wayleave");
    let nodename = section.name("nodename", NodeName::parse);
    let data_dir = section.path("data_dir");
    let pid_file = section.path("pid_file");
    let join = read_join(&section);
    let ca_pins = section.pins("ca_pin");
    let upstream = read_upstream(&section, services);
    let log = read_log(&section.section("log"));
    let diag_addr = section.listen("diag_addr");
    let shutdown_delay = section.duration("shutdown_delay");
    let shutdown_timeout = section.duration("shutdown_timeout");
    let connection_limits = read_limits(&section.section("connection_limits"));
    let storage = storage::read(&section.section("storage"), data_dir.as_deref());
    Some(InstanceConfig {
        nodename,
        data_dir: data_dir?,
        pid_file,
        join,
        ca_pins,
        upstream: upstream?,
        log: log?,
        diag_addr,
        shutdown_delay: shutdown_delay?,
        shutdown_timeout: shutdown_timeout?,
        connection_limits: connection_limits?,
        storage: storage?,
    })
}

fn read_join(section: &Section<'_>) -> Option<JoinConfig> {
    let auth_token = section.secret("auth_token");
    let params = section.section("join_params");
    let method = params.choice("method", &[("token", JoinMethod::Token)]);
    let token_name = params.secret("token_name");
    let secret = params.secret("token_secret");
    if section.place_of("join_params").is_none() {
        return auth_token.map(|token| JoinConfig { method: JoinMethod::Token, token, secret: None });
    }
    if section.place_of("auth_token").is_some() {
        section.refuse("join_params", "both auth_token and join_params", "one of them");
        return None;
    }
    let token = params.require("token_name", token_name);
    Some(JoinConfig { method: method?, token: token?, secret })
}

fn read_upstream(section: &Section<'_>, services: Services) -> Option<Upstream> {
    let auth_servers = read_auth_servers(section);
    let proxy_server = section.address("proxy_server", Some(443));
    if services.auth {
        return Some(Upstream::LocalAuth { auth_servers: auth_servers?, proxy_server });
    }
    let has_auth = ["auth_server", "auth_servers"].iter().any(|key| section.place_of(key).is_some());
    let has_proxy = section.place_of("proxy_server").is_some();
    match (has_auth, has_proxy) {
        (true, true) => {
            let expected = if services.proxy { "auth_server alone" } else { "one of them" };
            section.refuse("proxy_server", "both auth_server and proxy_server", expected);
            None
        }
        (true, false) => auth_servers.filter(|addresses| !addresses.is_empty()).map(Upstream::AuthServers),
        (false, true) if services.proxy => {
            let expected = "auth_server: a proxy passes Auth traffic on, so it reaches Auth directly";
            section.refuse("proxy_server", "proxy_server beside a proxy_service", expected);
            None
        }
        (false, true) => proxy_server.map(Upstream::ProxyServer),
        (false, false) => {
            let expected = if services.proxy {
                "wayleave.auth_server, or an auth_service in this file"
            } else {
                "wayleave.proxy_server or wayleave.auth_server, or an auth_service in this file"
            };
            section.refuse_section("no address of the cluster", expected);
            None
        }
    }
}

/// The Auth Services that the file names; `None` when it does so wrongly.
fn read_auth_servers(section: &Section<'_>) -> Option<Vec<HostPort>> {
    let one = section.address("auth_server", Some(3025));
    let several = section.addresses("auth_servers", Some(3025));
    if section.is_empty_list("auth_servers") {
        section.refuse("auth_servers", "an empty list", "one address at least, or no such key");
        return None;
    }
    if section.place_of("auth_server").is_some() && section.place_of("auth_servers").is_some() {
        section.refuse("auth_servers", "both auth_server and auth_servers", "one of them");
        return None;
    }
    Some(one.into_iter().chain(several).collect())
}

fn read_log(section: &Section<'_>) -> Option<LogConfig> {
    let severities = [
        ("ERROR", LogSeverity::Error),
        ("err", LogSeverity::Error),
        ("WARN", LogSeverity::Warn),
        ("warning", LogSeverity::Warn),
        ("INFO", LogSeverity::Info),
        ("DEBUG", LogSeverity::Debug),
        ("TRACE", LogSeverity::Trace),
    ];
    let output = section.log_output("output");
    let severity = section.choice("severity", &severities);
    let format =
        section.section("format").choice("output", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    Some(LogConfig { output: output?, severity: severity?, format: format? })
}

fn read_limits(section: &Section<'_>) -> Option<ConnectionLimits> {
    let max_connections = section.count("max_connections").and_then(non_zero);
    Some(ConnectionLimits { max_connections: max_connections? })
}

/// The table bounds the number, so that this never loses one.
fn non_zero(number: u64) -> Option<NonZeroU32> {
    u32::try_from(number).ok().and_then(NonZeroU32::new)
}
