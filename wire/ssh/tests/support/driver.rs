//! A blocking driver over any stream.

use bytes::BytesMut;
use std::io::{Read, Write};
use std::time::Instant;
use wayleave_ssh::{Connection, ConnectionError, Event, Intake};
use wayleave_vocab::Mono;

/// What an embedder does with events; called after every batch until nothing moves.
pub(crate) trait App {
    fn on_event(&mut self, connection: &mut Connection, event: Event);
    /// Something may be sendable. Called whenever events were drained.
    fn pump(&mut self, _connection: &mut Connection) {}
}

/// Runs a connection over a blocking stream until it is closed. This is the whole driver.
pub(crate) fn drive(
    connection: &mut Connection,
    stream: &mut (impl Read + Write),
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

fn fill(stream: &mut (impl Read + Write), input: &mut BytesMut) -> bool {
    let len = input.len();
    input.resize(len + 128 * 1024, 0);
    let read = stream.read(&mut input[len..]).unwrap_or(0);
    input.truncate(len + read);
    read > 0
}
