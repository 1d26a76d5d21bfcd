//! A commented configuration file for chosen services: what `wayleave configure` prints.

use crate::config::Config;
use crate::value::{CaPin, ValueOrPath};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::str::FromStr;
use wayleave_vocab::{ClusterName, HostPort, NodeName, Secret};

/// A service that a file can switch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// `auth_service`.
    Auth,
    /// `proxy_service`.
    Proxy,
    /// `ssh_service`.
    Ssh,
}

/// A word that names no service that can be configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no service that can be configured; there are auth, proxy and node")]
pub struct ParseServiceError {
    /// What was given, cut to 64 characters.
    pub given: String,
}

impl FromStr for Service {
    type Err = ParseServiceError;

    /// Reads `auth`, `proxy`, and `node` or `ssh`.
    fn from_str(s: &str) -> Result<Self, ParseServiceError> {
        match s.trim().to_ascii_lowercase().as_str() {
            "auth" => Ok(Self::Auth),
            "proxy" => Ok(Self::Proxy),
            "node" | "ssh" => Ok(Self::Ssh),
            _ => Err(ParseServiceError { given: s.chars().take(64).collect() }),
        }
    }
}

/// The backend that a file with Auth names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SampleStorage {
    /// The embedded database.
    #[default]
    Sqlite,
    /// A PostgreSQL database.
    Postgresql,
    /// A cluster of etcd.
    Etcd,
}

/// What the file should say.
#[derive(Debug, Clone, Default)]
pub struct SampleOptions {
    /// The services; all three when empty.
    pub services: BTreeSet<Service>,
    /// `wayleave.nodename`.
    pub nodename: Option<NodeName>,
    /// `wayleave.data_dir`, absolute; the default when `None`.
    pub data_dir: Option<PathBuf>,
    /// `auth_service.cluster_name`.
    pub cluster_name: Option<ClusterName>,
    /// `proxy_service.public_addr`.
    pub public_addr: Option<HostPort>,
    /// `wayleave.auth_token`.
    pub auth_token: Option<ValueOrPath<Secret>>,
    /// `wayleave.ca_pin`.
    pub ca_pins: Vec<CaPin>,
    /// `wayleave.auth_server`, for a process without Auth; it wins over `proxy_server`.
    pub auth_server: Option<HostPort>,
    /// `wayleave.proxy_server`, for an agent.
    pub proxy_server: Option<HostPort>,
    /// `wayleave.storage`, where Auth runs.
    pub storage: SampleStorage,
}

impl Config {
    /// A commented file that [`Config::parse`] reads, with what `options` leave open as examples to change.
    pub fn configure(options: &SampleOptions) -> String {
        let mut file = Writer::default();
        let runs = |service| options.services.is_empty() || options.services.contains(&service);
        file.line(0, "# Configuration of a Wayleave process. Sections decide which services run.");
        file.line(0, "# Check a change with: wayleave doctor -c FILE");
        file.line(0, "version: v3");
        instance(&mut file, options, runs(Service::Auth), runs(Service::Proxy));
        if runs(Service::Auth) {
            auth(&mut file, options);
        }
        if runs(Service::Proxy) {
            proxy(&mut file, options);
        }
        if runs(Service::Ssh) {
            ssh(&mut file);
        }
        file.text
    }
}

fn instance(file: &mut Writer, options: &SampleOptions, has_auth: bool, has_proxy: bool) {
    file.line(0, "");
    file.line(0, "wayleave:");
    match &options.nodename {
        Some(name) => file.pair(2, "nodename", name),
        None => file.line(2, "# nodename: web-1            # the machine's host name when left out"),
    }
    let data_dir =
        options.data_dir.as_ref().map_or("/var/lib/wayleave".into(), |path| path.to_string_lossy());
    file.pair(2, "data_dir", &data_dir);
    if !has_auth {
        joining(file, options, has_proxy);
    }
    file.line(2, "log:");
    file.line(4, "output: stderr");
    file.line(4, "severity: INFO");
    file.line(2, "# How long a drain waits for sessions to end.");
    file.line(2, "shutdown_timeout: 5m");
    if has_auth {
        storage(file, options.storage);
    }
}

fn storage(file: &mut Writer, storage: SampleStorage) {
    file.line(2, "storage:");
    match storage {
        SampleStorage::Sqlite => {
            file.line(4, "type: sqlite                 # embedded, below data_dir; several Auth Services need a server");
        }
        SampleStorage::Postgresql => {
            file.line(4, "type: postgresql");
            file.line(4, "# postgresql://user:password@host:5432/wayleave, or the absolute path of a file that holds it.");
            file.line(4, "conn_string: /etc/wayleave/postgresql");
        }
        SampleStorage::Etcd => {
            file.line(4, "type: etcd");
            file.line(4, "# The members. CHANGE THIS.");
            file.line(4, "peers:");
            file.line(6, "- https://etcd-1.example.com:2379");
            file.line(4, "prefix: /wayleave");
            file.line(
                4,
                "# tls_ca_file: /etc/wayleave/etcd-ca.pem       # the system's authorities when left out",
            );
            file.line(4, "# tls_cert_file: /etc/wayleave/etcd.pem        # goes with tls_key_file");
            file.line(4, "# tls_key_file: /etc/wayleave/etcd.key");
        }
    }
}

