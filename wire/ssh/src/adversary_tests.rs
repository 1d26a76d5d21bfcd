//! A peer that sends what it should not, at every stage: the server must refuse it and stay whole.

use crate::algorithm::{CipherAlgorithm, HOST_KEY_ALGORITHMS as HOST_KEYS, KexAlgorithm, SignatureAlgorithm};
use crate::certificate::{CertType, Certificate, CertificateTemplate, Options};
use crate::config::{Credential, ServerConfig};
use crate::connection::Connection;
use crate::encoding::Put;
use crate::entropy::Entropy;
use crate::error::ConnectionError;
use crate::event::{ChannelId, Event};
use crate::kex::{KexError, Offer, Role};
use crate::key::PublicKey;
use crate::message;
use crate::packet::{PacketError, PacketWriter};
use crate::private_key::KeyPair;
use crate::transport::{Incoming, Transport, TransportConfig};
use crate::userauth::{signed_message, signed_request};
use bytes::BytesMut;
use proptest::prelude::*;
use std::sync::Arc;
use wayleave_vocab::{Mono, Wall};

const STRICT: &str = "kex-strict-c-v00@openssh.com";

#[test]
fn f_channel_messages_before_authentication_end_the_connection() {
    for number in message::CONNECTION_START..=message::CHANNEL_FAILURE {
        for has_service in [false, true] {
            let mut rogue = Rogue::with_keys();
            if has_service {
                rogue.send(service_request());
            }
            rogue.send(vec![number, 0, 0, 0, 0, 0, 0, 0, 0]);
            let expected = ConnectionError::Protocol("channel message before authentication");
            assert_eq!(rogue.error, Some(expected), "{number}");
        }
    }
}

#[test]
fn f_authentication_without_the_service_is_refused() {
    let mut rogue = Rogue::with_keys();
    rogue.send(request(&user_certificate(), &user(), "alice"));
    assert!(matches!(rogue.error, Some(ConnectionError::Protocol(_))));
}

#[test]
fn f_large_packets_before_authentication_are_refused() {
    let mut rogue = Rogue::with_keys();
    let mut large = vec![message::USERAUTH_REQUEST];
    large.resize(40_000, 0);
    rogue.send(large);
    assert!(
        matches!(rogue.error, Some(ConnectionError::Packet(PacketError::Length(_)))),
        "{:?}",
        rogue.error
    );
}

#[test]
fn f_unknown_messages_are_answered_with_unimplemented() {
    for number in [8, 19, 60, 79, 101, 127, 192, 255] {
        let mut rogue = Rogue::open();
        rogue.peer.send_with(1, |out| out.put_byte(number)).unwrap();
        rogue.to_server.extend_from_slice(&rogue.peer.take_output().unwrap());
        assert!(rogue.server.handle_input(&mut rogue.to_server, Mono::ZERO).is_ok(), "{number}");
        let mut output = BytesMut::from(&rogue.server.poll_output().unwrap()[..]);
        let answer = rogue.peer.next_raw(&mut output).unwrap();
        // Under strict key exchange numbers start at 0 after NEWKEYS: service, request, this.
        assert_eq!(&answer[..], &[message::UNIMPLEMENTED, 0, 0, 0, 2], "{number}");
    }
}

#[test]
fn authentication_requests_after_success_are_ignored() {
    let mut rogue = Rogue::open();
    rogue.send(request(&user_certificate(), &user(), "root"));
    assert_eq!((rogue.error.clone(), rogue.answers()), (None, vec![]));
}

