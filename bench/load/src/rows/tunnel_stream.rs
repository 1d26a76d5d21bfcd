//! Row 8: one TCP stream through a tunnel, each way, and what every process spends on it.

use super::tunnel::{Path, Tunnels};
use crate::loader::{number, run_once};
use crate::place::Place;
use crate::proc_fs::cpu_seconds;
use crate::report::{CpuShare, Findings, Judgement, ratio};
use crate::sample::{Series, median, take_turns};
use anyhow::Result;
use std::collections::BTreeMap;

const MIB: f64 = 1_048_576.0;
const MIB_PER_GIB: f64 = 1_024.0;
const BYTES_PER_MB: f64 = 1_000_000.0;
const ONE_HOP_MIN: f64 = 1.0;
const PEERED_MIN: f64 = 0.75;

struct Stream {
    megabytes_per_second: f64,
    cpu: BTreeMap<&'static str, f64>,
}

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    place.clear();
    let (runs, mib) = (place.options.runs, place.options.stream_mib);
    let tunnels = Tunnels::start(place)?;
    let mut findings = Findings::default();
    findings.notes.push(format!(
        "One connection of {mib} MiB of zeros from a client to a target, both the same program for every contender."
    ));
    findings.notes.push(Tunnels::NOTE.to_owned());
    for direction in ["down", "up"] {
        eprintln!("  {direction}");
        let streams = take_turns(&Path::ALL, runs, |path| stream(place, &tunnels, *path, direction, mib))?;
        let mut all = Vec::new();
        for (path, streams) in Path::ALL.iter().zip(&streams) {
            let name = format!("{direction}: {}", path.name());
            findings.cpu.extend(cpu_shares(&name, streams));
            all.push(Series::new(name, "MB/s", streams.iter().map(|s| s.megabytes_per_second).collect())?);
        }
        for (path, goal) in [(Path::OneHop, ONE_HOP_MIN), (Path::Peered, PEERED_MIN)] {
            let [ours, theirs] = [path, Path::Rathole].map(|path| format!("{direction}: {}", path.name()));
            let value = ratio(&all, &ours, &theirs)?;
            findings.judgements.push(Judgement::at_least(format!("{ours} / rathole TLS"), value, goal));
        }
        findings.series.extend(all);
    }
    Ok(findings)
}

fn stream(place: &Place<'_>, tunnels: &Tunnels, path: Path, direction: &str, mib: u64) -> Result<Stream> {
    let processes = tunnels.processes(path)?;
    let before = processes.iter().map(|(_, pid)| cpu_seconds(*pid)).collect::<Result<Vec<_>>>()?;
    let (entry, size) = (tunnels.entry(path).to_string(), mib.to_string());
    let arguments = ["stream", "--connect", &entry, "--mib", &size, "--direction", direction];
    let report = run_once(&place.options.bin_dir, &arguments)?;
    let mut cpu = BTreeMap::new();
    for ((name, pid), before) in processes.iter().zip(before) {
        *cpu.entry(*name).or_default() += (cpu_seconds(*pid)? - before) / (mib as f64 / MIB_PER_GIB);
    }
    Ok(Stream { megabytes_per_second: mib as f64 * MIB / BYTES_PER_MB / number(&report, "seconds")?, cpu })
}

/// The median of each process that the streams passed.
fn cpu_shares(contender: &str, streams: &[Stream]) -> Vec<CpuShare> {
    let mut by_process: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (process, seconds) in streams.iter().flat_map(|stream| &stream.cpu) {
        by_process.entry(process).or_default().push(*seconds);
    }
    by_process
        .into_iter()
        .filter_map(|(process, seconds)| {
            let seconds_per_gib = median(&seconds)?;
            Some(CpuShare { contender: contender.to_owned(), process: process.to_owned(), seconds_per_gib })
        })
        .collect()
}
