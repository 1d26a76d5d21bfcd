//! Row 16: how many SSH sessions can begin in a second, and what one costs the agent.

use crate::cluster::NODE;
use crate::daemon::{LOOK, PATIENCE, pause};
use crate::place::{Field, Place};
use crate::proc_fs::{children_cpu_seconds, cpu_seconds, descendants, memory, session_processes};
use crate::report::{Findings, Judgement};
use crate::sample::Series;
use crate::watched::time;
use anyhow::{Context, Result, ensure};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const PER_SECOND_MIN: f64 = 150.0;
const CPU_MAX_MS: f64 = 5.0;
const MEMORY_MAX_MIB: f64 = 1.0;
const SESSIONS: usize = 300;
const CONCURRENCY: usize = 8;
/// Sessions that stand open while memory is looked at.
const OPEN: usize = 50;
const MS_PER_S: f64 = 1_000.0;

struct Burst {
    per_second: f64,
    own_ms: f64,
    children_ms: f64,
}

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    let runs = place.options.runs;
    let field = place.field()?;
    let mut findings = Findings::default();
    findings.notes.push(format!(
        "{SESSIONS} sessions of `way ssh node true` in each run, {CONCURRENCY} at a time, one hop; the clients, each a \
         process of its own, share the cores."
    ));
    burst(field)?;
    let bursts = (0..runs).map(|_| burst(field)).collect::<Result<Vec<_>>>()?;
    let shell_ms = shell_cpu_ms()?;
    let series = |name: &str, unit: &str, value: &dyn Fn(&Burst) -> f64| {
        Series::new(name, unit, bursts.iter().map(value).collect())
    };
    let rate = series("new sessions", "1/s", &|burst| burst.per_second)?;
    let cpu = series("agent CPU, children counted, less the shell", "ms/session", &|burst| {
        burst.own_ms + burst.children_ms - shell_ms
    })?;
    let own = series("agent CPU, the agent itself", "ms/session", &|burst| burst.own_ms)?;
    let shell = Series::new("`sh -c true` alone", "ms", vec![shell_ms])?;
    let memories = (0..runs).map(|_| open_sessions(field)).collect::<Result<Vec<_>>>()?;
    let agent =
        Series::new("agent memory, RssAnon", "MiB/session", memories.iter().map(|m| m.agent_mib).collect())?;
    let child = Series::new(
        "processes of a session besides the user's command, RssAnon",
        "MiB/session",
        memories.iter().map(|m| m.children_mib).collect(),
    )?;
    findings.notes.push(format!("Memory with {OPEN} sessions open that run `cat`."));
    findings.judgements.extend([
        Judgement::at_least(rate.name.clone(), rate.median, PER_SECOND_MIN).in_unit("1/s"),
        Judgement::at_most(cpu.name.clone(), cpu.median, CPU_MAX_MS).in_unit("ms"),
        Judgement::at_most("memory of a session".to_owned(), agent.median + child.median, MEMORY_MAX_MIB)
            .in_unit("MiB"),
    ]);
    Ok(findings.with(vec![rate, cpu, own, shell, agent, child]))
}

fn burst(field: &Field) -> Result<Burst> {
    let (agent, web) = (field.peered.node.pid(), field.peered.home().web);
    let (own, children) = (cpu_seconds(agent)?, below_cpu_seconds(agent)?);
    let left = AtomicUsize::new(SESSIONS);
    let started = Instant::now();
    let done: Vec<Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CONCURRENCY)
            .map(|_| {
                scope.spawn(|| {
                    let take = |left: usize| left.checked_sub(1);
                    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                        time(field.peered.site.way_ssh(web, NODE).arg("true"))?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked")))
            .collect()
    });
    let wall = started.elapsed().as_secs_f64();
    done.into_iter().collect::<Result<()>>()?;
    field.peered.node.wait_alone()?;
    let per_session = |seconds: f64| seconds * MS_PER_S / SESSIONS as f64;
    Ok(Burst {
        per_second: SESSIONS as f64 / wall,
        own_ms: per_session(cpu_seconds(agent)? - own),
        children_ms: per_session(below_cpu_seconds(agent)? - children),
    })
}

/// Of children that have ended, and of the one that they are forked from.
fn below_cpu_seconds(agent: u32) -> Result<f64> {
    let living = descendants(agent).into_iter().filter_map(|pid| cpu_seconds(pid).ok()).sum::<f64>();
    Ok(children_cpu_seconds(agent)? + living)
}

/// What the shell of a session spends by itself.
fn shell_cpu_ms() -> Result<f64> {
    let own = std::process::id();
    let before = children_cpu_seconds(own)?;
    for _ in 0..SESSIONS {
        time(Command::new("/bin/sh").args(["-c", "true"]))?;
    }
    Ok((children_cpu_seconds(own)? - before) * MS_PER_S / SESSIONS as f64)
}

struct OpenMemory {
    agent_mib: f64,
    children_mib: f64,
}

fn open_sessions(field: &Field) -> Result<OpenMemory> {
    let agent = field.peered.node.pid();
    let before = memory(agent)?.anonymous_mib;
    let mut clients = Vec::new();
    for _ in 0..OPEN {
        clients.push(Client::open(field)?);
    }
    let deadline = Instant::now() + PATIENCE;
    while session_processes(agent).len() < OPEN {
        ensure!(Instant::now() < deadline, "not every session opened");
        pause(LOOK);
    }
    let agent_mib = (memory(agent)?.anonymous_mib - before) / OPEN as f64;
    let all =
        descendants(agent).into_iter().filter_map(|pid| Some(memory(pid).ok()?.anonymous_mib)).sum::<f64>();
    let commands = descendants(agent)
        .into_iter()
        .filter(|pid| {
            crate::proc_fs::name(*pid).is_ok_and(|name| matches!(name.as_str(), "cat" | "sh" | "dash"))
        })
        .filter_map(|pid| Some(memory(pid).ok()?.anonymous_mib))
        .sum::<f64>();
    drop(clients);
    field.peered.node.wait_alone()?;
    Ok(OpenMemory { agent_mib, children_mib: (all - commands) / OPEN as f64 })
}

struct Client(Child);

impl Client {
    fn open(field: &Field) -> Result<Self> {
        let mut command = field.peered.site.way_ssh(field.peered.home().web, NODE);
        command.arg("exec cat").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("way ssh")?))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Killed, it would leave a session that waits for it to come back.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
