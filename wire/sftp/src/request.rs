//! What clients ask.

use crate::VERSION;
use crate::attributes::Attributes;
use crate::frame;
use crate::reader::{Malformed, Reader, put_string};

const INIT: u8 = 1;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const LSTAT: u8 = 7;
const FSTAT: u8 = 8;
const SETSTAT: u8 = 9;
const FSETSTAT: u8 = 10;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const RMDIR: u8 = 15;
const REALPATH: u8 = 16;
const STAT: u8 = 17;
const RENAME: u8 = 18;
const READLINK: u8 = 19;
const SYMLINK: u8 = 20;
const EXTENDED: u8 = 200;

/// Most extensions that a client may announce.
const EXTENSIONS_MAX: usize = 64;

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// Made when it does not exist.
    pub create: bool,
    /// Emptied.
    pub truncate: bool,
    /// Must not exist before.
    pub exclusive: bool,
}

impl OpenFlags {
    const BITS: u32 = 0x3f;

    fn from_bits(bits: u32) -> Option<Self> {
        (bits & !Self::BITS == 0).then_some(Self {
            read: bits & 0x01 != 0,
            write: bits & 0x02 != 0,
            append: bits & 0x04 != 0,
            create: bits & 0x08 != 0,
            truncate: bits & 0x10 != 0,
            exclusive: bits & 0x20 != 0,
        })
    }

    fn to_bits(self) -> u32 {
        u32::from(self.read)
            | u32::from(self.write) << 1
            | u32::from(self.append) << 2
            | u32::from(self.create) << 3
            | u32::from(self.truncate) << 4
            | u32::from(self.exclusive) << 5
    }
}

/// The first thing in a packet from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// The client's hello; always the first packet, never a later one.
    Init {
        /// The highest version that the client speaks.
        version: u32,
    },
    /// A request with the number that its answer bears.
    Request {
        /// Chosen by the client.
        id: u32,
        /// What it wants.
        request: Request<'a>,
    },
}

/// What a client wants done. Paths are bytes as file systems have them, relative to the user's home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Opens a file; answered by a handle.
    Open {
        /// Which file.
        path: &'a [u8],
        /// How.
        flags: OpenFlags,
        /// What it gets when it is made.
        attributes: Attributes,
    },
    /// Ends the use of a handle.
    Close {
        /// Which.
        handle: &'a [u8],
    },
    /// Reads from a file; answered by data.
    Read {
        /// Which file.
        handle: &'a [u8],
        /// From where, in bytes.
        offset: u64,
        /// At most so many bytes.
        length: u32,
    },
    /// Writes to a file.
    Write {
        /// Which file.
        handle: &'a [u8],
        /// To where, in bytes.
        offset: u64,
        /// What.
        data: &'a [u8],
    },
    /// Attributes of a path, not following a link at its end.
    Lstat {
        /// Of what.
        path: &'a [u8],
    },
    /// Attributes of an open file.
    Fstat {
        /// Of what.
        handle: &'a [u8],
    },
    /// Changes attributes by path.
    Setstat {
        /// Of what.
        path: &'a [u8],
        /// To what.
        attributes: Attributes,
    },
    /// Changes attributes of an open file.
    Fsetstat {
        /// Of what.
        handle: &'a [u8],
        /// To what.
        attributes: Attributes,
    },
    /// Opens a directory for listing; answered by a handle.
    Opendir {
        /// Which.
        path: &'a [u8],
    },
    /// The next names of a directory.
    Readdir {
        /// Which.
        handle: &'a [u8],
    },
    /// Removes a file.
    Remove {
        /// Which.
        path: &'a [u8],
    },
    /// Makes a directory.
    Mkdir {
        /// Where.
        path: &'a [u8],
        /// What it gets.
        attributes: Attributes,
    },
    /// Removes an empty directory.
    Rmdir {
        /// Which.
        path: &'a [u8],
    },
    /// The absolute path without links; answered by one name.
    Realpath {
        /// Of what.
        path: &'a [u8],
    },
    /// Attributes of a path, following links.
    Stat {
        /// Of what.
        path: &'a [u8],
    },
    /// Renames; what has the new name already is not replaced.
    Rename {
        /// The old name.
        from: &'a [u8],
        /// The new name.
        to: &'a [u8],
    },
    /// What a link points to; answered by one name.
    Readlink {
        /// Which link.
        path: &'a [u8],
    },
    /// Makes a symbolic link. On the wire the target comes first, as OpenSSH has it against the draft.
    Symlink {
        /// What it points to.
        target: &'a [u8],
        /// Where it is made.
        link: &'a [u8],
    },
    /// One of OpenSSH's extensions.
    Extended(Extension<'a>),
    /// An extension that is not known here.
    UnknownExtension {
        /// Its name.
        name: &'a str,
    },
}

