//! What the kernel tells about processes: CPU time, memory, children.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::OnceLock;

const KIB: f64 = 1024.0;

/// The memory of a process, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// VmRSS: everything resident, with the pages of the program itself.
    pub(crate) resident_mib: f64,
    /// RssAnon: what the process made itself.
    pub(crate) anonymous_mib: f64,
    /// RssFile: pages of the program and of mapped files.
    pub(crate) file_mib: f64,
}

/// A look at `/proc/PID/stat`.
struct Stat {
    name: String,
    fields: Vec<u64>,
}

/// Places in `/proc/PID/stat` behind the name, as proc(5) numbers them less three.
const UTIME: usize = 11;
const STIME: usize = 12;
const CHILDREN_UTIME: usize = 13;
const CHILDREN_STIME: usize = 14;

/// CPU seconds that the threads of a process have used.
///
/// # Errors
/// When the process is gone.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    seconds(pid, [UTIME, STIME])
}

/// CPU seconds of the children that a process has waited for.
///
/// # Errors
/// When the process is gone.
pub(crate) fn children_cpu_seconds(pid: u32) -> Result<f64> {
    seconds(pid, [CHILDREN_UTIME, CHILDREN_STIME])
}

fn seconds(pid: u32, fields: [usize; 2]) -> Result<f64> {
    let stat = stat(pid)?;
    let ticks: u64 = fields.iter().filter_map(|index| stat.fields.get(*index)).sum();
    Ok(ticks as f64 / ticks_per_second())
}

/// Kernel memory of all TCP sockets of this machine, in KiB.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn socket_memory_kib() -> Result<f64> {
    const PATH: &str = "/proc/net/sockstat";
    const PAGE_KIB: f64 = 4.0;
    let text = fs::read_to_string(PATH).context(PATH)?;
    let words = text.lines().find_map(|line| line.strip_prefix("TCP:")).context("no line of TCP")?;
    let pages =
        words.split_whitespace().skip_while(|word| *word != "mem").nth(1).context("no memory of TCP")?;
    Ok(pages.parse::<f64>()? * PAGE_KIB)
}

/// The name of the program a process runs, as the kernel cuts it.
///
/// # Errors
/// When the process is gone.
pub(crate) fn name(pid: u32) -> Result<String> {
    Ok(stat(pid)?.name)
}

fn stat(pid: u32) -> Result<Stat> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    parse_stat(&text).with_context(|| format!("{path} is not understood: {text}"))
}

/// The name stands in parentheses and may contain some itself.
fn parse_stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let fields = tail.split_whitespace().map(|word| word.parse().unwrap_or_default()).collect();
    Some(Stat { name: name.to_owned(), fields })
}

fn ticks_per_second() -> f64 {
    static TICKS: OnceLock<f64> = OnceLock::new();
    *TICKS.get_or_init(|| {
        let output = Command::new("getconf").arg("CLK_TCK").output().ok();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        text.and_then(|text| text.parse().ok()).unwrap_or(100.0)
    })
}

/// # Errors
/// When the process is gone.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let values: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(':')).collect();
    let mib = |key: &str| -> Result<f64> {
        let value = values.get(key).with_context(|| format!("{path} has no {key}"))?;
        let kib: f64 =
            value.trim().trim_end_matches(" kB").parse().with_context(|| format!("{key}{value}"))?;
        Ok(kib / KIB)
    };
    Ok(Memory { resident_mib: mib("VmRSS")?, anonymous_mib: mib("RssAnon")?, file_mib: mib("RssFile")? })
}

/// The same of a process and all below it.
///
/// # Errors
/// When one of them ends meanwhile.
pub(crate) fn memory_of_all(pid: u32) -> Result<Memory> {
    let mut sum = memory(pid)?;
    for process in descendants(pid) {
        let more = memory(process)?;
        sum.resident_mib += more.resident_mib;
        sum.anonymous_mib += more.anonymous_mib;
        sum.file_mib += more.file_mib;
    }
    Ok(sum)
}

/// The living processes below this one, parents first. A process that ends meanwhile is left out.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(parent) = next.pop() {
        let children = children(parent);
        next.extend(&children);
        found.extend(children);
    }
    found
}

/// The same without the process of an agent that its sessions are forked from.
pub(crate) fn session_processes(pid: u32) -> Vec<u32> {
    let mut found = descendants(pid);
    found.retain(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line != b"wayleave\0__child\0")
    });
    found
}

/// Children belong to the thread that started them.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_parentheses() {
        let stat = parse_stat("7 (a) b) S 1 7 7 0 -1 4 1 2 3 4 50 60 70 80 20").unwrap();
        assert_eq!(stat.name, "a) b");
        assert_eq!([UTIME, STIME].map(|i| stat.fields[i]), [50, 60]);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let pid = std::process::id();
        assert!(memory(pid).unwrap().resident_mib > 0.0);
        assert!(cpu_seconds(pid).unwrap() >= 0.0);
        assert!(!name(pid).unwrap().is_empty());
    }
}
