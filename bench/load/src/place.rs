//! What runs during several rows: started for the first that wants it, ended with the program.

use crate::account::Account;
use crate::cluster::{Peered, Site};
use crate::openssh::OpenSsh;
use crate::options::Options;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub(crate) struct Place<'a> {
    pub(crate) options: &'a Options,
    field: Option<Field>,
    // Behind the processes that run as it.
    pub(crate) account: Account,
    directories: usize,
    // Last, so that what runs in it is gone before.
    directory: tempfile::TempDir,
}

/// Wayleave and its peer, side by side.
pub(crate) struct Field {
    pub(crate) peered: Peered,
    pub(crate) openssh: OpenSsh,
}

impl<'a> Place<'a> {
    /// # Errors
    /// When there is no temporary directory.
    pub(crate) fn new(options: &'a Options) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("wayleave-bench-").tempdir().context("a temporary directory")?;
        // The account may pass, to its keys, but not look around.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711))?;
        Ok(Self { options, account: Account::get()?, field: None, directories: 0, directory })
    }

    /// Wayleave's processes beside sshd's.
    ///
    /// # Errors
    /// When one of them does not start.
    pub(crate) fn field(&mut self) -> Result<&Field> {
        if self.field.is_none() {
            eprintln!("  starting Auth, two peered proxies and an agent; two sshd");
            let peered = Peered::start(self.site()?)?;
            let openssh = OpenSsh::start(&self.fresh("openssh"), &self.account.name)?;
            self.field = Some(Field { peered, openssh });
        }
        self.field.as_ref().context("they were started just now")
    }

    /// Ends what [`Place::field`] started, so that it does not stand beside other measurements.
    pub(crate) fn clear(&mut self) {
        self.field = None;
    }

    /// Where something else may write.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Leaves everything that was written where it is.
    pub(crate) fn keep(&mut self) -> &Path {
        self.directory.disable_cleanup(true);
        self.directory.path()
    }

    /// A fresh directory for a cluster.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn site(&mut self) -> Result<Site> {
        let directory = self.fresh("site");
        Site::new(directory, &self.options.bin_dir, &self.account.name)
    }

    /// Where nothing is yet.
    fn fresh(&mut self, name: &str) -> PathBuf {
        self.directories += 1;
        self.path(&format!("{name}-{}", self.directories))
    }
}
