//! Reads the fields of a packet.

use crate::PATH_BYTES_MAX;

/// A packet that is not what its type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends in the middle of a field.
    #[error("the packet is cut short")]
    Truncated,
    /// Bytes follow its last field.
    #[error("the packet has bytes after its end")]
    Trailing,
    /// A path is longer than [`PATH_BYTES_MAX`].
    #[error("a path is longer than {PATH_BYTES_MAX} bytes")]
    PathTooLong,
    /// Something is counted higher than it may be.
    #[error("the packet declares more entries than it may")]
    TooMany,
    /// A file is to be opened in a way that version 3 does not know.
    #[error("a file cannot be opened with these flags")]
    Flags,
    /// A name is no UTF-8.
    #[error("the name of an extension is not UTF-8")]
    Name,
    /// There is no such packet, or not in this direction.
    #[error("packet type {0} is not known here")]
    Type(u8),
    /// The other side speaks a version below ours.
    #[error("version {0} is not spoken here")]
    Version(u32),
}

/// What is left of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(packet: &'a [u8]) -> Self {
        Self(packet)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.chunk::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.chunk().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.chunk().map(u64::from_be_bytes)
    }

    /// A string: a u32 length and that many bytes.
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.u32()?).map_err(|_| Malformed::Truncated)?;
        let (string, rest) = self.0.split_at_checked(length).ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(string)
    }

    pub(crate) fn path(&mut self) -> Result<&'a [u8], Malformed> {
        let path = self.string()?;
        if path.len() > PATH_BYTES_MAX { Err(Malformed::PathTooLong) } else { Ok(path) }
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.string()?).map_err(|_| Malformed::Name)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes not yet read.
    pub(crate) fn remaining(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed::Trailing) }
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (chunk, rest) = self.0.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(*chunk)
    }
}

/// Appends a string with its length; ours are bounded far below what a u32 counts.
pub(crate) fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    let length = u32::try_from(string.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(string);
}
