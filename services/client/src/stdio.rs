//! Standard input and output for asynchronous code, without a thread and without changing what others share.
//!
//! Pipes and terminals are opened anew, so that only this process sees them as non-blocking; files are read and
//! written in place. Whatever cannot be done so (sockets, other systems) goes through Tokio's blocking threads.

use std::fs::File;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};

/// Size asked for pipes.
#[cfg(target_os = "linux")]
const PIPE_BYTES: usize = 1024 * 1024;

/// Standard input.
pub(crate) enum Input {
    /// A pipe of our own.
    Polled(Receiver),
    /// A terminal of our own.
    Terminal(Receiver),
    /// A file: always ready.
    Direct(File),
    /// Anything else.
    Threaded(tokio::io::Stdin),
}

/// Standard output or standard error.
pub(crate) enum Output {
    /// A pipe or terminal of our own.
    Polled(Sender),
    /// A file: always ready.
    Direct(File),
    /// Anything else.
    Threaded(Box<dyn AsyncWrite + Send + Unpin>),
    /// Shut down.
    Closed,
}

/// What a descriptor is.
enum Kind {
    /// A pipe, opened anew.
    Pipe(File),
    /// A terminal, opened anew.
    Terminal(File),
    /// A file or a device that never blocks for long.
    File(File),
    /// Anything else.
    Other,
}

impl Input {
    /// Takes standard input.
    pub(crate) fn open() -> Self {
        match kind_of(rustix::stdio::stdin(), 0) {
            Kind::Pipe(file) => Receiver::from_file_unchecked(file).map(Self::Polled).ok(),
            Kind::Terminal(file) => Receiver::from_file_unchecked(file).map(Self::Terminal).ok(),
            Kind::File(file) => Some(Self::Direct(file)),
            Kind::Other => None,
        }
        .unwrap_or_else(|| Self::Threaded(tokio::io::stdin()))
    }
}

impl Output {
    /// Takes standard output.
    pub(crate) fn stdout() -> Self {
        Self::open(kind_of(rustix::stdio::stdout(), 1))
            .unwrap_or_else(|| Self::Threaded(Box::new(tokio::io::stdout())))
    }

    /// Takes standard error.
    pub(crate) fn stderr() -> Self {
        Self::open(kind_of(rustix::stdio::stderr(), 2))
            .unwrap_or_else(|| Self::Threaded(Box::new(tokio::io::stderr())))
    }

    fn open(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Pipe(file) | Kind::Terminal(file) => {
                Sender::from_file_unchecked(file).map(Self::Polled).ok()
            }
            Kind::File(file) => Some(Self::Direct(file)),
            Kind::Other => None,
        }
    }
}

#[cfg(target_os = "linux")]
fn kind_of(fd: rustix::fd::BorrowedFd<'_>, number: i32) -> Kind {
    use rustix::fs::{FileType, Mode, OFlags, fstat, open};
    let Ok(stat) = fstat(fd) else { return Kind::Other };
    let duplicate = || rustix::io::fcntl_dupfd_cloexec(fd, 3).map(File::from);
    let reopen = || {
        let access = if number == 0 { OFlags::RDONLY } else { OFlags::WRONLY };
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        open(format!("/proc/self/fd/{number}"), flags, Mode::empty()).map(File::from)
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => reopen().map_or(Kind::Other, |file| {
            // A small pipe works as well.
            let _ = rustix::pipe::fcntl_setpipe_size(&file, PIPE_BYTES);
            Kind::Pipe(file)
        }),
        FileType::CharacterDevice if rustix::termios::isatty(fd) => {
            reopen().map_or(Kind::Other, Kind::Terminal)
        }
        FileType::CharacterDevice | FileType::RegularFile => duplicate().map_or(Kind::Other, Kind::File),
        FileType::Socket
        | FileType::Directory
        | FileType::Symlink
        | FileType::BlockDevice
        | FileType::Unknown => Kind::Other,
    }
}

#[cfg(not(target_os = "linux"))]
fn kind_of(_fd: rustix::fd::BorrowedFd<'_>, _number: i32) -> Kind {
    Kind::Other
}

impl AsyncRead for Input {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Polled(pipe) => Pin::new(pipe).poll_read(cx, buf),
            Self::Terminal(terminal) => poll_terminal(terminal, cx, buf),
            Self::Direct(file) => {
                let read = file.read(buf.initialize_unfilled())?;
                buf.advance(read);
                Poll::Ready(Ok(()))
            }
            Self::Threaded(stdin) => Pin::new(stdin).poll_read(cx, buf),
        }
    }
}

/// A terminal gives one line at a time: a short read does not mean that there is no more, as it does for a pipe.
fn poll_terminal(terminal: &Receiver, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
    loop {
        ready!(terminal.poll_read_ready(cx))?;
        match terminal.try_read(buf.initialize_unfilled()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => {
                buf.advance(read?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Polled(pipe) => Pin::new(pipe).poll_write(cx, data),
            Self::Direct(file) => Poll::Ready(file.write(data)),
            Self::Threaded(out) => Pin::new(out).poll_write(cx, data),
            Self::Closed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Threaded(out) => Pin::new(out).poll_flush(cx),
            Self::Polled(_) | Self::Direct(_) | Self::Closed => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Self::Threaded(out) = this {
            ready!(Pin::new(out).poll_flush(cx))?;
        }
        *this = Self::Closed;
        Poll::Ready(Ok(()))
    }
}
