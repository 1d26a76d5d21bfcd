//! The few calls that no crate wraps safely. All unsafe code of this crate is here.

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

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
