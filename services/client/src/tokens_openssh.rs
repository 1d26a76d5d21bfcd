//! `way tokens add --type openssh`: everything that a machine without an agent needs to publish itself.

use crate::access::{Access, call};
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::moment;
use crate::output::{note, show};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Write as _;
use wayleave_api::auth::{CreateOpensshTokenRequest, CreateOpensshTokenResponse, ForgetHostKeyRequest};
use wayleave_runtime::random_bytes;
use wayleave_ssh::KeyPair;
use wayleave_vocab::{HostPort, Labels, NodeName, Wall};

/// Where proxies take machines that publish themselves, unless told otherwise.
const TUNNEL_PORT: u16 = 3024;
/// The port that is a machine's SSH.
const SSH_PORT: u16 = 22;

/// What is to be published.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OpensshArgs {
    /// With --type=openssh: the names that machines may publish themselves under.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    names: Vec<NodeName>,
    /// With --type=openssh: the ports under each name; 22 is the machine's SSH, others are TCP applications.
    #[arg(long, value_name = "PORT,…", value_delimiter = ',', default_value = "22")]
    ports: Vec<u16>,
    /// With --type=openssh: the machine's sshd will not trust the cluster, so 22 is a TCP port like others.
    #[arg(long)]
    tcp_only: bool,
    /// With --type=openssh: where machines reach the proxy's tunnel_listen_addr; port 3024 of the proxy if left out.
    #[arg(long, value_name = "HOST:PORT")]
    tunnel_addr: Option<HostPort>,
}

/// A new token as programs read it. The key is in here and nowhere else.
#[derive(Debug, Serialize)]
struct NewToken {
    name: String,
    names: Vec<NodeName>,
    ports: Vec<u16>,
    tcp_only: bool,
    expires: String,
    private_key: String,
    certificate: String,
    known_hosts: Vec<String>,
    trusted_user_ca_keys: Vec<String>,
    tunnel_addr: HostPort,
}

/// Makes the token.
pub(crate) async fn add(
    args: OpensshArgs,
    name: Option<String>,
    labels: Option<&Labels>,
    proxy: Option<HostPort>,
    access: &Access,
    global: &GlobalArgs,
) -> Result<Exit, Failure> {
    if args.names.is_empty() {
        return Err(Failure::usage("which machines? a token of the type openssh is for names")
            .hint("way tokens add --type=openssh --names=web-1 --ports=22,8080"));
    }
    let proxy = args.tunnel_addr.clone().or_else(|| proxy.map(|proxy| proxy.with_port(TUNNEL_PORT)));
    let Some(tunnel_addr) = proxy else {
        return Err(
            Failure::usage("no proxy is known").hint("say where machines reach it: --tunnel-addr HOST:3024")
        );
    };
    let key = KeyPair::from_seed(&random_bytes());
    let labels: HashMap<String, String> =
        labels.into_iter().flat_map(Labels::iter).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let request = CreateOpensshTokenRequest {
        name: name.unwrap_or_default(),
        names: args.names.iter().map(ToString::to_string).collect(),
        ports: args.ports.iter().map(|port| u32::from(*port)).collect(),
        tcp_only: args.tcp_only,
        ttl_ms: global.ttl_ms(),
        labels,
        ssh_public_key: key.public_key().to_openssh(),
    };
    let answer = call(access.admin()?.create_openssh_token(request)).await?;
    let expires = Wall::from_ms(answer.expires_ms);
    let token = NewToken::new(answer, args, &key, expires, tunnel_addr);
    let lifetime = moment::remaining(expires, moment::now());
    show(global.format(), &token, || token.instructions(&lifetime))?;
    Ok(Exit::Done)
}

/// Lets a machine show another host key the next time.
pub(crate) async fn forget_host_key(name: &NodeName, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let request = ForgetHostKeyRequest { name: name.to_string() };
    let answer = call(access.admin()?.forget_host_key(request)).await?;
    note(&format!(
        "the host key {} of {name} is forgotten: the one that it shows next is kept",
        answer.fingerprint
    ));
    Ok(Exit::Done)
}

