//! File attributes (section 5 of the draft).

use crate::reader::{Malformed, Reader};

const SIZE: u32 = 0x0000_0001;
const OWNER: u32 = 0x0000_0002;
const PERMISSIONS: u32 = 0x0000_0004;
const TIMES: u32 = 0x0000_0008;
const EXTENDED: u32 = 0x8000_0000;

/// Most extended attributes in one packet; we read over them.
const EXTENDED_MAX: u32 = 64;

/// What is known of a file, or what shall be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Size in bytes.
    pub size: Option<u64>,
    /// Owner and group.
    pub owner: Option<Owner>,
    /// Type and permission bits as `st_mode` has them.
    pub permissions: Option<u32>,
    /// Times of access and change.
    pub times: Option<Times>,
}

/// Owner and group, which travel together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

/// Times in seconds since 1970, which travel together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Last access.
    pub accessed: u32,
    /// Last change of content.
    pub modified: u32,
}

impl Attributes {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let flags = reader.u32()?;
        let mut attributes = Self::default();
        if flags & SIZE != 0 {
            attributes.size = Some(reader.u64()?);
        }
        if flags & OWNER != 0 {
            attributes.owner = Some(Owner { uid: reader.u32()?, gid: reader.u32()? });
        }
        if flags & PERMISSIONS != 0 {
            attributes.permissions = Some(reader.u32()?);
        }
        if flags & TIMES != 0 {
            attributes.times = Some(Times { accessed: reader.u32()?, modified: reader.u32()? });
        }
        if flags & EXTENDED != 0 {
            let count = reader.u32()?;
            if count > EXTENDED_MAX {
                return Err(Malformed::TooMany);
            }
            for _ in 0..count {
                reader.string()?;
                reader.string()?;
            }
        }
        Ok(attributes)
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let flag = |present: bool, flag: u32| if present { flag } else { 0 };
        let flags = flag(self.size.is_some(), SIZE)
            | flag(self.owner.is_some(), OWNER)
            | flag(self.permissions.is_some(), PERMISSIONS)
            | flag(self.times.is_some(), TIMES);
        out.extend_from_slice(&flags.to_be_bytes());
        if let Some(size) = self.size {
            out.extend_from_slice(&size.to_be_bytes());
        }
        if let Some(Owner { uid, gid }) = self.owner {
            out.extend_from_slice(&uid.to_be_bytes());
            out.extend_from_slice(&gid.to_be_bytes());
        }
        if let Some(permissions) = self.permissions {
            out.extend_from_slice(&permissions.to_be_bytes());
        }
        if let Some(Times { accessed, modified }) = self.times {
            out.extend_from_slice(&accessed.to_be_bytes());
            out.extend_from_slice(&modified.to_be_bytes());
        }
    }
}
