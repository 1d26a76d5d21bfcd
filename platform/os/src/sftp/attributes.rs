//! Attributes between SFTP and the file system.

use crate::sftp::status::Done;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Stat, Timespec, Timestamps, Uid};
use std::os::fd::BorrowedFd;
use wayleave_sftp::{Attributes, Owner, Times};

/// The permission bits of a mode, without the type.
pub(crate) const PERMISSION_BITS: u32 = 0o7777;

/// What attributes are changed of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    /// What the path leads to.
    Path(&'a [u8]),
    /// The path itself, even if it is a link.
    Link(&'a [u8]),
    /// An open file.
    File(BorrowedFd<'a>),
}

/// What version 3 tells of a file.
pub(crate) fn from_stat(stat: &Stat) -> Attributes {
    Attributes {
        size: u64::try_from(stat.st_size).ok(),
        owner: Some(Owner { uid: stat.st_uid, gid: stat.st_gid }),
        permissions: Some(stat.st_mode),
        times: Some(Times { accessed: to_seconds(stat.st_atime), modified: to_seconds(stat.st_mtime) }),
    }
}

/// The wire has 32 bits from 1970: earlier is then, later is the last of them.
fn to_seconds(time: i64) -> u32 {
    u32::try_from(time.max(0)).unwrap_or(u32::MAX)
}

/// Changes what is given, and stops at the first that the system refuses.
pub(crate) fn change(target: Target<'_>, wanted: &Attributes) -> Done {
    if let Some(size) = wanted.size {
        change_size(target, size)?;
    }
    if let Some(permissions) = wanted.permissions {
        let mode = Mode::from_raw_mode(permissions & PERMISSION_BITS);
        match target {
            Target::Path(path) => rustix::fs::chmod(path, mode)?,
            Target::Link(path) => rustix::fs::chmodat(CWD, path, mode, AtFlags::SYMLINK_NOFOLLOW)?,
            Target::File(file) => rustix::fs::fchmod(file, mode)?,
        }
    }
    if let Some(times) = wanted.times {
        change_times(target, times)?;
    }
    if let Some(Owner { uid, gid }) = wanted.owner {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match target {
            Target::Path(path) => rustix::fs::chown(path, uid, gid)?,
            Target::Link(path) => rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?,
            Target::File(file) => rustix::fs::fchown(file, uid, gid)?,
        }
    }
    Ok(())
}

fn change_size(target: Target<'_>, size: u64) -> Done {
    let file_size = i64::try_from(size).map_err(|_| rustix::io::Errno::FBIG)?;
    match target {
        Target::Path(path) => nix::unistd::truncate(path, file_size)?,
        Target::Link(_) => return Err(rustix::io::Errno::INVAL.into()),
        Target::File(file) => rustix::fs::ftruncate(file, size)?,
    }
    Ok(())
}

fn change_times(target: Target<'_>, times: Times) -> Done {
    let at = |seconds: u32| Timespec { tv_sec: i64::from(seconds), tv_nsec: 0 };
    let times = Timestamps { last_access: at(times.accessed), last_modification: at(times.modified) };
    match target {
        Target::Path(path) => rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?,
        Target::Link(path) => rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?,
        Target::File(file) => rustix::fs::futimens(file, &times)?,
    }
    Ok(())
}
