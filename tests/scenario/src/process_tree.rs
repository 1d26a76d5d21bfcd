//! What `/proc` says about processes.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;

/// Every living process below `pid`, in no order.
pub fn descendants(pid: i32) -> Vec<i32> {
    let parents = parents();
    let below = |process: i32| {
        let mut at = process;
        // Longer chains than there are processes do not exist.
        for _ in 0..parents.len() {
            match parents.get(&at) {
                Some(parent) if *parent == pid => return true,
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        false
    };
    parents.keys().copied().filter(|process| below(*process)).collect()
}

/// Whether the process runs; one that ended and was not yet asked about does not.
pub fn is_alive(pid: i32) -> bool {
    state_and_parent(pid).is_some()
}

/// The command line of a process, words divided by blanks.
pub fn command_line(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

/// TCP ports on which a process listens, in no order.
pub fn listening_ports(pid: i32) -> Vec<u16> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let sockets: BTreeSet<String> = links
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let tables = ["tcp", "tcp6"].map(|table| format!("/proc/{pid}/net/{table}"));
    let text: String = tables.iter().filter_map(|table| std::fs::read_to_string(table).ok()).collect();
    text.lines().filter_map(|line| listening_port(line, &sockets)).collect()
}

/// Memory that a process holds now.
pub fn resident_bytes(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap_or_default();
    kibibytes * 1024
}

/// Whether bytes stand anywhere in the memory of a process.
///
/// # Panics
/// When its memory may not be read.
pub fn holds_in_memory(pid: i32, bytes: &[u8]) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines().filter_map(writable_range).any(|(start, end)| {
        let mut region = vec![0; usize::try_from(end - start).unwrap()];
        // Some regions cannot be read, and one may be gone by now.
        let Ok(length) = memory.read_at(&mut region, start) else { return false };
        region[..length].windows(bytes.len()).any(|part| part == bytes)
    })
}

/// The addresses of a line of `/proc/PID/maps` that stands for memory of the program's own.
fn writable_range(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    if !fields.next()?.starts_with("rw") {
        return None;
    }
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// The port of a line of `/proc/net/tcp`, if the socket listens and is one of these.
fn listening_port(line: &str, sockets: &BTreeSet<String>) -> Option<u16> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let is_ours = *state == "0A" && sockets.contains(*inode);
    is_ours.then(|| u16::from_str_radix(local.rsplit(':').next()?, 16).ok())?
}

fn parents() -> BTreeMap<i32, i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, state_and_parent(pid)?))).collect()
}

/// The parent of a living process.
fn state_and_parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let ended = matches!(fields.next()?, "Z" | "X");
    (!ended).then(|| fields.next()?.parse().ok())?
}
