//! SSH: whole connections in both roles, requests on an open one, keys and certificates.

use super::{CONNECTION, SMALL, owned};
use crate::{Target, text};
use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::sync::Arc;
use wayleave_os::TerminalModes;
use wayleave_ssh::{
    CertType, Certificate, CertificateTemplate, ChannelId, ChannelOpen, ChannelRequest, ClientConfig,
    Connection, Credential, Entropy, Event, GlobalRequest, HostIdentity, Intake, KeyPair, LoginProof,
    Options, PublicKey, ServerConfig, encode_terminal_modes, terminal_modes,
};
use wayleave_vocab::{Mono, Wall};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "ssh_server", memory_bytes_max: CONNECTION, seeds: from_client, run: server },
    Target { name: "ssh_client", memory_bytes_max: CONNECTION, seeds: from_server, run: client },
    Target { name: "ssh_request", memory_bytes_max: CONNECTION, seeds: requests, run: request },
    Target { name: "ssh_certificate", memory_bytes_max: SMALL, seeds: certificates, run: certificate },
    Target { name: "ssh_key", memory_bytes_max: SMALL, seeds: keys, run: key },
];

/// Bytes that differ and are the same each time.
fn entropy(seed: u64) -> Box<dyn Entropy + Send> {
    let mut state = seed | 1;
    Box::new(move |out: &mut [u8]| {
        for byte in out {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
    })
}

fn authority() -> KeyPair {
    KeyPair::from_seed(&[1; 32])
}

fn certify(key: &KeyPair, kind: CertType, principal: &str) -> Certificate {
    CertificateTemplate {
        key: key.public_key(),
        kind,
        serial: 1,
        key_id: "fuzz".to_owned(),
        principals: vec![principal.to_owned()],
        valid_after: Wall::from_secs(0),
        valid_before: Wall::from_secs(4_000_000_000),
        critical_options: Options::from([("source-address".to_owned(), "192.0.2.0/24,::1".to_owned())]),
        extensions: Options::from([("permit-pty".to_owned(), String::new())]),
    }
    .sign(&authority(), &[9; 32])
    .unwrap()
}

fn credential(seed: u8, kind: CertType, principal: &str) -> Credential {
    let key = Arc::new(KeyPair::from_seed(&[seed; 32]));
    let certificate = certify(&key, kind, principal);
    Credential::certified(key, certificate).unwrap()
}

fn new_server() -> Connection {
    let config = ServerConfig::new(vec![credential(2, CertType::Host, "node")]);
    Connection::server(&config, entropy(2), Mono::ZERO)
}

fn new_client() -> Connection {
    let config = ClientConfig::new("alice".to_owned(), vec![credential(3, CertType::User, "alice")]);
    Connection::client(&config, entropy(3), Mono::ZERO)
}

/// Says yes to everything.
fn consent(connection: &mut Connection, event: &Event) {
    match event {
        Event::HostIdentity(HostIdentity::Certificate(_)) => drop(connection.accept_host()),
        Event::HostIdentity(_) => connection.reject_host(),
        Event::AuthAttempt(_) => drop(connection.accept_auth()),
        Event::Open { channel, .. } => drop(connection.accept_open(*channel)),
        Event::Data { channel, data, .. } => connection.consumed(*channel, data.len()),
        _ => {}
    }
}

/// Hands in what came and answers; false when the connection is over.
fn turn(connection: &mut Connection, input: &mut BytesMut, said: &mut Vec<u8>) -> bool {
    loop {
        let intake = connection.handle_input(input, Mono::ZERO);
        let mut has_events = false;
        while let Some(event) = connection.poll_event() {
            has_events = true;
            consent(connection, &event);
        }
        while let Some(output) = connection.poll_output() {
            said.extend_from_slice(&output);
        }
        match intake {
            Err(_) => return false,
            Ok(Intake::Hungry) if !has_events => return !connection.is_closed(),
            Ok(_) if !has_events => return !connection.is_closed(),
            Ok(_) => {}
        }
    }
}

/// What each said when a client reached a server, opened a session and asked for things.
struct Conversation {
    client: Connection,
    server: Connection,
    from_client: Vec<u8>,
    from_server: Vec<u8>,
    session: Option<ChannelId>,
}

impl Conversation {
    fn new() -> Self {
        let mut this = Self {
            client: new_client(),
            server: new_server(),
            from_client: Vec::new(),
            from_server: Vec::new(),
            session: None,
        };
        this.carry();
        this.session = this.client.open(&ChannelOpen::Session).ok();
        this.carry();
        this
    }

    /// Moves bytes until nothing moves; false when either end is over.
    fn carry(&mut self) -> bool {
        let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
        loop {
            let mut said = Vec::new();
            let is_open = turn(&mut self.client, &mut to_client, &mut said);
            let moved = !said.is_empty();
            to_server.extend_from_slice(&said);
            self.from_client.append(&mut said);
            let is_served = turn(&mut self.server, &mut to_server, &mut said);
            let moved = moved || !said.is_empty();
            to_client.extend_from_slice(&said);
            self.from_server.append(&mut said);
            if !is_open || !is_served {
                return false;
            }
            if !moved {
                return true;
            }
        }
    }
}

fn from_client() -> Vec<Vec<u8>> {
    vec![Conversation::new().from_client, b"SSH-2.0-x\r\n".to_vec()]
}

fn from_server() -> Vec<Vec<u8>> {
    vec![Conversation::new().from_server, b"banner\r\nSSH-2.0-x\r\n".to_vec()]
}

fn server(bytes: &[u8]) {
    whole(new_server(), bytes);
}

fn client(bytes: &[u8]) {
    whole(new_client(), bytes);
}

fn whole(mut connection: Connection, bytes: &[u8]) {
    let (mut input, mut said) = (BytesMut::new(), Vec::new());
    let piece = usize::from(bytes.last().copied().unwrap_or(1)) * 8 + 1;
    for chunk in bytes.chunks(piece) {
        input.extend_from_slice(chunk);
        said.clear();
        if !turn(&mut connection, &mut input, &mut said) {
            return;
        }
    }
}

/// Names of requests; the first byte of an input chooses one, the rest is what follows the name.
const NAMES: [&str; 18] = [
    "pty-req",
    "x11-req",
    "env",
    "shell",
    "exec",
    "subsystem",
    "window-change",
    "xon-xoff",
    "signal",
    "exit-status",
    "exit-signal",
    "eow@openssh.com",
    "auth-agent-req@openssh.com",
    "tcpip-forward",
    "cancel-tcpip-forward",
    "streamlocal-forward@openssh.com",
    "cancel-streamlocal-forward@openssh.com",
    "hostkeys-00@openssh.com",
];

fn requests() -> Vec<Vec<u8>> {
    let string = |text: &[u8]| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat();
    let number = |value: u32| value.to_be_bytes().to_vec();
    let modes = encode_terminal_modes(&[(53, 1), (128, 38400)]);
    let size = [80, 24, 0, 0].map(number).concat();
    let bodies: [(u8, Vec<Vec<u8>>); 12] = [
        (0, vec![string(b"xterm"), size.clone(), string(&modes)]),
        (1, vec![vec![0], string(b"MIT-MAGIC-COOKIE-1"), string(b"ab"), number(0)]),
        (2, vec![string(b"LANG"), string(b"C")]),
        (4, vec![string(b"true")]),
        (5, vec![string(b"sftp")]),
        (6, vec![size]),
        (8, vec![string(b"TERM")]),
        (9, vec![number(1)]),
        (10, vec![string(b"SEGV"), vec![1], string(b"core"), string(b"")]),
        (13, vec![string(b"localhost"), number(8080)]),
        (15, vec![string(b"/tmp/socket")]),
        (17, vec![string(&authority().public_key().to_blob())]),
    ];
    bodies.into_iter().map(|(name, parts)| [vec![name], parts.concat()].concat()).collect()
}

thread_local! {
    static OPEN: RefCell<Option<Conversation>> = const { RefCell::new(None) };
}

/// Sends a request with any content on a connection that is open; the server must answer it or end the connection.
fn request(bytes: &[u8]) {
    let _ = TerminalModes::decode(bytes);
    let _ = terminal_modes(bytes);
    let Some((name, data)) = bytes.split_first() else { return };
    let name = NAMES[usize::from(*name) % NAMES.len()].to_owned();
    let data = Bytes::copy_from_slice(data);
    OPEN.with_borrow_mut(|open| {
        let conversation = open.get_or_insert_with(Conversation::new);
        conversation.from_client.clear();
        conversation.from_server.clear();
        if let Some(session) = conversation.session {
            let request = ChannelRequest::Unknown { name: name.clone(), data: data.clone() };
            let _ = conversation.client.request(session, &request, false);
        }
        let _ = conversation.client.global_request(&GlobalRequest::Unknown { name, data }, false);
        if !conversation.carry() {
            *open = None;
        }
    });
}

fn certificates() -> Vec<Vec<u8>> {
    let key = KeyPair::from_seed(&[3; 32]);
    let certificate = certify(&key, CertType::User, "alice");
    vec![certificate.as_blob().to_vec(), certificate.to_openssh().into_bytes()]
}

fn certificate(bytes: &[u8]) {
    if let Ok(certificate) = Certificate::parse(bytes) {
        let authorities = [authority().public_key()];
        let now = Wall::from_secs(1_000_000);
        let _ = certificate.verify(&authorities, CertType::User, Some("alice"), &[], now);
        assert_eq!(Certificate::parse(certificate.as_blob()).unwrap().as_blob(), certificate.as_blob());
    }
    let text = text(bytes);
    let _ = Certificate::from_openssh(&text);
}

fn keys() -> Vec<Vec<u8>> {
    let key = KeyPair::from_seed(&[3; 32]);
    let mut seeds = owned(&[
        b"ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY= x",
        b"sk-ssh-ed25519@openssh.com AAAA",
    ]);
    seeds.push(key.public_key().to_blob());
    seeds.push(key.public_key().to_openssh().into_bytes());
    seeds.push(key.to_openssh("comment").as_bytes().to_vec());
    seeds
}

fn key(bytes: &[u8]) {
    if let Ok(key) = PublicKey::from_blob(bytes) {
        assert_eq!(PublicKey::from_blob(&key.to_blob()).unwrap(), key);
    }
    let _ = LoginProof::decode(bytes);
    let text = text(bytes);
    let _ = PublicKey::from_openssh(&text);
    let _ = KeyPair::from_openssh(&text);
}
