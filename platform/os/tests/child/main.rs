//! Real children: this program is the harness and, started again with an argument, the child itself.

#![expect(clippy::unwrap_used, reason = "tests; without the standard harness clippy does not see that")]
#![expect(clippy::print_stdout, reason = "this program is its own harness")]

mod harness;
mod identity;
mod nursery;
mod programs;
mod sftp;
mod shell;
mod terminal;

use harness::Case;

/// First argument of a process that serves SFTP on its standard streams, as `sftp -D` starts it.
const SERVE_ARGUMENT: &str = "__serve";

/// First argument of a process that prints the environment of a child.
const PRINT_ARGUMENT: &str = "__print";

fn main() {
    if programs::stands_in() {
        programs::stand_in();
    }
    match std::env::args().nth(1).as_deref() {
        Some(wayleave_os::CHILD_ARGUMENT) => wayleave_os::run_child(),
        Some(SERVE_ARGUMENT) => wayleave_os::serve_sftp(std::io::stdin(), std::io::stdout()).unwrap(),
        Some(PRINT_ARGUMENT) => programs::print_environment(),
        _ => harness::run(
            &[identity::CASES, nursery::CASES, programs::CASES, sftp::CASES, shell::CASES, terminal::CASES]
                .concat(),
        ),
    }
}
