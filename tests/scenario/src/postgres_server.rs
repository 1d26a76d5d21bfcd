//! A real PostgreSQL, with its own data, on its own port, as a user of its own: it refuses to run as root.

use crate::port::free_port;
use crate::wait::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Where Debian keeps the servers, each below its version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// As whom root starts it; Debian's package makes this user.
const SYSTEM_USER: &str = "postgres";
const SUPERUSER: &str = "postgres";
const PASSWORD: &str = "not-a-secret-of-anybody";

/// A server, ended when it is dropped.
pub struct PostgresServer {
    directory: TempDir,
    programs: PathBuf,
    address: SocketAddr,
    settings: Vec<String>,
    disks: Vec<PathBuf>,
    child: Option<Child>,
}

impl PostgresServer {
    /// A new cluster of databases, running, with further settings such as `max_connections=20`.
    pub fn start(settings: &[&str]) -> Self {
        let mut server = Self::prepare(settings);
        server.start_again();
        server
    }

    /// The same, for clients with a certificate of `authority` only.
    pub fn start_with_tls(server: &(PathBuf, PathBuf), authority: &Path) -> Self {
        let mut made = Self::prepare(&[]);
        let files = [
            (&server.0, "ssl_cert_file"),
            (&server.1, "ssl_key_file"),
            (&authority.to_owned(), "ssl_ca_file"),
        ];
        for (from, setting) in files {
            let to = made.path(setting);
            std::fs::copy(from, &to).unwrap();
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
            give_to_server(&to);
            made.settings.push(format!("{setting}={}", to.display()));
        }
        made.settings.push("ssl=on".into());
        let rules = "hostssl all all all scram-sha-256 clientcert=verify-full\n";
        std::fs::write(made.path("data/pg_hba.conf"), rules).unwrap();
        made.start_again();
        made
    }

    fn prepare(settings: &[&str]) -> Self {
        let directory = TempDir::with_prefix("wayleave-postgresql-").unwrap();
        give_to_server(directory.path());
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let (programs, address, disks) = (programs(), free_port(), Vec::new());
        let server = Self { directory, programs, address, settings, disks, child: None };
        let password_file = server.path("password");
        std::fs::write(&password_file, PASSWORD).unwrap();
        give_to_server(&password_file);
        let mut init = server.command("initdb");
        init.args([
            "--no-sync",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "-U",
            SUPERUSER,
        ])
        .arg(format!("--pwfile={}", password_file.display()))
        .arg("-D")
        .arg(server.path("data"));
        let made = init.output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        server
    }

    /// A directory of the server on a disk of its own, such as `12m`; `None` where mounting is not allowed.
    pub fn mount_small_disk(&mut self, size: &str) -> Option<PathBuf> {
        let user = server_user()?;
        let path = self.path("small-disk");
        std::fs::create_dir(&path).unwrap();
        let options = format!("size={size},mode=700,uid={},gid={}", user.uid, user.gid);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path);
        assert!(mount.status().unwrap().success(), "root cannot mount");
        self.disks.push(path.clone());
        Some(path)
    }

    /// Starts it on the data that is there.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "PostgreSQL runs already");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.path("data")).arg("-k").arg(self.directory.path());
        let port = format!("port={}", self.address.port());
        // A crash of the machine is not what is tested here.
        let ours = ["listen_addresses=127.0.0.1", "fsync=off", &port];
        for setting in ours.into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        wait_until("PostgreSQL to answer", || {
            let mut asked = Command::new(self.programs.join("pg_isready"));
            let port = self.address.port().to_string();
            asked.args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success()
        });
    }

    /// Ends it as a crash does: nothing is written any more.
    pub fn crash(&mut self) {
        self.signal(Signal::SIGQUIT);
        self.child.take().unwrap().wait().unwrap();
    }

    /// Sends a signal to all of its processes, for example to make it stand still.
    pub fn signal_all(&self, signal: Signal) {
        let main = self.pid();
        for pid in crate::process_tree::descendants(main).into_iter().chain([main]) {
            // One of them may just have ended.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connection string of a database, with `parameters` (`options=…`) behind it.
    pub fn url(&self, database: &str, parameters: &str) -> String {
        let address = self.address;
        format!("postgresql://{SUPERUSER}:{PASSWORD}@{address}/{database}?sslmode=disable{parameters}")
    }

    /// Runs SQL in a database.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", SUPERUSER]);
        command.args(["-p", &self.address.port().to_string(), "-d", database, "-c", sql]);
        let done = command.env("PGPASSWORD", PASSWORD).stdin(Stdio::null()).output().unwrap();
        assert!(done.status.success(), "{sql}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.directory.path()).env("LC_ALL", "C.UTF-8");
        if let Some(user) = server_user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
            // It may stand still or have ended.
            let _ = kill(pid, Signal::SIGCONT);
            let _ = kill(pid, Signal::SIGQUIT);
            let _ = child.wait();
        }
        for disk in &self.disks {
            let _ = Command::new("umount").arg("-l").arg(disk).status();
        }
    }
}

fn give_to_server(path: &Path) {
    if let Some(user) = server_user() {
        nix::unistd::chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}

/// As whom the server runs; none when this process may not choose.
fn server_user() -> Option<User> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    Some(User::from_name(SYSTEM_USER).unwrap().expect("the package of the server makes its user"))
}

fn programs() -> PathBuf {
    let installed = std::fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let directories = installed.map(|entry| entry.path().join("bin"));
    let newest = directories.filter(|directory| directory.join("initdb").is_file()).max();
    newest.expect("PostgreSQL is installed (Debian package postgresql)")
}