fn joining(file: &mut Writer, options: &SampleOptions, has_proxy: bool) {
    let example = |host: &str, port| format!("{host}:{port}");
    match (&options.auth_server, &options.proxy_server) {
        (Some(address), _) => file.pair(2, "auth_server", address),
        (None, Some(address)) if !has_proxy => file.pair(2, "proxy_server", address),
        (None, _) if has_proxy => {
            file.line(2, "# The Auth Service. CHANGE THIS.");
            file.pair(2, "auth_server", &example("auth.example.com", 3025));
        }
        (None, _) => {
            file.line(2, "# A proxy, or the load balancer of all. CHANGE THIS.");
            file.pair(2, "proxy_server", &example("proxy.example.com", 443));
        }
    }
    file.line(2, "# The join token, or the absolute path of a file with it (way tokens add prints one).");
    match &options.auth_token {
        Some(ValueOrPath::Value(token)) => file.pair(2, "auth_token", token.expose_secret()),
        Some(ValueOrPath::Path(path)) => file.pair(2, "auth_token", &path.to_string_lossy()),
        None => file.line(2, "auth_token: /etc/wayleave/token"),
    }
    file.line(2, "# Pins of the cluster's CA (way status prints them). Without one, only a proxy with a");
    file.line(2, "# publicly trusted certificate is believed.");
    if options.ca_pins.is_empty() {
        file.line(2, "# ca_pin: sha256:...");
    } else {
        file.line(2, "ca_pin:");
        options.ca_pins.iter().for_each(|pin| file.item(4, pin));
    }
}

fn auth(file: &mut Writer, options: &SampleOptions) {
    file.line(0, "");
    file.line(0, "auth_service:");
    match &options.cluster_name {
        Some(name) => file.pair(2, "cluster_name", name),
        None => {
            file.line(2, "# The cluster's name stands in every certificate and cannot change later.");
            file.line(2, "# cluster_name: example.com  # the host name when left out");
        }
    }
    file.line(2, "listen_addr: 0.0.0.0:3025");
    file.line(2, "# Static join tokens; way tokens add makes better ones, which expire.");
    file.line(2, "# tokens:");
    file.line(2, "#   - \"proxy,node:/etc/wayleave/static-token\"");
    file.line(2, "authentication:");
    file.line(4, "type: local");
    file.line(4, "second_factor: otp");
    file.line(4, "locking_mode: best_effort    # strict refuses new sessions without news of locks");
    file.line(4, "default_session_ttl: 12h");
    file.line(
        2,
        "# Agents keep tunnels to so many proxies; the other proxies reach them through their peers.",
    );
    file.line(2, "# Two survive the loss of a proxy.");
    file.line(2, "tunnel_strategy:");
    file.line(4, "type: proxy_peering");
    file.line(4, "agent_connection_count: 2");
}

fn proxy(file: &mut Writer, options: &SampleOptions) {
    file.line(0, "");
    file.line(0, "proxy_service:");
    file.line(2, "# The one public port. 443 needs root or CAP_NET_BIND_SERVICE.");
    file.line(2, "web_listen_addr: 0.0.0.0:3080");
    match &options.public_addr {
        Some(address) => file.pair(2, "public_addr", address),
        None => file.line(
            2,
            "# public_addr: proxy.example.com:443   # what clients dial; the load balancer's if there is one",
        ),
    }
    file.line(2, "# SSH for stock clients with ProxyJump. Closed when left out.");
    file.line(2, "# listen_addr: 0.0.0.0:3023");
    file.line(
        2,
        "# Where other proxies reach this one; peer_public_addr names this proxy, never a load balancer.",
    );
    file.line(2, "peer_listen_addr: 0.0.0.0:3021");
    file.line(2, "# peer_public_addr: proxy-1.example.com:3021");
    file.line(2, "# Certificates for clients; without, one of the cluster's own CA is used.");
    file.line(2, "# https_keypairs:");
    file.line(2, "#   - key_file: /etc/wayleave/tls.key");
    file.line(2, "#     cert_file: /etc/wayleave/tls.crt");
}

fn ssh(file: &mut Writer) {
    file.line(0, "");
    file.line(0, "ssh_service:");
    file.line(2, "# Labels select nodes in roles and searches.");
    file.line(2, "labels:");
    file.line(4, "env: example");
    file.line(2, "# Labels whose values commands print.");
    file.line(2, "# commands:");
    file.line(2, "#   - name: kernel");
    file.line(2, "#     command: [/bin/uname, -r]");
    file.line(2, "#     period: 1h");
}

/// The text so far. Values are quoted where YAML would read them as something else.
#[derive(Default)]
struct Writer {
    text: String,
}

impl Writer {
    fn line(&mut self, indent: usize, line: &str) {
        let indent = if line.is_empty() { 0 } else { indent };
        writeln!(self.text, "{:indent$}{line}", "").expect("writing to a String cannot fail");
    }

    fn pair(&mut self, indent: usize, key: &str, value: &(impl ToString + ?Sized)) {
        self.line(indent, &format!("{key}: {}", quoted(&value.to_string())));
    }

    fn item(&mut self, indent: usize, value: &(impl ToString + ?Sized)) {
        self.line(indent, &format!("- {}", quoted(&value.to_string())));
    }
}

/// A value as a YAML scalar: plain where that is safe, else in double quotes.
fn quoted(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b':' | b'@'))
        && !text.ends_with(':')
        && !text.eq_ignore_ascii_case("null");
    if is_plain {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                write!(out, "\\U{:08x}", u32::from(c)).expect("writing to a String cannot fail");
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
