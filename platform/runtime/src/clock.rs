//! The clock, real and by hand.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wayleave_vocab::{Mono, Wall};

/// Tells both kinds of time.
pub trait Clock: Send + Sync {
    /// Time of day.
    fn wall(&self) -> Wall;
    /// Time since the process started; never goes back.
    fn mono(&self) -> Mono;
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

    /// The [`Instant`] of a monotonic time, for timers of the runtime.
    pub fn instant(&self, at: Mono) -> Instant {
        self.origin + at.since_origin()
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Wall {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Wall::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn mono(&self) -> Mono {
        Mono::from_origin(self.origin.elapsed())
    }
}

/// A clock that stands still until it is told to move.
#[derive(Debug)]
pub struct ManualClock(Mutex<(Wall, Mono)>);

impl ManualClock {
    /// Starts at a time of day.
    pub fn new(wall: Wall) -> Self {
        Self(Mutex::new((wall, Mono::ZERO)))
    }

    /// Moves both times on.
    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *now = (now.0.after(by), now.1.after(by));
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Wall {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    fn mono(&self) -> Mono {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }
}
