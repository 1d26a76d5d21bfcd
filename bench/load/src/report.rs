//! What is written: one JSON file for each row, and from all of them the table in RESULTS.md.

use crate::machine::{self, Machine};
use crate::options::{Options, RUNS_QUOTABLE};
use crate::rows::Row;
use crate::sample::Series;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// What measuring a row gave.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) series: Vec<Series>,
    pub(crate) judgements: Vec<Judgement>,
    pub(crate) cpu: Vec<CpuShare>,
    pub(crate) notes: Vec<String>,
    /// It takes so long that it is done once, whatever was asked for.
    pub(crate) is_single: bool,
}

/// CPU seconds that one process spends on each GiB; the median of the runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CpuShare {
    pub(crate) contender: String,
    pub(crate) process: String,
    pub(crate) seconds_per_gib: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Relation {
    AtMost,
    AtLeast,
}

/// A median, or a ratio of two, held against its goal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Judgement {
    what: String,
    measured: f64,
    unit: String,
    relation: Relation,
    goal: f64,
    is_stretch: bool,
    met: bool,
}

impl Judgement {
    pub(crate) fn at_most(what: String, measured: f64, goal: f64) -> Self {
        let met = measured <= goal;
        Self {
            what,
            measured,
            unit: "x".to_owned(),
            relation: Relation::AtMost,
            goal,
            is_stretch: false,
            met,
        }
    }

    pub(crate) fn at_least(what: String, measured: f64, goal: f64) -> Self {
        let met = measured >= goal;
        Self {
            what,
            measured,
            unit: "x".to_owned(),
            relation: Relation::AtLeast,
            goal,
            is_stretch: false,
            met,
        }
    }

    /// No ratio but a figure of its own.
    pub(crate) fn in_unit(mut self, unit: &str) -> Self {
        unit.clone_into(&mut self.unit);
        self
    }

    /// Hoped for, not demanded.
    pub(crate) fn stretched(mut self) -> Self {
        self.is_stretch = true;
        self
    }

    fn goal_text(&self) -> String {
        let relation = match self.relation {
            Relation::AtMost => "<=",
            Relation::AtLeast => ">=",
        };
        let stretch = if self.is_stretch { " (stretch)" } else { "" };
        format!("{relation} {} {}{stretch}", number(self.goal), self.unit)
    }

    fn verdict(&self) -> &'static str {
        if self.met { "met" } else { "**lost**" }
    }
}

impl Findings {
    pub(crate) fn with(mut self, series: Vec<Series>) -> Self {
        self.series = series;
        self
    }
}

/// Ours through theirs, of medians.
pub(crate) fn ratio(series: &[Series], ours: &str, theirs: &str) -> Result<f64> {
    let median = |name: &str| {
        let found = series.iter().find(|series| series.name == name);
        found.map(|series| series.median).with_context(|| format!("{name} was not measured"))
    };
    Ok(median(ours)? / median(theirs)?)
}

/// A row as it is kept.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RowReport {
    row: u8,
    title: String,
    goal: String,
    command: String,
    measured_at: String,
    profile: String,
    runs: usize,
    machine: Machine,
    versions: BTreeMap<String, String>,
    load_before: String,
    load_after: String,
    judgements: Vec<Judgement>,
    series: Vec<Series>,
    cpu: Vec<CpuShare>,
    notes: Vec<String>,
}

impl RowReport {
    pub(crate) fn new(row: Row, options: &Options, findings: Findings, load_before: String) -> Result<Self> {
        let Findings { series, judgements, cpu, mut notes, is_single } = findings;
        let runs = if is_single { 1 } else { options.runs };
        let profile = options.profile();
        if profile != "release" {
            notes.insert(0, format!("Measured with {profile} binaries: says nothing about the goal."));
        }
        if runs < RUNS_QUOTABLE {
            let runs = if runs == 1 { "One run".to_owned() } else { format!("Only {runs} runs") };
            notes.insert(0, format!("{runs}: not to be quoted."));
        }
        Ok(Self {
            row: row.number(),
            title: row.title().to_owned(),
            goal: row.goal().to_owned(),
            command: options.command(row),
            measured_at: machine::date(),
            profile,
            runs,
            machine: Machine::here(),
            versions: machine::versions(&options.bin_dir),
            load_before,
            load_after: machine::load(),
            judgements,
            series,
            cpu,
            notes,
        })
    }

    /// Writes `results/ROW.json` and a picture of it beside.
    pub(crate) fn write(&self, out: &Path) -> Result<()> {
        let directory = out.join("results");
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let path = directory.join(format!("{}.json", self.row));
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        let picture = crate::plot::svg(&format!("Row {}: {}", self.row, self.title), &self.series)?;
        let path = path.with_extension("svg");
        fs::write(&path, picture).with_context(|| path.display().to_string())
    }

