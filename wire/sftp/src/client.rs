//! The client's machine: requests out, typed replies in, any number in flight up to a bound.

use crate::attributes::Attributes;
use crate::frame;
use crate::reader::Malformed;
use crate::request::{Extension, Request, encode_init};
use crate::response::{Limits, Name, Response, ResponseBody};
use crate::status::Status;
use crate::{DATA_BYTES_MAX, PACKET_BYTES_MAX};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeSet, HashMap, VecDeque};

/// Most requests without an answer.
const IN_FLIGHT_MAX: usize = 1024;

/// What every server takes in one read or write; more only if it says so.
const DATA_BYTES_ASSUMED: u32 = 32 * 1024;

/// The number of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u32);

/// What kind of answer a request can have, beside a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Nothing,
    Handle,
    Data,
    Names,
    Attributes,
    Extended,
}

/// Where the conversation is.
#[derive(Debug)]
enum State {
    /// Our hello is out.
    Greeting,
    /// Both hellos are exchanged, the server's limits are asked for.
    AskingLimits { id: u32 },
    /// Requests flow.
    Open,
}

/// An SFTP client without input and output.
///
/// Drive it in this order: [`SftpClient::poll_event`] until there is none, send all of
/// [`SftpClient::take_output`], then wait for bytes and give them to [`SftpClient::handle_data`].
#[derive(Debug)]
pub struct SftpClient {
    state: State,
    next_id: u32,
    expected: HashMap<u32, Expected>,
    input: BytesMut,
    output: Vec<u8>,
    events: VecDeque<ClientEvent>,
    extensions: BTreeSet<String>,
    limits: ClientLimits,
}

/// How much one read or write may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// One read in bytes.
    pub read_bytes: u32,
    /// One write in bytes.
    pub write_bytes: u32,
}

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// Requests can be made now.
    Ready,
    /// A request was answered.
    Reply {
        /// Which.
        id: RequestId,
        /// How.
        reply: Reply,
    },
}

/// An answer, of the kind that the request asked for or a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done, or why not.
    Status(Status),
    /// What was opened.
    Handle(Bytes),
    /// What was read, at least one byte.
    Data(Bytes),
    /// Entries of a directory, or one path.
    Names(Vec<Name>),
    /// Attributes.
    Attributes(Attributes),
    /// An extension's own bytes: see [`crate::FileSystem::decode`].
    Extended(Bytes),
}

