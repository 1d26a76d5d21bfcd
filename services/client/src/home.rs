//! The client's home: `$WAY_HOME` or `~/.way`, with one profile for each proxy host.
//!
//! ```text
//! ~/.way/current                    name of the profile that is used
//! ~/.way/proxy.example.com/identity keys, certificates and authorities: an identity file
//! ~/.way/proxy.example.com/ssh/     key, key-cert.pub and known_hosts for OpenSSH (`way config`)
//! ```
//! Directories are 0700, files 0600, and each is written whole or not at all.

use crate::failure::{Exit, Failure};
use crate::identity_file::Identity;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use wayleave_keystore::{read_private, write_private};
use wayleave_vocab::HostPort;

const CURRENT: &str = "current";
const IDENTITY: &str = "identity";
/// Most profiles that are looked at.
const PROFILES_MAX: usize = 256;

/// The directory of profiles.
#[derive(Debug, Clone)]
pub(crate) struct Home(PathBuf);

/// One profile: the identity for one proxy host.
pub(crate) struct Profile {
    /// The proxy's host, which is also the name of its directory.
    pub(crate) name: String,
    /// The identity.
    pub(crate) identity: Identity,
    /// Where it is kept.
    pub(crate) directory: PathBuf,
}

impl Home {
    /// `$WAY_HOME`, or `.way` in the home directory.
    pub(crate) fn find() -> Result<Self, Failure> {
        if let Some(home) = std::env::var_os("WAY_HOME").filter(|home| !home.is_empty()) {
            return Ok(Self(PathBuf::from(home)));
        }
        std::env::home_dir().filter(|home| home.is_absolute()).map(|home| Self(home.join(".way"))).ok_or_else(
            || {
                Failure::failed("there is no home directory to keep the login in")
                    .hint("set WAY_HOME or HOME")
            },
        )
    }

    /// A home at a path.
    #[cfg(test)]
    pub(crate) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The profile of a proxy, or the current one.
    pub(crate) fn profile(&self, proxy: Option<&HostPort>) -> Result<Option<Profile>, Failure> {
        let name = match proxy {
            Some(proxy) => Some(name_of(proxy)),
            None => self.current()?,
        };
        match name {
            Some(name) => self.read(&name),
            None => Ok(None),
        }
    }

    /// Every profile, the current one first. One that cannot be read is left out.
    pub(crate) fn profiles(&self) -> Result<Vec<Profile>, Failure> {
        let current = self.current()?;
        let mut names: Vec<String> = match fs::read_dir(&self.0) {
            Ok(entries) => entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter(|name| is_name(name) && self.0.join(name).join(IDENTITY).is_file())
                .take(PROFILES_MAX)
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(self.unreadable(&self.0, &error)),
        };
        names.sort_by_key(|name| (Some(name) != current.as_ref(), name.clone()));
        Ok(names.iter().filter_map(|name| self.read(name).ok().flatten()).collect())
    }

    /// Keeps an identity and makes it the current one.
    pub(crate) fn save(&self, proxy: &HostPort, identity: &Identity) -> Result<PathBuf, Failure> {
        let name = name_of(proxy);
        let directory = self.0.join(&name);
        make_directory(&self.0)?;
        make_directory(&directory)?;
        identity.write(&directory.join(IDENTITY)).map_err(|e| Failure::failed(e.to_string()))?;
        self.set_current(&name)?;
        Ok(directory)
    }

    /// Forgets a profile; true when there was one.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, Failure> {
        let directory = self.0.join(name);
        if self.current()?.as_deref() == Some(name) {
            let _ = fs::remove_file(self.0.join(CURRENT));
        }
        match fs::remove_dir_all(&directory) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Failure::failed(format!("cannot remove {}: {error}", directory.display()))
                .hint("remove it by hand: it holds private keys")),
        }
    }

    /// The name of the current profile.
    pub(crate) fn current(&self) -> Result<Option<String>, Failure> {
        let path = self.0.join(CURRENT);
        match read_private(&path) {
            Ok(bytes) => Ok(String::from_utf8(bytes)
                .ok()
                .map(|text| text.trim().to_owned())
                .filter(|name| is_name(name))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.unreadable(&path, &error)),
        }
    }

    fn set_current(&self, name: &str) -> Result<(), Failure> {
        let path = self.0.join(CURRENT);
        write_private(&path, format!("{name}\n").as_bytes())
            .map_err(|e| Failure::failed(format!("cannot write {}: {e}", path.display())))
    }

    fn read(&self, name: &str) -> Result<Option<Profile>, Failure> {
        let directory = self.0.join(name);
        let path = directory.join(IDENTITY);
        if !path.exists() {
            return Ok(None);
        }
        let identity = Identity::read(&path)
            .map_err(|e| Failure::failed(e.to_string()).hint("log in again with `way login`"))?;
        Ok(Some(Profile { name: name.to_owned(), identity, directory }))
    }

    #[expect(clippy::unused_self, reason = "reads as a question to the home")]
    fn unreadable(&self, path: &Path, error: &io::Error) -> Failure {
        Failure::new(Exit::Failed, format!("cannot read {}: {error}", path.display()))
            .hint("check its owner and mode, or point WAY_HOME elsewhere")
    }
}

/// The name of a proxy's profile: its host in lower case, made safe as a file name.
pub(crate) fn name_of(proxy: &HostPort) -> String {
    proxy.host().to_ascii_lowercase().replace(':', "_")
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// Makes a directory of mode 0700, with its parents.
pub(crate) fn make_directory(path: &Path) -> Result<(), Failure> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
        .create(path)
        .map_err(|e| Failure::failed(format!("cannot make the directory {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity_file::tests::{END, identity};
    use std::os::unix::fs::PermissionsExt;

    fn proxy(text: &str) -> HostPort {
        text.parse().unwrap()
    }

    #[test]
    fn the_last_login_is_the_current_profile_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(&directory.path().join("way"));
        assert!(home.profile(None).unwrap().is_none());

        home.save(&proxy("one.example.com:443"), &identity(END)).unwrap();
        home.save(&proxy("[::1]:3080"), &identity(END)).unwrap();

        assert_eq!(home.profile(None).unwrap().unwrap().name, "__1");
        assert_eq!(home.profile(Some(&proxy("ONE.example.com:1"))).unwrap().unwrap().name, "one.example.com");
        let names: Vec<_> = home.profiles().unwrap().into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["__1", "one.example.com"]);
        assert!(home.remove("__1").unwrap());
        assert!(!home.remove("__1").unwrap());
        assert!(home.profile(None).unwrap().is_none());
    }

    #[test]
    fn m_nobody_else_can_read_a_profile() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(&directory.path().join("way"));
        let kept = home.save(&proxy("one:443"), &identity(END)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory.path().join("way")), 0o700);
        assert_eq!(mode(&kept), 0o700);
        assert_eq!(mode(&kept.join(IDENTITY)), 0o600);
    }

    #[test]
    fn h_a_pointer_cannot_lead_out_of_the_home() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        write_private(&directory.path().join(CURRENT), b"../../etc\n").unwrap();
        assert_eq!(home.current().unwrap(), None);
    }
}
