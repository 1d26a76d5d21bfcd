//! Opening the file: whose it is, who may read it, who has it open, whether it is whole.

use super::tables::{self, APPLICATION_ID, Head, SCHEMA, SCHEMA_VERSION};
use crate::history::{HistoryLimits, Mark, Retention};
use crate::lease::LeaseId;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

const FILE_NAME: &str = "store.db";
const LOCK_NAME: &str = "store.lock";
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// How every SQLite file starts.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// How long a statement waits for another connection, which is only ever our own.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// The log is cut back to this size after a large write.
const LOG_BYTES_KEPT: i64 = 16 << 20;

/// Why the backend was not opened. Nothing in the directory was changed, except that an empty one may
/// have a new lock file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("the backend {} is in use by process {holder}: stop that one first, or give each its own data_dir",
        path.display())]
    InUse {
        /// The backend's file.
        path: PathBuf,
        /// The process id in the lock file.
        holder: String,
    },
    /// Others than its owner may read the directory or file.
    #[error("{0} is open to other users (mode {mode:o}): run `chmod {wanted:o} {0}`", path.display())]
    Exposed {
        /// The directory or file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// A file of something else.
    #[error("{} is not a backend of Wayleave ({reason}): move it away, or set another data_dir", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How that is known.
        reason: &'static str,
    },
    /// Written by a later release.
    #[error("{} has schema version {found}, this release knows {known}: run the release that wrote it, or a later one",
        path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version of this release.
        known: i64,
    },
    /// The file is damaged.
    #[error("the backend {} is damaged ({detail}): restore it from a backup; it was left as it is", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the check found.
        detail: String,
    },
    /// The operating system refused something.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database refused something.
    #[error("could not {doing} the backend {}", path.display())]
    Database {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// An opened backend.
pub(super) struct Files {
    pub(super) path: PathBuf,
    pub(super) writer: Connection,
    pub(super) reader: Connection,
    pub(super) head: Head,
    pub(super) leases: Vec<(LeaseId, Duration)>,
    pub(super) history: History,
    /// Held for as long as the backend is open.
    pub(super) lock: File,
}

/// The changes that the file still knows.
pub(super) struct History(Vec<Mark>);

impl History {
    pub(super) fn into_retention(self, limits: HistoryLimits) -> Retention {
        let mut retention = Retention::new(limits);
        self.0.into_iter().for_each(|mark| retention.push(mark));
        retention
    }
}

pub(super) fn open(directory: &Path) -> Result<Files, OpenError> {
    prepare_directory(directory)?;
    let path = directory.join(FILE_NAME);
    let lock = lock(directory, &path)?;
    prepare_file(directory, &path)?;
    let mut writer = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Until it is known to be ours and whole, nothing is written to it, not even by closing it.
    fold_log_on_close(&writer, false).map_err(|error| failure(&path, "open", error))?;
    if is_new(&writer, &path)? {
        create_schema(&mut writer).map_err(|error| failure(&path, "set up", error))?;
    }
    check(&writer, &path)?;
    fold_log_on_close(&writer, true).map_err(|error| failure(&path, "set up", error))?;
    configure(&writer).map_err(|error| failure(&path, "set up", error))?;
    let reader = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let read = |error| failure(&path, "read", error);
    let head = tables::head(&writer).map_err(read)?;
    let leases = tables::leases(&writer).map_err(read)?;
    let history = History(tables::marks(&writer, head).map_err(read)?);
    Ok(Files { path, writer, reader, head, leases, history, lock })
}

/// Copies the file at one moment. The lock is not taken: whoever has it goes on writing.
pub(super) fn copy(directory: &Path, into: &Path) -> Result<(), OpenError> {
    let path = directory.join(FILE_NAME);
    let metadata = path.metadata();
    let metadata = metadata.map_err(|source| OpenError::Io { doing: "read", path: path.clone(), source })?;
    private(&path, metadata.mode() & 0o777, FILE_MODE)?;
    prepare_directory(into)?;
    let source = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    check(&source, &path)?;
    let target = into.join(FILE_NAME);
    prepare_file(into, &target)?;
    let text = target.to_string_lossy();
    source.execute("VACUUM INTO ?1", [&*text]).map_err(|error| failure(&path, "copy", error))?;
    Ok(())
}

fn prepare_directory(directory: &Path) -> Result<(), OpenError> {
    let io = |doing| move |source| OpenError::Io { doing, path: directory.to_owned(), source };
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(io("make the directory"))?;
    let mode = directory.metadata().map_err(io("look at the directory"))?.mode() & 0o777;
    private(directory, mode, DIRECTORY_MODE)
}

fn private(path: &Path, mode: u32, wanted: u32) -> Result<(), OpenError> {
    if mode & 0o077 == 0 { Ok(()) } else { Err(OpenError::Exposed { path: path.to_owned(), mode, wanted }) }
}

/// One process at a time. The kernel lets go of the lock when the process dies.
fn lock(directory: &Path, path: &Path) -> Result<File, OpenError> {
    let lock_path = directory.join(LOCK_NAME);
    let io = |doing| {
        let path = lock_path.clone();
        move |source| OpenError::Io { doing, path, source }
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    let mut file = options.open(&lock_path).map_err(io("open the lock file"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message; the lock itself is what counts.
            let read = file.take(20).read_to_string(&mut holder).is_ok();
            let holder = if read && !holder.is_empty() { holder } else { "unknown".into() };
            return Err(OpenError::InUse { path: path.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
    written.map_err(io("write the lock file"))?;
    Ok(file)
}

/// Makes the file if there is none, so that it never has another mode, and looks at one that is there
/// before the database touches it.
fn prepare_file(directory: &Path, path: &Path) -> Result<(), OpenError> {
    let io = |doing| move |source| OpenError::Io { doing, path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.clone().create_new(true).mode(FILE_MODE).open(path) {
        Ok(_) => {
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            return synced.map_err(io("make"));
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io("make")(error)),
    }
    let mut file = options.open(path).map_err(io("open"))?;
    let metadata = file.metadata().map_err(io("look at"))?;
    if !metadata.is_file() {
        return Err(OpenError::Foreign { path: path.to_owned(), reason: "it is no file" });
    }
    private(path, metadata.mode() & 0o777, FILE_MODE)?;
    if metadata.len() == 0 {
        return Ok(());
    }
    let mut start = [0; 72];
    if let Err(error) = file.read_exact(&mut start) {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            let detail = "it is cut off within its first bytes".into();
            return Err(OpenError::Corrupt { path: path.to_owned(), detail });
        }
        return Err(io("read")(error));
    }
    if !start.starts_with(MAGIC) {
        let reason = "it does not start as an SQLite file does";
        return Err(OpenError::Foreign { path: path.to_owned(), reason });
    }
    if is_cut(&start, metadata.len()) && !has_log(path) {
        let detail = "it is cut off within a page".into();
        return Err(OpenError::Corrupt { path: path.to_owned(), detail });
    }
    let application_id = start.last_chunk().map_or(0, |bytes| i64::from(i32::from_be_bytes(*bytes)));
    if ![0, APPLICATION_ID].contains(&application_id) {
        let reason = "it is the SQLite file of another application";
        return Err(OpenError::Foreign { path: path.to_owned(), reason });
    }
    Ok(())
}

/// True if the file does not end with a page. The database would read zeros behind its end.
fn is_cut(start: &[u8; 72], length: u64) -> bool {
    let [.., high, low] = *start.first_chunk::<18>().unwrap_or(&[0; 18]);
    // The format writes the largest size, 65536, as 1.
    let page_bytes = match u16::from_be_bytes([high, low]) {
        1 => 65_536,
        size => u64::from(size),
    };
    !length.is_multiple_of(page_bytes.max(1))
}

/// True if a crash has left a log, which makes up for a page that was being written to the file.
fn has_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    Path::new(&log).metadata().is_ok_and(|metadata| metadata.len() > 0)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, OpenError> {
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let fail = |error| failure(path, "open", error);
    let db = Connection::open_with_flags(path, flags).map_err(fail)?;
    db.busy_timeout(BUSY_WAIT).map_err(fail)?;
    db.set_prepared_statement_cache_capacity(32);
    // What the file says must not make the database run anything or trust its own shape.
    db.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA temp_store = MEMORY;")
        .map_err(fail)?;
    Ok(db)
}

fn fold_log_on_close(db: &Connection, fold: bool) -> rusqlite::Result<()> {
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !fold)?;
    Ok(())
}

/// True if nothing has been set up in the file: it is new, or a crash came before the set-up was complete.
fn is_new(db: &Connection, path: &Path) -> Result<bool, OpenError> {
    let tables = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
    let tables = tables.map_err(|error| failure(path, "read", error))?;
    Ok(tables == 0 && pragma(db, path, "application_id")? == 0)
}

fn create_schema(db: &mut Connection) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}

fn check(db: &Connection, path: &Path) -> Result<(), OpenError> {
    let path_of = || path.to_owned();
    if pragma(db, path, "application_id")? != APPLICATION_ID {
        let reason = "it is the SQLite file of another application";
        return Err(OpenError::Foreign { path: path_of(), reason });
    }
    let found = pragma(db, path, "user_version")?;
    if found > SCHEMA_VERSION {
        return Err(OpenError::Newer { path: path_of(), found, known: SCHEMA_VERSION });
    }
    if found < SCHEMA_VERSION {
        return Err(OpenError::Corrupt { path: path_of(), detail: format!("schema version {found}") });
    }
    let verdict = db.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match verdict.map_err(|error| failure(path, "check", error))?.as_str() {
        "ok" => Ok(()),
        detail => Err(OpenError::Corrupt { path: path_of(), detail: detail.replace('\n', " ") }),
    }
}

fn configure(db: &Connection) -> rusqlite::Result<()> {
    let mode: String = db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        // A file system without shared memory; going on would lose durability silently.
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        let text = "the file system cannot hold a write-ahead log; use a local one".to_owned();
        return Err(rusqlite::Error::SqliteFailure(code, Some(text)));
    }
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_KEPT, |_| Ok(()))
}

fn pragma(db: &Connection, path: &Path, name: &str) -> Result<i64, OpenError> {
    db.pragma_query_value(None, name, |row| row.get(0)).map_err(|error| failure(path, "read", error))
}

fn failure(path: &Path, doing: &'static str, error: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            OpenError::Corrupt { path, detail: error.to_string() }
        }
        _ => OpenError::Database { doing, path, source: Box::new(error) },
    }
}
