//! Join tokens: made here, presented in `join.rs`.

use crate::audit_events::{Author, written};
use crate::auth_core::AuthCore;
use crate::keys;
use crate::records::put;
use crate::request_error::RequestError;
use crate::resource_store::put_operation;
use crate::token_secret::{SecretHash, generate};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use wayleave_api::auth::{CreateTokenRequest, CreateTokenResponse};
use wayleave_resource::{JoinMethod, Kind, Metadata, Resource, Token, TokenSpec};
use wayleave_runtime::random_bytes;
use wayleave_store::{Condition, StoreError};
use wayleave_vocab::{Labels, SystemRole, TokenName, Ttl};

/// Shortest life of a token.
pub(crate) const TOKEN_TTL_MIN: Duration = Duration::from_secs(1);

impl AuthCore {
    /// A new token for `by`, who has been found to be allowed to. The secret is in the answer and nowhere else.
    pub(crate) async fn create_token(
        &self,
        request: CreateTokenRequest,
        by: &Author,
    ) -> Result<CreateTokenResponse, RequestError> {
        let name = new_name(&request.name)?;
        let lifetimes = &self.config.lifetimes;
        let ttl =
            lifetime(request.ttl_ms, lifetimes.token_default, TOKEN_TTL_MIN, lifetimes.token_max, "a token")?;
        let expires = self.clock.wall().after(ttl);
        let token = Token {
            name: name.clone(),
            metadata: Metadata {
                labels: parse_labels(request.labels)?,
                expires: Some(expires),
                ..Metadata::default()
            },
            spec: TokenSpec { roles: parse_roles(&request.system_roles)?, join_method: JoinMethod::Token },
        };
        let secret = generate();
        let resource = Resource::Token(token);
        let key = keys::resource(Kind::Token, name.as_str())
            .ok_or_else(|| RequestError::Invalid(format!("{name} cannot be the name of a token")))?;
        let operations =
            vec![put_operation(&resource), put(keys::token_secret(&name), &SecretHash::of(&secret))];
        let event = written(&resource, true, by);
        let committed = self.commit_audited(vec![Condition::Absent(key)], operations, vec![event]).await;
        let committed = committed.map_err(|error| match error {
            StoreError::AlreadyExists { .. } => {
                RequestError::AlreadyExists(format!("there is a token {name} already"))
            }
            other => RequestError::store("create the token")(other),
        })?;
        self.mirror.seen(committed.revision).await;
        Ok(CreateTokenResponse {
            name: name.to_string(),
            secret: secret.expose_secret().to_owned(),
            expires_ms: expires.as_ms(),
            ca_pins: self.authorities.pins(),
        })
    }
}

/// The name as asked for, a random one if none is.
pub(crate) fn new_name(asked: &str) -> Result<TokenName, RequestError> {
    let name = match asked {
        "" => data_encoding::HEXLOWER.encode(&random_bytes::<8>()),
        name => name.to_owned(),
    };
    TokenName::parse(name).map_err(|error| RequestError::Invalid(error.to_string()))
}

/// A lifetime as asked for in milliseconds, 0 for the default.
pub(crate) fn lifetime(
    asked_ms: u64,
    default: Duration,
    min: Duration,
    max: Duration,
    what: &str,
) -> Result<Duration, RequestError> {
    let asked = match asked_ms {
        0 => default,
        ms => Duration::from_millis(ms),
    };
    if asked < min || asked > max {
        return Err(RequestError::Invalid(format!(
            "{what} lives from {} to {}, not {}",
            Ttl(min),
            Ttl(max),
            Ttl(asked)
        )));
    }
    Ok(asked)
}

fn parse_roles(roles: &[String]) -> Result<BTreeSet<SystemRole>, RequestError> {
    let mut set = BTreeSet::new();
    for role in roles {
        let role: SystemRole = role
            .parse()
            .map_err(|e: wayleave_vocab::ParseSystemRoleError| RequestError::Invalid(e.to_string()))?;
        match role {
            SystemRole::Auth => {
                return Err(RequestError::Invalid(
                    "an Auth Service does not join by token: it shares the backend".to_owned(),
                ));
            }
            SystemRole::Bot => return Err(RequestError::Invalid("machine users do not join yet".to_owned())),
            SystemRole::Proxy
            | SystemRole::Node
            | SystemRole::Kube
            | SystemRole::App
            | SystemRole::Db
            | SystemRole::WindowsDesktop
            | SystemRole::Discovery => set.insert(role),
        };
    }
    if set.is_empty() {
        return Err(RequestError::Invalid(
            "a token without roles lets nothing join: name at least one, such as node".to_owned(),
        ));
    }
    Ok(set)
}

pub(crate) fn parse_labels(labels: HashMap<String, String>) -> Result<Labels, RequestError> {
    Labels::try_from(labels.into_iter().collect::<std::collections::BTreeMap<_, _>>())
        .map_err(|error| RequestError::Invalid(error.to_string()))
}