    /// Tells the person who waits.
    pub(crate) fn show(&self) {
        for series in &self.series {
            let Series { name, unit, min, median, max, .. } = series;
            eprintln!("  {name:<55} {} {unit} ({} to {})", number(*median), number(*min), number(*max));
        }
        for judgement in &self.judgements {
            let (measured, unit) = (number(judgement.measured), &judgement.unit);
            eprintln!(
                "  {}: {measured} {unit}, goal {}: {}",
                judgement.what,
                judgement.goal_text(),
                judgement.verdict()
            );
        }
    }

    fn section(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n## Row {}: {}\n\nGoal: {}.\n", self.row, self.title, self.goal)?;
        writeln!(text, "| | median | min | max | unit |\n|---|---:|---:|---:|---|")?;
        for series in &self.series {
            let Series { name, unit, min, median, max, .. } = series;
            writeln!(
                text,
                "| {name} | {} | {} | {} | {unit} |",
                number(*median),
                number(*min),
                number(*max)
            )?;
        }
        if !self.cpu.is_empty() {
            writeln!(text, "\n| | process | CPU s per GiB |\n|---|---|---:|")?;
            for CpuShare { contender, process, seconds_per_gib } in &self.cpu {
                writeln!(text, "| {contender} | {process} | {} |", number(*seconds_per_gib))?;
            }
        }
        writeln!(text)?;
        for note in &self.notes {
            writeln!(text, "- {note}")?;
        }
        let versions: Vec<String> =
            self.versions.iter().map(|(name, version)| format!("{name}: {version}")).collect();
        let Machine { cpu, cores, memory_mib, kernel } = &self.machine;
        writeln!(
            text,
            "- `{}`, {}, {} binaries, {}.",
            self.command,
            if self.runs == 1 { "one run".to_owned() } else { format!("{} runs of each", self.runs) },
            self.profile,
            self.measured_at
        )?;
        writeln!(
            text,
            "- {cores} cores of {cpu}, {memory_mib} MiB, Linux {kernel}; {}.",
            versions.join("; ")
        )?;
        writeln!(text, "- Load averages before: {}; after: {}.", self.load_before, self.load_after)
    }
}

const HEAD: &str = "\
# Results

Written by `cargo xtask bench`; do not edit. How fast and how small Wayleave is beside its peers on the same work, on one
machine, in one run, all on loopback, contenders taking turns. Times do not travel between machines; the ratios do, more
or less. *Peered*: client, ingress proxy, another proxy that holds the agent's tunnel, agent, each its own process, TLS
everywhere. *One hop*: the client enters by that proxy itself. Every stock client is a cold OpenSSH with curve25519-sha256
and aes128-gcm@openssh.com, without a control master; sshd runs without PAM. A row that we lose stays.

| row | what | measured | goal | verdict |
|---|---|---:|---|---|
";

/// Writes RESULTS.md from all rows that were ever kept.
pub(crate) fn write_table(out: &Path) -> Result<()> {
    let mut reports = Vec::new();
    for row in Row::ALL {
        let path = out.join("results").join(format!("{}.json", row.number()));
        if let Ok(text) = fs::read_to_string(&path) {
            let report: RowReport =
                serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            reports.push(report);
        }
    }
    let path = out.join("RESULTS.md");
    fs::write(&path, table(&reports)?).with_context(|| path.display().to_string())
}

fn table(reports: &[RowReport]) -> Result<String> {
    let mut text = HEAD.to_owned();
    for report in reports {
        for judgement in &report.judgements {
            let Judgement { what, measured, unit, .. } = judgement;
            let (goal, verdict) = (judgement.goal_text(), judgement.verdict());
            writeln!(
                text,
                "| {} | {what} | {} {unit} | {goal} | {verdict} |",
                report.row,
                number(*measured)
            )?;
        }
    }
    for report in reports {
        report.section(&mut text)?;
    }
    Ok(text)
}

/// Three digits, as far as they say something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_row_says_so() {
        let lost = Judgement::at_most("ours / theirs".to_owned(), 0.7, 0.6);
        assert_eq!((lost.goal_text().as_str(), lost.verdict()), ("<= 0.60 x", "**lost**"));
        let met = Judgement::at_least("ours / theirs".to_owned(), 1.2, 1.2).stretched();
        assert_eq!((met.goal_text().as_str(), met.verdict()), (">= 1.20 x (stretch)", "met"));
    }

    #[test]
    fn ratios_are_of_medians() {
        let series = |name, value| Series::new(name, "ms", vec![value]).unwrap();
        let both = [series("a", 1.0), series("b", 4.0)];
        assert!((ratio(&both, "a", "b").unwrap() - 0.25).abs() < f64::EPSILON);
        assert!(ratio(&both, "a", "c").is_err());
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!([number(123.4), number(12.34), number(0.123)], ["123", "12.3", "0.12"]);
    }
}
