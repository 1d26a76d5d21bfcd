//! Pseudo-terminals: the parent opens one, keeps the master as a stream, and hands the slave to a child.

use crate::modes::TerminalModes;
use crate::raw;
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Winsize};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest `TERM` in bytes.
const TERM_BYTES_MAX: usize = 128;

/// How large a terminal is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Width in characters.
    pub columns: u32,
    /// Height in lines.
    pub rows: u32,
    /// Width in pixels, zero when not known.
    pub width_px: u32,
    /// Height in pixels, zero when not known.
    pub height_px: u32,
}

impl TerminalSize {
    fn to_winsize(self) -> Winsize {
        let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        Winsize {
            ws_col: clamp(self.columns),
            ws_row: clamp(self.rows),
            ws_xpixel: clamp(self.width_px),
            ws_ypixel: clamp(self.height_px),
        }
    }
}

/// A terminal that a client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TerminalSpec {
    term: String,
    size: TerminalSize,
    modes: TerminalModes,
}

impl TerminalSpec {
    /// A terminal of type `term` (`TERM`; left out of the environment when it is longer than 128 bytes or
    /// has other characters than terminal types have).
    pub fn new(term: &str, size: TerminalSize, modes: TerminalModes) -> Self {
        let is_type = term.len() <= TERM_BYTES_MAX
            && term
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+' | b'@'));
        Self { term: if is_type { term.to_owned() } else { String::new() }, size, modes }
    }

    /// What `TERM` will be, empty when it stays unset.
    pub fn term(&self) -> &str {
        &self.term
    }
}

/// Both ends of a new terminal.
#[derive(Debug)]
pub(crate) struct OpenTerminal {
    pub(crate) master: Terminal,
    pub(crate) slave: OwnedFd,
    pub(crate) slave_path: String,
}

/// Opens a terminal with the size and modes of `spec`.
pub(crate) fn open(spec: &TerminalSpec) -> io::Result<OpenTerminal> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave_path = rustix::pty::ptsname(&master, Vec::new())?
        .into_string()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // By the master, not by its path: no other mount of /dev/pts can be in between.
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    let mut termios = rustix::termios::tcgetattr(&slave)?;
    spec.modes.apply(&mut termios);
    rustix::termios::tcsetattr(&slave, OptionalActions::Now, &termios)?;
    rustix::termios::tcsetwinsize(&slave, spec.size.to_winsize())?;
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok(OpenTerminal { master: Terminal::new(raw::watch(master)?), slave, slave_path })
}

/// The master side, shared by reader, writer and the child's handle.
#[derive(Debug, Clone)]
pub(crate) struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
    leader: Arc<Leader>,
}

/// Whether the process that the terminal was made for has ended, and the reader that wants to know.
#[derive(Debug, Default)]
struct Leader {
    ended: AtomicBool,
    reader: Mutex<Option<Waker>>,
}

impl Terminal {
    fn new(master: AsyncFd<OwnedFd>) -> Self {
        Self { master: Arc::new(master), leader: Arc::default() }
    }

    pub(crate) fn split(&self) -> (TerminalReader, TerminalWriter) {
        (TerminalReader(self.clone()), TerminalWriter(self.clone()))
    }

    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        Ok(rustix::termios::tcsetwinsize(self.master.get_ref(), size.to_winsize())?)
    }

    /// The process group that has the keyboard.
    pub(crate) fn foreground_group(&self) -> Option<i32> {
        rustix::termios::tcgetpgrp(self.master.get_ref()).ok().map(|pid| pid.as_raw_nonzero().get())
    }

    /// From now on the reader ends when there is nothing to read.
    pub(crate) fn leader_has_ended(&self) {
        self.leader.ended.store(true, Ordering::SeqCst);
        let waiting = self.leader.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// Whether the leader has ended; if not, the reader is woken when it does.
    fn poll_leader(&self, cx: &Context<'_>) -> bool {
        *self.leader.reader.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        self.leader.ended.load(Ordering::SeqCst)
    }

    fn read(&self, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
        match rustix::io::read(self.master.get_ref(), buf.initialize_unfilled()) {
            // Linux says so when the last slave is closed and everything printed was read.
            Err(Errno::IO) => Ok(0),
            read => Ok(read?),
        }
    }
}

/// What the user's programs print.
///
/// It ends when none of them holds the terminal any more, or when [`crate::Child::wait`] has told the end of
/// the process and all that was printed until then has been read, whatever jobs it left behind.
#[derive(Debug)]
pub struct TerminalReader(Terminal);

/// What the user types.
///
/// Shutting it down does nothing: a terminal has no end of input but the user's own end-of-file character.
#[derive(Debug)]
pub struct TerminalWriter(Terminal);

impl AsyncRead for TerminalReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let terminal = &self.0;
        loop {
            // Asked before reading: what the leader printed is then in the kernel's buffer, and read finds it.
            let leader_ended = terminal.poll_leader(cx);
            let read = if leader_ended {
                match terminal.read(buf) {
                    Err(nothing_left) if nothing_left.kind() == io::ErrorKind::WouldBlock => Ok(0),
                    read => read,
                }
            } else {
                let mut guard = ready!(terminal.master.poll_read_ready(cx))?;
                match guard.try_io(|_| terminal.read(buf)) {
                    Ok(read) => read,
                    Err(_would_block) => continue,
                }
            };
            match read {
                Ok(count) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(interrupted) if interrupted.kind() == io::ErrorKind::Interrupted => {}
                Err(failed) => return Poll::Ready(Err(failed)),
            }
        }
    }
}

impl AsyncWrite for TerminalWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let master = &self.0.master;
        loop {
            let mut guard = ready!(master.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), buf)?)) {
                Ok(Err(hung_up)) if hung_up.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::BrokenPipe)));
                }
                Ok(Err(interrupted)) if interrupted.kind() == io::ErrorKind::Interrupted => {}
                Ok(done) => return Poll::Ready(done),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h_a_terminal_type_cannot_name_a_file() {
        check("xterm-256color", "xterm-256color");
        check("../../etc/x", "");
        check("x\nLD_PRELOAD=y", "");
        check(&"x".repeat(TERM_BYTES_MAX + 1), "");
    }

    #[test]
    fn sizes_are_clamped() {
        let size = TerminalSize { columns: 100_000, rows: 24, ..TerminalSize::default() };

        let Winsize { ws_col, ws_row, .. } = size.to_winsize();

        assert_eq!((ws_col, ws_row), (u16::MAX, 24));
    }

    fn check(term: &str, expected: &str) {
        let spec = TerminalSpec::new(term, TerminalSize::default(), TerminalModes::default());
        assert_eq!(spec.term(), expected);
    }
}
