//! This machine: the data directory, ports, limits, disk, and the files that the configuration points at.

use super::report::Report;
use crate::edge;
use nix::sys::statvfs::statvfs;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use wayleave_config::Config;

/// Open files below this are too few for any service.
const FILES_MIN: u64 = 4096;
/// Less room than this on the disk of the data directory is a problem.
const DISK_BYTES_MIN: u64 = 1024 * 1024 * 1024;

pub(super) fn check(config: &Config, report: &mut Report) {
    check_references(config, report);
    check_data_dir(&config.instance.data_dir, report);
    for (what, address) in listeners(config) {
        check_listener(what, address, report);
    }
    check_files(config, report);
    check_clock(report);
    check_disk(&config.instance.data_dir, report);
    if config.ssh.is_some() && !nix::unistd::geteuid().is_root() {
        report.bad(
            "root",
            "this agent does not run as root",
            "it can only give sessions of its own user; run it as root to serve other logins",
        );
    }
}

/// Files that the configuration points at.
fn check_references(config: &Config, report: &mut Report) {
    let checks = [
        edge::node_name(&config.instance).map(|_| "the node's name is usable"),
        edge::join_token(&config.instance).map(|_| "the join token can be read"),
        edge::pins(&config.instance).map(|_| "the CA pins can be read"),
        config
            .auth
            .as_ref()
            .map_or(Ok(()), |auth| edge::static_tokens(&auth.static_tokens).map(|_| ()))
            .map(|()| "static tokens can be read"),
        config
            .proxy
            .as_ref()
            .map_or(Ok(()), |proxy| edge::web_files(proxy).map(|_| ()))
            .map(|()| "web certificates can be used"),
    ];
    for check in checks {
        match check {
            Ok(what) => report.good("files", what),
            Err(error) => {
                report.bad("files", &format!("{error:#}"), "mend the file or the key that points at it");
            }
        }
    }
}

fn check_data_dir(path: &Path, report: &mut Report) {
    let name = path.display();
    match fs::metadata(path) {
        Err(_) => report.good("data_dir", &format!("{name} does not exist yet and will be made")),
        Ok(data) if !data.is_dir() => {
            report.bad(
                "data_dir",
                &format!("{name} is no directory"),
                "set wayleave.data_dir to a directory",
            );
        }
        Ok(data) if data.permissions().mode() & 0o077 != 0 => report.bad(
            "data_dir",
            &format!("{name} is open to others (mode {:o})", data.permissions().mode() & 0o777),
            &format!("chmod 700 {name}"),
        ),
        Ok(_) => report.good("data_dir", &format!("{name} is private")),
    }
}

fn listeners(config: &Config) -> Vec<(&'static str, SocketAddr)> {
    let mut all = Vec::new();
    all.extend(config.instance.diag_addr.map(|address| ("wayleave.diag_addr", address)));
    if let Some(auth) = &config.auth {
        all.push(("auth_service.listen_addr", auth.listen_addr));
    }
    if let Some(proxy) = &config.proxy {
        all.push(("proxy_service.web_listen_addr", proxy.web_listen_addr));
        all.push(("proxy_service.peer_listen_addr", proxy.peer.listen_addr));
        all.extend(proxy.ssh.as_ref().map(|ssh| ("proxy_service.listen_addr", ssh.listen_addr)));
    }
    all
}

fn check_listener(what: &str, address: SocketAddr, report: &mut Report) {
    let mend = "stop what listens there or configure another address";
    match TcpListener::bind(address) {
        Ok(_) => report.good("ports", &format!("{what} {address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => match running_daemon() {
            Some(pid) => {
                report.good(
                    "ports",
                    &format!("{what} {address} is in use; a wayleave runs here (process {pid})"),
                );
            }
            None => report.bad("ports", &format!("{what} {address}: {error}"), mend),
        },
        Err(error) => report.bad("ports", &format!("{what} {address}: {error}"), mend),
    }
}

/// A `wayleave start` on this machine.
fn running_daemon() -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?;
    processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find(|pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default();
        program.ends_with(b"wayleave") && words.next() == Some(b"start")
    })
}

fn check_files(config: &Config, report: &mut Report) {
    let connections = u64::from(config.instance.connection_limits.max_connections.get());
    let is_proxy = config.proxy.is_some();
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft < FILES_MIN => report.bad(
            "limits",
            &format!("only {soft} files may be open"),
            "raise it (LimitNOFILE= in the unit, or ulimit -n): each tunnel and session needs some",
        ),
        Ok((soft, _)) if is_proxy && soft < connections => report.note(
            "limits",
            &format!(
                "{soft} files may be open from here, and connection_limits.max_connections is {connections}"
            ),
            "the limit of the unit counts for the service (LimitNOFILE=): it should be above max_connections",
        ),
        Ok((soft, _)) => report.good("limits", &format!("{soft} files may be open")),
        Err(error) => {
            report.bad(
                "limits",
                &format!("the limit of open files cannot be read: {error}"),
                "check ulimit -n",
            );
        }
    }
}

fn check_disk(data_dir: &Path, report: &mut Report) {
    let existing = data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let data = match statvfs(existing) {
        Ok(data) => data,
        Err(error) => {
            let text = format!("the disk of {} cannot be looked at: {error}", existing.display());
            return report.bad("disk", &text, "check that the disk is mounted");
        }
    };
    let free = data.blocks_available().saturating_mul(data.fragment_size());
    let mebibytes = free / (1024 * 1024);
    let place = existing.display();
    if free < DISK_BYTES_MIN {
        report.bad(
            "disk",
            &format!("only {mebibytes} MiB are free on the disk of {place}"),
            "make room: without it Auth takes no change, and agents let nobody in whose session they cannot note",
        );
    } else if data.files() > 0 && data.files_available() == 0 {
        report.bad("disk", &format!("the disk of {place} takes no more files"), "remove files from it");
    } else {
        report.good("disk", &format!("{mebibytes} MiB are free on the disk of {place}"));
    }
}

fn check_clock(report: &mut Report) {
    let built = option_env!("SOURCE_DATE_EPOCH").and_then(|s| s.parse::<u64>().ok()).unwrap_or(1_760_000_000);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|since| since.as_secs())
        .unwrap_or_default();
    if now < built {
        let mend = "set the clock: certificates depend on it";
        report.bad("clock", "the clock is older than this program", mend);
    } else {
        report.good("clock", "the clock is plausible");
    }
}
