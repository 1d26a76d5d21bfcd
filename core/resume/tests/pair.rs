//! Two ends on virtual time, over connections that are cut at any byte: nothing lost, repeated, or stuck.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::time::Duration;
use wayleave_resume::{
    Budget, Effect, End, KEPT_BYTES_BASE, KEPT_BYTES_FLOOR, KEPT_BYTES_MAX, Role, Segment, Stream, Violation,
};
use wayleave_vocab::Mono;

const HEADER: &[u8] = b"<hd>";
const MAX_DETACHED: Duration = Duration::from_secs(300);

/// What a test does to the machines that a bug might do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    None,
    /// The client says to have received one byte fewer than it has.
    ReplayByte,
    /// The client says to have received one byte more.
    SkipByte,
    /// Acknowledgements are believed before they are true.
    SkipAcknowledgement,
}

struct Side {
    stream: Stream,
    /// On the way to the other end, in order.
    wire: VecDeque<Segment>,
    written: Vec<u8>,
    got: Vec<u8>,
    is_end_seen: bool,
}

impl Side {
    fn new(role: Role, budget: &Budget, now: Mono) -> Self {
        Self {
            stream: Stream::new(role, budget.clone(), MAX_DETACHED, now),
            wire: VecDeque::new(),
            written: Vec::new(),
            got: Vec::new(),
            is_end_seen: false,
        }
    }

    /// Writes what there is room for.
    fn write(&mut self, bytes: usize) -> usize {
        let bytes = bytes.min(self.stream.room());
        let at = self.written.len();
        let payload: Vec<u8> = (at..at + bytes).map(|n| (n % 251) as u8).collect();
        let mut framed = BytesMut::from(HEADER);
        framed.put_slice(&payload);
        self.stream.handle_write(framed.freeze(), HEADER.len());
        self.written.extend_from_slice(&payload);
        bytes
    }

    fn send(&mut self, now: Mono) {
        while let Some(segment) = self.stream.poll_segment(now) {
            self.wire.push_back(segment);
        }
    }

    /// Takes one segment that the other end has sent; of data only a part when the cut is inside.
    fn take(&mut self, segment: &Segment, cut: Option<usize>, now: Mono) -> Result<(), Violation> {
        match segment {
            Segment::Whole(framed) => self.take_data(&framed[HEADER.len()..], cut, now),
            Segment::Rest(rest) => self.take_data(rest, cut, now),
            Segment::Fin => {
                self.is_end_seen = true;
                self.stream.handle_fin(now)
            }
            Segment::Reset => {
                self.stream.handle_reset();
                Ok(())
            }
            Segment::Ask => {
                self.stream.handle_ask(now);
                Ok(())
            }
            Segment::Acknowledge { received } => self.stream.handle_acknowledge(*received, now),
            Segment::Ping { received } => self.stream.handle_ping(*received, now),
            Segment::Pong { received } => self.stream.handle_pong(*received, now),
        }
    }

    fn take_data(&mut self, data: &[u8], cut: Option<usize>, now: Mono) -> Result<(), Violation> {
        let data = &data[..cut.unwrap_or(data.len()).min(data.len())];
        self.stream.handle_data(data.len(), now)?;
        self.got.extend_from_slice(data);
        Ok(())
    }
}

struct Pair {
    now: Mono,
    client: Side,
    agent: Side,
    mutation: Mutation,
    is_stuck: bool,
}

impl Pair {
    fn new(mutation: Mutation) -> Self {
        Self::with_budget(mutation, &Budget::default())
    }

    fn with_budget(mutation: Mutation, budget: &Budget) -> Self {
        let now = Mono::ZERO;
        Self {
            now,
            client: Side::new(Role::Client, budget, now),
            agent: Side::new(Role::Agent, budget, now),
            mutation,
            is_stuck: false,
        }
    }

    fn side(&mut self, index: usize) -> &mut Side {
        if index == 0 { &mut self.client } else { &mut self.agent }
    }

    fn ends(&mut self, from: usize) -> (&mut Side, &mut Side) {
        if from == 0 { (&mut self.client, &mut self.agent) } else { (&mut self.agent, &mut self.client) }
    }

    /// Delivers up to so many segments.
    fn deliver(&mut self, from: usize, segments: usize) -> Result<(), Violation> {
        let now = self.now;
        let (sender, receiver) = self.ends(from);
        if !sender.stream.is_attached() || !receiver.stream.is_attached() {
            return Ok(());
        }
        sender.send(now);
        for _ in 0..segments {
            let Some(segment) = sender.wire.pop_front() else { break };
            receiver.take(&segment, None, now)?;
        }
        receiver.send(now);
        Ok(())
    }

