//! `way tokens`: what a new machine needs to join, whole.

use crate::access::{Access, call};
use crate::auth_sign::proxies_of;
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::moment;
use crate::output::{Format, note, show, table};
use crate::resources;
use crate::tokens_openssh::{self, OpensshArgs};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::str::FromStr;
use wayleave_api::auth::{CreateTokenRequest, CreateTokenResponse};
use wayleave_resource::{JoinMethod, Kind, Resource};
use wayleave_vocab::{HostPort, Labels, NodeName, ParseSystemRoleError, SystemRole, Wall};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TokensCommand {
    Add(AddArgs),
    /// List join tokens (never their secrets).
    Ls,
    /// Remove a join token; what was published with it by `ssh -R` is cut.
    Rm(RmArgs),
    /// Let a machine that is published by `ssh -R` show another host key the next time.
    ForgetHostKey(ForgetHostKeyArgs),
}

/// Make a join token and print the whole set-up of a new machine
///
/// way tokens add --type=node --ttl=1h
/// way tokens add --type=node,app --labels=env=prod --format json
/// way tokens add --type=openssh --names=web-1 --ports=22,8080
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AddArgs {
    /// What the machine may be: node, proxy, app, db, kube, …; or openssh for one that runs no agent.
    #[arg(long = "type", value_name = "TYPE,…", value_delimiter = ',', required = true)]
    types: Vec<TokenType>,
    /// The token's public name; a random one if left out.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Labels of the token.
    #[arg(long, value_name = "KEY=VALUE,…")]
    labels: Option<Labels>,
    #[command(flatten)]
    openssh: OpensshArgs,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenType {
    Role(SystemRole),
    /// Machines that publish themselves by `ssh -R`.
    Openssh,
}

impl FromStr for TokenType {
    type Err = ParseSystemRoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "openssh" => Ok(Self::Openssh),
            role => role.parse().map(Self::Role),
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct ForgetHostKeyArgs {
    /// The machine's name.
    name: NodeName,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// The token's name (the part before the dot).
    name: String,
}

/// A new token as programs read it.
#[derive(Debug, Serialize)]
struct NewToken {
    token: String,
    name: String,
    roles: Vec<String>,
    expires: String,
    ca_pins: Vec<String>,
    proxy: Option<HostPort>,
}

#[derive(Debug, Serialize)]
struct TokenRow {
    name: String,
    roles: Vec<String>,
    labels: Labels,
    expires: Option<String>,
}

pub(crate) async fn tokens(command: TokensCommand, global: &GlobalArgs) -> Result<Exit, Failure> {
    match command {
        TokensCommand::Add(args) => add(args, global).await,
        TokensCommand::Ls => ls(global).await,
        TokensCommand::Rm(args) => {
            let name = args.name.split_once('.').map_or(args.name.as_str(), |(name, _)| name);
            resources::delete(&Access::find(global)?, Kind::Token, name).await?;
            note(&format!("token {name} has been removed"));
            Ok(Exit::Done)
        }
        TokensCommand::ForgetHostKey(args) => tokens_openssh::forget_host_key(&args.name, global).await,
    }
}

async fn add(args: AddArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let is_openssh = args.types.contains(&TokenType::Openssh);
    let roles: Vec<SystemRole> = args
        .types
        .iter()
        .filter_map(|kind| match kind {
            TokenType::Role(role) => Some(*role),
            TokenType::Openssh => None,
        })
        .collect();
    if is_openssh && !roles.is_empty() {
        return Err(Failure::usage(
            "a token of the type openssh lets nothing join: make another one for that",
        ));
    }
    let proxy = match &global.proxy {
        Some(proxy) => Some(proxy.clone()),
        None => proxies_of(&access).await.into_iter().next(),
    };
    if is_openssh {
        return tokens_openssh::add(args.openssh, args.name, args.labels.as_ref(), proxy, &access, global)
            .await;
    }
    let labels: HashMap<String, String> = args
        .labels
        .iter()
        .flat_map(Labels::iter)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let request = CreateTokenRequest {
        name: args.name.unwrap_or_default(),
        system_roles: roles.iter().map(ToString::to_string).collect(),
        ttl_ms: global.ttl_ms(),
        labels,
    };
    let answer = call(access.admin()?.create_token(request)).await?;
    let expires = Wall::from_ms(answer.expires_ms);
    let token = NewToken::new(answer, &roles, expires, proxy);
    let now = moment::now();
    show(global.format(), &token, || token.instructions(&roles, &moment::remaining(expires, now)))?;
    Ok(Exit::Done)
}

impl NewToken {
    fn new(
        answer: CreateTokenResponse,
        roles: &[SystemRole],
        expires: Wall,
        proxy: Option<HostPort>,
    ) -> Self {
        Self {
            token: format!("{}.{}", answer.name, answer.secret),
            name: answer.name,
            roles: roles.iter().map(ToString::to_string).collect(),
            expires: moment::rfc3339(expires),
            ca_pins: answer.ca_pins,
            proxy,
        }
    }

    /// The whole set-up, to be followed on the new machine.
    fn instructions(&self, roles: &[SystemRole], lifetime: &str) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "The join token: {}", self.token);
        let _ = writeln!(text, "It expires in {lifetime} ({}). It is shown only once.", self.expires);
        for pin in &self.ca_pins {
            let _ = writeln!(text, "CA pin:         {pin}");
        }
        let _ = writeln!(
            text,
            "\nOn the new machine, put this into /etc/wayleave.yaml and run\n  wayleave start -c /etc/wayleave.yaml\n"
        );
        text.push_str(&self.config(roles));
        if let Some(line) = self.configure_line(roles) {
            let _ = writeln!(text, "\nOr let the daemon write a commented file:\n  {line}");
        }
        text
    }

    /// What makes the daemon write the file itself; for the services that it can write.
    fn configure_line(&self, roles: &[SystemRole]) -> Option<String> {
        let services: Vec<&str> = roles
            .iter()
            .filter_map(|role| match role {
                SystemRole::Node => Some("node"),
                SystemRole::Proxy => Some("proxy"),
                SystemRole::Auth
                | SystemRole::Kube
                | SystemRole::App
                | SystemRole::Db
                | SystemRole::WindowsDesktop
                | SystemRole::Discovery
                | SystemRole::Bot => None,
            })
            .collect();
        if services.len() != roles.len() {
            return None;
        }
        let mut line = format!("wayleave configure --roles {} --token {}", services.join(","), self.token);
        for pin in &self.ca_pins {
            let _ = write!(line, " --ca-pin {pin}");
        }
        if roles.contains(&SystemRole::Proxy) {
            line.push_str(" --auth-server AUTH_HOST:3025");
        } else {
            let _ = write!(line, " --proxy {}", self.proxy_address());
        }
        line.push_str(" -o /etc/wayleave.yaml");
        Some(line)
    }

    /// The proxy's address, or where to put it.
    fn proxy_address(&self) -> String {
        self.proxy.as_ref().map_or_else(|| "PROXY_HOST:443".to_owned(), ToString::to_string)
    }

    /// A configuration file with which a machine joins.
    fn config(&self, roles: &[SystemRole]) -> String {
        let mut text = String::from("version: v3\nwayleave:\n");
        let _ = writeln!(text, "  auth_token: {}", self.token);
        match self.ca_pins.as_slice() {
            [] => {}
            [pin] => {
                let _ = writeln!(text, "  ca_pin: \"{pin}\"");
            }
            pins => {
                text.push_str("  ca_pin:\n");
                for pin in pins {
                    let _ = writeln!(text, "    - \"{pin}\"");
                }
            }
        }
        let is_proxy = roles.contains(&SystemRole::Proxy);
        if is_proxy {
            text.push_str("  auth_server: AUTH_HOST:3025      # the Auth Service itself\n");
        } else {
            let _ = writeln!(text, "  proxy_server: {}", self.proxy_address());
        }
        for role in roles {
            let section = match role {
                SystemRole::Node => "ssh_service:\n  enabled: true\n",
                SystemRole::Proxy => "proxy_service:\n  enabled: true\n  public_addr: THIS_HOST:3080\n",
                SystemRole::App => "app_service:\n  enabled: true\n",
                SystemRole::Db => "db_service:\n  enabled: true\n",
                SystemRole::Kube => "kubernetes_service:\n  enabled: true\n",
                SystemRole::WindowsDesktop => "windows_desktop_service:\n  enabled: true\n",
                SystemRole::Discovery => "discovery_service:\n  enabled: true\n",
                SystemRole::Auth | SystemRole::Bot => "",
            };
            text.push_str(section);
        }
        if is_proxy && !roles.contains(&SystemRole::Node) {
            text.push_str("ssh_service:\n  enabled: false\n");
        }
        text
    }
}

