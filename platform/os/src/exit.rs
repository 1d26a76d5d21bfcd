//! How a child ended, in SSH's terms (RFC 4254 section 6.10).

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code, 0 to 255.
    Code(u32),
    /// A signal ended it.
    Signal {
        /// SSH's name without `SIG`, for instance `TERM`; a signal that SSH does not name has the form
        /// `BUS@openssh.com`.
        name: String,
        /// Whether a core was written.
        core_dumped: bool,
    },
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code.unsigned_abs()),
            (None, signal) => {
                Exit::Signal { name: signal_name(signal.unwrap_or(0)), core_dumped: status.core_dumped() }
            }
        }
    }
}

/// The signals that SSH names.
const NAMED: [(&str, i32); 13] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("TERM", libc::SIGTERM),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
];

fn signal_name(number: i32) -> String {
    if let Some((name, _)) = NAMED.iter().find(|(_, known)| *known == number) {
        return (*name).to_owned();
    }
    let text = nix::sys::signal::Signal::try_from(number).map_or("UNKNOWN", |signal| signal.as_str());
    format!("{}@openssh.com", text.trim_start_matches("SIG"))
}

/// The signal that SSH calls `name` (without `SIG`).
pub(crate) fn signal_number(name: &str) -> Option<i32> {
    NAMED.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_become_what_ssh_says() {
        check(0, Exit::Code(0));
        check(7 << 8, Exit::Code(7));
        check(255 << 8, Exit::Code(255));
        check(libc::SIGTERM, Exit::Signal { name: "TERM".to_owned(), core_dumped: false });
        check(libc::SIGABRT | 0x80, Exit::Signal { name: "ABRT".to_owned(), core_dumped: true });
        check(libc::SIGBUS, Exit::Signal { name: "BUS@openssh.com".to_owned(), core_dumped: false });
    }

    #[test]
    fn only_the_signals_of_the_rfc_have_numbers() {
        assert_eq!(signal_number("INT"), Some(libc::SIGINT));
        assert_eq!(signal_number("SIGINT"), None);
        assert_eq!(signal_number("STOP"), None);
    }

    fn check(raw: i32, expected: Exit) {
        assert_eq!(Exit::from(ExitStatus::from_raw(raw)), expected);
    }
}