#[test]
fn d_what_is_not_a_signed_user_certificate_is_refused() {
    let other = KeyPair::from_seed(&[9; 32]);
    let host = certificate(&user().public_key(), CertType::Host);
    let algorithm = SignatureAlgorithm::Ed25519;
    let plain = {
        let blob = user().public_key().to_blob();
        signed_by(&user(), "alice", algorithm.name(), &blob)
    };
    let renamed = signed_by(&user(), "alice", algorithm.name(), user_certificate().as_blob());
    let mut password = vec![message::USERAUTH_REQUEST];
    for text in ["alice", "ssh-connection", "password"] {
        password.put_string(text.as_bytes());
    }
    password.put_bool(false);
    password.put_string(b"hunter2");
    for (name, payload) in [
        ("signed by another key", request(&user_certificate(), &other, "alice")),
        ("host certificate", request(&host, &user(), "alice")),
        ("plain key", plain),
        ("certificate under the name of a key", renamed),
        ("password", password),
    ] {
        let mut rogue = Rogue::with_keys();
        rogue.send(service_request());
        rogue.send(payload);
        assert_eq!(rogue.error, None, "{name}");
        let failure = vec![51, 0, 0, 0, 9, b'p', b'u', b'b', b'l', b'i', b'c', b'k', b'e', b'y', 0];
        assert_eq!(rogue.answers().last(), Some(&failure), "{name}");
        assert!(rogue.events.is_empty(), "{name}: the embedder is not even asked");
    }
}

#[test]
fn d_a_signature_counts_for_one_session_and_one_user_only() {
    let mut first = Rogue::with_keys();
    first.send(service_request());
    let signed = first.signed_request("alice");
    // Replayed into another session.
    let mut second = Rogue::with_entropy(99);
    second.send(service_request());
    second.send(signed.clone());
    assert!(second.events.is_empty());
    // For another user.
    let changed: Vec<u8> = replace(&signed, b"alice", b"admin");
    first.send(changed);
    assert!(first.events.is_empty());
    first.send(signed);
    assert!(matches!(&first.events[..], [Event::AuthAttempt(attempt)] if attempt.user == "alice"));
}

#[test]
fn a_probe_is_answered_and_proves_nothing() {
    let mut rogue = Rogue::with_keys();
    rogue.send(service_request());
    let mut probe = signed_request("alice", CERTIFICATE, user_certificate().as_blob());
    let flag = 1 + 4 + 5 + 4 + 14 + 4 + 9;
    probe[flag] = 0;
    rogue.send(probe);
    let answers = rogue.answers();
    assert_eq!(answers.last().and_then(|a| a.first()), Some(&message::USERAUTH_PK_OK));
    assert!(rogue.events.is_empty() && !rogue.server.is_open());
}

#[test]
fn n_probes_are_bounded() {
    let mut rogue = Rogue::with_keys();
    rogue.send(service_request());
    let mut none = vec![message::USERAUTH_REQUEST];
    for text in ["alice", "ssh-connection", "none"] {
        none.put_string(text.as_bytes());
    }
    for _ in 0..100 {
        rogue.send(none.clone());
    }
    assert_eq!(rogue.error, Some(ConnectionError::TooManyAuthAttempts));
}

#[test]
fn d_security_keys_must_be_touched() {
    let application = "ssh:".to_owned();
    let authenticator = KeyPair::from_seed(&[8; 32]);
    let PublicKey::Ed25519(key) = authenticator.public_key() else { panic!("ed25519") };
    let key = PublicKey::SkEd25519 { key, application: application.clone() };
    let certificates = |critical: &[&str], extensions: &[&str]| {
        let options = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), String::new())).collect();
        sign(CertificateTemplate {
            critical_options: options(critical),
            extensions: options(extensions),
            ..template(&key, CertType::User)
        })
    };
    for (flags, critical, extensions, ok) in [
        (1, vec![], vec![], true),
        (0, vec![], vec![], false),
        (0, vec![], vec!["no-touch-required"], true),
        (1, vec!["verify-required"], vec![], false),
        (5, vec!["verify-required"], vec![], true),
    ] {
        let certificate = certificates(&critical, &extensions);
        let mut rogue = Rogue::with_keys();
        rogue.send(service_request());
        let algorithm = SignatureAlgorithm::SkEd25519;
        let session = *rogue.peer.session_id().unwrap();
        let blob = certificate.as_blob();
        let text = signed_message(&session, "alice", algorithm.certificate_name(), blob);
        let mut asserted = crate::kex::sha256(application.as_bytes()).to_vec();
        asserted.push(flags);
        asserted.put_uint(42);
        asserted.extend(crate::kex::sha256(&text));
        let signature = authenticator.sign(&asserted);
        let mut wrapped = Vec::new();
        wrapped.put_string(algorithm.name().as_bytes());
        wrapped.put_raw(&signature[4 + 11..]);
        wrapped.push(flags);
        wrapped.put_uint(42);
        let mut request = signed_request("alice", algorithm.certificate_name(), blob);
        request.put_string(&wrapped);
        rogue.send(request);
        let attempt = rogue.events.iter().find_map(|e| match e {
            Event::AuthAttempt(attempt) => attempt.security_key,
            _ => None,
        });
        assert_eq!(attempt.is_some(), ok, "{flags} {critical:?} {extensions:?}");
        assert!(attempt.is_none_or(|a| a.counter == 42 && a.user_present == (flags & 1 == 1)));
    }
}

