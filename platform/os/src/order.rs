//! What parent and child say to each other on the control socket, which is the child's standard input.
//!
//! Every message is a big-endian u32 length and that many bytes of JSON; descriptors ride with the
//! length. The parent sends one [`Order`]; the child answers with [`Reply`]s, or closes by exec.
//! Both ends are the same binary, so there is no version.

use crate::account::Account;
use crate::environment::{AcceptedEnvironment, ConnectionAddresses};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Longest command line in bytes: what Linux takes as one argument, less its end.
pub const COMMAND_BYTES_MAX: usize = 128 * 1024 - 1;

/// Longest message in bytes; JSON spends up to four bytes on one of a command.
pub(crate) const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Most descriptors that ride with one message.
const DESCRIPTORS_MAX: usize = 4;

/// Length of the length.
pub(crate) const HEADER_BYTES: usize = 4;

/// What the child shall become.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) account: Account,
    pub(crate) task: Task,
}

/// What the child does as its user.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Becomes the user's shell. Descriptors: the terminal, or standard input, output and error.
    Shell(ShellTask),
    /// Serves SFTP. Descriptors: standard input, output and error, and memory to note in what was done.
    Sftp,
    /// Connects to a Unix socket and hands the connection back.
    Connect { path: PathBuf },
    /// Listens on a Unix socket, hands the listener back and removes the socket at the end.
    Listen { path: PathBuf },
    /// The same in a fresh directory that only the user can enter.
    ListenInPrivateDirectory,
}

/// A shell, login or with a command.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShellTask {
    pub(crate) command: Option<Vec<u8>>,
    pub(crate) terminal: Option<TerminalTask>,
    pub(crate) accepted: AcceptedEnvironment,
    pub(crate) connection: Option<ConnectionAddresses>,
    pub(crate) agent_socket: Option<PathBuf>,
}

/// The terminal that came along.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TerminalTask {
    pub(crate) path: String,
    pub(crate) term: String,
}

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// All is set up. The end of the stream after this means that the work has begun.
    Ready,
    /// The socket that was asked for rides along; a listener's path is told.
    Socket { path: PathBuf },
    /// It cannot be done.
    Failed(ChildFailure),
}

/// Why a child could not do its work, as it saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ChildFailure {
    /// The administrator has closed the machine to everybody but root.
    #[error("logins are disabled: {message}")]
    LoginsDisabled {
        /// What `/etc/nologin` says, 1 KiB at most.
        message: String,
    },
    /// The child could not become the user. Nothing ran.
    #[error("could not become the user ({step}): {reason}")]
    Privileges {
        /// What was being done.
        step: String,
        /// The system's reason.
        reason: String,
    },
    /// The terminal could not be taken over.
    #[error("could not take over the terminal ({step}): {reason}")]
    Terminal {
        /// What was being done.
        step: String,
        /// The system's reason.
        reason: String,
    },
    /// The account's shell cannot be started.
    #[error("cannot start the login shell {shell}: {reason}")]
    Shell {
        /// The shell's path.
        shell: String,
        /// The system's reason.
        reason: String,
    },
    /// A Unix socket could not be connected or made.
    #[error("the socket {path}: {reason}")]
    Socket {
        /// The socket's path.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// The order was torn or had other descriptors than it needs; a fault of the agent.
    #[error("the child was given a bad order: {reason}")]
    Order {
        /// What was wrong with it.
        reason: String,
    },
}

/// A message that cannot be sent or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("the message is longer than {MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    #[error("the other side is gone")]
    Ended,
    #[error("the message is no JSON of its kind: {0}")]
    Malformed(serde_json::Error),
    #[error("the control socket failed")]
    Io(#[from] io::Error),
}

/// The body of a message and its length.
pub(crate) fn encode(message: &impl Serialize) -> Result<([u8; HEADER_BYTES], Vec<u8>), MessageError> {
    let body = serde_json::to_vec(message).map_err(MessageError::Malformed)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MESSAGE_BYTES_MAX);
    Ok((length.ok_or(MessageError::TooLong)?.to_be_bytes(), body))
}

/// The length that a header tells, checked.
pub(crate) fn body_bytes(header: [u8; HEADER_BYTES]) -> Result<usize, MessageError> {
    usize::try_from(u32::from_be_bytes(header))
        .ok()
        .filter(|length| *length <= MESSAGE_BYTES_MAX)
        .ok_or(MessageError::TooLong)
}

/// Reads a body.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, MessageError> {
    serde_json::from_slice(body).map_err(MessageError::Malformed)
}

/// Sends a header and the descriptors that ride with it; the kernel takes so few bytes whole.
pub(crate) fn send_header(
    socket: impl AsFd,
    header: [u8; HEADER_BYTES],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&header)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent == header.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
}

/// Receives a header and its descriptors; none at the end of the stream.
pub(crate) fn receive_header(socket: impl AsFd) -> io::Result<Option<([u8; HEADER_BYTES], Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut header = [0; HEADER_BYTES];
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut header)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    match received.bytes {
        0 => Ok(None),
        HEADER_BYTES => Ok(Some((header, descriptors))),
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f_a_declared_length_is_bounded() {
        assert!(matches!(body_bytes([0xff; 4]), Err(MessageError::TooLong)));
        assert!(matches!(body_bytes([0; 4]), Ok(0)));
    }

    #[test]
    fn the_longest_command_fits() {
        let command = vec![b'x'; COMMAND_BYTES_MAX];

        assert!(encode(&command).is_ok());
    }

    #[test]
    fn descriptors_arrive_with_their_message() {
        let (parent, child) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();

        send_header(&parent, [1, 2, 3, 4], &[file.as_fd(), file.as_fd()]).unwrap();
        drop(parent);

        let (header, descriptors) = receive_header(&child).unwrap().unwrap();
        assert_eq!((header, descriptors.len()), ([1, 2, 3, 4], 2));
        assert!(receive_header(&child).unwrap().is_none());
    }
}
