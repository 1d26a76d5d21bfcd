//! The conformance suite against the two backends of this crate.

use futures::future::{BoxFuture, FutureExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use wayleave_runtime::ManualClock;
use wayleave_store::conformance::{Failure, NotConforming, Outcome, Subject, conformance};
use wayleave_store::{Backend, HistoryLimits, MemoryBackend, SqliteBackend, SqliteOptions};
use wayleave_vocab::Wall;

/// No check waits for anything but the disk; this only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn the_memory_backend_conforms() {
    check(&Memory { clock: clock() }).await;
}

#[tokio::test]
async fn the_sqlite_backend_conforms() {
    let usual = SqliteOptions::new("").recent_changes_max;
    // With little in memory, watches go back and forth between the file and the memory.
    for recent_changes_max in [usual, 3, 0] {
        let directory = TempDir::new().unwrap();
        let (opened, last) = (AtomicUsize::new(0), Mutex::default());
        check(&Sqlite { clock: clock(), directory, opened, last, recent_changes_max }).await;
    }
}

async fn check(subject: &dyn Subject) {
    let outcome = tokio::time::timeout(PATIENCE, conformance(subject)).await.expect("it hangs");
    if let Err(NotConforming { check, source }) = outcome {
        panic!("{check}: {source}");
    }
}

struct Memory {
    clock: Arc<ManualClock>,
}

impl Subject for Memory {
    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>> {
        let backend = MemoryBackend::new(HistoryLimits::default(), self.clock.clone());
        async move { Ok(Arc::new(backend) as Arc<dyn Backend>) }.boxed()
    }

    fn reopen(&self, _backend: Arc<dyn Backend>) -> BoxFuture<'_, Result<Option<Arc<dyn Backend>>, Failure>> {
        async { Ok(None) }.boxed()
    }

    fn advance(&self, by: Duration) -> BoxFuture<'_, ()> {
        self.clock.advance(by);
        async {}.boxed()
    }

    fn forget<'a>(&'a self, backend: &'a dyn Backend) -> BoxFuture<'a, Outcome> {
        forget(&self.clock, backend).boxed()
    }
}

struct Sqlite {
    clock: Arc<ManualClock>,
    directory: TempDir,
    opened: AtomicUsize,
    last: Mutex<PathBuf>,
    recent_changes_max: usize,
}

impl Sqlite {
    fn open_at(&self, directory: PathBuf) -> Result<Arc<dyn Backend>, Failure> {
        let recent_changes_max = self.recent_changes_max;
        let options = SqliteOptions { recent_changes_max, ..SqliteOptions::new(directory) };
        let backend = SqliteBackend::open(&options, self.clock.clone())?;
        Ok(Arc::new(backend))
    }
}

impl Subject for Sqlite {
    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let directory = self.directory.path().join(number.to_string());
        *self.last.lock().expect("no test panics with it") = directory.clone();
        async move { self.open_at(directory) }.boxed()
    }

    fn reopen(&self, backend: Arc<dyn Backend>) -> BoxFuture<'_, Result<Option<Arc<dyn Backend>>, Failure>> {
        let directory = self.last.lock().expect("no test panics with it").clone();
        async move {
            backend.close().await;
            self.open_at(directory).map(Some)
        }
        .boxed()
    }

    fn advance(&self, by: Duration) -> BoxFuture<'_, ()> {
        self.clock.advance(by);
        async {}.boxed()
    }

    fn forget<'a>(&'a self, backend: &'a dyn Backend) -> BoxFuture<'a, Outcome> {
        forget(&self.clock, backend).boxed()
    }
}

async fn forget(clock: &ManualClock, backend: &dyn Backend) -> Outcome {
    clock.advance(HistoryLimits::default().age_max + Duration::from_secs(1));
    backend.maintain().await?;
    Ok(())
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Wall::from_secs(1_700_000_000)))
}
