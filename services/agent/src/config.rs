//! What an agent needs to know at start.

use std::time::Duration;
use wayleave_keystore::{Credentials, PolicyKeeper, TrustStore};
use wayleave_net::AddressBook;
use wayleave_rpc::Channel;
use wayleave_vocab::{HostId, HostPort};

/// Configuration and identity of one agent.
pub struct AgentConfig {
    /// The id that Auth assigned.
    pub host_id: HostId,
    /// What the agent presents to proxies.
    pub tls: Credentials,
    /// Whom it believes.
    pub trust: TrustStore,
    /// The policy it verified last; fed from every tunnel.
    pub policy: std::sync::Arc<PolicyKeeper>,
    /// Addresses where some proxy answers.
    pub proxies: Vec<HostPort>,
    /// A channel to Auth that presents the agent's certificate.
    pub auth: Channel,
    /// The addresses by which Auth is reached, to learn the cluster's proxies; `None` where they lead nowhere else.
    pub addresses: Option<AddressBook>,
    /// Names of the services, for the hello.
    pub services: Vec<String>,
    /// When this process started, milliseconds since 1970.
    pub started_ms: u64,
    /// How long a drain waits for streams.
    pub drain_timeout: Duration,
}
