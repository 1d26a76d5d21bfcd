//! A running child as the parent holds it: wait, signal, resize, end.

use crate::exit::{Exit, signal_number};
use crate::raw;
use crate::sftp::{SftpReport, Tally};
use crate::terminal::{Terminal, TerminalSize};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

const REAPER_STACK_BYTES: usize = 64 * 1024;

/// A process of a user, leader of its own session and process group.
///
/// Dropped while it runs, its group gets SIGHUP, as when a terminal is closed; use [`Child::end`] to be sure
/// that it is gone. It needs no waiting for to be reaped.
#[derive(Debug)]
pub struct Child {
    process: Process,
    terminal: Option<Terminal>,
    tally: Option<Tally>,
}

/// A child process, until it has been waited for. Dropped before, it is waited for in a thread of its own.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    /// Readable when it has ended.
    descriptor: AsyncFd<OwnedFd>,
    exit: Option<ExitStatus>,
}

impl Process {
    /// Takes charge of a child of this process.
    pub(crate) fn adopt(pid: i32) -> io::Result<Self> {
        let opened = match rustix::process::Pid::from_raw(pid) {
            Some(pid) => pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from),
            None => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        };
        match opened.and_then(raw::watch) {
            Ok(descriptor) => Ok(Self { pid, descriptor, exit: None }),
            Err(error) => {
                // It is a child, and nobody has reaped it.
                let _ended = kill(Pid::from_raw(pid), Signal::SIGKILL);
                reap(pid);
                Err(error)
            }
        }
    }

    /// Its process id, until it has been waited for.
    pub(crate) fn id(&self) -> Option<i32> {
        self.exit.is_none().then_some(self.pid)
    }

    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(exit) = self.exit {
                return Ok(exit);
            }
            self.exit = raw::try_wait(self.pid)?;
            if self.exit.is_none() {
                self.descriptor.readable().await?.clear_ready();
            }
        }
    }

    pub(crate) fn kill(&self) {
        if self.id().is_some() {
            // Refused only when it has ended already.
            let _ended = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit.is_none() && matches!(raw::try_wait(self.pid), Ok(None)) {
            reap(self.pid);
        }
    }
}

/// Waits for a child that nobody asks after. Without a thread to do that, it stays a zombie for as long as this process
/// lives.
fn reap(pid: i32) {
    let thread = std::thread::Builder::new().name("reaper".to_owned()).stack_size(REAPER_STACK_BYTES);
    let _no_thread = thread.spawn(move || raw::wait(pid));
}

/// What an SFTP server did; to be read when it has ended.
#[derive(Debug)]
pub struct SftpTally(Tally);

impl SftpTally {
    /// What it did until now. The server runs as the user: the report is as honest as he is.
    pub fn report(&self) -> io::Result<SftpReport> {
        self.0.read()
    }
}

/// Why a signal was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// SSH does not define it.
    #[error("SSH has no signal of this name")]
    Unknown,
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// The system refused.
    #[error("the signal could not be sent")]
    Refused(#[source] io::Error),
}

impl Child {
    pub(crate) fn new(process: Process, terminal: Option<Terminal>, tally: Option<Tally>) -> Self {
        Self { process, terminal, tally }
    }

    /// What an SFTP server notes; of other processes, and when it was taken before, there is none.
    pub fn take_sftp_tally(&mut self) -> Option<SftpTally> {
        self.tally.take().map(SftpTally)
    }

    /// Its process id, until it has been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.process.id().map(i32::unsigned_abs)
    }

    /// Waits for its end. May be called again, and dropped at any point: nothing is lost.
    ///
    /// Its output may still be unread, and its descendants may still run and print.
    pub async fn wait(&mut self) -> io::Result<Exit> {
        let exit = self.process.wait().await.map(Exit::from)?;
        if let Some(terminal) = &self.terminal {
            terminal.leader_has_ended();
        }
        Ok(exit)
    }

    /// Sends the signal that SSH calls `name` (`TERM`, `INT`, ...) to its process group.
    pub fn signal(&self, name: &str) -> Result<(), SignalError> {
        let number = signal_number(name).ok_or(SignalError::Unknown)?;
        let signal = Signal::try_from(number).map_err(|_| SignalError::Unknown)?;
        self.signal_group(signal)
    }

    /// Tells its terminal a new size, and so its foreground process (SIGWINCH). Without a terminal it is
    /// [`io::ErrorKind::Unsupported`].
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        match &self.terminal {
            Some(terminal) => terminal.resize(size),
            None => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }

    /// Ends it: SIGHUP to its group (and to what has the keyboard), SIGKILL after `grace`.
    ///
    /// A process that left the group for a session of its own survives, as under sshd. When this future is
    /// dropped the rest of the grace is forfeit and SIGKILL is sent at once.
    pub async fn end(self, grace: Duration) -> io::Result<Exit> {
        let mut ending = Ending(self);
        ending.0.hang_up();
        if let Ok(ended) = tokio::time::timeout(grace, ending.0.wait()).await {
            return ended;
        }
        ending.0.kill();
        ending.0.wait().await
    }

    fn hang_up(&self) {
        for signal in [Signal::SIGHUP, Signal::SIGCONT] {
            self.signal_everything(signal);
        }
    }

    fn kill(&self) {
        self.signal_everything(Signal::SIGKILL);
    }

    fn signal_everything(&self, signal: Signal) {
        let leader = self.group();
        // Ended or refused: there is nothing left to signal, or nobody may.
        let _unsent = self.signal_group(signal);
        let foreground = self.terminal.as_ref().and_then(Terminal::foreground_group);
        if let Some(group) =
            foreground.filter(|group| Some(*group) != leader && *group > 1 && leader.is_some())
        {
            let _unsent = killpg(Pid::from_raw(group), signal);
        }
    }

    fn signal_group(&self, signal: Signal) -> Result<(), SignalError> {
        // The number cannot belong to another process: it is known only until the child is reaped, which
        // takes `&mut self`.
        let group = self.group().ok_or(SignalError::Ended)?;
        killpg(Pid::from_raw(group), signal).map_err(|errno| SignalError::Refused(errno.into()))
    }

    fn group(&self) -> Option<i32> {
        self.process.id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// A child that is being ended: whoever gives up waiting kills it.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.kill();
    }
}
