//! Machines without an agent, which publish themselves at a proxy by `ssh -R`.
//!
//! A name is held by one publication at a time; the machine's host key stays with the name. The proxy, which is the agent
//! of such a machine, gets an SSH host certificate for it and nothing else of it: no identity that could call Auth, keep
//! a tunnel or write events as the machine.

use crate::audit_events;
use crate::auth_core::AuthCore;
use crate::join::{HostRecord, bare_name};
use crate::keys;
use crate::presence::TOKEN;
use crate::records::{Stored, put};
use crate::request_error::RequestError;
use crate::resource_store::put_operation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;
use wayleave_api::auth::{
    ForgetHostKeyRequest, ForgetHostKeyResponse, PublishRequest, PublishResponse, WithdrawRequest,
};
use wayleave_audit::{Event, Outcome, Text};
use wayleave_ca::{Validity, ssh_host_template};
use wayleave_identity::{HostPrincipal, PUBLISH_OPTION, Principal, Publisher, SSH_EXTENSION};
use wayleave_resource::{
    EnforcedBy, JoinMethod, Kind, Metadata, Node, NodeSpec, PUBLISHED_MAX, PublishGrant, Resource, Token,
};
use wayleave_runtime::random_bytes;
use wayleave_ssh::{CertType, Certificate, LoginProof, PublicKey};
use wayleave_store::{Condition, Operation, StoreError};
use wayleave_vocab::{HostId, Incarnation, Labels, NodeName, SessionId, SystemRole, Wall};

/// The port that is a machine's SSH.
const SSH_PORT: u16 = 22;
/// Longest line of a public key.
const KEY_LINE_BYTES_MAX: usize = 8 * 1024;
const ATTEMPTS_MAX: usize = 8;
/// How long a publication may have no route yet.
const ROUTE_EXPECTED_WITHIN: Duration = Duration::from_secs(60);

/// What is known of a published name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PublishedRecord {
    pub(crate) host_id: HostId,
    pub(crate) name: NodeName,
    /// The host key of the machine's sshd, one line; absent before the first that was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) host_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) holder: Option<Holder>,
    /// Since when that one.
    held_since: Wall,
}

/// Who publishes a name now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Holder {
    pub(crate) proxy: HostId,
    pub(crate) incarnation: Incarnation,
    pub(crate) publication: SessionId,
}

/// A request to publish, read.
struct Wish {
    proof: LoginProof,
    holder: Holder,
    name: NodeName,
    ports: BTreeSet<u16>,
    target_key: Option<String>,
    shown_key: PublicKey,
    client_address: String,
}

impl Wish {
    fn parse(caller: HostId, request: &PublishRequest) -> Result<Self, RequestError> {
        let invalid = |error: &dyn std::fmt::Display| RequestError::Invalid(error.to_string());
        let proof = LoginProof::decode(&request.proof).map_err(|e| invalid(&e))?;
        let publication = request.publication.parse().map_err(|e| invalid(&e))?;
        let name = NodeName::parse(request.name.as_str()).map_err(|e| invalid(&e))?;
        let port = |port: &u32| u16::try_from(*port).ok().filter(|port| *port != 0);
        let ports: Option<BTreeSet<u16>> = request.ports.iter().take(PUBLISHED_MAX).map(port).collect();
        let ports = ports.filter(|ports| !ports.is_empty() && request.ports.len() <= PUBLISHED_MAX);
        let ports =
            ports.ok_or_else(|| RequestError::Invalid("ports that cannot be published".to_owned()))?;
        let target_key = match request.target_host_key.as_str() {
            "" => None,
            line => Some(parse_key(line)?.to_openssh()),
        };
        let holder = Holder { proxy: caller, incarnation: Incarnation(request.incarnation), publication };
        let shown_key = parse_key(&request.ssh_public_key)?;
        let client_address = request.client_address.chars().take(128).collect();
        Ok(Self { proof, holder, name, ports, target_key, shown_key, client_address })
    }
}

fn parse_key(line: &str) -> Result<PublicKey, RequestError> {
    if line.len() > KEY_LINE_BYTES_MAX {
        return Err(RequestError::Invalid("an SSH public key is too long".to_owned()));
    }
    PublicKey::from_openssh(line).map_err(|_| RequestError::Invalid("not an OpenSSH public key".to_owned()))
}

