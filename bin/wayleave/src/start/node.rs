//! Builds the agent of this process with its SSH Service.

use super::Process;
use super::addresses;
use super::instance::OpenedInstance;
use super::running::SharedParts;
use anyhow::Context;
use std::sync::Arc;
use wayleave_adapter_ssh::{LocalSwitches, NodeAdapter, NodeConfig};
use wayleave_agent::{AgentConfig, AgentService, LabelCommand, NodeLabels};
use wayleave_config::{SshConfig, Upstream};
use wayleave_net::Adapter;
use wayleave_os::Launcher;
use wayleave_runtime::{Clock, TaskGroup};
use wayleave_vocab::{HostPort, SystemRole};

pub(crate) fn build(
    process: &Process,
    config: &SshConfig,
    opened: &OpenedInstance,
    parts: &SharedParts,
    helpers: &TaskGroup,
) -> anyhow::Result<AgentService> {
    let instance = &opened.instance;
    let identity =
        instance.role(SystemRole::Node).context("the identity of this process lacks the role Node")?;
    let commands: Vec<LabelCommand> = config
        .commands
        .iter()
        .map(|c| LabelCommand {
            key: c.name.as_str().to_owned(),
            command: c.command.clone(),
            period: c.period,
        })
        .collect();
    let labels =
        NodeLabels::new(instance.host_id(), opened.node_name.clone(), config.labels.clone(), &commands);
    labels.start(commands, helpers, &helpers.shutdown());
    let drain_timeout = process.config.instance.shutdown_timeout;
    let adapter = NodeAdapter::new(NodeConfig {
        host_id: instance.host_id(),
        node: opened.node_name.clone(),
        labels: labels.labels(),
        policy: parts.views.clone(),
        identity: identity.ssh.subscribe(),
        audit: parts.audit.clone(),
        switches: LocalSwitches {
            port_forwarding: config.port_forwarding,
            ssh_file_copy: config.ssh_file_copy,
            forward_agent: config.forward_agent,
        },
        launcher: Launcher::own_binary(),
        clock: process.clock.clone(),
        drain_grace: drain_timeout,
    });
    let agent = AgentConfig {
        host_id: instance.host_id(),
        tls: identity.tls.clone(),
        trust: instance.trust().clone(),
        policy: parts.keeper.clone(),
        proxies: proxies(process, opened),
        auth: instance.channel_as(SystemRole::Node, &opened.addresses)?,
        addresses: addresses::follows_cluster(process).then(|| opened.addresses.clone()),
        services: vec!["ssh".to_owned()],
        started_ms: process.clock.wall().as_ms(),
        drain_timeout,
    };
    let adapters: Vec<Arc<dyn Adapter>> = vec![Arc::new(adapter)];
    Ok(AgentService::build(agent, adapters, labels.resources()).diagnostics(&parts.diagnostics))
}

/// Where some proxy answers: the configured one, or the one of this very process. A process that reaches Auth directly
/// learns the proxies from Auth.
fn proxies(process: &Process, opened: &OpenedInstance) -> Vec<HostPort> {
    let own = process.config.proxy.as_ref().map(|proxy| {
        let mut address = proxy.web_listen_addr;
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        HostPort::from_socket(address)
    });
    match &process.config.instance.upstream {
        Upstream::ProxyServer(_) => opened.addresses.in_order(),
        Upstream::AuthServers(_) => own.into_iter().collect(),
        Upstream::LocalAuth { proxy_server, .. } => own.into_iter().chain(proxy_server.clone()).collect(),
    }
}
