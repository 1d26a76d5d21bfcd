//! The agent: keeps reverse tunnels to proxies and hands their streams to protocol adapters.
//!
//! Which tunnels there are is decided by the machine in `core/tunnel`; this crate dials, listens to what proxies say and
//! reports back. Who may use a resource is decided by the adapters, from proof that they verified themselves.

mod config;
mod labels;
mod metrics;
mod proxy_list;
mod registration;
mod service;
mod tunnel;
mod tunnels;

pub use config::AgentConfig;
pub use labels::{LabelCommand, NodeLabels};
pub use proxy_list::proxies;
pub use service::{AgentService, AgentStatus};
