//! The peer for plain TCP: rathole from the Rust package registry, server and client, TLS between them.

use crate::account::is_root;
use crate::daemon::{Daemon, LOOK, free_addresses};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(crate) const VERSION: &str = "0.5.0";
/// What its build needs beside a Rust toolchain.
const PACKAGES: [&str; 3] = ["libssl-dev", "pkg-config", "openssl"];
const PASSWORD: &str = "bench";

pub(crate) struct Rathole {
    pub(crate) client: Daemon,
    pub(crate) server: Daemon,
    /// The local port of the server that leads to the target.
    pub(crate) entry: SocketAddr,
}

impl Rathole {
    /// Starts both ends in a directory of their own.
    ///
    /// # Errors
    /// When it is neither there nor can be installed, or does not start.
    pub(crate) fn start(directory: &Path, bin_dir: &Path, target: SocketAddr) -> Result<Self> {
        let program = installed(bin_dir)?;
        fs::create_dir_all(directory)?;
        let (identity, certificate) = make_identity(directory)?;
        let [server_address, entry] = free_addresses()?;
        let server_config = format!(
            "[server]\nbind_addr = \"{server_address}\"\ndefault_token = \"bench\"\n[server.transport]\ntype = \"tls\"\n\
             [server.transport.tls]\npkcs12 = \"{}\"\npkcs12_password = \"{PASSWORD}\"\n[server.services.load]\n\
             bind_addr = \"{entry}\"\n",
            identity.display()
        );
        let client_config = format!(
            "[client]\nremote_addr = \"{server_address}\"\ndefault_token = \"bench\"\n[client.transport]\ntype = \"tls\"\n\
             [client.transport.tls]\ntrusted_root = \"{}\"\nhostname = \"localhost\"\n[client.services.load]\n\
             local_addr = \"{target}\"\n",
            certificate.display()
        );
        let start = |role: &str, config: String| -> Result<Daemon> {
            let path = directory.join(format!("{role}.toml"));
            fs::write(&path, config)?;
            let mut command = Command::new(&program);
            command.arg(format!("--{role}")).arg(&path).env("RUST_LOG", "warn");
            Daemon::start(&format!("rathole {role}"), &mut command, &directory.join(format!("{role}.log")))
        };
        let mut server = start("server", server_config)?;
        server.wait_listening(&[server_address], LOOK)?;
        let client = start("client", client_config)?;
        server.wait_listening(&[entry], LOOK)?;
        Ok(Self { client, server, entry })
    }
}

/// The program; it is built beside the other build output when it is not there yet.
fn installed(bin_dir: &Path) -> Result<PathBuf> {
    let root = bin_dir.parent().context("the binaries are in no directory")?.join("bench-peers");
    let program = root.join("bin/rathole");
    if program.is_file() {
        return Ok(program);
    }
    eprintln!("  installing rathole {VERSION}");
    if is_root()? {
        let mut command = Command::new("apt-get");
        command.args(["install", "-y", "--no-install-recommends"]).args(PACKAGES);
        command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        ensure!(command.status().context("apt-get")?.success(), "apt-get install failed");
    }
    // Not by its lock file, whose `time` does not build with a toolchain of today.
    let mut command = Command::new("cargo");
    command.args(["install", "rathole", "--version", VERSION, "--no-default-features"]);
    command.args(["--features", "server,client,tls", "--root"]).arg(&root);
    if !command.status().context("cargo install")?.success() {
        bail!("rathole cannot be installed; its build needs {}", PACKAGES.join(", "));
    }
    Ok(program)
}

/// A key with a certificate for localhost: for the server, and for the client to believe.
fn make_identity(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let [key, certificate, identity] =
        ["key.pem", "certificate.pem", "identity.pfx"].map(|name| directory.join(name));
    let mut make = Command::new("openssl");
    make.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]);
    make.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
    make.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    let mut pack = Command::new("openssl");
    pack.args(["pkcs12", "-export", "-passout", &format!("pass:{PASSWORD}"), "-inkey"]).arg(&key);
    pack.arg("-in").arg(&certificate).arg("-out").arg(&identity);
    for command in [&mut make, &mut pack] {
        let output = command.stdin(Stdio::null()).output().context("openssl")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok((identity, certificate))
}
