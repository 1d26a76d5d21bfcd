//! Two ends joined by a pipe in memory.

use bytes::{Bytes, BytesMut};
use std::time::Duration;
use wayleave_mux::{Config, Event, Mux, MuxError, Role};
use wayleave_vocab::Mono;

/// A connector and an acceptor, and the bytes on their way.
pub(crate) struct Pair {
    pub(crate) ends: [Mux; 2],
    pub(crate) wires: [BytesMut; 2],
    pub(crate) inputs: [BytesMut; 2],
    pub(crate) now: Mono,
}

impl Pair {
    pub(crate) fn new(config: Config) -> Self {
        let now = Mono::ZERO;
        Self {
            ends: [Mux::new(Role::Connector, config, now), Mux::new(Role::Acceptor, config, now)],
            wires: [BytesMut::new(), BytesMut::new()],
            inputs: [BytesMut::new(), BytesMut::new()],
            now,
        }
    }

    pub(crate) fn ready(config: Config) -> Self {
        let mut pair = Self::new(config);
        pair.settle();
        for end in &mut pair.ends {
            assert_eq!(end.poll_event(), Some(Event::Ready));
        }
        pair
    }

    /// Moves up to `budget` bytes out of an end and up to `chunk` bytes into the other.
    pub(crate) fn step(&mut self, from: usize, budget: usize, chunk: usize) -> Result<usize, MuxError> {
        let mut parts: Vec<Bytes> = Vec::new();
        self.ends[from].poll_output_parts(&mut parts, budget, self.now);
        for part in parts {
            self.wires[from].extend_from_slice(&part);
        }
        let moved = chunk.min(self.wires[from].len());
        let bytes = self.wires[from].split_to(moved);
        self.inputs[1 - from].extend_from_slice(&bytes);
        let Self { ends, inputs, now, .. } = self;
        ends[1 - from].handle_input(&mut inputs[1 - from], *now)?;
        Ok(moved)
    }

    /// Moves bytes until neither end has any to move; nobody consumes.
    pub(crate) fn settle(&mut self) {
        loop {
            let moved =
                self.step(0, 1 << 20, usize::MAX).unwrap() + self.step(1, 1 << 20, usize::MAX).unwrap();
            if moved == 0 {
                return;
            }
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }
}
