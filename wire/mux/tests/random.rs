//! Random operations over a pipe that cuts bytes anywhere: nothing lost, mixed up or stuck; memory bounded.

#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use support::Pair;
use wayleave_mux::frame::Preface;
use wayleave_mux::{Class, Config, Event, Mux, ResetCode, Role, StreamId};
use wayleave_vocab::Mono;

#[derive(Debug, Clone)]
enum Operation {
    Open { end: usize, bulk: bool },
    Send { end: usize, pick: usize, bytes: usize },
    Finish { end: usize, pick: usize },
    Reset { end: usize, pick: usize },
    Consume { end: usize, pick: usize, bytes: usize },
    Move { from: usize, budget: usize, chunk: usize },
    Control { end: usize, bytes: usize },
    Pass { milliseconds: u64 },
}

fn operation() -> impl Strategy<Value = Operation> {
    let end = 0..2_usize;
    let pick = 0..8_usize;
    prop_oneof![
        2 => (end.clone(), any::<bool>()).prop_map(|(end, bulk)| Operation::Open { end, bulk }),
        6 => (end.clone(), pick.clone(), 1..90_000_usize).prop_map(|(end, pick, bytes)| Operation::Send { end, pick, bytes }),
        1 => (end.clone(), pick.clone()).prop_map(|(end, pick)| Operation::Finish { end, pick }),
        1 => (end.clone(), pick.clone()).prop_map(|(end, pick)| Operation::Reset { end, pick }),
        6 => (end.clone(), pick, 1..200_000_usize).prop_map(|(end, pick, bytes)| Operation::Consume { end, pick, bytes }),
        12 => (end.clone(), 1..100_000_usize, 1..70_000_usize)
            .prop_map(|(from, budget, chunk)| Operation::Move { from, budget, chunk }),
        1 => (end, 0..200_000_usize).prop_map(|(end, bytes)| Operation::Control { end, bytes }),
        1 => (0..400_u64).prop_map(|milliseconds| Operation::Pass { milliseconds }),
    ]
}

/// What one end knows about one stream.
#[derive(Debug, Default)]
struct Side {
    sent: u64,
    finished: bool,
    received: u64,
    unconsumed: usize,
    peer_finished: bool,
    cut: bool,
}

struct World {
    pair: Pair,
    sides: [BTreeMap<u32, (StreamId, Side)>; 2],
    controls: [Vec<usize>; 2],
    control_got: [Vec<usize>; 2],
    peak_bytes: usize,
}