impl AuthCore {
    /// Publishes a machine that is connected to the calling proxy, renews that, or adds ports.
    pub(crate) async fn publish(
        &self,
        caller: &HostPrincipal,
        request: PublishRequest,
    ) -> Result<PublishResponse, RequestError> {
        let wish = Wish::parse(caller.host_id, &request)?;
        let published = self.publish_wish(caller, &wish).await;
        if let Err(error @ (RequestError::Denied { .. } | RequestError::AlreadyExists(_))) = &published {
            let reason = error.full_reason();
            tracing::info!(name = %wish.name, reason, "a publication was refused");
            self.note(publish_event(&wish, None, &publisher_name(&wish.proof), Some(&reason))).await;
        }
        published
    }

    async fn publish_wish(
        &self,
        caller: &HostPrincipal,
        wish: &Wish,
    ) -> Result<PublishResponse, RequestError> {
        let publisher = self.publisher(caller, &wish.proof)?;
        if let Some(port) = wish.ports.iter().find(|port| !publisher.covers(&wish.name, **port)) {
            let text = format!("the token {} is not for port {port} of {}", publisher.token, wish.name);
            return Err(RequestError::denied(text));
        }
        let key = keys::published_as(&wish.name);
        for _ in 0..ATTEMPTS_MAX {
            let stored = self.records.read::<PublishedRecord>(&key).await?;
            let condition = match &stored {
                Some(stored) => Condition::RevisionIs(key.clone(), stored.revision),
                None => Condition::Absent(key.clone()),
            };
            let plan = self.plan_publication(wish, &publisher, stored).await?;
            let mut operations = vec![put(key.clone(), &plan.record)];
            let node = Resource::from(plan.node.clone());
            let before = self.mirror.get(Kind::Node, &plan.record.host_id.to_string());
            if before.is_none_or(|before| before.resource != node) {
                operations.push(put_operation(&node));
            }
            let host_id = plan.record.host_id;
            let token = publisher.token.as_str();
            let events = plan.is_new.then(|| publish_event(wish, Some(host_id), token, None));
            match self.commit_audited(vec![condition], operations, events.into_iter().collect()).await {
                Ok(committed) => {
                    self.mirror.seen(committed.revision).await;
                    return self.published(wish, plan);
                }
                Err(
                    StoreError::Conflict { .. }
                    | StoreError::AlreadyExists { .. }
                    | StoreError::NotFound { .. },
                ) => {}
                Err(error) => return Err(RequestError::store("publish a machine")(error)),
            }
        }
        Err(RequestError::Conflict(format!("{} is being published by several at once", wish.name)))
    }

    /// The publisher, if the proof is of a connection to the calling proxy and its certificate counts.
    fn publisher(&self, caller: &HostPrincipal, proof: &LoginProof) -> Result<Publisher, RequestError> {
        let refuse = |error: &dyn std::fmt::Display| RequestError::denied(format!("the publisher: {error}"));
        let proven = proof.verify().map_err(|e| refuse(&e))?;
        if self.certified_host(&proven.host_key) != Some(caller.host_id) {
            return Err(RequestError::denied("the publisher did not connect to the calling proxy"));
        }
        let now = self.clock.wall();
        let certificate = &proven.certificate;
        certificate
            .verify(&self.authorities.host_ca_keys(), CertType::User, None, &[PUBLISH_OPTION], now)
            .map_err(|e| refuse(&e))?;
        let option = certificate.critical_options().get(PUBLISH_OPTION);
        let option = option.ok_or_else(|| RequestError::denied("the certificate is no publisher's"))?;
        let publisher = Publisher::decode(option).map_err(|e| refuse(&e))?;
        if publisher.cluster != *self.authorities.cluster() {
            return Err(RequestError::denied("the publisher's certificate is of another cluster"));
        }
        Ok(publisher)
    }

    /// The host id in a host certificate of this cluster that counts now.
    pub(crate) fn certified_host(&self, blob: &[u8]) -> Option<HostId> {
        let certificate = Certificate::parse(blob).ok()?;
        let authorities = self.authorities.host_ca_keys();
        certificate.verify(&authorities, CertType::Host, None, &[], self.clock.wall()).ok()?;
        match Principal::decode(certificate.extensions().get(SSH_EXTENSION)?.as_bytes()).ok()? {
            Principal::Host(host) if host.cluster == *self.authorities.cluster() => Some(host.host_id),
            Principal::Host(_) | Principal::User(_) => None,
        }
    }

