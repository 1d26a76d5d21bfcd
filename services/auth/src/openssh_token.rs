//! Tokens of the type `openssh`: for machines that publish themselves by a stock `ssh -R`.
//!
//! The secret is a key that never leaves the machine: a stock client proves that it holds it, and a proxy learns nothing
//! that it could use elsewhere.

use crate::audit_events::{Author, written};
use crate::auth_core::AuthCore;
use crate::keys;
use crate::request_error::RequestError;
use crate::resource_store::put_operation;
use crate::tokens::{TOKEN_TTL_MIN, lifetime, new_name, parse_labels};
use std::collections::BTreeSet;
use std::time::Duration;
use wayleave_api::auth::{CreateOpensshTokenRequest, CreateOpensshTokenResponse};
use wayleave_ca::{Validity, ssh_publisher_template};
use wayleave_identity::Publisher;
use wayleave_resource::{
    JoinMethod, Kind, Metadata, PUBLISHED_MAX, PublishGrant, Resource, Token, TokenSpec,
};
use wayleave_ssh::PublicKey;
use wayleave_store::{Condition, StoreError};
use wayleave_vocab::{NodeName, SystemRole};

/// Life of such a token when nobody says: a machine comes back with it after its connection broke.
const TTL_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Longest line of a public key.
const KEY_LINE_BYTES_MAX: usize = 1024;

impl AuthCore {
    /// A new token and the certificate that goes with it, for `by`, who has been found to be allowed to.
    pub(crate) async fn create_openssh_token(
        &self,
        request: CreateOpensshTokenRequest,
        by: &Author,
    ) -> Result<CreateOpensshTokenResponse, RequestError> {
        let name = new_name(&request.name)?;
        let (names, ports) = (parse_names(&request.names)?, parse_ports(&request.ports)?);
        let key = parse_key(&request.ssh_public_key)?;
        let max = self.config.lifetimes.token_max;
        let ttl = lifetime(request.ttl_ms, TTL_DEFAULT.min(max), TOKEN_TTL_MIN, max, "a token")?;
        let validity = Validity::new(ttl, self.clock.wall());
        let grant = PublishGrant {
            names: names.clone(),
            ports: ports.clone(),
            tcp_only: request.tcp_only,
            key: key.fingerprint(),
        };
        let resource = Resource::Token(Token {
            name: name.clone(),
            metadata: Metadata {
                labels: parse_labels(request.labels)?,
                expires: Some(validity.not_after),
                ..Metadata::default()
            },
            spec: TokenSpec {
                roles: [SystemRole::Node].into(),
                join_method: JoinMethod::Openssh { openssh: grant },
            },
        });
        let cluster = self.authorities.cluster().clone();
        let tcp_only = request.tcp_only;
        let publisher = Publisher { token: name.clone(), cluster, names, ports, tcp_only };
        let certificate =
            self.authorities.sign_by_host_ca(ssh_publisher_template(&publisher, validity), key)?;
        let stored_at = keys::resource(Kind::Token, name.as_str())
            .ok_or_else(|| RequestError::Invalid(format!("{name} cannot be the name of a token")))?;
        let (condition, event) = (Condition::Absent(stored_at), written(&resource, true, by));
        let committed =
            self.commit_audited(vec![condition], vec![put_operation(&resource)], vec![event]).await;
        let committed = committed.map_err(|error| match error {
            StoreError::AlreadyExists { .. } => {
                RequestError::AlreadyExists(format!("there is a token {name} already"))
            }
            other => RequestError::store("create the token")(other),
        })?;
        self.mirror.seen(committed.revision).await;
        Ok(CreateOpensshTokenResponse {
            name: name.to_string(),
            ssh_certificate: certificate.to_openssh(),
            expires_ms: validity.not_after.as_ms(),
            host_ca_ssh: self.authorities.host_ca_ssh(),
            openssh_ca_ssh: self.authorities.openssh_ca_ssh(),
        })
    }
}

fn parse_names(names: &[String]) -> Result<BTreeSet<NodeName>, RequestError> {
    if names.is_empty() || names.len() > PUBLISHED_MAX {
        return Err(RequestError::Invalid(format!("a token is for 1 to {PUBLISHED_MAX} names: use --names")));
    }
    let name = |name: &String| NodeName::parse(name.as_str());
    let names: Result<_, _> = names.iter().map(name).collect();
    names.map_err(|error| RequestError::Invalid(error.to_string()))
}

fn parse_ports(ports: &[u32]) -> Result<BTreeSet<u16>, RequestError> {
    if ports.is_empty() || ports.len() > PUBLISHED_MAX {
        return Err(RequestError::Invalid(format!("a token is for 1 to {PUBLISHED_MAX} ports: use --ports")));
    }
    let port = |port: &u32| u16::try_from(*port).ok().filter(|port| *port != 0);
    let ports: Option<_> = ports.iter().map(port).collect();
    ports.ok_or_else(|| RequestError::Invalid("ports go from 1 to 65535".to_owned()))
}

fn parse_key(line: &str) -> Result<PublicKey, RequestError> {
    let key = (line.len() <= KEY_LINE_BYTES_MAX).then(|| PublicKey::from_openssh(line));
    match key {
        Some(Ok(key @ PublicKey::Ed25519(_))) => Ok(key),
        Some(_) | None => Err(RequestError::Invalid("the SSH public key must be an Ed25519 key".to_owned())),
    }
}
