//! What processes register about themselves: nodes and proxies, under their own host id and as their roles allow.
//!
//! Unchanged content writes nothing. What a proxy says beyond the fields of its resource (zone, its own address, that it
//! drains, its incarnation) is kept in labels under [`PREFIX`], so that one mirror carries it.

use crate::auth_core::AuthCore;
use crate::bootstrap::FIRST_GENERATION;
use crate::join::HostRecord;
use crate::keys;
use crate::mirror::Mirrored;
use crate::records::{Stored, encode};
use crate::request_error::RequestError;
use crate::resource_store::{put_operation, title};
use std::collections::BTreeMap;
use wayleave_api::auth::{ProxyRecord, RegisterRequest};
use wayleave_identity::HostPrincipal;
use wayleave_resource::{
    EnforcedBy, Kind, Metadata, Node, PROBLEMS_MAX, Proxy, ProxySpec, ProxyStatus, Resource,
};
use wayleave_store::{Operation, StoreError};
use wayleave_vocab::{HostId, HostPort, Incarnation, Labels, SystemRole};

/// Labels that Auth itself sets begin with this.
const PREFIX: &str = "wayleave.dev/";
const ZONE: &str = "wayleave.dev/zone";
pub(crate) const DIRECT_ADDRESS: &str = "wayleave.dev/direct-address";
const DRAINING: &str = "wayleave.dev/draining";
const INCARNATION: &str = "wayleave.dev/incarnation";
/// On what was published by `ssh -R`: the token.
pub(crate) const TOKEN: &str = "wayleave.dev/token";
/// Most resources that one process registers.
const RESOURCES_MAX: usize = 64;
const ATTEMPTS_MAX: usize = 16;

impl AuthCore {
    /// Makes what the caller registered the whole of what it serves: a proxy speaks of itself, an agent of everything
    /// else, so that the services of one process do not undo each other.
    pub(crate) async fn register(
        &self,
        caller: &HostPrincipal,
        request: RegisterRequest,
    ) -> Result<(), RequestError> {
        if request.resources_json.len() > RESOURCES_MAX {
            return Err(RequestError::Invalid(format!("more than {RESOURCES_MAX} resources")));
        }
        let mut wanted = BTreeMap::new();
        let mut add = |resource: Resource| {
            let title = title(&resource);
            match wanted.insert(resource.kind(), resource) {
                None => Ok(()),
                Some(_) => Err(RequestError::Invalid(format!("{title} is registered twice"))),
            }
        };
        for json in &request.resources_json {
            let resource =
                Resource::parse_json(json).map_err(|errors| RequestError::Invalid(errors.to_string()))?;
            add(self.check_registration(caller, resource).await?)?;
        }
        let kind = if request.proxy.is_some() { Kind::Proxy } else { Kind::Node };
        if let Some(record) = request.proxy {
            add(self.check_registration(caller, proxy_of_record(caller.host_id, record)?).await?)?;
        }
        if let Some(other) = wanted.keys().find(|wanted| **wanted != kind) {
            return Err(RequestError::Invalid(format!(
                "a {other} does not go with a {kind} in one registration"
            )));
        }
        self.replace_registered(caller.host_id, kind, wanted.remove(&kind)).await
    }

    /// A resource as it will be stored, if the caller may register it.
    async fn check_registration(
        &self,
        caller: &HostPrincipal,
        mut resource: Resource,
    ) -> Result<Resource, RequestError> {
        resource.metadata_mut().revision = None;
        resource.metadata_mut().expires = None;
        let (owner, role) = match &resource {
            Resource::Node(node) => (node.host_id, SystemRole::Node),
            Resource::Proxy(proxy) => (proxy.host_id, SystemRole::Proxy),
            other => {
                return Err(RequestError::denied(format!("a process does not register a {}", other.kind())));
            }
        };
        if owner != caller.host_id {
            return Err(RequestError::denied("a process registers only what it serves itself"));
        }
        if !caller.system_roles.contains(&role) {
            return Err(RequestError::denied(format!(
                "a {} is registered by a process with the system role {role}",
                resource.kind()
            )));
        }
        match resource {
            Resource::Node(node) => self.check_node(node).await.map(Resource::from),
            Resource::Proxy(mut proxy) => {
                let incarnation = self.incarnation(caller.host_id).await?;
                set_label(&mut proxy.metadata.labels, INCARNATION, &incarnation.to_string())?;
                Ok(proxy.into())
            }
            other => Err(RequestError::denied(format!("a process does not register a {}", other.kind()))),
        }
    }

    /// A node is called what its certificate says, is its own agent, and sets no labels of ours.
    async fn check_node(&self, node: Node) -> Result<Node, RequestError> {
        if node.spec.enforced_by != EnforcedBy::Agent || node.spec.tcp_only || !node.spec.tcp_ports.is_empty()
        {
            return Err(RequestError::denied("an agent registers the SSH that it serves itself"));
        }
        let keys = node
            .metadata
            .labels
            .iter()
            .map(|(key, _)| key)
            .chain(node.spec.cmd_labels.keys().map(String::as_str));
        if let Some(key) = keys.into_iter().find(|key| key.starts_with(PREFIX)) {
            return Err(RequestError::denied(format!("the label {key} is set by the cluster only")));
        }
        let record: Option<Stored<HostRecord>> = self.records.read(&keys::host(node.host_id)).await?;
        let record = record.ok_or_else(|| RequestError::denied("this process is not known any more"))?.value;
        let name = node.spec.hostname.as_str();
        if name != record.hostname.as_str() && !record.extra_names.contains(name) {
            return Err(RequestError::denied(format!(
                "the certificate of this process is for {}, not for {name}: it must renew with that name first",
                record.hostname
            )));
        }
        Ok(node)
    }

