//! What each request does to the file system.

use crate::sftp::attributes::{PERMISSION_BITS, Target, change, from_stat};
use crate::sftp::directory::{Directory, Owners};
use crate::sftp::status::{Done, Failed};
use crate::sftp::tally::{Deed, Recorder};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, StatVfs, StatVfsMountFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use wayleave_sftp::{
    Attributes, DATA_BYTES_MAX, Extension, FileSystem, HandleTable, Limits, Name, OpenFlags, Output,
    PACKET_BYTES_MAX, Request, StatusCode,
};

/// Most open files and directories of one client.
const HANDLES_MAX: usize = 512;

/// What files and directories get when the client says nothing, before the umask.
const FILE_MODE: u32 = 0o666;
const DIRECTORY_MODE: u32 = 0o777;

/// Open files, and what listings need.
pub(crate) struct Operations {
    open: HandleTable<Open>,
    owners: Owners,
    recorder: Recorder,
}

enum Open {
    File(OwnedFd),
    Directory(Directory),
}

/// What a request is answered with, when not by data.
enum Answer {
    Done,
    Handle([u8; wayleave_sftp::HANDLE_BYTES]),
    Attributes(Attributes),
    Names(Vec<Name>),
    FileSystem(FileSystem),
    Limits(Limits),
}

impl Operations {
    /// Nothing is open yet; what is done is noted by `recorder`.
    pub(crate) fn new(recorder: Recorder) -> Self {
        Self { open: HandleTable::new(HANDLES_MAX), owners: Owners::default(), recorder }
    }

    /// Makes what was noted seen, before it is answered.
    pub(crate) fn publish(&mut self) {
        self.recorder.publish();
    }

    /// Does what is asked and writes the one reply.
    pub(crate) fn answer(&mut self, id: u32, request: Request<'_>, output: &mut Output) {
        let answer = match request {
            // The hot one: from the file straight into the reply.
            Request::Read { handle, offset, length } => match self.read(id, handle, offset, length, output) {
                Ok(()) => return,
                Err(failed) => Err(failed),
            },
            other => self.perform_noted(other),
        };
        match answer {
            Ok(Answer::Done) => output.status(id, StatusCode::Ok, StatusCode::Ok.sentence()),
            Ok(Answer::Handle(handle)) => output.handle(id, &handle),
            Ok(Answer::Attributes(attributes)) => output.attributes(id, &attributes),
            Ok(Answer::Names(names)) => output.names(id, &names),
            Ok(Answer::FileSystem(state)) => output.file_system(id, &state),
            Ok(Answer::Limits(limits)) => output.limits(id, &limits),
            Err(failed) => failed.write(id, output),
        }
    }

    fn perform_noted(&mut self, request: Request<'_>) -> Done<Answer> {
        let deed = Deed::of(&request);
        let answer = self.perform(request);
        match (&answer, deed) {
            (Ok(_), Some(deed)) => self.recorder.done(&deed),
            (Err(_), Some(_)) => self.recorder.failed(),
            (_, None) => {}
        }
        answer
    }

    fn perform(&mut self, request: Request<'_>) -> Done<Answer> {
        match request {
            Request::Open { path, flags, attributes } => self.open(path, flags, &attributes),
            Request::Close { handle } => self.close(handle),
            Request::Read { .. } => Err(Failed::UNSUPPORTED),
            Request::Write { handle, offset, data } => self.write(handle, offset, data).map(done),
            Request::Lstat { path } => Ok(Answer::Attributes(from_stat(&rustix::fs::lstat(path)?))),
            Request::Stat { path } => Ok(Answer::Attributes(from_stat(&rustix::fs::stat(path)?))),
            Request::Fstat { handle } => self.fstat(handle),
            Request::Setstat { path, attributes } => change(Target::Path(path), &attributes).map(done),
            Request::Fsetstat { handle, attributes } => {
                change(Target::File(self.file(handle)?), &attributes).map(done)
            }
            Request::Opendir { path } => self.opendir(path),
            Request::Readdir { handle } => self.readdir(handle),
            Request::Remove { path } => Ok(rustix::fs::unlink(path).map(done)?),
            Request::Mkdir { path, attributes } => mkdir(path, &attributes).map(done),
            Request::Rmdir { path } => Ok(rustix::fs::rmdir(path).map(done)?),
            Request::Realpath { path } => realpath(path).map(one_name),
            Request::Rename { from, to } => rename(from, to).map(done),
            Request::Readlink { path } => Ok(one_name(rustix::fs::readlink(path, Vec::new())?.into_bytes())),
            Request::Symlink { target, link } => Ok(rustix::fs::symlink(target, link).map(done)?),
            Request::Extended(extension) => self.extended(extension),
            Request::UnknownExtension { .. } => Err(Failed::UNSUPPORTED),
        }
    }

