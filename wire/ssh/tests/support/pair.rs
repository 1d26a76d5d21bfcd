//! Two connections that talk through memory, byte by byte if need be.

use crate::support::{credential, entropy, key};
use bytes::BytesMut;
use std::time::Duration;
use wayleave_ssh::{
    CertType, ClientConfig, Connection, ConnectionError, Event, HostIdentity, Intake, KeyPair, LoginProof,
    ServerConfig,
};
use wayleave_vocab::{Mono, Wall};

pub(crate) const NOW: Wall = Wall::from_secs(1_000_000);

/// A client and a server with the bytes between them.
pub(crate) struct Pair {
    pub(crate) client: End,
    pub(crate) server: End,
    pub(crate) now: Mono,
    /// How many bytes at a time travel; none means all.
    pub(crate) chunk: Option<usize>,
}

pub(crate) struct End {
    pub(crate) connection: Connection,
    pub(crate) input: BytesMut,
    in_flight: BytesMut,
    pub(crate) events: Vec<Event>,
    pub(crate) error: Option<ConnectionError>,
    /// Of the last login, where the server keeps proofs.
    pub(crate) proof: Option<LoginProof>,
}

impl End {
    fn new(connection: Connection) -> Self {
        Self {
            connection,
            input: BytesMut::new(),
            in_flight: BytesMut::new(),
            events: Vec::new(),
            error: None,
            proof: None,
        }
    }

    /// Takes what arrived, answers verdicts, keeps the other events.
    fn turn(&mut self, now: Mono) -> bool {
        let mut has_moved = false;
        loop {
            let before = self.input.len();
            let intake = match self.connection.handle_input(&mut self.input, now) {
                Ok(intake) => intake,
                Err(error) => {
                    self.error = Some(error);
                    Intake::Hungry
                }
            };
            has_moved |= self.input.len() != before;
            let mut has_events = false;
            while let Some(event) = self.connection.poll_event() {
                has_events = true;
                self.on_event(event);
            }
            has_moved |= has_events;
            if intake == Intake::Hungry || !has_events {
                return has_moved;
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::HostIdentity(HostIdentity::Certificate(certificate)) => {
                let authority = host_authority().public_key();
                let name = Some("node.test");
                certificate.verify(&[authority], CertType::Host, name, &[], NOW).unwrap();
                self.connection.accept_host().unwrap();
            }
            Event::AuthAttempt(mut attempt) => {
                self.proof = attempt.proof.take().map(|proof| *proof);
                let authority = user_authority().public_key();
                let user = Some(attempt.user.as_str());
                match attempt.certificate.verify(&[authority], CertType::User, user, &[], NOW) {
                    Ok(_) => self.connection.accept_auth().unwrap(),
                    Err(_) => drop(self.connection.reject_auth()),
                }
            }
            other => self.events.push(other),
        }
    }

    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}

pub(crate) fn user_authority() -> KeyPair {
    KeyPair::from_seed(&[1; 32])
}

pub(crate) fn host_authority() -> KeyPair {
    KeyPair::from_seed(&[2; 32])
}

pub(crate) fn server_config() -> ServerConfig {
    ServerConfig::new(vec![credential(3, &host_authority(), CertType::Host, "node.test")])
}

pub(crate) fn client_config() -> ClientConfig {
    let credential = credential(4, &user_authority(), CertType::User, "alice");
    ClientConfig::new("alice".into(), vec![credential])
}

impl Pair {
    pub(crate) fn new(client: &ClientConfig, server: &ServerConfig) -> Self {
        let now = Mono::ZERO;
        Self {
            client: End::new(Connection::client(client, entropy(1), now)),
            server: End::new(Connection::server(server, entropy(2), now)),
            now,
            chunk: None,
        }
    }

    /// Connected and authenticated.
    pub(crate) fn open() -> Self {
        Self::open_with(&client_config(), &server_config())
    }

    pub(crate) fn open_with(client: &ClientConfig, server: &ServerConfig) -> Self {
        let mut pair = Self::new(client, server);
        pair.settle();
        assert_eq!(pair.client.error, None);
        assert_eq!(pair.server.error, None);
        assert!(pair.client.connection.is_open() && pair.server.connection.is_open());
        assert_eq!(pair.client.take_events(), vec![Event::Authenticated]);
        assert_eq!(pair.server.take_events(), vec![]);
        pair
    }

    /// Moves bytes until nothing moves any more.
    pub(crate) fn settle(&mut self) {
        while self.step() {}
    }

    /// One chunk each way, and what it causes. False when nothing moved.
    pub(crate) fn step(&mut self) -> bool {
        let there = carry(&mut self.client, &mut self.server, self.chunk, self.now);
        let back = carry(&mut self.server, &mut self.client, self.chunk, self.now);
        there || back
    }

    /// Lets time pass and both ends notice.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now.after(by);
        for end in [&mut self.client, &mut self.server] {
            if let Err(error) = end.connection.handle_timeout(self.now) {
                end.error = Some(error);
            }
        }
        self.settle();
    }
}

/// One chunk from one end to the other, and what it causes at both.
fn carry(from: &mut End, to: &mut End, chunk: Option<usize>, now: Mono) -> bool {
    while let Some(output) = from.connection.poll_output() {
        from.in_flight.extend_from_slice(&output);
    }
    let len = chunk.unwrap_or(usize::MAX).min(from.in_flight.len());
    to.input.extend_from_slice(&from.in_flight.split_to(len));
    let has_moved = to.turn(now);
    from.turn(now) || has_moved || len > 0
}

/// A client that presents a certificate of the wrong authority.
pub(crate) fn stranger_config() -> ClientConfig {
    let credential = credential(5, &key(77), CertType::User, "alice");
    ClientConfig::new("alice".into(), vec![credential])
}