#[test]
fn f_windows_cannot_be_overrun() {
    let data = |bytes: usize| {
        let mut payload = vec![message::CHANNEL_DATA];
        payload.put_uint(0);
        payload.put_string(&vec![0; bytes]);
        payload
    };
    let mut rogue = Rogue::with_channel();
    for _ in 0..64 {
        rogue.send(data(32 * 1024));
        assert_eq!(rogue.error, None);
    }
    rogue.send(data(1));
    assert_eq!(rogue.error, Some(ConnectionError::Protocol("channel window violated")));

    let mut rogue = Rogue::with_channel();
    rogue.send(data(32 * 1024 + 1));
    assert!(matches!(rogue.error, Some(ConnectionError::Protocol(_))));

    let mut rogue = Rogue::with_channel();
    rogue.send(vec![message::CHANNEL_EOF, 0, 0, 0, 0]);
    rogue.send(data(1));
    assert_eq!(rogue.error, Some(ConnectionError::Protocol("channel data after EOF")));
}

#[test]
fn f_a_window_that_overflows_is_an_error() {
    let adjust = |bytes: u32| {
        let mut payload = vec![message::CHANNEL_WINDOW_ADJUST];
        payload.put_uint(0);
        payload.put_uint(bytes);
        payload
    };
    let mut rogue = Rogue::with_channel();
    rogue.send(adjust(u32::MAX - 1000));
    assert_eq!(rogue.error, None);
    rogue.send(adjust(1001));
    assert_eq!(rogue.error, Some(ConnectionError::Protocol("channel window violated")));
}

#[test]
fn f_a_packet_size_of_zero_is_refused() {
    let mut rogue = Rogue::open();
    rogue.send(open_session(0));
    assert_eq!(rogue.answers().last().and_then(|a| a.first()), Some(&message::CHANNEL_OPEN_FAILURE));
    assert!(rogue.events.is_empty());
}

#[test]
fn f_messages_for_channels_that_are_not_open_end_the_connection() {
    for number in [91, 92, 93, 94, 95, 96, 97, 98, 99, 100] {
        for channel in [0, 1, u32::MAX] {
            let mut rogue = Rogue::open();
            // Channel 0 is offered and not answered.
            rogue.send(open_session(1000));
            let mut payload = vec![number];
            payload.put_uint(channel);
            payload.put_raw(&[0; 16]);
            rogue.send(payload);
            assert!(rogue.error.is_some(), "{number} {channel}");
        }
    }
}

#[test]
fn f_requests_without_answers_are_bounded() {
    let mut shell = vec![message::CHANNEL_REQUEST];
    shell.put_uint(0);
    shell.put_string(b"shell");
    shell.put_bool(true);
    let mut rogue = Rogue::with_channel();
    for _ in 0..65 {
        rogue.send(shell.clone());
    }
    assert_eq!(rogue.error, Some(ConnectionError::Limit("channel requests")));
    let mut forward = vec![message::GLOBAL_REQUEST];
    forward.put_string(b"tcpip-forward");
    forward.put_bool(true);
    forward.put_string(b"");
    forward.put_uint(0);
    let mut rogue = Rogue::open();
    for _ in 0..129 {
        rogue.send(forward.clone());
    }
    assert_eq!(rogue.error, Some(ConnectionError::Limit("global requests")));
}

