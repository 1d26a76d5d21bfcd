//! How many durable writes a second, printed and not asserted: `cargo test -p wayleave-store --test
//! throughput -- --ignored --nocapture`.

use bytes::Bytes;
use futures::future::join_all;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;
use wayleave_runtime::SystemClock;
use wayleave_store::{Backend, Key, SqliteBackend, SqliteOptions};

#[tokio::test]
#[ignore = "a measurement"]
async fn durable_writes_per_second() {
    const VALUE_BYTES: usize = 300;
    let directory = TempDir::new().unwrap();
    let options = SqliteOptions::new(directory.path().join("backend"));
    let backend = SqliteBackend::open(&options, Arc::new(SystemClock::new())).unwrap();
    for (writers, each) in [(1, 300), (8, 300), (64, 200), (512, 60)] {
        let start = Instant::now();
        join_all((0..writers).map(|writer| {
            let backend = &backend;
            async move {
                for n in 0..each {
                    let key = Key::parse(&format!("/bench/{writer}-{n}")).unwrap();
                    backend.put(&key, Bytes::from(vec![b'v'; VALUE_BYTES]), None).await.unwrap();
                }
            }
        }))
        .await;
        let seconds = start.elapsed().as_secs_f64();
        println!("{writers} writers: {:.0} writes/s", f64::from(writers * each) / seconds);
    }
    let start = Instant::now();
    let count = 5000;
    for n in 0..count {
        let key = Key::parse(&format!("/bench/1-{}", n % 60)).unwrap();
        backend.get(&key).await.unwrap();
    }
    println!("reads, one at a time: {:.0}/s", f64::from(count) / start.elapsed().as_secs_f64());
    backend.close().await;
}
