//! What one connection does, step by step.

#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use bytes::{Bytes, BytesMut};
use std::time::Duration;
use support::Pair;
use wayleave_mux::frame::{Header, Kind, Preface};
use wayleave_mux::{
    Class, Config, ControlError, Event, GoAwayCode, Mux, MuxError, OpenError, ResetCode, Role, SendError,
    StreamId,
};
use wayleave_vocab::Mono;

const SECOND: Duration = Duration::from_secs(1);

fn open(pair: &mut Pair, from: usize, class: Class) -> StreamId {
    let id = pair.ends[from].open(class, pair.now).unwrap();
    pair.settle();
    assert_eq!(events(&mut pair.ends[1 - from]), [Event::StreamOpened { id, class }]);
    id
}

fn send(pair: &mut Pair, from: usize, id: StreamId, bytes: &[u8]) {
    pair.ends[from].send(id, Bytes::copy_from_slice(bytes), pair.now).unwrap();
}

fn events(mux: &mut Mux) -> Vec<Event> {
    std::iter::from_fn(|| mux.poll_event()).collect()
}

/// All data of one stream that an end was given.
fn received(pair: &mut Pair, at: usize, wanted: StreamId) -> usize {
    events(&mut pair.ends[at])
        .into_iter()
        .map(|event| match event {
            Event::Data { id, bytes } if id == wanted => bytes.len(),
            _ => 0,
        })
        .sum()
}

#[test]
fn a_stream_opens_talks_and_ends_in_both_directions() {
    let mut pair = Pair::ready(Config::default());
    let id = open(&mut pair, 1, Class::Interactive);
    assert_eq!(id.get(), 2);
    send(&mut pair, 1, id, b"hello");
    pair.ends[1].finish(id, pair.now);
    pair.settle();
    let hello = Event::Data { id, bytes: Bytes::from_static(b"hello") };
    assert_eq!(events(&mut pair.ends[0]), [hello, Event::Finished { id }]);
    pair.ends[0].consumed(id, 5, pair.now);
    send(&mut pair, 0, id, b"bye");
    pair.ends[0].finish(id, pair.now);
    pair.settle();
    assert_eq!(pair.ends[0].stream_count(), 0);
    assert_eq!(pair.ends[1].stream_count(), 1, "three bytes are not consumed yet");
    pair.ends[1].consumed(id, 3, pair.now);
    assert_eq!(pair.ends[1].stream_count(), 0);
}

#[test]
fn an_unread_stream_stalls_itself_only() {
    let mut pair = Pair::ready(Config::default());
    let unread = open(&mut pair, 1, Class::Bulk);
    let read = open(&mut pair, 1, Class::Bulk);
    let block = vec![1; 64 * 1024];
    let mut stuck = 0;
    for _ in 0..100 {
        if pair.ends[1].send(unread, Bytes::from(block.clone()), pair.now).is_ok() {
            stuck += block.len();
        }
        send(&mut pair, 1, read, &block);
        pair.settle();
        let got = received(&mut pair, 0, read);
        assert_eq!(got, block.len(), "the read stream flows");
        pair.ends[0].consumed(read, got, pair.now);
        pair.settle();
        events(&mut pair.ends[1]);
    }
    assert_eq!(stuck, 2 * 256 * 1024, "one window at the receiver and one queue at the sender");
}

#[test]
fn a_refused_sender_hears_when_there_is_room() {
    let mut pair = Pair::ready(Config::default());
    let id = open(&mut pair, 0, Class::Bulk);
    let capacity = pair.ends[0].send_capacity(id);
    send(&mut pair, 0, id, &vec![0; capacity]);
    let refused = pair.ends[0].send(id, Bytes::from_static(b"x"), pair.now);
    assert_eq!(refused, Err(SendError::Blocked(Bytes::from_static(b"x"))));
    pair.settle();
    assert_eq!(events(&mut pair.ends[0]), [Event::Writable { id }]);
}

#[test]
fn windows_grow_for_streams_that_keep_them_full_and_the_pool_bounds_them() {
    let config = Config { window_pool_bytes: 1024 * 1024, ..Config::default() };
    let mut pair = Pair::ready(config);
    let id = open(&mut pair, 0, Class::Bulk);
    for _ in 0..200 {
        let capacity = pair.ends[0].send_capacity(id);
        send(&mut pair, 0, id, &vec![0; capacity]);
        pair.settle();
        let got = received(&mut pair, 1, id);
        pair.ends[1].consumed(id, got, pair.now);
        pair.settle();
    }
    assert_eq!(pair.ends[1].granted_bytes(), 64 * 1024 + 1024 * 1024);
    pair.ends[1].reset(id, ResetCode::CANCELLED);
    assert_eq!(pair.ends[1].granted_bytes(), 0);
}

