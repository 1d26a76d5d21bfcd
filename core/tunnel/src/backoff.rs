//! When an address may be tried again: decorrelated jitter.

use crate::config::Config;
use crate::jitter::Jitter;
use std::time::Duration;
use wayleave_vocab::Mono;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    /// The last wait; zero when the last thing that happened was good.
    last: Duration,
    until: Mono,
}

impl Backoff {
    pub(crate) fn until(&self) -> Mono {
        self.until
    }

    pub(crate) fn has_failed(&self) -> bool {
        !self.last.is_zero()
    }

    pub(crate) fn wait(&self) -> Duration {
        self.last
    }

    /// Waits between the shortest wait and three times the last one, at most the longest.
    pub(crate) fn fail(&mut self, config: &Config, jitter: &mut Jitter, now: Mono) {
        let high = self.last.max(config.retry_min).saturating_mul(3);
        self.last = jitter.between(config.retry_min, high).min(config.retry_max);
        self.until = now.after(self.last);
    }

    /// May be tried at once; what had failed before is remembered until the success has lasted.
    pub(crate) fn succeed(&mut self, now: Mono) {
        self.until = now;
    }

    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_differ() {
        let config = Config::default();
        let mut jitter = Jitter::new(7);
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..200)
            .map(|_| {
                backoff.fail(&config, &mut jitter, Mono::ZERO);
                backoff.wait()
            })
            .collect();
        assert!(waits.iter().all(|wait| (config.retry_min..=config.retry_max).contains(wait)));
        assert!(waits[0] <= config.retry_min * 3);
        assert!(waits.iter().any(|wait| *wait > config.retry_max / 2));
    }
}
