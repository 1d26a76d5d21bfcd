//! Automation of this repository, run as `cargo xtask COMMAND`.
//!
//! `check` and `test` are what continuous integration runs; the rest are their parts, or for people. Nothing
//! here is on a product path. Start at [`check`] and [`test_run`]; the rules of the house are in [`tidy`].

#![expect(clippy::print_stdout, reason = "a command line tool whose result is what it prints")]

mod bench;
mod check;
mod licence;
mod process;
mod reference;
mod scan;
mod spdx;
mod test_run;
mod tidy;
mod workspace;

use anyhow::{Result, bail};
use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask COMMAND

  check               format, house rules, licences, lints, generated documents; changes nothing
  tidy                the house rules alone, and the table of sizes
  licences [--list]   licences of third-party crates against deny.toml; --list prints them
  docs [--check]      writes docs/reference/*.md from the types, or says which are out of date
  test [ARGS]         everything a test needs, then all tests; ARGS go to `cargo test` instead of --workspace
  fuzz [ARGS]         every decoder under bytes of any content; --seconds N for each target, --seed S, a NAME
  bench [ARGS]        release build, then the load generator with ARGS
  demo [ARGS]         release build, then `wayleave demo ARGS`
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let (command, rest) = match arguments {
        [] => ("help", &[][..]),
        [command, rest @ ..] => (command.as_str(), rest),
    };
    let flag = |name: &str| match rest {
        [] => Ok(false),
        [only] if only == name => Ok(true),
        _ => bail!("{command} takes nothing but {name}"),
    };
    let plain = || if rest.is_empty() { Ok(()) } else { bail!("{command} takes no arguments") };
    match command {
        "check" => done(plain().and_then(|()| check::run())?),
        "tidy" => done(plain().and_then(|()| tidy::run())?),
        "licences" => done(licence::run(flag("--list")?)?),
        "docs" => done(reference::run(flag("--check")?)?),
        "test" => test_run::run(rest),
        "fuzz" => test_run::fuzz(rest),
        "bench" => bench::bench(rest),
        "demo" => bench::demo(rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("no such command: {command}\n\n{USAGE}"),
    }
}

fn done(passed: bool) -> Result<ExitCode> {
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
