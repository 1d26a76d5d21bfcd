//! `wayleave doctor`: checks a configuration and this machine, and says what to mend.

use crate::cli::{DoctorArgs, write_out};
use crate::edge;
use crate::storage::Storage;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use wayleave_config::{Config, Upstream};
use wayleave_net::connect_tcp;
use wayleave_runtime::SystemClock;
use wayleave_store::Key;
use wayleave_vocab::HostPort;

/// What was found.
#[derive(Default)]
struct Report {
    text: String,
    problems: usize,
}

impl Report {
    fn good(&mut self, what: &str) {
        self.text.push_str(&format!("  ok       {what}\n"));
    }

    fn bad(&mut self, what: &str, mend: &str) {
        self.problems += 1;
        self.text.push_str(&format!("  PROBLEM  {what}\n           {mend}\n"));
    }
}

pub(crate) fn run(args: &DoctorArgs) -> ExitCode {
    let mut report = Report::default();
    match edge::read_config(&args.config) {
        Ok(config) => {
            report.good(&format!("{} can be read", args.config.display()));
            check(&config, &mut report);
        }
        Err(error) => {
            report.bad(&format!("{error:#}"), "mend the file; `wayleave configure` prints one that is right")
        }
    }
    let last = match report.problems {
        0 => "nothing to mend\n".to_owned(),
        1 => "1 problem\n".to_owned(),
        count => format!("{count} problems\n"),
    };
    let _ = write_out(&format!("{}{last}", report.text));
    if report.problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn check(config: &Config, report: &mut Report) {
    check_references(config, report);
    check_data_dir(&config.instance.data_dir, report);
    for (what, address) in listeners(config) {
        check_listener(what, address, report);
    }
    check_files(report);
    check_clock(report);
    check_upstream(config, report);
    check_backend(config, report);
    if config.ssh.is_some() && !nix::unistd::geteuid().is_root() {
        report.bad(
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
            Ok(what) => report.good(what),
            Err(error) => report.bad(&format!("{error:#}"), "mend the file or the key that points at it"),
        }
    }
}

fn check_data_dir(path: &Path, report: &mut Report) {
    match fs::metadata(path) {
        Err(_) => report.good(&format!("{} does not exist yet and will be made", path.display())),
        Ok(data) if !data.is_dir() => {
            report
                .bad(&format!("{} is no directory", path.display()), "set wayleave.data_dir to a directory");
        }
        Ok(data) if data.permissions().mode() & 0o077 != 0 => report.bad(
            &format!("{} is open to others (mode {:o})", path.display(), data.permissions().mode() & 0o777),
            &format!("chmod 700 {}", path.display()),
        ),
        Ok(_) => report.good(&format!("{} is private", path.display())),
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
    match TcpListener::bind(address) {
        Ok(_) => report.good(&format!("{what} {address} is free")),
        Err(error) => report.bad(
            &format!("{what} {address}: {error}"),
            "stop what listens there (perhaps a running wayleave) or configure another address",
        ),
    }
}

fn check_files(report: &mut Report) {
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft < 4096 => report.bad(
            &format!("only {soft} files may be open"),
            "raise it (LimitNOFILE= in the unit, or ulimit -n): each tunnel and session needs some",
        ),
        Ok((soft, _)) => report.good(&format!("{soft} files may be open")),
        Err(error) => {
            report.bad(&format!("the limit of open files cannot be read: {error}"), "check ulimit -n")
        }
    }
}

fn check_clock(report: &mut Report) {
    let built = option_env!("SOURCE_DATE_EPOCH").and_then(|s| s.parse::<u64>().ok()).unwrap_or(1_760_000_000);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|since| since.as_secs())
        .unwrap_or_default();
    if now < built {
        report.bad("the clock is older than this program", "set the clock: certificates depend on it");
    } else {
        report.good("the clock is plausible");
    }
}

fn check_upstream(config: &Config, report: &mut Report) {
    let addresses: &[HostPort] = match &config.instance.upstream {
        Upstream::AuthServers(addresses) => addresses,
        Upstream::ProxyServer(address) => std::slice::from_ref(address),
        Upstream::LocalAuth { .. } => return,
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    for address in addresses {
        match runtime.block_on(connect_tcp(address)) {
            Ok(_) => report.good(&format!("{address} answers")),
            Err(error) => report.bad(
                &format!("{:#}", anyhow::Error::new(error)),
                "check the name, the port and the firewall between here and there",
            ),
        }
    }
}

/// A backend on a server is opened and asked; one in a file may be in use, which is no problem.
fn check_backend(config: &Config, report: &mut Report) {
    if config.auth.is_none() {
        return;
    }
    let storage = match Storage::configured(&config.instance.storage) {
        Ok(storage) => storage,
        Err(error) => {
            report.bad(&format!("{error:#}"), "mend wayleave.storage, or the file that it points at");
            return;
        }
    };
    match &storage {
        Storage::Memory => report.good("the backend is memory: everything is lost when Auth stops"),
        Storage::Sqlite(_) => {}
        Storage::Postgresql(_) | Storage::Etcd(_) => {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return;
            };
            let opened = runtime.block_on(async {
                let backend = storage.open(Arc::new(SystemClock::new())).await?;
                backend.range(&Key::root(), None, 1).await?;
                backend.close().await;
                anyhow::Ok(())
            });
            match opened {
                Ok(()) => report.good(&format!("{} answers", storage.shown())),
                Err(error) => report.bad(
                    &format!("{error:#}"),
                    "check that the server runs, the address, the user and password, and the files of TLS",
                ),
            }
        }
    }
}
