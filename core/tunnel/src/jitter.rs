//! Numbers that spread agents apart. Not for secrets.

use std::time::Duration;

/// A generator that gives the same numbers for the same seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Jitter {
    state: u64,
}

impl Jitter {
    /// Starts from a seed, which should differ between agents.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A duration from `low` to `high`, both included; `low` when they are in the wrong order.
    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_micros()).unwrap_or(u64::MAX - 1);
        let offset = self.next_u64() % (span.min(u64::MAX - 1) + 1);
        low.saturating_add(Duration::from_micros(offset))
    }
}

/// Spreads the bits of a number.
pub(crate) fn mix(number: u64) -> u64 {
    let a = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    b ^ (b >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_stays_between_its_bounds() {
        let mut jitter = Jitter::new(1);
        let (low, high) = (Duration::from_millis(100), Duration::from_millis(300));
        let drawn: Vec<_> = (0..1000).map(|_| jitter.between(low, high)).collect();
        assert!(drawn.iter().all(|d| (low..=high).contains(d)));
        assert!(drawn.iter().any(|d| *d < Duration::from_millis(120)));
        assert!(drawn.iter().any(|d| *d > Duration::from_millis(280)));
        assert_eq!(jitter.between(high, low), high);
    }
}
