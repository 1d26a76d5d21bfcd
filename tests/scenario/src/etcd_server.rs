//! A real etcd, with its own data, on its own ports.

use crate::certificates::Certificates;
use crate::port::free_port;
use crate::wait::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// One member of a cluster of etcd.
struct Member {
    name: String,
    clients: SocketAddr,
    peers: SocketAddr,
    child: Option<Child>,
}

/// A cluster of etcd, ended when it is dropped.
pub struct EtcdServer {
    directory: TempDir,
    settings: Vec<String>,
    members: Vec<Member>,
    /// How clients speak to it.
    scheme: &'static str,
}

impl EtcdServer {
    /// A new cluster of so many members, running, with further arguments such as `--quota-backend-bytes=…`.
    pub fn start(members: usize, settings: &[&str]) -> Self {
        let mut server = Self::prepare(members, settings);
        (0..members).for_each(|number| server.spawn(number));
        (0..members).for_each(|number| server.wait_healthy(number));
        server
    }

    fn prepare(members: usize, settings: &[&str]) -> Self {
        // A crash of the machine is not what is tested here: memory serves as the disk.
        let memory = std::path::Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let directory = TempDir::with_prefix_in("wayleave-etcd-", place).unwrap();
        let member = |number| Member {
            name: format!("member-{number}"),
            clients: free_port(),
            peers: free_port(),
            child: None,
        };
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Self { directory, settings, members: (0..members).map(member).collect(), scheme: "http" }
    }

    /// One member that speaks TLS and asks for a certificate of the same authority.
    pub fn start_with_tls(certificates: &Certificates) -> Self {
        let file = |path: &std::path::Path| path.display().to_string();
        let settings = [
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", file(&certificates.authority)),
            format!("--cert-file={}", file(&certificates.server.0)),
            format!("--key-file={}", file(&certificates.server.1)),
        ];
        let mut server = Self::prepare(1, &settings.each_ref().map(String::as_str));
        server.scheme = "https";
        server.spawn(0);
        let address = server.members[0].clients;
        wait_until("etcd to listen", || TcpStream::connect(address).is_ok());
        server
    }

    /// Starts a member again on its data.
    pub fn start_again(&mut self, number: usize) {
        self.spawn(number);
        self.wait_healthy(number);
    }

    /// Ends a member without a word.
    pub fn crash(&mut self, number: usize) {
        let mut child = self.members[number].child.take().expect("the member runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Makes a member stand still, or go on.
    pub fn signal(&self, number: usize, signal: Signal) {
        let child = self.members[number].child.as_ref().expect("the member runs");
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }

    /// Which member leads.
    pub fn leader(&self) -> usize {
        let leads = |number: &usize| {
            let status = self.ctl(*number, &["endpoint", "status", "--write-out=fields"]);
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(&format!("\"{name}\"")))?;
                line.rsplit(' ').next().map(str::to_owned)
            };
            field("MemberID").is_some() && field("MemberID") == field("Leader")
        };
        (0..self.members.len()).find(leads).expect("a member leads")
    }

    /// Where clients reach the members.
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("{}://{}", self.scheme, member.clients)).collect()
    }

    /// Runs etcdctl against a member.
    pub fn ctl(&self, number: usize, arguments: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints=http://{}", self.members[number].clients));
        let done = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        assert!(done.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    fn spawn(&mut self, number: usize) {
        let cluster: Vec<_> =
            self.members.iter().map(|member| format!("{}=http://{}", member.name, member.peers)).collect();
        let log_path: PathBuf = self.directory.path().join(format!("log-{number}"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log_path).unwrap();
        let member = &mut self.members[number];
        assert!(member.child.is_none(), "{} runs already", member.name);
        let mut command = Command::new("etcd");
        command
            .arg(format!("--name={}", member.name))
            .arg(format!("--data-dir={}", self.directory.path().join(&member.name).display()))
            .arg(format!("--listen-client-urls={}://{}", self.scheme, member.clients))
            .arg(format!("--advertise-client-urls={}://{}", self.scheme, member.clients))
            .arg(format!("--listen-peer-urls=http://{}", member.peers))
            .arg(format!("--initial-advertise-peer-urls=http://{}", member.peers))
            .arg(format!("--initial-cluster={}", cluster.join(",")))
            .args(["--initial-cluster-state=new", "--logger=zap", "--log-level=warn"])
            .args(&self.settings);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        member.child = Some(command.spawn().unwrap());
    }

    fn wait_healthy(&self, number: usize) {
        let address = self.members[number].clients;
        wait_until("etcd to answer", || {
            if TcpStream::connect(address).is_err() {
                return false;
            }
            let mut command = Command::new("etcdctl");
            command.env("ETCDCTL_API", "3").arg(format!("--endpoints=http://{address}"));
            command.args(["endpoint", "health"]).output().unwrap().status.success()
        });
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
