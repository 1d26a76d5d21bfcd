//! Processes that tests start and do not end.
//!
//! This process adopts every orphan below it, so whatever a test leaves is its descendant in the end, however
//! it detached itself and whatever its environment was.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};
use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long processes that are about to end may take.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Makes this process the parent of its descendants' orphans.
pub(super) fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("cannot adopt orphaned processes")
}

/// Waits a little for the descendants of this process to end, ends those that do not, and names them.
pub(super) fn end_all() -> Result<Vec<String>> {
    wait_until_gone()?;
    let mut named = Vec::new();
    for process in descendants()? {
        named.push(format!("{} {}", process.pid, process.command_line()));
        if let Some(pid) = Pid::from_raw(process.pid) {
            // It may have ended just now.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    Ok(named)
}

fn wait_until_gone() -> Result<()> {
    // Nothing is ever sent: receiving is a pause.
    let (_sender, pause) = mpsc::sync_channel::<()>(0);
    let deadline = Instant::now() + GRACE;
    while !descendants()?.is_empty() && Instant::now() < deadline {
        let _ = pause.recv_timeout(LOOK_AGAIN_AFTER);
    }
    Ok(())
}

struct Process {
    pid: i32,
    parent: i32,
    ended: bool,
}

impl Process {
    /// Reads `/proc/PID/stat`: the name in brackets may hold anything, so fields are counted behind the last
    /// bracket.
    fn parse(stat: &str) -> Option<Self> {
        let (pid, rest) = stat.split_once(" (")?;
        let (_, fields) = rest.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let ended = matches!(fields.next()?, "Z" | "X");
        Some(Self { pid: pid.parse().ok()?, parent: fields.next()?.parse().ok()?, ended })
    }

    fn command_line(&self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
    }
}

/// Living processes below this one.
fn descendants() -> Result<Vec<Process>> {
    let mut processes = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").context("cannot list processes")? {
        let path = entry?.path();
        // A process may end between being listed and being read.
        if let Ok(stat) = std::fs::read_to_string(path.join("stat"))
            && let Some(process) = Process::parse(&stat)
        {
            processes.insert(process.pid, process);
        }
    }
    let own = getpid().as_raw_nonzero().get();
    let below = |process: &Process| {
        let mut parent = process.parent;
        // Longer chains than there are processes do not exist.
        for _ in 0..processes.len() {
            if parent == own {
                return true;
            }
            let Some(next) = processes.get(&parent) else { return false };
            parent = next.parent;
        }
        false
    };
    let left: Vec<i32> = processes.values().filter(|p| !p.ended && below(p)).map(|p| p.pid).collect();
    Ok(left.iter().filter_map(|pid| processes.remove(pid)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let process = Process::parse("42 (a) (b) S 7 42 42 0").unwrap();
        assert_eq!((process.pid, process.parent, process.ended), (42, 7, false));
        assert!(Process::parse("42 (a) Z 7 42").unwrap().ended);
        assert!(Process::parse("nonsense").is_none());
    }

    #[test]
    fn a_child_is_a_descendant_until_it_ends() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(descendants().unwrap().iter().any(|process| process.pid == pid));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!descendants().unwrap().iter().any(|process| process.pid == pid));
    }
}