    /// The connection is cut: of what is under way a part still arrives, the last of it in the middle of a segment.
    fn cut(&mut self, from: usize, segments: usize, bytes: usize) -> Result<(), Violation> {
        if !self.client.stream.is_attached() {
            return Ok(());
        }
        self.deliver(from, segments)?;
        let (now, mutation) = (self.now, self.mutation);
        let (sender, receiver) = self.ends(from);
        if mutation == Mutation::SkipAcknowledgement
            && let Some(Segment::Whole(framed)) = sender.wire.front()
        {
            // Counted as received before it is.
            let received = receiver.stream.received() + (framed.len() - HEADER.len()) as u64;
            sender.stream.handle_acknowledge(received, now)?;
        }
        if let Some(segment @ (Segment::Whole(_) | Segment::Rest(_))) = sender.wire.front() {
            let segment = segment.clone();
            receiver.take(&segment, Some(bytes), now)?;
        }
        for side in [&mut self.client, &mut self.agent] {
            side.wire.clear();
            side.stream.handle_lost(now);
        }
        Ok(())
    }

    fn reattach(&mut self) -> Result<(), Violation> {
        if self.client.stream.is_attached() {
            return Ok(());
        }
        let (client, agent) = (self.client.stream.received(), self.agent.stream.received());
        let client = match self.mutation {
            Mutation::ReplayByte => client.saturating_sub(1),
            Mutation::SkipByte => client + 1,
            Mutation::None | Mutation::SkipAcknowledgement => client,
        };
        self.agent.stream.handle_attached(client, self.now)?;
        self.client.stream.handle_attached(agent, self.now)
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        let now = self.now;
        for side in [&mut self.client, &mut self.agent] {
            side.stream.handle_timeout(now);
            while let Some(effect) = side.stream.poll_effect() {
                if effect == Effect::GiveUp {
                    side.stream.handle_lost(now);
                }
            }
        }
        if self.client.stream.is_attached() != self.agent.stream.is_attached() {
            self.client.stream.handle_lost(now);
            self.agent.stream.handle_lost(now);
            self.client.wire.clear();
            self.agent.wire.clear();
        }
    }

    /// Runs until both ends have everything.
    fn settle(&mut self) -> Result<(), Violation> {
        self.client.stream.handle_finish();
        self.agent.stream.handle_finish();
        for _ in 0..10_000 {
            self.reattach()?;
            self.deliver(0, usize::MAX)?;
            self.deliver(1, usize::MAX)?;
            if self.client.stream.is_settled() && self.agent.stream.is_settled() {
                return Ok(());
            }
        }
        // A bug that was put in on purpose may show by this.
        assert!(self.mutation != Mutation::None, "stuck: {:?}\n{:?}", self.client.stream, self.agent.stream);
        self.is_stuck = true;
        Ok(())
    }

