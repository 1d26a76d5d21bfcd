//! One end of a resumable stream: the machine of `core/resume`, and the frames of `wire/resume` around it.

use bytes::{BufMut, Bytes, BytesMut};
use std::time::Duration;
use wayleave_resume::{Budget, Role, Segment, Stream};
use wayleave_resume_wire::{DATA_HEADER_BYTES, Frame, data_header};
use wayleave_vocab::Mono;

/// How long a stream waits for its client.
pub(crate) const MAX_DETACHED: Duration = Duration::from_secs(30);
/// Bytes in one write.
const WRITE_BYTES: usize = 8 * 1024;

#[derive(Debug)]
pub(crate) struct Carrier {
    pub(crate) machine: Stream,
    input: BytesMut,
    data_left: usize,
}

/// What has come.
#[derive(Debug)]
pub(crate) enum Came {
    Bytes(Bytes),
    /// Not the machine's.
    Frame(Frame),
}

impl Carrier {
    pub(crate) fn new(role: Role, now: Mono) -> Self {
        let machine = Stream::new(role, Budget::default(), MAX_DETACHED, now);
        Self { machine, input: BytesMut::new(), data_left: 0 }
    }

    pub(crate) fn detach(&mut self, now: Mono) {
        self.machine.handle_lost(now);
        self.input.clear();
        self.data_left = 0;
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The next thing that is not the machine's own.
    pub(crate) fn next(&mut self, now: Mono) -> Result<Option<Came>, String> {
        let machine = &mut self.machine;
        loop {
            if self.data_left > 0 {
                let bytes = self.input.split_to(self.data_left.min(self.input.len())).freeze();
                if bytes.is_empty() {
                    return Ok(None);
                }
                self.data_left -= bytes.len();
                machine.handle_data(bytes.len(), now).map_err(|error| error.to_string())?;
                return Ok(Some(Came::Bytes(bytes)));
            }
            let Some(frame) = Frame::decode(&mut self.input).map_err(|error| error.to_string())? else {
                return Ok(None);
            };
            let handled = match frame {
                Frame::Data { bytes } => {
                    self.data_left = bytes;
                    Ok(())
                }
                Frame::Fin => machine.handle_fin(now),
                Frame::Ask => {
                    machine.handle_ask(now);
                    Ok(())
                }
                Frame::Acknowledge { received } => machine.handle_acknowledge(received, now),
                Frame::Ping { received } => machine.handle_ping(received, now),
                Frame::Pong { received } => machine.handle_pong(received, now),
                other => return Ok(Some(Came::Frame(other))),
            };
            handled.map_err(|error| error.to_string())?;
        }
    }

    /// The user writes from the front of these bytes what there is room for; gives how much.
    pub(crate) fn write(&mut self, bytes: &[u8], now: Mono) -> usize {
        let count = bytes.len().min(WRITE_BYTES).min(self.machine.room());
        if count == 0 {
            if !bytes.is_empty() {
                self.machine.handle_blocked(now);
            }
            return 0;
        }
        let mut framed = BytesMut::with_capacity(DATA_HEADER_BYTES + count);
        framed.put_slice(&data_header(count));
        framed.put_slice(&bytes[..count]);
        self.machine.handle_write(framed.freeze(), DATA_HEADER_BYTES);
        count
    }

    /// What to send next, as it travels.
    pub(crate) fn poll(&mut self, now: Mono) -> Option<Bytes> {
        Some(match self.machine.poll_segment(now)? {
            Segment::Whole(framed) => framed,
            Segment::Rest(bytes) => [&data_header(bytes.len())[..], &bytes].concat().into(),
            Segment::Fin => encoded(&Frame::Fin),
            Segment::Reset => encoded(&Frame::Reset),
            Segment::Ask => encoded(&Frame::Ask),
            Segment::Acknowledge { received } => encoded(&Frame::Acknowledge { received }),
            Segment::Ping { received } => encoded(&Frame::Ping { received }),
            Segment::Pong { received } => encoded(&Frame::Pong { received }),
        })
    }
}

pub(crate) fn encoded(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out.freeze()
}
