//! The file of a backup: lines of JSON. The first says what it is, the last how many lines there are and their digest;
//! between them stand the records. It holds every secret of the cluster.

use super::{Record, Records, TransferError};
use crate::bootstrap::ClusterRecord;
use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::{BoxFuture, FutureExt as _, ready};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use wayleave_store::{KEY_BYTES_MAX, Key, VALUE_BYTES_MAX};
use wayleave_vocab::{ClusterName, Wall};

/// Version of the format.
const VERSION: u32 = 1;
/// Longest line: the largest value in base64 with its key.
const LINE_BYTES_MAX: u64 = (VALUE_BYTES_MAX as u64) / 3 * 4 + 6 * (KEY_BYTES_MAX as u64) + 1024;

/// What a backup says about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupHeader {
    wayleave_backup: u32,
    /// The cluster.
    pub cluster: ClusterName,
    /// Its generation.
    pub generation: u64,
    /// When it was begun.
    pub created: Wall,
}

impl BackupHeader {
    pub(super) fn new(cluster: &ClusterRecord, now: Wall) -> Self {
        let ClusterRecord { name, generation, .. } = cluster.clone();
        Self { wayleave_backup: VERSION, cluster: name, generation, created: now }
    }

    /// When it was begun, for people.
    pub fn created_text(&self) -> String {
        let ms = i64::try_from(self.created.as_ms()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX).to_string()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    put: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delete: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    records: u64,
    sha256: String,
}

/// A file that is being written. Unless it is finished, nothing is left of it.
pub(super) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    digest: Context,
    records: u64,
    is_finished: bool,
}

impl Writer {
    pub(super) fn create(path: &Path, header: &BackupHeader) -> Result<Self, TransferError> {
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = created.map_err(failed("create", path))?;
        let (file, digest) = (BufWriter::new(file), Context::new(&SHA256));
        let mut writer = Self { path: path.to_owned(), file, digest, records: 0, is_finished: false };
        writer.line(header)?;
        Ok(writer)
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    pub(super) fn write(&mut self, record: &Record) -> Result<(), TransferError> {
        let line = match record {
            Record::Put(key, value) => {
                Line { put: Some(key.to_string()), value: Some(STANDARD.encode(value)), delete: None }
            }
            Record::Delete(key) => Line { put: None, value: None, delete: Some(key.to_string()) },
        };
        self.records = self.records.saturating_add(1);
        self.line(&line)
    }

    /// Writes the last line and sees to it that all is on the disk. Answers how many records there are.
    pub(super) fn finish(mut self) -> Result<u64, TransferError> {
        let sha256 = data_encoding::HEXLOWER.encode(self.digest.clone().finish().as_ref());
        let records = self.records;
        self.line(&End { records, sha256 })?;
        self.file.flush().map_err(failed("write", &self.path))?;
        self.file.get_ref().sync_all().map_err(failed("write", &self.path))?;
        self.is_finished = true;
        Ok(records)
    }

    fn line<T: Serialize>(&mut self, line: &T) -> Result<(), TransferError> {
        let mut bytes =
            serde_json::to_vec(line).expect("lines are structs of text and numbers, which always serialise");
        bytes.push(b'\n');
        self.digest.update(&bytes);
        self.file.write_all(&bytes).map_err(failed("write", &self.path))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_finished {
            // A part of a backup would be taken for one.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A backup that was read to its end once: it is whole.
#[derive(Debug)]
pub struct BackupFile {
    path: PathBuf,
    header: BackupHeader,
    records: u64,
}

impl BackupFile {
    /// Reads all of a file and checks it. Blocks.
    ///
    /// # Errors
    /// [`TransferError::File`] and [`TransferError::Damaged`].
    pub fn open(path: &Path) -> Result<Self, TransferError> {
        let damaged =
            |reason: &str| TransferError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
        let mut lines = Lines::open(path)?;
        let first = lines.next()?.ok_or_else(|| damaged("it is empty"))?;
        let header: BackupHeader =
            serde_json::from_slice(&first).map_err(|_| damaged("it does not begin as a backup does"))?;
        if header.wayleave_backup != VERSION {
            return Err(damaged("it was written by another release"));
        }
        let (mut records, mut has_cluster) = (0_u64, false);
        loop {
            let digest = lines.digest.clone();
            let line = lines.next()?.ok_or_else(|| damaged("its end is missing"))?;
            if let Ok(end) = serde_json::from_slice::<End>(&line) {
                let sha256 = data_encoding::HEXLOWER.encode(digest.finish().as_ref());
                if end.sha256 != sha256 || end.records != records {
                    return Err(damaged("it was changed after it was written"));
                }
                if lines.next()?.is_some() {
                    return Err(damaged("something stands behind its end"));
                }
                break;
            }
            let record = record(&line).ok_or_else(|| damaged("a line of it cannot be read"))?;
            has_cluster |= matches!(&record, Record::Put(key, _) if *key == crate::keys::cluster());
            records = records.saturating_add(1);
        }
        if !has_cluster {
            return Err(damaged("there is no cluster in it"));
        }
        Ok(Self { path: path.to_owned(), header, records })
    }

    /// What it says about itself.
    pub fn header(&self) -> &BackupHeader {
        &self.header
    }

    /// How many records it holds.
    pub fn len(&self) -> u64 {
        self.records
    }

    /// True if it holds none, which no usable backup does.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub(super) fn records(self) -> Result<FileRecords, TransferError> {
        let mut lines = Lines::open(&self.path)?;
        lines.next()?;
        Ok(FileRecords { lines, left: self.records })
    }
}

/// The records of a file that was checked.
pub(super) struct FileRecords {
    lines: Lines,
    left: u64,
}

impl FileRecords {
    fn next_record(&mut self) -> Result<Option<Record>, TransferError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let line = self.lines.next()?;
        match line.as_deref().and_then(record) {
            Some(record) => Ok(Some(record)),
            None => {
                let reason = "it was changed while it was read".to_owned();
                Err(TransferError::Damaged { path: self.lines.path.clone(), reason })
            }
        }
    }
}

impl Records for FileRecords {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Record>, TransferError>> {
        ready(self.next_record()).boxed()
    }
}

struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    digest: Context,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, TransferError> {
        let file = File::open(path).map_err(failed("read", path))?;
        Ok(Self { path: path.to_owned(), file: BufReader::new(file), digest: Context::new(&SHA256) })
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>, TransferError> {
        let mut line = Vec::new();
        let mut bounded = Read::take(&mut self.file, LINE_BYTES_MAX);
        bounded.read_until(b'\n', &mut line).map_err(failed("read", &self.path))?;
        if line.is_empty() {
            return Ok(None);
        }
        self.digest.update(&line);
        if line.pop() != Some(b'\n') {
            let reason = "a line of it is cut off or too long".to_owned();
            return Err(TransferError::Damaged { path: self.path.clone(), reason });
        }
        Ok(Some(line))
    }
}

fn record(line: &[u8]) -> Option<Record> {
    match serde_json::from_slice::<Line>(line).ok()? {
        Line { put: Some(key), value: Some(value), delete: None } => {
            Some(Record::Put(Key::parse(&key).ok()?, STANDARD.decode(value).ok()?.into()))
        }
        Line { put: None, value: None, delete: Some(key) } => Some(Record::Delete(Key::parse(&key).ok()?)),
        _ => None,
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TransferError {
    let path = path.to_owned();
    move |source| TransferError::File { doing, path, source }
}