/// OpenSSH's extensions that we know (PROTOCOL section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension<'a> {
    /// `posix-rename@openssh.com`: renames, replacing.
    PosixRename {
        /// The old name.
        from: &'a [u8],
        /// The new name.
        to: &'a [u8],
    },
    /// `statvfs@openssh.com`: the file system of a path.
    Statvfs {
        /// Which path.
        path: &'a [u8],
    },
    /// `fstatvfs@openssh.com`: the file system of an open file.
    Fstatvfs {
        /// Which file.
        handle: &'a [u8],
    },
    /// `hardlink@openssh.com`: a second name.
    Hardlink {
        /// The name it has.
        from: &'a [u8],
        /// The name it gets.
        to: &'a [u8],
    },
    /// `fsync@openssh.com`: to the disk.
    Fsync {
        /// Which file.
        handle: &'a [u8],
    },
    /// `lsetstat@openssh.com`: changes attributes, not following a link.
    Lsetstat {
        /// Of what.
        path: &'a [u8],
        /// To what.
        attributes: Attributes,
    },
    /// `limits@openssh.com`: how large packets may be.
    Limits,
    /// `expand-path@openssh.com`: as realpath, after `~` and `~user`.
    ExpandPath {
        /// Which path.
        path: &'a [u8],
    },
}

/// Names and versions of the extensions, as a server announces them.
pub(crate) const ANNOUNCED: [(&str, &str); 8] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

/// A packet that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadRequest {
    /// The number of the request, when it could be read: it can be answered.
    pub id: Option<u32>,
    /// What is wrong.
    pub reason: Malformed,
}

impl<'a> Message<'a> {
    /// Reads a packet of a client.
    pub fn decode(packet: &'a [u8]) -> Result<Self, BadRequest> {
        let mut reader = Reader::new(packet);
        let unnumbered = |reason| BadRequest { id: None, reason };
        let kind = reader.u8().map_err(unnumbered)?;
        if kind == INIT {
            return read_init(reader).map_err(unnumbered);
        }
        let id = reader.u32().map_err(unnumbered)?;
        let numbered = |reason| BadRequest { id: Some(id), reason };
        let request = Request::read(kind, &mut reader).map_err(numbered)?;
        reader.end().map_err(numbered)?;
        Ok(Self::Request { id, request })
    }
}

