//! Builds the Proxy Service of this process.

use super::Process;
use super::instance::OpenedInstance;
use super::publication::AuthPublication;
use super::running::SharedParts;
use crate::edge;
use anyhow::Context;
use std::sync::Arc;
use wayleave_adapter_ssh::{JumpConfig, JumpEntry, PublishConfig, PublishListener};
use wayleave_config::{ProxyConfig, ProxyProtocol};
use wayleave_instance::RoleIdentity;
use wayleave_net::{Entry, PublishEntry};
use wayleave_proxy::{BoundProxy, ProxyService};
use wayleave_vocab::SystemRole;

pub(crate) async fn bind(
    process: &Process,
    config: &ProxyConfig,
    opened: &OpenedInstance,
    parts: &SharedParts,
) -> anyhow::Result<BoundProxy> {
    let instance = &opened.instance;
    let identity =
        instance.role(SystemRole::Proxy).context("the identity of this process lacks the role Proxy")?;
    let limits = &process.config.instance.connection_limits;
    let settings = wayleave_proxy::ProxyConfig {
        host_id: instance.host_id(),
        name: opened.node_name.clone(),
        web_listen: config.web_listen_addr,
        ssh_listen: config.ssh.as_ref().map(|ssh| ssh.listen_addr),
        ssh_public: config.ssh.iter().flat_map(|ssh| ssh.public_addrs.iter().cloned()).collect(),
        tunnel_listen: config.tunnel.as_ref().map(|tunnel| tunnel.listen_addr),
        peer_listen: config.peer.listen_addr,
        peer_public: config.peer.public_addr.clone(),
        pushes_routes: config.peer.pushes_routes,
        public_addresses: config.public_addrs.clone(),
        direct_address: None,
        zone: config.zone.as_ref().map(ToString::to_string).unwrap_or_default(),
        proxy_protocol: match &config.proxy_protocol {
            ProxyProtocol::Off => wayleave_proxy::ProxyProtocol::Off,
            ProxyProtocol::RequiredFrom(networks) => {
                wayleave_proxy::ProxyProtocol::RequiredFrom(networks.clone())
            }
        },
        web: None,
        tls: identity.tls.clone(),
        trust: instance.trust().clone(),
        auth_addresses: opened.addresses.clone(),
        connections_max: usize::try_from(limits.max_connections.get()).unwrap_or(usize::MAX),
        drain_timeout: process.config.instance.shutdown_timeout,
    };
    let auth = instance.channel_as(SystemRole::Proxy, &opened.addresses)?;
    let entry = config.ssh.is_some().then(|| jump_entry(process, opened, identity, parts));
    let publishing = config
        .tunnel
        .is_some()
        .then(|| publish_entry(process, opened, identity, parts, AuthPublication::new(auth.clone())));
    let service = ProxyService::build(settings, parts.keeper.clone(), auth, entry)?
        .publish_entry(publishing)
        .trust_x_forwarded_for(config.trust_x_forwarded_for)
        .diagnostics(&parts.diagnostics);
    let service = match edge::web_files(config)? {
        Some(files) => service.web_files(files)?,
        None => service,
    };
    service.bind().await.context("proxy_service")
}

fn jump_entry(
    process: &Process,
    opened: &OpenedInstance,
    identity: &RoleIdentity,
    parts: &SharedParts,
) -> Arc<dyn Entry> {
    Arc::new(JumpEntry::new(JumpConfig {
        host_id: opened.instance.host_id(),
        policy: parts.views.clone(),
        identity: identity.ssh.subscribe(),
        audit: parts.audit.clone(),
        clock: process.clock.clone(),
        drain_grace: process.config.instance.shutdown_timeout,
    }))
}

fn publish_entry(
    process: &Process,
    opened: &OpenedInstance,
    identity: &RoleIdentity,
    parts: &SharedParts,
    authority: AuthPublication,
) -> Arc<dyn PublishEntry> {
    Arc::new(PublishListener::new(PublishConfig {
        host_id: opened.instance.host_id(),
        policy: parts.views.clone(),
        identity: identity.ssh.subscribe(),
        authority: Arc::new(authority),
        audit: parts.audit.clone(),
        clock: process.clock.clone(),
        drain_grace: process.config.instance.shutdown_timeout,
    }))
}
