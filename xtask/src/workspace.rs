//! The crates of this workspace as `cargo metadata` tells them.

use crate::process::{cargo, output_of};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The workspace without its third-party crates.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    #[serde(rename = "packages")]
    pub(crate) crates: Vec<Crate>,
    pub(crate) workspace_root: PathBuf,
    pub(crate) target_directory: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) license: Option<String>,
    pub(crate) targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `dev`, `build`, or nothing for a normal one.
    pub(crate) kind: Option<String>,
    /// Set for a crate of this workspace.
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) src_path: PathBuf,
}

impl Workspace {
    /// Asks cargo, without the network and without a lock file.
    pub(crate) fn load() -> Result<Self> {
        let json = output_of(cargo().args(["metadata", "--offline", "--no-deps", "--format-version", "1"]))?;
        serde_json::from_slice(&json).context("cargo metadata is not the JSON it used to be")
    }

    /// The path below the root, with `/` between its parts.
    pub(crate) fn relative(&self, path: &Path) -> String {
        let relative = path.strip_prefix(&self.workspace_root).unwrap_or(path);
        relative.to_string_lossy().replace('\\', "/")
    }

    /// The directory of a crate below the root, such as `core/vocab`.
    pub(crate) fn directory(&self, krate: &Crate) -> String {
        self.relative(krate.manifest_path.parent().unwrap_or(&krate.manifest_path))
    }
}

impl Dependency {
    pub(crate) fn is_dev(&self) -> bool {
        self.kind.as_deref() == Some("dev")
    }
}

/// The tier of a path or crate directory: its first part.
pub(crate) fn tier(relative: &str) -> &str {
    relative.split('/').next().unwrap_or(relative)
}
