//! What the system knows of this process, as metrics.

use crate::diagnostics::Diagnostics;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// Clock ticks of `/proc` in a second: a constant of the system's interface.
const TICKS_PER_SECOND: f64 = 100.0;
const PAGE_BYTES: f64 = 4096.0;

/// Registers memory, processor time, files and age of this process, its version, and how it is.
pub fn register_process(diagnostics: &Diagnostics, version: &'static str) {
    let metrics = &diagnostics.metrics;
    metrics.gauge("wayleave_build_info", "The version of this process.", &[("version", version)]).set(1);
    let health = diagnostics.health.clone();
    metrics.computed_gauge(
        "process_state",
        "How the process is: 0 ok, 1 degraded, 2 unready, 3 starting.",
        &[],
        move || Some(health.readiness().status.number()),
    );
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    metrics.computed_gauge(
        "process_start_time_seconds",
        "When the process started, in seconds since 1970.",
        &[],
        move || Some(started),
    );
    let help = "Resident memory.";
    metrics.computed_gauge("process_resident_memory_bytes", help, &[], || {
        resident_pages().map(|n| n * PAGE_BYTES)
    });
    metrics.computed_counter("process_cpu_seconds_total", "Processor time.", &[], cpu_seconds);
    metrics
        .computed_gauge("process_open_fds", "Open files and sockets.", &[], || open_files().map(as_number));
    let help = "Files and sockets that may be open.";
    metrics.computed_gauge("process_max_fds", help, &[], || open_files_max().map(as_number));
    metrics.computed_gauge("process_threads", "Threads of the system.", &[], threads);
}

fn as_number(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

/// How many files this process has open.
pub fn open_files() -> Option<u64> {
    fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64)
}

/// How many it may have open.
pub fn open_files_max() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

fn resident_pages() -> Option<f64> {
    fs::read_to_string("/proc/self/statm").ok()?.split_whitespace().nth(1)?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    let user: f64 = stat_field(11)?;
    let system: f64 = stat_field(12)?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn threads() -> Option<f64> {
    stat_field(17)
}

/// A field of `/proc/self/stat` by its place behind the name of the program, which may contain anything.
fn stat_field(place: usize) -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_knows_this_process() {
        let diagnostics = Diagnostics::default();
        register_process(&diagnostics, "1.2.3");
        let text = diagnostics.metrics.render();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).expect(name);
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(text.contains("wayleave_build_info{version=\"1.2.3\"} 1\n"));
        assert_eq!(value("process_state"), 3.0);
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") > 2.0 && value("process_max_fds") > value("process_open_fds"));
        assert!(value("process_threads") >= 1.0 && value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_start_time_seconds") > 1.7e9);
    }
}
