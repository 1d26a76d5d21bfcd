//! What the SQLite backend does about files that are damaged, foreign, open to others or in use, and
//! about a disk that is full or read-only.
#![expect(clippy::unwrap_used, reason = "a test, whose helpers panic as it does")]

use bytes::Bytes;
use futures::future::join;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use wayleave_runtime::{ManualClock, SystemClock};
use wayleave_store::{
    Backend, HistoryLimits, Key, OpenError, Operation, SqliteBackend, SqliteOptions, StoreError,
};
use wayleave_vocab::Wall;

fn open(directory: &Path) -> Result<SqliteBackend, OpenError> {
    SqliteBackend::open(&SqliteOptions::new(directory), Arc::new(SystemClock::new()))
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

/// A closed backend with some pages of data.
async fn filled() -> TempDir {
    let directory = TempDir::new().unwrap();
    let backend = open(&home(&directory)).unwrap();
    for n in 0..40 {
        backend.put(&key(&format!("/a/{n}")), Bytes::from(vec![b'v'; 2000]), None).await.unwrap();
    }
    backend.close().await;
    directory
}

/// The backend's own directory; the one around it has another mode.
fn home(directory: &TempDir) -> PathBuf {
    directory.path().join("backend")
}

fn file(directory: &TempDir) -> PathBuf {
    home(directory).join("store.db")
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

/// Asserts that opening is refused, that the message names the file and has the words.
fn refused(directory: &TempDir, words: &str) -> OpenError {
    let error = open(&home(directory)).err().unwrap_or_else(|| panic!("not refused: {words}"));
    let text = error.to_string();
    assert!(text.contains(directory.path().to_str().unwrap()) && text.contains(words), "{text}");
    error
}

#[tokio::test]
async fn files_are_for_their_owner_only() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("data/backend");
    let backend = open(&directory).unwrap();
    backend.put(&key("/a"), Bytes::from_static(b"x"), None).await.unwrap();
    assert_eq!(mode(&directory), 0o700);
    let files: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 3, "{files:?}");
    files.iter().for_each(|path| assert_eq!(mode(path), 0o600, "{}", path.display()));
    backend.close().await;
}

#[tokio::test]
async fn what_others_can_read_is_refused() {
    let directory = filled().await;
    fs::set_permissions(file(&directory), Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(refused(&directory, "chmod 600"), OpenError::Exposed { mode: 0o644, .. }));
    fs::set_permissions(file(&directory), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(home(&directory), Permissions::from_mode(0o750)).unwrap();
    assert!(matches!(refused(&directory, "chmod 700"), OpenError::Exposed { mode: 0o750, .. }));
}

#[tokio::test]
async fn a_second_one_is_refused_until_the_first_has_closed() {
    let directory = TempDir::new().unwrap();
    let first = open(&home(&directory)).unwrap();
    let error = refused(&directory, &format!("process {}", std::process::id()));
    assert!(matches!(error, OpenError::InUse { .. }));
    first.put(&key("/a"), Bytes::from_static(b"x"), None).await.unwrap();
    first.close().await;
    let second = open(&home(&directory)).unwrap();
    assert!(second.get(&key("/a")).await.unwrap().is_some());
    second.close().await;
}

#[tokio::test]
async fn a_file_of_something_else_is_refused_and_left_as_it_is() {
    let directory = TempDir::new().unwrap();
    DirBuilder::new().mode(0o700).create(home(&directory)).unwrap();
    let check = |content: &[u8], words: &str| {
        fs::write(file(&directory), content).unwrap();
        fs::set_permissions(file(&directory), Permissions::from_mode(0o600)).unwrap();
        let error = refused(&directory, words);
        assert_eq!(fs::read(file(&directory)).unwrap(), content, "it was changed");
        error
    };
    let text = "wayleave:\n  nodename: web-1\n".repeat(100);
    assert!(matches!(check(text.as_bytes(), "not a backend"), OpenError::Foreign { .. }));
    assert!(matches!(check(b"SQLite format 3\0 cut", "damaged"), OpenError::Corrupt { .. }));
    for pragma in ["", "PRAGMA application_id = 4711;", "PRAGMA user_version = 9;"] {
        fs::remove_file(file(&directory)).unwrap();
        let other = rusqlite::Connection::open(file(&directory)).unwrap();
        other.execute_batch(&format!("CREATE TABLE theirs (x); {pragma}")).unwrap();
        drop(other);
        let content = fs::read(file(&directory)).unwrap();
        assert!(matches!(check(&content, "another application"), OpenError::Foreign { .. }));
    }
}

#[tokio::test]
async fn a_later_schema_is_refused() {
    let directory = filled().await;
    let db = rusqlite::Connection::open(file(&directory)).unwrap();
    db.execute_batch("PRAGMA user_version = 2").unwrap();
    drop(db);
    assert!(matches!(refused(&directory, "version 2"), OpenError::Newer { found: 2, known: 1, .. }));
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let length = file(&filled().await).metadata().unwrap().len();
    assert!(length > 20 * 4096);
    let overwrite = |at: u64, bytes: usize| {
        move |mut file: File| {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&vec![0xa5; bytes]).unwrap();
        }
    };
    let damages: [Box<dyn Fn(File)>; 6] = [
        Box::new(move |file| file.set_len(length / 2).unwrap()),
        Box::new(move |file| file.set_len(length - 100).unwrap()),
        Box::new(|file| file.set_len(50).unwrap()),
        Box::new(overwrite(100, 3000)),
        Box::new(overwrite(4096, 8 * 4096)),
        Box::new(overwrite(length - 4096, 4096)),
    ];
    for (number, damage) in damages.iter().enumerate() {
        let directory = filled().await;
        damage(OpenOptions::new().write(true).open(file(&directory)).unwrap());
        let before = fs::read(file(&directory)).unwrap();
        let error = refused(&directory, "damaged");
        assert!(matches!(error, OpenError::Corrupt { .. }), "damage {number}: {error}");
        assert_eq!(fs::read(file(&directory)).unwrap(), before, "damage {number}: it was changed");
    }
}