fn read_init(mut reader: Reader<'_>) -> Result<Message<'_>, Malformed> {
    let version = reader.u32()?;
    if version < VERSION {
        return Err(Malformed::Version(version));
    }
    let mut count = 0;
    while !reader.is_empty() {
        reader.string()?;
        reader.string()?;
        count += 1;
        if count > EXTENSIONS_MAX {
            return Err(Malformed::TooMany);
        }
    }
    Ok(Message::Init { version })
}

impl<'a> Request<'a> {
    fn read(kind: u8, reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(match kind {
            OPEN => {
                let path = reader.path()?;
                let flags = OpenFlags::from_bits(reader.u32()?).ok_or(Malformed::Flags)?;
                Self::Open { path, flags, attributes: Attributes::read(reader)? }
            }
            CLOSE => Self::Close { handle: reader.string()? },
            READ => Self::Read { handle: reader.string()?, offset: reader.u64()?, length: reader.u32()? },
            WRITE => Self::Write { handle: reader.string()?, offset: reader.u64()?, data: reader.string()? },
            LSTAT => Self::Lstat { path: reader.path()? },
            FSTAT => Self::Fstat { handle: reader.string()? },
            SETSTAT => Self::Setstat { path: reader.path()?, attributes: Attributes::read(reader)? },
            FSETSTAT => Self::Fsetstat { handle: reader.string()?, attributes: Attributes::read(reader)? },
            OPENDIR => Self::Opendir { path: reader.path()? },
            READDIR => Self::Readdir { handle: reader.string()? },
            REMOVE => Self::Remove { path: reader.path()? },
            MKDIR => Self::Mkdir { path: reader.path()?, attributes: Attributes::read(reader)? },
            RMDIR => Self::Rmdir { path: reader.path()? },
            REALPATH => Self::Realpath { path: reader.path()? },
            STAT => Self::Stat { path: reader.path()? },
            RENAME => Self::Rename { from: reader.path()?, to: reader.path()? },
            READLINK => Self::Readlink { path: reader.path()? },
            SYMLINK => Self::Symlink { target: reader.path()?, link: reader.path()? },
            EXTENDED => return Self::read_extended(reader),
            other => return Err(Malformed::Type(other)),
        })
    }

    fn read_extended(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let extension = match reader.text()? {
            "posix-rename@openssh.com" => Extension::PosixRename { from: reader.path()?, to: reader.path()? },
            "statvfs@openssh.com" => Extension::Statvfs { path: reader.path()? },
            "fstatvfs@openssh.com" => Extension::Fstatvfs { handle: reader.string()? },
            "hardlink@openssh.com" => Extension::Hardlink { from: reader.path()?, to: reader.path()? },
            "fsync@openssh.com" => Extension::Fsync { handle: reader.string()? },
            "lsetstat@openssh.com" => {
                Extension::Lsetstat { path: reader.path()?, attributes: Attributes::read(reader)? }
            }
            "limits@openssh.com" => Extension::Limits,
            "expand-path@openssh.com" => Extension::ExpandPath { path: reader.path()? },
            name => {
                reader.rest();
                return Ok(Self::UnknownExtension { name });
            }
        };
        Ok(Self::Extended(extension))
    }

    /// Appends the request as a whole packet.
    pub fn encode(&self, id: u32, out: &mut Vec<u8>) {
        frame::append(out, |out| {
            out.push(self.kind());
            out.extend_from_slice(&id.to_be_bytes());
            self.write(out);
        });
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Open { .. } => OPEN,
            Self::Close { .. } => CLOSE,
            Self::Read { .. } => READ,
            Self::Write { .. } => WRITE,
            Self::Lstat { .. } => LSTAT,
            Self::Fstat { .. } => FSTAT,
            Self::Setstat { .. } => SETSTAT,
            Self::Fsetstat { .. } => FSETSTAT,
            Self::Opendir { .. } => OPENDIR,
            Self::Readdir { .. } => READDIR,
            Self::Remove { .. } => REMOVE,
            Self::Mkdir { .. } => MKDIR,
            Self::Rmdir { .. } => RMDIR,
            Self::Realpath { .. } => REALPATH,
            Self::Stat { .. } => STAT,
            Self::Rename { .. } => RENAME,
            Self::Readlink { .. } => READLINK,
            Self::Symlink { .. } => SYMLINK,
            Self::Extended(_) | Self::UnknownExtension { .. } => EXTENDED,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Open { path, flags, attributes } => {
                put_string(out, path);
                out.extend_from_slice(&flags.to_bits().to_be_bytes());
                attributes.write(out);
            }
            Self::Read { handle, offset, length } => {
                put_string(out, handle);
                out.extend_from_slice(&offset.to_be_bytes());
                out.extend_from_slice(&length.to_be_bytes());
            }
            Self::Write { handle, offset, data } => {
                put_string(out, handle);
                out.extend_from_slice(&offset.to_be_bytes());
                put_string(out, data);
            }
            Self::Close { handle: name }
            | Self::Fstat { handle: name }
            | Self::Readdir { handle: name }
            | Self::Lstat { path: name }
            | Self::Opendir { path: name }
            | Self::Remove { path: name }
            | Self::Rmdir { path: name }
            | Self::Realpath { path: name }
            | Self::Stat { path: name }
            | Self::Readlink { path: name } => put_string(out, name),
            Self::Setstat { path: name, attributes }
            | Self::Fsetstat { handle: name, attributes }
            | Self::Mkdir { path: name, attributes } => {
                put_string(out, name);
                attributes.write(out);
            }
            Self::Rename { from: first, to: second } | Self::Symlink { target: first, link: second } => {
                put_string(out, first);
                put_string(out, second);
            }
            Self::Extended(extension) => extension.write(out),
            Self::UnknownExtension { name } => put_string(out, name.as_bytes()),
        }
    }
}

impl Extension<'_> {
    /// Its name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PosixRename { .. } => "posix-rename@openssh.com",
            Self::Statvfs { .. } => "statvfs@openssh.com",
            Self::Fstatvfs { .. } => "fstatvfs@openssh.com",
            Self::Hardlink { .. } => "hardlink@openssh.com",
            Self::Fsync { .. } => "fsync@openssh.com",
            Self::Lsetstat { .. } => "lsetstat@openssh.com",
            Self::Limits => "limits@openssh.com",
            Self::ExpandPath { .. } => "expand-path@openssh.com",
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_string(out, self.name().as_bytes());
        match *self {
            Self::PosixRename { from, to } | Self::Hardlink { from, to } => {
                put_string(out, from);
                put_string(out, to);
            }
            Self::Statvfs { path: name }
            | Self::ExpandPath { path: name }
            | Self::Fstatvfs { handle: name }
            | Self::Fsync { handle: name } => put_string(out, name),
            Self::Lsetstat { path, attributes } => {
                put_string(out, path);
                attributes.write(out);
            }
            Self::Limits => {}
        }
    }
}

/// Appends the client's hello as a whole packet.
pub(crate) fn encode_init(out: &mut Vec<u8>) {
    frame::append(out, |out| {
        out.push(INIT);
        out.extend_from_slice(&VERSION.to_be_bytes());
    });
}
