//! Processes join, renew and take on more roles.
//!
//! A token is a name and a secret; only the hash of the secret is stored, apart from the name. Auth assigns the host id.
//! A process gets an instance certificate that names all its roles and one certificate for each role. Whoever presents
//! an unknown token, a wrong secret or an expired token is told the same.

use crate::audit_events;
use crate::auth_core::AuthCore;
use crate::authorities::{HostNames, SubjectKeys};
use crate::keys;
use crate::records::put;
use crate::request_error::RequestError;
use crate::token_secret::SecretHash;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use wayleave_api::auth::{HostCertificate, JoinRequest, JoinResponse, PublicKeys, RenewRequest, TrustBundle};
use wayleave_identity::HostPrincipal;
use wayleave_resource::{EnforcedBy, JoinMethod, Kind, Resource, Token};
use wayleave_runtime::random_bytes;
use wayleave_vocab::{ClusterName, HostId, NodeName, Secret, SystemRole, TokenName, Wall};

/// Most names that a process may have besides its own.
const EXTRA_NAMES_MAX: usize = 64;
/// What is told to whoever presents a token that does not count, whatever the reason.
const TOKEN_REFUSED: &str = "the token is not valid or has expired: ask for a new one with `way tokens add`";
/// Role of the certificate that names all roles.
pub(crate) const INSTANCE: &str = "Instance";

/// What was issued to a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostRecord {
    pub(crate) host_id: HostId,
    pub(crate) hostname: NodeName,
    pub(crate) system_roles: BTreeSet<SystemRole>,
    /// Names and addresses besides the host name.
    pub(crate) extra_names: BTreeSet<String>,
    pub(crate) joined_at: Wall,
    pub(crate) renewed_at: Wall,
    /// Public name of the token, or `static`.
    pub(crate) token: String,
    /// Pin of the host CA key that signed its certificates.
    pub(crate) signed_by: String,
}

/// What a token was found to allow.
struct TokenGrant {
    name: String,
    roles: BTreeSet<SystemRole>,
}

/// A request to join or to extend, read.
struct JoinWish {
    roles: BTreeSet<SystemRole>,
    hostname: NodeName,
    extra_names: BTreeSet<String>,
    keys: Vec<SubjectKeys>,
}

impl JoinWish {
    fn parse(request: &JoinRequest) -> Result<Self, RequestError> {
        let roles = parse_roles(&request.system_roles)?;
        let hostname = NodeName::parse(request.hostname.as_str())
            .map_err(|error| RequestError::Invalid(error.to_string()))?;
        let extra_names = parse_names(&request.additional_principals)?;
        let keys = parse_keys(&request.keys, request.system_roles.len())?;
        Ok(Self { roles, hostname, extra_names, keys })
    }
}

impl AuthCore {
    /// A new process: it gets a host id.
    pub(crate) async fn join(
        &self,
        request: JoinRequest,
        client: SocketAddr,
    ) -> Result<JoinResponse, RequestError> {
        let wish = JoinWish::parse(&request);
        let grant = self.token_grant(&request).await;
        let result = match (wish, grant) {
            (Err(error), _) => Err(error),
            (Ok(_), Err(error)) => Err(error),
            (Ok(wish), Ok(grant)) => self.join_granted(&request, wish, grant, client).await,
        };
        if let Err(error) = &result {
            let reason = error.full_reason();
            let token = audit_events::public_name(&request.token_name);
            tracing::info!(%reason, token, "a join was refused");
            self.note(audit_events::join_refused(&request, &reason, client)).await;
        }
        result
    }

