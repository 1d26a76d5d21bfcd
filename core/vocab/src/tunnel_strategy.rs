//! How many proxies an agent keeps a tunnel to.

use serde::{Deserialize, Serialize};
use std::num::NonZeroU16;

/// The cluster's tunnel strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TunnelStrategy {
    /// A tunnel to every proxy.
    #[default]
    AgentMesh,
    /// Tunnels to some proxies; the others reach the agent through their peers.
    ProxyPeering {
        /// To how many different proxies.
        agent_connection_count: NonZeroU16,
    },
}
