//! Our client against the stock `sshd`, which runs once per connection on a socket pair (`sshd -i`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/driver.rs"]
mod driver;
mod support;

use bytes::{Bytes, BytesMut};
use driver::{App, drive};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use support::{certify, credential, entropy, key, pattern};
use wayleave_ssh::{
    CertType, ChannelId, ChannelOpen, ChannelRequest, CipherAlgorithm, ClientConfig, Connection,
    ConnectionError, Credential, DataStream, Event, HostIdentity, KexAlgorithm, KeyPair, PublicKeyAlgorithm,
    SignatureAlgorithm,
};
use wayleave_vocab::{Mono, Wall};

const MIB: usize = 1024 * 1024;
const SSHD: &str = "/usr/sbin/sshd";

#[test]
fn exec_with_certificates_on_both_sides() {
    let bench = Bench::new();
    let done = bench.run(bench.client(), "echo out; echo err >&2; exit 7", &[]);
    assert_eq!((&done.main[..], &done.stderr[..], done.status), (&b"out\n"[..], &b"err\n"[..], Some(7)));
    assert!(matches!(done.host, Some(HostIdentity::Certificate(_))));
}

#[test]
fn every_cipher_and_key_exchange() {
    let bench = Bench::new();
    for cipher in CipherAlgorithm::ALL {
        for kex in [KexAlgorithm::Curve25519Sha256, KexAlgorithm::Curve25519Sha256Libssh] {
            for is_guessing in [false, true] {
                let mut client = bench.client();
                client.algorithms.ciphers = vec![cipher];
                client.algorithms.kex = vec![kex];
                client.is_guessing = is_guessing;
                let done = bench.run(client, "echo out", &[]);
                assert_eq!((&done.main[..], done.status), (&b"out\n"[..], Some(0)), "{cipher:?} {kex:?}");
            }
        }
    }
}

#[test]
fn every_kind_of_host_key() {
    let bench = Bench::new();
    for algorithm in [
        PublicKeyAlgorithm::certificate(SignatureAlgorithm::Ed25519),
        PublicKeyAlgorithm::key(SignatureAlgorithm::Ed25519),
        PublicKeyAlgorithm::certificate(SignatureAlgorithm::EcdsaP256),
        PublicKeyAlgorithm::key(SignatureAlgorithm::EcdsaP256),
        PublicKeyAlgorithm::certificate(SignatureAlgorithm::RsaSha512),
        PublicKeyAlgorithm::certificate(SignatureAlgorithm::RsaSha256),
        PublicKeyAlgorithm::key(SignatureAlgorithm::RsaSha512),
        PublicKeyAlgorithm::key(SignatureAlgorithm::RsaSha256),
    ] {
        let mut client = bench.client();
        client.host_key_algorithms = vec![algorithm];
        let done = bench.run(client, "echo out", &[]);
        assert_eq!(done.status, Some(0), "{algorithm}: {:?}", done.error);
        let is_certificate = matches!(done.host, Some(HostIdentity::Certificate(_)));
        assert_eq!(is_certificate, algorithm.is_certificate, "{algorithm}");
    }
}

#[test]
fn bulk_in_both_directions_under_every_cipher() {
    let bench = Bench::new();
    for cipher in CipherAlgorithm::ALL {
        let mut client = bench.client();
        client.algorithms.ciphers = vec![cipher];
        bench.check_cat(client, 64 * MIB);
    }
}

#[test]
fn rekey_under_load() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.timing.rekey_bytes = MIB as u64;
    bench.check_cat(client, 16 * MIB);
}

#[test]
fn the_second_credential_is_tried() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.credentials.insert(0, Credential::key(key(55)));
    client.credentials.insert(0, credential(4, &key(77), CertType::User, &bench.user));
    let done = bench.run(client, "echo out", &[]);
    assert_eq!(done.status, Some(0), "{:?}", done.error);
}

#[test]
fn d_no_credential_that_counts() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.credentials = vec![credential(4, &key(77), CertType::User, &bench.user)];
    let done = bench.run(client, "echo out", &[]);
    assert!(matches!(done.error, Some(ConnectionError::AuthenticationFailed { .. })), "{:?}", done.error);
}

/// A configuration for sshd with authorities on both sides.
struct Bench {
    directory: tempfile::TempDir,
    user: String,
    host_authority: KeyPair,
    user_authority: KeyPair,
}