#[tokio::test]
async fn damage_while_open_is_an_error_and_no_panic() {
    let directory = filled().await;
    let backend = open(&home(&directory)).unwrap();
    let length = file(&directory).metadata().unwrap().len();
    let mut damaged = OpenOptions::new().write(true).open(file(&directory)).unwrap();
    damaged.seek(SeekFrom::Start(4096)).unwrap();
    damaged.write_all(&vec![0xa5; usize::try_from(length).unwrap() - 4096]).unwrap();
    let read = backend.range(&key("/a"), None, 100).await;
    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
    backend.close().await;
}

#[tokio::test]
async fn too_many_writes_at_once_are_told_so() {
    let directory = TempDir::new().unwrap();
    let backend = open(&home(&directory)).unwrap();
    // Four times the queue, pushed faster than the disk can flush: none hangs, none is lost silently.
    let keys: Vec<_> = (0..4096).map(|n| key(&format!("/a/{n}"))).collect();
    let writes = keys.iter().map(|key| backend.put(key, Bytes::from_static(b"x"), None));
    let answers = futures::future::join_all(writes).await;
    let mut stored = 0;
    for (key, answer) in keys.iter().zip(answers) {
        let there = backend.get(key).await.unwrap().is_some();
        match answer {
            Ok(_) => assert!(there),
            Err(error @ StoreError::Busy { .. }) => {
                assert!(error.is_transient() && !there);
                assert!(error.to_string().contains("try again"), "{error}");
            }
            Err(other) => panic!("{other:?}"),
        }
        stored += usize::from(there);
    }
    assert!(stored >= 1024, "{stored}");
    backend.close().await;
}

#[tokio::test]
async fn what_was_accepted_before_close_is_written() {
    let directory = TempDir::new().unwrap();
    let backend = open(&home(&directory)).unwrap();
    let keys: Vec<_> = (0..500).map(|n| key(&format!("/a/{n}"))).collect();
    let writes = keys.iter().map(|key| backend.put(key, Bytes::from_static(b"x"), None));
    // The writes are polled first, so all of them are in the queue when close begins.
    let (answers, ()) = join(futures::future::join_all(writes), backend.close()).await;
    let backend = open(&home(&directory)).unwrap();
    for (key, answer) in keys.iter().zip(answers) {
        answer.unwrap();
        assert!(backend.get(key).await.unwrap().is_some());
    }
    backend.close().await;
}

#[tokio::test]
async fn the_file_keeps_no_more_history_than_it_should() {
    let directory = TempDir::new().unwrap();
    let history = HistoryLimits { changes_max: 10, ..HistoryLimits::default() };
    let options = SqliteOptions { history, ..SqliteOptions::new(home(&directory)) };
    let backend = SqliteBackend::open(&options, Arc::new(SystemClock::new())).unwrap();
    let (old, busy, gone) = (key("/old"), key("/busy"), key("/gone"));
    let value = Bytes::from_static(b"x");
    for each in [&old, &gone] {
        backend.put(each, value.clone(), None).await.unwrap();
    }
    for _ in 0..50 {
        backend.put(&busy, value.clone(), None).await.unwrap();
    }
    // Their rows are older than the history: replacing them must not leave them behind.
    backend.put(&old, value.clone(), None).await.unwrap();
    backend.delete(&gone).await.unwrap();
    for _ in 0..50 {
        backend.put(&busy, value.clone(), None).await.unwrap();
    }
    assert!(backend.get(&old).await.unwrap().is_some());
    backend.close().await;
    let db = rusqlite::Connection::open(file(&directory)).unwrap();
    let rows: i64 = db.query_row("SELECT count(*) FROM log", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 11, "ten changes of /busy and the present row of /old");
}

