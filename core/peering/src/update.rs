//! Messages about routes. Every statement of a proxy has a number of its own, the sequence: of two
//! statements about one agent the higher holds, whichever way and in whatever order they come.

use std::collections::BTreeSet;
use wayleave_vocab::{HostId, Incarnation};

/// What one life of a proxy says about its tunnels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteUpdate {
    /// Whose tunnels.
    pub proxy: HostId,
    /// In which life; sequences start anew in each.
    pub incarnation: Incarnation,
    /// The number of this statement: it says how the agents that it names stood then.
    pub sequence: u64,
    /// What it says.
    pub change: Change,
}

/// The content of a [`RouteUpdate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// All agents with a tunnel.
    Snapshot {
        /// The agents.
        agents: BTreeSet<HostId>,
    },
    /// Some agents.
    Delta {
        /// The statement that this one follows on the same way, so that a missing one is noticed; 0 when it
        /// follows none.
        base: u64,
        /// Agents that have a tunnel.
        added: BTreeSet<HostId>,
        /// Agents that have none any more.
        removed: BTreeSet<HostId>,
    },
}

impl Change {
    /// How many agents it names.
    pub fn len(&self) -> usize {
        match self {
            Self::Snapshot { agents } => agents.len(),
            Self::Delta { added, removed, .. } => added.len() + removed.len(),
        }
    }

    /// The statement that it follows; a snapshot follows none.
    pub fn base(&self) -> u64 {
        match self {
            Self::Snapshot { .. } => 0,
            Self::Delta { base, .. } => *base,
        }
    }

    /// It names no agent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where an update came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The backend, through Auth, which lets a proxy write under its own id only.
    Watch,
    /// A peer connection that was authenticated as this proxy, which may speak for itself only.
    Peer(HostId),
}

/// What became of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It was looked at; what it says newer than the table is now in it.
    Now,
    /// It is of a life that is over.
    Stale,
}

/// An update that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A peer spoke for another proxy.
    #[error("proxy {claimed} was spoken for by {speaker}")]
    NotItsOwn {
        /// Whose routes it was about.
        claimed: HostId,
        /// Who sent it.
        speaker: HostId,
    },
    /// More proxies, lives or routes than are sensible.
    #[error("too many {0} in the route table")]
    TooMany(&'static str),
}
