//! Programs that tests drive: real clients and servers. Missing ones are installed where that is allowed
//! (Debian, as root) and named otherwise.

use crate::process::succeeds;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Need {
    program: &'static str,
    package: &'static str,
}

const NEEDS: [Need; 16] = [
    Need { program: "ssh", package: "openssh-client" },
    Need { program: "ssh-keygen", package: "openssh-client" },
    Need { program: "sftp", package: "openssh-client" },
    Need { program: "sshd", package: "openssh-server" },
    Need { program: "rsync", package: "rsync" },
    Need { program: "ansible", package: "ansible-core" },
    Need { program: "tmux", package: "tmux" },
    Need { program: "sqlite3", package: "sqlite3" },
    Need { program: "initdb", package: "postgresql" },
    Need { program: "etcd", package: "etcd-server" },
    Need { program: "etcdctl", package: "etcd-client" },
    Need { program: "openssl", package: "openssl" },
    Need { program: "faketime", package: "faketime" },
    Need { program: "tinyproxy", package: "tinyproxy-bin" },
    Need { program: "ip", package: "iproute2" },
    Need { program: "haproxy", package: "haproxy" },
];

/// Where servers are, which the PATH of a plain user leaves out.
const SERVER_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Where PostgreSQL is, below its version.
const POSTGRESQL_VERSIONS: &str = "/usr/lib/postgresql";

/// How long to wait for another package manager, in seconds.
const LOCK_WAIT: &str = "DPkg::Lock::Timeout=300";

/// Sees to it that everything is there; gives what to tell a person when it cannot be.
pub(super) fn provide() -> Result<Option<String>> {
    let missing = missing();
    println!(
        "tests and benchmarks use {}: {} missing",
        programs(&NEEDS.iter().collect::<Vec<_>>()),
        missing.len()
    );
    if missing.is_empty() {
        return Ok(None);
    }
    let packages: BTreeSet<&str> = missing.iter().map(|need| need.package).collect();
    let by_hand = format!(
        "missing: {}\ninstall the Debian packages {} (or what provides these programs) and run this again",
        programs(&missing),
        packages.iter().copied().collect::<Vec<_>>().join(" ")
    );
    let may_install = rustix::process::geteuid().is_root() && find("apt-get");
    if !may_install || !install(&packages)? {
        return Ok(Some(by_hand));
    }
    Ok((!self::missing().is_empty()).then_some(by_hand))
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !find(need.program)).collect()
}

fn programs(needs: &[&Need]) -> String {
    needs.iter().map(|need| need.program).collect::<Vec<_>>().join(", ")
}

fn find(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let servers = SERVER_DIRECTORIES.iter().map(|directory| Path::new(directory).to_owned());
    let databases = std::fs::read_dir(POSTGRESQL_VERSIONS).into_iter().flatten().flatten();
    let databases = databases.map(|version| version.path().join("bin"));
    std::env::split_paths(&path)
        .chain(servers)
        .chain(databases)
        .any(|directory| directory.join(program).is_file())
}

/// True when the packages were installed. The lists are fetched when there are none, or when they are too
/// old to be of use.
fn install(packages: &BTreeSet<&str>) -> Result<bool> {
    let _no_daemons = NoDaemons::enforce(Path::new(POLICY))?;
    if !has_package_lists() && !succeeds(apt_get().arg("update"))? {
        return Ok(false);
    }
    let attempt = || succeeds(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages));
    Ok(attempt()? || succeeds(apt_get().arg("update"))? && attempt()?)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", LOCK_WAIT]).stdin(Stdio::null());
    command
}

fn has_package_lists() -> bool {
    let Ok(entries) = std::fs::read_dir("/var/lib/apt/lists") else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

/// What invoke-rc.d asks before a package may start its server.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Keeps packages from starting their servers, as long as it lives. A policy that is there already stays.
struct NoDaemons {
    ours: Option<PathBuf>,
}

impl NoDaemons {
    fn enforce(policy: &Path) -> Result<Self> {
        match OpenOptions::new().write(true).create_new(true).mode(0o755).open(policy) {
            Ok(mut file) => {
                let guard = Self { ours: Some(policy.to_owned()) };
                file.write_all(b"#!/bin/sh\nexit 101\n").context("cannot write policy-rc.d")?;
                Ok(guard)
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Self { ours: None }),
            Err(error) => Err(error).context("cannot create policy-rc.d"),
        }
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if let Some(policy) = &self.ours {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(policy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_on_the_path() {
        assert!(find("sh"));
        assert!(!find("no-such-program-anywhere"));
    }

    #[test]
    fn servers_are_kept_from_starting_only_while_packages_are_installed() {
        let policy = std::env::temp_dir().join(format!("policy-rc.d-{}", std::process::id()));
        let guard = NoDaemons::enforce(&policy).unwrap();
        let second = NoDaemons::enforce(&policy).unwrap();
        drop(second);
        assert!(std::fs::read_to_string(&policy).unwrap().contains("exit 101"));
        drop(guard);
        assert!(!policy.exists());
    }
}
