//! What an SFTP server did, kept in memory that its parent reads when it is gone, however it ended.
//!
//! The server runs as the user, so what it keeps here is read as bytes of a stranger: bounded, and believed as far as
//! the user is.

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use wayleave_sftp::{Extension, Request};

/// Numbers in the head: the counts, then the length of the list and how many did not fit.
const NUMBERS: usize = 9;
const NUMBER_BYTES: usize = 8;
const HEAD_BYTES: usize = NUMBERS * NUMBER_BYTES;
/// Room for the list of actions.
const LIST_BYTES: usize = 16 * 1024;
/// Longest path that is kept; what is longer is cut.
const PATH_BYTES_MAX: usize = 1024;
/// Most actions that are kept.
const ACTIONS_MAX: usize = 255;
/// Kind, length of the path, length of the target.
const ENTRY_HEAD_BYTES: usize = 5;

/// What one client did over SFTP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SftpReport {
    /// How much.
    pub counts: SftpCounts,
    /// What was done to which file, in order, 255 actions at most.
    pub actions: Vec<SftpAction>,
    /// How many more there were.
    pub actions_omitted: u64,
}

/// How much one client did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SftpCounts {
    /// Files opened for reading only.
    pub files_read: u64,
    /// Files opened for writing.
    pub files_written: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Files and directories removed.
    pub removed: u64,
    /// Other changes.
    pub other_changes: u64,
    /// Requests of these kinds that failed.
    pub failures: u64,
}

/// Something that was done, with paths as the client named them, cut to a kilobyte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftpAction {
    /// What.
    pub kind: SftpActionKind,
    /// To which file.
    pub path: Vec<u8>,
    /// The other file of a rename or link; empty for all others.
    pub target: Vec<u8>,
}

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SftpActionKind {
    /// Opened for reading only.
    Read,
    /// Opened for writing.
    Write,
    /// Removed.
    Remove,
    /// Renamed to the target.
    Rename,
    /// A directory was made.
    MakeDirectory,
    /// A directory was removed.
    RemoveDirectory,
    /// A link was made to the target.
    Link,
    /// Attributes were changed.
    Change,
}

impl SftpActionKind {
    const ALL: [Self; 8] = [
        Self::Read,
        Self::Write,
        Self::Remove,
        Self::Rename,
        Self::MakeDirectory,
        Self::RemoveDirectory,
        Self::Link,
        Self::Change,
    ];

    fn number(self) -> u8 {
        self as u8
    }
}

/// The parent's end of the memory.
#[derive(Debug)]
pub(crate) struct Tally(OwnedFd);

impl Tally {
    /// Makes it, and the server's end.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Hardened kernels want to be told that nothing of it is executed; old ones do not know the word.
        let memory = match rustix::fs::memfd_create("sftp", flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => rustix::fs::memfd_create("sftp", flags)?,
            made => made?,
        };
        rustix::fs::ftruncate(&memory, (HEAD_BYTES + LIST_BYTES) as u64)?;
        // The user's process cannot make it larger.
        rustix::fs::fcntl_add_seals(&memory, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let far = memory.try_clone()?;
        Ok((Self(memory), far))
    }

    /// What was done until now.
    pub(crate) fn read(&self) -> io::Result<SftpReport> {
        let mut bytes = vec![0; HEAD_BYTES + LIST_BYTES];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&self.0, rest, filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(decode(&bytes))
    }
}

fn decode(bytes: &[u8]) -> SftpReport {
    let (head, list) = bytes.split_at_checked(HEAD_BYTES).unwrap_or_default();
    let mut numbers = [0; NUMBERS];
    for (number, bytes) in numbers.iter_mut().zip(head.as_chunks::<NUMBER_BYTES>().0) {
        *number = u64::from_le_bytes(*bytes);
    }
    let [
        files_read,
        files_written,
        bytes_read,
        bytes_written,
        removed,
        other_changes,
        failures,
        list_bytes,
        actions_omitted,
    ] = numbers;
    let counts =
        SftpCounts { files_read, files_written, bytes_read, bytes_written, removed, other_changes, failures };
    let length = usize::try_from(list_bytes).unwrap_or(usize::MAX).min(list.len());
    let mut rest = list.get(..length).unwrap_or_default();
    let mut actions = Vec::new();
    while actions.len() < ACTIONS_MAX
        && let Some((action, behind)) = decode_action(rest)
    {
        actions.push(action);
        rest = behind;
    }
    SftpReport { counts, actions, actions_omitted }
}

