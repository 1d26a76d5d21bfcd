//! Copies files and trees, one after the other; the parts of a file are many at once.

use crate::failure::{Exit, Failure};
use crate::output::{note, one_line};
use crate::scp::session::{FileError, SftpSession};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{self, File, FileTimes, Metadata, Permissions};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wayleave_sftp::{Attributes, Download, DownloadStep, OpenFlags, Status, StatusCode, Times, Upload};

/// Deepest tree that is copied: deeper ones are loops of links.
const DEPTH_MAX: usize = 64;
/// Bits of a mode that are copied.
const MODE_BITS: u32 = 0o7777;
/// Bits that tell what a file is, and two of its values.
const KIND_BITS: u32 = 0o170_000;
const KIND_DIRECTORY: u32 = 0o040_000;
const KIND_FILE: u32 = 0o100_000;
/// Mode of what the node tells no mode of.
const FILE_MODE: u32 = 0o644;
/// Longest name shown beside the progress, in characters.
const SHOWN_CHARS: usize = 32;

/// How things are copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Directories too.
    pub(crate) is_recursive: bool,
    /// With times and modes.
    pub(crate) is_preserving: bool,
    /// With a bar.
    pub(crate) shows_progress: bool,
}

/// Copying over one conversation.
pub(crate) struct Transfer {
    session: SftpSession,
    options: Options,
    /// What went wrong with single files.
    failures: Vec<Failure>,
}

impl Transfer {
    pub(crate) fn new(session: SftpSession, options: Options) -> Self {
        Self { session, options, failures: Vec::new() }
    }

    /// Says goodbye to the node.
    pub(crate) async fn finish(self) {
        self.session.finish().await;
    }

    /// Copies from here to the node.
    pub(crate) async fn upload_all(&mut self, sources: &[PathBuf], target: &str) -> Result<(), Failure> {
        let target = target.as_bytes();
        let found = self.session.stat(target).await.map_err(|e| failure(e, &shown(target)))?;
        let is_directory = found.is_some_and(|attributes| kind(&attributes) == Some(KIND_DIRECTORY));
        if sources.len() > 1 && !is_directory {
            return Err(Failure::failed(format!("{} is no directory on the node", shown(target)))
                .hint("several files need a directory to go to"));
        }
        for source in sources {
            let path = match source.file_name() {
                Some(name) if is_directory => join(target, name.as_bytes()),
                _ if is_directory => target.to_vec(),
                _ => target.to_vec(),
            };
            self.upload(source, &path, 0).await?;
        }
        self.conclude()
    }

    async fn upload(&mut self, source: &Path, target: &[u8], depth: usize) -> Result<(), Failure> {
        let metadata = match fs::metadata(source) {
            Ok(metadata) => metadata,
            Err(error) => return self.local_failure(source, &error),
        };
        if metadata.is_dir() {
            return Box::pin(self.upload_directory(source, target, &metadata, depth)).await;
        }
        if !metadata.is_file() {
            self.fail(Failure::failed(format!("{} is neither a file nor a directory", source.display())));
            return Ok(());
        }
        let result = self.upload_file(source, target, &metadata).await;
        self.settle(result, &shown(target))
    }

    async fn upload_directory(
        &mut self,
        source: &Path,
        target: &[u8],
        metadata: &Metadata,
        depth: usize,
    ) -> Result<(), Failure> {
        if !self.enters(&source.display().to_string(), depth) {
            return Ok(());
        }
        let attributes =
            Attributes { permissions: Some(metadata.mode() & MODE_BITS | 0o700), ..Attributes::default() };
        match self.session.make_directory(target, attributes).await {
            Ok(()) => {}
            Err(FileError::Fatal(failure)) => return Err(failure),
            Err(FileError::Status(status)) => {
                // It may be there already, which the status does not tell apart.
                let found = self.session.stat(target).await.map_err(|e| failure(e, &shown(target)))?;
                if found.and_then(|attributes| kind(&attributes)) != Some(KIND_DIRECTORY) {
                    self.fail(failure(FileError::Status(status), &shown(target)));
                    return Ok(());
                }
            }
        }
        let entries = match fs::read_dir(source) {
            Ok(entries) => entries,
            Err(error) => return self.local_failure(source, &error),
        };
        for entry in entries {
            match entry {
                Ok(entry) => {
                    let path = join(target, entry.file_name().as_bytes());
                    self.upload(&entry.path(), &path, depth + 1).await?;
                }
                Err(error) => self.local_failure(source, &error)?,
            }
        }
        if self.options.is_preserving {
            let result = self.session.set_path_attributes(target, preserved(metadata)).await;
            self.settle(result, &shown(target))?;
        }
        Ok(())
    }

