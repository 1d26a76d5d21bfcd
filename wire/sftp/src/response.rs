//! What servers answer.

use crate::attributes::Attributes;
use crate::frame;
use crate::reader::{Malformed, Reader, put_string};
use crate::request::ANNOUNCED;
use crate::status::{Status, StatusCode};
use crate::{DATA_BYTES_MAX, PACKET_BYTES_MAX, VERSION};

const VERSION_REPLY: u8 = 2;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRIBUTES: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

/// Length, type, id and length of the data, before the data.
const DATA_HEADER_BYTES: usize = 13;

/// Room for one packet of any size behind others.
const OUTPUT_BYTES: usize = 2 * PACKET_BYTES_MAX;

/// Most extensions that a server may announce.
const EXTENSIONS_MAX: usize = 64;

/// Longest handle (section 6.3 of the draft).
const HANDLE_BYTES_MAX: usize = 256;

/// Longest sentence of a status that a client keeps.
const MESSAGE_CHARS_MAX: usize = 512;

/// The least that a name takes in a reply: two empty strings and no attributes.
const NAME_BYTES_MIN: usize = 12;

/// One entry of a directory, or a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Name {
    /// The name itself.
    pub name: Vec<u8>,
    /// The line that `ls -l` prints.
    pub longname: Vec<u8>,
    /// What is known of it.
    pub attributes: Attributes,
}

/// The state of a file system, as `statvfs(3)` tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Preferred size of transfers in bytes.
    pub block_bytes: u64,
    /// The unit of the three numbers that follow, in bytes.
    pub fragment_bytes: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for users.
    pub blocks_available: u64,
    /// All files.
    pub files: u64,
    /// Free files.
    pub files_free: u64,
    /// Free files for users.
    pub files_available: u64,
    /// Identity of the file system.
    pub id: u64,
    /// Bit 0: read only. Bit 1: set-user-id is ignored.
    pub flags: u64,
    /// Longest name in bytes.
    pub name_bytes_max: u64,
}

/// How large things may be (`limits@openssh.com`); zero is "not told".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Packets in bytes.
    pub packet_bytes: u64,
    /// One read in bytes.
    pub read_bytes: u64,
    /// One write in bytes.
    pub write_bytes: u64,
    /// Open handles.
    pub handles: u64,
}

/// Replies of a server that wait to be sent, in one buffer that is used again and again.
#[derive(Debug)]
pub struct Output {
    buffer: Vec<u8>,
    filled: usize,
    scratch: Vec<u8>,
}

impl Default for Output {
    fn default() -> Self {
        Self { buffer: vec![0; OUTPUT_BYTES], filled: 0, scratch: Vec::new() }
    }
}

impl Output {
    /// The packets to send.
    pub fn as_bytes(&self) -> &[u8] {
        self.buffer.get(..self.filled).unwrap_or_default()
    }

    /// Forgets what was sent.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Whether a reply of any size fits; otherwise send first.
    pub fn has_room(&self) -> bool {
        self.buffer.len() - self.filled >= PACKET_BYTES_MAX
    }

    /// The hello with the extensions that we serve.
    pub fn version(&mut self) {
        self.packet(VERSION_REPLY, |out| {
            out.extend_from_slice(&VERSION.to_be_bytes());
            for (name, version) in ANNOUNCED {
                put_string(out, name.as_bytes());
                put_string(out, version.as_bytes());
            }
        });
    }

    /// A code and a sentence.
    pub fn status(&mut self, id: u32, code: StatusCode, message: &str) {
        self.reply(STATUS, id, |out| {
            out.extend_from_slice(&code.to_u32().to_be_bytes());
            put_string(out, message.as_bytes());
            put_string(out, b"");
        });
    }

    /// A handle.
    pub fn handle(&mut self, id: u32, handle: &[u8]) {
        self.reply(HANDLE, id, |out| put_string(out, handle));
    }

