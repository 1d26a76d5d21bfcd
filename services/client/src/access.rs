//! As whom a command acts, and where it finds the cluster: `-i FILE`, `-c FILE`, or the profile of a login.

use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure, chain};
use crate::home::Home;
use crate::identity_file::{Identity, IdentityFileError};
use crate::moment;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use tonic::{Response, Status};
use wayleave_api::ALPN_AUTH;
use wayleave_api::auth::admin_client::AdminClient;
use wayleave_config::Config;
use wayleave_keystore::{client_config, public_client_config};
use wayleave_net::AddressBook;
use wayleave_rpc::{CALL_TIMEOUT, Channel, channel_through};
use wayleave_vocab::{HostPort, SystemRole};

/// File of the local administrator's identity below `data_dir`; the Auth Service writes it.
const ADMIN_IDENTITY: &str = "admin-identity";
/// Longest answer taken from Auth, in bytes: a list of tens of thousands of nodes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An identity and the addresses at which it is used.
pub(crate) struct Access {
    /// Who.
    pub(crate) identity: Identity,
    /// Where it came from.
    pub(crate) source: Source,
    /// Web addresses of proxies, to dial nodes through. May be empty.
    pub(crate) proxies: Vec<HostPort>,
    /// Where the Auth API is reached, directly or through a proxy.
    auth_servers: Vec<HostPort>,
    /// How it was found, to find it again.
    pub(crate) global: GlobalArgs,
}

/// Where an identity came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// `-i FILE`.
    File(PathBuf),
    /// `-c FILE`: the local administrator.
    Local(PathBuf),
    /// A login.
    Profile {
        /// Its name.
        name: String,
        /// Its directory.
        directory: PathBuf,
    },
}

impl Access {
    /// Finds the identity that the command line names, or the current profile's.
    pub(crate) fn find(global: &GlobalArgs) -> Result<Self, Failure> {
        let found = match (&global.config, &global.identity) {
            (Some(_), Some(_)) => {
                Err(Failure::usage("both --config and --identity say who you are").hint("give one of them"))
            }
            (Some(config), None) => Self::local(config, global.proxy.as_ref()),
            (None, Some(file)) => Self::from_file(file, global.proxy.as_ref()),
            (None, None) => Self::from_profile(&Home::find()?, global.proxy.as_ref()),
        };
        found.map(|access| Self { global: global.clone(), ..access })
    }