async fn ls(global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let tokens: Vec<TokenRow> =
        resources::list(&access, Kind::Token).await?.into_iter().filter_map(TokenRow::new).collect();
    if global.format() == Format::Names {
        let names: String = tokens.iter().map(|token| format!("{}\n", token.name)).collect();
        crate::output::print(&names)?;
        return Ok(Exit::Done);
    }
    show(global.format(), &tokens, || {
        let rows: Vec<_> = tokens.iter().map(TokenRow::cells).collect();
        table(&["Token", "Type", "Labels", "Expiry Time (UTC)"], &rows)
    })?;
    Ok(Exit::Done)
}

fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join("+")
}

impl TokenRow {
    fn new(resource: Resource) -> Option<Self> {
        let Resource::Token(token) = resource else { return None };
        Some(Self {
            name: token.name.to_string(),
            roles: match &token.spec.join_method {
                JoinMethod::Token => token.spec.roles.iter().map(ToString::to_string).collect(),
                JoinMethod::Openssh { openssh } => {
                    vec![
                        format!("openssh:{}", join(&openssh.names)),
                        format!("ports:{}", join(&openssh.ports)),
                    ]
                }
            },
            labels: token.metadata.labels,
            expires: token.metadata.expires.map(moment::rfc3339),
        })
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.roles.join(","),
            self.labels.to_string(),
            self.expires.clone().unwrap_or_else(|| "never".to_owned()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wayleave_config::Config;

    fn token(roles: &[SystemRole]) -> NewToken {
        let answer = CreateTokenResponse {
            name: "web".into(),
            secret: "0123abcd".into(),
            expires_ms: 1_700_000_000_000,
            ca_pins: vec![format!("sha256:{}", "ab".repeat(32))],
        };
        let proxy = Some("proxy.example.com:443".parse().unwrap());
        NewToken::new(answer, roles, Wall::from_ms(1_700_000_000_000), proxy)
    }

    #[test]
    fn the_printed_file_is_one_that_the_daemon_reads() {
        for roles in [&[SystemRole::Node][..], &[SystemRole::Proxy], &[SystemRole::Proxy, SystemRole::Node]] {
            let text = token(roles).config(roles);
            let config = Config::parse(&text, "printed.yaml");
            assert!(config.is_ok(), "{text}\n{}", config.unwrap_err());
        }
    }

    #[test]
    fn the_instructions_hold_token_pin_and_proxy() {
        let text = token(&[SystemRole::Node]).instructions(&[SystemRole::Node], "30m");
        for part in [
            "wayleave configure --roles node --token web.0123abcd --ca-pin sha256:abab",
            "sha256:abab",
            "proxy_server: proxy.example.com:443",
            "in 30m",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let json = serde_json::to_value(token(&[SystemRole::Node])).unwrap();
        assert_eq!(json["token"], "web.0123abcd");
    }
}
