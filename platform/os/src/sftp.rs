//! The SFTP server: a blocking loop in a process that is already its user, so that the kernel decides what may
//! be touched. Nothing but SFTP is written to the output.

mod attributes;
mod directory;
mod operations;
mod status;
mod tally;

pub(crate) use crate::sftp::tally::Tally;
pub use crate::sftp::tally::{SftpAction, SftpActionKind, SftpCounts, SftpReport};

use crate::sftp::operations::Operations;
use crate::sftp::tally::Recorder;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use wayleave_sftp::{BadRequest, Message, Output, PACKET_BYTES_MAX, StatusCode, frame};

/// Room for a packet that has come in part and for the next one.
const INPUT_BYTES: usize = 2 * (PACKET_BYTES_MAX + frame::HEADER_BYTES);

/// Why a client is no longer served.
#[derive(Debug, thiserror::Error)]
pub enum SftpServerError {
    /// Its bytes are no SFTP.
    #[error("the client does not speak SFTP")]
    BadLength(#[from] frame::BadLength),
    /// It sent a packet that cannot even be answered.
    #[error("the client sent a bad packet")]
    BadRequest(#[from] BadRequest),
    /// It made requests before its hello, or said hello twice.
    #[error("the client did not begin with its hello")]
    OutOfOrder,
    /// The streams failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

/// Serves one client until the end of `input`, with the rights and the working directory of this process.
///
/// Both streams must block. It uses about 1 MiB for its buffers and holds 512 open files at most.
pub fn serve_sftp(input: impl AsFd, output: impl AsFd) -> Result<(), SftpServerError> {
    serve_counted(input, output, None)
}

/// The same, noting what is done in the memory of a [`Tally`].
pub(crate) fn serve_counted(
    input: impl AsFd,
    output: impl AsFd,
    memory: Option<OwnedFd>,
) -> Result<(), SftpServerError> {
    let operations = Operations::new(Recorder::new(memory));
    let mut buffer = vec![0; INPUT_BYTES];
    let mut filled = 0;
    let mut server = Server { output, replies: Output::default(), operations, greeted: false };
    loop {
        let received = read(&input, buffer.get_mut(filled..).unwrap_or_default())?;
        if received == 0 {
            return Ok(());
        }
        filled += received;
        let rest = server.handle_bytes(buffer.get(..filled).unwrap_or_default())?;
        let consumed = filled - rest;
        buffer.copy_within(consumed..filled, 0);
        filled = rest;
    }
}

fn read(input: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(&input, &mut *buffer) {
            Err(Errno::INTR) => {}
            read => return Ok(read?),
        }
    }
}

struct Server<O> {
    output: O,
    replies: Output,
    operations: Operations,
    greeted: bool,
}

impl<O: AsFd> Server<O> {
    /// Answers every whole packet; gives the number of bytes that are left.
    fn handle_bytes(&mut self, mut bytes: &[u8]) -> Result<usize, SftpServerError> {
        while let Some(frame) = frame::split(bytes)? {
            if !self.replies.has_room() {
                self.send()?;
            }
            self.handle_packet(frame.packet)?;
            bytes = frame.rest;
        }
        self.send()?;
        Ok(bytes.len())
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), SftpServerError> {
        match Message::decode(packet) {
            Ok(Message::Init { .. }) if !self.greeted => {
                self.greeted = true;
                self.replies.version();
                Ok(())
            }
            Ok(Message::Request { id, request }) if self.greeted => {
                self.operations.answer(id, request, &mut self.replies);
                Ok(())
            }
            Ok(Message::Init { .. } | Message::Request { .. }) => Err(SftpServerError::OutOfOrder),
            Err(BadRequest { id: Some(id), reason }) if self.greeted => {
                self.replies.status(id, StatusCode::BadMessage, &reason.to_string());
                Ok(())
            }
            Err(bad) => Err(bad.into()),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        self.operations.publish();
        let mut rest = self.replies.as_bytes();
        while !rest.is_empty() {
            match rustix::io::write(&self.output, rest) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(failed) => return Err(failed.into()),
            }
        }
        self.replies.clear();
        Ok(())
    }
}