    /// What the token of a publisher allows now.
    fn grant(
        &self,
        publisher: &Publisher,
        proof: &LoginProof,
    ) -> Result<(Token, PublishGrant), RequestError> {
        let name = &publisher.token;
        let gone = || RequestError::denied(format!("there is no token {name} any more, or it has expired"));
        let mirrored = self.mirror.get(Kind::Token, name.as_str()).ok_or_else(gone)?;
        let Resource::Token(token) = &mirrored.resource else { return Err(gone()) };
        if token.metadata.expires.is_some_and(|expires| expires <= self.clock.wall()) {
            return Err(gone());
        }
        let JoinMethod::Openssh { openssh } = &token.spec.join_method else { return Err(gone()) };
        let key = proof.verify().map(|proven| proven.certificate.key().fingerprint());
        if key.as_deref() != Ok(openssh.key.as_str()) {
            return Err(RequestError::denied(format!("the token {name} is for another key")));
        }
        Ok((token.clone(), openssh.clone()))
    }

    async fn plan_publication(
        &self,
        wish: &Wish,
        publisher: &Publisher,
        stored: Option<Stored<PublishedRecord>>,
    ) -> Result<Plan, RequestError> {
        let (name, now) = (&wish.name, self.clock.wall());
        let mut record = match stored {
            Some(stored) => stored.value,
            None => PublishedRecord {
                host_id: HostId::from_random(random_bytes()),
                name: name.clone(),
                host_key: None,
                holder: None,
                held_since: now,
            },
        };
        // A stolen machine does not come back: its id stays with its name, whatever token it brings.
        self.mirror.policy().check_host_lock(&record.host_id, now)?;
        let is_new = record.holder.as_ref() != Some(&wish.holder);
        let (labels, tcp_only) = match self.running(&record, wish, is_new)? {
            Some(node) => (node.metadata.labels, node.spec.tcp_only),
            None => self.granted(publisher, wish)?,
        };
        if is_new {
            self.check_free(&record).await?;
        }
        let has_ssh = !tcp_only && wish.ports.contains(&SSH_PORT);
        if has_ssh {
            pin(&mut record, wish)?;
        }
        if is_new {
            record.held_since = now;
        }
        record.holder = Some(wish.holder.clone());
        let tcp_ports = wish.ports.iter().copied().filter(|port| !has_ssh || *port != SSH_PORT).collect();
        let spec = NodeSpec {
            hostname: record.name.clone(),
            cmd_labels: Default::default(),
            enforced_by: EnforcedBy::Proxy,
            tcp_ports,
            tcp_only: !has_ssh,
            version: String::new(),
        };
        let metadata = Metadata { labels, ..Metadata::default() };
        let node = Node { host_id: record.host_id, metadata, spec };
        Ok(Plan { record, node, is_new })
    }

    /// The node of a publication that goes on as it is. A token is what one begins with: it is not asked for again.
    fn running(
        &self,
        record: &PublishedRecord,
        wish: &Wish,
        is_new: bool,
    ) -> Result<Option<Node>, RequestError> {
        if is_new {
            return Ok(None);
        }
        let mirrored = self.mirror.get(Kind::Node, &record.host_id.to_string());
        let Some(Resource::Node(node)) = mirrored.map(|mirrored| mirrored.resource.clone()) else {
            return Err(RequestError::denied(format!("{} was removed from the cluster", record.name)));
        };
        let has =
            |port: &u16| node.spec.tcp_ports.contains(port) || (*port == SSH_PORT && !node.spec.tcp_only);
        Ok(wish.ports.iter().all(has).then_some(node))
    }

