//! The etcd backend against a real server: the conformance suite, and what happens when members die, stand still or are
//! full.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod backend_load;

use backend_load::Load;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, join_all};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wayleave_runtime::{ManualClock, SystemClock};
use wayleave_scenario::{Certificates, EtcdServer};
use wayleave_store::conformance::{Expiry, Failure, NotConforming, Outcome, Subject, conformance};
use wayleave_store::{
    Backend, ClientFiles, EtcdBackend, EtcdLogin, EtcdOptions, HistoryLimits, Key, ServerTls, StoreError,
};
use wayleave_vocab::{Secret, Wall};

/// No check waits for anything but the server; this only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_etcd_backend_conforms() {
    let clock = Arc::new(ManualClock::new(Wall::from_secs(1_700_000_000)));
    let server = EtcdServer::start(1, &[]);
    let subject = Prefixes { server, clock, opened: AtomicUsize::new(0), prefix: Mutex::default() };
    let outcome = tokio::time::timeout(PATIENCE, conformance(&subject)).await.expect("it hangs");
    if let Err(NotConforming { check, source }) = outcome {
        panic!("{check}: {source}");
    }
}

/// Backends in one server, each below a prefix of its own.
struct Prefixes {
    server: EtcdServer,
    clock: Arc<ManualClock>,
    opened: AtomicUsize,
    prefix: Mutex<String>,
}

impl Prefixes {
    async fn open_prefix(&self) -> Result<Arc<dyn Backend>, Failure> {
        let prefix = self.prefix.lock().expect("no test panics with it").clone();
        let options = EtcdOptions { prefix: Key::parse(&prefix)?, ..options(&self.server) };
        Ok(Arc::new(EtcdBackend::open(options, self.clock.clone()).await?))
    }
}

impl Subject for Prefixes {
    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        *self.prefix.lock().expect("no test panics with it") = format!("/cluster-{number}");
        self.open_prefix().boxed()
    }

    fn reopen(&self, backend: Arc<dyn Backend>) -> BoxFuture<'_, Result<Option<Arc<dyn Backend>>, Failure>> {
        async move {
            backend.close().await;
            self.open_prefix().await.map(Some)
        }
        .boxed()
    }

    fn advance(&self, by: Duration) -> BoxFuture<'_, ()> {
        // The time is the server's own: there is no other way than to let it pass.
        async move {
            let _never = tokio::time::timeout(by, std::future::pending::<()>()).await;
        }
        .boxed()
    }

    fn lease_ttl(&self) -> Duration {
        Duration::from_secs(4)
    }

    fn expiry(&self) -> Expiry {
        Expiry::Server
    }

    fn forget<'a>(&'a self, backend: &'a dyn Backend) -> BoxFuture<'a, Outcome> {
        async move {
            backend.maintain().await?;
            self.clock.advance(HistoryLimits::default().age_max + Duration::from_secs(1));
            backend.maintain().await?;
            Ok(())
        }
        .boxed()
    }
}

