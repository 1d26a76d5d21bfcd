//! Chance that can be repeated: everything that a run draws comes from its seed.

use std::time::Duration;
use wayleave_tunnel::Jitter;

#[derive(Debug)]
pub(crate) struct Random(Jitter);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Jitter::new(seed ^ 0x5eed_5eed_5eed_5eed))
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`; 0 when that is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound.max(1) as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn between_ms(&mut self, low: u64, high: u64) -> Duration {
        self.0.between(Duration::from_millis(low), Duration::from_millis(high))
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.below(from.len())).copied()
    }
}