    /// Labels of what the token allows to publish, and whether it has no SSH to enter.
    fn granted(&self, publisher: &Publisher, wish: &Wish) -> Result<(Labels, bool), RequestError> {
        let (token, grant) = self.grant(publisher, &wish.proof)?;
        if let Some(port) = wish.ports.iter().find(|port| !grant.covers(&wish.name, **port)) {
            let text = format!("the token {} is not for port {port} of {}", token.name, wish.name);
            return Err(RequestError::denied(text));
        }
        let mut labels = token.metadata.labels;
        labels
            .insert(TOKEN.to_owned(), token.name.to_string())
            .map_err(|error| RequestError::Invalid(error.to_string()))?;
        Ok((labels, grant.tcp_only))
    }

    /// Refuses a name that something else has, or another publication that lives.
    async fn check_free(&self, record: &PublishedRecord) -> Result<(), RequestError> {
        let (name, cluster) = (&record.name, self.authorities.cluster());
        let bare = bare_name(name.as_str(), cluster);
        let is_others = |resource: &Resource| match resource {
            Resource::Node(node) => {
                node.host_id != record.host_id && bare_name(node.spec.hostname.as_str(), cluster) == bare
            }
            _ => false,
        };
        // `web-1.<cluster>` is `web-1`, and one machine has one name.
        if !bare.eq_ignore_ascii_case(name.as_str()) {
            return Err(RequestError::denied(format!("leave out the cluster's name: {bare}")));
        }
        if self.mirror.all(Kind::Node).iter().any(|mirrored| is_others(&mirrored.resource)) {
            return Err(RequestError::denied(format!("{name} is the name of another host")));
        }
        let now = self.clock.wall();
        let as_host = HostRecord {
            host_id: record.host_id,
            hostname: name.clone(),
            system_roles: [SystemRole::Node].into(),
            extra_names: BTreeSet::new(),
            joined_at: now,
            renewed_at: now,
            token: String::new(),
            signed_by: String::new(),
        };
        self.check_names(&as_host, None)?;
        if let Some(holder) = &record.holder
            && self.holder_lives(record, holder).await?
        {
            return Err(RequestError::AlreadyExists(format!("{name} is published by another connection")));
        }
        Ok(())
    }

    /// Whether the holder's connection can still be there: in this life of its proxy, with a route once that had time to
    /// come. A withdrawal that never came holds nothing.
    async fn holder_lives(&self, record: &PublishedRecord, holder: &Holder) -> Result<bool, RequestError> {
        let is_same_life = self.incarnation(holder.proxy).await? == holder.incarnation;
        let is_young = self.clock.wall().since(record.held_since) < ROUTE_EXPECTED_WITHIN;
        let has_route = is_young || self.routes.holds(holder.proxy, record.host_id);
        Ok(is_same_life && has_route && self.routes.proxy_is_online(holder.proxy))
    }

    fn published(&self, wish: &Wish, plan: Plan) -> Result<PublishResponse, RequestError> {
        let (cluster, host_id) = (self.authorities.cluster().clone(), plan.record.host_id);
        let validity = Validity::new(self.config.lifetimes.host, self.clock.wall());
        let system_roles = [SystemRole::Node].into();
        let host = HostPrincipal { host_id, cluster, system_roles, not_after: validity.not_after };
        let template = ssh_host_template(&host, &[plan.record.name.to_string()], validity);
        let certificate = self.authorities.sign_by_host_ca(template, wish.shown_key.clone())?;
        let labels = plan.node.metadata.labels.iter();
        Ok(PublishResponse {
            host_id: host_id.to_string(),
            host_certificate: certificate.to_openssh(),
            tcp_only: plan.node.spec.tcp_only,
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        })
    }

    /// What the calling proxy published is gone.
    pub(crate) async fn withdraw(
        &self,
        caller: &HostPrincipal,
        request: WithdrawRequest,
    ) -> Result<(), RequestError> {
        let invalid = |error: &dyn std::fmt::Display| RequestError::Invalid(error.to_string());
        let publication: SessionId = request.publication.parse().map_err(|e| invalid(&e))?;
        let name = NodeName::parse(request.name.as_str()).map_err(|e| invalid(&e))?;
        let key = keys::published_as(&name);
        for _ in 0..ATTEMPTS_MAX {
            let Some(stored) = self.records.read::<PublishedRecord>(&key).await? else { return Ok(()) };
            let mut record = stored.value;
            let holds = |h: &Holder| h.proxy == caller.host_id && h.publication == publication;
            if !record.holder.as_ref().is_some_and(holds) {
                return Ok(());
            }
            let host_id = record.host_id;
            record.holder = None;
            let mut operations = vec![put(key.clone(), &record)];
            if self.mirror.get(Kind::Node, &host_id.to_string()).is_some() {
                let node = keys::resource(Kind::Node, &host_id.to_string());
                operations.extend(node.map(|key| Operation::Delete { key }));
            }
            let condition = Condition::RevisionIs(key.clone(), stored.revision);
            match self.records.commit(vec![condition], operations).await {
                Ok(committed) => {
                    self.mirror.seen(committed.revision).await;
                    return Ok(());
                }
                Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => {}
                Err(error) => return Err(RequestError::store("withdraw a machine")(error)),
            }
        }
        Err(RequestError::Conflict(format!("{name} is being changed by several at once")))
    }

