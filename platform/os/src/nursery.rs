//! The process that children come from.
//!
//! The daemon is threaded and large: to fork it is unsound, and to start its binary anew costs two milliseconds of loading
//! for each session. So the binary is started once, waits with one thread and nothing in its memory, and forks for
//! whoever asks on its control socket; what it forks are children of the daemon. It sees no orders: each goes to the
//! child itself, over the socket that the child is made with. All children of one daemon have its layout of addresses,
//! until they execute a program of the user.

use crate::child::CHILD_ARGUMENT;
use crate::order::{self, HEADER_BYTES};
use crate::process::Process;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// What is asked with a descriptor, the child's control socket.
const REQUEST: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

/// What is answered: the process id of the child, or the negative number of an error.
pub(crate) fn answer(forked: Result<i32, i32>) -> [u8; HEADER_BYTES] {
    forked.unwrap_or_else(|error| -error).to_be_bytes()
}

/// The process, as the daemon holds it; ended when dropped.
#[derive(Debug)]
pub(crate) struct Nursery {
    control: UnixStream,
    _process: tokio::process::Child,
    /// Answers that have not come yet: more than one when somebody who asked did not wait.
    owed: usize,
}

/// Why there is no child.
#[derive(Debug)]
pub(crate) enum ForkError {
    /// The system refuses another process.
    Refused(io::Error),
    /// The nursery is of no use any more.
    Gone(io::Error),
}

impl Nursery {
    /// Starts it from this program.
    pub(crate) fn start(program: &Path) -> io::Result<Self> {
        let (near, far) = std::os::unix::net::UnixStream::pair()?;
        near.set_nonblocking(true)?;
        let control = UnixStream::from_std(near)?;
        let process = tokio::process::Command::new(program)
            .arg0("wayleave")
            .arg(CHILD_ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(far)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { control, _process: process, owed: 0 })
    }

    /// A child whose control socket this is. May be dropped at any point: what was forked for it ends without an order.
    pub(crate) async fn fork(&mut self, socket: &OwnedFd) -> Result<Process, ForkError> {
        let sent = self
            .control
            .async_io(Interest::WRITABLE, || order::send_header(&self.control, REQUEST, &[socket.as_fd()]));
        sent.await.map_err(ForkError::Gone)?;
        self.owed += 1;
        loop {
            let received =
                self.control.async_io(Interest::READABLE, || order::receive_header(&self.control)).await;
            let header = match received {
                Ok(Some((header, _))) => header,
                Ok(None) => return Err(ForkError::Gone(io::ErrorKind::UnexpectedEof.into())),
                Err(error) => return Err(ForkError::Gone(error)),
            };
            self.owed = self.owed.saturating_sub(1);
            let forked = match i32::from_be_bytes(header) {
                pid @ 1.. => Process::adopt(pid).map_err(ForkError::Refused),
                error => Err(ForkError::Refused(io::Error::from_raw_os_error(error.wrapping_neg()))),
            };
            // One that somebody else asked for is reaped as it is dropped.
            if self.owed == 0 {
                return forked;
            }
        }
    }
}
