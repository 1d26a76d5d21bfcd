//! How proxies find agents: who holds which tunnel, and how a dial gets there.
//!
//! - [`RouteTable`]: what this proxy believes about the tunnels of the others. Routes are hints: only a dial
//!   decides that an agent is offline, and a false route costs a failed dial, never a stream.
//! - [`Publisher`]: tells the others about this proxy's own tunnels, through the backend and directly.
//! - [`DialPlan`]: one user's dial: own tunnel, then peers, raced, with deadlines, one hop only.
//! - [`NodeIndex`]: names of nodes to host ids.
//!
//! All are machines without IO. Tunnels themselves are `core/tunnel` and `wire/mux`; who may dial is
//! `core/policy`.

mod node_index;
mod plan;
mod publisher;
mod table;
mod update;

pub use node_index::{NODES_MAX, NodeIndex, NodeIndexError, Resolution};
pub use plan::{
    AttemptId, DialError, DialPlan, Outcome, PlanConfig, PlanEffect, Refusal, TRIED_MAX, Tried, Way,
};
pub use publisher::{LinkId, Phase, Publisher, PublisherConfig, PublisherEffect, RouteWrite};
pub use table::{
    Candidate, LIVES_MAX, PROXIES_MAX, ROUTES_MAX, RouteCounts, RouteState, RouteTable, TableConfig,
    TableEffect,
};
pub use update::{Applied, Change, RouteError, RouteUpdate, Source};