    /// What an end got is what the other wrote, or the beginning of it.
    fn is_exact(&self) -> bool {
        self.client.written.starts_with(&self.agent.got) && self.agent.written.starts_with(&self.client.got)
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Write { side: usize, bytes: usize },
    Deliver { from: usize, segments: usize },
    Cut { from: usize, segments: usize, bytes: usize },
    Reattach,
    Finish { side: usize },
    Pass { milliseconds: u64 },
}

fn operation() -> impl Strategy<Value = Operation> {
    let side = 0..2_usize;
    prop_oneof![
        8 => (side.clone(), 1..60_000_usize).prop_map(|(side, bytes)| Operation::Write { side, bytes }),
        4 => (side.clone(), 1..40_usize).prop_map(|(side, bytes)| Operation::Write { side, bytes }),
        8 => (side.clone(), 0..5_usize).prop_map(|(from, segments)| Operation::Deliver { from, segments }),
        3 => (side.clone(), 0..4_usize, 0..60_000_usize)
            .prop_map(|(from, segments, bytes)| Operation::Cut { from, segments, bytes }),
        4 => Just(Operation::Reattach),
        1 => side.prop_map(|side| Operation::Finish { side }),
        2 => (0..20_000_u64).prop_map(|milliseconds| Operation::Pass { milliseconds }),
    ]
}

fn run(operations: &[Operation], mutation: Mutation, budget: &Budget) -> (Result<(), Violation>, Pair) {
    let mut pair = Pair::with_budget(mutation, budget);
    let result = operations.iter().try_for_each(|operation| {
        match *operation {
            Operation::Write { side, bytes } => {
                pair.side(side).write(bytes);
            }
            Operation::Deliver { from, segments } => pair.deliver(from, segments)?,
            Operation::Cut { from, segments, bytes } => pair.cut(from, segments, bytes)?,
            Operation::Reattach => pair.reattach()?,
            Operation::Finish { side } => pair.side(side).stream.handle_finish(),
            Operation::Pass { milliseconds } => pair.pass(Duration::from_millis(milliseconds)),
        }
        Ok(())
    });
    let result = result.and_then(|()| pair.settle());
    (result, pair)
}

proptest! {
    #[test]
    fn whatever_is_cut_every_byte_arrives_once(operations in proptest::collection::vec(operation(), 1..120)) {
        let budget = Budget::default();
        let (result, pair) = run(&operations, Mutation::None, &budget);
        prop_assert_eq!(result, Ok(()));
        prop_assert!(pair.client.written == pair.agent.got && pair.agent.written == pair.client.got);
        prop_assert!(pair.client.is_end_seen && pair.agent.is_end_seen);
        prop_assert_eq!(budget.used(), 0);
        prop_assert_eq!(pair.client.stream.kept() + pair.agent.stream.kept(), 0);
    }

    #[test]
    fn the_same_with_an_empty_account(operations in proptest::collection::vec(operation(), 1..60)) {
        let budget = Budget::new(0);
        let (result, pair) = run(&operations, Mutation::None, &budget);
        prop_assert_eq!(result, Ok(()));
        prop_assert!(pair.client.written == pair.agent.got && pair.agent.written == pair.client.got);
    }

    #[test]
    fn f_numbers_of_a_lying_peer_never_panic_and_change_nothing(
        numbers in proptest::collection::vec(any::<u64>(), 1..20),
    ) {
        let mut pair = Pair::new(Mutation::None);
        pair.client.write(1000);
        pair.client.send(pair.now);
        for number in numbers {
            let (kept, now) = (pair.client.stream.kept(), pair.now);
            let took = pair.client.stream.handle_acknowledge(number, now);
            prop_assert_eq!(took.is_ok(), number <= 1000);
            if took.is_err() {
                prop_assert_eq!(pair.client.stream.kept(), kept);
            }
            pair.client.stream.handle_lost(now);
            let _ = pair.client.stream.handle_attached(number, now);
            pair.client.stream.handle_lost(now);
            let _ = pair.client.stream.handle_attached(1000, now);
            pair.client.send(now);
        }
    }
}

/// A cut in the middle of data, with more written on both sides before the next attachment.
fn interrupted(mutation: Mutation) -> (Result<(), Violation>, Pair) {
    let operations: Vec<Operation> = (0..8)
        .flat_map(|_| {
            [
                Operation::Write { side: 1, bytes: 30_000 },
                Operation::Write { side: 0, bytes: 2_000 },
                Operation::Cut { from: 1, segments: 0, bytes: 10_000 },
                Operation::Write { side: 1, bytes: 5_000 },
                Operation::Reattach,
                Operation::Deliver { from: 1, segments: 9 },
            ]
        })
        .collect();
    run(&operations, mutation, &Budget::default())
}

#[test]
fn bugs_that_are_put_in_on_purpose_are_caught() {
    let caught = |mutation| {
        let (result, pair) = interrupted(mutation);
        result.is_err()
            || pair.is_stuck
            || !pair.is_exact()
            || pair.client.got.len() != pair.agent.written.len()
    };
    assert!(!caught(Mutation::None));
    for mutation in [Mutation::ReplayByte, Mutation::SkipByte, Mutation::SkipAcknowledgement] {
        assert!(caught(mutation), "{mutation:?}");
    }
}

#[test]
fn half_close_and_reset_are_exact_over_a_cut() {
    let mut pair = Pair::new(Mutation::None);
    pair.client.write(10);
    pair.client.stream.handle_finish();
    pair.cut(0, 0, 4).unwrap();
    assert_eq!(pair.agent.stream.end(), End::Open);
    pair.reattach().unwrap();
    pair.deliver(0, 9).unwrap();
    assert_eq!((pair.agent.stream.end(), pair.agent.got.len()), (End::Finished, 10));
    assert_eq!(pair.agent.write(5), 5, "the other direction goes on");

    pair.agent.stream.handle_abort();
    pair.cut(0, 0, 0).unwrap();
    assert_eq!(pair.client.stream.end(), End::Open);
    pair.reattach().unwrap();
    pair.deliver(1, 9).unwrap();
    assert_eq!(pair.client.stream.end(), End::Reset);
    assert_eq!(pair.client.stream.room(), 0);
}

#[test]
fn g_a_silent_connection_is_given_up_within_seconds_and_a_living_one_is_not() {
    let mut pair = Pair::new(Mutation::None);
    for _ in 0..100 {
        let at = pair.client.stream.poll_timeout().unwrap();
        pair.pass(at.since(pair.now));
        pair.deliver(0, 9).unwrap();
        pair.deliver(1, 9).unwrap();
        assert!(pair.client.stream.is_attached(), "it answers");
    }
    let silent_since = pair.now;
    pair.client.write(1);
    pair.client.send(pair.now);
    while pair.client.stream.is_attached() {
        let at = pair.client.stream.poll_timeout().unwrap();
        pair.pass(at.since(pair.now));
        pair.client.send(pair.now);
    }
    assert_eq!(pair.now.since(silent_since), Duration::from_secs(7));
}

#[test]
fn g_a_stream_that_nobody_comes_back_for_is_over_in_its_time() {
    let mut pair = Pair::new(Mutation::None);
    pair.cut(0, 0, 0).unwrap();
    let (stream, now) = (&mut pair.agent.stream, pair.now);
    assert_eq!(stream.poll_timeout(), Some(now.after(MAX_DETACHED)));
    stream.handle_max_detached(Duration::from_secs(10));
    stream.handle_timeout(now.after(Duration::from_secs(9)));
    assert_eq!(stream.poll_effect(), None);
    stream.handle_timeout(now.after(Duration::from_secs(10)));
    assert_eq!((stream.poll_effect(), stream.poll_effect()), (Some(Effect::Expire), None));
    assert_eq!(stream.poll_timeout(), None);
}

#[test]
fn the_writer_waits_at_the_bound_and_the_bound_grows_with_the_path() {
    let mut pair = Pair::new(Mutation::None);
    let fill = |pair: &mut Pair| {
        let mut wrote = 0;
        loop {
            let now = pair.now;
            let bytes = pair.agent.write(32 * 1024);
            if bytes == 0 {
                return wrote;
            }
            wrote += bytes;
            pair.agent.send(now);
        }
    };
    assert_eq!(fill(&mut pair), KEPT_BYTES_BASE);
    for _ in 0..8 {
        pair.pass(Duration::from_millis(100));
        pair.deliver(1, usize::MAX).unwrap();
        pair.deliver(0, usize::MAX).unwrap();
        fill(&mut pair);
    }
    assert_eq!(pair.agent.stream.window(), KEPT_BYTES_MAX);
    assert!(pair.agent.stream.kept() <= KEPT_BYTES_MAX);
}

#[test]
fn a_slow_path_gets_no_larger_window() {
    let mut pair = Pair::new(Mutation::None);
    for round in 0..40_u64 {
        pair.agent.write(64 * 1024);
        let now = pair.now;
        pair.agent.send(now);
        // The first rounds are quick, as an empty queue is; then the queue fills.
        pair.pass(Duration::from_millis(if round < 2 { 50 } else { 600 }));
        pair.deliver(1, usize::MAX).unwrap();
        pair.deliver(0, usize::MAX).unwrap();
    }
    assert!(pair.agent.stream.window() <= 2 * KEPT_BYTES_BASE, "{}", pair.agent.stream.window());
}

#[test]
fn f_all_streams_together_keep_no_more_than_the_account_and_each_goes_on() {
    let budget = Budget::new(KEPT_BYTES_BASE);
    let mut pairs: Vec<Pair> = (0..8).map(|_| Pair::with_budget(Mutation::None, &budget)).collect();
    for _ in 0..30 {
        for pair in &mut pairs {
            pair.agent.write(32 * 1024);
            let now = pair.now;
            pair.agent.send(now);
        }
    }
    let kept: usize = pairs.iter().map(|pair| pair.agent.stream.kept()).sum();
    assert!(kept <= KEPT_BYTES_BASE + pairs.len() * KEPT_BYTES_FLOOR, "{kept}");
    for pair in &mut pairs {
        let before = pair.agent.written.len();
        let now = pair.now;
        pair.agent.stream.handle_blocked(now);
        pair.deliver(1, usize::MAX).unwrap();
        pair.deliver(0, usize::MAX).unwrap();
        assert!(pair.agent.write(1000) > 0 && pair.agent.written.len() > before);
        pair.settle().unwrap();
        assert!(pair.is_exact());
    }
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_chunk_that_is_cut_goes_on_without_its_header() {
    let mut pair = Pair::new(Mutation::None);
    pair.agent.write(100);
    pair.cut(1, 0, 30).unwrap();
    pair.reattach().unwrap();
    let now = pair.now;
    let rest = pair.agent.stream.poll_segment(now);
    assert_eq!(rest, Some(Segment::Rest(Bytes::from((30..100_u8).collect::<Vec<_>>()))));
}
