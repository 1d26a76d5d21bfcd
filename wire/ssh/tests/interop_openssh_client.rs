//! Our server against the stock `ssh` client: certificates on both sides, every cipher, bulk both
//! ways, rekeying under load.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/driver.rs"]
mod driver;
mod support;

use bytes::Bytes;
use driver::{App, drive};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use support::{credential, entropy, key, pattern};
use wayleave_ssh::{
    CertType, ChannelId, ChannelOpen, ChannelRequest, Connection, DataStream, Event, GlobalReply,
    GlobalRequest, KeyPair, OpenFailure, ServerConfig,
};
use wayleave_vocab::{Mono, Wall};

const MIB: usize = 1024 * 1024;

#[test]
fn exec_with_certificates_on_both_sides() {
    let bench = Bench::new();
    let output = bench.ssh(&[], "status 7");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let output = bench.ssh(&[], "greet");
    assert_eq!(output.stdout, b"hello on stdout\n", "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("hello on stderr"), "{output:?}");
}

#[test]
fn every_cipher_and_key_exchange() {
    let bench = Bench::new();
    for cipher in ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"] {
        for kex in ["curve25519-sha256", "curve25519-sha256@libssh.org"] {
            let option = format!("KexAlgorithms={kex}");
            let output = bench.ssh(&["-c", cipher, "-o", &option], "greet");
            assert_eq!(output.stdout, b"hello on stdout\n", "{cipher} {kex} {output:?}");
        }
    }
}

#[test]
fn bulk_in_both_directions_under_every_cipher() {
    let bench = Bench::new();
    for cipher in ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"] {
        bench.check_echo(&["-c", cipher], 64 * MIB);
    }
}

#[test]
fn rekey_under_load() {
    let bench = Bench::new();
    bench.check_echo(&["-o", "RekeyLimit=1M"], 16 * MIB);
}

#[test]
fn rekey_started_by_the_server() {
    let mut bench = Bench::new();
    bench.config.timing.rekey_bytes = MIB as u64;
    bench.check_echo(&[], 16 * MIB);
}

