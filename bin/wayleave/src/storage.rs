//! Opens the backend that a configuration, or an address on the command line, names.

use crate::edge;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wayleave_config::{EtcdStorage, StorageConfig};
use wayleave_runtime::Clock;
use wayleave_store::{
    Backend, ClientFiles, EtcdBackend, EtcdLogin, EtcdOptions, HistoryLimits, Key, MemoryBackend,
    PostgresAddress, PostgresBackend, PostgresOptions, ServerTls, SqliteBackend, SqliteOptions,
};

/// The path above all keys in etcd when an address names none.
const ETCD_PREFIX: &str = "/wayleave";

/// A backend that can be opened.
#[derive(Clone)]
pub(crate) enum Storage {
    Memory,
    Sqlite(PathBuf),
    Postgresql(Box<PostgresAddress>),
    Etcd(Box<EtcdOptions>),
}

impl Storage {
    /// What a configuration says, with the files that it points at.
    pub(crate) fn configured(config: &StorageConfig) -> anyhow::Result<Self> {
        Ok(match config {
            StorageConfig::Memory => Self::Memory,
            StorageConfig::Sqlite { directory } => Self::Sqlite(directory.clone()),
            StorageConfig::Postgresql { conn_string } => {
                let text = edge::secret(conn_string, "wayleave.storage.conn_string")?;
                let address = PostgresAddress::parse(text.expose_secret());
                Self::Postgresql(Box::new(address.context("wayleave.storage.conn_string")?))
            }
            StorageConfig::Etcd(etcd) => Self::Etcd(Box::new(etcd_options(etcd)?)),
        })
    }

    /// What a configuration file says.
    pub(crate) fn of_file(path: &Path) -> anyhow::Result<Self> {
        let config = edge::read_config(path)?;
        if config.auth.is_none() {
            bail!("{} has no auth_service: only the Auth Service has a backend", path.display());
        }
        Self::configured(&config.instance.storage)
    }

    /// What a word on the command line means: a configuration file (`*.yaml`), `sqlite:DIRECTORY`,
    /// `postgresql://…`, or `etcd+https://host:2379[,host:2379…][/prefix]`.
    pub(crate) fn named(word: &str) -> anyhow::Result<Self> {
        if word.starts_with("postgresql://") || word.starts_with("postgres://") {
            return Ok(Self::Postgresql(Box::new(PostgresAddress::parse(word)?)));
        }
        if let Some(directory) = word.strip_prefix("sqlite:") {
            return Ok(Self::Sqlite(PathBuf::from(directory)));
        }
        if let Some(rest) = word.strip_prefix("etcd+") {
            return Ok(Self::Etcd(Box::new(etcd_at(rest)?)));
        }
        if word.ends_with(".yaml") || word.ends_with(".yml") {
            return Self::of_file(Path::new(word));
        }
        bail!(
            "{word:?} names no backend: give a configuration file (*.yaml), sqlite:DIRECTORY, postgresql://…, or etcd+https://…"
        )
    }

    /// What it is called in a configuration.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Sqlite(_) => "sqlite",
            Self::Postgresql(_) => "postgresql",
            Self::Etcd(_) => "etcd",
        }
    }

    /// Where it is, for messages; without secrets.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Memory => "memory".to_owned(),
            Self::Sqlite(directory) => directory.display().to_string(),
            Self::Postgresql(address) => address.to_string(),
            Self::Etcd(options) => format!("etcd {}{}", options.peers.join(","), options.prefix),
        }
    }

    /// Opens it.
    pub(crate) async fn open(&self, clock: Arc<dyn Clock>) -> anyhow::Result<Arc<dyn Backend>> {
        Ok(match self {
            Self::Memory => Arc::new(MemoryBackend::new(HistoryLimits::default(), clock)),
            Self::Sqlite(directory) => {
                let opened = SqliteBackend::open(&SqliteOptions::new(directory.clone()), clock);
                Arc::new(opened.context("the backend cannot be opened")?)
            }
            Self::Postgresql(address) => {
                let opened = PostgresBackend::open(PostgresOptions::new((**address).clone()), clock).await;
                Arc::new(opened.context("the backend cannot be opened")?)
            }
            Self::Etcd(options) => {
                let opened = EtcdBackend::open((**options).clone(), clock).await;
                Arc::new(opened.context("the backend cannot be opened")?)
            }
        })
    }
}

fn etcd_options(config: &EtcdStorage) -> anyhow::Result<EtcdOptions> {
    let prefix = config.prefix.to_string_lossy();
    let client = config.tls_client.clone().map(|(certificate, key)| ClientFiles { certificate, key });
    let tls = config.has_tls().then(|| ServerTls { ca_file: config.tls_ca_file.clone(), client });
    let login = match &config.login {
        None => None,
        Some((user, file)) => {
            let password = edge::secret_file(file, "wayleave.storage.password_file")?;
            Some(EtcdLogin { user: user.to_string(), password })
        }
    };
    Ok(EtcdOptions {
        peers: config.peers.clone(),
        prefix: Key::parse(&prefix).context("wayleave.storage.prefix")?,
        tls,
        login,
        history: HistoryLimits::default(),
    })
}

fn etcd_at(rest: &str) -> anyhow::Result<EtcdOptions> {
    let (scheme, rest) =
        rest.split_once("://").context("an address of etcd is etcd+https://host:2379/prefix")?;
    if !matches!(scheme, "https" | "http") {
        bail!("an address of etcd begins with etcd+https:// or etcd+http://");
    }
    let (hosts, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ETCD_PREFIX),
    };
    Ok(EtcdOptions {
        peers: hosts.split(',').map(|host| format!("{scheme}://{host}")).collect(),
        prefix: Key::parse(path).context("the path of the address of etcd")?,
        tls: (scheme == "https").then(ServerTls::default),
        login: None,
        history: HistoryLimits::default(),
    })
}
