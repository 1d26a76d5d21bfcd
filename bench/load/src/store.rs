//! The backends of Auth that are measured, as real servers.

use anyhow::Result;
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wayleave_runtime::SystemClock;
use wayleave_scenario::{EtcdServer, PostgresServer};
use wayleave_store::{
    Backend, EtcdBackend, EtcdOptions, HistoryLimits, Key, PostgresAddress, PostgresBackend, PostgresOptions,
    SqliteBackend, SqliteOptions,
};

/// Which backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreKind {
    Sqlite,
    Etcd,
    Postgresql,
}

/// A backend, running while it is here.
pub(crate) enum Store {
    /// Inside Auth.
    Sqlite,
    /// One member; its data is in memory.
    Etcd(EtcdServer),
    Postgresql(PostgresServer),
}

impl StoreKind {
    pub(crate) const ALL: [Self; 3] = [Self::Sqlite, Self::Etcd, Self::Postgresql];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Etcd => "etcd",
            Self::Postgresql => "PostgreSQL",
        }
    }
}

impl Store {
    pub(crate) fn start(kind: StoreKind) -> Self {
        match kind {
            StoreKind::Sqlite => Self::Sqlite,
            StoreKind::Etcd => Self::Etcd(EtcdServer::start(1, &[])),
            StoreKind::Postgresql => Self::Postgresql(PostgresServer::start(&[])),
        }
    }

    /// The section of Auth's configuration; what is secret in it goes into a file of this directory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn section(&self, directory: &Path) -> Result<String> {
        Ok(match self {
            Self::Sqlite => String::new(),
            Self::Etcd(server) => {
                format!("  storage:\n    type: etcd\n    peers: [{}]\n", server.urls().join(", "))
            }
            Self::Postgresql(server) => {
                let file = directory.join("conn-string");
                fs::write(&file, server.url("postgres", ""))?;
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
                format!("  storage:\n    type: postgresql\n    conn_string: {}\n", file.display())
            }
        })
    }

    /// Opens it while no Auth runs; `embedded` is where the embedded one is.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) async fn open(&self, embedded: PathBuf) -> Result<Box<dyn Backend>> {
        let clock = Arc::new(SystemClock::new());
        Ok(match self {
            Self::Sqlite => Box::new(SqliteBackend::open(&SqliteOptions::new(embedded), clock)?),
            Self::Etcd(server) => {
                let options = EtcdOptions {
                    peers: server.urls(),
                    prefix: Key::parse("/wayleave")?,
                    tls: None,
                    login: None,
                    history: HistoryLimits::default(),
                };
                Box::new(EtcdBackend::open(options, clock).await?)
            }
            Self::Postgresql(server) => {
                let options = PostgresOptions::new(PostgresAddress::parse(&server.url("postgres", ""))?);
                Box::new(PostgresBackend::open(options, clock).await?)
            }
        })
    }

    /// A server that stands still from now on, answering nothing and refusing nothing. False for the embedded one, which
    /// goes with Auth.
    pub(crate) fn stall(&self) -> bool {
        match self {
            Self::Sqlite => return false,
            Self::Etcd(server) => server.signal(0, Signal::SIGSTOP),
            Self::Postgresql(server) => server.signal_all(Signal::SIGSTOP),
        }
        true
    }
}
