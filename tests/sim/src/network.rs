//! Hosts, and connections between them: in order, delayed, held up by partitions, cut or silently dead.

use crate::message::Payload;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use wayleave_vocab::Mono;

/// A machine; the processes on it share its clock and its place in partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Backend,
    Proxy(usize),
    Agent(usize),
}

/// One connection. Side 0 has made it, side 1 has accepted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkId(pub(crate) u64);

/// What is on its way to one side.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) queue: VecDeque<(Mono, Payload)>,
    pub(crate) is_scheduled: bool,
    pub(crate) last_at: Mono,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) kind: Kind,
    pub(crate) hosts: [Host; 2],
    /// By the side that receives.
    pub(crate) lanes: [Lane; 2],
    /// The side has given its end up.
    pub(crate) closed: [bool; 2],
    /// Nothing arrives any more and nobody is told.
    pub(crate) is_silent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From an agent to a proxy.
    Tunnel,
    /// From a proxy to another.
    Peer,
    /// From a proxy to Auth and its backend.
    Backend,
}

/// Which ways are blocked, and since when each has been as it is.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    /// How many faults block a way.
    blocked: BTreeMap<(Host, Host), usize>,
    changed_at: BTreeMap<(Host, Host), Mono>,
    slow: BTreeMap<Host, usize>,
    slow_changed_at: BTreeMap<Host, Mono>,
}

impl Ways {
    pub(crate) fn block(&mut self, from: Host, to: Host, now: Mono) {
        *self.blocked.entry((from, to)).or_insert(0) += 1;
        self.changed_at.insert((from, to), now);
    }

    pub(crate) fn unblock(&mut self, from: Host, to: Host, now: Mono) {
        if let Some(count) = self.blocked.get_mut(&(from, to)) {
            *count -= 1;
            if *count == 0 {
                self.blocked.remove(&(from, to));
            }
        }
        self.changed_at.insert((from, to), now);
    }

    pub(crate) fn slow_down(&mut self, host: Host, is_slow: bool, now: Mono) {
        let count = self.slow.entry(host).or_insert(0);
        *count = if is_slow { *count + 1 } else { count.saturating_sub(1) };
        self.slow_changed_at.insert(host, now);
    }

    pub(crate) fn is_blocked(&self, from: Host, to: Host) -> bool {
        self.blocked.contains_key(&(from, to))
    }

    pub(crate) fn is_slow(&self, host: Host) -> bool {
        self.slow.get(&host).is_some_and(|count| *count > 0)
    }

    /// Both directions have been open and fast for at least this long.
    pub(crate) fn is_good_for(&self, a: Host, b: Host, time: Duration, now: Mono) -> bool {
        let is_quiet = |at: Option<&Mono>| at.is_none_or(|at| now.since(*at) >= time);
        [(a, b), (b, a)]
            .into_iter()
            .all(|way| !self.blocked.contains_key(&way) && is_quiet(self.changed_at.get(&way)))
            && [a, b].into_iter().all(|host| !self.is_slow(host) && is_quiet(self.slow_changed_at.get(&host)))
    }
}
