//! Whole files in many requests: which are in flight, which must be made again, when all is done.

use crate::client::{ClientError, Reply, RequestId, SftpClient};
use crate::request::Request;
use crate::status::{Status, StatusCode};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};

/// Requests of one file in flight: with 255 KiB each that is 16 MiB, enough for 1 Gbit/s over 130 ms.
const IN_FLIGHT_MAX: usize = 64;

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    offset: u64,
    length: u32,
}

/// Reads a file from its start to its end.
#[derive(Debug)]
pub struct Download {
    handle: Bytes,
    part_bytes: u32,
    next_offset: u64,
    /// Where reading more than one part ahead stops, as the file was said to end there.
    size_told: u64,
    again: VecDeque<Part>,
    in_flight: HashMap<RequestId, Part>,
    is_at_end: bool,
    failed: bool,
}

/// What an answer means for a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DownloadStep {
    /// These bytes belong there; parts come in any order.
    Write {
        /// Position in the file.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Nothing to do.
    Nothing,
    /// It failed; told once.
    Failed(Status),
    /// The answer belongs to another request.
    Foreign(Reply),
}

impl Download {
    /// A download of the file that `handle` names, in parts of `part_bytes` (see [`SftpClient::limits`]).
    /// `size_told` is what its attributes said: it may have grown or shrunk since, and some files say zero.
    pub fn new(handle: Bytes, size_told: u64, part_bytes: u32) -> Self {
        Self {
            handle,
            part_bytes: part_bytes.max(1),
            next_offset: 0,
            size_told,
            again: VecDeque::new(),
            in_flight: HashMap::new(),
            is_at_end: false,
            failed: false,
        }
    }

    /// Makes the requests that can be made now. Call it at the start and after each answer.
    pub fn request(&mut self, client: &mut SftpClient) -> Result<(), ClientError> {
        while let Some(part) = self.next_part() {
            let Part { offset, length } = part;
            let id = client.request(&Request::Read { handle: &self.handle, offset, length })?;
            self.in_flight.insert(id, part);
        }
        Ok(())
    }

    fn next_part(&mut self) -> Option<Part> {
        if self.failed || self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        if let Some(part) = self.again.pop_front() {
            return Some(part);
        }
        let is_ahead = self.next_offset < self.size_told || self.in_flight.is_empty();
        if self.is_at_end || !is_ahead {
            return None;
        }
        let part = Part { offset: self.next_offset, length: self.part_bytes };
        self.next_offset = self.next_offset.checked_add(u64::from(self.part_bytes))?;
        Some(part)
    }

    /// Takes an answer.
    pub fn handle_reply(&mut self, id: RequestId, reply: Reply) -> DownloadStep {
        let Some(Part { offset, length }) = self.in_flight.remove(&id) else {
            return DownloadStep::Foreign(reply);
        };
        match reply {
            _ if self.failed => DownloadStep::Nothing,
            Reply::Data(data) => {
                let received = u32::try_from(data.len()).unwrap_or(u32::MAX);
                if received > length {
                    return self.fail("the server sent more than was asked for");
                }
                if received < length {
                    let offset = offset.saturating_add(u64::from(received));
                    self.again.push_back(Part { offset, length: length - received });
                }
                DownloadStep::Write { offset, data }
            }
            Reply::Status(status) if status.code == StatusCode::EndOfFile => {
                self.is_at_end = true;
                DownloadStep::Nothing
            }
            Reply::Status(status) => {
                self.failed = true;
                DownloadStep::Failed(status)
            }
            Reply::Handle(_) | Reply::Names(_) | Reply::Attributes(_) | Reply::Extended(_) => {
                self.fail("the server answered a read with something else")
            }
        }
    }

    fn fail(&mut self, message: &str) -> DownloadStep {
        self.failed = true;
        DownloadStep::Failed(Status { code: StatusCode::BadMessage, message: message.to_owned() })
    }

    /// Whether every byte has come, or it failed and no answer is missing.
    pub fn is_done(&self) -> bool {
        let is_complete = self.is_at_end && self.again.is_empty();
        self.in_flight.is_empty() && (is_complete || self.failed)
    }
}

/// Writes a file from its start.
#[derive(Debug)]
pub struct Upload {
    handle: Bytes,
    next_offset: u64,
    in_flight: HashMap<RequestId, ()>,
}

impl Upload {
    /// An upload to the file that `handle` names.
    pub fn new(handle: Bytes) -> Self {
        Self { handle, next_offset: 0, in_flight: HashMap::new() }
    }

    /// Whether the next part can be written now.
    pub fn has_room(&self) -> bool {
        self.in_flight.len() < IN_FLIGHT_MAX
    }

    /// Writes the next part, no longer than [`SftpClient::limits`] tells.
    pub fn write(&mut self, client: &mut SftpClient, data: &[u8]) -> Result<(), ClientError> {
        let id = client.request(&Request::Write { handle: &self.handle, offset: self.next_offset, data })?;
        self.in_flight.insert(id, ());
        self.next_offset = self.next_offset.saturating_add(data.len() as u64);
        Ok(())
    }

    /// Takes an answer: nothing to do, a failure, or (the last) an answer to another request.
    pub fn handle_reply(&mut self, id: RequestId, reply: Reply) -> Result<Option<Reply>, Status> {
        if self.in_flight.remove(&id).is_none() {
            return Ok(Some(reply));
        }
        match reply {
            Reply::Status(status) if status.code == StatusCode::Ok => Ok(None),
            Reply::Status(status) => Err(status),
            Reply::Handle(_)
            | Reply::Data(_)
            | Reply::Names(_)
            | Reply::Attributes(_)
            | Reply::Extended(_) => Err(Status {
                code: StatusCode::BadMessage,
                message: "the server answered a write with something else".to_owned(),
            }),
        }
    }

    /// Bytes handed over so far.
    pub fn bytes_written(&self) -> u64 {
        self.next_offset
    }

    /// Whether every write has been answered.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }
}
