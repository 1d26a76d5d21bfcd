//! A client program on the stopwatch, with the CPU time of everything it starts and is served by.
//!
//! OpenSSH does not wait for its ProxyCommand, nor sshd for the process of a session, so the kernel's sums leave those
//! out: we look while they run.

use crate::proc_fs;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How often the processes are looked at; what they use after the last look is missed.
const LOOK: Duration = Duration::from_millis(50);

/// A client that ended well.
pub(crate) struct Run {
    pub(crate) wall: Duration,
    /// CPU seconds by process, as seen last.
    pub(crate) cpu: BTreeMap<String, f64>,
}

/// Runs a client to its end and times it.
///
/// # Errors
/// When it cannot start or fails.
pub(crate) fn time(command: &mut Command) -> Result<Duration> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let started = Instant::now();
    let child = command.spawn().with_context(|| shown(command))?;
    finish(child, command, started)
}

/// As [`time`], watched with all processes below it and below these servers; its input may come from another program.
///
/// # Errors
/// When one of them cannot start or fails.
pub(crate) fn watch(
    command: &mut Command,
    input: Option<&mut Command>,
    servers: &[(&'static str, u32)],
) -> Result<Run> {
    let started = Instant::now();
    let mut source = input
        .map(|input| input.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| shown(input)))
        .transpose()?;
    let stdin = source.as_mut().and_then(|source| source.stdout.take()).map_or_else(Stdio::null, Stdio::from);
    command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| shown(command))?;
    // Our copy of the pipe would keep it open.
    command.stdin(Stdio::null());
    let mut roots = servers.to_vec();
    roots.push(("client", child.id()));
    let (stop, stopped) = sync_channel(0);
    let watcher = std::thread::spawn(move || look_until(&stopped, &roots));
    let wall = finish(child, command, started);
    drop(stop);
    let cpu = watcher.join().map_err(|_| anyhow::anyhow!("the watching thread panicked"))?;
    if let Some(mut source) = source {
        ensure!(source.wait()?.success(), "the source of the stream failed");
    }
    Ok(Run { wall: wall?, cpu })
}

fn finish(child: Child, command: &Command, started: Instant) -> Result<Duration> {
    let output = child.wait_with_output().with_context(|| shown(command))?;
    let wall = started.elapsed();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} ended with {}: {}", shown(command), output.status, errors.trim());
    Ok(wall)
}

fn look_until(stopped: &Receiver<()>, roots: &[(&'static str, u32)]) -> BTreeMap<String, f64> {
    // What a process used before it was seen first is not of this run, unless it began in it.
    let first = look(roots);
    let old: BTreeMap<u32, f64> =
        roots.iter().filter_map(|(_, pid)| Some((*pid, first.get(pid)?.1))).collect();
    let mut seen = first;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK) {
        seen.extend(look(roots));
    }
    let mut sums = BTreeMap::new();
    for (pid, (label, seconds)) in seen {
        *sums.entry(label).or_default() += seconds - old.get(&pid).copied().unwrap_or_default();
    }
    sums
}

/// The CPU seconds of every process now, with what it is called.
fn look(roots: &[(&'static str, u32)]) -> BTreeMap<u32, (String, f64)> {
    let mut seen = BTreeMap::new();
    for (root_name, root) in roots {
        for process in std::iter::once(*root).chain(proc_fs::descendants(*root)) {
            let (Ok(name), Ok(seconds)) = (proc_fs::name(process), proc_fs::cpu_seconds(process)) else {
                continue;
            };
            let label =
                if process == *root { (*root_name).to_owned() } else { format!("{root_name}: {name}") };
            seen.insert(process, (label, seconds));
        }
    }
    seen
}

pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_read_to_its_end_and_a_failure_is_told() {
        let run = watch(&mut Command::new("cat"), Some(Command::new("echo").arg("x")), &[]);
        assert!(run.unwrap().cpu.keys().all(|label| label.starts_with("client")));
        let error = time(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }
}
