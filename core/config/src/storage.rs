//! The backend of the Auth Service: `wayleave.storage:`.

use crate::section::Section;
use crate::value::ValueOrPath;
use std::path::{Path, PathBuf};
use wayleave_vocab::{Secret, UserName};

/// The backend.
#[derive(Debug, Clone)]
pub enum StorageConfig {
    /// The embedded database.
    Sqlite {
        /// Its directory, absolute.
        directory: PathBuf,
    },
    /// Nothing durable.
    Memory,
    /// A PostgreSQL database.
    Postgresql {
        /// Where it is and how to reach it. It usually holds a password.
        conn_string: ValueOrPath<Secret>,
    },
    /// A cluster of etcd.
    Etcd(EtcdStorage),
}

/// A cluster of etcd.
#[derive(Debug, Clone)]
pub struct EtcdStorage {
    /// Its members, `https://…` or `http://…`; one at least, and all with the same scheme.
    pub peers: Vec<String>,
    /// The path above all keys.
    pub prefix: PathBuf,
    /// The authority of the members; that of the system when `None`.
    pub tls_ca_file: Option<PathBuf>,
    /// The certificate to present and its key.
    pub tls_client: Option<(PathBuf, PathBuf)>,
    /// As whom to log in, and the file with the password.
    pub login: Option<(UserName, PathBuf)>,
}

impl EtcdStorage {
    /// True if the members are reached by TLS.
    pub fn has_tls(&self) -> bool {
        self.peers.iter().all(|peer| peer.starts_with("https://"))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Type {
    Sqlite,
    Memory,
    Postgresql,
    Etcd,
}

/// Keys that belong to one type only.
const OWNED: [(Type, &str, &[&str]); 3] = [
    (Type::Sqlite, "sqlite", &["path"]),
    (Type::Postgresql, "postgresql", &["conn_string"]),
    (
        Type::Etcd,
        "etcd",
        &["peers", "prefix", "tls_ca_file", "tls_cert_file", "tls_key_file", "username", "password_file"],
    ),
];

pub(crate) fn read(section: &Section<'_>, data_dir: Option<&Path>) -> Option<StorageConfig> {
    let words = [
        ("sqlite", Type::Sqlite),
        ("dir", Type::Sqlite),
        ("memory", Type::Memory),
        ("postgresql", Type::Postgresql),
        ("postgres", Type::Postgresql),
        ("etcd", Type::Etcd),
    ];
    let storage_type = section.choice("type", &words);
    let path = section.path("path");
    let conn_string = section.secret("conn_string");
    let etcd = read_etcd(section, storage_type == Some(Type::Etcd));
    let storage_type = storage_type?;
    let mut is_pure = true;
    for (_, name, keys) in OWNED.iter().filter(|(owner, _, _)| *owner != storage_type) {
        for key in keys.iter().filter(|key| section.place_of(key).is_some()) {
            section.refuse(key, format!("a {key} with another type"), format!("no {key}, or type: {name}"));
            is_pure = false;
        }
    }
    if !is_pure {
        return None;
    }
    match storage_type {
        Type::Memory => Some(StorageConfig::Memory),
        Type::Sqlite => {
            let directory = path.or_else(|| data_dir.map(|directory| directory.join("backend")));
            Some(StorageConfig::Sqlite { directory: directory? })
        }
        Type::Postgresql => {
            let conn_string = section.require("conn_string", conn_string)?;
            Some(StorageConfig::Postgresql { conn_string })
        }
        Type::Etcd => etcd.map(StorageConfig::Etcd),
    }
}

/// Reads the keys of etcd; what they lack is reported only where etcd is the type.
fn read_etcd(section: &Section<'_>, is_used: bool) -> Option<EtcdStorage> {
    let peers = section.urls("peers");
    let prefix = section.path("prefix");
    let tls_ca_file = section.path("tls_ca_file");
    let (certificate, key) = (section.path("tls_cert_file"), section.path("tls_key_file"));
    let (user, password) = (section.name("username", UserName::parse), section.path("password_file"));
    if !is_used {
        return None;
    }
    if peers.is_empty() {
        section.require("peers", None::<Vec<String>>);
        return None;
    }
    let both = |first: &str, second: &str| {
        let has = |key| section.place_of(key).is_some();
        let (missing, given) = if has(first) { (second, first) } else { (first, second) };
        if has(first) != has(second) {
            section.refuse(missing, "nothing", format!("a value: it goes with {given}"));
        }
        has(first) == has(second)
    };
    let complete = both("tls_cert_file", "tls_key_file") & both("username", "password_file");
    let storage = EtcdStorage {
        peers,
        prefix: prefix?,
        tls_ca_file,
        tls_client: certificate.zip(key),
        login: user.zip(password),
    };
    let plain = storage.peers.iter().any(|peer| peer.starts_with("http://"));
    if plain && storage.peers.iter().any(|peer| peer.starts_with("https://")) {
        section.refuse("peers", "both https:// and http://", "one of them for all members");
        return None;
    }
    if plain && (storage.tls_ca_file.is_some() || storage.tls_client.is_some()) {
        section.refuse("peers", "http:// beside files for TLS", "https:// for all members");
        return None;
    }
    complete.then_some(storage)
}
