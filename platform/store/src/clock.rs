//! What the store asks for the time. Leases run on monotonic time, the age of history on wall time.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wayleave_vocab::{Mono, Wall};

/// The time, injected so that tests and the simulation can step it.
pub trait Clock: Send + Sync {
    /// Monotonic time, for leases.
    fn mono(&self) -> Mono;
    /// Wall-clock time, for the age of history.
    fn wall(&self) -> Wall;
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic origin is now.
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn mono(&self) -> Mono {
        Mono::from_origin(self.origin.elapsed())
    }

    fn wall(&self) -> Wall {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Wall::from_ms(0).after(since)
    }
}

/// A clock that stands still until it is told to advance.
#[derive(Debug, Default)]
pub struct ManualClock {
    elapsed: Mutex<Duration>,
}

impl ManualClock {
    /// A clock at its origin.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves both times forward.
    pub fn advance(&self, by: Duration) {
        let mut elapsed = self.elapsed.lock().unwrap_or_else(PoisonError::into_inner);
        *elapsed = elapsed.saturating_add(by);
    }

    fn elapsed(&self) -> Duration {
        *self.elapsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn mono(&self) -> Mono {
        Mono::from_origin(self.elapsed())
    }

    fn wall(&self) -> Wall {
        // An arbitrary day, far enough from 1970 that ages subtract.
        Wall::from_secs(1_700_000_000).after(self.elapsed())
    }
}