    async fn upload_file(
        &mut self,
        source: &Path,
        target: &[u8],
        metadata: &Metadata,
    ) -> Result<(), FileError> {
        let here = |error| FileError::Fatal(local(source, &error));
        let mut file = match File::open(source) {
            Ok(file) => file,
            Err(error) => return self.local_failure(source, &error).map_err(FileError::Fatal),
        };
        let flags = OpenFlags { write: true, create: true, truncate: true, ..OpenFlags::default() };
        let mode = Attributes { permissions: Some(metadata.mode() & 0o777), ..Attributes::default() };
        let handle = self.session.open_file(target, flags, mode).await?;
        let bar = self.bar(&source.display().to_string(), metadata.len());
        let mut upload = Upload::new(handle.clone());
        let mut buffer = vec![0; self.session.limits().write_bytes as usize];
        let mut is_at_end = false;
        let mut refused = None;
        while !(is_at_end && upload.is_idle()) {
            while !is_at_end && upload.has_room() && self.session.is_flowing() {
                let read = read_full(&mut file, &mut buffer).map_err(here)?;
                is_at_end = read == 0;
                if let Some(data) = buffer.get(..read).filter(|data| !data.is_empty()) {
                    upload.write(self.session.client(), data).map_err(broken)?;
                    bar.inc(read as u64);
                }
            }
            let next = match self.session.reply_at_hand()? {
                Some(reply) => reply,
                None if is_at_end && upload.is_idle() => break,
                None => {
                    self.session.exchange().await?;
                    continue;
                }
            };
            if let Err(status) = upload.handle_reply(next.0, next.1) {
                // What is on its way is answered too; nothing more is sent.
                refused.get_or_insert(status);
                is_at_end = true;
            }
        }
        if refused.is_none() && self.options.is_preserving {
            self.session.set_attributes(&handle, preserved(metadata)).await?;
        }
        let closed = self.session.close(&handle).await;
        bar.finish_and_clear();
        refused.map_or(closed, |status| Err(FileError::Status(status)))
    }

    /// Copies from the node to here.
    pub(crate) async fn download_all(&mut self, sources: &[String], target: &Path) -> Result<(), Failure> {
        let is_directory = target.is_dir();
        if sources.len() > 1 && !is_directory {
            return Err(Failure::failed(format!("{} is no directory", target.display()))
                .hint("several files need a directory to go to"));
        }
        for source in sources {
            let name = source.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            let path = if is_directory && is_safe_name(name.as_bytes()) {
                target.join(name)
            } else {
                target.to_owned()
            };
            let found = self.session.stat(source.as_bytes()).await;
            match found {
                Ok(Some(attributes)) => self.download(source.as_bytes(), &path, &attributes, 0).await?,
                Ok(None) => {
                    self.fail(Failure::new(Exit::NotFound, format!("{source} is not on the node")));
                }
                Err(error) => self.settle(Err(error), source)?,
            }
        }
        self.conclude()
    }

    async fn download(
        &mut self,
        source: &[u8],
        target: &Path,
        attributes: &Attributes,
        depth: usize,
    ) -> Result<(), Failure> {
        match kind(attributes) {
            Some(KIND_DIRECTORY) => {
                Box::pin(self.download_directory(source, target, attributes, depth)).await
            }
            Some(KIND_FILE) | None => {
                let result = self.download_file(source, target, attributes).await;
                self.settle(result, &shown(source))
            }
            Some(_) => {
                self.fail(Failure::failed(format!("{} is neither a file nor a directory", shown(source))));
                Ok(())
            }
        }
    }

