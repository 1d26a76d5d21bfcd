//! How long things took.

use serde_json::{Value, json};
use std::time::Duration;

/// Durations in microseconds, and what failed beside them.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    micros: Vec<u32>,
    pub(crate) failed: u64,
}

impl Latencies {
    pub(crate) fn add(&mut self, took: Duration) {
        self.micros.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.micros.extend(other.micros);
        self.failed += other.failed;
    }

    /// Counts, rate and percentiles.
    pub(crate) fn report(mut self, wall: Duration) -> Value {
        self.micros.sort_unstable();
        let at = |share: f64| {
            let index = (self.micros.len() as f64 * share) as usize;
            self.micros.get(index).or(self.micros.last()).copied().unwrap_or_default()
        };
        json!({
            "done": self.micros.len(),
            "failed": self.failed,
            "seconds": wall.as_secs_f64(),
            "p50_us": at(0.5),
            "p90_us": at(0.9),
            "p99_us": at(0.99),
            "p999_us": at(0.999),
            "max_us": self.micros.last().copied().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut latencies = Latencies::default();
        (1..=1000).for_each(|n| latencies.add(Duration::from_micros(n)));
        latencies.join(Latencies { micros: Vec::new(), failed: 2 });
        let report = latencies.report(Duration::from_secs(2));
        assert_eq!((&report["p50_us"], &report["p999_us"]), (&json!(501), &json!(1000)));
        assert_eq!((&report["done"], &report["failed"]), (&json!(1000), &json!(2)));
    }
}
