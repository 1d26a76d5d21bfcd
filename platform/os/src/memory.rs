//! The memory of a process that has nothing to do: what it keeps while buffers come and go, and what it gives back.

use crate::raw;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::io;
use std::time::Duration;

/// Free memory at the end of a heap that stays with the process.
const HEAP_KEPT_BYTES: i32 = 1024 * 1024;
/// A process that used less since the last look did nothing but keep its connections.
const IDLE_CPU_MAX: Duration = Duration::from_millis(50);

/// Keeps a little free memory. Buffers of streams come and go: by default their pages would go back to the kernel each
/// time, and come again cleared.
pub fn keep_buffer_pages() {
    raw::keep_heap_bytes(HEAP_KEPT_BYTES);
}

/// Gives memory back when work has ended. To be asked every few seconds.
#[derive(Debug)]
pub struct IdleMemory {
    cpu: Duration,
    has_worked: bool,
}

/// What a look at an idle process gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenBack {
    /// Of the program's own pages, as far as they were mapped.
    pub program_bytes: u64,
}

impl Default for IdleMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl IdleMemory {
    /// A process that has just started: that was work.
    pub fn new() -> Self {
        Self { cpu: Duration::ZERO, has_worked: true }
    }

    /// Looks at the CPU time used since the last look. After work, the first idle look gives back free memory and the
    /// program's own pages; `None` otherwise.
    ///
    /// # Errors
    /// When the kernel does not tell what is used and mapped, or refuses.
    pub fn look(&mut self) -> io::Result<Option<GivenBack>> {
        if !self.is_done(cpu_time()?) {
            return Ok(None);
        }
        raw::trim_heap();
        release_program_pages().map(|program_bytes| Some(GivenBack { program_bytes }))
    }

    fn is_done(&mut self, cpu: Duration) -> bool {
        let used = cpu.saturating_sub(std::mem::replace(&mut self.cpu, cpu));
        if used > IDLE_CPU_MAX {
            self.has_worked = true;
            return false;
        }
        std::mem::take(&mut self.has_worked)
    }
}

fn cpu_time() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds().saturating_add(usage.system_time().num_microseconds());
    Ok(Duration::from_micros(u64::try_from(micros).unwrap_or_default()))
}

/// Lets go of the program's pages. Starting and every kind of work touch code that is not needed again for long; the
/// kernel maps sixteen pages around each that is touched, and lets go of them only when memory is short. What is needed
/// again comes back from the page cache, a microsecond or so for each sixteen pages. Gives the bytes that were mapped.
///
/// Only mappings are let go of that nobody can write and no page of which was ever written: they are the file's own.
pub(crate) fn release_program_pages() -> io::Result<u64> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut released = 0;
    for mapping in mappings(&maps) {
        if mapping.path == program.as_os_str() && !mapping.is_writable && mapping.anonymous_kib == 0 {
            raw::release_pages(mapping.start, mapping.end)?;
            released += mapping.resident_kib * 1024;
        }
    }
    Ok(released)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Mapping<'a> {
    start: usize,
    end: usize,
    is_writable: bool,
    path: &'a str,
    resident_kib: u64,
    anonymous_kib: u64,
}

/// Reads `/proc/PID/smaps` (proc(5)): a line for each mapping, and lines of what it holds.
fn mappings(text: &str) -> Vec<Mapping<'_>> {
    let mut found: Vec<Mapping<'_>> = Vec::new();
    for line in text.lines() {
        if let Some(mapping) = begin(line) {
            found.push(mapping);
        } else if let (Some(last), Some((key, value))) = (found.last_mut(), line.split_once(':')) {
            let kib = value.trim().trim_end_matches(" kB").parse();
            match (key, kib) {
                ("Rss", Ok(kib)) => last.resident_kib = kib,
                ("Anonymous", Ok(kib)) => last.anonymous_kib = kib,
                _ => {}
            }
        }
    }
    found
}

fn begin(line: &str) -> Option<Mapping<'_>> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (address(start)?, address(end)?);
    let is_writable = words.next()?.contains('w');
    let path = words.nth(3).unwrap_or_default().trim_start();
    Some(Mapping { start, end, is_writable, path, ..Mapping::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_as_the_kernel_writes_them() {
        let text = "\
55d0c8a00000-55d0c8b00000 r-xp 00001000 fe:00 1234                       /usr/bin/way leave
Size:               1024 kB
Rss:                 512 kB
Anonymous:             0 kB
7ffd0000-7ffe0000 rw-p 00000000 00:00 0
Rss:                  12 kB
Anonymous:            12 kB
VmFlags: rd wr mr
";
        let found = mappings(text);
        let program = Mapping {
            start: 0x55d0_c8a0_0000,
            end: 0x55d0_c8b0_0000,
            is_writable: false,
            path: "/usr/bin/way leave",
            resident_kib: 512,
            anonymous_kib: 0,
        };
        assert_eq!(found[0], program);
        assert!(found[1].is_writable && found[1].path.is_empty() && found[1].anonymous_kib == 12);
    }

    #[test]
    fn only_the_first_idle_look_after_work_gives_back() {
        let mut idle = IdleMemory::new();
        let looks = [900, 910, 920, 2000, 2049, 2050].map(|ms| idle.is_done(Duration::from_millis(ms)));
        assert_eq!(looks, [false, true, false, false, true, false]);
    }

    #[test]
    fn a_process_goes_on_without_the_pages_it_had() {
        raw::trim_heap();
        let released = release_program_pages().unwrap();
        assert!(released > 0);
        assert!(cpu_time().unwrap() > Duration::ZERO);
        assert!(release_program_pages().unwrap() > 0, "what this needs has come back");
    }
}
