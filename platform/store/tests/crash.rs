//! A process that writes is killed again and again; nothing that it acknowledged is lost.
#![expect(clippy::unwrap_used, reason = "a test, whose helpers panic as it does")]

use bytes::Bytes;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use tempfile::TempDir;
use wayleave_runtime::SystemClock;
use wayleave_store::{Backend, Event, HistoryLimits, Key, Revision, SqliteBackend, SqliteOptions};

const ROUNDS: usize = 20;
const WRITERS: usize = 8;
/// Tells the test binary that it is the process to be killed, and where the data is.
const DIRECTORY: &str = "WAYLEAVE_STORE_CRASH_DIRECTORY";

#[test]
fn nothing_acknowledged_is_lost_when_killed() {
    let directory = TempDir::new().unwrap();
    let mut acknowledged = BTreeMap::new();
    for round in 0..ROUNDS {
        // The first dies while it opens, later ones after more and more writes.
        write_and_die(directory.path(), round, round * round * 2, &mut acknowledged);
        check(directory.path(), &acknowledged);
    }
    assert!(acknowledged.len() > ROUNDS * ROUNDS, "{} writes were tried", acknowledged.len());
}

/// Runs the writer until it has acknowledged so many writes, kills it, and takes down every
/// acknowledgement that it managed to give.
fn write_and_die(directory: &Path, round: usize, count: usize, acknowledged: &mut BTreeMap<Key, u64>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_killed", "--nocapture"])
        .env(DIRECTORY, directory)
        .env("ROUND", round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut seen = 0;
    if count == 0 {
        child.kill().unwrap();
    }
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // A line that is cut off says nothing for sure.
        let mut words = line.strip_prefix("done ").and_then(|line| line.strip_suffix(" .")).into_iter();
        let Some((key, revision)) = words.next().and_then(|words| words.split_once(' ')) else {
            continue;
        };
        acknowledged.insert(Key::parse(key).unwrap(), revision.parse().unwrap());
        seen += 1;
        if seen == count {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(seen >= count, "the writer ended by itself after {seen} of {count} writes");
}

fn check(directory: &Path, acknowledged: &BTreeMap<Key, u64>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let backend = open(directory.into());
        for (key, revision) in acknowledged {
            let item = backend.get(key).await.unwrap();
            let item = item.unwrap_or_else(|| panic!("{key} was acknowledged and is lost"));
            assert_eq!(item.revision.0, *revision);
            assert_eq!(item.value, value(key), "{key} is not what was written");
        }
        // The history tells each of them exactly once, and each batch whole.
        let end = Key::parse("/end").unwrap();
        let end_revision = backend.put(&end, Bytes::new(), None).await.unwrap();
        let mut watch = backend.watch(&Key::parse("/written").unwrap(), Some(Revision::ZERO)).await.unwrap();
        let last = Key::parse("/written/end").unwrap();
        backend.put(&last, Bytes::new(), None).await.unwrap();
        let mut told = BTreeMap::new();
        loop {
            let change = watch.next().await.unwrap();
            if change.revision > end_revision {
                break;
            }
            let events: Vec<_> =
                change.events.iter().map(Event::key).filter(|key| **key != last).cloned().collect();
            assert!(events.is_empty() || events.len() == 2, "half a batch: {change:?}");
            for key in events {
                assert_eq!(told.insert(key, change.revision.0), None, "told twice");
            }
        }
        for (key, revision) in acknowledged {
            assert_eq!(told.get(key), Some(revision), "{key} is missing from the history");
        }
        backend.close().await;
    });
}

fn open(directory: PathBuf) -> Arc<SqliteBackend> {
    let history = HistoryLimits { bytes_max: usize::MAX, ..HistoryLimits::default() };
    let options =
        SqliteOptions { history, recent_changes_max: 64, ..SqliteOptions::new(directory.join("backend")) };
    Arc::new(SqliteBackend::open(&options, Arc::new(SystemClock::new())).unwrap())
}

/// Some kilobytes that follow from the key; now and then many, so that the log is folded in.
fn value(key: &Key) -> Bytes {
    let number: usize = key.name().bytes().map(usize::from).sum();
    let count = if number.is_multiple_of(13) { 20_000 } else { 100 };
    Bytes::from(key.as_str().repeat(count))
}

/// Runs only as the process that the other test starts and kills; without its directory there is nothing to do.
#[test]
fn the_process_that_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let round: usize = std::env::var("ROUND").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let backend = open(directory);
        join_all((0..WRITERS).map(|writer| write_for_ever(&backend, round, writer))).await;
    });
}

async fn write_for_ever(backend: &SqliteBackend, round: usize, writer: usize) {
    for number in 0.. {
        let name = format!("/written/{round}-{writer}-{number}");
        let pair = [Key::parse(&name).unwrap(), Key::parse(&format!("{name}/twin")).unwrap()];
        let put =
            |key: &Key| wayleave_store::Operation::Put { key: key.clone(), value: value(key), lease: None };
        let done = backend.batch(vec![], pair.iter().map(put).collect()).await.unwrap();
        for key in pair {
            // One write of a whole line, so that nothing stays in a buffer.
            let line = format!("done {key} {} .\n", done.revision);
            std::io::stdout().write_all(line.as_bytes()).unwrap();
        }
    }
}
