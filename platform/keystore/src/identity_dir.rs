//! What a process keeps of its identity in `data_dir`: one private file for each thing, mode 0600.

use crate::private_file::{read_private, write_private};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A directory (mode 0700) of private JSON files.
#[derive(Debug, Clone)]
pub struct IdentityDir(PathBuf);

/// An identity that cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityDirError {
    /// The directory cannot be made.
    #[error("cannot create the directory {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else could put files there, or look at them.
    #[error("{path} {problem}: its keys could be somebody else's. {advice}")]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what was written.
    #[error(
        "{path} is damaged ({problem}): restore it, or delete the data directory and join again with a new token"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl IdentityDir {
    /// Opens or makes the directory. One that is there must belong to the user whom this process runs as, and be
    /// closed to everybody else: whoever can put files there decides who this process is.
    ///
    /// # Errors
    /// [`IdentityDirError::Create`] or [`IdentityDirError::NotPrivate`].
    pub fn open(path: &Path) -> Result<Self, IdentityDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| IdentityDirError::Create { path: path.to_owned(), source })?;
        check_private(path)?;
        Ok(Self(path.to_owned()))
    }

    /// Where a file of this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Reads one file; `None` when there is none.
    ///
    /// # Errors
    /// [`IdentityDirError::Read`] or [`IdentityDirError::Damaged`].
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, IdentityDirError> {
        let path = self.path(name);
        let bytes = match read_private(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityDirError::Read { path, source }),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| IdentityDirError::Damaged { path, problem: e.to_string() })
    }

    /// Writes one file whole.
    ///
    /// # Errors
    /// [`IdentityDirError::Write`].
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), IdentityDirError> {
        let path = self.path(name);
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|e| IdentityDirError::Damaged { path: path.clone(), problem: e.to_string() })?;
        write_private(&path, &bytes).map_err(|source| IdentityDirError::Write { path, source })
    }
}

fn check_private(path: &Path) -> Result<(), IdentityDirError> {
    let found = std::fs::symlink_metadata(path)
        .map_err(|source| IdentityDirError::Create { path: path.to_owned(), source })?;
    let refuse = |problem: String, advice: String| {
        Err(IdentityDirError::NotPrivate { path: path.to_owned(), problem, advice })
    };
    let (own, owner, mode) = (rustix::process::geteuid().as_raw(), found.uid(), found.mode() & 0o7777);
    if !found.is_dir() {
        return refuse("is a link".to_owned(), "Put the directory itself there".to_owned());
    }
    if owner != own {
        let advice = "Start this as its owner, or give it back with chown";
        return refuse(
            format!("belongs to the user with the id {owner}, and this runs as {own}"),
            advice.to_owned(),
        );
    }
    if mode & 0o077 != 0 {
        let advice = format!("Look who could have changed it, then chmod 700 {}", path.display());
        return refuse(format!("is open to others (mode {mode:o})"), advice);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn problem(path: &Path) -> String {
        match IdentityDir::open(path) {
            Err(IdentityDirError::NotPrivate { problem, .. }) => problem,
            opened => format!("{opened:?}"),
        }
    }

    #[test]
    fn h_a_directory_that_others_can_enter_holds_no_identity() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("identity");
        let made = IdentityDir::open(&path).unwrap();
        made.write("x", &1).unwrap();
        for mode in [0o777, 0o750, 0o701, 0o1777] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(problem(&path), format!("is open to others (mode {mode:o})"));
        }
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        assert_eq!(IdentityDir::open(&path).unwrap().read("x").unwrap(), Some(1));
    }

    #[test]
    fn h_a_link_or_somebody_elses_directory_holds_no_identity() {
        let parent = tempfile::tempdir().unwrap();
        let (path, link) = (parent.path().join("identity"), parent.path().join("link"));
        let _made = IdentityDir::open(&path).unwrap();
        symlink(&path, &link).unwrap();
        assert_eq!(problem(&link), "is a link");
        // Only root can give it away; who is not root cannot be deceived by an owner that is.
        let other = if chown(&path, Some(65534), None).is_ok() { path } else { PathBuf::from("/") };
        assert!(problem(&other).starts_with("belongs to the user with the id "), "{}", problem(&other));
    }
}