fn decode_action(bytes: &[u8]) -> Option<(SftpAction, &[u8])> {
    let ([kind, path @ .., a, b], rest) = bytes.split_first_chunk::<ENTRY_HEAD_BYTES>()?;
    let kind = *SftpActionKind::ALL.get(usize::from(*kind))?;
    let (path, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*path)))?;
    let (target, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([*a, *b])))?;
    (path.len() <= PATH_BYTES_MAX && target.len() <= PATH_BYTES_MAX)
        .then(|| (SftpAction { kind, path: path.to_vec(), target: target.to_vec() }, rest))
}

/// What a request does, if it is of a kind that is told.
pub(crate) struct Deed<'a> {
    kind: SftpActionKind,
    path: &'a [u8],
    target: &'a [u8],
}

impl<'a> Deed<'a> {
    /// `None` for what only looks, and for reads and writes of open files, which are counted in bytes.
    pub(crate) fn of(request: &Request<'a>) -> Option<Self> {
        use SftpActionKind as Kind;
        let (kind, path, target): (_, &[u8], &[u8]) = match *request {
            Request::Open { path, flags, .. } if flags.write || flags.append => (Kind::Write, path, b""),
            Request::Open { path, .. } => (Kind::Read, path, b""),
            Request::Setstat { path, .. } => (Kind::Change, path, b""),
            Request::Remove { path } => (Kind::Remove, path, b""),
            Request::Mkdir { path, .. } => (Kind::MakeDirectory, path, b""),
            Request::Rmdir { path } => (Kind::RemoveDirectory, path, b""),
            Request::Rename { from, to } => (Kind::Rename, from, to),
            Request::Symlink { target, link } => (Kind::Link, link, target),
            Request::Extended(Extension::PosixRename { from, to }) => (Kind::Rename, from, to),
            Request::Extended(Extension::Hardlink { from, to }) => (Kind::Link, to, from),
            Request::Extended(Extension::Lsetstat { path, .. }) => (Kind::Change, path, b""),
            Request::Fsetstat { .. }
            | Request::Close { .. }
            | Request::Read { .. }
            | Request::Write { .. }
            | Request::Lstat { .. }
            | Request::Stat { .. }
            | Request::Fstat { .. }
            | Request::Opendir { .. }
            | Request::Readdir { .. }
            | Request::Realpath { .. }
            | Request::Readlink { .. }
            | Request::Extended(
                Extension::Statvfs { .. }
                | Extension::Fstatvfs { .. }
                | Extension::Fsync { .. }
                | Extension::Limits
                | Extension::ExpandPath { .. },
            )
            | Request::UnknownExtension { .. } => return None,
        };
        Some(Self { kind, path, target })
    }
}

/// The server's end: what is noted is in the memory before a reply goes out.
#[derive(Default)]
pub(crate) struct Recorder {
    memory: Option<OwnedFd>,
    counts: SftpCounts,
    list_bytes: usize,
    actions: usize,
    actions_omitted: u64,
    is_changed: bool,
}

impl Recorder {
    /// Notes in `memory`, or nowhere.
    pub(crate) fn new(memory: Option<OwnedFd>) -> Self {
        Self { memory, ..Self::default() }
    }

    /// Bytes went out of a file.
    pub(crate) fn read(&mut self, bytes: usize) {
        self.counts.bytes_read = self.counts.bytes_read.saturating_add(bytes as u64);
        self.is_changed = true;
    }

    /// Bytes went into a file.
    pub(crate) fn written(&mut self, bytes: usize) {
        self.counts.bytes_written = self.counts.bytes_written.saturating_add(bytes as u64);
        self.is_changed = true;
    }

    /// Something that is told was refused.
    pub(crate) fn failed(&mut self) {
        self.counts.failures = self.counts.failures.saturating_add(1);
        self.is_changed = true;
    }

