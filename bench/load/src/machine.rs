//! Where it was measured, and with which versions.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let memory_kib: u64 = field("/proc/meminfo", "MemTotal")
            .and_then(|text| text.trim_end_matches(" kB").parse().ok())
            .unwrap_or_default();
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory_kib / 1024,
            kernel: first_line("/proc/sys/kernel/osrelease"),
        }
    }
}

/// The three load averages.
pub(crate) fn load() -> String {
    first_line("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// The time now, UTC.
pub(crate) fn date() -> String {
    said_by(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]))
}

pub(crate) fn versions(bin_dir: &Path) -> BTreeMap<String, String> {
    let package = ["-W", "-f", "${Version}", "openssh-server"];
    [
        ("wayleave", said_by(Command::new(bin_dir.join("wayleave")).arg("version"))),
        ("ssh -V", said_by(Command::new("ssh").arg("-V"))),
        ("openssh-server", said_by(Command::new("dpkg-query").args(package))),
    ]
    .into_iter()
    .map(|(name, version)| (name.to_owned(), version))
    .collect()
}

/// The first line a program says, on either output.
fn said_by(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return "unknown".to_owned() };
    let all = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&all).lines().next().unwrap_or("unknown").trim().to_owned()
}

fn field(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.split_once(':').filter(|(name, _)| name.trim() == key))?;
    Some(line.1.trim().to_owned())
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}