impl NewToken {
    fn new(
        answer: CreateOpensshTokenResponse,
        args: OpensshArgs,
        key: &KeyPair,
        expires: Wall,
        tunnel_addr: HostPort,
    ) -> Self {
        let host = match tunnel_addr.port() {
            SSH_PORT => tunnel_addr.host().to_owned(),
            port => format!("[{}]:{port}", tunnel_addr.host()),
        };
        let known = |line: &String| format!("@cert-authority {host} {line}");
        Self {
            private_key: key.to_openssh(&answer.name).to_string(),
            known_hosts: answer.host_ca_ssh.iter().map(known).collect(),
            name: answer.name,
            names: args.names,
            ports: args.ports,
            tcp_only: args.tcp_only,
            expires: moment::rfc3339(expires),
            certificate: answer.ssh_certificate,
            trusted_user_ca_keys: answer.openssh_ca_ssh,
            tunnel_addr,
        }
    }

    /// The command that publishes one machine.
    fn command(&self, name: &NodeName) -> String {
        let mut command = String::from(
            "ssh -N -F none -i wayleave_publish -o IdentitiesOnly=yes -o UserKnownHostsFile=wayleave_known_hosts \\\n    -o StrictHostKeyChecking=yes -o ExitOnForwardFailure=yes -o ServerAliveInterval=15",
        );
        for port in &self.ports {
            let _ = write!(command, " \\\n    -R {name}:{port}:localhost:{port}");
        }
        let (host, port) = (self.tunnel_addr.host(), self.tunnel_addr.port());
        let _ = write!(command, " -p {port} publish@{host}");
        command
    }

    /// The whole set-up, to be followed on the machine.
    fn instructions(&self, lifetime: &str) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "The token {} lets a machine connect for {lifetime} ({}). What is connected then stays so.\n",
            self.name, self.expires
        );
        let _ = writeln!(
            text,
            "On the machine, put the key, its certificate and the proxy's authority into files:\n"
        );
        let _ = writeln!(text, "umask 077");
        for (file, content) in [
            ("wayleave_publish", self.private_key.trim_end().to_owned()),
            ("wayleave_publish-cert.pub", self.certificate.clone()),
            ("wayleave_known_hosts", self.known_hosts.join("\n")),
        ] {
            let _ = writeln!(text, "cat > {file} <<'END'\n{content}\nEND");
        }
        if self.ports.contains(&SSH_PORT) && !self.tcp_only {
            let _ = writeln!(text, "\nLet its sshd trust the cluster, as root, and reload it:\n");
            let keys = self.trusted_user_ca_keys.join("\\n");
            let _ = writeln!(text, "printf '{keys}\\n' > /etc/ssh/wayleave_user_ca.pub");
            let _ = writeln!(
                text,
                "echo 'TrustedUserCAKeys /etc/ssh/wayleave_user_ca.pub' >> /etc/ssh/sshd_config"
            );
        }
        let _ = writeln!(text, "\nPublish it, for as long as this runs:");
        for name in &self.names {
            let _ = writeln!(text, "\n{}", self.command(name));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(ports: &[u16], tcp_only: bool) -> NewToken {
        let answer = CreateOpensshTokenResponse {
            name: "web".into(),
            ssh_certificate: "ssh-ed25519-cert-v01@openssh.com AAAAcert".into(),
            expires_ms: 1_700_000_000_000,
            host_ca_ssh: vec!["ssh-ed25519 AAAAhost".into()],
            openssh_ca_ssh: vec!["ssh-ed25519 AAAAuser".into()],
        };
        let args = OpensshArgs {
            names: vec![NodeName::parse("web-1").unwrap()],
            ports: ports.to_vec(),
            tcp_only,
            tunnel_addr: None,
        };
        let address = "proxy.example.com:3024".parse().unwrap();
        NewToken::new(answer, args, &KeyPair::from_seed(&[1; 32]), Wall::from_ms(1_700_000_000_000), address)
    }

    #[test]
    fn the_instructions_are_whole() {
        let text = token(&[22, 8080], false).instructions("1h");
        for part in [
            "-R web-1:22:localhost:22 \\\n    -R web-1:8080:localhost:8080 -p 3024 publish@proxy.example.com",
            "@cert-authority [proxy.example.com]:3024 ssh-ed25519 AAAAhost",
            "printf 'ssh-ed25519 AAAAuser\\n' > /etc/ssh/wayleave_user_ca.pub",
            "echo 'TrustedUserCAKeys /etc/ssh/wayleave_user_ca.pub'",
            "BEGIN OPENSSH PRIVATE KEY",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_machine_without_ssh_to_enter_is_not_asked_to_trust_the_cluster() {
        for (ports, tcp_only) in [(&[22][..], true), (&[8080][..], false)] {
            assert!(!token(ports, tcp_only).instructions("1h").contains("TrustedUserCAKeys"));
        }
    }
}