    fn from_file(file: &Path, proxy: Option<&HostPort>) -> Result<Self, Failure> {
        let identity = Identity::read(file).map_err(|error| match &error {
            IdentityFileError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Failure::new(Exit::NotFound, error.to_string())
                    .hint("identity files are made by `way auth sign --user NAME --out FILE`")
            }
            IdentityFileError::Read { .. }
            | IdentityFileError::Write { .. }
            | IdentityFileError::Line { .. }
            | IdentityFileError::Missing(_)
            | IdentityFileError::Part { .. } => Failure::failed(error.to_string()),
        })?;
        let proxies = proxy.map_or_else(|| identity.parts().proxies.clone(), |p| vec![p.clone()]);
        let direct = &identity.parts().auth_servers;
        let auth_servers =
            if proxy.is_none() && !direct.is_empty() { direct.clone() } else { proxies.clone() };
        let source = Source::File(file.to_owned());
        Ok(Self { identity, source, proxies, auth_servers, global: GlobalArgs::default() })
    }

    fn from_profile(home: &Home, proxy: Option<&HostPort>) -> Result<Self, Failure> {
        let profile = home.profile(proxy)?.ok_or_else(|| {
            Failure::new(
                Exit::Denied,
                match proxy {
                    Some(proxy) => format!("you are not logged in at {}", proxy.host()),
                    None => "you are not logged in".to_owned(),
                },
            )
            .hint(
                "log in with `way login --proxy HOST`, give an identity file with -i, \
                 or on the Auth host use `way -c /etc/wayleave.yaml …`",
            )
        })?;
        let proxies = proxy.map_or_else(|| profile.identity.parts().proxies.clone(), |p| vec![p.clone()]);
        let source = Source::Profile { name: profile.name, directory: profile.directory };
        let auth_servers = proxies.clone();
        Ok(Self { identity: profile.identity, source, auth_servers, proxies, global: GlobalArgs::default() })
    }

    /// As the local administrator of the Auth host.
    pub(crate) fn local(file: &Path, proxy: Option<&HostPort>) -> Result<Self, Failure> {
        let config = read_config(file)?;
        let Some(auth) = &config.auth else {
            return Err(Failure::usage(format!("{} runs no Auth Service", file.display()))
                .hint("-c is for the Auth host; elsewhere use `way login` or an identity file (-i)"));
        };
        let path = config.instance.data_dir.join(ADMIN_IDENTITY);
        let identity = Identity::read(&path).map_err(|error| admin_failure(&error, &path))?;
        let configured = HostPort::from_socket(reachable(auth.listen_addr));
        let bound = identity.parts().auth_servers.clone();
        let auth_servers =
            if auth.listen_addr.port() == 0 && !bound.is_empty() { bound } else { vec![configured] };
        let own_proxy = config.proxy.as_ref().map(|p| HostPort::from_socket(reachable(p.web_listen_addr)));
        let known = identity.parts().proxies.clone();
        let proxies = match (proxy, known.is_empty()) {
            (Some(proxy), _) => vec![proxy.clone()],
            (None, false) => known,
            (None, true) => own_proxy.into_iter().collect(),
        };
        let source = Source::Local(file.to_owned());
        Ok(Self { identity, source, proxies, auth_servers, global: GlobalArgs::default() })
    }

    /// A client of the Auth API.
    pub(crate) fn admin(&self) -> Result<AdminClient<Channel>, Failure> {
        self.check_expiry()?;
        if self.auth_servers.is_empty() {
            return Err(no_address());
        }
        let tls = client_config(
            self.identity.credentials(),
            &self.identity.trust(),
            SystemRole::Auth,
            None,
            &[ALPN_AUTH],
        )
        .map_err(Failure::doing("cannot set up TLS"))?;
        let outer = public_client_config(Some(&self.identity.trust()))
            .map_err(Failure::doing("cannot set up TLS"))?;
        Ok(AdminClient::new(channel_through(AddressBook::new(self.auth_servers.clone()), tls, outer))
            .max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// Fails when the certificate has run out, before anybody else says so less clearly.
    pub(crate) fn check_expiry(&self) -> Result<(), Failure> {
        let user = self.identity.user();
        if moment::now() < user.not_after {
            return Ok(());
        }
        let hint = match &self.source {
            Source::File(_) => "make a new identity file with `way auth sign`",
            Source::Local(_) => "the Auth Service renews it while it runs: is it running?",
            Source::Profile { .. } => "log in again with `way login`",
        };
        Err(Failure::new(
            Exit::Expired,
            format!("the certificate of {} expired at {}", user.name, moment::local(user.not_after)),
        )
        .hint(format!("{hint}; if that is not so, check this machine's clock")))
    }

    /// The proxies, or what to do when none is known.
    pub(crate) fn require_proxies(&self) -> Result<&[HostPort], Failure> {
        if self.proxies.is_empty() { Err(no_address()) } else { Ok(&self.proxies) }
    }
}

/// Waits for the answer to a call of somebody who is known. A denial is then a matter of roles.
pub(crate) async fn call<T>(answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
    wait(answer).await.map_err(|failure| match failure.exit {
        Exit::Denied => failure.or_hint("`way status` shows your roles; an administrator can give you more"),
        _ => failure,
    })
}

/// Waits for the answer to one call, not for ever.
pub(crate) async fn wait<T>(answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
    match tokio::time::timeout(CALL_TIMEOUT, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(Failure::new(
            Exit::Unreachable,
            format!("the Auth Service did not answer within {} s", CALL_TIMEOUT.as_secs()),
        )
        .hint("try again; if it persists, look at the Auth Service's log")),
    }
}

fn no_address() -> Failure {
    Failure::usage("no address of a proxy is known").hint("give one with --proxy HOST:PORT")
}

/// Reads a daemon's configuration file.
fn read_config(file: &Path) -> Result<Config, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("cannot read {}: {error}", file.display()))
            .hint("-c wants the configuration file of the Auth Service, usually /etc/wayleave.yaml")
    })?;
    Config::parse(&text, &file.display().to_string()).map_err(|errors| {
        Failure::new(Exit::Failed, errors.to_string())
            .hint(format!("check it with `wayleave doctor -c {}`", file.display()))
    })
}

