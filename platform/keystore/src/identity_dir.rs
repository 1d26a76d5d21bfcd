//! What a process keeps of its identity in `data_dir`: one private file for each thing, mode 0600.

use crate::private_file::{read_private, write_private};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
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
    /// Opens or makes the directory.
    ///
    /// # Errors
    /// [`IdentityDirError::Create`].
    pub fn open(path: &Path) -> Result<Self, IdentityDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| IdentityDirError::Create { path: path.to_owned(), source })?;
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