    async fn download_directory(
        &mut self,
        source: &[u8],
        target: &Path,
        attributes: &Attributes,
        depth: usize,
    ) -> Result<(), Failure> {
        if !self.enters(&shown(source), depth) {
            return Ok(());
        }
        if let Err(error) = fs::create_dir(target)
            && !target.is_dir()
        {
            return self.local_failure(target, &error);
        }
        let names = match self.session.list(source).await {
            Ok(names) => names,
            Err(error) => return self.settle(Err(error), &shown(source)),
        };
        for name in names {
            if matches!(name.name.as_slice(), b"." | b"..") {
                continue;
            }
            if !is_safe_name(&name.name) {
                self.fail(Failure::failed(format!(
                    "the node sent the name {:?}, which is none",
                    shown(&name.name)
                )));
                continue;
            }
            let path = join(source, &name.name);
            let local = target.join(PathBuf::from(std::ffi::OsString::from_vec(name.name)));
            // Links are followed, as scp does.
            match self.session.stat(&path).await {
                Ok(Some(attributes)) => self.download(&path, &local, &attributes, depth + 1).await?,
                Ok(None) => self.fail(Failure::failed(format!("{} leads nowhere", shown(&path)))),
                Err(error) => self.settle(Err(error), &shown(&path))?,
            }
        }
        if self.options.is_preserving
            && let Err(error) = preserve(&File::open(target), attributes)
        {
            self.local_failure(target, &error)?;
        }
        Ok(())
    }

    async fn download_file(
        &mut self,
        source: &[u8],
        target: &Path,
        attributes: &Attributes,
    ) -> Result<(), FileError> {
        let here = |error| FileError::Fatal(local(target, &error));
        let flags = OpenFlags { read: true, ..OpenFlags::default() };
        let handle = self.session.open_file(source, flags, Attributes::default()).await?;
        let mode = attributes.permissions.map_or(FILE_MODE, |mode| mode & 0o777);
        let opened =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode | 0o200).open(target);
        let file = match opened {
            Ok(file) => file,
            Err(error) => {
                self.session.close(&handle).await?;
                return self.local_failure(target, &error).map_err(FileError::Fatal);
            }
        };
        let size = attributes.size.unwrap_or(0);
        let bar = self.bar(&shown(source), size);
        let mut download = Download::new(handle.clone(), size, self.session.limits().read_bytes);
        let mut refused = None;
        download.request(self.session.client()).map_err(broken)?;
        while !download.is_done() {
            let (id, reply) = self.session.next_reply().await?;
            match download.handle_reply(id, reply) {
                DownloadStep::Write { offset, data } => {
                    file.write_all_at(&data, offset).map_err(here)?;
                    bar.inc(data.len() as u64);
                }
                DownloadStep::Failed(status) => refused = Some(status),
                DownloadStep::Nothing | DownloadStep::Foreign(_) => {}
            }
            download.request(self.session.client()).map_err(broken)?;
        }
        self.session.close(&handle).await?;
        bar.finish_and_clear();
        if let Some(status) = refused {
            return Err(FileError::Status(status));
        }
        if self.options.is_preserving {
            preserve(&Ok(file), attributes).map_err(here)?;
        }
        Ok(())
    }

    /// Whether a directory is to be entered; says why not.
    fn enters(&mut self, what: &str, depth: usize) -> bool {
        if !self.options.is_recursive {
            self.fail(Failure::failed(format!("{what} is a directory")).hint("copy directories with -r"));
            return false;
        }
        if depth >= DEPTH_MAX {
            self.fail(Failure::failed(format!("{what} is nested too deeply: its links may form a loop")));
            return false;
        }
        true
    }

    fn bar(&self, name: &str, size: u64) -> ProgressBar {
        if !self.options.shows_progress {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(size);
        let template = "{msg:32} {percent:>3}% {bytes:>11} {bytes_per_sec:>13} {eta:>5}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let name = name.rsplit('/').next().unwrap_or(name);
        bar.set_message(one_line(name).chars().take(SHOWN_CHARS).collect::<String>());
        bar
    }

    /// Notes the failure of one file, and goes on with the others.
    fn fail(&mut self, failure: Failure) {
        note(&failure.to_string());
        self.failures.push(failure);
    }

    fn settle(&mut self, result: Result<(), FileError>, what: &str) -> Result<(), Failure> {
        match result {
            Ok(()) => Ok(()),
            Err(FileError::Fatal(failure)) => Err(failure),
            Err(error @ FileError::Status(_)) => {
                self.fail(failure(error, what));
                Ok(())
            }
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "ends an arm of functions that fail for other reasons")]
    fn local_failure(&mut self, path: &Path, error: &std::io::Error) -> Result<(), Failure> {
        self.fail(local(path, error));
        Ok(())
    }

    fn conclude(&self) -> Result<(), Failure> {
        match self.failures.as_slice() {
            [] => Ok(()),
            // It was told when it happened; the code says which kind it was.
            [one] => Err(Failure::new(one.exit, "the file was not copied")),
            many => Err(Failure::failed(format!("{} files were not copied", many.len()))),
        }
    }
}

