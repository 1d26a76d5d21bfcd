//! The environment of a user's process: built from nothing, from the account and a short list of what
//! a client may set. Nothing of the agent's own environment reaches a user.

use crate::account::Account;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::Path;

/// Most variables that a client may set in one session.
pub const ENVIRONMENT_VARIABLES_MAX: usize = 64;

/// Longest value of a variable in bytes.
pub const ENVIRONMENT_VALUE_BYTES_MAX: usize = 4096;

/// Longest name of a variable in bytes.
const NAME_BYTES_MAX: usize = 64;

/// What a client may set: how text looks, and nothing that chooses what is executed.
const ACCEPTED: [&str; 5] = ["LANG", "LANGUAGE", "COLORTERM", "TERM", "TZ"];

/// Families of names that a client may set.
const ACCEPTED_PREFIXES: [&str; 1] = ["LC_"];

const PATH_OF_ROOT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PATH_OF_USERS: &str = "/usr/local/bin:/usr/bin:/bin";

/// Variables that a client asked for and that a session may have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(String, String)>", into = "Vec<(String, String)>")]
pub struct AcceptedEnvironment(Vec<(String, String)>);

/// Why a variable was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentRefusal {
    /// Clients may not set this name.
    #[error("a client may not set this variable")]
    Name,
    /// The value is too long or has control characters.
    #[error("the value is longer than {ENVIRONMENT_VALUE_BYTES_MAX} bytes or has control characters")]
    Value,
    /// There are too many.
    #[error("a session has {ENVIRONMENT_VARIABLES_MAX} variables of its client at most")]
    TooMany,
}

