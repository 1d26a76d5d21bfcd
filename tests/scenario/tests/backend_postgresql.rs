//! The PostgreSQL backend against a real server: the conformance suite, and what happens when the server dies, stands
//! still or is full.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod backend_load;

use backend_load::Load;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use nix::sys::signal::Signal;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use wayleave_runtime::{ManualClock, SystemClock, TaskGroup};
use wayleave_scenario::{Certificates, PostgresServer, Program};
use wayleave_store::conformance::{Failure, NotConforming, Outcome, Subject, conformance};
use wayleave_store::{
    Backend, Event, HistoryLimits, Key, PostgresAddress, PostgresBackend, PostgresOptions, StoreError,
    WatchError,
};
use wayleave_vocab::Wall;

/// No check waits for anything but the server; this only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(120);
/// More writes than wait and are under way at once.
const PUTS: usize = 1500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_postgresql_backend_conforms() {
    let subject = Subjects::new(PostgresServer::start(&[]), PostgresOptions::new);
    check(&subject).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_postgresql_backend_conforms_with_little_in_memory() {
    let options = |address| PostgresOptions { recent_changes_max: 3, ..PostgresOptions::new(address) };
    let subject = Subjects::new(PostgresServer::start(&[]), options);
    check(&subject).await;
}

async fn check(subject: &dyn Subject) {
    let outcome = tokio::time::timeout(PATIENCE, conformance(subject)).await.expect("it hangs");
    if let Err(NotConforming { check, source }) = outcome {
        panic!("{check}: {source}");
    }
}

/// Backends in one server, each in a schema of its own.
struct Subjects {
    server: PostgresServer,
    options: fn(PostgresAddress) -> PostgresOptions,
    clock: Arc<ManualClock>,
    opened: AtomicUsize,
    schema: Mutex<String>,
}

impl Subjects {
    fn new(server: PostgresServer, options: fn(PostgresAddress) -> PostgresOptions) -> Self {
        let clock = Arc::new(ManualClock::new(Wall::from_secs(1_700_000_000)));
        Self { server, options, clock, opened: AtomicUsize::new(0), schema: Mutex::default() }
    }

    async fn open_schema(&self) -> Result<Arc<dyn Backend>, Failure> {
        let schema = self.schema();
        let url = self.server.url("postgres", &format!("&options=-c%20search_path%3D{schema}"));
        let options = (self.options)(PostgresAddress::parse(&url)?);
        Ok(Arc::new(PostgresBackend::open(options, self.clock.clone()).await?))
    }

    fn schema(&self) -> String {
        self.schema.lock().expect("no test panics with it").clone()
    }
}

impl Subject for Subjects {
    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>> {
        let schema = format!("cluster_{}", self.opened.fetch_add(1, Ordering::Relaxed));
        self.server.sql("postgres", &format!("CREATE SCHEMA {schema}"));
        *self.schema.lock().expect("no test panics with it") = schema;
        self.open_schema().boxed()
    }

    fn reopen(&self, backend: Arc<dyn Backend>) -> BoxFuture<'_, Result<Option<Arc<dyn Backend>>, Failure>> {
        async move {
            backend.close().await;
            self.open_schema().await.map(Some)
        }
        .boxed()
    }

    fn advance(&self, by: Duration) -> BoxFuture<'_, ()> {
        self.clock.advance(by);
        // The deadlines are the server's: they move instead of its clock.
        let (schema, milliseconds) = (self.schema(), by.as_millis());
        let moved = format!(
            "UPDATE {schema}.wayleave_leases SET ends_at = ends_at - {milliseconds} * interval '1 millisecond'"
        );
        self.server.sql("postgres", &moved);
        async {}.boxed()
    }

    fn forget<'a>(&'a self, backend: &'a dyn Backend) -> BoxFuture<'a, Outcome> {
        async move {
            self.clock.advance(HistoryLimits::default().age_max + Duration::from_secs(1));
            backend.maintain().await?;
            Ok(())
        }
        .boxed()
    }
}