fn failure(error: FileError, what: &str) -> Failure {
    match error {
        FileError::Fatal(failure) => failure,
        FileError::Status(Status { code, message }) => {
            let exit = match code {
                StatusCode::NoSuchFile => Exit::NotFound,
                StatusCode::PermissionDenied => Exit::Denied,
                StatusCode::Ok
                | StatusCode::EndOfFile
                | StatusCode::Failure
                | StatusCode::BadMessage
                | StatusCode::NoConnection
                | StatusCode::ConnectionLost
                | StatusCode::Unsupported => Exit::Failed,
            };
            Failure::new(exit, format!("{what} on the node: {message}"))
        }
    }
}

fn broken(error: wayleave_sftp::ClientError) -> FileError {
    FileError::Fatal(Failure::failed(crate::failure::chain(&error)))
}

fn local(path: &Path, error: &std::io::Error) -> Failure {
    let exit = match error.kind() {
        std::io::ErrorKind::NotFound => Exit::NotFound,
        std::io::ErrorKind::PermissionDenied => Exit::Denied,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("{}: {error}", path.display()))
}

fn kind(attributes: &Attributes) -> Option<u32> {
    attributes.permissions.map(|mode| mode & KIND_BITS).filter(|kind| *kind != 0)
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Whether a name from the node stays inside the directory that it is put into.
fn is_safe_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
}

/// Reads until the buffer is full or the file has ended.
fn read_full(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(free) = buffer.get_mut(filled..).filter(|free| !free.is_empty()) {
        match file.read(free) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn preserved(metadata: &Metadata) -> Attributes {
    let seconds = |time: i64| u32::try_from(time).unwrap_or(0);
    Attributes {
        permissions: Some(metadata.mode() & MODE_BITS),
        times: Some(Times { accessed: seconds(metadata.atime()), modified: seconds(metadata.mtime()) }),
        ..Attributes::default()
    }
}

fn preserve(file: &std::io::Result<File>, attributes: &Attributes) -> std::io::Result<()> {
    let file = file.as_ref().map_err(|error| std::io::Error::from(error.kind()))?;
    if let Some(times) = attributes.times {
        let at = |seconds: u32| -> SystemTime { UNIX_EPOCH + Duration::from_secs(seconds.into()) };
        file.set_times(FileTimes::new().set_accessed(at(times.accessed)).set_modified(at(times.modified)))?;
    }
    if let Some(mode) = attributes.permissions {
        // A node does not make set-user-ID programs here.
        file.set_permissions(Permissions::from_mode(mode & 0o777))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn h_a_node_cannot_write_outside_the_target() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/etc/passwd", b"../x", b"a\0b"] {
            assert!(!is_safe_name(bad), "{bad:?}");
        }
        assert!(is_safe_name(b"...") && is_safe_name(b"a b"));
    }

    #[test]
    fn paths_are_joined_with_one_slash() {
        assert_eq!(join(b"/srv/", b"a"), b"/srv/a");
        assert_eq!(join(b".", b"a"), b"./a");
    }

    #[test]
    fn modes_and_times_are_kept_but_no_set_user_id() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        fs::write(&path, "x").unwrap();
        let attributes = Attributes {
            permissions: Some(0o104_750),
            times: Some(Times { accessed: 1_000_000_000, modified: 1_100_000_000 }),
            ..Attributes::default()
        };
        preserve(&File::open(&path), &attributes).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.mode() & MODE_BITS, 0o750);
        assert_eq!(metadata.mtime(), 1_100_000_000);
        assert_eq!(preserved(&metadata).times, attributes.times);
    }

    proptest! {
        #[test]
        fn h_a_safe_name_is_one_component(name in proptest::collection::vec(any::<u8>(), 0..12)) {
            if is_safe_name(&name) {
                let path = PathBuf::from(std::ffi::OsString::from_vec(name.clone()));
                let components: Vec<_> = path.components().collect();
                prop_assert_eq!(components.len(), 1);
                prop_assert!(matches!(components[0], std::path::Component::Normal(_)));
            }
        }
    }
}

