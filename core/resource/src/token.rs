//! Join tokens. The secret is never part of the resource: Auth stores its hash apart from the name.

use crate::metadata::Metadata;
use crate::reader::{At, Fields};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use wayleave_vocab::{SystemRole, TokenName};

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
    pub join_method: JoinMethod,
}

/// How a joining process is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinMethod {
    /// By a shared secret.
    #[default]
    Token,
}

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
        let join_method = fields.or_default("join_method", |at| match at.text()? {
            "token" => Some(JoinMethod::Token),
            known if METHODS_NOT_BUILT.contains(&known) => {
                at.fail(format_args!("the join method {known} is not supported yet; there is token"))
            }
            other => at.fail(format_args!("{other:?} is no join method; there is token")),
        });
        for name in METHODS_NOT_BUILT.iter().chain(&["allow", "bot_name", "aws_iid_ttl"]) {
            fields.refuse(name, |_| false, "only the join method token is built");
        }
        fields.refuse("suggested_labels", |_| false, "labels are set where the agent is configured");
        fields.refuse(
            "suggested_agent_matcher_labels",
            |_| false,
            "labels are set where the agent is configured",
        );
        Some(Self { roles: roles?, join_method: join_method? })
    }
}
