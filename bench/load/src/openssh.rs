//! The peer: stock OpenSSH servers with keys and configuration of their own, a target and a jump host before it.

use crate::account::is_root;
use crate::daemon::{Daemon, LOOK, free_addresses, wait_for};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What every stock client is told, whoever the server is: one key exchange and one cipher, nothing kept open,
/// nothing asked.
pub(crate) const CLIENT_OPTIONS: &str = "\
Host *
    KexAlgorithms curve25519-sha256
    Ciphers aes128-gcm@openssh.com
    ControlMaster no
    ControlPath none
    BatchMode yes
    IdentityAgent none
    Compression no
    LogLevel ERROR
";

const SSHD: &str = "/usr/sbin/sshd";
/// sshd will not start without it.
const PRIVILEGE_SEPARATION_DIR: &str = "/run/sshd";

/// A target with sshd, and a jump host with another.
pub(crate) struct OpenSsh {
    pub(crate) target: Daemon,
    pub(crate) jump: Daemon,
    directory: PathBuf,
    config: PathBuf,
    login: String,
}

/// One connection to the jump host that several clients use.
pub(crate) struct SharedJump {
    config: PathBuf,
    login: String,
    _master: Daemon,
}

impl OpenSsh {
    /// # Errors
    /// When sshd is neither there nor can be installed, or does not start.
    pub(crate) fn start(directory: &Path, login: &str) -> Result<Self> {
        ensure_server()?;
        fs::create_dir_all(directory)?;
        let user_key = make_key(directory, "user")?;
        fs::copy(directory.join("user.pub"), directory.join("authorized_keys"))?;
        let [target_address, jump_address] = free_addresses()?;
        let target = start_server(directory, "target", target_address)?;
        let jump = start_server(directory, "jump", jump_address)?;
        let config = directory.join("ssh.config");
        let hosts = [("target", target_address), ("jump", jump_address)]
            .map(|(name, address)| {
                format!("Host {name}\n    HostName 127.0.0.1\n    Port {}\n", address.port())
            })
            .concat();
        let text = format!(
            "{CLIENT_OPTIONS}    IdentityFile {}\n    IdentitiesOnly yes\n    StrictHostKeyChecking yes\n    \
             GlobalKnownHostsFile /dev/null\n    UserKnownHostsFile {}\n{hosts}",
            user_key.display(),
            known_hosts(directory, &[("target", target_address), ("jump", jump_address)])?.display(),
        );
        fs::write(&config, text)?;
        Ok(Self { target, jump, directory: directory.to_owned(), config, login: login.to_owned() })
    }

    /// `ssh` straight to the target.
    pub(crate) fn direct(&self) -> Command {
        let mut command = self.client();
        command.arg(format!("{}@target", self.login));
        command
    }

    /// `ssh -J` by way of the jump host.
    pub(crate) fn jumped(&self) -> Command {
        jumped(&self.config, &self.login)
    }

    /// Opens a connection to the jump host for several clients.
    ///
    /// # Errors
    /// When it does not open.
    pub(crate) fn share_jump(&self) -> Result<SharedJump> {
        let config = self.directory.join("shared.config");
        let socket = self.directory.join("jump.socket");
        let rest = fs::read_to_string(&self.config)?;
        fs::write(&config, format!("Host jump\n    ControlPath {}\n{rest}", socket.display()))?;
        let mut command = client(&config);
        command.args(["-N", "-o", "ControlMaster=yes"]).arg(format!("{}@jump", self.login));
        let mut master =
            Daemon::start("the shared connection", &mut command, &self.directory.join("master.log"))?;
        wait_for("the shared connection to the jump host", || {
            master.check()?;
            Ok(socket.exists().then_some(()))
        })?;
        Ok(SharedJump { config, login: self.login.clone(), _master: master })
    }

    fn client(&self) -> Command {
        client(&self.config)
    }
}

impl SharedJump {
    /// `ssh -J` in the shared connection.
    pub(crate) fn jumped(&self) -> Command {
        jumped(&self.config, &self.login)
    }
}

fn client(config: &Path) -> Command {
    let mut command = Command::new("ssh");
    command.env_remove("SSH_AUTH_SOCK").arg("-F").arg(config);
    command
}

fn jumped(config: &Path, login: &str) -> Command {
    let mut command = client(config);
    command.args(["-J", &format!("{login}@jump"), &format!("{login}@target")]);
    command
}

fn start_server(directory: &Path, name: &str, address: SocketAddr) -> Result<Daemon> {
    let host_key = make_key(directory, name)?;
    let config = directory.join(format!("sshd-{name}.config"));
    // No PAM, as agents have none: sshd is spared that work too. The rest is what it does by itself.
    let text = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {key}\nPidFile none\nAuthorizedKeysFile {keys}\nStrictModes no\n\
         KexAlgorithms curve25519-sha256\nCiphers aes128-gcm@openssh.com\nUsePAM no\nPermitRootLogin yes\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nUseDNS no\nMaxStartups 1000\n\
         AllowTcpForwarding yes\nLogLevel ERROR\n",
        port = address.port(),
        key = host_key.display(),
        keys = directory.join("authorized_keys").display(),
    );
    fs::write(&config, text)?;
    let mut command = Command::new(SSHD);
    command.args(["-D", "-e", "-f"]).arg(&config);
    let mut daemon =
        Daemon::start(&format!("sshd ({name})"), &mut command, &directory.join(format!("{name}.log")))?;
    daemon.wait_listening(&[address], LOOK)?;
    Ok(daemon)
}

fn make_key(directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    let mut command = Command::new("ssh-keygen");
    let made = command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).stdin(Stdio::null()).status();
    ensure!(made.context("ssh-keygen")?.success(), "ssh-keygen failed");
    Ok(path)
}

fn known_hosts(directory: &Path, hosts: &[(&str, SocketAddr)]) -> Result<PathBuf> {
    let mut text = String::new();
    for (name, address) in hosts {
        let key = fs::read_to_string(directory.join(format!("{name}.pub")))?;
        text.push_str(&format!("[127.0.0.1]:{} {key}", address.port()));
    }
    let path = directory.join("known_hosts");
    fs::write(&path, text)?;
    Ok(path)
}

/// Installs sshd where that is possible, without letting the package start one.
fn ensure_server() -> Result<()> {
    if !Path::new(SSHD).exists() {
        ensure!(is_root()?, "{SSHD} is missing: install openssh-server");
        install().context("openssh-server is missing and cannot be installed")?;
    }
    if is_root()? {
        fs::create_dir_all(PRIVILEGE_SEPARATION_DIR)?;
    }
    Ok(())
}

fn install() -> Result<()> {
    const POLICY: &str = "/usr/sbin/policy-rc.d";
    let is_ours = !Path::new(POLICY).exists();
    if is_ours {
        use std::os::unix::fs::PermissionsExt;
        fs::write(POLICY, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
    }
    let arguments = ["install", "-y", "--no-install-recommends", "openssh-server", "openssh-client"];
    let installed = Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
    if is_ours {
        fs::remove_file(POLICY)?;
    }
    if !installed.context("apt-get")?.success() {
        bail!("apt-get install openssh-server failed");
    }
    Ok(())
}
