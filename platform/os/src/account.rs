//! Accounts of the operating system: who a login is, as the name service (passwd, LDAP, ...) says.

use nix::unistd::{Gid, Uid, User, getgrouplist};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use wayleave_vocab::Login;

/// The shell of an account that names none.
const DEFAULT_SHELL: &str = "/bin/sh";

/// An account that this process may run commands as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    login: Login,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: PathBuf,
    shell: PathBuf,
}

/// Why a login cannot be used on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// The machine has no such account.
    #[error("this machine has no login {login}")]
    NoSuchLogin {
        /// What was asked for.
        login: Login,
    },
    /// The agent is not root, so it can only be itself.
    #[error("this agent does not run as root, so it serves only its own login (uid {own_uid}), not {login}")]
    NotOwnLogin {
        /// What was asked for.
        login: Login,
        /// The user that the agent runs as.
        own_uid: u32,
    },
    /// The account's home or shell is no UTF-8 text.
    #[error("the account {login} has a home or shell that is not UTF-8")]
    Unusable {
        /// What was asked for.
        login: Login,
    },
    /// The name service failed.
    #[error("the name service could not look up {login}: {reason}")]
    NameService {
        /// What was asked for.
        login: Login,
        /// The system's reason.
        reason: String,
    },
}

impl Account {
    /// Looks up `login` without holding up the caller's thread: name services may ask the network.
    pub async fn lookup(login: &Login) -> Result<Self, AccountError> {
        let wanted = login.clone();
        tokio::task::spawn_blocking(move || Self::lookup_blocking(&wanted)).await.unwrap_or_else(|stopped| {
            Err(AccountError::NameService { login: login.clone(), reason: stopped.to_string() })
        })
    }

    /// Looks up `login`; may block as long as the name service does.
    ///
    /// When this process is not root only its own user is answered, others are
    /// [`AccountError::NotOwnLogin`].
    pub fn lookup_blocking(login: &Login) -> Result<Self, AccountError> {
        let name_service =
            |errno: nix::Error| AccountError::NameService { login: login.clone(), reason: errno.to_string() };
        let no_such_login = || AccountError::NoSuchLogin { login: login.clone() };

        let user = User::from_name(login.as_str()).map_err(name_service)?.ok_or_else(no_such_login)?;
        let own = Uid::effective();
        if !own.is_root() && user.uid != own {
            return Err(AccountError::NotOwnLogin { login: login.clone(), own_uid: own.as_raw() });
        }
        let c_name = CString::new(login.as_str()).map_err(|_| no_such_login())?;
        let groups = getgrouplist(&c_name, user.gid).map_err(name_service)?;
        let shell = if user.shell.as_os_str().is_empty() { PathBuf::from(DEFAULT_SHELL) } else { user.shell };
        if shell.to_str().is_none() || user.dir.to_str().is_none() {
            return Err(AccountError::Unusable { login: login.clone() });
        }
        Ok(Self {
            login: login.clone(),
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
            home: user.dir,
            shell,
        })
    }

    /// The same account with another shell.
    pub fn with_shell(self, shell: PathBuf) -> Self {
        Self { shell, ..self }
    }

    /// The same account with another home directory.
    pub fn with_home(self, home: PathBuf) -> Self {
        Self { home, ..self }
    }

    /// Its name.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// Its numeric user id.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its primary group.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// All its groups, the primary one among them.
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// Its home directory, which need not exist.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Its login shell, which need not exist.
    pub fn shell(&self) -> &Path {
        &self.shell
    }

    /// Whether it is the superuser.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_login() -> Login {
        let user = User::from_uid(Uid::effective()).unwrap().unwrap();
        Login::parse(user.name).unwrap()
    }

    #[test]
    fn the_own_login_is_found() {
        let account = Account::lookup_blocking(&own_login()).unwrap();

        assert_eq!(account.uid(), Uid::effective().as_raw());
        assert!(account.groups().contains(&account.gid()));
        assert!(account.home().is_absolute());
    }

    #[test]
    fn h_without_root_only_the_own_login_is_answered() {
        let root = Login::parse("root").unwrap();

        let answered = Account::lookup_blocking(&root);

        let own_uid = Uid::effective().as_raw();
        assert_eq!(
            answered.err(),
            (own_uid != 0).then_some(AccountError::NotOwnLogin { login: root, own_uid })
        );
    }

    #[test]
    fn an_unknown_login_is_told_apart() {
        let login = Login::parse("no-such-login-here").unwrap();

        let refused = Account::lookup_blocking(&login);

        assert_eq!(refused, Err(AccountError::NoSuchLogin { login }));
    }
}
