//! Real children: this program is the harness and, started again with an argument, the child itself.

#![expect(clippy::unwrap_used, reason = "tests; without the standard harness clippy does not see that")]
#![expect(clippy::print_stdout, reason = "this program is its own harness")]

mod harness;
mod identity;
mod shell;
mod terminal;

use harness::Case;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(wayleave_os::CHILD_ARGUMENT) => wayleave_os::run_child(),
        _ => harness::run(&[identity::CASES, shell::CASES, terminal::CASES].concat()),
    }
}