#[test]
fn a_slow_stream_keeps_its_first_window() {
    let mut pair = Pair::ready(Config::default());
    let id = open(&mut pair, 0, Class::Bulk);
    for _ in 0..50 {
        send(&mut pair, 0, id, &vec![0; 64 * 1024]);
        pair.settle();
        let got = received(&mut pair, 1, id);
        pair.ends[1].consumed(id, got, pair.now);
        pair.settle();
        pair.pass(SECOND);
    }
    assert_eq!(pair.ends[1].granted_bytes(), 256 * 1024);
}

#[test]
fn a_keystroke_overtakes_a_copy() {
    let mut pair = Pair::ready(Config::default());
    let copy = open(&mut pair, 1, Class::Bulk);
    let shell = open(&mut pair, 1, Class::Interactive);
    send(&mut pair, 1, copy, &vec![0; 200 * 1024]);
    send(&mut pair, 1, shell, b"k");
    pair.ends[1].ping();
    let mut out = BytesMut::new();
    pair.ends[1].poll_output(&mut out, 1, pair.now);
    assert_eq!(out[3], Kind::Ping as u8);
    out.clear();
    pair.ends[1].poll_output(&mut out, 1, pair.now);
    assert_eq!(out[..], [0, 0, 1, 0, 0, 0, 0, shell.get() as u8, b'k']);
    out.clear();
    pair.ends[1].poll_output(&mut out, 1, pair.now);
    assert_eq!(out.len(), 16 * 1024, "frames are short while streams share the connection");
}

#[test]
fn a_lone_stream_uses_long_frames() {
    let mut pair = Pair::ready(Config::default());
    let id = open(&mut pair, 1, Class::Bulk);
    send(&mut pair, 1, id, &vec![0; 200 * 1024]);
    let mut out = BytesMut::new();
    assert_eq!(pair.ends[1].poll_output(&mut out, 1, pair.now), 64 * 1024);
}

#[test]
fn short_control_messages_overtake_long_ones() {
    let mut pair = Pair::ready(Config::default());
    let long = Bytes::from(vec![9; 3_000_000]);
    let empty = Bytes::new();
    pair.ends[0].send_control(long.clone()).unwrap();
    pair.step(0, 100_000, 70_000).unwrap();
    pair.ends[0].send_control(Bytes::from_static(b"short")).unwrap();
    pair.ends[0].send_control(empty.clone()).unwrap();
    pair.settle();
    let expected =
        [Event::Control(Bytes::from_static(b"short")), Event::Control(empty), Event::Control(long)];
    assert_eq!(events(&mut pair.ends[1]), expected);
}

#[test]
fn control_messages_are_bounded() {
    let mut pair = Pair::ready(Config { control_sent_bytes_max: 1000, ..Config::default() });
    let refused = pair.ends[0].send_control(Bytes::from(vec![0; 1001]));
    assert_eq!(refused, Err(ControlError::TooLong(1001)));
    let mut full = Ok(());
    for _ in 0..10_000 {
        full = full.and_then(|()| pair.ends[0].send_control(Bytes::from(vec![0; 1000])));
    }
    assert_eq!(full, Err(ControlError::Full));
}

#[test]
fn f_what_a_side_sends_does_not_widen_what_it_takes() {
    let config = Config { control_bytes_max: 1000, control_sent_bytes_max: 100_000, ..Config::default() };
    for (length, is_taken) in [(1000, true), (1001, false), (100_000, false)] {
        let mut pair = Pair::ready(config);
        pair.ends[0].send_control(Bytes::from(vec![0; length])).unwrap();
        let taken = pair.step(0, 200_000, 200_000);
        assert_eq!(taken.is_ok(), is_taken, "{length}: {taken:?}");
    }
}