    async fn join_granted(
        &self,
        request: &JoinRequest,
        wish: JoinWish,
        grant: TokenGrant,
        client: SocketAddr,
    ) -> Result<JoinResponse, RequestError> {
        allow_roles(&wish.roles, &grant.roles)?;
        let now = self.clock.wall();
        let record = HostRecord {
            host_id: HostId::from_random(random_bytes()),
            hostname: wish.hostname,
            system_roles: wish.roles,
            extra_names: wish.extra_names,
            joined_at: now,
            renewed_at: now,
            token: grant.name,
            signed_by: self.authorities.host_signer_pin(),
        };
        self.check_names(&record, None)?;
        let response =
            self.issue_host(&record, &record.system_roles, &request.system_roles, &wish.keys, now)?;
        let event = audit_events::joined(&record, client);
        let write = put(keys::host(record.host_id), &record);
        self.commit_audited(Vec::new(), vec![write], vec![event])
            .await
            .map_err(RequestError::store("join"))?;
        tracing::info!(host_id = %record.host_id, roles = ?record.system_roles, "a process joined");
        Ok(response)
    }

    /// New certificates for the caller, with the roles it has or fewer.
    pub(crate) async fn renew(
        &self,
        caller: &HostPrincipal,
        request: RenewRequest,
    ) -> Result<JoinResponse, RequestError> {
        let now = self.clock.wall();
        let mut record = self.host_record(caller.host_id).await?;
        let (wanted, order) = match request.system_roles.as_slice() {
            [] => {
                let order = caller.system_roles.iter().map(ToString::to_string).collect();
                (caller.system_roles.clone(), order)
            }
            some => (parse_roles(some)?, some.to_vec()),
        };
        if !wanted.is_subset(&caller.system_roles) {
            return Err(RequestError::denied(
                "renewal gives the roles that a certificate has: join again with a token for more",
            ));
        }
        let keys = parse_keys(&request.keys, order.len())?;
        let before = record.clone();
        record.extra_names = parse_names(&request.additional_principals)?;
        record.renewed_at = now;
        record.signed_by = self.authorities.host_signer_pin();
        self.check_names(&record, Some(&before))?;
        let response = self.issue_host(&record, &wanted, &order, &keys, now)?;
        let event = audit_events::host_certificates(&record, now.after(self.config.lifetimes.host));
        let write = put(keys::host(record.host_id), &record);
        self.commit_audited(Vec::new(), vec![write], vec![event])
            .await
            .map_err(RequestError::store("renew"))?;
        Ok(response)
    }

    /// The caller joins again with a token that allows more: the union of roles, under the same host id.
    pub(crate) async fn extend_roles(
        &self,
        caller: &HostPrincipal,
        request: JoinRequest,
        client: SocketAddr,
    ) -> Result<JoinResponse, RequestError> {
        let now = self.clock.wall();
        let wish = JoinWish::parse(&request)?;
        let grant = match self.token_grant(&request).await {
            Ok(grant) => grant,
            Err(error) => {
                self.note(audit_events::join_refused(&request, &error.full_reason(), client)).await;
                return Err(error);
            }
        };
        let allowed = grant.roles.union(&caller.system_roles).copied().collect();
        allow_roles(&wish.roles, &allowed)?;
        let mut record = self.host_record(caller.host_id).await?;
        let before = record.clone();
        record.hostname = wish.hostname;
        record.system_roles = wish.roles;
        record.extra_names = wish.extra_names;
        record.renewed_at = now;
        record.signed_by = self.authorities.host_signer_pin();
        record.token = grant.name;
        self.check_names(&record, Some(&before))?;
        let response =
            self.issue_host(&record, &record.system_roles, &request.system_roles, &wish.keys, now)?;
        let event = audit_events::joined(&record, client);
        let write = put(keys::host(record.host_id), &record);
        self.commit_audited(Vec::new(), vec![write], vec![event])
            .await
            .map_err(RequestError::store("join"))?;
        Ok(response)
    }

    async fn host_record(&self, id: HostId) -> Result<HostRecord, RequestError> {
        let record = self.records.read::<HostRecord>(&keys::host(id)).await?;
        record.map(|stored| stored.value).ok_or_else(|| {
            RequestError::denied(
                "this process is not known any more: delete its data directory and join with a new token",
            )
        })
    }