#[test]
fn d_wrong_certificates_are_refused() {
    let bench = Bench::new();
    for (name, user) in [("host type", "host-type"), ("other authority", "stranger")] {
        let output = bench.ssh_as(user, &[], "greet");
        assert_eq!(output.status.code(), Some(255), "{name}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("Permission denied (publickey)"), "{name}: {text}");
    }
}

#[test]
fn terminal_with_a_shell() {
    let bench = Bench::new();
    let output = bench.ssh(&["-tt"], "pty");
    assert!(String::from_utf8_lossy(&output.stdout).contains("pty="), "{output:?}");
}

#[test]
fn a_jump_is_a_direct_tcpip_channel() {
    let bench = Bench::new();
    let output = bench.pipe(&["-W", "target.test:22"], None, b"through the jump");
    assert_eq!(output.stdout, b"through the jump", "{output:?}");
}

#[test]
fn users_with_keys_of_other_kinds() {
    let bench = Bench::new();
    bench.write_secret("ca", &bench.user_authority.to_openssh("authority"));
    for (kind, bits) in [("ecdsa", "256"), ("ecdsa", "384"), ("rsa", "2048"), ("ed25519", "256")] {
        let name = format!("{kind}{bits}");
        let file = bench.directory.path().join(&name);
        run(Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-b", bits, "-f"]).arg(&file));
        let authority = bench.directory.path().join("ca");
        let sign = ["-q", "-I", "of ssh-keygen", "-n", &name, "-s"];
        run(Command::new("ssh-keygen").args(sign).arg(authority).arg(file.with_extension("pub")));
        let output = bench.ssh_as(&name, &[], "greet");
        assert_eq!(output.stdout, b"hello on stdout\n", "{name} {output:?}");
    }
}

#[test]
fn our_files_are_what_ssh_keygen_reads_and_writes() {
    let bench = Bench::new();
    let at = |name: &str| bench.directory.path().join(name);
    let listed = run(Command::new("ssh-keygen").args(["-L", "-f"]).arg(at("alice-cert.pub")));
    for part in ["ssh-ed25519-cert-v01@openssh.com user certificate", "\"test alice\"", "permit-pty"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    let public = run(Command::new("ssh-keygen").args(["-y", "-f"]).arg(at("alice")));
    assert_eq!(public.trim(), format!("{} test key", key(4).public_key()));
    let shown = run(Command::new("ssh-keygen").args(["-l", "-f"]).arg(at("alice.pub")));
    assert!(shown.contains(&key(4).public_key().fingerprint()), "{shown}");
    run(Command::new("ssh-keygen").args(["-q", "-N", "", "-t", "ed25519", "-f"]).arg(at("theirs")));
    let pair = KeyPair::from_openssh(&std::fs::read_to_string(at("theirs")).unwrap()).unwrap();
    let line = std::fs::read_to_string(at("theirs.pub")).unwrap();
    assert_eq!(wayleave_ssh::PublicKey::from_openssh(&line), Ok(pair.public_key()));
}

#[test]
fn ten_channels_of_one_master_beside_one_that_nobody_reads() {
    let bench = Bench::new();
    let (address, server) = bench.serve();
    let socket = bench.directory.path().join("master");
    let control = format!("ControlPath={}", socket.display());
    let shared = ["-o", control.as_str()];
    let mut master = bench.client("alice", address, &["-M", "-N", shared[0], shared[1]], None);
    let mut master = master.stdin(Stdio::null()).spawn().unwrap();
    let check = || {
        let mut check = bench.client("alice", address, &["-O", "check", shared[0], shared[1]], None);
        check.stdin(Stdio::null()).output().unwrap().status.success()
    };
    while !check() {
        assert!(master.try_wait().unwrap().is_none(), "the master ended");
    }
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let mut stalled = bench.client("alice", address, &shared, Some("stall"));
    let mut stalled = stalled.stdin(zero).spawn().unwrap();
    let echoes: Vec<_> = (0..10)
        .map(|index| {
            let mut ssh = bench.client("alice", address, &shared, Some("echo"));
            let mut child = ssh.stdin(Stdio::piped()).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let writer = std::thread::spawn(move || stdin.write_all(&pattern(index, 4 * MIB)).unwrap());
            (index, std::thread::spawn(move || child.wait_with_output().unwrap()), writer)
        })
        .collect();
    for (index, child, writer) in echoes {
        let output = child.join().unwrap();
        writer.join().unwrap();
        assert!(output.stdout == pattern(index, 4 * MIB), "channel {index}: {:?}", output.status);
    }
    assert!(stalled.try_wait().unwrap().is_none(), "the unread channel still waits");
    let mut exit = bench.client("alice", address, &["-O", "exit", shared[0], shared[1]], None);
    exit.stdin(Stdio::null()).output().unwrap();
    master.wait().unwrap();
    stalled.wait().unwrap();
    server.join().unwrap();
}

/// A server for one connection after the other, with a user and a host authority.
struct Bench {
    config: ServerConfig,
    user_authority: KeyPair,
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let user_authority = KeyPair::from_seed(&[1; 32]);
        let host_authority = KeyPair::from_seed(&[2; 32]);
        let directory = tempfile::tempdir().unwrap();
        let host = credential(3, &host_authority, CertType::Host, "node.test");
        for (user, kind, seed) in
            [("alice", CertType::User, 1), ("host-type", CertType::Host, 1), ("stranger", CertType::User, 7)]
        {
            let authority = KeyPair::from_seed(&[seed; 32]);
            let pair = key(4);
            let certificate = support::certify(&pair, &authority, kind, user);
            let file = directory.path().join(user);
            write_secret(&file, &pair.to_openssh("test key"));
            std::fs::write(file.with_extension("pub"), pair.public_key().to_openssh()).unwrap();
            let certificate_file = directory.path().join(format!("{user}-cert.pub"));
            std::fs::write(certificate_file, certificate.to_openssh()).unwrap();
        }
        let known = format!("@cert-authority node.test {}\n", host_authority.public_key());
        std::fs::write(directory.path().join("known_hosts"), known).unwrap();
        Self { config: ServerConfig::new(vec![host]), user_authority, directory }
    }

    fn write_secret(&self, name: &str, text: &str) {
        write_secret(&self.directory.path().join(name), text);
    }

    fn ssh(&self, options: &[&str], command: &str) -> Output {
        self.ssh_as("alice", options, command)
    }

    fn ssh_as(&self, user: &str, options: &[&str], command: &str) -> Output {
        let (address, server) = self.serve();
        let child = self.client(user, address, options, Some(command)).stdin(Stdio::null()).spawn();
        let output = child.expect("the stock ssh client is installed").wait_with_output().unwrap();
        server.join().unwrap();
        output
    }

    /// Sends a pattern through `ssh … echo` and expects it back.
    fn check_echo(&self, options: &[&str], bytes: usize) {
        let output = self.pipe(options, Some("echo"), &pattern(0, bytes));
        assert!(output.status.success(), "{options:?} {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout.len(), bytes, "{options:?}");
        assert!(output.stdout == pattern(0, bytes), "{options:?}: bytes differ");
    }

    /// Runs `ssh` with an input.
    fn pipe(&self, options: &[&str], command: Option<&str>, input: &[u8]) -> Output {
        let (address, server) = self.serve();
        let mut child: Child = self
            .client("alice", address, options, command)
            .stdin(Stdio::piped())
            .spawn()
            .expect("the stock ssh client is installed");
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(input).unwrap());
            child.wait_with_output().unwrap()
        });
        server.join().unwrap();
        output
    }

    fn client(&self, user: &str, address: SocketAddr, options: &[&str], command: Option<&str>) -> Command {
        let mut ssh = Command::new("ssh");
        let known = format!("UserKnownHostsFile={}", self.directory.path().join("known_hosts").display());
        ssh.args(["-F", "none", "-o", &known, "-o", "GlobalKnownHostsFile=/dev/null"])
            .args(["-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes"])
            .args(["-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlias=node.test", "-i"])
            .arg(self.directory.path().join(user))
            .args(["-p", &address.port().to_string()])
            .args(options)
            .arg(format!("{user}@127.0.0.1"))
            .args(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        ssh
    }

    /// Serves one connection.
    fn serve(&self) -> (SocketAddr, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let config = self.config.clone();
        let authority = self.user_authority.public_key();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut connection = Connection::server(&config, entropy(u64::from(address.port())), Mono::ZERO);
            let mut app = Server { authority, sessions: BTreeMap::new() };
            let _ = drive(&mut connection, &mut stream, &mut app);
        });
        (address, server)
    }
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?} {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn write_secret(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// What the test server does with a connection: a few built-in commands.
struct Server {
    authority: wayleave_ssh::PublicKey,
    sessions: BTreeMap<ChannelId, Session>,
}

#[derive(Default)]
struct Session {
    is_echo: bool,
    pty: Option<String>,
    waiting: std::collections::VecDeque<Bytes>,
    is_eof: bool,
    is_done: bool,
}

impl App for Server {
    fn on_event(&mut self, connection: &mut Connection, event: Event) {
        match event {
            Event::AuthAttempt(attempt) => {
                let now = Wall::from_secs(1_000_000);
                let authorities = [self.authority.clone()];
                let principal = Some(attempt.user.as_str());
                let verdict = attempt.certificate.verify(&authorities, CertType::User, principal, &[], now);
                match verdict {
                    Ok(_) => connection.accept_auth().unwrap(),
                    Err(_) => connection.reject_auth().unwrap(),
                }
            }
            Event::Open { channel, open: ChannelOpen::Session } => {
                self.sessions.insert(channel, Session::default());
                connection.accept_open(channel).unwrap();
            }
            Event::Open { channel, open: ChannelOpen::DirectTcpip { target, .. } } => {
                assert_eq!((target.host.as_str(), target.port), ("target.test", 22));
                self.sessions.insert(channel, Session { is_echo: true, ..Session::default() });
                connection.accept_open(channel).unwrap();
            }
            Event::Open { channel, .. } => {
                connection.reject_open(channel, OpenFailure::Prohibited, "not here").unwrap();
            }
            Event::Request { channel, request, reply } => {
                let is_success = self.on_request(connection, channel, request);
                if let Some(reply) = reply {
                    connection.respond(reply, is_success);
                }
            }
            Event::GlobalRequest { request, reply: Some(reply) } => {
                let is_known = matches!(request, GlobalRequest::TcpipForward { .. });
                let answer = if is_known { GlobalReply::Failure } else { GlobalReply::Success };
                connection.respond_global(reply, answer);
            }
            Event::Data { channel, data, .. } => {
                if let Some(session) = self.sessions.get_mut(&channel) {
                    session.waiting.push_back(data);
                }
            }
            Event::Eof { channel } => {
                if let Some(session) = self.sessions.get_mut(&channel) {
                    session.is_eof = true;
                }
            }
            Event::Closed { channel } => {
                self.sessions.remove(&channel);
            }
            _ => {}
        }
    }

    /// Echoes under back-pressure: the window is credited when the bytes were taken for sending.
    fn pump(&mut self, connection: &mut Connection) {
        for (channel, session) in &mut self.sessions {
            if !session.is_echo || session.is_done {
                continue;
            }
            while let Some(data) = session.waiting.front_mut() {
                let taken = connection.send(*channel, DataStream::Main, data).unwrap();
                connection.consumed(*channel, taken);
                if !data.is_empty() {
                    break;
                }
                session.waiting.pop_front();
            }
            if session.is_eof && session.waiting.is_empty() {
                session.is_done = true;
                end(connection, *channel, 0);
            }
        }
    }
}

impl Server {
    fn on_request(
        &mut self,
        connection: &mut Connection,
        channel: ChannelId,
        request: ChannelRequest,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(&channel) else { return false };
        match request {
            ChannelRequest::Pty { term, size, .. } => {
                session.pty = Some(format!("pty={term} {}x{}\r\n", size.columns, size.rows));
                true
            }
            ChannelRequest::Exec { command } => {
                session.run(connection, channel, &command);
                true
            }
            _ => false,
        }
    }
}

impl Session {
    fn run(&mut self, connection: &mut Connection, channel: ChannelId, command: &[u8]) {
        let mut say = |stream, text: &str| {
            connection.send(channel, stream, &mut Bytes::copy_from_slice(text.as_bytes())).unwrap();
        };
        match command {
            b"echo" => self.is_echo = true,
            b"stall" => {}
            b"greet" => {
                say(DataStream::Main, "hello on stdout\n");
                say(DataStream::Stderr, "hello on stderr\n");
                end(connection, channel, 0);
            }
            b"status 7" => end(connection, channel, 7),
            b"pty" => {
                say(DataStream::Main, self.pty.as_deref().unwrap_or("none"));
                end(connection, channel, 0);
            }
            _ => end(connection, channel, 127),
        }
    }
}

fn end(connection: &mut Connection, channel: ChannelId, status: u32) {
    connection.eof(channel);
    connection.request(channel, &ChannelRequest::ExitStatus { status }, false).unwrap();
    connection.close(channel);
}
