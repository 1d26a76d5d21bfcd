//! Whole clusters on virtual time: the machines that the daemon runs (`core/tunnel`, `core/peering`,
//! `core/resume`, `wire/mux`, `wire/resume`), joined by a simulated network with faults, in one thread, from one seed.
//!
//! [`run`] draws a cluster and a list of faults from the seed, lets agents, proxies, a backend and users live
//! through it, and checks:
//! - a dial fails only if the agent could really not be reached;
//! - no byte of a stream is lost, doubled or delivered to another agent;
//! - a stream that can be resumed ends when it is complete, when its time is over, or when its agent itself refuses it;
//! - what an older agent cannot do is not asked of it;
//! - nothing waits for ever;
//! - once everything has healed, tunnels and routes are exactly as they should be, and stay so.
//!
//! What the adapters of the daemon do between the machines is done here by `agent`, `proxy`, `peer`, `plan`, `session`, `keeper`;
//! a [`Mutation`] breaks it there on purpose. What is not simulated: TLS, encodings of control messages, gRPC.

mod agent;
mod backend;
mod balancer;
mod carrier;
mod check;
mod client;
mod clock;
mod coverage;
mod event;
mod fault;
mod keeper;
mod liar;
mod message;
mod mutation;
mod network;
mod peer;
mod plan;
mod proxy;
mod random;
mod scenario;
mod session;
mod tunnel;
mod world;

pub use coverage::Coverage;
pub use mutation::Mutation;

/// What a run has shown.
#[derive(Debug)]
pub struct Report {
    /// What was violated, in words; none when all is well.
    pub violation: Option<String>,
    /// What occurred.
    pub coverage: Coverage,
    /// How many events were simulated.
    pub events: u64,
}

/// Runs the cluster of a seed to its end, or to the first violation.
pub fn run(seed: u64, mutation: Option<Mutation>) -> Report {
    world::World::new(seed, mutation).run()
}
