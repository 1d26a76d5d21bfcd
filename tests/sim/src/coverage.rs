//! How often each fault and each transition occurred: what never happened was not tested.

use std::collections::BTreeMap;
use std::fmt;

macro_rules! marks {
    ($($mark:ident),* $(,)?) => {
        /// Something that a run should see.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Mark { $($mark),* }

        impl Mark {
            const ALL: &[Self] = &[$(Self::$mark),*];
        }
    };
}

marks! {
    // Faults
    FaultCutConnection, FaultSilentConnection, FaultPartition, FaultOneWayPartition, FaultCrash, FaultPowerLoss,
    FaultRestart, FaultGoneForGood, FaultRollingRestart, FaultDrainWithoutSuccessor, FaultBackendStall, FaultLeaseLoss,
    FaultAgentRestart, FaultAgentPowerLoss, FaultStrategyToMesh, FaultStrategyToPeering, FaultSlowHost, FaultDeafProxy,
    FaultWatchReordered, FaultWatchDoubled, FaultHungListener, FaultLazyReader, FaultLyingProxy,
    // The world
    BalancerRoundRobin, BalancerRandom, AddressesDirect, AddressesShared, AddressesBroken, ClockSkew,
    // The agent's pool
    AskedAuth, AskFailed, PolicyDoubted, LieTold, TunnelDialled, TunnelUp, TunnelRefused, TunnelAbandoned, TunnelAlreadyConnected, TunnelLost,
    CloseDuplicate, CloseExcess, CloseReplaced, TunnelDrained,
    // The multiplexer
    MuxSilent, MuxPing, StreamOpened, StreamReset, StreamWritable, StreamBlocked, StreamCompleted,
    StreamCut, GoAway,
    // Routes
    RouteSnapshot, RouteDelta, RouteRemoved, RouteStale, RouteSuspect, RouteExpired, RouteWithdrawn, RouteResync, LeaseGranted,
    LeaseLost, WriteDone, WriteFailed, Rewrite, TwoLives,
    // Dials
    DialLocal, DialPeer, DialSuspect, DialOffline, DialNotHere, DialRefreshed, DialRetried, DialRaced,
    DialCancelled, DialReachable,
    // Streams that can be resumed
    SessionBegun, SessionDetached, SessionSilent, SessionReattached, SessionCompleted, SessionExpired, SessionRefused,
    KeptExpired, RefusalForged,
    // Agents of an older release
    AgentUpgraded, AgentDowngraded, NotAskedFor, SessionDegraded,
}

/// Counts over one run or many.
#[derive(Debug, Default, Clone)]
pub struct Coverage {
    counts: BTreeMap<Mark, u64>,
}

impl Coverage {
    pub(crate) fn note(&mut self, mark: Mark) {
        *self.counts.entry(mark).or_insert(0) += 1;
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        for (mark, count) in &other.counts {
            *self.counts.entry(*mark).or_insert(0) += count;
        }
    }

    /// What never happened.
    pub fn missing(&self) -> Vec<String> {
        let never = Mark::ALL.iter().filter(|mark| !self.counts.contains_key(mark));
        never.map(|mark| format!("{mark:?}")).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mark in Mark::ALL {
            writeln!(f, "{:>10}  {mark:?}", self.counts.get(mark).copied().unwrap_or(0))?;
        }
        Ok(())
    }
}