    /// What the presented token allows.
    async fn token_grant(&self, request: &JoinRequest) -> Result<TokenGrant, RequestError> {
        let (name, secret) = split_token(&request.token_name, &request.token_secret);
        let stored = match TokenName::parse(name.as_str()) {
            Ok(name) => self.stored_token(&name, &secret).await?,
            Err(_) => Err("the token has no name that one can have".to_owned()),
        };
        let reason = match stored {
            Ok(token) => return Ok(TokenGrant { name: token.name.to_string(), roles: token.spec.roles }),
            Err(reason) => reason,
        };
        if let Some(roles) = self.static_token(&request.token_name, &request.token_secret) {
            return Ok(TokenGrant { name: "static".to_owned(), roles });
        }
        Err(RequestError::Denied { told: TOKEN_REFUSED.to_owned(), reason })
    }

    /// The token of this name if the secret is its; otherwise why not. Costs the same either way.
    async fn stored_token(
        &self,
        name: &TokenName,
        secret: &Secret,
    ) -> Result<Result<Token, String>, RequestError> {
        let hash = self.records.read::<SecretHash>(&keys::token_secret(name)).await?;
        let hash = hash.map_or_else(|| self.no_secret.clone(), |stored| stored.value);
        let matches = hash.matches(secret);
        let resource = match keys::resource(Kind::Token, name.as_str()) {
            Some(key) => {
                self.records.backend().get(&key).await.map_err(RequestError::store("read a token"))?
            }
            None => None,
        };
        let parsed = resource
            .and_then(|item| String::from_utf8(item.value.to_vec()).ok())
            .and_then(|text| Resource::parse_json(&text).ok());
        let Some(Resource::Token(token)) = parsed else {
            return Ok(Err(format!("there is no token {}", audit_events::public_name(name.as_str()))));
        };
        if token.spec.join_method != JoinMethod::Token {
            return Ok(Err(format!("the token {name} is for machines without an agent")));
        }
        if !matches {
            return Ok(Err(format!("wrong secret for the token {name}")));
        }
        if token.metadata.expires.is_some_and(|expires| expires <= self.clock.wall()) {
            return Ok(Err(format!("the token {name} has expired")));
        }
        Ok(Ok(token))
    }

    /// The roles of the static token that was presented, whole or cut at its last dot.
    fn static_token(&self, name: &str, secret: &str) -> Option<BTreeSet<SystemRole>> {
        let whole = match name.is_empty() {
            true => secret.to_owned(),
            false => format!("{name}.{secret}"),
        };
        let whole = Secret::new(whole);
        let mut found = None;
        for token in &self.static_tokens {
            // No early end: the time tells nothing about which token is close.
            if token.hash.matches(&whole) {
                found = Some(token.roles.clone());
            }
        }
        found
    }

    /// Refuses names under which a process would be believed for another one. What it was called `before` stays its own,
    /// whoever came later.
    pub(crate) fn check_names(
        &self,
        record: &HostRecord,
        before: Option<&HostRecord>,
    ) -> Result<(), RequestError> {
        let cluster = self.authorities.cluster();
        let own_id = record.host_id.to_string();
        let names =
            std::iter::once(record.hostname.as_str()).chain(record.extra_names.iter().map(String::as_str));
        for name in names.clone() {
            let bare = bare_name(name, cluster);
            if bare != own_id && bare.parse::<HostId>().is_ok() {
                return Err(RequestError::denied(format!("{name} is a host id, which no process chooses")));
            }
        }
        let is_new = |name: &&str| {
            before
                .is_none_or(|before| before.hostname.as_str() != *name && !before.extra_names.contains(*name))
        };
        for name in names.filter(is_new) {
            let is_extra = record.extra_names.contains(name);
            if let Some(taken) = self.name_taken(record, &bare_name(name, cluster), is_extra) {
                return Err(RequestError::denied(taken));
            }
        }
        Ok(())
    }

