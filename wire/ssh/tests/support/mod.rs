//! Test drivers: a blocking one over TCP, and identities signed by a test authority.

use bytes::{Bytes, BytesMut};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;
use wayleave_ssh::{
    CertType, Certificate, CertificateTemplate, Connection, ConnectionError, Credential, Entropy, Event,
    Intake, KeyPair, Options,
};
use wayleave_vocab::{Mono, Wall};

/// What an embedder does with events; called after every batch until nothing moves.
pub(crate) trait App {
    fn on_event(&mut self, connection: &mut Connection, event: Event);
    /// Something may be sendable. Called whenever events were drained.
    fn pump(&mut self, _connection: &mut Connection) {}
}

/// Runs a connection over a blocking stream until it is closed. This is the whole driver.
pub(crate) fn drive(
    connection: &mut Connection,
    stream: &mut TcpStream,
    app: &mut impl App,
) -> Result<(), ConnectionError> {
    let start = Instant::now();
    let mut input = BytesMut::new();
    let mut failure = None;
    loop {
        let now = Mono::from_origin(start.elapsed());
        let intake = match connection.handle_input(&mut input, now) {
            Ok(intake) => intake,
            Err(error) => {
                failure = Some(error);
                Intake::Hungry
            }
        };
        loop {
            let mut is_idle = true;
            while let Some(event) = connection.poll_event() {
                app.on_event(connection, event);
                is_idle = false;
            }
            app.pump(connection);
            while let Some(output) = connection.poll_output() {
                if stream.write_all(&output).is_err() {
                    return failure.map_or(Ok(()), Err);
                }
                is_idle = false;
            }
            if is_idle {
                break;
            }
        }
        if connection.is_closed() {
            return failure.map_or(Ok(()), Err);
        }
        if intake == Intake::Hungry && !fill(stream, &mut input) {
            return Ok(());
        }
    }
}

fn fill(stream: &mut TcpStream, input: &mut BytesMut) -> bool {
    let len = input.len();
    input.resize(len + 128 * 1024, 0);
    let read = stream.read(&mut input[len..]).unwrap_or(0);
    input.truncate(len + read);
    read > 0
}

/// Entropy for tests: a counter hashed by nothing, distinct per seed.
pub(crate) fn entropy(seed: u64) -> Box<dyn Entropy + Send> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Box::new(move |out: &mut [u8]| {
        for byte in out {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 24) as u8;
        }
    })
}

pub(crate) fn key(seed: u8) -> Arc<KeyPair> {
    Arc::new(KeyPair::from_seed(&[seed; 32]))
}

pub(crate) fn certify(key: &KeyPair, authority: &KeyPair, kind: CertType, principal: &str) -> Certificate {
    CertificateTemplate {
        key: key.public_key(),
        kind,
        serial: 1,
        key_id: format!("test {principal}"),
        principals: vec![principal.into()],
        valid_after: Wall::from_secs(0),
        valid_before: Wall::from_secs(4_000_000_000),
        critical_options: Options::new(),
        extensions: Options::from([("permit-pty".into(), String::new())]),
    }
    .sign(authority, &[9; 32])
    .unwrap()
}

pub(crate) fn credential(seed: u8, authority: &KeyPair, kind: CertType, principal: &str) -> Credential {
    let key = key(seed);
    let certificate = certify(&key, authority, kind, principal);
    Credential::certified(key, certificate).unwrap()
}

/// Bytes that differ at every position, so that loss and repetition show.
pub(crate) fn pattern(offset: usize, len: usize) -> Bytes {
    (offset..offset + len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect::<Vec<u8>>().into()
}
