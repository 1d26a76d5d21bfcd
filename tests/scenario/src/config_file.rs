//! Configuration files of the three kinds of process, as text: what a user would write.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

/// How a process finds its cluster.
#[derive(Debug, Clone)]
pub enum Way {
    /// `auth_server`.
    Auth(SocketAddr),
    /// `auth_servers`.
    Auths(Vec<SocketAddr>),
    /// `proxy_server`.
    Proxy(SocketAddr),
}

/// A file with `auth_service`.
#[derive(Debug, Clone)]
pub struct AuthFile {
    /// `wayleave.data_dir`.
    pub data_dir: PathBuf,
    /// `auth_service.cluster_name`.
    pub cluster_name: String,
    /// `auth_service.listen_addr`.
    pub listen: SocketAddr,
    /// `auth_service.tokens`.
    pub tokens: Vec<String>,
    /// More lines of `auth_service`, without indentation.
    pub lines: Vec<String>,
    /// More lines of `wayleave`.
    pub instance_lines: Vec<String>,
}

/// A file with `proxy_service`.
#[derive(Debug, Clone)]
pub struct ProxyFile {
    /// `wayleave.nodename`.
    pub name: String,
    /// `wayleave.data_dir`.
    pub data_dir: PathBuf,
    /// `wayleave.auth_server`.
    pub auth: SocketAddr,
    /// More of them: then it is `wayleave.auth_servers`, and these come first.
    pub auth_before: Vec<SocketAddr>,
    /// `wayleave.auth_token`; none is written when it is empty.
    pub token: String,
    /// `wayleave.ca_pin`.
    pub pins: Vec<String>,
    /// `proxy_service.web_listen_addr`.
    pub web: SocketAddr,
    /// `proxy_service.public_addr`.
    pub public: SocketAddr,
    /// `proxy_service.listen_addr`.
    pub ssh: SocketAddr,
    /// `proxy_service.peer_listen_addr` and `peer_public_addr`.
    pub peer: SocketAddr,
    /// More lines of `proxy_service`, without indentation.
    pub lines: Vec<String>,
    /// More lines of `wayleave`.
    pub instance_lines: Vec<String>,
}

/// A file with `ssh_service`.
#[derive(Debug, Clone)]
pub struct NodeFile {
    /// `wayleave.nodename`.
    pub name: String,
    /// `wayleave.data_dir`.
    pub data_dir: PathBuf,
    /// `wayleave.auth_server` or `proxy_server`.
    pub way: Way,
    /// `wayleave.auth_token`; none is written when it is empty.
    pub token: String,
    /// `wayleave.ca_pin`.
    pub pins: Vec<String>,
    /// More lines of `ssh_service`, without indentation.
    pub lines: Vec<String>,
    /// More lines of `wayleave`.
    pub instance_lines: Vec<String>,
}

impl AuthFile {
    /// The text.
    pub fn text(&self) -> String {
        let mut text = String::from("version: v3\nwayleave:\n  nodename: auth\n");
        line(&mut text, &format!("data_dir: {}", self.data_dir.display()));
        self.instance_lines.iter().for_each(|each| line(&mut text, each));
        text.push_str("auth_service:\n");
        line(&mut text, &format!("cluster_name: {}", self.cluster_name));
        line(&mut text, &format!("listen_addr: {}", self.listen));
        list(&mut text, "tokens", &self.tokens);
        self.lines.iter().for_each(|each| line(&mut text, each));
        text
    }
}

impl ProxyFile {
    /// The text.
    pub fn text(&self) -> String {
        let mut auth = self.auth_before.clone();
        auth.push(self.auth);
        let way = if auth.len() > 1 { Way::Auths(auth) } else { Way::Auth(self.auth) };
        let mut text =
            instance(&self.name, &self.data_dir, &way, &self.token, &self.pins, &self.instance_lines);
        text.push_str("proxy_service:\n");
        line(&mut text, &format!("web_listen_addr: {}", self.web));
        line(&mut text, &format!("public_addr: {}", self.public));
        line(&mut text, &format!("listen_addr: {}", self.ssh));
        line(&mut text, &format!("ssh_public_addr: {}", self.ssh));
        line(&mut text, &format!("peer_listen_addr: {}", self.peer));
        line(&mut text, &format!("peer_public_addr: {}", self.peer));
        self.lines.iter().for_each(|each| line(&mut text, each));
        text
    }
}

impl NodeFile {
    /// The text.
    pub fn text(&self) -> String {
        let mut text =
            instance(&self.name, &self.data_dir, &self.way, &self.token, &self.pins, &self.instance_lines);
        text.push_str("ssh_service:\n  enabled: yes\n");
        self.lines.iter().for_each(|each| line(&mut text, each));
        text
    }
}

fn instance(
    name: &str,
    data_dir: &std::path::Path,
    way: &Way,
    token: &str,
    pins: &[String],
    lines: &[String],
) -> String {
    let mut text = String::from("version: v3\nwayleave:\n");
    line(&mut text, &format!("nodename: {name}"));
    line(&mut text, &format!("data_dir: {}", data_dir.display()));
    match way {
        Way::Auth(address) => line(&mut text, &format!("auth_server: {address}")),
        Way::Auths(addresses) => {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            list(&mut text, "auth_servers", &addresses);
        }
        Way::Proxy(address) => line(&mut text, &format!("proxy_server: {address}")),
    }
    if !token.is_empty() {
        line(&mut text, &format!("auth_token: {token}"));
    }
    list(&mut text, "ca_pin", pins);
    lines.iter().for_each(|each| line(&mut text, each));
    text
}

fn list(text: &mut String, key: &str, items: &[String]) {
    if !items.is_empty() {
        line(text, &format!("{key}:"));
        items.iter().for_each(|item| line(text, &format!("  - \"{item}\"")));
    }
}

/// One line of a section.
fn line(text: &mut String, content: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "  {content}");
}
