//! Many checks against one cluster: starting a cluster takes longer than asking it something.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Runs checks one after another, goes on behind a failure, and fails at the end.
#[derive(Default)]
pub struct Checks {
    failed: Vec<String>,
    passed: usize,
}

impl Checks {
    /// Runs one check; a panic inside is its failure. `WAYLEAVE_ONLY` (part of a name) selects.
    #[expect(clippy::print_stdout, reason = "read beside the messages of the failures")]
    pub fn run(&mut self, name: &str, check: impl FnOnce()) {
        if std::env::var("WAYLEAVE_ONLY").is_ok_and(|only| !name.contains(&only)) {
            return;
        }
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(check));
        let seconds = begin.elapsed().as_secs_f32();
        println!("  check {name} ... {} ({seconds:.2} s)", if outcome.is_ok() { "ok" } else { "FAILED" });
        match outcome {
            Ok(()) => self.passed += 1,
            Err(_) => self.failed.push(name.to_owned()),
        }
    }

    /// Fails when a check did.
    ///
    /// # Panics
    /// With the names of the failed checks.
    pub fn end(self) {
        assert!(
            self.failed.is_empty(),
            "{} passed, {} failed: {}",
            self.passed,
            self.failed.len(),
            self.failed.join(", ")
        );
    }
}

/// Runs functions that take a reference, each under its own name.
#[macro_export]
macro_rules! check_all {
    ($subject:expr; $($check:ident),* $(,)?) => {{
        let mut checks = $crate::Checks::default();
        $crate::check_all!(checks, $subject; $($check),*);
        checks.end();
    }};
    ($checks:expr, $subject:expr; $($check:ident),* $(,)?) => {{
        $($checks.run(stringify!($check), || $check($subject));)*
    }};
}