    /// Something was done.
    pub(crate) fn done(&mut self, deed: &Deed<'_>) {
        let counts = &mut self.counts;
        let count = match deed.kind {
            SftpActionKind::Read => &mut counts.files_read,
            SftpActionKind::Write => &mut counts.files_written,
            SftpActionKind::Remove | SftpActionKind::RemoveDirectory => &mut counts.removed,
            SftpActionKind::Rename
            | SftpActionKind::MakeDirectory
            | SftpActionKind::Link
            | SftpActionKind::Change => &mut counts.other_changes,
        };
        *count = count.saturating_add(1);
        self.is_changed = true;
        let Some(memory) = &self.memory else { return };
        let [path, target] = [deed.path, deed.target].map(|path| path.get(..PATH_BYTES_MAX).unwrap_or(path));
        let mut entry = vec![deed.kind.number()];
        for part in [path, target] {
            entry.extend(u16::try_from(part.len()).unwrap_or(u16::MAX).to_le_bytes());
        }
        entry.extend_from_slice(path);
        entry.extend_from_slice(target);
        let fits = self.actions < ACTIONS_MAX && self.list_bytes + entry.len() <= LIST_BYTES;
        if fits && write_all(memory.as_fd(), &entry, HEAD_BYTES + self.list_bytes) {
            self.list_bytes += entry.len();
            self.actions += 1;
        } else {
            self.actions_omitted = self.actions_omitted.saturating_add(1);
        }
    }

    /// Puts the counts into the memory, if there is something new.
    pub(crate) fn publish(&mut self) {
        let Some(memory) = &self.memory else { return };
        if !std::mem::take(&mut self.is_changed) {
            return;
        }
        let SftpCounts {
            files_read,
            files_written,
            bytes_read,
            bytes_written,
            removed,
            other_changes,
            failures,
        } = self.counts;
        let numbers = [
            files_read,
            files_written,
            bytes_read,
            bytes_written,
            removed,
            other_changes,
            failures,
            self.list_bytes as u64,
            self.actions_omitted,
        ];
        // Memory of fixed size takes everything; if it did not, there is nobody here to tell.
        let _is_kept = write_all(memory.as_fd(), &numbers.map(u64::to_le_bytes).concat(), 0);
    }
}

fn write_all(memory: impl AsFd, mut bytes: &[u8], mut offset: usize) -> bool {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&memory, bytes, offset as u64) {
            Ok(0) => return false,
            Ok(written) => {
                bytes = bytes.get(written..).unwrap_or_default();
                offset += written;
            }
            Err(Errno::INTR) => {}
            Err(_refused) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_and_what_does_not_fit_is_counted() {
        let (tally, far) = Tally::new().unwrap();
        let mut recorder = Recorder::new(Some(far));
        assert_eq!(tally.read().unwrap(), SftpReport::default());

        recorder.done(&Deed { kind: SftpActionKind::Rename, path: b"a", target: b"b" });
        recorder.read(7);
        recorder.written(9);
        recorder.failed();
        recorder.publish();

        let report = tally.read().unwrap();
        let rename = SftpAction { kind: SftpActionKind::Rename, path: b"a".to_vec(), target: b"b".to_vec() };
        assert_eq!((report.actions, report.actions_omitted), (vec![rename], 0));
        let counts = SftpCounts {
            bytes_read: 7,
            bytes_written: 9,
            other_changes: 1,
            failures: 1,
            ..SftpCounts::default()
        };
        assert_eq!(report.counts, counts);

        let long = vec![b'x'; 4096];
        for _ in 0..300 {
            recorder.done(&Deed { kind: SftpActionKind::Remove, path: &long, target: b"" });
        }
        recorder.publish();
        let report = tally.read().unwrap();
        assert_eq!(report.counts.removed, 300);
        assert_eq!(report.actions.len() as u64 + report.actions_omitted, 301);
        assert!(report.actions.iter().all(|action| action.path.len() <= PATH_BYTES_MAX));
    }

    #[test]
    fn f_what_a_users_process_writes_is_read_within_bounds() {
        let (tally, far) = Tally::new().unwrap();
        for pattern in [0xff_u8, 0, 1, 2] {
            assert!(write_all(&far, &vec![pattern; HEAD_BYTES + LIST_BYTES], 0));
            let report = tally.read().unwrap();
            assert!(report.actions.len() <= ACTIONS_MAX);
        }
        assert!(!write_all(&far, &[0; 64 * 1024], 0), "the memory cannot grow");
        assert_eq!(decode(&[1; 3]), SftpReport::default());
    }
}
