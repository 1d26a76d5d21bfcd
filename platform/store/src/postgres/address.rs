//! Where the server is and how to reach it: the connection string, as libpq writes it, with nothing left open.

use crate::server_tls::{ClientFiles, ServerTls};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that has vanished without a word is given up after about this.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_RETRIES: u32 = 3;
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(15);

/// A PostgreSQL server and a database on it. It holds the password: never `Debug`.
#[derive(Clone)]
pub struct PostgresAddress {
    pub(super) config: Config,
    pub(super) tls: Option<ServerTls>,
    pub(super) shown: String,
}

/// A connection string that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the connection string of PostgreSQL cannot be used: {reason}")]
pub struct PostgresAddressError {
    /// What is wrong; it never repeats the password.
    pub reason: String,
}

impl PostgresAddress {
    /// Reads `postgresql://user:password@host:port/database?…`, several hosts with commas between. TLS is verified in
    /// full unless `sslmode=disable`, or the host is the directory of a socket; `sslrootcert`, `sslcert` and `sslkey`
    /// name files. Modes that verify less are refused.
    ///
    /// # Errors
    /// Anything else; the text of the error never holds the password.
    pub fn parse(text: &str) -> Result<Self, PostgresAddressError> {
        if !(text.starts_with("postgresql://") || text.starts_with("postgres://")) {
            return Err(refused("it does not begin with postgresql://"));
        }
        let (base, query) = text.split_once('?').unwrap_or((text, ""));
        let mut files = TlsParameters::default();
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !files.take(name, value)? {
                rest.push(pair);
            }
        }
        let joined = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let mut config = Config::from_str(&joined).map_err(|error| refused(&reason_of(&error)))?;
        if config.get_dbname().is_none() {
            return Err(refused(
                "it names no database: end it with /wayleave, or what the database is called",
            ));
        }
        if config.get_user().is_none() {
            return Err(refused("it names no user: write postgresql://user@host/database"));
        }
        if config.get_application_name().is_none() {
            config.application_name("wayleave");
        }
        let is_local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        let tls = files.finish(is_local)?;
        config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.connect_timeout(CONNECT_TIMEOUT).keepalives(true).keepalives_idle(KEEPALIVE_IDLE);
        config.keepalives_interval(KEEPALIVE_INTERVAL).keepalives_retries(KEEPALIVE_RETRIES);
        config.tcp_user_timeout(UNACKNOWLEDGED_MAX);
        let shown = shown(&config);
        Ok(Self { config, tls, shown })
    }
}

impl fmt::Display for PostgresAddress {
    /// The hosts and the database, without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[derive(Default)]
struct TlsParameters {
    mode: Option<String>,
    root: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl TlsParameters {
    /// True if the parameter was one of these.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, PostgresAddressError> {
        let path = || Ok::<_, PostgresAddressError>(Some(PathBuf::from(decoded(value)?)));
        match name {
            "sslmode" => self.mode = Some(value.to_owned()),
            "sslrootcert" => self.root = path()?,
            "sslcert" => self.certificate = path()?,
            "sslkey" => self.key = path()?,
            // Others of the field bound their pools with it; ours is fixed and small.
            "pool_max_conns" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(self, is_local: bool) -> Result<Option<ServerTls>, PostgresAddressError> {
        let with_tls = match self.mode.as_deref() {
            None => !is_local,
            Some("verify-full") => true,
            Some("disable") => false,
            Some("require" | "prefer" | "allow" | "verify-ca") => {
                let reason = "sslmode must be verify-full, or disable where nobody can listen: the others do not make sure which server answers";
                return Err(refused(reason));
            }
            Some(_) => return Err(refused("sslmode must be verify-full or disable")),
        };
        let client = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some(ClientFiles { certificate, key }),
            (None, None) => None,
            _ => return Err(refused("sslcert and sslkey go together")),
        };
        if !with_tls && (client.is_some() || self.root.is_some()) {
            return Err(refused("sslmode=disable does not go with files for TLS"));
        }
        Ok(with_tls.then_some(ServerTls { ca_file: self.root, client }))
    }
}

fn refused(reason: &str) -> PostgresAddressError {
    PostgresAddressError { reason: reason.to_owned() }
}

/// What the library says about its configuration; it names parameters, and never repeats values of secrets.
fn reason_of(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn shown(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(index, host)| {
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(path) => path.display().to_string(),
        }
    });
    let hosts: Vec<_> = hosts.collect();
    format!("postgresql://{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default())
}

/// Percent-decodes a value of the query.
fn decoded(text: &str) -> Result<String, PostgresAddressError> {
    let wrong = || refused("a % in it is not followed by two hexadecimal digits");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next()).ok_or_else(wrong)?, digit(rest.next()).ok_or_else(wrong)?);
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| wrong())?);
    }
    String::from_utf8(bytes).map_err(|_| refused("it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        match PostgresAddress::parse(text) {
            Ok(_) => panic!("{text} was accepted"),
            Err(error) => error.reason,
        }
    }

    #[test]
    fn tls_is_verified_unless_switched_off() {
        let parse = |text| PostgresAddress::parse(text).map(|address| address.tls).unwrap();
        assert_eq!(parse("postgresql://u@db.example.com/w"), Some(ServerTls::default()));
        assert_eq!(parse("postgresql://u@127.0.0.1/w?sslmode=disable"), None);
        assert_eq!(parse("postgresql://u@%2Fvar%2Frun%2Fpostgresql/w"), None);
        let files =
            parse("postgresql://u:p@a,b/w?sslmode=verify-full&sslrootcert=/c%20a&sslcert=/c&sslkey=/k");
        let client = Some(ClientFiles { certificate: "/c".into(), key: "/k".into() });
        assert_eq!(files, Some(ServerTls { ca_file: Some("/c a".into()), client }));
        for mode in ["require", "prefer", "allow", "verify-ca"] {
            assert!(reason(&format!("postgresql://u@h/w?sslmode={mode}")).contains("verify-full"), "{mode}");
        }
    }

    #[test]
    fn m_what_is_wrong_is_said_without_the_password() {
        for text in [
            "host=h user=u password=hunter2",
            "postgresql://u:hunter2@h",
            "postgresql://h/w?password=hunter2",
            "postgresql://u:hunter2@h/w?sslcert=/c",
            "postgresql://u:hunter2@h/w?nonsense=1",
            "postgresql://u:hunter2@h/w?sslmode=sometimes",
            "postgresql://u:hunter2@h/w?sslrootcert=%4",
            "postgresql://u:hunter2@h/w?sslmode=disable&sslrootcert=/c",
            "postgresql://u:hunter2@h:port/w",
        ] {
            let said = reason(text);
            assert!(!said.contains("hunter2"), "{text}: {said}");
        }
        let shown = PostgresAddress::parse("postgresql://u:hunter2@a:1,b:2/w").unwrap().to_string();
        assert_eq!(shown, "postgresql://a:1,b:2/w");
    }
}