impl AcceptedEnvironment {
    /// Adds or replaces one variable, as an SSH `env` request asks.
    pub fn accept(&mut self, name: &str, value: &str) -> Result<(), EnvironmentRefusal> {
        if !is_accepted_name(name) {
            return Err(EnvironmentRefusal::Name);
        }
        if value.len() > ENVIRONMENT_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            return Err(EnvironmentRefusal::Value);
        }
        if name == "TZ" && names_a_file(value) {
            return Err(EnvironmentRefusal::Value);
        }
        if let Some((_, old)) = self.0.iter_mut().find(|(known, _)| known == name) {
            value.clone_into(old);
            return Ok(());
        }
        if self.0.len() >= ENVIRONMENT_VARIABLES_MAX {
            return Err(EnvironmentRefusal::TooMany);
        }
        self.0.push((name.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Names and values in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl TryFrom<Vec<(String, String)>> for AcceptedEnvironment {
    type Error = EnvironmentRefusal;

    fn try_from(pairs: Vec<(String, String)>) -> Result<Self, EnvironmentRefusal> {
        let mut accepted = Self::default();
        for (name, value) in pairs {
            accepted.accept(&name, &value)?;
        }
        Ok(accepted)
    }
}

impl From<AcceptedEnvironment> for Vec<(String, String)> {
    fn from(accepted: AcceptedEnvironment) -> Self {
        accepted.0
    }
}

fn is_accepted_name(name: &str) -> bool {
    let is_plain = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let is_listed = ACCEPTED.contains(&name)
        || ACCEPTED_PREFIXES.iter().any(|prefix| name.len() > prefix.len() && name.starts_with(prefix));
    name.len() <= NAME_BYTES_MAX && is_plain && is_listed
}

/// A time zone outside the system's own directory of zones.
fn names_a_file(zone: &str) -> bool {
    zone.contains("..") || zone.trim_start_matches(':').starts_with('/')
}

/// Both ends of the connection, for `SSH_CONNECTION` and `SSH_CLIENT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionAddresses {
    /// Where the user connected from.
    pub client: SocketAddr,
    /// Where the user's connection ended.
    pub server: SocketAddr,
}

/// Everything that shapes an environment beside the account.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EnvironmentSources<'a> {
    pub(crate) accepted: &'a AcceptedEnvironment,
    pub(crate) connection: Option<ConnectionAddresses>,
    pub(crate) agent_socket: Option<&'a Path>,
    /// The slave's path and the client's `TERM`.
    pub(crate) terminal: Option<(&'a str, &'a str)>,
}

/// The whole environment of a process, as `NAME=value`, each name once.
pub(crate) fn build(account: &Account, sources: EnvironmentSources<'_>) -> Vec<String> {
    let path = if account.is_root() { PATH_OF_ROOT } else { PATH_OF_USERS };
    let mut environment = vec![
        format!("USER={}", account.login()),
        format!("LOGNAME={}", account.login()),
        format!("HOME={}", account.home().display()),
        format!("PATH={path}"),
        format!("SHELL={}", account.shell().display()),
    ];
    if let Some(ConnectionAddresses { client, server }) = sources.connection {
        let (client_ip, server_ip) = (client.ip().to_canonical(), server.ip().to_canonical());
        environment.push(format!("SSH_CLIENT={client_ip} {} {}", client.port(), server.port()));
        environment.push(format!(
            "SSH_CONNECTION={client_ip} {} {server_ip} {}",
            client.port(),
            server.port()
        ));
    }
    if let Some((tty, term)) = sources.terminal {
        environment.push(format!("SSH_TTY={tty}"));
        if !term.is_empty() {
            environment.push(format!("TERM={term}"));
        }
    }
    if let Some(socket) = sources.agent_socket {
        environment.push(format!("SSH_AUTH_SOCK={}", socket.display()));
    }
    let has_terminal_type = sources.terminal.is_some_and(|(_, term)| !term.is_empty());
    for (name, value) in sources.accepted.iter() {
        if !(name == "TERM" && has_terminal_type) {
            environment.push(format!("{name}={value}"));
        }
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_text_is_accepted() {
        for name in ["LANG", "LC_ALL", "LC_CTYPE", "TERM", "COLORTERM", "TZ"] {
            check(name, "de_DE.UTF-8", Ok(()));
        }
    }

    #[test]
    fn h_names_that_choose_what_runs_are_refused() {
        for name in [
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "LD_AUDIT",
            "PATH",
            "SHELL",
            "HOME",
            "IFS",
            "BASH_ENV",
            "ENV",
            "PS4",
            "PROMPT_COMMAND",
            "PYTHONPATH",
            "PERL5LIB",
            "GIT_SSH_COMMAND",
            "SSH_AUTH_SOCK",
            "LC_",
            "LC_A=LD_PRELOAD",
            "LANG\0",
            "lang",
            "",
            "LC_\n",
            "BASH_FUNC_ls%%",
            "SSH_TTY",
            "GCONV_PATH",
            "LOCPATH",
            "TMPDIR",
            "MAIL",
        ] {
            check(name, "x", Err(EnvironmentRefusal::Name));
        }
    }

    #[test]
    fn h_values_that_break_lines_or_name_files_are_refused() {
        check("LANG", "a\nLD_PRELOAD=x", Err(EnvironmentRefusal::Value));
        check("LANG", "a\0b", Err(EnvironmentRefusal::Value));
        check("TERM", "\u{1b}[0m", Err(EnvironmentRefusal::Value));
        check("TZ", ":/etc/shadow", Err(EnvironmentRefusal::Value));
        check("TZ", "../../etc/shadow", Err(EnvironmentRefusal::Value));
        check("LANG", &"x".repeat(ENVIRONMENT_VALUE_BYTES_MAX + 1), Err(EnvironmentRefusal::Value));
    }

    #[test]
    fn f_the_number_of_variables_is_bounded() {
        let mut accepted = AcceptedEnvironment::default();
        for number in 0..ENVIRONMENT_VARIABLES_MAX {
            accepted.accept(&format!("LC_{number}"), "x").unwrap();
        }

        assert_eq!(accepted.accept("LANG", "x"), Err(EnvironmentRefusal::TooMany));
        assert_eq!(accepted.accept("LC_1", "y"), Ok(()));
    }

    fn check(name: &str, value: &str, expected: Result<(), EnvironmentRefusal>) {
        assert_eq!(AcceptedEnvironment::default().accept(name, value), expected, "{name:?}={value:?}");
    }
}