    /// Why another process is known by this name, if one is. Nodes may share a host name, which is then ambiguous;
    /// whatever is no node is never called like one, and no agent like a proxy.
    fn name_taken(&self, record: &HostRecord, bare: &str, is_extra: bool) -> Option<String> {
        let cluster = self.authorities.cluster();
        let is_node = record.system_roles.contains(&SystemRole::Node);
        let online = self.routes.online();
        let is_node_name = |mirrored: &crate::mirror::Mirrored| match &mirrored.resource {
            Resource::Node(node) => {
                node.host_id != record.host_id
                    && bare_name(node.spec.hostname.as_str(), cluster) == bare
                    && (!is_node
                        || node.spec.enforced_by == EnforcedBy::Proxy
                        || (is_extra && online.contains(&node.host_id)))
            }
            _ => false,
        };
        if self.mirror.all(Kind::Node).iter().any(|mirrored| is_node_name(mirrored)) {
            return Some(format!("{bare} is the name of another node: choose another one"));
        }
        let is_proxy_name = |mirrored: &crate::mirror::Mirrored| match &mirrored.resource {
            Resource::Proxy(proxy) => {
                let addresses =
                    proxy.spec.public_addrs.iter().any(|at| bare_name(at.host(), cluster) == bare);
                let is_name = is_extra && bare_name(&proxy.spec.hostname, cluster) == bare;
                proxy.host_id != record.host_id && (addresses || is_name)
            }
            _ => false,
        };
        let is_proxy = record.system_roles.contains(&SystemRole::Proxy);
        if !is_proxy && self.mirror.all(Kind::Proxy).iter().any(|mirrored| is_proxy_name(mirrored)) {
            return Some(format!("{bare} is the name of a proxy: choose another one"));
        }
        None
    }

    /// The certificates of a process: the instance's, then one for each role in `order`.
    fn issue_host(
        &self,
        record: &HostRecord,
        roles: &BTreeSet<SystemRole>,
        order: &[String],
        keys: &[SubjectKeys],
        now: Wall,
    ) -> Result<JoinResponse, RequestError> {
        let names = self.host_names(record);
        let not_after = now.after(self.config.lifetimes.host);
        let mut certificates = Vec::with_capacity(keys.len());
        let instance = std::iter::once((INSTANCE.to_owned(), roles.clone()));
        let single = order.iter().map(|role| Ok((role.parse::<SystemRole>()?.to_string(), parse_one(role)?)));
        let single: Result<Vec<_>, wayleave_vocab::ParseSystemRoleError> = single.collect();
        let single = single.map_err(|error| RequestError::Invalid(error.to_string()))?;
        for ((role, system_roles), keys) in instance.chain(single).zip(keys) {
            let cluster = self.authorities.cluster().clone();
            let principal = HostPrincipal { host_id: record.host_id, cluster, system_roles, not_after };
            let issued = self.authorities.issue_host(&principal, &names, keys, now)?;
            certificates.push(HostCertificate {
                role,
                tls_chain_pem: issued.tls_chain_pem,
                ssh_certificate: issued.ssh_certificate,
            });
        }
        Ok(JoinResponse {
            host_id: record.host_id.to_string(),
            cluster_name: self.authorities.cluster().to_string(),
            certificates,
            trust: Some(self.trust_bundle()?),
        })
    }

    /// What a process believes from the start.
    pub(crate) fn trust_bundle(&self) -> Result<TrustBundle, RequestError> {
        let published = self
            .snapshots
            .current()
            .ok_or_else(|| RequestError::Busy("the Auth Service is still starting, try again".to_owned()))?;
        Ok(TrustBundle {
            snapshot: Some(published.snapshot.clone()),
            head: Some(published.head.clone()),
            policy_keys_pem: self.authorities.policy_keys(),
            host_ca_pem: self.authorities.host_ca_pem(),
        })
    }