#[test]
fn limits_of_streams_hold_on_both_sides() {
    let mut pair = Pair::ready(Config { peer_streams_max: 2, ..Config::default() });
    let first = pair.ends[0].open(Class::Bulk, pair.now).unwrap();
    pair.ends[0].open(Class::Bulk, pair.now).unwrap();
    assert_eq!(pair.ends[0].open(Class::Bulk, pair.now), Err(OpenError::TooManyStreams));
    pair.ends[0].reset(first, ResetCode::CANCELLED);
    assert!(pair.ends[0].open(Class::Bulk, pair.now).is_ok());
    pair.settle();
    assert_eq!(pair.ends[1].stream_count(), 2);
}

#[test]
fn ten_thousand_streams_live_side_by_side() {
    let mut pair = Pair::ready(Config::default());
    let ids: Vec<_> = (0..10_000).map(|_| pair.ends[1].open(Class::Interactive, pair.now).unwrap()).collect();
    for id in &ids {
        send(&mut pair, 1, *id, b"x");
        pair.ends[1].finish(*id, pair.now);
    }
    pair.settle();
    assert_eq!(events(&mut pair.ends[0]).len(), 30_000);
    for id in ids {
        pair.ends[0].reset(id, ResetCode::CANCELLED);
    }
    pair.settle();
    assert_eq!((pair.ends[0].stream_count(), pair.ends[1].stream_count()), (0, 0));
}

#[test]
fn draining_lets_streams_finish_and_takes_no_more() {
    let mut pair = Pair::ready(Config::default());
    let id = open(&mut pair, 1, Class::Bulk);
    let crossing = pair.ends[1].open(Class::Bulk, pair.now).unwrap();
    pair.ends[0].go_away(GoAwayCode::DRAIN);
    pair.settle();
    assert_eq!(pair.ends[1].open(Class::Bulk, pair.now), Err(OpenError::GoingAway));
    send(&mut pair, 1, id, b"last");
    pair.ends[1].finish(id, pair.now);
    pair.settle();
    assert_eq!(
        events(&mut pair.ends[1]),
        [Event::GoAway { code: GoAwayCode::DRAIN }, Event::Reset { id: crossing, code: ResetCode::REFUSED }]
    );
    assert_eq!(received(&mut pair, 0, id), 4);
    pair.ends[0].consumed(id, 4, pair.now);
    pair.ends[0].finish(id, pair.now);
    pair.settle();
    assert_eq!(events(&mut pair.ends[0]), [Event::Drained]);
    assert_eq!(events(&mut pair.ends[1]), [Event::Finished { id }, Event::Drained]);
}

#[test]
fn frames_that_race_with_a_reset_are_tolerated() {
    let mut pair = Pair::ready(Config::default());
    let id = open(&mut pair, 1, Class::Bulk);
    send(&mut pair, 1, id, &[0; 40_000]);
    pair.ends[1].finish(id, pair.now);
    pair.step(1, 1 << 20, 10_000).unwrap();
    pair.ends[0].reset(id, ResetCode::CANCELLED);
    pair.settle();
    assert_eq!(events(&mut pair.ends[1]), [Event::Reset { id, code: ResetCode::CANCELLED }]);
    assert_eq!(
        pair.ends[1].send(id, Bytes::from_static(b"x"), pair.now),
        Err(SendError::Closed(Bytes::from_static(b"x")))
    );
}

#[test]
fn g_a_silent_peer_is_pinged_and_then_given_up() {
    let mut pair = Pair::ready(Config::default());
    assert_eq!(pair.ends[0].poll_timeout(), Some(Mono::ZERO.after(5 * SECOND)));
    assert_eq!(pair.ends[1].poll_timeout(), Some(Mono::ZERO.after(Duration::from_millis(7500))));
    pair.pass(5 * SECOND);
    pair.ends[0].handle_timeout(pair.now).unwrap();
    pair.settle();
    assert_eq!(events(&mut pair.ends[0]), [Event::Pong { round_trip: Duration::ZERO }]);
    pair.pass(15 * SECOND);
    assert_eq!(pair.ends[1].handle_timeout(pair.now), Err(MuxError::Silent(15 * SECOND)));
    assert_eq!(pair.ends[1].poll_timeout(), None);
}

#[test]
fn an_idle_end_is_small_also_after_it_carried_a_dial() {
    let mut pair = Pair::ready(Config::default());
    let id = open(&mut pair, 1, Class::Interactive);
    send(&mut pair, 1, id, &[1; 5000]);
    pair.settle();
    events(&mut pair.ends[0]);
    pair.ends[0].reset(id, ResetCode::CANCELLED);
    pair.settle();
    events(&mut pair.ends[1]);
    let [connector, acceptor] = &pair.ends;
    assert_eq!((connector.retained_bytes(), acceptor.retained_bytes()), (0, 0));
    assert!(size_of::<Mux>() < 1024, "{}", size_of::<Mux>());
}

