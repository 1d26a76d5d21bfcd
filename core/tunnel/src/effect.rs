//! What the pool wants done, and what it is told.

use std::fmt;
use wayleave_vocab::{HostId, HostPort, Incarnation, Mono};

/// One attempt, and the tunnel that it became.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(pub(crate) u64);

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A proxy's process that a tunnel leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connected {
    /// The proxy.
    pub proxy: HostId,
    /// Its life.
    pub incarnation: Incarnation,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask Auth itself for the cluster's proxies, by whatever way leads there; answer with `handle_answer` or
    /// `handle_ask_failed`. Asked again when the deadline passes without an answer.
    AskAuth {
        /// Give up then.
        deadline: Mono,
    },
    /// Make a connection; answer with `handle_dialled` or `handle_dial_failed`.
    Dial {
        /// Names the attempt.
        id: TunnelId,
        /// Where to.
        address: HostPort,
        /// The proxy that must answer there; none for a shared address, where any may.
        wanted: Option<HostId>,
        /// Where the agent is connected already. To be told to the proxy at once, so that it can answer
        /// "already connected" before anything is set up.
        avoid: Vec<Connected>,
        /// The pool abandons the attempt then.
        deadline: Mono,
    },
    /// Drop an attempt that is no longer wanted or has run out of time; no answer is expected.
    Abandon {
        /// The attempt.
        id: TunnelId,
    },
    /// Give up a tunnel.
    Close {
        /// The tunnel.
        id: TunnelId,
        /// Why; see [`CloseReason::drains`]. Report its end with `handle_lost`.
        reason: CloseReason,
    },
    /// The proxies that the agent is connected to have changed; this is the whole set, in order.
    Publish {
        /// All of them.
        connected: Vec<Connected>,
    },
}

/// Why a tunnel is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// Another tunnel leads to the same process of the proxy, or the attempt had been abandoned: close now.
    Duplicate,
    /// The strategy wants fewer tunnels.
    Excess,
    /// The proxy is leaving, or a newer process of it has taken over, and enough other tunnels are up.
    Replaced,
}

impl CloseReason {
    /// True when existing streams must be let finish first (refuse new ones, close after the last).
    pub fn drains(self) -> bool {
        match self {
            Self::Excess | Self::Replaced => true,
            Self::Duplicate => false,
        }
    }
}

/// Why an attempt gave no tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFailure {
    /// No connection, TLS refused, an error in the hello.
    Failed,
    /// The proxy saw itself among those to avoid. Normal behind a shared address.
    AlreadyConnected(Connected),
}
