//! The load balancer in front of the proxies: one address, some proxy.

use crate::random::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    RoundRobin,
    Random,
}

#[derive(Debug)]
pub(crate) struct Balancer {
    policy: Policy,
    next: usize,
}

impl Balancer {
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy, next: 0 }
    }

    /// Chooses among those that its health checks believe to be there.
    pub(crate) fn choose(&mut self, lives: &[usize], random: &mut Random) -> Option<usize> {
        match self.policy {
            Policy::Random => random.pick(lives),
            Policy::RoundRobin => {
                self.next = self.next.wrapping_add(1);
                lives.get(self.next % lives.len().max(1)).copied()
            }
        }
    }
}
