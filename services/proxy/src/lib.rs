//! The Proxy Service: one public TLS port, the agents' tunnels, and the peers.
//!
//! A proxy routes. It authenticates who connects, finds the agent, and joins byte streams; whether somebody may use a
//! resource is decided by the agent, with proof that passes through here unread. Start at `service` for how the parts
//! hang together, at `web` for what arrives on the public port, at `dial` for how a stream finds its agent.

mod agent_tunnel;
mod client_dial;
mod cluster;
mod config;
mod counted;
mod dial;
mod health;
mod hosting;
mod metrics;
mod passthrough;
mod peer;
mod registry;
mod report;
mod rest;
mod routes;
mod service;
mod upgrade;
mod web;
mod web_files;

pub use config::{ProxyConfig, ProxyProtocol};
pub use service::{BoundProxy, ProxyError, ProxyService};
pub use web_files::{WebFiles, WebFilesError, WebKeyPair};