    /// Attributes.
    pub fn attributes(&mut self, id: u32, attributes: &Attributes) {
        self.reply(ATTRIBUTES, id, |out| attributes.write(out));
    }

    /// Names; at most [`crate::NAMES_MAX`] of them.
    pub fn names(&mut self, id: u32, names: &[Name]) {
        self.reply(NAME, id, |out| {
            out.extend_from_slice(&u32::try_from(names.len()).unwrap_or(u32::MAX).to_be_bytes());
            for name in names {
                put_string(out, &name.name);
                put_string(out, &name.longname);
                name.attributes.write(out);
            }
        });
    }

    /// The state of a file system.
    pub fn file_system(&mut self, id: u32, state: &FileSystem) {
        let numbers = [
            state.block_bytes,
            state.fragment_bytes,
            state.blocks,
            state.blocks_free,
            state.blocks_available,
            state.files,
            state.files_free,
            state.files_available,
            state.id,
            state.flags,
            state.name_bytes_max,
        ];
        self.numbers(id, &numbers);
    }

    /// The limits.
    pub fn limits(&mut self, id: u32, limits: &Limits) {
        self.numbers(id, &[limits.packet_bytes, limits.read_bytes, limits.write_bytes, limits.handles]);
    }

    fn numbers(&mut self, id: u32, numbers: &[u64]) {
        self.reply(EXTENDED_REPLY, id, |out| {
            numbers.iter().for_each(|n| out.extend_from_slice(&n.to_be_bytes()))
        });
    }

    /// File data, at most `length` bytes and [`DATA_BYTES_MAX`]: `read` fills a slice and tells how much. When
    /// that is nothing, or an error, no reply was written. The buffer must have room.
    pub fn data<E>(
        &mut self,
        id: u32,
        length: u32,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(DATA_BYTES_MAX);
        let start = self.filled;
        let end = start + DATA_HEADER_BYTES + length;
        if end > self.buffer.len() {
            self.buffer.resize(end, 0);
        }
        let Some((header, data)) = self
            .buffer
            .get_mut(start..end)
            .and_then(|slot| slot.split_first_chunk_mut::<DATA_HEADER_BYTES>())
        else {
            return Ok(0);
        };
        let count = read(data)?.min(length);
        if count == 0 {
            return Ok(0);
        }
        let count_u32 = u32::try_from(count).unwrap_or(u32::MAX);
        let [packet, id_bytes, data_bytes] =
            [count_u32.saturating_add(9), id, count_u32].map(u32::to_be_bytes);
        for (place, byte) in
            header.iter_mut().zip(packet.into_iter().chain([DATA]).chain(id_bytes).chain(data_bytes))
        {
            *place = byte;
        }
        self.filled = start + DATA_HEADER_BYTES + count;
        Ok(count)
    }

    fn reply(&mut self, kind: u8, id: u32, write: impl FnOnce(&mut Vec<u8>)) {
        self.packet(kind, |out| {
            out.extend_from_slice(&id.to_be_bytes());
            write(out);
        });
    }

    fn packet(&mut self, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
        self.scratch.clear();
        frame::append(&mut self.scratch, |out| {
            out.push(kind);
            write(out);
        });
        let end = self.filled + self.scratch.len();
        if end > self.buffer.len() {
            self.buffer.resize(end, 0);
        }
        if let Some(place) = self.buffer.get_mut(self.filled..end) {
            place.copy_from_slice(&self.scratch);
        }
        self.filled = end;
    }
}

