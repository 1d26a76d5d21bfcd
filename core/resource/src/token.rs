//! Join tokens. The secret is never part of the resource: Auth stores its hash apart from the name.

use crate::metadata::Metadata;
use crate::reader::{At, Fields};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use wayleave_vocab::{NodeName, SystemRole, TokenName};

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The public name.
    pub name: TokenName,
    /// Labels, expiry, revision, description.
    pub metadata: Metadata,
    /// What it is good for.
    pub spec: TokenSpec,
}

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenSpec {
    /// The system roles that a process may join with. At least one; never Auth.
    pub roles: BTreeSet<SystemRole>,
    /// How whoever presents it is verified.
    #[serde(flatten)]
    pub join_method: JoinMethod,
}

/// How a joining process is verified.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(tag = "join_method", rename_all = "snake_case")]
pub enum JoinMethod {
    /// By a shared secret.
    #[default]
    Token,
    /// Nothing joins: whoever holds the certified key publishes machines by a stock `ssh -R`.
    Openssh {
        /// What may be published.
        openssh: PublishGrant,
    },
}

/// What the holder of a key may publish by `ssh -R`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishGrant {
    /// Names of machines, at least one.
    pub names: BTreeSet<NodeName>,
    /// Ports under each of the names, at least one. Port 22 is the machine's SSH.
    pub ports: BTreeSet<u16>,
    /// The machine's sshd does not trust the cluster's `openssh` authority: port 22 is a TCP port like the others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tcp_only: bool,
    /// Fingerprint of the key that was certified for this token.
    pub key: String,
}

/// Most names and most ports of one grant.
pub const PUBLISHED_MAX: usize = 64;

const METHODS_NOT_BUILT: &[&str] = &[
    "azure",
    "azure_devops",
    "bitbucket",
    "bound_keypair",
    "circleci",
    "ec2",
    "env0",
    "gcp",
    "github",
    "gitlab",
    "iam",
    "kubernetes",
    "oracle",
    "spacelift",
    "terraform_cloud",
    "tpm",
];

impl TokenSpec {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let roles = fields.required("roles", |at| {
            let roles: BTreeSet<SystemRole> = at.each_of_one_or_more(At::parse)?;
            if roles.is_empty() {
                return at.fail("a token without roles lets nothing join: name at least one");
            }
            if roles.contains(&SystemRole::Auth) {
                return at.fail("an Auth Service does not join by token: it shares the backend");
            }
            if roles.contains(&SystemRole::Bot) {
                return at.fail("machine users do not join yet");
            }
            Some(roles)
        });
        let method = fields.or_default("join_method", |at| match at.text()? {
            "token" => Some("token"),
            "openssh" => Some("openssh"),
            known if METHODS_NOT_BUILT.contains(&known) => at.fail(format_args!(
                "the join method {known} is not supported yet; there are token and openssh"
            )),
            other => at.fail(format_args!("{other:?} is no join method; there are token and openssh")),
        });
        let openssh = fields.optional("openssh", PublishGrant::read);
        let whole = fields.at().clone();
        for name in METHODS_NOT_BUILT.iter().chain(&["allow", "bot_name", "aws_iid_ttl"]) {
            fields.refuse(name, |_| false, "only the join methods token and openssh are built");
        }
        fields.refuse("suggested_labels", |_| false, "labels are set where the agent is configured");
        fields.refuse(
            "suggested_agent_matcher_labels",
            |_| false,
            "labels are set where the agent is configured",
        );
        let join_method = match (method?, openssh?) {
            ("openssh", Some(openssh)) => JoinMethod::Openssh { openssh },
            ("openssh", None) => {
                return whole.fail("the join method openssh wants openssh: with names and ports");
            }
            (_, None) => JoinMethod::Token,
            (_, Some(_)) => return whole.fail("openssh: goes with join_method: openssh only"),
        };
        Some(Self { roles: roles?, join_method })
    }
}

impl PublishGrant {
    fn read(at: &At<'_>) -> Option<Self> {
        let mut fields = at.fields()?;
        let names: Option<BTreeSet<NodeName>> =
            fields.required("names", |at| at.each_of_one_or_more(At::parse));
        let ports: Option<BTreeSet<u16>> = fields.required("ports", |at| at.each_of_one_or_more(port));
        let tcp_only = fields.or_default("tcp_only", At::flag);
        let key = fields.required("key", At::line_of_text);
        fields.finish();
        let (names, ports) = (names?, ports?);
        for (what, count) in [("names", names.len()), ("ports", ports.len())] {
            if count == 0 || count > PUBLISHED_MAX {
                return at.fail(format_args!("{count} {what}: there are 1 to {PUBLISHED_MAX}"));
            }
        }
        Some(Self { names, ports, tcp_only: tcp_only?, key: key? })
    }

    /// Whether it covers a port of a machine. Letter case makes no difference, as in DNS.
    pub fn covers(&self, name: &NodeName, port: u16) -> bool {
        self.ports.contains(&port)
            && self.names.iter().any(|own| own.as_str().eq_ignore_ascii_case(name.as_str()))
    }
}

fn port(at: &At<'_>) -> Option<u16> {
    match at.number("a port")? {
        0 => at.fail("port 0 is no port that can be published"),
        port => Some(port),
    }
}