fn admin_failure(error: &IdentityFileError, path: &Path) -> Failure {
    match error {
        IdentityFileError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Failure::new(
            Exit::Unreachable,
            format!("there is no administrator's identity at {}", path.display()),
        )
        .hint("the Auth Service writes it when it starts: start it on this machine first"),
        IdentityFileError::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Failure::new(Exit::Denied, chain(error))
                .hint("run this as the user that runs the Auth Service (sudo)")
        }
        IdentityFileError::Read { .. }
        | IdentityFileError::Write { .. }
        | IdentityFileError::Line { .. }
        | IdentityFileError::Missing(_)
        | IdentityFileError::Part { .. } => {
            Failure::failed(chain(error)).hint("the Auth Service writes it anew when it starts")
        }
    }
}

/// Where a listener is reached from the same machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity_file::tests::{END, identity};
    use wayleave_vocab::Wall;

    fn global(change: impl FnOnce(&mut GlobalArgs)) -> GlobalArgs {
        let mut global = GlobalArgs::default();
        change(&mut global);
        global
    }

    fn failure(global: &GlobalArgs) -> Failure {
        Access::find(global).err().unwrap()
    }

    #[test]
    fn an_identity_file_brings_its_addresses_and_a_flag_overrides_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("id");
        identity(END).write(&path).unwrap();
        let access = Access::find(&global(|g| g.identity = Some(path.clone()))).unwrap();
        assert_eq!(access.proxies[0].to_string(), "proxy.example.com:443");
        assert_eq!(access.auth_servers[0].to_string(), "127.0.0.1:3025");
        let other: HostPort = "other:1".parse().unwrap();
        let access = Access::find(&global(|g| {
            g.identity = Some(path);
            g.proxy = Some(other.clone());
        }));
        let access = access.unwrap();
        assert_eq!((&access.proxies, &access.auth_servers), (&vec![other.clone()], &vec![other]));
    }

    #[test]
    fn the_local_administrator_finds_the_auth_service_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let file = directory.path().join("wayleave.yaml");
        let text = format!(
            "version: v3\nwayleave:\n  data_dir: {}\nauth_service:\n  enabled: true\n  listen_addr: 0.0.0.0:4025\n",
            data.display()
        );
        std::fs::write(&file, text).unwrap();
        let global = global(|g| g.config = Some(file));
        assert_eq!(failure(&global).exit, Exit::Unreachable);

        identity(END).write(&data.join(ADMIN_IDENTITY)).unwrap();

        let access = Access::find(&global).unwrap();
        assert_eq!(access.auth_servers[0].to_string(), "127.0.0.1:4025");
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let missing = failure(&global(|g| g.identity = Some("/nonexistent/id".into())));
        assert_eq!(missing.exit, Exit::NotFound);
        assert!(missing.hint.unwrap().contains("way auth sign"));
        let both = failure(&global(|g| {
            g.identity = Some("a".into());
            g.config = Some("b".into());
        }));
        assert_eq!(both.exit, Exit::Usage);
    }

    #[test]
    fn d_an_expired_identity_is_refused_before_it_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("id");
        identity(Wall::from_secs(1_700_000_100)).write(&path).unwrap();
        let access = Access::find(&global(|g| g.identity = Some(path))).unwrap();
        assert_eq!(access.check_expiry().unwrap_err().exit, Exit::Expired);
        assert!(access.admin().is_err());
    }
}
