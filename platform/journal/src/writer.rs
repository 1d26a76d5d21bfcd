//! The thread that writes: takes what has gathered, writes it at once, syncs, answers.

use crate::record::{encode, parse_all};
use crate::{JournalError, SEGMENT_BYTES, Segments, Shared, read_whole, segment_path};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Appends that wait for the thread.
const QUEUE: usize = 1024;
/// Appends that are synced together.
const TOGETHER_MAX: usize = 256;

pub(crate) struct Append {
    pub(crate) record: Vec<u8>,
    pub(crate) done: oneshot::Sender<Result<u64, JournalError>>,
}

pub(crate) struct Writer {
    directory: PathBuf,
    segment: Option<Segment>,
    next: u64,
}

struct Segment {
    first: u64,
    file: File,
    bytes: u64,
}

impl Writer {
    /// Opens the newest segment, cuts off a torn end, and gives the sequence of the last record.
    pub(crate) fn open(directory: &Path, segments: &mut Segments) -> Result<(Self, u64), JournalError> {
        let Some((&first, _)) = segments.by_first.last_key_value() else {
            return Ok((Self { directory: directory.to_owned(), segment: None, next: 1 }, 0));
        };
        let path = segment_path(directory, first);
        let io = |source| JournalError::Io { path: path.clone(), source };
        let bytes = read_whole(&path).map_err(io)?;
        let (records, whole) = parse_all(&bytes);
        let whole = u64::try_from(whole).unwrap_or(u64::MAX);
        let next = first + u64::try_from(records.len()).unwrap_or(0);
        let mut file = OpenOptions::new().write(true).open(&path).map_err(io)?;
        file.set_len(whole).map_err(io)?;
        file.seek(SeekFrom::Start(whole)).map_err(io)?;
        segments.by_first.insert(first, whole);
        let segment = Some(Segment { first, file, bytes: whole });
        Ok((Self { directory: directory.to_owned(), segment, next }, next - 1))
    }

    /// Starts the thread; it ends when the last sender is dropped.
    pub(crate) fn start(mut self, shared: Arc<Shared>) -> Result<mpsc::Sender<Append>, JournalError> {
        let (sender, mut appends) = mpsc::channel::<Append>(QUEUE);
        let path = self.directory.clone();
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                while let Some(first) = appends.blocking_recv() {
                    let mut together = vec![first];
                    while together.len() < TOGETHER_MAX
                        && let Ok(next) = appends.try_recv()
                    {
                        together.push(next);
                    }
                    self.write(together, &shared);
                }
            })
            .map_err(|source| JournalError::Io { path, source })?;
        Ok(sender)
    }

    fn write(&mut self, together: Vec<Append>, shared: &Shared) {
        let mut bytes = Vec::new();
        for append in &together {
            encode(&append.record, &mut bytes);
        }
        match self.write_bytes(&bytes) {
            Ok(()) => {
                let before = self.next;
                self.next += u64::try_from(together.len()).unwrap_or(0);
                if let Some(segment) = &self.segment {
                    shared.lock().by_first.insert(segment.first, segment.bytes);
                }
                shared.last.send_replace(self.next - 1);
                for (append, sequence) in together.into_iter().zip(before..) {
                    let _ = append.done.send(Ok(sequence));
                }
            }
            Err(error) => {
                // What may be half written is cut off, so that nothing follows a torn record.
                if let Some(segment) = &mut self.segment {
                    let restored = segment.file.set_len(segment.bytes);
                    if restored.and_then(|()| segment.file.seek(SeekFrom::Start(segment.bytes))).is_err() {
                        self.segment = None;
                    }
                }
                let path = &self.directory;
                for append in together {
                    let source = io::Error::new(error.kind(), error.to_string());
                    let _ = append.done.send(Err(JournalError::Io { path: path.clone(), source }));
                }
            }
        }
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.segment.as_ref().is_none_or(|segment| segment.bytes >= SEGMENT_BYTES) {
            let file = create(&segment_path(&self.directory, self.next))?;
            File::open(&self.directory)?.sync_all()?;
            self.segment = Some(Segment { first: self.next, file, bytes: 0 });
        }
        let Some(segment) = &mut self.segment else { return Err(io::ErrorKind::NotFound.into()) };
        segment.file.write_all(bytes)?;
        segment.file.sync_data()?;
        segment.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}
