//! A bounded journal of one process: what is appended is on disk when the append returns, and stays until it was
//! acknowledged by whoever it is forwarded to.
//!
//! One directory holds segments, named by the sequence of their first record. A record is its length (u32), a checksum
//! (u32) and its bytes, all big-endian. A torn last record, from a crash in mid-write, was never acknowledged and is cut
//! off when the journal is opened. What the records say is none of its business.

mod record;
mod writer;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{oneshot, watch};
use writer::Writer;

pub use record::RECORD_BYTES_MAX;

/// A segment is closed when it holds more than this.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// A journal that cannot take or give records.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It holds as much as it may: nothing that must be noted can happen until records were forwarded.
    #[error("the journal is full ({bytes} bytes are not forwarded yet)")]
    Full {
        /// What it holds.
        bytes: u64,
    },
    /// One record is too long.
    #[error("a record of {0} bytes, at most {RECORD_BYTES_MAX}")]
    TooLong(usize),
    /// The disk failed or is full.
    #[error("the journal in {path} cannot be used")]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The writing thread has ended.
    #[error("the journal is closed")]
    Closed,
}

/// A journal. Clones share it.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
    appends: tokio::sync::mpsc::Sender<writer::Append>,
}

struct Shared {
    directory: PathBuf,
    bytes_max: u64,
    segments: Mutex<Segments>,
    /// The sequence of the last record on disk.
    last: watch::Sender<u64>,
}

#[derive(Default)]
struct Segments {
    /// First sequence of each segment, and its size.
    by_first: BTreeMap<u64, u64>,
}