    fn host_names(&self, record: &HostRecord) -> HostNames {
        let cluster = self.authorities.cluster();
        let mut names = HostNames {
            dns_names: vec![
                record.hostname.to_string(),
                record.host_id.to_string(),
                format!("{}.{cluster}", record.hostname),
                format!("{}.{cluster}", record.host_id),
            ],
            ip_addresses: Vec::new(),
        };
        for name in &record.extra_names {
            match name.parse::<IpAddr>() {
                Ok(address) => names.ip_addresses.push(address),
                Err(_) if names.dns_names.contains(name) => {}
                Err(_) => names.dns_names.push(name.clone()),
            }
        }
        names
    }
}

/// A name as it is compared: in lower case, and without the cluster, because `web-1` is `web-1.<cluster>`.
pub(crate) fn bare_name(name: &str, cluster: &ClusterName) -> String {
    let name = name.to_ascii_lowercase();
    let stem = name.strip_suffix(cluster.as_str()).and_then(|stem| stem.strip_suffix('.'));
    stem.map(str::to_owned).unwrap_or(name)
}

fn parse_one(role: &str) -> Result<BTreeSet<SystemRole>, wayleave_vocab::ParseSystemRoleError> {
    Ok([role.parse::<SystemRole>()?].into())
}

/// Name and secret, however the client cut `name.secret`.
fn split_token(name: &str, secret: &str) -> (String, Secret) {
    let whole = match (name, secret) {
        ("", whole) | (whole, "") => whole,
        (name, secret) => return (name.to_owned(), Secret::new(secret.to_owned())),
    };
    if let Some((name, secret)) = whole.rsplit_once('.') {
        return (name.to_owned(), Secret::new(secret.to_owned()));
    }
    (name.to_owned(), Secret::new(secret.to_owned()))
}

fn parse_roles(roles: &[String]) -> Result<BTreeSet<SystemRole>, RequestError> {
    let mut set = BTreeSet::new();
    for role in roles {
        let role: SystemRole = role
            .parse()
            .map_err(|e: wayleave_vocab::ParseSystemRoleError| RequestError::Invalid(e.to_string()))?;
        if matches!(role, SystemRole::Auth | SystemRole::Bot) {
            return Err(RequestError::Invalid(format!("the system role {role} is not given by joining")));
        }
        if !set.insert(role) {
            return Err(RequestError::Invalid(format!("the system role {role} is asked for twice")));
        }
    }
    if set.is_empty() {
        return Err(RequestError::Invalid("no system role is asked for".to_owned()));
    }
    Ok(set)
}

fn allow_roles(wanted: &BTreeSet<SystemRole>, allowed: &BTreeSet<SystemRole>) -> Result<(), RequestError> {
    let missing: Vec<String> = wanted.difference(allowed).map(ToString::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let has: Vec<String> = allowed.iter().map(ToString::to_string).collect();
    Err(RequestError::denied(format!(
        "the token is for {}, it does not allow {}: ask for one with `way tokens add --type {}`",
        has.join(", "),
        missing.join(", "),
        wanted.iter().map(|role| role.to_string().to_lowercase()).collect::<Vec<_>>().join(",")
    )))
}

fn parse_names(names: &[String]) -> Result<BTreeSet<String>, RequestError> {
    if names.len() > EXTRA_NAMES_MAX {
        return Err(RequestError::Invalid(format!("{} extra names, at most {EXTRA_NAMES_MAX}", names.len())));
    }
    let name = |name: &String| match name.parse::<IpAddr>() {
        Ok(address) => Ok(address.to_string()),
        Err(_) => NodeName::parse(name.as_str())
            .map(|name| name.to_string())
            .map_err(|error| RequestError::Invalid(error.to_string())),
    };
    names.iter().map(name).collect()
}

fn parse_keys(keys: &[PublicKeys], roles: usize) -> Result<Vec<SubjectKeys>, RequestError> {
    if keys.len() != roles.saturating_add(1) {
        return Err(RequestError::Invalid(format!(
            "{} key pairs for {roles} system roles: there must be one for the instance and one for each role",
            keys.len()
        )));
    }
    keys.iter().map(|keys| SubjectKeys::parse(Some(keys))).collect()
}