/// A packet of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response<'a> {
    /// The server's hello.
    Version {
        /// The version that is spoken from now on.
        version: u32,
        /// Names and data of the extensions it has.
        extensions: Vec<(&'a str, &'a [u8])>,
    },
    /// The answer to a request.
    Reply {
        /// The number of the request.
        id: u32,
        /// The answer.
        body: ResponseBody<'a>,
    },
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseBody<'a> {
    /// Done, or why not.
    Status(Status),
    /// What was opened.
    Handle(&'a [u8]),
    /// What was read.
    Data(&'a [u8]),
    /// Entries or paths.
    Names(Vec<Name>),
    /// Attributes.
    Attributes(Attributes),
    /// An extension's own bytes.
    Extended(&'a [u8]),
}

impl<'a> Response<'a> {
    /// Reads a packet of a server.
    pub fn decode(packet: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(packet);
        let kind = reader.u8()?;
        if kind == VERSION_REPLY {
            return read_version(reader);
        }
        let id = reader.u32()?;
        let body = match kind {
            STATUS => ResponseBody::Status(read_status(&mut reader)?),
            HANDLE => ResponseBody::Handle(read_handle(&mut reader)?),
            DATA => ResponseBody::Data(reader.string()?),
            NAME => ResponseBody::Names(read_names(&mut reader)?),
            ATTRIBUTES => ResponseBody::Attributes(Attributes::read(&mut reader)?),
            EXTENDED_REPLY => ResponseBody::Extended(reader.rest()),
            other => return Err(Malformed::Type(other)),
        };
        reader.end()?;
        Ok(Self::Reply { id, body })
    }
}

fn read_version(mut reader: Reader<'_>) -> Result<Response<'_>, Malformed> {
    let version = reader.u32()?;
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    let mut extensions = Vec::new();
    while !reader.is_empty() {
        if extensions.len() >= EXTENSIONS_MAX {
            return Err(Malformed::TooMany);
        }
        extensions.push((reader.text()?, reader.string()?));
    }
    Ok(Response::Version { version, extensions })
}

fn read_status(reader: &mut Reader<'_>) -> Result<Status, Malformed> {
    let code = StatusCode::from_u32(reader.u32()?);
    // Old servers send no sentence.
    let message = if reader.is_empty() { &[][..] } else { reader.string()? };
    reader.rest();
    let message: String = String::from_utf8_lossy(message)
        .chars()
        .filter(|c| !c.is_control())
        .take(MESSAGE_CHARS_MAX)
        .collect();
    let message = if message.is_empty() { code.sentence().to_owned() } else { message };
    Ok(Status { code, message })
}

fn read_handle<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let handle = reader.string()?;
    if handle.len() > HANDLE_BYTES_MAX { Err(Malformed::TooMany) } else { Ok(handle) }
}

fn read_names(reader: &mut Reader<'_>) -> Result<Vec<Name>, Malformed> {
    let count = usize::try_from(reader.u32()?).map_err(|_| Malformed::TooMany)?;
    if count > reader.remaining() / NAME_BYTES_MIN {
        return Err(Malformed::TooMany);
    }
    (0..count)
        .map(|_| {
            Ok(Name {
                name: reader.path()?.to_vec(),
                longname: reader.string()?.to_vec(),
                attributes: Attributes::read(reader)?,
            })
        })
        .collect()
}

impl FileSystem {
    /// Reads the answer to `statvfs@openssh.com`.
    pub fn decode(extended: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(extended);
        let state = Self {
            block_bytes: reader.u64()?,
            fragment_bytes: reader.u64()?,
            blocks: reader.u64()?,
            blocks_free: reader.u64()?,
            blocks_available: reader.u64()?,
            files: reader.u64()?,
            files_free: reader.u64()?,
            files_available: reader.u64()?,
            id: reader.u64()?,
            flags: reader.u64()?,
            name_bytes_max: reader.u64()?,
        };
        reader.end().map(|()| state)
    }
}

impl Limits {
    /// Reads the answer to `limits@openssh.com`.
    pub fn decode(extended: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(extended);
        let limits = Self {
            packet_bytes: reader.u64()?,
            read_bytes: reader.u64()?,
            write_bytes: reader.u64()?,
            handles: reader.u64()?,
        };
        reader.end().map(|()| limits)
    }
}