impl Journal {
    /// Opens or makes a journal that holds at most `bytes_max` (a little more while a segment is not full).
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn open(directory: &Path, bytes_max: u64) -> Result<Self, JournalError> {
        let io = |source| JournalError::Io { path: directory.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode_private().create(directory).map_err(io)?;
        let mut segments = Segments::default();
        for entry in fs::read_dir(directory).map_err(io)? {
            let entry = entry.map_err(io)?;
            if let Some(first) = entry.file_name().to_str().and_then(first_of) {
                segments.by_first.insert(first, entry.metadata().map_err(io)?.len());
            }
        }
        let (writer, last) = Writer::open(directory, &mut segments)?;
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            bytes_max,
            segments: Mutex::new(segments),
            last: watch::Sender::new(last),
        });
        let appends = writer.start(shared.clone())?;
        Ok(Self { shared, appends })
    }

    /// Appends a record; it is on disk when this returns its sequence. Sequences begin at 1 and never repeat.
    ///
    /// # Errors
    /// See [`JournalError`]; the record is not in the journal then.
    pub async fn append(&self, record: Vec<u8>) -> Result<u64, JournalError> {
        if record.len() > RECORD_BYTES_MAX {
            return Err(JournalError::TooLong(record.len()));
        }
        let bytes = self.held_bytes();
        if bytes >= self.shared.bytes_max {
            return Err(JournalError::Full { bytes });
        }
        let (done, answer) = oneshot::channel();
        let append = writer::Append { record, done };
        self.appends.send(append).await.map_err(|_| JournalError::Closed)?;
        answer.await.map_err(|_| JournalError::Closed)?
    }

    /// Bytes that are not acknowledged yet, by whole segments.
    pub fn held_bytes(&self) -> u64 {
        self.shared.lock().by_first.values().sum()
    }

    /// True when nothing more is taken until something is acknowledged.
    pub fn is_full(&self) -> bool {
        self.held_bytes() >= self.shared.bytes_max
    }

    /// The sequence of the last record, from now on.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.last.subscribe()
    }

    /// Up to `count` records behind sequence `after`, oldest first.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn read_after(&self, after: u64, count: usize) -> Result<Vec<(u64, Vec<u8>)>, JournalError> {
        let firsts: Vec<u64> = self.shared.lock().by_first.keys().copied().collect();
        let mut found = Vec::new();
        for (index, first) in firsts.iter().enumerate() {
            let ends_before = firsts.get(index + 1).is_some_and(|next| *next <= after.saturating_add(1));
            if ends_before {
                continue;
            }
            let path = segment_path(&self.shared.directory, *first);
            let bytes = match read_whole(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(JournalError::Io { path, source }),
            };
            let (records, _) = record::parse_all(&bytes);
            for (sequence, record) in (*first..).zip(records) {
                if sequence > after {
                    found.push((sequence, record.to_vec()));
                }
                if found.len() == count {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }

    /// Everything up to `sequence` has been forwarded: segments that hold nothing newer are removed.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn acknowledge(&self, sequence: u64) -> Result<(), JournalError> {
        let mut segments = self.shared.lock();
        let firsts: Vec<u64> = segments.by_first.keys().copied().collect();
        for pair in firsts.windows(2) {
            let [first, next] = pair else { continue };
            if *next > sequence.saturating_add(1) {
                break;
            }
            let path = segment_path(&self.shared.directory, *first);
            fs::remove_file(&path).map_err(|source| JournalError::Io { path, source })?;
            segments.by_first.remove(first);
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn segment_path(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:020}.journal"))
}

fn first_of(name: &str) -> Option<u64> {
    name.strip_suffix(".journal")?.parse().ok()
}

fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(SEGMENT_BYTES * 2 + RECORD_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Private directories, on systems that have modes.
trait ModePrivate {
    fn mode_private(&mut self) -> &mut Self;
}

impl ModePrivate for fs::DirBuilder {
    fn mode_private(&mut self) -> &mut Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::DirBuilderExt;
            self.mode(0o700);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: u64 = 1 << 30;

    async fn append(journal: &Journal, text: &str) -> u64 {
        journal.append(text.as_bytes().to_vec()).await.unwrap()
    }

    #[tokio::test]
    async fn records_survive_and_go_on_counting() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), PLENTY).unwrap();
        assert_eq!(append(&journal, "one").await, 1);
        assert_eq!(append(&journal, "two").await, 2);
        drop(journal);
        let journal = Journal::open(dir.path(), PLENTY).unwrap();
        assert_eq!(append(&journal, "three").await, 3);
        let read = journal.read_after(1, 10).unwrap();
        assert_eq!(read, [(2, b"two".to_vec()), (3, b"three".to_vec())]);
    }

    #[tokio::test]
    async fn a_torn_record_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), PLENTY).unwrap();
        append(&journal, "one").await;
        append(&journal, "two").await;
        drop(journal);
        let path = segment_path(dir.path(), 1);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let journal = Journal::open(dir.path(), PLENTY).unwrap();
        assert_eq!(append(&journal, "again").await, 2);
        assert_eq!(journal.read_after(0, 10).unwrap().len(), 2);
    }

    #[tokio::test]
    async fn i_a_full_journal_takes_nothing_until_it_was_forwarded() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), SEGMENT_BYTES).unwrap();
        let record = vec![7; RECORD_BYTES_MAX];
        let mut last = 0;
        let full = loop {
            match journal.append(record.clone()).await {
                Ok(sequence) => last = sequence,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, JournalError::Full { .. }));
        journal.acknowledge(last).unwrap();
        // The newest segment stays; one more record opens the next.
        drop(journal);
        let journal = Journal::open(dir.path(), SEGMENT_BYTES * 3).unwrap();
        assert_eq!(append(&journal, "x").await, last + 1);
        assert_eq!(append(&journal, "y").await, last + 2);
        journal.acknowledge(last + 1).unwrap();
        assert!(journal.held_bytes() < SEGMENT_BYTES);
        assert_eq!(journal.read_after(last, 10).unwrap().len(), 2);
    }

    #[tokio::test]
    async fn many_appends_at_once_are_all_there() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), PLENTY).unwrap();
        let mut appends = tokio::task::JoinSet::new();
        for n in 0..200 {
            let journal = journal.clone();
            appends.spawn(async move { append(&journal, &n.to_string()).await });
        }
        let mut sequences = appends.join_all().await;
        sequences.sort_unstable();
        assert_eq!(sequences, (1..=200).collect::<Vec<u64>>());
        assert_eq!(journal.read_after(0, 1000).unwrap().len(), 200);
    }
}