#[test]
fn f_strict_key_exchange_hears_nothing_else() {
    let ignore = vec![message::IGNORE, 0, 0, 0, 0];
    let unknown = vec![19];
    for extra in [&ignore, &unknown, &vec![message::DEBUG, 0], &vec![message::EXT_INFO, 0, 0, 0, 0]] {
        let before = clear(&[extra.clone(), offer(&[STRICT])]);
        assert!(matches!(before, Some(ConnectionError::Protocol(_))), "{extra:?} {before:?}");
        let after = clear(&[offer(&[STRICT]), extra.clone()]);
        assert!(matches!(after, Some(ConnectionError::Protocol(_))), "{extra:?} {after:?}");
    }
    assert_eq!(clear(&[ignore.clone(), offer(&[])]), None, "without the announcement it is allowed");
    assert_eq!(clear(&[offer(&[]), ignore]), None);
}

#[test]
fn f_key_exchange_messages_out_of_order_end_the_connection() {
    let share = |bytes: &[u8]| {
        let mut payload = vec![message::KEX_ECDH_INIT];
        payload.put_string(bytes);
        payload
    };
    for (name, payloads) in [
        ("two offers", vec![offer(&[STRICT]), offer(&[STRICT])]),
        ("keys before an exchange", vec![offer(&[STRICT]), vec![message::NEWKEYS]]),
        ("a share first", vec![share(&[9; 32])]),
        ("a reply to a server", vec![offer(&[STRICT]), vec![message::KEX_ECDH_REPLY]]),
        ("two shares", vec![offer(&[STRICT]), share(&[9; 32]), share(&[9; 32])]),
        ("authentication", vec![offer(&[STRICT]), service_request()]),
        ("authentication first", vec![service_request()]),
        ("an offer cut short", vec![offer(&[STRICT])[..40].to_vec()]),
    ] {
        assert!(clear(&payloads).is_some(), "{name}");
    }
    for (name, bytes) in
        [("zero", vec![0; 32]), ("short", vec![9; 31]), ("long", vec![9; 33]), ("none", vec![])]
    {
        let error = clear(&[offer(&[STRICT]), share(&bytes)]);
        assert_eq!(error, Some(ConnectionError::Kex(KexError::Share)), "{name}");
    }
}

#[test]
fn chacha_is_not_chosen_without_strict_key_exchange() {
    let plain = |ciphers: &[CipherAlgorithm], extra: &[&str]| clear(&[offer_with(ciphers, extra)]);
    let chacha = [CipherAlgorithm::ChaCha20Poly1305];
    let nothing = Some(ConnectionError::Kex(KexError::NothingInCommon("cipher")));
    assert_eq!(plain(&chacha, &[]), nothing);
    assert_eq!(plain(&chacha, &[STRICT]), None);
    assert_eq!(plain(&CipherAlgorithm::ALL, &[]), None);
}

#[test]
fn f_nothing_but_the_exchange_between_offer_and_new_keys() {
    for payload in [service_request(), open_session(1000), vec![message::GLOBAL_REQUEST]] {
        let mut rogue = Rogue::open();
        rogue.peer.start_rekey().unwrap();
        // Goes out after our KEXINIT although it must wait.
        rogue.peer.send_with(payload.len(), |out| out.put_raw(&payload)).unwrap();
        rogue.shuttle();
        assert_eq!(rogue.error, Some(ConnectionError::Protocol("message during key exchange")));
    }
}