/// The byte that belongs at a place of a stream in a direction: another stream's byte would differ.
fn byte_at(end: usize, id: u32, offset: u64) -> u8 {
    let mixed = (offset ^ u64::from(id) << 32 ^ (end as u64) << 63).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

impl World {
    fn new(config: Config) -> Self {
        Self {
            pair: Pair::ready(config),
            sides: Default::default(),
            controls: Default::default(),
            control_got: Default::default(),
            peak_bytes: 0,
        }
    }

    fn pick(&self, end: usize, pick: usize) -> Option<(u32, StreamId)> {
        let live: Vec<_> = self.sides[end].iter().filter(|(_, (_, side))| !side.cut).collect();
        let (number, (id, _)) = live.get(pick % live.len().max(1))?;
        Some((**number, *id))
    }

    fn apply(&mut self, operation: Operation) {
        let now = self.pair.now;
        match operation {
            Operation::Open { end, bulk } => {
                let class = if bulk { Class::Bulk } else { Class::Interactive };
                if let Ok(id) = self.pair.ends[end].open(class, now) {
                    self.sides[end].insert(id.get(), (id, Side::default()));
                }
            }
            Operation::Send { end, pick, bytes } => self.send(end, pick, bytes),
            Operation::Finish { end, pick } => {
                if let Some((number, id)) = self.pick(end, pick) {
                    self.pair.ends[end].finish(id, now);
                    self.side(end, number).finished = true;
                }
            }
            Operation::Reset { end, pick } => {
                if let Some((number, id)) = self.pick(end, pick) {
                    self.pair.ends[end].reset(id, ResetCode::CANCELLED);
                    let side = self.side(end, number);
                    side.cut = true;
                    side.unconsumed = 0;
                }
            }
            Operation::Consume { end, pick, bytes } => {
                if let Some((number, id)) = self.pick(end, pick) {
                    self.consume(end, number, id, bytes);
                }
            }
            Operation::Move { from, budget, chunk } => {
                self.pair.step(from, budget, chunk).unwrap();
            }
            Operation::Control { end, bytes } => {
                if self.pair.ends[end].send_control(Bytes::from(vec![1; bytes])).is_ok() {
                    self.controls[end].push(bytes);
                }
            }
            Operation::Pass { milliseconds } => self.pair.pass(Duration::from_millis(milliseconds)),
        }
        self.take_events();
    }

    fn side(&mut self, end: usize, number: u32) -> &mut Side {
        &mut self.sides[end].get_mut(&number).unwrap().1
    }

    fn send(&mut self, end: usize, pick: usize, bytes: usize) {
        let Some((number, id)) = self.pick(end, pick) else { return };
        let length = bytes.min(self.pair.ends[end].send_capacity(id)) as u64;
        let side = self.side(end, number);
        if side.finished {
            return;
        }
        let payload: Vec<u8> = (side.sent..side.sent + length).map(|at| byte_at(end, number, at)).collect();
        side.sent += length;
        self.pair.ends[end].send(id, payload.into(), self.pair.now).unwrap();
    }

    fn consume(&mut self, end: usize, number: u32, id: StreamId, bytes: usize) {
        let side = self.side(end, number);
        let count = bytes.min(side.unconsumed);
        side.unconsumed -= count;
        self.pair.ends[end].consumed(id, count, self.pair.now);
    }

    fn take_events(&mut self) {
        for end in 0..2 {
            while let Some(event) = self.pair.ends[end].poll_event() {
                self.take(end, event);
            }
            let unconsumed: usize = self.sides[end].values().map(|(_, side)| side.unconsumed).sum();
            let bound = self.pair.ends[end].granted_bytes();
            assert!(unconsumed as u64 <= bound, "{unconsumed} bytes held, {bound} granted");
            self.peak_bytes = self.peak_bytes.max(unconsumed);
        }
    }

    fn take(&mut self, end: usize, event: Event) {
        match event {
            Event::StreamOpened { id, .. } => {
                self.sides[end].insert(id.get(), (id, Side::default()));
            }
            Event::Data { id, bytes } => {
                let side = self.side(end, id.get());
                if side.cut {
                    return;
                }
                assert!(!side.peer_finished, "data behind the finish");
                for byte in &bytes {
                    assert_eq!(*byte, byte_at(1 - end, id.get(), side.received), "stream {id}");
                    side.received += 1;
                }
                side.unconsumed += bytes.len();
            }
            Event::Finished { id } => self.side(end, id.get()).peer_finished = true,
            Event::Reset { id, .. } => {
                let side = self.side(end, id.get());
                side.cut = true;
                side.unconsumed = 0;
            }
            Event::Control(message) => self.control_got[end].push(message.len()),
            Event::Writable { .. } | Event::Pong { .. } => {}
            Event::Ready | Event::GoAway { .. } | Event::Drained => panic!("nobody caused {event:?}"),
        }
    }

    /// Everybody consumes until nothing moves; then every byte of an uncut stream must have arrived.
    fn drain_and_check(mut self) {
        loop {
            let moved =
                self.pair.step(0, 1 << 20, 1 << 20).unwrap() + self.pair.step(1, 1 << 20, 1 << 20).unwrap();
            self.take_events();
            let mut consumed = 0;
            for end in 0..2 {
                let streams: Vec<_> = self.sides[end]
                    .iter()
                    .map(|(number, (id, side))| (*number, *id, side.unconsumed))
                    .collect();
                for (number, id, unconsumed) in streams {
                    self.consume(end, number, id, unconsumed);
                    consumed += unconsumed;
                }
            }
            if moved + consumed == 0 {
                break;
            }
        }
        for end in 0..2 {
            for (number, (_, side)) in &self.sides[end] {
                let Some((_, other)) = self.sides[1 - end].get(number) else {
                    assert!(side.cut, "stream {number} never arrived");
                    continue;
                };
                let is_complete = |side: &Side| side.finished && side.peer_finished;
                let agrees = side.cut == other.cut || is_complete(side) || is_complete(other);
                assert!(agrees, "stream {number}: a reset reaches whoever has not finished both ways");
                if other.cut {
                    continue;
                }
                assert!(
                    side.cut || side.sent == other.received,
                    "stream {number}: {} of {}",
                    other.received,
                    side.sent
                );
                assert!(
                    side.cut || side.finished == other.peer_finished,
                    "stream {number}: the finish was lost"
                );
            }
            self.controls[end].sort_unstable();
            self.control_got[1 - end].sort_unstable();
            assert_eq!(self.controls[end], self.control_got[1 - end]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn bytes_are_exact_and_nothing_sticks(operations in proptest::collection::vec(operation(), 1..120), small: bool) {
        let config = if small {
            Config {
                window_open_bytes: 1000,
                window_initial_bytes: 3000,
                window_max_bytes: 9000,
                window_pool_bytes: 10_000,
                peer_streams_max: 5,
                ..Config::default()
            }
        } else {
            Config::default()
        };
        let mut world = World::new(config);
        for operation in operations {
            world.apply(operation);
        }
        world.drain_and_check();
    }

    #[test]
    fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut in 1..64_usize) {
        let mut mux = Mux::new(Role::Acceptor, Config::default(), Mono::ZERO);
        let mut input = BytesMut::from(&Preface { window_open_bytes: 1, peer_streams_max: 1 }.encode()[..]);
        for piece in bytes.chunks(cut) {
            input.extend_from_slice(piece);
            if mux.handle_input(&mut input, Mono::ZERO).is_err() {
                break;
            }
        }
        while mux.poll_event().is_some() {}
        mux.poll_output(&mut BytesMut::new(), usize::MAX, Mono::ZERO);
    }

    /// Frames with plausible headers reach further than noise does.
    #[test]
    fn f_arbitrary_frames_never_panic_and_hold_what_they_sent(
        frames in proptest::collection::vec((0..11_u8, 0..9_u32, 0..40_u32, any::<u8>()), 0..200),
    ) {
        let mut mux = Mux::new(Role::Connector, Config { control_bytes_max: 100_000, ..Config::default() }, Mono::ZERO);
        let mut input = BytesMut::from(&Preface { window_open_bytes: u32::MAX, peer_streams_max: u32::MAX }.encode()[..]);
        mux.handle_input(&mut input, Mono::ZERO).unwrap();
        let _ = mux.open(Class::Bulk, Mono::ZERO);
        for (kind, stream, length, fill) in frames {
            let exact = [length, 1, 0, 4, 4, length, length, 8, 8, 4, length][usize::from(kind)];
            input.extend_from_slice(&[0, 0, exact as u8, kind]);
            input.extend_from_slice(&stream.to_be_bytes());
            input.extend_from_slice(&vec![fill; exact as usize]);
            if mux.handle_input(&mut input, Mono::ZERO).is_err() {
                break;
            }
            mux.poll_output(&mut BytesMut::new(), usize::MAX, Mono::ZERO);
        }
        while mux.poll_event().is_some() {}
    }
}