/// Why the conversation cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The server's bytes are no SFTP; often a shell's start-up file that prints something.
    #[error("the server does not speak SFTP (does a start-up file of the remote shell print something?)")]
    NotSftp(#[from] frame::BadLength),
    /// A packet of the server cannot be read.
    #[error("the server sent a bad packet")]
    Malformed(#[from] Malformed),
    /// The server answered what was not asked, or in another way.
    #[error("the server answered out of order")]
    OutOfOrder,
    /// A request was made before [`ClientEvent::Ready`], or with `IN_FLIGHT_MAX` unanswered.
    #[error("no request can be made now")]
    Busy,
    /// A path, handle or data is longer than a packet may be.
    #[error("the request is longer than {PACKET_BYTES_MAX} bytes")]
    TooLong,
}

impl Default for SftpClient {
    fn default() -> Self {
        let mut output = Vec::new();
        encode_init(&mut output);
        Self {
            state: State::Greeting,
            next_id: 0,
            expected: HashMap::new(),
            input: BytesMut::new(),
            output,
            events: VecDeque::new(),
            extensions: BTreeSet::new(),
            limits: ClientLimits { read_bytes: DATA_BYTES_ASSUMED, write_bytes: DATA_BYTES_ASSUMED },
        }
    }
}

impl SftpClient {
    /// Makes a request. Its reply comes as an event with the same id.
    pub fn request(&mut self, request: &Request<'_>) -> Result<RequestId, ClientError> {
        if !matches!(self.state, State::Open) || self.expected.len() >= IN_FLIGHT_MAX {
            return Err(ClientError::Busy);
        }
        self.send(request).map(RequestId)
    }

    /// How many requests have no answer yet.
    pub fn in_flight(&self) -> usize {
        self.expected.len()
    }

    /// Whether the server announced the extension of this name.
    pub fn has_extension(&self, name: &str) -> bool {
        self.extensions.contains(name)
    }

    /// How much one read or write may carry; final after [`ClientEvent::Ready`].
    pub fn limits(&self) -> ClientLimits {
        self.limits
    }

    /// Takes what arrived.
    pub fn handle_data(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// What is to be sent, all of it; empty when there is nothing.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// The next thing that the server said; none until more arrives. After an error nothing more can be read.
    pub fn poll_event(&mut self) -> Result<Option<ClientEvent>, ClientError> {
        while self.events.is_empty() {
            let Some(frame) = frame::split(&self.input)? else { return Ok(None) };
            let length = frame::HEADER_BYTES + frame.packet.len();
            let packet = self.input.split_to(length).split_off(frame::HEADER_BYTES).freeze();
            self.handle_packet(&packet)?;
        }
        Ok(self.events.pop_front())
    }

    fn handle_packet(&mut self, packet: &Bytes) -> Result<(), ClientError> {
        match (Response::decode(packet)?, &self.state) {
            (Response::Version { extensions, .. }, State::Greeting) => {
                self.extensions = extensions.into_iter().map(|(name, _)| name.to_owned()).collect();
                self.state = State::Open;
                if self.has_extension(Extension::Limits.name()) {
                    let id = self.send(&Request::Extended(Extension::Limits))?;
                    self.state = State::AskingLimits { id };
                } else {
                    self.events.push_back(ClientEvent::Ready);
                }
                Ok(())
            }
            (Response::Reply { id, body }, State::AskingLimits { id: asked }) if id == *asked => {
                self.expected.remove(&id);
                if let ResponseBody::Extended(extended) = body {
                    self.limits = ClientLimits::from(Limits::decode(extended)?);
                }
                self.state = State::Open;
                self.events.push_back(ClientEvent::Ready);
                Ok(())
            }
            (Response::Reply { id, body }, State::Open) => {
                let expected = self.expected.remove(&id).ok_or(ClientError::OutOfOrder)?;
                let reply = to_reply(body, expected, packet)?;
                self.events.push_back(ClientEvent::Reply { id: RequestId(id), reply });
                Ok(())
            }
            (Response::Version { .. } | Response::Reply { .. }, _) => Err(ClientError::OutOfOrder),
        }
    }

    fn send(&mut self, request: &Request<'_>) -> Result<u32, ClientError> {
        let id = self.next_id;
        let start = self.output.len();
        request.encode(id, &mut self.output);
        if self.output.len() - start > PACKET_BYTES_MAX + frame::HEADER_BYTES {
            self.output.truncate(start);
            return Err(ClientError::TooLong);
        }
        self.next_id = self.next_id.wrapping_add(1);
        self.expected.insert(id, Expected::of(request));
        Ok(id)
    }
}

impl Expected {
    fn of(request: &Request<'_>) -> Self {
        match request {
            Request::Open { .. } | Request::Opendir { .. } => Self::Handle,
            Request::Read { .. } => Self::Data,
            Request::Lstat { .. } | Request::Fstat { .. } | Request::Stat { .. } => Self::Attributes,
            Request::Readdir { .. }
            | Request::Realpath { .. }
            | Request::Readlink { .. }
            | Request::Extended(Extension::ExpandPath { .. }) => Self::Names,
            Request::Extended(Extension::Statvfs { .. } | Extension::Fstatvfs { .. } | Extension::Limits) => {
                Self::Extended
            }
            Request::Close { .. }
            | Request::Write { .. }
            | Request::Setstat { .. }
            | Request::Fsetstat { .. }
            | Request::Remove { .. }
            | Request::Mkdir { .. }
            | Request::Rmdir { .. }
            | Request::Rename { .. }
            | Request::Symlink { .. }
            | Request::Extended(
                Extension::PosixRename { .. }
                | Extension::Hardlink { .. }
                | Extension::Fsync { .. }
                | Extension::Lsetstat { .. },
            )
            | Request::UnknownExtension { .. } => Self::Nothing,
        }
    }
}

fn to_reply(body: ResponseBody<'_>, expected: Expected, packet: &Bytes) -> Result<Reply, ClientError> {
    match (body, expected) {
        (ResponseBody::Status(status), _) => Ok(Reply::Status(status)),
        (ResponseBody::Handle(handle), Expected::Handle) => Ok(Reply::Handle(Bytes::copy_from_slice(handle))),
        (ResponseBody::Data(data), Expected::Data) if !data.is_empty() => {
            Ok(Reply::Data(packet.slice_ref(data)))
        }
        (ResponseBody::Names(names), Expected::Names) => Ok(Reply::Names(names)),
        (ResponseBody::Attributes(attributes), Expected::Attributes) => Ok(Reply::Attributes(attributes)),
        (ResponseBody::Extended(extended), Expected::Extended) => {
            Ok(Reply::Extended(packet.slice_ref(extended)))
        }
        _ => Err(ClientError::OutOfOrder),
    }
}

impl From<Limits> for ClientLimits {
    fn from(limits: Limits) -> Self {
        let bounded = |told: u64| match told {
            0 => DATA_BYTES_ASSUMED,
            told => u32::try_from(told.min(DATA_BYTES_MAX as u64)).unwrap_or(DATA_BYTES_ASSUMED),
        };
        Self { read_bytes: bounded(limits.read_bytes), write_bytes: bounded(limits.write_bytes) }
    }
}
