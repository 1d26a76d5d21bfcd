//! Stock OpenSSH clients against the adapters, over loopback, with real processes of a user.
//!
//! This program is the harness and, started again with an argument, the user's child.

#![expect(clippy::unwrap_used, reason = "tests; without the standard harness clippy does not see that")]
#![expect(clippy::print_stdout, reason = "this program is its own harness")]

mod admission;
mod copying;
mod ending;
mod forwarding;
mod harness;
mod jump;
mod resuming;
mod sessions;
mod tenants;
mod world;

use harness::Case;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(wayleave_os::CHILD_ARGUMENT) => wayleave_os::run_child(),
        _ => harness::run(
            &[
                sessions::CASES,
                copying::CASES,
                forwarding::CASES,
                admission::CASES,
                ending::CASES,
                jump::CASES,
                tenants::CASES,
                resuming::CASES,
            ]
            .concat(),
        ),
    }
}
