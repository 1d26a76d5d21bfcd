//! Peering: every proxy serves its peers and keeps connections to them, so that an agent is reachable through each.

mod client;
mod codec;
mod listening;
mod problem;
mod server;
mod stream;
mod version;

pub(crate) use client::Peers;
pub(crate) use listening::{bind_early, serve};
pub(crate) use problem::PeerProblem;
