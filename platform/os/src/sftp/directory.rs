//! Directories: names with attributes and the line of `ls -l`.

use crate::raw;
use crate::sftp::attributes::from_stat;
use crate::sftp::status::{Done, Failed};
use nix::unistd::{Gid, Group, Uid, User};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CStr;
use std::time::{SystemTime, UNIX_EPOCH};
use wayleave_sftp::{LocalTime, NAMES_MAX, Name, longname};

/// `ls` shows the hour of what changed in the last half year.
const RECENT_SECONDS: i64 = 365 * 24 * 60 * 60 / 2;

/// Most owners whose names are kept; a directory with more asks again.
const OWNERS_MAX: usize = 4096;

/// A directory that is being listed.
#[derive(Debug)]
pub(crate) struct Directory(Dir);

impl Directory {
    pub(crate) fn open(path: &[u8]) -> Done<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(Dir::new(rustix::fs::open(path, flags, Mode::empty())?)?))
    }

    pub(crate) fn stat(&self) -> Done<Stat> {
        Ok(self.0.stat()?)
    }

    /// The next names, `.` and `..` among them; [`Failed::END_OF_FILE`] after the last.
    pub(crate) fn next_names(&mut self, owners: &mut Owners) -> Done<Vec<Name>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let mut names = Vec::new();
        while names.len() < NAMES_MAX {
            let Some(entry) = self.0.read() else { break };
            let entry = entry?;
            // Gone between the listing and the look at it: it is not there.
            if let Ok(stat) = rustix::fs::statat(self.0.fd()?, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                names.push(name_of(entry.file_name(), &stat, owners, now));
            }
        }
        if names.is_empty() { Err(Failed::END_OF_FILE) } else { Ok(names) }
    }
}

fn name_of(name: &CStr, stat: &Stat, owners: &mut Owners, now: i64) -> Name {
    let attributes = from_stat(stat);
    let name = name.to_bytes();
    let modified = raw::local_time(stat.st_mtime).unwrap_or(LocalTime {
        year: 1970,
        month: 1,
        day: 1,
        hour: 0,
        minute: 0,
    });
    let is_recent = stat.st_mtime <= now && now - stat.st_mtime < RECENT_SECONDS;
    let (user, group) = (owners.user(stat.st_uid), owners.group(stat.st_gid));
    let longname = longname(name, &attributes, to_u64(stat.st_nlink), (&user, &group), modified, is_recent);
    Name { name: name.to_vec(), longname, attributes }
}

/// The width of a link count differs between machines.
fn to_u64(number: impl TryInto<u64>) -> u64 {
    number.try_into().unwrap_or(u64::MAX)
}

/// Names of users and groups, asked for once.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Owners {
    fn user(&mut self, uid: u32) -> String {
        name_in(&mut self.users, uid, |uid| Some(User::from_uid(Uid::from_raw(uid)).ok()??.name))
    }

    fn group(&mut self, gid: u32) -> String {
        name_in(&mut self.groups, gid, |gid| Some(Group::from_gid(Gid::from_raw(gid)).ok()??.name))
    }
}

/// The name, or the number of somebody without one.
fn name_in(names: &mut HashMap<u32, String>, id: u32, ask: impl FnOnce(u32) -> Option<String>) -> String {
    if names.len() >= OWNERS_MAX {
        names.clear();
    }
    match names.entry(id) {
        Entry::Occupied(known) => known.get().clone(),
        Entry::Vacant(unknown) => unknown.insert(ask(id).unwrap_or_else(|| id.to_string())).clone(),
    }
}
