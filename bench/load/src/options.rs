//! What is measured, and how often.

use crate::rows::Row;
use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const USAGE: &str = "\
Usage: cargo xtask bench [ROW]… [OPTION]…

Measures rows of BUDGETS beside their peers, interleaved, and writes bench/results/ROW.json and bench/RESULTS.md.
Rows: 1 to 16 (all when none is named).

  --runs N        runs of every contender (default 5, at least 5 for a figure to be quoted)
  --mib N         size of a stream in rows 3 and 8 (default 2048)
  --dials N       connections of one run in row 12 (default 5000)
  --more-dials N  peered connections after those, only to see whether one fails (default none)
  --tunnels N     tunnels of a proxy in rows 10 and 11, of all in row 13 (default 15000)
  --sessions N    sessions before memory is looked at in row 6 (default 100)
  --idle-s N      seconds idle after them, and in row 10 (default 60)
  --bin-dir DIR   where `wayleave` and `way` are (default: beside this program)
  --out DIR       where to write (default bench)
";

/// Fewer runs than these give a figure that nobody should quote; the report says so.
pub(crate) const RUNS_QUOTABLE: usize = 5;
const RUNS_MAX: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) rows: Vec<Row>,
    pub(crate) runs: usize,
    pub(crate) stream_mib: u64,
    pub(crate) sessions: usize,
    pub(crate) dials: u64,
    pub(crate) more_dials: u64,
    pub(crate) tunnels: u64,
    pub(crate) idle: Duration,
    pub(crate) bin_dir: PathBuf,
    pub(crate) out: PathBuf,
    /// The arguments that make the same run again.
    pub(crate) shown: String,
}

impl Options {
    /// `None` when help was asked for.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            rows: Vec::new(),
            runs: RUNS_QUOTABLE,
            stream_mib: 2_048,
            sessions: 100,
            dials: 5_000,
            more_dials: 0,
            tunnels: 15_000,
            idle: Duration::from_secs(60),
            bin_dir: beside_this_program()?,
            out: PathBuf::from("bench"),
            shown: String::new(),
        };
        let mut shown = Vec::new();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} wants a value"));
            match argument.as_str() {
                "-h" | "--help" => return Ok(None),
                "--bin-dir" => options.bin_dir = PathBuf::from(value()?),
                "--out" => options.out = PathBuf::from(value()?),
                "--runs" | "--mib" | "--dials" | "--more-dials" | "--tunnels" | "--sessions" | "--idle-s" => {
                    let number = value()?;
                    options.set(&argument, &number)?;
                    shown.push(format!("{argument} {number}"));
                }
                row => options.rows.push(Row::parse(row)?),
            }
        }
        if options.rows.is_empty() {
            options.rows = Row::ALL.to_vec();
        }
        options.shown = shown.join(" ");
        Ok(Some(options))
    }

    fn set(&mut self, option: &str, text: &str) -> Result<()> {
        let number: u64 = text.parse().with_context(|| format!("{option} wants a number, not {text:?}"))?;
        ensure!(number > 0, "{option} wants more than 0");
        match option {
            "--runs" => self.runs = usize::try_from(number)?.min(RUNS_MAX),
            "--mib" => self.stream_mib = number,
            "--dials" => self.dials = number,
            "--more-dials" => self.more_dials = number,
            "--tunnels" => self.tunnels = number,
            "--sessions" => self.sessions = usize::try_from(number)?,
            "--idle-s" => self.idle = Duration::from_secs(number),
            other => bail!("{other} is no option"),
        }
        Ok(())
    }

    /// The command line that measures one row like this again.
    pub(crate) fn command(&self, row: Row) -> String {
        format!("cargo xtask bench {} {}", row.number(), self.shown).trim_end().to_owned()
    }

    /// `release` or `debug`, as the directory of the binaries is called.
    pub(crate) fn profile(&self) -> String {
        self.bin_dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

fn beside_this_program() -> Result<PathBuf> {
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    Ok(program.parent().context("this program is in no directory")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn rows_and_numbers_are_taken_and_shown() {
        let options = parse("1 --runs 7 3 --mib 512 --out /tmp/x").unwrap().unwrap();
        assert_eq!((options.rows.len(), options.runs, options.stream_mib), (2, 7, 512));
        assert_eq!(options.command(Row::Stream), "cargo xtask bench 3 --runs 7 --mib 512");
        assert_eq!(parse("").unwrap().unwrap().rows, Row::ALL);
        assert!(parse("--help").unwrap().is_none());
    }

    #[test]
    fn what_is_not_measured_is_refused() {
        for line in ["99", "--runs", "--runs 0", "--runs x", "--fast"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
