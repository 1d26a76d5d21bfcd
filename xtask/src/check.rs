//! Everything that can be known without running a test. Every step runs, so that one reading shows all.

use crate::process::{cargo, succeeds};
use crate::{licence, reference, tidy};
use anyhow::Result;
use std::time::Instant;

struct Step {
    name: &'static str,
    run: fn() -> Result<bool>,
}

/// Cheap steps first.
const STEPS: [Step; 6] = [
    Step { name: "format", run: || succeeds(cargo().args(["fmt", "--all", "--check"])) },
    Step { name: "tidy", run: tidy::run },
    Step { name: "licences", run: || licence::run(false) },
    Step { name: "reference documents", run: || reference::run(true) },
    Step { name: "lints", run: lints },
    Step { name: "documentation", run: documentation },
];

/// Runs all steps and says which failed; true when none did.
pub(crate) fn run() -> Result<bool> {
    let mut failed = Vec::new();
    for step in &STEPS {
        println!("\n== {}", step.name);
        let begin = Instant::now();
        let passed = (step.run)().unwrap_or_else(|error| {
            println!("{}: {error:#}", step.name);
            false
        });
        println!("== {} {} in {:.1} s", step.name, verdict(passed), begin.elapsed().as_secs_f32());
        if !passed {
            failed.push(step.name);
        }
    }
    if failed.is_empty() {
        println!("\ncheck passed");
    } else {
        println!("\ncheck failed: {}", failed.join(", "));
    }
    Ok(failed.is_empty())
}

fn verdict(passed: bool) -> &'static str {
    if passed { "passed" } else { "FAILED" }
}

fn lints() -> Result<bool> {
    succeeds(cargo().args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn documentation() -> Result<bool> {
    succeeds(cargo().args(["doc", "--locked", "--no-deps", "--workspace"]).env("RUSTDOCFLAGS", "-D warnings"))
}