/// Bytes of frames behind a good preface, given to an acceptor that has opened stream 2.
fn check_refused(frames: &[(Header, &[u8])], expected: MuxError) {
    let config = Config { control_bytes_max: 1 << 20, peer_streams_max: 4, ..Config::default() };
    let mut mux = Mux::new(Role::Acceptor, config, Mono::ZERO);
    let mut input = BytesMut::from(&Preface { window_open_bytes: 1000, peer_streams_max: 4 }.encode()[..]);
    mux.handle_input(&mut input, Mono::ZERO).unwrap();
    mux.open(Class::Bulk, Mono::ZERO).unwrap();
    for (header, payload) in frames {
        input.extend_from_slice(&header.encode());
        input.extend_from_slice(payload);
    }
    assert_eq!(mux.handle_input(&mut input, Mono::ZERO), Err(expected));
    assert_eq!(mux.handle_input(&mut input, Mono::ZERO), Err(expected), "it stays failed");
    let mut out = BytesMut::new();
    mux.poll_output(&mut out, 1 << 20, Mono::ZERO);
    assert!(out.ends_with(&[0, 0, 4, 9, 0, 0, 0, 0, 0, 0, 0, 1]), "the peer is told");
}

#[test]
fn f_offences_end_the_connection() {
    let frame = |kind, stream, length| Header { length, kind, stream };
    let opened = (frame(Kind::Open, 1, 1), &[0][..]);
    check_refused(&[(frame(Kind::Data, 3, 1), b"x")], MuxError::NeverOpened(3));
    check_refused(&[(frame(Kind::Data, 4, 1), b"x")], MuxError::NeverOpened(4));
    check_refused(&[(frame(Kind::Open, 2, 1), &[0])], MuxError::BadOpen(2));
    check_refused(&[opened, opened], MuxError::BadOpen(1));
    check_refused(&[(frame(Kind::Open, 1, 1), &[7])], MuxError::UnknownClass(7));
    check_refused(&[opened, (frame(Kind::Credit, 1, 4), &[0; 4])], MuxError::BadCredit(1));
    check_refused(&[opened, (frame(Kind::Credit, 1, 4), &[0xff; 4])], MuxError::BadCredit(1));
    let finish = (frame(Kind::Finish, 2, 0), &[][..]);
    check_refused(&[finish, finish], MuxError::AfterFinish(2));
    check_refused(&[finish, (frame(Kind::Data, 2, 1), b"x")], MuxError::AfterFinish(2));
    let block = vec![0; 65536];
    let data = (frame(Kind::Data, 2, 65536), &block[..]);
    check_refused(&[data, (frame(Kind::Data, 2, 65536), &block), data, data, data], MuxError::OverCredit(2));
    check_refused(&[(frame(Kind::ControlLarge, 0, 4), &[0xff; 4])], MuxError::ControlTooLong(u32::MAX));
    check_refused(&[(frame(Kind::ControlSmall, 0, 4), &[0, 1, 0, 1])], MuxError::ControlTooLong(65537));
    let overlong = MuxError::BadLength { kind: 5, length: 6 };
    check_refused(&[(frame(Kind::ControlSmall, 0, 6), &[0, 0, 0, 1, 0, 0])], overlong);
    let ping = (frame(Kind::Ping, 0, 8), &[0; 8][..]);
    check_refused(&[ping; 9], MuxError::PingFlood);
}

#[test]
fn f_a_peer_that_does_not_read_its_answers_is_cut_off() {
    let open = |id| (Header { length: 1, kind: Kind::Open, stream: id }, &[0][..]);
    let flood: Vec<_> = (0..1000).map(|n| open(2 * n + 1)).collect();
    check_refused(&flood, MuxError::Backlog);
}

#[test]
fn f_another_protocol_is_noticed_at_its_first_bytes() {
    let mut mux = Mux::new(Role::Acceptor, Config::default(), Mono::ZERO);
    assert_eq!(mux.handle_input(&mut BytesMut::from("GE"), Mono::ZERO), Err(MuxError::BadPreface));
}
