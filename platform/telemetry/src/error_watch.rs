//! Remembers ERROR events, so that a test in which one was logged fails.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Layer, registry};

/// Most events that are kept; later ones are only counted in the last entry.
const EVENTS_MAX: usize = 256;

/// A layer that keeps the text of every ERROR event. Clones share what they keep.
#[derive(Debug, Clone)]
pub struct ErrorWatch {
    seen: Arc<Mutex<Vec<String>>>,
    least: LevelFilter,
}

impl Default for ErrorWatch {
    fn default() -> Self {
        Self::new()
    }
}

impl ErrorWatch {
    /// A watch that has seen nothing; add it to a subscriber with `.with(watch.clone())`.
    pub fn new() -> Self {
        Self { seen: Arc::default(), least: LevelFilter::ERROR }
    }

    #[cfg(test)]
    pub(crate) fn for_every_severity() -> Self {
        Self { seen: Arc::default(), least: LevelFilter::TRACE }
    }

    /// Watches what this thread logs until the guard is dropped. Enough for a test on one thread, or on a
    /// current-thread runtime.
    pub fn watch_thread(&self) -> DefaultGuard {
        tracing::subscriber::set_default(registry().with(self.clone()))
    }

    /// Watches the whole process, for a test binary of its own.
    ///
    /// # Errors
    /// [`crate::InitError::AlreadySet`] when logging was set up before.
    pub fn watch_process(&self) -> Result<(), crate::InitError> {
        registry().with(self.clone()).try_init().map_err(|_| crate::InitError::AlreadySet)
    }

    /// The events so far, each as `message field=value …`.
    pub fn errors(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the events that contain `part`, and says whether there was one: for the test that provokes it.
    pub fn take_expected(&self, part: &str) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.len();
        seen.retain(|error| !error.contains(part));
        seen.len() < before
    }

    /// Panics when an ERROR event was logged that was not taken as expected.
    pub fn assert_quiet(&self) {
        let errors = self.errors();
        assert!(errors.is_empty(), "logged at ERROR: {errors:#?}");
    }
}

impl<S: Subscriber> Layer<S> for ErrorWatch {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        if *event.metadata().level() > self.least {
            return;
        }
        let mut text = EventText::default();
        event.record(&mut text);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.len() {
            0..EVENTS_MAX => seen.push(text.message + &text.fields),
            EVENTS_MAX => seen.push(format!("more than {EVENTS_MAX} events")),
            _ => {}
        }
    }
}

#[derive(Default)]
struct EventText {
    message: String,
    fields: String,
}

impl Visit for EventText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_are_kept_and_expected_ones_are_taken() {
        let watch = ErrorWatch::new();
        let guard = watch.watch_thread();
        tracing::warn!("unusual");
        watch.assert_quiet();
        tracing::error!(attempt = 3, "lost the lease");
        drop(guard);
        tracing::error!("after the guard");
        assert_eq!(watch.errors(), ["lost the lease attempt=3"]);
        assert!(watch.take_expected("lease"));
        assert!(!watch.take_expected("lease"));
        watch.assert_quiet();
    }

    #[test]
    #[should_panic(expected = "lost the lease")]
    fn an_error_fails_the_test() {
        let watch = ErrorWatch::new();
        let _guard = watch.watch_thread();
        tracing::error!("lost the lease");
        watch.assert_quiet();
    }

    #[test]
    fn a_flood_of_errors_is_bounded() {
        let watch = ErrorWatch::new();
        let _guard = watch.watch_thread();
        for attempt in 0..EVENTS_MAX * 2 {
            tracing::error!(attempt, "again");
        }
        assert_eq!(watch.errors().len(), EVENTS_MAX + 1);
    }
}