/// Writers go on while the leader is killed again and again; whoever watches is told everything once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_leader_changes() {
    const CHANGES: u64 = 3;
    let mut server = EtcdServer::start(3, &[]);
    let backend = Arc::new(EtcdBackend::open(options(&server), clock()).await.unwrap());
    let load = Load::start(&backend).await;
    for change in 1..=CHANGES {
        load.wait_acknowledged(change * 150).await;
        let leader = server.leader();
        server.crash(leader);
        load.wait_acknowledged(change * 150 + 50).await;
        server.start_again(leader);
    }
    load.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stands_still_is_passed_over() {
    let server = EtcdServer::start(3, &[]);
    let backend = EtcdBackend::open(options(&server), clock()).await.unwrap();
    let a = Key::parse("/a").unwrap();
    let put = backend.put(&a, Bytes::new(), None).await.unwrap();
    let asked_first = 0;
    server.signal(asked_first, Signal::SIGSTOP);
    assert_eq!(backend.get(&a).await.unwrap().unwrap().revision, put);
    let mut written = backend.put(&a, Bytes::new(), None).await;
    while matches!(&written, Err(error) if error.is_transient()) {
        // While a new leader is found it is not certain whether a write was stored.
        written = backend.put(&a, Bytes::new(), None).await;
    }
    assert!(written.unwrap() > put);
    server.signal(asked_first, Signal::SIGCONT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_says_so_and_reads_go_on() {
    let server = EtcdServer::start(1, &["--quota-backend-bytes=8388608"]);
    let backend = EtcdBackend::open(options(&server), clock()).await.unwrap();
    let a = Key::parse("/a").unwrap();
    let large = Bytes::from(vec![7; backend.bounds().value_bytes_max]);
    let mut full = None;
    for n in 0..32 {
        if let Err(error) = backend.put(&a.child(&n.to_string()).unwrap(), large.clone(), None).await {
            full = Some(error);
            break;
        }
    }
    let full = full.expect("32 MiB do not fit into 8");
    assert!(matches!(full, StoreError::Full { .. }), "{full}");
    assert!(full.to_string().contains("no space left for etcd http://127.0.0.1"), "{full}");
    assert!(backend.get(&a.child("0").unwrap()).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_must_log_in_where_the_server_says_so() {
    let server = EtcdServer::start(1, &[]);
    server.ctl(0, &["user", "add", "root:not-a-secret"]);
    server.ctl(0, &["user", "grant-role", "root", "root"]);
    server.ctl(0, &["auth", "enable"]);
    let with = |password: &str| {
        let login = EtcdLogin { user: "root".into(), password: Secret::new(password.to_owned()) };
        EtcdOptions { login: Some(login), ..options(&server) }
    };
    let backend = EtcdBackend::open(with("not-a-secret"), clock()).await.unwrap();
    let a = Key::parse("/a").unwrap();
    let mut watch = backend.watch(&a, None).await.unwrap();
    let put = backend.put(&a, Bytes::new(), None).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, put);
    for options in [with("wrong"), options(&server)] {
        let error = EtcdBackend::open(options, clock()).await.err().expect("it must be refused");
        let error = format!("{:#}", anyhow::Error::new(error));
        assert!(error.contains("password") && !error.contains("not-a-secret"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d_members_are_verified_in_full_and_ask_for_our_certificate() {
    let certificates = Certificates::make();
    let server = EtcdServer::start_with_tls(&certificates);
    let with = |host: &str, ca_file: Option<PathBuf>, client: Option<&(PathBuf, PathBuf)>| {
        let client = client
            .map(|(certificate, key)| ClientFiles { certificate: certificate.clone(), key: key.clone() });
        let peers = server.urls().iter().map(|url| url.replace("127.0.0.1", host)).collect();
        EtcdOptions { peers, tls: Some(ServerTls { ca_file, client }), ..options(&server) }
    };
    let (ca, client) = (Some(certificates.authority.clone()), Some(&certificates.client));
    let backend = EtcdBackend::open(with("localhost", ca.clone(), client), clock()).await.unwrap();
    backend.put(&Key::parse("/a").unwrap(), Bytes::new(), None).await.unwrap();
    let refused = [
        ("another name", with("127.0.0.1", ca.clone(), client)),
        ("an unknown authority", with("localhost", None, client)),
        ("no certificate", with("localhost", ca, None)),
    ];
    // Together: each is tried for some seconds.
    let opened = join_all(
        refused
            .map(|(what, options)| async move { (what, EtcdBackend::open(options, clock()).await.is_ok()) }),
    );
    for (what, is_open) in opened.await {
        assert!(!is_open, "{what}");
    }
}

fn options(server: &EtcdServer) -> EtcdOptions {
    EtcdOptions {
        peers: server.urls(),
        prefix: Key::parse("/wayleave").unwrap(),
        tls: None,
        login: None,
        history: HistoryLimits::default(),
    }
}

fn clock() -> Arc<SystemClock> {
    Arc::new(SystemClock::new())
}