    async fn replace_registered(
        &self,
        host: HostId,
        kind: Kind,
        wanted: Option<Resource>,
    ) -> Result<(), RequestError> {
        if kind == Kind::Node && wanted.is_some() {
            // Its route comes a moment later.
            self.routes.note_seen(host);
        }
        let before = self.mirror.get(kind, &host.to_string());
        let operations = match (before, wanted) {
            (Some(before), Some(after)) if before.resource == after => Vec::new(),
            (_, Some(after)) => vec![put_operation(&after)],
            (Some(_), None) => keys::resource(kind, &host.to_string())
                .map(|key| Operation::Delete { key })
                .into_iter()
                .collect(),
            (None, None) => Vec::new(),
        };
        if operations.is_empty() {
            return Ok(());
        }
        let committed =
            self.records.commit(Vec::new(), operations).await.map_err(RequestError::store("register"))?;
        self.mirror.seen(committed.revision).await;
        Ok(())
    }

    pub(crate) async fn incarnation(&self, proxy: HostId) -> Result<Incarnation, RequestError> {
        let stored = self.records.read::<Incarnation>(&keys::incarnation(proxy)).await?;
        Ok(stored.map(|stored| stored.value).unwrap_or_default())
    }

    /// Takes the next incarnation of a proxy.
    pub(crate) async fn begin_incarnation(&self, proxy: HostId) -> Result<Incarnation, RequestError> {
        let key = keys::incarnation(proxy);
        let backend = self.records.backend();
        for _ in 0..ATTEMPTS_MAX {
            let stored = self.records.read::<Incarnation>(&key).await?;
            // What a restored backend has forgotten was less than its generation, which is a time of day.
            let forgotten = if self.generation > FIRST_GENERATION { self.generation } else { 0 };
            let before = stored.as_ref().map_or(0, |stored| stored.value.0).max(forgotten);
            let next = Incarnation(before.saturating_add(1));
            let written = match stored {
                Some(stored) => backend.compare_and_swap(&key, stored.revision, encode(&next)).await,
                None => backend.create(&key, encode(&next), None).await,
            };
            match written {
                Ok(_) => return Ok(next),
                Err(StoreError::Conflict { .. } | StoreError::AlreadyExists { .. }) => {}
                Err(error) => return Err(RequestError::store("begin an incarnation")(error)),
            }
        }
        Err(RequestError::Conflict("this proxy is starting several times at once".to_owned()))
    }
}

fn set_label(labels: &mut Labels, key: &str, value: &str) -> Result<(), RequestError> {
    labels.insert(key.to_owned(), value.to_owned()).map_err(|error| RequestError::Invalid(error.to_string()))
}

/// The resource that a proxy's own record becomes.
fn proxy_of_record(host_id: HostId, record: ProxyRecord) -> Result<Resource, RequestError> {
    let address =
        |text: &str| text.parse::<HostPort>().map_err(|error| RequestError::Invalid(error.to_string()));
    let mut labels = Labels::default();
    if !record.zone.is_empty() {
        set_label(&mut labels, ZONE, &record.zone)?;
    }
    if !record.direct_address.is_empty() {
        set_label(&mut labels, DIRECT_ADDRESS, &address(&record.direct_address)?.to_string())?;
    }
    if record.draining {
        set_label(&mut labels, DRAINING, "true")?;
    }
    let peer_addr = match record.peer_address.as_str() {
        "" => None,
        text => Some(address(text)?),
    };
    let spec = ProxySpec {
        hostname: record.name,
        public_addrs: record.public_addresses.iter().map(|text| address(text)).collect::<Result<_, _>>()?,
        peer_addr,
        version: record.version,
    };
    let status = ProxyStatus { problems: record.problems.into_iter().take(PROBLEMS_MAX).collect() };
    let proxy = Proxy { host_id, metadata: Metadata { labels, ..Metadata::default() }, spec, status };
    // Reading the stored form back applies the bounds of the resource.
    Resource::parse_json(&Resource::from(proxy).to_stored_json())
        .map_err(|errors| RequestError::Invalid(errors.to_string()))
}

/// What agents and peers are told about a proxy.
pub(crate) fn record_of_proxy(mirrored: &Mirrored) -> Option<ProxyRecord> {
    let Resource::Proxy(proxy) = &mirrored.resource else { return None };
    let label = |key| proxy.metadata.labels.get(key).unwrap_or_default().to_owned();
    Some(ProxyRecord {
        host_id: proxy.host_id.to_string(),
        incarnation: label(INCARNATION).parse().unwrap_or_default(),
        name: proxy.spec.hostname.clone(),
        peer_address: proxy.spec.peer_addr.as_ref().map(ToString::to_string).unwrap_or_default(),
        direct_address: label(DIRECT_ADDRESS),
        public_addresses: proxy.spec.public_addrs.iter().map(ToString::to_string).collect(),
        zone: label(ZONE),
        draining: label(DRAINING) == "true",
        version: proxy.spec.version.clone(),
        // For administrators: those who are told of proxies can do nothing about it.
        problems: Vec::new(),
    })
}
