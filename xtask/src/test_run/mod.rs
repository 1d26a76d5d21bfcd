//! The whole test run: what tests need, the binaries they start, the tests, and what must be true afterwards.
//!
//! Afterwards means: no process is left, no canary secret stands in any output (SECURITY, letter M), and no
//! daemon logged at ERROR unless its test said so. Tests learn where to write from the environment:
//!
//! | variable | what a test does with it |
//! |---|---|
//! | `WAYLEAVE_BIN_DIR` | finds `wayleave` and `way` there |
//! | `WAYLEAVE_TEST_LOGS` | directory for the logs of daemons it starts |
//! | `WAYLEAVE_CANARY_FILE` | appends every secret it used, one a line |
//! | `WAYLEAVE_EXPECTED_ERRORS` | appends `part of a line`, or `start of a file name<TAB>part of a line`, that may be an error |

mod leftover;
mod libtest;
mod log_scan;
mod need;

use crate::process::{cargo, shown, succeeds};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use libtest::Tally;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// Exit code when something is missing that only a person can provide.
const EXIT_MISSING: u8 = 2;
/// Exit code of `cargo test` when a test failed, for failures found after it succeeded.
const EXIT_FAILED: u8 = 101;

/// Where a run leaves its traces, all below the target directory.
struct Places {
    binaries: PathBuf,
    logs: PathBuf,
    canaries: PathBuf,
    expected_errors: PathBuf,
    output: PathBuf,
}

/// Runs everything, or with `arguments` what `cargo test` selects by them.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    if let Some(missing) = provide()? {
        return Ok(missing);
    }
    let places = Places::prepare(&Workspace::load()?.target_directory)?;
    if !succeeds(&mut build_command(arguments))? {
        println!("\n0 passed, 1 failed");
        bail!("the build failed");
    }
    leftover::adopt_orphans()?;
    let begin = Instant::now();
    let mut command = test_command(&places, arguments);
    println!("$ {}", shown(&command));
    let (mut exit_code, tally) = run_tests(&mut command, &places.output)?;
    let mut complaints =
        log_scan::complaints(&places.logs, &places.output, &places.canaries, &places.expected_errors)?;
    complaints.extend(tally.complaints());
    println!("\n{}", tally.table());
    println!("{:.0} s for {} suites", begin.elapsed().as_secs_f32(), tally.suites.len());
    for complaint in &complaints {
        println!("error: {complaint}");
    }
    if exit_code == 0 && !complaints.is_empty() {
        exit_code = EXIT_FAILED;
    }
    println!("{} passed, {} failed", tally.passed(), tally.failed() + complaints.len());
    Ok(ExitCode::from(exit_code))
}

/// Installs the programs that tests and benchmarks run, or says which are missing and gives the exit code for that.
pub(crate) fn provide() -> Result<Option<ExitCode>> {
    Ok(need::provide()?.map(|missing| {
        println!("{missing}");
        ExitCode::from(EXIT_MISSING)
    }))
}

/// Runs the decoders under bytes of any content, optimised: for as long as the arguments say.
pub(crate) fn fuzz(arguments: &[String]) -> Result<ExitCode> {
    let mut command = cargo();
    command.args(["test", "--release", "--locked", "-p", "wayleave-fuzz", "--test", "decoders", "--"]);
    Ok(if succeeds(command.args(arguments))? { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

impl Places {
    /// Empties what an earlier run left.
    fn prepare(target: &Path) -> Result<Self> {
        let places = Self {
            binaries: target.join("debug"),
            logs: target.join("test-logs"),
            canaries: target.join("test-canaries"),
            expected_errors: target.join("test-logs").join(log_scan::EXPECTED_ERRORS),
            output: target.join("test-output.txt"),
        };
        if places.logs.exists() {
            std::fs::remove_dir_all(&places.logs).context("cannot empty target/test-logs")?;
        }
        std::fs::create_dir_all(&places.logs).context("cannot create target/test-logs")?;
        File::create(&places.canaries).context("cannot create target/test-canaries")?;
        File::create(&places.expected_errors).context("cannot create target/test-logs/expected-errors")?;
        Ok(places)
    }
}

/// Binaries and tests together, so that they share one build of what they use; for a selection of tests the
/// binaries alone.
fn build_command(arguments: &[String]) -> Command {
    let mut command = cargo();
    command.args(["build", "--locked", "--workspace", "--bins"]);
    if arguments.is_empty() {
        command.arg("--tests");
    }
    command
}

/// `--show-output`, because a secret in the output of a test that passes is as bad.
fn test_command(places: &Places, arguments: &[String]) -> Command {
    let mut command = cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    let selection = arguments.split(|argument| argument == "--").collect::<Vec<_>>();
    match selection.first() {
        Some([]) | None => command.arg("--workspace"),
        Some(selected) => command.args(*selected),
    };
    command.args(["--", "--show-output"]);
    command.args(selection.iter().skip(1).flat_map(|part| part.iter()));
    command.env("CARGO_TERM_COLOR", "never");
    command.env("WAYLEAVE_BIN_DIR", &places.binaries);
    command.env("WAYLEAVE_TEST_LOGS", &places.logs);
    command.env("WAYLEAVE_CANARY_FILE", &places.canaries);
    command.env("WAYLEAVE_EXPECTED_ERRORS", &places.expected_errors);
    command
}

/// Runs the tests with both outputs in one pipe, so that suites and their results stay in order. Processes
/// that are left hold that pipe open: they are ended before its end is awaited.
fn run_tests(command: &mut Command, output: &Path) -> Result<(u8, Tally)> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let file = File::create(output).with_context(|| format!("cannot create {}", output.display()))?;
    let mut child = command.spawn().context("cannot start cargo test")?;
    // The command holds the writing ends, which would keep the pipe open.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || read_output(reader, file));
        let status = child.wait().context("cargo test")?;
        let left = leftover::end_all()?;
        let mut tally = match reading.join() {
            Ok(tally) => tally?,
            Err(_) => bail!("reading the output of the tests failed"),
        };
        tally.left_processes = left;
        let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(EXIT_FAILED);
        Ok((code, tally))
    })
}

fn read_output(reader: PipeReader, mut file: File) -> Result<Tally> {
    let mut reader = BufReader::new(reader);
    let mut tally = Tally::default();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        file.write_all(&line)?;
        let text = String::from_utf8_lossy(&line);
        if tally.take(text.trim_end()) {
            print!("{text}");
        }
        line.clear();
    }
    Ok(tally)
}
