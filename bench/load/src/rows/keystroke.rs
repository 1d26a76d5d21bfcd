//! Row 4: how long a key takes to come back from a terminal on the node, idle and beside a copy.

use crate::cluster::NODE;
use crate::daemon::pause;
use crate::openssh::SharedJump;
use crate::place::{Field, Place};
use crate::report::{Findings, Judgement, ratio};
use crate::sample::{Series, percentile, take_turns};
use crate::watched::shown;
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const IDLE_ADDED_MAX_MS: f64 = 0.4;
const BULK_TO_JUMP_MAX: f64 = 0.5;
/// Keys of one run: so many, or as many as come back in the time.
const KEYS_MAX: usize = 1_000;
const KEYS_MIN: usize = 100;
const RUN_TIME: Duration = Duration::from_secs(3);
/// A copy runs so long before keys are typed.
const COPY_WARM_UP: Duration = Duration::from_millis(500);
/// A terminal that passes on every byte at once and shows it only when it came back.
const TERMINAL: &str = "stty raw -echo; echo ready; exec cat";
const COPY: &str = "cat /dev/zero";
const COPY_CHUNK_BYTES: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Peered,
    OneHop,
    Jumped,
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Beside {
    Nothing,
    Copy,
    /// Bytes a second.
    CappedCopy(f64),
}

struct Echoes {
    p50_ms: f64,
    p99_ms: f64,
    copied_per_second: f64,
}

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    let runs = place.options.runs;
    let field = place.field()?;
    let jump = field.openssh.share_jump()?;
    let mut findings = Findings::default();
    findings.notes.push(
        "A byte into `ssh -tt node 'stty raw -echo; cat'` and back. The copy is `ssh node 'cat /dev/zero'` to the same \
         agent by the same proxies; for `ssh -J` both are in one connection to the jump host (ControlMaster there). \
         Capped is half of what the same copy reached uncapped."
            .to_owned(),
    );
    let idle = [Path::Peered, Path::OneHop, Path::Jumped, Path::Direct];
    eprintln!("  idle");
    let echoes = take_turns(&idle, runs, |path| type_keys(field, &jump, *path, Beside::Nothing))?;
    let [peered, _, _, direct] = add(&mut findings, "idle", idle, &echoes)?;
    let added = peered.p50_ms - direct.p50_ms;
    let what = "idle: p50 peered less p50 of ssh direct".to_owned();
    findings.judgements.push(Judgement::at_most(what, added, IDLE_ADDED_MAX_MS).in_unit("ms"));

    let busy = [Path::Peered, Path::Jumped];
    eprintln!("  beside a copy");
    let echoes = take_turns(&busy, runs, |path| type_keys(field, &jump, *path, Beside::Copy))?;
    let rates = add(&mut findings, "beside a copy", busy, &echoes)?.map(|echoes| echoes.copied_per_second);
    for (path, rate) in busy.iter().zip(rates) {
        findings.notes.push(format!("{}: the uncapped copy reached {:.0} MB/s.", path.name(), rate / 1e6));
    }
    eprintln!("  beside a capped copy");
    let [peered_rate, jumped_rate] = rates;
    let capped = [(Path::Peered, peered_rate / 2.0), (Path::Jumped, jumped_rate / 2.0)];
    let echoes =
        take_turns(&capped, runs, |(path, rate)| type_keys(field, &jump, *path, Beside::CappedCopy(*rate)))?;
    add(&mut findings, "beside a capped copy", busy, &echoes)?;
    for state in ["beside a copy", "beside a capped copy"] {
        let name = |path: Path| format!("{state}: {}, p99", path.name());
        let value = ratio(&findings.series, &name(Path::Peered), &name(Path::Jumped))?;
        let what = format!("{} / {}", name(Path::Peered), Path::Jumped.name());
        findings.judgements.push(Judgement::at_most(what, value, BULK_TO_JUMP_MAX));
    }
    Ok(findings)
}

impl Path {
    fn name(self) -> &'static str {
        match self {
            Self::Peered => "ssh via way proxy ssh, peered",
            Self::OneHop => "ssh via way proxy ssh, one hop",
            Self::Jumped => "ssh -J jump",
            Self::Direct => "ssh direct",
        }
    }

    fn command(self, field: &Field, jump: &SharedJump) -> Result<Command> {
        let site = &field.peered.site;
        match self {
            Self::Peered => site.ssh(field.peered.ingress().web, NODE),
            Self::OneHop => site.ssh(field.peered.home().web, NODE),
            Self::Jumped => Ok(jump.jumped()),
            Self::Direct => Ok(field.openssh.direct()),
        }
    }
}