#[tokio::test]
async fn a_lease_with_very_many_keys_ends_in_steps() {
    const KEYS: usize = 5000;
    let directory = TempDir::new().unwrap();
    let clock = Arc::new(ManualClock::new(Wall::from_secs(1_700_000_000)));
    let backend = SqliteBackend::open(&SqliteOptions::new(home(&directory)), clock.clone()).unwrap();
    let lease = backend.lease_grant(Duration::from_secs(10)).await.unwrap();
    for start in (0..KEYS).step_by(100) {
        let put =
            |n| Operation::Put { key: key(&format!("/a/{n}")), value: Bytes::new(), lease: Some(lease) };
        backend.batch(vec![], (start..start + 100).map(put).collect()).await.unwrap();
    }
    clock.advance(Duration::from_secs(10));
    let first = backend.maintain().await.unwrap();
    assert!(first > 0 && first < KEYS, "{first}");
    assert_eq!(first + backend.maintain().await.unwrap(), KEYS);
    assert_eq!(backend.maintain().await.unwrap(), 0);
    assert!(backend.range(&key("/a"), None, 1).await.unwrap().items.is_empty());
    backend.close().await;
}

/// Names the directory on a small file system of its own, in the process that runs there.
const SMALL_DISK: &str = "WAYLEAVE_STORE_SMALL_DISK";

#[test]
fn a_full_or_read_only_disk_is_survived() {
    let mount_point = TempDir::new().unwrap();
    // A mount namespace of its own: the mount is gone with the process, whatever happens.
    let script = "mount -t tmpfs -o size=6m,mode=0700 tmpfs \"$0\" || exit 42; exec \"$@\"";
    let outcome = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(mount_point.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_on_a_small_disk", "--nocapture"])
        .env(SMALL_DISK, mount_point.path())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&outcome.stdout).into_owned() + &String::from_utf8_lossy(&outcome.stderr);
    if outcome.status.code() == Some(42) || text.starts_with("unshare:") {
        eprintln!("NOT RUN: this machine lets nobody mount a small disk: {text}");
        return;
    }
    assert!(outcome.status.success() && text.contains("1 passed"), "{text}");
}

/// Runs only on the small disk that the other test mounts; without it there is nothing to do.
#[tokio::test]
async fn the_process_on_a_small_disk() {
    let Some(disk) = std::env::var_os(SMALL_DISK).map(PathBuf::from) else { return };
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let directory = disk.join("backend");
    let backend = open(&directory).unwrap();
    let value = Bytes::from(vec![b'v'; 50_000]);
    let mut written = Vec::new();
    let error = loop {
        let next = key(&format!("/a/{}", written.len()));
        match backend.put(&next, value.clone(), None).await {
            Ok(_) => written.push(next),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }) && error.is_transient(), "{error:?}");
    assert!(error.to_string().contains("free some space"), "{error}");
    assert!(!written.is_empty());
    for key in &written {
        assert_eq!(backend.get(key).await.unwrap().unwrap().value, value, "reads go on");
    }
    fs::remove_file(&ballast).unwrap();
    // One that will not fit must not fail those that share its transaction.
    let huge = Bytes::from(vec![b'h'; 8 << 20]);
    let (before, too_much, behind) = (key("/small/1"), key("/huge"), key("/small/2"));
    let small = Bytes::from_static(b"x");
    let writes = futures::join!(
        backend.put(&before, small.clone(), None),
        backend.put(&too_much, huge, None),
        backend.put(&behind, small, None),
    );
    written.extend([before, behind]);
    writes.0.unwrap();
    assert!(matches!(writes.1, Err(StoreError::Full { .. })), "{:?}", writes.1);
    writes.2.unwrap();
    backend.put(&key("/after"), value, None).await.expect("writes go on when there is room");
    backend.close().await;

    let backend = open(&directory).unwrap();
    for key in &written {
        assert!(backend.get(key).await.unwrap().is_some(), "{key}");
    }
    assert!(backend.get(&key("/huge")).await.unwrap().is_none());
    backend.close().await;
    read_only(&disk, &directory);
}

fn read_only(disk: &Path, directory: &Path) {
    let mount = Command::new("mount").args(["-o", "remount,ro"]).arg(disk).status().unwrap();
    assert!(mount.success());
    let error = open(directory).err().expect("it must be refused");
    assert!(matches!(&error, OpenError::Io { .. }), "{error:?}");
    assert!(error.to_string().contains(directory.to_str().unwrap()), "{error}");
    let error = open(&disk.join("new")).err().expect("it must be refused");
    assert!(error.to_string().contains("could not make the directory"), "{error}");
}
