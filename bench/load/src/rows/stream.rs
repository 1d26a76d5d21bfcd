//! Row 3: one long stream over SSH, each way, and what every process spends on it.

use crate::cluster::NODE;
use crate::daemon::Daemon;
use crate::place::{Field, Place};
use crate::report::{CpuShare, Findings, Judgement, ratio};
use crate::sample::{Series, median, take_turns};
use crate::watched::{self, Run};
use anyhow::Result;
use std::collections::BTreeMap;
use std::process::Command;

const MIB: f64 = 1_048_576.0;
const MIB_PER_GIB: f64 = 1_024.0;
const BYTES_PER_MB: f64 = 1_000_000.0;

const PEERED_TO_JUMP_MIN: f64 = 1.0;
const PEERED_TO_JUMP_STRETCH: f64 = 1.2;
/// One and a half times the share of a direct stream that Warpgate was seen to keep (335 of 729 MB/s).
const ONE_HOP_TO_DIRECT_MIN: f64 = 1.5 * 0.46;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Peered,
    OneHop,
    Jumped,
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Download,
    Upload,
}

impl Path {
    const ALL: [Self; 4] = [Self::Peered, Self::OneHop, Self::Jumped, Self::Direct];

    fn name(self) -> &'static str {
        match self {
            Self::Peered => "ssh via way proxy ssh, peered",
            Self::OneHop => "ssh via way proxy ssh, one hop",
            Self::Jumped => "ssh -J jump",
            Self::Direct => "ssh direct",
        }
    }

    fn command(self, field: &Field) -> Result<Command> {
        let site = &field.peered.site;
        match self {
            Self::Peered => site.ssh(field.peered.ingress().web, NODE),
            Self::OneHop => site.ssh(field.peered.home().web, NODE),
            Self::Jumped => Ok(field.openssh.jumped()),
            Self::Direct => Ok(field.openssh.direct()),
        }
    }

    /// The servers the stream passes, from the client on.
    fn servers(self, field: &Field) -> Vec<(&'static str, &Daemon)> {
        let home = ("home proxy", &field.peered.home().daemon);
        let agent = ("agent", &field.peered.node);
        let target = ("target sshd", &field.openssh.target);
        match self {
            Self::Peered => vec![("ingress proxy", &field.peered.ingress().daemon), home, agent],
            Self::OneHop => vec![home, agent],
            Self::Jumped => vec![("jump sshd", &field.openssh.jump), target],
            Self::Direct => vec![target],
        }
    }
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
        }
    }
}

struct Stream {
    megabytes_per_second: f64,
    /// CPU seconds for each GiB, by process.
    cpu: BTreeMap<String, f64>,
}

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    let (runs, mib) = (place.options.runs, place.options.stream_mib);
    let field = place.field()?;
    let mut findings = Findings::default();
    findings.notes.push(format!(
        "Streams of {mib} MiB of zeros, connecting included: download `ssh node 'head -c N /dev/zero' > /dev/null`, \
         upload `head -c N /dev/zero | ssh node 'cat > /dev/null'`."
    ));
    findings.notes.push(
        "Warpgate did not run here: its goal is held against 1.5 x 0.46 x direct, the share it was seen to keep."
            .to_owned(),
    );
    findings.notes.push(
        "CPU: each process with what it started, as seen every 50 ms; the last moments of one that ends are missed. \
         `head`, `cat` and `sh` are the user's own command."
            .to_owned(),
    );
    for direction in [Direction::Download, Direction::Upload] {
        eprintln!("  {}", direction.name());
        let streams = take_turns(&Path::ALL, runs, |path| stream(field, *path, direction, mib))?;
        let mut all = Vec::new();
        for (path, streams) in Path::ALL.iter().zip(&streams) {
            let name = format!("{}: {}", direction.name(), path.name());
            findings.cpu.extend(cpu_shares(&name, streams));
            all.push(Series::new(name, "MB/s", streams.iter().map(|s| s.megabytes_per_second).collect())?);
        }
        judge(&mut findings, direction, &all)?;
        findings.series.extend(all);
    }
    Ok(findings)
}

fn judge(findings: &mut Findings, direction: Direction, series: &[Series]) -> Result<()> {
    let name = |path: Path| format!("{}: {}", direction.name(), path.name());
    let label = |ours: Path, theirs: Path| format!("{} / {}", name(ours), theirs.name());
    let peered = ratio(series, &name(Path::Peered), &name(Path::Jumped))?;
    let one_hop = ratio(series, &name(Path::OneHop), &name(Path::Direct))?;
    findings.judgements.extend([
        Judgement::at_least(label(Path::Peered, Path::Jumped), peered, PEERED_TO_JUMP_MIN),
        Judgement::at_least(label(Path::Peered, Path::Jumped), peered, PEERED_TO_JUMP_STRETCH).stretched(),
        Judgement::at_least(label(Path::OneHop, Path::Direct), one_hop, ONE_HOP_TO_DIRECT_MIN),
    ]);
    Ok(())
}

fn stream(field: &Field, path: Path, direction: Direction, mib: u64) -> Result<Stream> {
    let servers = path.servers(field);
    let pids: Vec<(&'static str, u32)> = servers.iter().map(|(name, daemon)| (*name, daemon.pid())).collect();
    let run = transfer(path.command(field)?, direction, mib * 1_048_576, &pids)?;
    for (_, daemon) in &servers {
        daemon.wait_alone()?;
    }
    let gib = mib as f64 / MIB_PER_GIB;
    let cpu = run.cpu.into_iter().map(|(name, seconds)| (name, seconds / gib)).collect();
    let megabytes = mib as f64 * MIB / BYTES_PER_MB;
    Ok(Stream { megabytes_per_second: megabytes / run.wall.as_secs_f64(), cpu })
}

fn transfer(
    mut ssh: Command,
    direction: Direction,
    bytes: u64,
    servers: &[(&'static str, u32)],
) -> Result<Run> {
    match direction {
        Direction::Download => watched::watch(ssh.arg(format!("head -c {bytes} /dev/zero")), None, servers),
        Direction::Upload => {
            let mut source = Command::new("head");
            source.args(["-c", &bytes.to_string(), "/dev/zero"]);
            watched::watch(ssh.arg("cat > /dev/null"), Some(&mut source), servers)
        }
    }
}

/// The median of each process that any of the streams passed.
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