    fn extended(&mut self, extension: Extension<'_>) -> Done<Answer> {
        match extension {
            Extension::PosixRename { from, to } => Ok(rustix::fs::rename(from, to).map(done)?),
            Extension::Statvfs { path } => Ok(file_system(&rustix::fs::statvfs(path)?)),
            Extension::Fstatvfs { handle } => Ok(file_system(&rustix::fs::fstatvfs(self.file(handle)?)?)),
            Extension::Hardlink { from, to } => Ok(rustix::fs::link(from, to).map(done)?),
            Extension::Fsync { handle } => Ok(rustix::fs::fsync(self.file(handle)?).map(done)?),
            Extension::Lsetstat { path, attributes } => change(Target::Link(path), &attributes).map(done),
            Extension::Limits => Ok(Answer::Limits(Limits {
                packet_bytes: PACKET_BYTES_MAX as u64,
                read_bytes: DATA_BYTES_MAX as u64,
                write_bytes: DATA_BYTES_MAX as u64,
                handles: HANDLES_MAX as u64,
            })),
            Extension::ExpandPath { path } => realpath(&expand_home(path)?).map(one_name),
        }
    }

    fn open(&mut self, path: &[u8], flags: OpenFlags, attributes: &Attributes) -> Done<Answer> {
        let mut how = match (flags.read, flags.write || flags.append) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            (_, false) => OFlags::RDONLY,
        };
        how |= OFlags::CLOEXEC | OFlags::NOCTTY;
        for (wanted, flag) in [
            (flags.append, OFlags::APPEND),
            (flags.create, OFlags::CREATE),
            (flags.truncate, OFlags::TRUNC),
            (flags.exclusive, OFlags::EXCL),
        ] {
            how.set(flag, wanted);
        }
        if !self.open.has_room() {
            return Err(wayleave_sftp::HandlesFull.into());
        }
        let mode = Mode::from_raw_mode(attributes.permissions.unwrap_or(FILE_MODE) & PERMISSION_BITS);
        let file = rustix::fs::open(path, how, mode)?;
        Ok(Answer::Handle(self.open.insert(Open::File(file))?))
    }

    fn opendir(&mut self, path: &[u8]) -> Done<Answer> {
        if !self.open.has_room() {
            return Err(wayleave_sftp::HandlesFull.into());
        }
        let directory = Directory::open(path)?;
        Ok(Answer::Handle(self.open.insert(Open::Directory(directory))?))
    }

    fn close(&mut self, handle: &[u8]) -> Done<Answer> {
        match self.open.remove(handle) {
            // What a file server could not write may be told only now.
            Some(Open::File(file)) => Ok(nix::unistd::close(file).map(done)?),
            Some(Open::Directory(_)) => Ok(Answer::Done),
            None => Err(Failed::NO_SUCH_HANDLE),
        }
    }

    fn read(&mut self, id: u32, handle: &[u8], offset: u64, length: u32, output: &mut Output) -> Done {
        let file = self.file(handle)?;
        let count = output.data(id, length, |data| retry(|| rustix::io::pread(file, &mut *data, offset)))?;
        self.recorder.read(count);
        if count == 0 { Err(Failed::END_OF_FILE) } else { Ok(()) }
    }

    fn write(&mut self, handle: &[u8], mut offset: u64, mut data: &[u8]) -> Done {
        let file = self.file(handle)?;
        let mut total = 0;
        while !data.is_empty() {
            let written = retry(|| rustix::io::pwrite(file, data, offset))?;
            if written == 0 {
                return Err(Errno::IO.into());
            }
            data = data.get(written..).unwrap_or_default();
            offset = offset.saturating_add(written as u64);
            total += written;
        }
        self.recorder.written(total);
        Ok(())
    }

    fn fstat(&mut self, handle: &[u8]) -> Done<Answer> {
        let stat = match self.open.get_mut(handle).ok_or(Failed::NO_SUCH_HANDLE)? {
            Open::File(file) => rustix::fs::fstat(file)?,
            Open::Directory(directory) => directory.stat()?,
        };
        Ok(Answer::Attributes(from_stat(&stat)))
    }

    fn readdir(&mut self, handle: &[u8]) -> Done<Answer> {
        match self.open.get_mut(handle).ok_or(Failed::NO_SUCH_HANDLE)? {
            Open::Directory(directory) => directory.next_names(&mut self.owners).map(Answer::Names),
            Open::File(_) => Err(Failed::WRONG_HANDLE),
        }
    }

    fn file(&mut self, handle: &[u8]) -> Done<BorrowedFd<'_>> {
        match self.open.get_mut(handle).ok_or(Failed::NO_SUCH_HANDLE)? {
            Open::File(file) => {
                let file: &OwnedFd = file;
                Ok(file.as_fd())
            }
            Open::Directory(_) => Err(Failed::WRONG_HANDLE),
        }
    }
}

