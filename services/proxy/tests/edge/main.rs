//! Proxies in this process, with an Auth of the test's own, agents that are only as good as each test wants, and clients
//! that mean harm. What is served well end to end is in `tests/scenario`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod auth_away;
mod authority;
mod cluster;
mod fake_auth;
mod hosting;
mod locking;
mod lying;
mod panics;
mod peer_addresses;
mod peer_load;
mod peering;
mod relaying;
mod releases;
mod stalling;
mod upgrading;
mod web_certificates;
