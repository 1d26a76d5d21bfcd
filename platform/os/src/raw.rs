//! The few calls that no crate wraps safely. All unsafe code of this crate is here.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use tokio::io::unix::AsyncFd;
use wayleave_sftp::LocalTime;

/// First descriptor after standard input, output and error.
const FIRST_OTHER: u32 = 3;

/// What happens to the descriptors from 3 up.
#[derive(Debug, Clone, Copy)]
enum Others {
    CloseNow,
    CloseOnExec,
}

/// Closes every descriptor from 3 up.
///
/// Only for a process that has just started and owns none of them yet.
pub(crate) fn close_others() -> io::Result<()> {
    close_range(Others::CloseNow)
}

/// Marks every descriptor from 3 up to be closed by exec.
pub(crate) fn close_others_on_exec() -> io::Result<()> {
    close_range(Others::CloseOnExec)
}

fn close_range(others: Others) -> io::Result<()> {
    let flags = match others {
        Others::CloseNow => 0,
        Others::CloseOnExec => libc::CLOSE_RANGE_CLOEXEC,
    };
    // SAFETY: no memory is passed. A flag surprises no owner of a descriptor, and callers of `close_others`
    // vouch that there is none.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST_OTHER, u32::MAX, flags) };
    if result == 0 { Ok(()) } else { one_by_one(others) }
}

/// The same for kernels before 5.9, which lack the call, and 5.11, which lack its flag.
fn one_by_one(others: Others) -> io::Result<()> {
    let numbers: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number: &i32| number.unsigned_abs() >= FIRST_OTHER)
        .collect();
    for number in numbers {
        // SAFETY: as above; the number of the listing itself is closed by now and gives EBADF.
        unsafe {
            match others {
                Others::CloseNow => libc::close(number),
                Others::CloseOnExec => libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC),
            };
        }
    }
    Ok(())
}

/// Watches a descriptor for readiness.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped, which the `AsyncFd` does
    // after it has deregistered it; nobody here replaces it through `get_mut`.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// The moment as the machine's own clock on the wall shows it; none for years that do not fit.
pub(crate) fn local_time(unix_seconds: i64) -> Option<LocalTime> {
    // SAFETY: `tm` is plain numbers and a pointer, for which zero is a value.
    let mut broken_down: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals that outlive the call; the result is one of them or null.
    let converted = unsafe { libc::localtime_r(&unix_seconds, &mut broken_down) };
    if converted.is_null() {
        return None;
    }
    let small = |number: i32| u8::try_from(number).ok();
    Some(LocalTime {
        year: i64::from(broken_down.tm_year) + 1900,
        month: small(broken_down.tm_mon)?.checked_add(1)?,
        day: small(broken_down.tm_mday)?,
        hour: small(broken_down.tm_hour)?,
        minute: small(broken_down.tm_min)?,
    })
}

/// Tells the allocator how much free memory at the end of a heap it keeps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn keep_heap_bytes(bytes: i32) {
    // SAFETY: the call changes a number of the allocator under its own lock; it may be called at any time.
    let _unchanged_if_refused = unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, bytes) };
}

/// Gives all free memory of the heaps back.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn trim_heap() {
    // SAFETY: the allocator gives back pages in which nothing is allocated, under its own locks.
    let _whether_there_was_any = unsafe { libc::malloc_trim(0) };
}

/// Other allocators decide that by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_heap_bytes(_: i32) {}

/// Other allocators do that by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn trim_heap() {}

/// Lets go of pages between two addresses.
///
/// Only for a mapping of a file that nobody can write and no page of which was ever written.
pub(crate) fn release_pages(start: usize, end: usize) -> io::Result<()> {
    let address = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the call takes pages away that the next access brings back from the file with the same content, as the
    // caller vouches. Addresses that are not mapped are refused.
    let result = unsafe { libc::madvise(address, end.saturating_sub(start), libc::MADV_DONTNEED) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a copy of this process whose parent is this one's parent. Gives its process id, and none in the copy; the error
/// is a number of the system's.
///
/// Only for a process with one thread.
pub(crate) fn fork_as_sibling() -> Result<Option<i32>, i32> {
    // SAFETY: without CLONE_VM the copy has its own memory, on the same stack; with one thread no lock is held by anybody
    // who is not copied. The arguments that are not used are zero in any order that an architecture has them.
    let result = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) };
    match i32::try_from(result) {
        Ok(0) => Ok(None),
        Ok(pid @ 1..) => Ok(Some(pid)),
        Ok(_) | Err(_) => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN)),
    }
}

/// How a child has ended, which reaps it; none while it runs.
pub(crate) fn try_wait(pid: i32) -> io::Result<Option<ExitStatus>> {
    wait_for(pid, libc::WNOHANG)
}

/// Waits in this thread until a child has ended, and reaps it.
pub(crate) fn wait(pid: i32) -> io::Result<Option<ExitStatus>> {
    wait_for(pid, 0)
}

fn wait_for(pid: i32, flags: i32) -> io::Result<Option<ExitStatus>> {
    let mut status = 0;
    loop {
        // SAFETY: the status is a local that outlives the call.
        match unsafe { libc::waitpid(pid, &mut status, flags) } {
            0 => return Ok(None),
            1.. => return Ok(Some(ExitStatus::from_raw(status))),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Gives every signal its default action and unblocks all.
///
/// Only for a process with one thread that installed no handler it still needs.
pub(crate) fn reset_signals() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL runs no code of ours; refusals (KILL, STOP, the C library's own) are harmless.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by sigemptyset before it is read.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

    #[test]
    fn both_ways_mark_descriptors() {
        let file = std::fs::File::open("/dev/null").unwrap();
        for mark in [close_range, one_by_one] {
            fcntl_setfd(&file, FdFlags::empty()).unwrap();

            mark(Others::CloseOnExec).unwrap();

            assert!(fcntl_getfd(&file).unwrap().contains(FdFlags::CLOEXEC));
        }
    }
}