/// Notes both percentiles of every contender, and gives the medians of the runs.
fn add<const N: usize>(
    findings: &mut Findings,
    state: &str,
    paths: [Path; N],
    echoes: &[Vec<Echoes>],
) -> Result<[Echoes; N]> {
    let mut medians = Vec::new();
    for (path, echoes) in paths.iter().zip(echoes) {
        let series = |what: &str, unit: &str, value: fn(&Echoes) -> f64| {
            Series::new(format!("{state}: {}, {what}", path.name()), unit, echoes.iter().map(value).collect())
        };
        let (p50, p99) = (series("p50", "ms", |e| e.p50_ms)?, series("p99", "ms", |e| e.p99_ms)?);
        let copied = series("copied", "B/s", |e| e.copied_per_second)?;
        medians.push(Echoes { p50_ms: p50.median, p99_ms: p99.median, copied_per_second: copied.median });
        findings.series.extend([p50, p99]);
    }
    medians.try_into().ok().context("every contender has runs")
}

fn type_keys(field: &Field, jump: &SharedJump, path: Path, beside: Beside) -> Result<Echoes> {
    let mut terminal = Terminal::open(path.command(field, jump)?)?;
    let copy = match beside {
        Beside::Nothing => None,
        Beside::Copy => Some(Copy::start(path.command(field, jump)?, None)?),
        Beside::CappedCopy(rate) => Some(Copy::start(path.command(field, jump)?, Some(rate))?),
    };
    if copy.is_some() {
        pause(COPY_WARM_UP);
    }
    let mut times_ms = Vec::with_capacity(KEYS_MAX);
    let started = Instant::now();
    while times_ms.len() < KEYS_MAX && (times_ms.len() < KEYS_MIN || started.elapsed() < RUN_TIME) {
        times_ms.push(terminal.type_key()?.as_secs_f64() * 1_000.0);
    }
    let copied_per_second = copy.map(Copy::stop).transpose()?.unwrap_or_default();
    drop(terminal);
    field.peered.node.wait_alone()?;
    field.openssh.target.wait_alone()?;
    let at = |share| percentile(&times_ms, share).context("no key came back");
    Ok(Echoes { p50_ms: at(0.5)?, p99_ms: at(0.99)?, copied_per_second })
}

/// A terminal on the node.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: ChildStdout,
}

impl Terminal {
    fn open(mut ssh: Command) -> Result<Self> {
        ssh.args(["-o", "RequestTTY=force", TERMINAL]);
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = ssh.spawn().with_context(|| shown(&ssh))?;
        let keys = child.stdin.take().context("it was piped")?;
        let screen = child.stdout.take().context("it was piped")?;
        let mut terminal = Self { child, keys, screen };
        let mut seen = Vec::new();
        while !seen.ends_with(b"ready\n") {
            seen.push(terminal.read_key().context("the terminal did not open")?);
        }
        Ok(terminal)
    }

    fn type_key(&mut self) -> Result<Duration> {
        let started = Instant::now();
        self.keys.write_all(b"k")?;
        ensure!(self.read_key()? == b'k', "another key came back");
        Ok(started.elapsed())
    }

    fn read_key(&mut self) -> Result<u8> {
        let mut key = [0];
        self.screen.read_exact(&mut key)?;
        Ok(key[0])
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A copy that runs until it is stopped, and the thread that takes what comes.
struct Copy {
    child: Child,
    is_counting: Arc<AtomicBool>,
    copied_bytes: Arc<AtomicU64>,
    started: Instant,
    reader: JoinHandle<()>,
}

impl Copy {
    fn start(mut ssh: Command, bytes_per_second: Option<f64>) -> Result<Self> {
        ssh.arg(COPY).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = ssh.spawn().with_context(|| shown(&ssh))?;
        let mut data = child.stdout.take().context("it was piped")?;
        let mut chunk = vec![0; COPY_CHUNK_BYTES];
        data.read_exact(&mut chunk).context("the copy does not begin")?;
        let (is_counting, copied_bytes) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let (counting, copied, started) = (is_counting.clone(), copied_bytes.clone(), Instant::now());
        let reader = std::thread::spawn(move || {
            while let Ok(length @ 1..) = data.read(&mut chunk) {
                if !counting.load(Ordering::Relaxed) {
                    break;
                }
                let total = copied.fetch_add(length as u64, Ordering::Relaxed);
                if let Some(rate) = bytes_per_second {
                    let due = Duration::from_secs_f64(total as f64 / rate);
                    pause(due.saturating_sub(started.elapsed()));
                }
            }
        });
        Ok(Self { child, is_counting, copied_bytes, started, reader })
    }

    /// Bytes a second.
    fn stop(mut self) -> Result<f64> {
        let rate = self.copied_bytes.load(Ordering::Relaxed) as f64 / self.started.elapsed().as_secs_f64();
        self.is_counting.store(false, Ordering::Relaxed);
        self.child.kill()?;
        self.child.wait()?;
        self.reader.join().map_err(|_| anyhow::anyhow!("the reading thread panicked"))?;
        Ok(rate)
    }
}
