//! Copies of backends: exact while others write, complete or refused, and outranking what they were made from.

use crate::harness::{Cluster, config, memory, within};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use wayleave_api::auth::{BeginIncarnationRequest, GetStatusRequest};
use wayleave_auth::{
    AuthService, BackupFile, BootstrapError, BuildError, Existing, TransferError, backup, clone_backend,
    restore,
};
use wayleave_runtime::{Clock, ManualClock, TaskGroup};
use wayleave_store::{Backend, Event, Key, Operation, Revision};

/// Two keys that are always written together.
const PAIRS: u64 = 300;

fn pair(number: u64) -> [Key; 2] {
    ["left", "right"].map(|side| Key::parse(&format!("/resources/{side}/{number:05}")).unwrap())
}

async fn write_pair(backend: &dyn Backend, number: u64, value: u64) {
    let value = Bytes::from(value.to_string());
    let put = |key| Operation::Put { key, value: value.clone(), lease: None };
    let operations = match value.len() % 2 {
        0 => pair(number).map(put).to_vec(),
        _ => pair(number).map(|key| Operation::Delete { key }).to_vec(),
    };
    backend.batch(vec![], operations).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_exact_at_one_moment_while_others_write() {
    let cluster = Cluster::start().await;
    let (source, clock, _directory) = cluster.stop().await;
    for number in 0..PAIRS {
        write_pair(&*source, number, 10).await;
    }
    let (is_over, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers = TaskGroup::new();
    for writer in 0..4 {
        let (source, is_over, written) = (source.clone(), is_over.clone(), written.clone());
        writers.spawn("writer", async move {
            for step in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                write_pair(&*source, (step * 7 + writer * 75) % PAIRS, step + 1).await;
                written.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
    }
    for _ in 0..20 {
        let target = memory(&clock);
        let copied =
            within(clone_backend(source.clone(), &*target, Existing::Refuse, clock.wall(), &mut |_| {}))
                .await;
        assert!(copied.unwrap().records > 0);
        for number in 0..PAIRS {
            let [left, right] = pair(number);
            let value = |item: Option<wayleave_store::Item>| item.map(|item| item.value);
            let (left, right) = (target.get(&left).await.unwrap(), target.get(&right).await.unwrap());
            assert_eq!(value(left), value(right), "the pair {number} is of two moments");
        }
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(writers.finish(Duration::from_secs(20)).await);
    assert!(written.load(Ordering::Relaxed) > 20);
}

#[tokio::test]
async fn a_restored_cluster_outranks_the_one_that_was_backed_up() {
    let cluster = Cluster::start().await;
    let proxy = cluster.join(&["Proxy"], "proxy-1").await;
    let begin = |cluster: &Cluster| {
        let mut host = cluster.host(&proxy);
        async move {
            within(host.begin_incarnation(BeginIncarnationRequest {})).await.unwrap().into_inner().incarnation
        }
    };
    begin(&cluster).await;
    let file = cluster.directory.path().join("backup");
    let now = cluster.clock.wall();
    let saved = backup(cluster.backend.clone(), &file, now, &mut |_| {}).await.unwrap();
    assert_eq!((saved.cluster.as_str(), saved.generation), ("demo", 1));
    let later = begin(&cluster).await;
    let mut silent = |_| {};
    let running =
        clone_backend(cluster.backend.clone(), &*cluster.backend, Existing::Replace, now, &mut silent);
    assert!(matches!(within(running).await, Err(TransferError::InUse(1))));
    let (_, clock, directory) = cluster.stop().await;

    let target = memory(&clock);
    let opened = BackupFile::open(&file).unwrap();
    assert_eq!(opened.len(), saved.records);
    let copied = restore(opened, &*target, Existing::Refuse, clock.wall(), &mut |_| {}).await.unwrap();
    assert_eq!(copied.generation, clock.wall().as_secs());
    let again =
        restore(BackupFile::open(&file).unwrap(), &*target, Existing::Refuse, clock.wall(), &mut silent);
    assert!(matches!(again.await, Err(TransferError::NotEmpty { .. })));
    let cluster = Cluster::start_on(target, clock, directory, |_| {}).await;
    let status = cluster.admin().get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.policy_generation, status.policy_counter), (copied.generation, 1));
    assert!(begin(&cluster).await > later, "a life that the backup does not know of");
    within(noted(&*cluster.backend, "\"restored\"")).await;
}

/// Waits until an event with this text stands in the audit log.
async fn noted(backend: &dyn Backend, text: &str) {
    let events = Key::parse("/audit/events").unwrap();
    let mut watch = backend.watch(&events, Some(Revision::ZERO)).await.unwrap();
    loop {
        for event in watch.next().await.unwrap().events {
            if let Event::Put(item) = event
                && String::from_utf8_lossy(&item.value).contains(text)
            {
                return;
            }
        }
    }
}

#[tokio::test]
async fn auth_does_not_start_on_half_a_restore() {
    let cluster = Cluster::start().await;
    let file = cluster.directory.path().join("backup");
    backup(cluster.backend.clone(), &file, cluster.clock.wall(), &mut |_| {}).await.unwrap();
    let (_, clock, directory) = cluster.stop().await;
    let target = memory(&clock);
    target.put(&Key::parse("/restoring").unwrap(), Bytes::new(), None).await.unwrap();
    target.put(&Key::parse("/left/over").unwrap(), Bytes::new(), None).await.unwrap();
    assert!(matches!(start(&target, &clock, &directory).await, Some(BootstrapError::HalfRestored)));
    let opened = BackupFile::open(&file).unwrap();
    restore(opened, &*target, Existing::Refuse, clock.wall(), &mut |_| {}).await.unwrap();
    assert!(start(&target, &clock, &directory).await.is_none());
    assert!(target.get(&Key::parse("/left/over").unwrap()).await.unwrap().is_none());
}

async fn start(
    backend: &Arc<dyn Backend>,
    clock: &Arc<ManualClock>,
    directory: &tempfile::TempDir,
) -> Option<BootstrapError> {
    match AuthService::build(config(directory.path()), backend.clone(), clock.clone()).await {
        Ok(_) => None,
        Err(BuildError::Bootstrap(error)) => Some(error),
        Err(error) => panic!("{error}"),
    }
}
