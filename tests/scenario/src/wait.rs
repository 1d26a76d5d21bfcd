//! Waiting for conditions.

use std::time::{Duration, Instant};

/// Longer than anything here takes, on a slow machine under load.
pub const PATIENCE: Duration = Duration::from_secs(60);

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Asks until the answer is something.
///
/// # Panics
/// After [`PATIENCE`], saying what was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait_at_most(PATIENCE, ask).unwrap_or_else(|| panic!("waited in vain for: {what}"))
}

/// Asks until the answer is yes.
///
/// # Panics
/// After [`PATIENCE`], saying what was waited for.
#[track_caller]
pub fn wait_until(what: &str, mut ask: impl FnMut() -> bool) {
    wait_for(what, || ask().then_some(()));
}

/// Asks until the answer is yes, for longer than [`PATIENCE`]: for what is long by itself.
///
/// # Panics
/// After the limit, saying what was waited for.
#[track_caller]
pub fn wait_until_within(limit: Duration, what: &str, mut ask: impl FnMut() -> bool) {
    let answer = wait_at_most(limit, || ask().then_some(()));
    assert!(answer.is_some(), "waited in vain for: {what}");
}

/// Asks until the answer is something or the time is over.
#[expect(clippy::disallowed_methods, reason = "the one pause between two looks at a condition")]
pub(crate) fn wait_at_most<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}