#[cfg(test)]
mod copying {
    use super::*;
    use crate::ssh::test_node::{connected, pattern};
    use std::os::unix::fs::symlink;

    async fn transfer(is_recursive: bool, is_preserving: bool) -> Transfer {
        let session = SftpSession::open(connected().await).await.unwrap();
        Transfer::new(session, Options { is_recursive, is_preserving, shows_progress: false })
    }

    fn text(path: &Path) -> String {
        path.to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_large_file_goes_there_and_back_whole() {
        let directory = tempfile::tempdir().unwrap();
        let (here, there, back) =
            (directory.path().join("a"), directory.path().join("b"), directory.path().join("c"));
        let content = pattern(3_000_001);
        fs::write(&here, &content).unwrap();
        fs::set_permissions(&here, Permissions::from_mode(0o640)).unwrap();
        let mut transfer = transfer(false, true).await;
        transfer.upload_all(&[here], &text(&there)).await.unwrap();
        assert!(fs::read(&there).unwrap() == content);
        assert_eq!(fs::metadata(&there).unwrap().mode() & 0o777, 0o640);
        transfer.download_all(&[text(&there)], &back).await.unwrap();
        assert!(fs::read(&back).unwrap() == content);
        transfer.finish().await;
    }

    #[tokio::test]
    async fn trees_are_copied_both_ways_and_links_followed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("tree/deep/empty")).unwrap();
        fs::write(root.join("tree/one"), "1").unwrap();
        fs::write(root.join("tree/deep/two"), "").unwrap();
        symlink("one", root.join("tree/link")).unwrap();
        fs::create_dir(root.join("node")).unwrap();
        let mut transfer = transfer(true, true).await;
        transfer.upload_all(&[root.join("tree")], &text(&root.join("node"))).await.unwrap();
        transfer.download_all(&[text(&root.join("node/tree"))], &root.join("back")).await.unwrap();
        for copy in ["node/tree", "back"] {
            let copy = root.join(copy);
            assert_eq!(fs::read_to_string(copy.join("link")).unwrap(), "1");
            assert_eq!(fs::read_to_string(copy.join("deep/two")).unwrap(), "");
            assert!(copy.join("deep/empty").is_dir());
        }
    }

    #[tokio::test]
    async fn what_cannot_be_copied_is_told_and_the_rest_is_copied() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::write(root.join("good"), "x").unwrap();
        fs::create_dir(root.join("dir")).unwrap();
        fs::create_dir(root.join("node")).unwrap();
        let mut first = transfer(false, false).await;
        let sources = [root.join("missing"), root.join("dir"), root.join("good")];
        let failure = first.upload_all(&sources, &text(&root.join("node"))).await.unwrap_err();
        assert_eq!(failure.message, "2 files were not copied");
        assert!(root.join("node/good").exists() && !root.join("node/dir").exists());
        let mut second = transfer(false, false).await;
        let failure = second.download_all(&[text(&root.join("nowhere"))], root).await.unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound);
        let failure = second.upload_all(&sources, &text(&root.join("nowhere"))).await.unwrap_err();
        assert!(failure.message.contains("no directory"), "{failure}");
    }

    #[tokio::test]
    async fn a_loop_of_links_ends() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("tree")).unwrap();
        symlink(".", root.join("tree/loop")).unwrap();
        let mut transfer = transfer(true, false).await;
        let result = transfer.upload_all(&[root.join("tree")], &text(&root.join("copy"))).await;
        assert!(result.is_err());
    }
}