    /// The machine may show another host key the next time it is published.
    pub(crate) async fn forget_host_key(
        &self,
        request: ForgetHostKeyRequest,
        by: &audit_events::Author,
    ) -> Result<ForgetHostKeyResponse, RequestError> {
        let name = NodeName::parse(request.name.as_str())
            .map_err(|error| RequestError::Invalid(error.to_string()))?;
        let key = keys::published_as(&name);
        let unknown = || RequestError::NotFound(format!("no host key is known of a machine called {name}"));
        let stored = self.records.read::<PublishedRecord>(&key).await?.ok_or_else(unknown)?;
        let mut record = stored.value;
        let forgotten = record.host_key.take().ok_or_else(unknown)?;
        let fingerprint =
            PublicKey::from_openssh(&forgotten).map(|key| key.fingerprint()).unwrap_or_default();
        let event = audit_events::host_key_forgotten(record.host_id, &fingerprint, by);
        let condition = Condition::RevisionIs(key.clone(), stored.revision);
        self.commit_audited(vec![condition], vec![put(key, &record)], vec![event])
            .await
            .map_err(RequestError::store("forget a host key"))?;
        Ok(ForgetHostKeyResponse { fingerprint })
    }

    /// What goes with a token that somebody removes: whatever is published with it.
    pub(crate) fn published_with(&self, token: &str) -> Vec<Operation> {
        let is_with = |resource: &Resource| match resource {
            Resource::Node(node) => {
                node.spec.enforced_by == EnforcedBy::Proxy && node.metadata.labels.get(TOKEN) == Some(token)
            }
            _ => false,
        };
        let nodes = self.mirror.all(Kind::Node);
        let keys = nodes.iter().filter(|mirrored| is_with(&mirrored.resource));
        let keys = keys.filter_map(|mirrored| keys::resource(Kind::Node, mirrored.resource.name().as_str()));
        keys.map(|key| Operation::Delete { key }).collect()
    }
}

/// What a publication comes to.
struct Plan {
    record: PublishedRecord,
    node: Node,
    /// It was not this publication's before.
    is_new: bool,
}

/// The host key stays what it was first.
fn pin(record: &mut PublishedRecord, wish: &Wish) -> Result<(), RequestError> {
    let name = &record.name;
    let Some(shown) = &wish.target_key else {
        return Err(RequestError::denied(format!("the sshd of {name} showed no host key")));
    };
    match &record.host_key {
        Some(pinned) if pinned != shown => Err(RequestError::denied(format!(
            "the host key of {name} has changed: if that is right, an administrator runs `way tokens forget-host-key {name}`"
        ))),
        Some(_) => Ok(()),
        None => {
            record.host_key = Some(shown.clone());
            Ok(())
        }
    }
}

fn publisher_name(proof: &LoginProof) -> String {
    proof.verify().map(|proven| proven.certificate.key_id().to_owned()).unwrap_or_default()
}

fn publish_event(wish: &Wish, host_id: Option<HostId>, token: &str, refused: Option<&str>) -> Event {
    Event::InstanceJoin {
        joined_host_id: host_id,
        node_name: Text::new(wish.name.as_str()),
        token_name: Text::new(token),
        method: Text::new("openssh"),
        roles: vec![Text::new(SystemRole::Node.to_string())],
        client_addr: Some(Text::new(wish.client_address.as_str())),
        outcome: match refused {
            None => Outcome::Success,
            Some(reason) => Outcome::Failure { error: Text::new(reason) },
        },
    }
}