fn done(_nothing_to_tell: ()) -> Answer {
    Answer::Done
}

fn one_name(name: Vec<u8>) -> Answer {
    Answer::Names(vec![Name { longname: name.clone(), name, attributes: Attributes::default() }])
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

fn mkdir(path: &[u8], attributes: &Attributes) -> Done {
    let mode = attributes.permissions.unwrap_or(DIRECTORY_MODE) & PERMISSION_BITS;
    Ok(rustix::fs::mkdir(path, Mode::from_raw_mode(mode))?)
}

/// Renames without replacing, in one step where the file system can.
fn rename(from: &[u8], to: &[u8]) -> Done {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Err(Failed::EXISTS),
        Err(Errno::INVAL | Errno::NOSYS) => match rustix::fs::lstat(to) {
            Ok(_) => Err(Failed::EXISTS),
            Err(Errno::NOENT) => Ok(rustix::fs::rename(from, to)?),
            Err(errno) => Err(errno.into()),
        },
        renamed => Ok(renamed?),
    }
}

/// The absolute path without links; only its last part may be missing.
fn realpath(path: &[u8]) -> Done<Vec<u8>> {
    let path = Path::new(OsStr::from_bytes(if path.is_empty() { b"." } else { path }));
    let resolved = match std::fs::canonicalize(path) {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => resolve_parent(path)?,
        resolved => resolved?,
    };
    Ok(resolved.into_os_string().into_vec())
}

fn resolve_parent(path: &Path) -> Done<PathBuf> {
    let name = path.file_name().ok_or(Errno::NOENT)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(std::fs::canonicalize(parent)?.join(name))
}

/// Replaces a leading `~` or `~user` by the home directory.
fn expand_home(path: &[u8]) -> Done<Vec<u8>> {
    let Some(rest) = path.strip_prefix(b"~") else { return Ok(path.to_vec()) };
    let slash = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let (name, below) = rest.split_at(slash);
    let user = if name.is_empty() {
        nix::unistd::User::from_uid(nix::unistd::Uid::effective())?
    } else {
        let name = std::str::from_utf8(name).map_err(|_| Errno::NOENT)?;
        nix::unistd::User::from_name(name)?
    };
    let home = user.ok_or(Errno::NOENT)?.dir.into_os_string().into_vec();
    Ok([home.as_slice(), below].concat())
}

fn file_system(state: &StatVfs) -> Answer {
    let flag = |flag: StatVfsMountFlags, bit: u64| if state.f_flag.contains(flag) { bit } else { 0 };
    Answer::FileSystem(FileSystem {
        block_bytes: state.f_bsize,
        fragment_bytes: state.f_frsize,
        blocks: state.f_blocks,
        blocks_free: state.f_bfree,
        blocks_available: state.f_bavail,
        files: state.f_files,
        files_free: state.f_ffree,
        files_available: state.f_favail,
        id: state.f_fsid,
        flags: flag(StatVfsMountFlags::RDONLY, 1) | flag(StatVfsMountFlags::NOSUID, 2),
        name_bytes_max: state.f_namemax,
    })
}