/// Writers go on while the server is killed again and again; whoever watches is told everything once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_crashes() {
    const CRASHES: u64 = 4;
    let mut server = PostgresServer::start(&[]);
    let backend = open(&server, "").await;
    let load = Load::start(&backend).await;
    for crash in 1..=CRASHES {
        load.wait_acknowledged(crash * 200).await;
        server.crash();
        server.start_again();
    }
    load.wait_acknowledged((CRASHES + 1) * 200).await;
    load.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_makes_the_backend_busy_and_goes_on() {
    let server = PostgresServer::start(&[]);
    let backend = open(&server, "").await;
    let a = Key::parse("/a").unwrap();
    backend.put(&a, Bytes::from_static(b"1"), None).await.unwrap();
    server.signal_all(Signal::SIGSTOP);
    let (tasks, (sender, mut answers)) = (TaskGroup::new(), mpsc::channel(PUTS));
    for n in 0..PUTS {
        let (backend, key, sender) = (backend.clone(), a.child(&n.to_string()).unwrap(), sender.clone());
        tasks.spawn_many(async move {
            let answer = backend.put(&key, Bytes::new(), None).await;
            sender.send(answer).await.unwrap();
        });
    }
    drop(sender);
    // Those that find no room are answered while nothing moves.
    for _ in 0..200 {
        assert!(matches!(answers.recv().await, Some(Err(StoreError::Busy { .. }))));
    }
    server.signal_all(Signal::SIGCONT);
    let mut stored = 0;
    while let Some(answer) = answers.recv().await {
        match answer {
            Ok(_) => stored += 1,
            Err(error) => assert!(matches!(error, StoreError::Busy { .. }), "{error}"),
        }
    }
    assert!(stored > 1000, "{stored}");
    assert_eq!(backend.get(&a).await.unwrap().unwrap().value, Bytes::from_static(b"1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_recovers() {
    let mut server = PostgresServer::start(&[]);
    let Some(disk) = server.mount_small_disk("12m") else { return };
    server.sql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", disk.display()));
    let backend = open(&server, "&options=-c%20default_tablespace%3Dsmall").await;
    let a = Key::parse("/a").unwrap();
    backend.put(&a, Bytes::from_static(b"kept"), None).await.unwrap();
    let large = Bytes::from(vec![7; 1 << 20]);
    let mut full = None;
    for n in 0..16 {
        if let Err(error) = backend.put(&a.child(&n.to_string()).unwrap(), large.clone(), None).await {
            full = Some(error);
            break;
        }
    }
    let full = full.expect("sixteen megabytes do not fit into twelve");
    assert!(matches!(full, StoreError::Full { .. }), "{full}");
    assert!(full.to_string().contains("no space left for postgresql://127.0.0.1"), "{full}");
    assert_eq!(backend.get(&a).await.unwrap().unwrap().value, Bytes::from_static(b"kept"));
    let mount = Program::new("mount").args(["-o", "remount,size=64m"]).arg(&disk).output();
    assert_eq!(mount.code, Some(0), "{mount}");
    backend.put(&a.child("after").unwrap(), large, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_see_each_others_writes_and_end_each_others_leases() {
    let server = PostgresServer::start(&[]);
    let (one, other) = (open(&server, "").await, open(&server, "").await);
    let a = Key::parse("/a").unwrap();
    let mut watch = other.watch(&a, None).await.unwrap();
    let lease = one.lease_grant(Duration::from_secs(20)).await.unwrap();
    let put = one.put(&a, Bytes::from_static(b"x"), Some(lease)).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, put);
    assert_eq!(other.get(&a).await.unwrap().unwrap().lease, Some(lease));
    let conflict = other.create(&a, Bytes::new(), None).await;
    assert!(matches!(conflict, Err(StoreError::AlreadyExists { .. })));
    other.lease_keep_alive(lease).await.unwrap();
    drop(one);
    server.sql("postgres", "UPDATE wayleave_leases SET ends_at = now()");
    assert_eq!(other.maintain().await.unwrap(), 1);
    assert!(matches!(watch.next().await.unwrap().events.as_slice(), [Event::Delete { .. }]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_takes_the_place_of_other_data_is_read_again() {
    let server = PostgresServer::start(&[]);
    let backend = open(&server, "").await;
    let a = Key::parse("/a").unwrap();
    backend.put(&a, Bytes::new(), None).await.unwrap();
    let mut watch = backend.watch(&a, None).await.unwrap();
    server.sql("postgres", "UPDATE wayleave_head SET life = 'another'");
    backend.put(&a, Bytes::new(), None).await.unwrap();
    assert!(matches!(watch.next().await, Err(WatchError::Compacted { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d_the_server_is_verified_in_full_and_asks_for_our_certificate() {
    let certificates = Certificates::make();
    let server = PostgresServer::start_with_tls(&certificates.server, &certificates.authority);
    let url = |host: &str, parameters: &str| {
        let plain = server.url("postgres", "");
        let plain = plain.replace("127.0.0.1", host).replace("sslmode=disable", "sslmode=verify-full");
        format!("{plain}{parameters}")
    };
    let ours = format!("&sslrootcert={}", certificates.authority.display());
    let presented = format!(
        "{ours}&sslcert={}&sslkey={}",
        certificates.client.0.display(),
        certificates.client.1.display()
    );
    let opened = |url: String| async move {
        let options = PostgresOptions::new(PostgresAddress::parse(&url).unwrap());
        PostgresBackend::open(options, Arc::new(SystemClock::new())).await
    };
    opened(url("localhost", &presented)).await.unwrap();
    let refused = |what: &'static str, url: String| async move {
        let error = opened(url).await.err().unwrap_or_else(|| panic!("{what}"));
        let error = format!("{:#}", anyhow::Error::new(error));
        assert!(!error.contains("not-a-secret"), "{error}");
        error
    };
    refused("another name", url("127.0.0.1", &presented)).await;
    refused("an unknown authority", url("localhost", "")).await;
    refused("no certificate", url("localhost", &ours)).await;
    let wrong = url("localhost", &presented).replace("not-a-secret-of-anybody", "wrong");
    let said = refused("a wrong password", wrong).await;
    assert!(said.contains("password"), "{said}");
}

async fn open(server: &PostgresServer, parameters: &str) -> Arc<PostgresBackend> {
    let address = PostgresAddress::parse(&server.url("postgres", parameters)).unwrap();
    let backend = PostgresBackend::open(PostgresOptions::new(address), Arc::new(SystemClock::new())).await;
    Arc::new(backend.unwrap())
}
