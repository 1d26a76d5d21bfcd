//! `cluster_networking_config`: tunnels and timeouts of the whole cluster.

use crate::metadata::Metadata;
use crate::reader::{At, Fields};
use serde::Serialize;
use std::num::NonZeroU16;
use std::time::Duration;
use wayleave_vocab::{Ttl, TunnelStrategy};

/// The cluster's networking. There is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterNetworkingConfig {
    /// Labels, revision, description.
    pub metadata: Metadata,
    /// What it says.
    pub spec: NetworkingSpec,
}

/// Tunnels and timeouts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkingSpec {
    /// How many proxies an agent keeps a tunnel to.
    pub tunnel_strategy: TunnelStrategy,
    /// How often an idle SSH connection is probed.
    pub keep_alive_interval: Ttl,
    /// How many probes may go unanswered.
    pub keep_alive_count_max: u32,
    /// How long a session may be silent where no role says less; absent: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_idle_timeout: Option<Ttl>,
    /// Shown when a session ends for being silent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub idle_timeout_message: String,
}

impl Default for NetworkingSpec {
    fn default() -> Self {
        Self {
            tunnel_strategy: TunnelStrategy::AgentMesh,
            keep_alive_interval: Ttl(Duration::from_secs(300)),
            keep_alive_count_max: 3,
            client_idle_timeout: None,
            idle_timeout_message: String::new(),
        }
    }
}

impl NetworkingSpec {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let default = Self::default();
        let tunnel_strategy = fields.or_default("tunnel_strategy", read_strategy);
        let keep_alive_interval = fields.optional("keep_alive_interval", |at| match at.duration()? {
            Some(interval) => Some(interval),
            None => at.fail("connections must be probed: give an interval such as 5m"),
        });
        let keep_alive_count_max =
            fields.optional("keep_alive_count_max", |at| at.number::<u32>("a whole number"));
        let client_idle_timeout = fields.or_default("client_idle_timeout", At::duration);
        let idle_timeout_message = fields.or_default("idle_timeout_message", At::line_of_text);
        for name in [
            "session_control_timeout",
            "web_idle_timeout",
            "ssh_dial_timeout",
            "assist_command_execution_workers",
        ] {
            fields.refuse(name, |_| false, "it is fixed");
        }
        fields.refuse(
            "proxy_listener_mode",
            |at| at.text() == Some("multiplex"),
            "one port serves everything",
        );
        fields.refuse(
            "routing_strategy",
            |at| at.text() == Some("unambiguous_match"),
            "an ambiguous name is refused",
        );
        Some(Self {
            tunnel_strategy: tunnel_strategy?,
            keep_alive_interval: keep_alive_interval?.unwrap_or(default.keep_alive_interval),
            keep_alive_count_max: keep_alive_count_max?.unwrap_or(default.keep_alive_count_max),
            client_idle_timeout: client_idle_timeout?,
            idle_timeout_message: idle_timeout_message?,
        })
    }
}

fn read_strategy(at: &At<'_>) -> Option<TunnelStrategy> {
    let mut fields = at.fields()?;
    let peering = fields.required("type", |at| at.word(&[("agent_mesh", false), ("proxy_peering", true)]));
    let count = fields
        .optional("agent_connection_count", |at| at.number::<NonZeroU16>("a whole number from 1 to 65535"));
    fields.finish();
    match (peering?, count?) {
        (false, None) => Some(TunnelStrategy::AgentMesh),
        (false, Some(_)) => {
            at.fail("agent_connection_count is for proxy_peering; agent_mesh keeps a tunnel to every proxy")
        }
        (true, count) => {
            Some(TunnelStrategy::ProxyPeering { agent_connection_count: count.unwrap_or(NonZeroU16::MIN) })
        }
    }
}