#[test]
fn n_a_stranger_gets_one_key_exchange() {
    let mut rogue = Rogue::with_keys();
    rogue.peer.start_rekey().unwrap();
    rogue.shuttle();
    let expected = ConnectionError::Protocol("second key exchange before authentication");
    assert_eq!(rogue.error, Some(expected));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn f_arbitrary_messages_never_panic(
        messages in proptest::collection::vec((1u8..130, proptest::collection::vec(any::<u8>(), 0..60)), 1..6),
        stage in 0u8..3,
    ) {
        let mut rogue = match stage {
            0 => Rogue::with_keys(),
            1 => Rogue::open(),
            _ => Rogue::with_channel(),
        };
        for (number, body) in messages {
            let mut payload = vec![number];
            // Most messages of the connection protocol start with a channel.
            if stage == 2 && number > 92 {
                payload.put_uint(0);
            }
            payload.extend(body);
            rogue.send(payload);
        }
    }

    #[test]
    fn f_arbitrary_requests_never_panic(
        which in 0usize..20,
        wants_reply: bool,
        body in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        const NAMES: [&str; 20] = [
            "pty-req", "exec", "subsystem", "env", "window-change", "signal", "exit-status", "exit-signal",
            "x11-req", "xon-xoff", "break", "shell", "tcpip-forward", "cancel-tcpip-forward",
            "streamlocal-forward@openssh.com", "cancel-streamlocal-forward@openssh.com",
            "hostkeys-00@openssh.com", "no-more-sessions@openssh.com", "keepalive@openssh.com", "x",
        ];
        for number in [message::CHANNEL_REQUEST, message::GLOBAL_REQUEST] {
            let mut payload = vec![number];
            if number == message::CHANNEL_REQUEST {
                payload.put_uint(0);
            }
            payload.put_string(NAMES[which].as_bytes());
            payload.put_bool(wants_reply);
            payload.extend(&body);
            Rogue::with_channel().send(payload);
        }
        let _ = crate::request::terminal_modes(&body);
    }

    #[test]
    fn f_arbitrary_offers_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..600) {
        let mut payload = vec![message::KEXINIT];
        payload.extend(&body);
        clear(&[payload]);
        let mut cut_offer = offer(&[STRICT]);
        cut_offer.truncate(cut.max(1));
        cut_offer.extend(&body);
        clear(&[cut_offer]);
    }
}

const CERTIFICATE: &str = "ssh-ed25519-cert-v01@openssh.com";

/// The transport of a client, without the manners of one, against a server.
struct Rogue {
    peer: Transport,
    server: Connection,
    to_server: BytesMut,
    to_peer: BytesMut,
    messages: Vec<Vec<u8>>,
    events: Vec<Event>,
    error: Option<ConnectionError>,
}

impl Rogue {
    fn with_keys() -> Self {
        Self::with_entropy(1)
    }

    fn with_entropy(seed: u64) -> Self {
        let config = TransportConfig {
            kex: vec![KexAlgorithm::Curve25519Sha256],
            ciphers: vec![CipherAlgorithm::Aes128Gcm],
            host_key_algorithms: HOST_KEYS.to_vec(),
            host_keys: vec![],
            rekey_bytes: u64::MAX,
            is_guessing: false,
            proof: crate::config::LoginProofs::None,
        };
        let mut rogue = Self {
            peer: Transport::new(Role::Client, config, entropy(seed)),
            server: server(seed + 1000),
            to_server: BytesMut::new(),
            to_peer: BytesMut::new(),
            messages: Vec::new(),
            events: Vec::new(),
            error: None,
        };
        rogue.shuttle();
        assert!(rogue.peer.can_send());
        rogue
    }

    /// Authenticated.
    fn open() -> Self {
        let mut rogue = Self::with_keys();
        rogue.send(service_request());
        let request = rogue.signed_request("alice");
        rogue.send(request);
        assert!(matches!(rogue.events.pop(), Some(Event::AuthAttempt(_))));
        rogue.server.accept_auth().unwrap();
        rogue.shuttle();
        rogue.messages.clear();
        rogue
    }

    /// Authenticated, with channel 0 open.
    fn with_channel() -> Self {
        let mut rogue = Self::open();
        rogue.send(open_session(32 * 1024));
        rogue.server.accept_open(ChannelId(0)).unwrap();
        rogue.shuttle();
        rogue.messages.clear();
        rogue.events.clear();
        rogue
    }

    fn signed_request(&self, name: &str) -> Vec<u8> {
        let certificate = user_certificate();
        let blob = certificate.as_blob();
        let signed = signed_message(self.peer.session_id().unwrap(), name, CERTIFICATE, blob);
        let mut request = signed_request(name, CERTIFICATE, blob);
        request.put_string(&user().sign(&signed));
        request
    }

    fn send(&mut self, payload: Vec<u8>) {
        self.peer.send_with(payload.len(), |out| out.put_raw(&payload)).unwrap();
        self.shuttle();
    }

