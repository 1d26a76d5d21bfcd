//! Whose sessions are measured: an account of their own with a plain shell, so that nobody's profile is measured too.

use anyhow::{Context, Result, ensure};
use std::process::{Command, Stdio};

const NAME: &str = "wayleave-bench";
const SHELL: &str = "/bin/sh";
/// useradd: the name is taken.
const EXISTS: i32 = 9;

/// The account that sessions run as, removed again if it was made for that.
pub(crate) struct Account {
    pub(crate) name: String,
    shell: String,
    is_ours: bool,
}

impl Account {
    /// Makes one if we are root, else gives our own.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn get() -> Result<Self> {
        if !is_root()? {
            let name = said_by(Command::new("id").arg("-un"))?;
            let shell = std::env::var("SHELL").unwrap_or_default();
            return Ok(Self { name, shell, is_ours: false });
        }
        // `*` is no password, but no lock either: sshd lets nobody into a locked account.
        let arguments =
            ["--system", "--no-create-home", "--home-dir", "/", "--shell", SHELL, "--password", "*", NAME];
        let made = Command::new("/usr/sbin/useradd")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("useradd")?;
        let errors = String::from_utf8_lossy(&made.stderr);
        ensure!(made.status.success() || made.status.code() == Some(EXISTS), "useradd: {}", errors.trim());
        Ok(Self { name: NAME.to_owned(), shell: SHELL.to_owned(), is_ours: true })
    }

    /// For those who read the results.
    pub(crate) fn note(&self) -> String {
        let profile = if self.is_ours { "" } else { " with its own profile" };
        format!(
            "Every session, ours and theirs, runs as the same account with the shell {}{profile}.",
            self.shell
        )
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = Command::new("/usr/sbin/userdel")
                .arg(NAME)
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// # Errors
/// When `id` cannot be run.
pub(crate) fn is_root() -> Result<bool> {
    Ok(said_by(Command::new("id").arg("-u"))? == "0")
}

fn said_by(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
