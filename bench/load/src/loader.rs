//! A `wayleave-load` process: lives until it is dropped, and says in lines of JSON what it has done.

use crate::watched::shown;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub(crate) struct Loader {
    child: Child,
    /// Its end tells the process to end.
    input: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

impl Loader {
    /// # Errors
    /// When it cannot start.
    pub(crate) fn start(bin_dir: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = program(bin_dir, arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| shown(&command))?;
        let input = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("it was piped")?);
        Ok(Self { child, input, lines })
    }

    /// What it says next.
    ///
    /// # Errors
    /// When it ends instead.
    pub(crate) fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("wayleave-load ended with {}", self.child.wait()?);
        }
        serde_json::from_str(&line).with_context(|| format!("wayleave-load said {line:?}"))
    }

    /// Tells it something.
    ///
    /// # Errors
    /// When it does not listen any more.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("it was told that there is no more")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// Tells it to end, and hears its last line.
    ///
    /// # Errors
    /// When it says nothing.
    pub(crate) fn finish(mut self) -> Result<Value> {
        self.input = None;
        self.line()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.input = None;
        if let Ok(status) = self.child.wait()
            && !status.success()
        {
            eprintln!("  wayleave-load ended with {status}");
        }
    }
}

/// Runs one that ends by itself; gives the last line.
///
/// # Errors
/// When it fails.
pub(crate) fn run_once(bin_dir: &Path, arguments: &[&str]) -> Result<Value> {
    let mut command = program(bin_dir, arguments);
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().with_context(|| shown(&command))?;
    ensure!(output.status.success(), "{} ended with {}", shown(&command), output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().with_context(|| format!("{} said nothing", shown(&command)))?;
    serde_json::from_str(line).with_context(|| format!("wayleave-load said {line:?}"))
}

fn program(bin_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(bin_dir.join("wayleave-load"));
    command.args(arguments);
    command
}

/// A number that it said.
///
/// # Errors
/// When it said no such thing.
pub(crate) fn number(report: &Value, name: &str) -> Result<f64> {
    report.get(name).and_then(Value::as_f64).with_context(|| format!("no {name} in {report}"))
}