    fn shuttle(&mut self) {
        loop {
            let mut has_moved = false;
            while let Some(output) = self.peer.take_output() {
                self.to_server.extend_from_slice(&output);
            }
            loop {
                let before = self.to_server.len();
                if let Err(error) = self.server.handle_input(&mut self.to_server, Mono::ZERO).map(drop) {
                    self.error = Some(error);
                }
                let events = self.events.len();
                self.events.extend(std::iter::from_fn(|| self.server.poll_event()));
                if before == self.to_server.len() && events == self.events.len() {
                    break;
                }
                has_moved = true;
            }
            while let Some(output) = self.server.poll_output() {
                self.to_peer.extend_from_slice(&output);
                has_moved = true;
            }
            while let Ok(Some(incoming)) = self.peer.next(&mut self.to_peer) {
                match incoming {
                    Incoming::Message(payload) => self.messages.push(payload.to_vec()),
                    Incoming::HostIdentity(_) => assert!(self.peer.accept_host().unwrap()),
                    Incoming::Ready | Incoming::Rekeyed | Incoming::Disconnected(..) => {}
                }
            }
            if !has_moved && self.peer.output_len() == 0 {
                return;
            }
        }
    }

    fn answers(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.messages)
    }
}

fn service_request() -> Vec<u8> {
    let mut payload = vec![message::SERVICE_REQUEST];
    payload.put_string(b"ssh-userauth");
    payload
}

fn open_session(packet_bytes: u32) -> Vec<u8> {
    let mut payload = vec![message::CHANNEL_OPEN];
    payload.put_string(b"session");
    for value in [7, 1000, packet_bytes] {
        payload.put_uint(value);
    }
    payload
}

fn offer(extra: &[&str]) -> Vec<u8> {
    offer_with(&CipherAlgorithm::ALL, extra)
}

/// A client's KEXINIT, with or without the announcement of strict key exchange.
fn offer_with(ciphers: &[CipherAlgorithm], extra: &[&str]) -> Vec<u8> {
    let full = Offer {
        role: Role::Client,
        kex: &[KexAlgorithm::Curve25519Sha256],
        host_keys: &HOST_KEYS,
        ciphers,
        cookie: [0; 16],
        is_first: extra.contains(&STRICT),
        is_guessing: false,
    };
    full.to_payload()
}

/// Sends packets in clear to a new server: the error it ends with.
fn clear(payloads: &[Vec<u8>]) -> Option<ConnectionError> {
    let mut server = server(5);
    let mut writer = PacketWriter::new();
    writer.output.put_raw(b"SSH-2.0-rogue\r\n");
    for payload in payloads {
        writer.write(payload).unwrap();
    }
    server.handle_input(&mut writer.output, Mono::ZERO).err()
}

fn server(seed: u64) -> Connection {
    let host = KeyPair::from_seed(&[3; 32]);
    let config = ServerConfig::new(vec![Credential::key(Arc::new(host))]);
    Connection::server(&config, entropy(seed), Mono::ZERO)
}

fn entropy(seed: u64) -> Box<dyn Entropy + Send> {
    let mut state = seed;
    Box::new(move |out: &mut [u8]| {
        for byte in out {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 33) as u8;
        }
    })
}

fn user() -> KeyPair {
    KeyPair::from_seed(&[4; 32])
}

fn user_certificate() -> Certificate {
    certificate(&user().public_key(), CertType::User)
}

fn certificate(key: &PublicKey, kind: CertType) -> Certificate {
    sign(template(key, kind))
}

fn sign(template: CertificateTemplate) -> Certificate {
    template.sign(&KeyPair::from_seed(&[1; 32]), &[0; 32]).unwrap()
}

fn template(key: &PublicKey, kind: CertType) -> CertificateTemplate {
    CertificateTemplate {
        key: key.clone(),
        kind,
        serial: 0,
        key_id: "test".into(),
        principals: vec!["alice".into()],
        valid_after: Wall::from_secs(0),
        valid_before: Wall::from_secs(u64::MAX / 1000),
        critical_options: Options::new(),
        extensions: Options::new(),
    }
}

/// A request signed over some other session.
fn request(certificate: &Certificate, key: &KeyPair, name: &str) -> Vec<u8> {
    signed_by(key, name, CERTIFICATE, certificate.as_blob())
}

fn signed_by(key: &KeyPair, name: &str, algorithm: &str, blob: &[u8]) -> Vec<u8> {
    let mut request = signed_request(name, algorithm, blob);
    request.put_string(&key.sign(&signed_message(&[0; 32], name, algorithm, blob)));
    request
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}