impl Bench {
    fn new() -> Self {
        assert!(Path::new(SSHD).exists(), "{SSHD} is missing: install the package openssh-server");
        // sshd wants its privilege separation directory, which its service script makes.
        let _ = std::fs::create_dir_all("/run/sshd");
        let user = text_of(Command::new("id").arg("-un"));
        let (user_authority, host_authority) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]));
        let bench = Self { directory: tempfile::tempdir().unwrap(), user, host_authority, user_authority };
        bench.write_host_keys();
        bench.write("user_ca.pub", &bench.user_authority.public_key().to_openssh());
        let at = bench.directory.path().display();
        let config = format!(
            "UsePAM no\nStrictModes no\nPermitRootLogin yes\nPidFile none\nLogLevel ERROR\n\
             TrustedUserCAKeys {at}/user_ca.pub\nAuthorizedKeysFile none\n\
             HostKey {at}/ed25519\nHostCertificate {at}/ed25519-cert.pub\n\
             HostKey {at}/ecdsa\nHostCertificate {at}/ecdsa-cert.pub\n\
             HostKey {at}/rsa\nHostCertificate {at}/rsa-cert.pub\n"
        );
        bench.write("sshd_config", &config);
        bench
    }

    /// Ed25519 by this crate; the others by `ssh-keygen`, signed with our authority's file.
    fn write_host_keys(&self) {
        self.write("ca", &self.host_authority.to_openssh("authority"));
        self.write("ca.pub", &self.host_authority.public_key().to_openssh());
        let pair = key(3);
        self.write("ed25519", &pair.to_openssh("host"));
        let certificate = certify(&pair, &self.host_authority, CertType::Host, "node.test");
        self.write("ed25519-cert.pub", &certificate.to_openssh());
        for (name, kind, bits) in [("ecdsa", "ecdsa", "256"), ("rsa", "rsa", "2048")] {
            let file = self.directory.path().join(name);
            text_of(
                Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-b", bits, "-f"]).arg(&file),
            );
            let authority = self.directory.path().join("ca");
            let sign = ["-q", "-h", "-I", "host", "-n", "node.test", "-s"];
            text_of(Command::new("ssh-keygen").args(sign).arg(authority).arg(file.with_extension("pub")));
        }
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.directory.path().join(name);
        std::fs::write(&file, format!("{}\n", text.trim_end())).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn client(&self) -> ClientConfig {
        let credential = credential(4, &self.user_authority, CertType::User, &self.user);
        ClientConfig::new(self.user.clone(), vec![credential])
    }

    fn sshd(&self) -> (Child, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let input = OwnedFd::from(theirs);
        let output = input.try_clone().unwrap();
        let child = Command::new(SSHD)
            .args(["-i", "-e", "-f"])
            .arg(self.directory.path().join("sshd_config"))
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(output))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        (child, ours)
    }

    /// Runs a command, sends it the input, and collects what it says.
    fn run(&self, config: ClientConfig, command: &'static str, input: &[Bytes]) -> Client {
        let (mut child, mut stream) = self.sshd();
        let mut connection = Connection::client(&config, entropy(5), Mono::ZERO);
        let mut client = Client {
            authority: self.host_authority.public_key(),
            command,
            input: input.iter().rev().cloned().collect(),
            ..Client::default()
        };
        client.error = drive(&mut connection, &mut stream, &mut client).err();
        drop(stream);
        child.wait().unwrap();
        client
    }

    fn check_cat(&self, config: ClientConfig, bytes: usize) {
        let input: Vec<Bytes> = (0..bytes).step_by(MIB).map(|at| pattern(at, MIB)).collect();
        let done = self.run(config, "cat", &input);
        assert_eq!((done.status, &done.error), (Some(0), &None));
        assert_eq!(done.main.len(), bytes);
        assert!(done.main[..] == pattern(0, bytes)[..], "bytes differ");
    }
}

fn text_of(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?} {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// One command on one channel.
struct Client {
    authority: wayleave_ssh::PublicKey,
    command: &'static str,
    /// Last first.
    input: Vec<Bytes>,
    channel: Option<ChannelId>,
    is_running: bool,
    main: BytesMut,
    stderr: BytesMut,
    status: Option<u32>,
    host: Option<HostIdentity>,
    error: Option<ConnectionError>,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            authority: key(0).public_key(),
            command: "",
            input: Vec::new(),
            channel: None,
            is_running: false,
            main: BytesMut::new(),
            stderr: BytesMut::new(),
            status: None,
            host: None,
            error: None,
        }
    }
}

impl App for Client {
    fn on_event(&mut self, connection: &mut Connection, event: Event) {
        match event {
            Event::HostIdentity(identity) => {
                if let HostIdentity::Certificate(certificate) = &identity {
                    let now = Wall::from_secs(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs());
                    let authority = [self.authority.clone()];
                    certificate.verify(&authority, CertType::Host, Some("node.test"), &[], now).unwrap();
                }
                self.host = Some(identity);
                connection.accept_host().unwrap();
            }
            Event::Authenticated => {
                self.channel = Some(connection.open(&ChannelOpen::Session).unwrap());
            }
            Event::Opened { channel } => {
                let command = Bytes::from_static(self.command.as_bytes());
                connection.request(channel, &ChannelRequest::Exec { command }, true).unwrap();
            }
            Event::RequestAnswered { is_success, .. } => self.is_running = is_success,
            Event::Data { channel, stream, data } => {
                let into = if stream == DataStream::Main { &mut self.main } else { &mut self.stderr };
                into.extend_from_slice(&data);
                connection.consumed(channel, data.len());
            }
            Event::Request { request: ChannelRequest::ExitStatus { status }, .. } => {
                self.status = Some(status);
            }
            Event::Closed { .. } => {
                connection.disconnect(wayleave_ssh::DisconnectReason::ByApplication, "done");
            }
            _ => {}
        }
    }

    fn pump(&mut self, connection: &mut Connection) {
        let (Some(channel), true) = (self.channel, self.is_running) else { return };
        while let Some(data) = self.input.last_mut() {
            if connection.send(channel, DataStream::Main, data).is_err() || !data.is_empty() {
                return;
            }
            self.input.pop();
        }
        connection.eof(channel);
    }
}
