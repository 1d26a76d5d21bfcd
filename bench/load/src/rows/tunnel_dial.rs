//! Rows 9 and 12: a new connection through a tunnel, one after the other and as many as go.

use super::tunnel::{Path, Tunnels};
use crate::loader::number;
use crate::place::Place;
use crate::proc_fs::cpu_seconds;
use crate::report::{Findings, Judgement, ratio};
use crate::sample::{Series, take_turns};
use anyhow::Result;
use serde_json::Value;

const ONE_HOP_MAX: f64 = 1.0;
const PEERED_MAX: f64 = 1.4;
const RATE_MIN: f64 = 1.0;
/// Connections of one run, one after the other.
const CONNECTIONS: u64 = 500;
const CONCURRENCY: usize = 32;
/// Further connections between two lines that tell how far it is.
const MORE_AT_ONCE: u64 = 25_000;
const MICROS_PER_MS: f64 = 1_000.0;

/// Row 9.
pub(super) fn latency(place: &mut Place<'_>) -> Result<Findings> {
    place.clear();
    let runs = place.options.runs;
    let tunnels = Tunnels::start(place)?;
    let mut findings = Findings::default();
    findings.notes.push(format!(
        "{CONNECTIONS} connections in each run, one after the other: connect, a byte there and back, close."
    ));
    findings.notes.push(Tunnels::NOTE.to_owned());
    let reports =
        take_turns(&Path::ALL, runs, |path| tunnels.fleet.dials(tunnels.entry(*path), 1, CONNECTIONS))?;
    note_failures(&mut findings, &Path::ALL, &reports)?;
    for (percentile, key) in [("p50", "p50_us"), ("p99", "p99_us")] {
        for (path, reports) in Path::ALL.iter().zip(&reports) {
            let samples = reports.iter().map(|report| Ok(number(report, key)? / MICROS_PER_MS));
            let samples = samples.collect::<Result<Vec<_>>>()?;
            findings.series.push(Series::new(format!("{}, {percentile}", path.name()), "ms", samples)?);
        }
    }
    for (path, goal) in [(Path::OneHop, ONE_HOP_MAX), (Path::Peered, PEERED_MAX)] {
        let [ours, theirs] = [path, Path::Rathole].map(|path| format!("{}, p50", path.name()));
        let value = ratio(&findings.series, &ours, &theirs)?;
        findings.judgements.push(Judgement::at_most(format!("{ours} / rathole TLS"), value, goal));
    }
    Ok(findings)
}

struct Burst {
    per_second: f64,
    cpu_ms: f64,
    report: Value,
}

/// Row 12.
pub(super) fn rate(place: &mut Place<'_>) -> Result<Findings> {
    place.clear();
    let (runs, dials) = (place.options.runs, place.options.dials);
    let tunnels = Tunnels::start(place)?;
    let mut findings = Findings::default();
    findings.notes.push(format!(
        "{dials} connections in each run, {CONCURRENCY} at a time: connect, a byte there and back, close. CPU is that of \
         the processes between client and target."
    ));
    findings.notes.push(Tunnels::NOTE.to_owned());
    let paths = [Path::Peered, Path::OneHop, Path::Rathole];
    let bursts = take_turns(&paths, runs, |path| burst(&tunnels, *path, dials))?;
    let reports: Vec<Vec<Value>> =
        bursts.iter().map(|bursts| bursts.iter().map(|burst| burst.report.clone()).collect()).collect();
    note_failures(&mut findings, &paths, &reports)?;
    for (path, bursts) in paths.iter().zip(&bursts) {
        let series = |what: &str, unit: &str, value: fn(&Burst) -> f64| {
            let name =
                if what.is_empty() { path.name().to_owned() } else { format!("{}, {what}", path.name()) };
            Series::new(name, unit, bursts.iter().map(value).collect())
        };
        findings.series.push(series("", "1/s", |burst| burst.per_second)?);
        findings.series.push(series("CPU", "ms/dial", |burst| burst.cpu_ms)?);
        for (percentile, key) in [("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us")] {
            let samples = bursts.iter().map(|burst| Ok(number(&burst.report, key)? / MICROS_PER_MS));
            let name = format!("{}, {percentile}", path.name());
            findings.series.push(Series::new(name, "ms", samples.collect::<Result<Vec<_>>>()?)?);
        }
    }
    let value = ratio(&findings.series, Path::Peered.name(), Path::Rathole.name())?;
    findings.judgements.push(Judgement::at_least(
        "dials a second, peered / rathole TLS".to_owned(),
        value,
        RATE_MIN,
    ));
    let more = more_dials(&tunnels, place.options.more_dials)?;
    if !more.is_empty() {
        note_failures_of(&mut findings, "local port, peered, after the runs", &more)?;
    }
    let failed = failures(reports.first().map_or(&[], Vec::as_slice))? + failures(&more)?;
    findings
        .judgements
        .push(Judgement::at_most("failed dials, peered".to_owned(), failed, 0.0).in_unit("dials"));
    Ok(findings)
}

/// Peered connections whose time does not matter, only whether one fails.
fn more_dials(tunnels: &Tunnels, count: u64) -> Result<Vec<Value>> {
    let mut reports = Vec::new();
    let mut left = count;
    while left > 0 {
        let now = left.min(MORE_AT_ONCE);
        reports.push(tunnels.fleet.dials(tunnels.entry(Path::Peered), CONCURRENCY, now)?);
        left -= now;
        eprint!("\r  {} of {count} further connections", count - left);
    }
    if count > 0 {
        eprintln!();
    }
    Ok(reports)
}

fn burst(tunnels: &Tunnels, path: Path, dials: u64) -> Result<Burst> {
    let processes = tunnels.processes(path)?;
    let cpu = || -> Result<f64> {
        let between = processes.iter().filter(|(name, _)| *name != "target");
        between.map(|(_, pid)| cpu_seconds(*pid)).sum()
    };
    let before = cpu()?;
    let report = tunnels.fleet.dials(tunnels.entry(path), CONCURRENCY, dials)?;
    let done = number(&report, "done")?.max(1.0);
    Ok(Burst {
        per_second: done / number(&report, "seconds")?,
        cpu_ms: (cpu()? - before) * 1_000.0 / done,
        report,
    })
}

fn failures(reports: &[Value]) -> Result<f64> {
    reports.iter().map(|report| number(report, "failed")).sum()
}

fn note_failures(findings: &mut Findings, paths: &[Path], reports: &[Vec<Value>]) -> Result<()> {
    paths.iter().zip(reports).try_for_each(|(path, reports)| note_failures_of(findings, path.name(), reports))
}

fn note_failures_of(findings: &mut Findings, name: &str, reports: &[Value]) -> Result<()> {
    let done: f64 = reports.iter().map(|report| number(report, "done")).sum::<Result<f64>>()?;
    let failed = failures(reports)?;
    findings.notes.push(format!("{name}: {done:.0} connections done, {failed:.0} failed."));
    Ok(())
}
