//! Client and server of this crate against each other, in memory and on stepped time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/login_proof.rs"]
mod login_proof;
#[path = "support/pair.rs"]
mod pair;
mod support;

use bytes::Bytes;
use pair::{Pair, client_config, server_config, stranger_config};
use proptest::prelude::*;
use std::time::Duration;
use support::pattern;
use wayleave_ssh::{
    ByteQueue, ChannelId, ChannelOpen, ChannelRequest, CipherAlgorithm, ConnectionError, DataStream,
    Deadline, DisconnectReason, Event, GlobalReply, GlobalRequest, KexAlgorithm, OpenFailure, TcpEndpoint,
    VerbError,
};

const MIB: usize = 1024 * 1024;

#[test]
fn every_key_exchange_and_cipher() {
    for kex in KexAlgorithm::ALL {
        for cipher in CipherAlgorithm::ALL {
            for is_guessing in [false, true] {
                let mut client = client_config();
                client.algorithms.kex = vec![kex];
                client.algorithms.ciphers = vec![cipher];
                client.is_guessing = is_guessing;
                let pair = Pair::open_with(&client, &server_config());
                let ids = (pair.client.connection.session_id(), pair.server.connection.session_id());
                assert!(ids.0.is_some() && ids.0 == ids.1, "{kex:?} {cipher:?}");
            }
        }
    }
}

#[test]
fn a_wrong_guess_costs_nothing_but_a_share() {
    let mut server = server_config();
    server.algorithms.kex = vec![KexAlgorithm::Curve25519Sha256];
    Pair::open_with(&client_config(), &server);
}

#[test]
fn nothing_in_common_is_said_so() {
    let (mut client, mut server) = (client_config(), server_config());
    client.algorithms.ciphers = vec![CipherAlgorithm::Aes128Gcm];
    server.algorithms.ciphers = vec![CipherAlgorithm::Aes256Gcm];
    let mut pair = Pair::new(&client, &server);
    pair.settle();
    let text = pair.server.error.unwrap().to_string();
    assert_eq!(text, "key exchange: no cipher in common");
}

#[test]
fn d_a_client_of_another_authority_stays_outside() {
    let mut pair = Pair::new(&stranger_config(), &server_config());
    pair.settle();
    let failed = ConnectionError::AuthenticationFailed { methods_left: "publickey".into() };
    assert_eq!(pair.client.error, Some(failed));
    assert!(!pair.server.connection.is_open());
}

#[test]
fn n_authentication_attempts_are_bounded() {
    let mut client = stranger_config();
    client.credentials = vec![client.credentials[0].clone(); 10];
    let mut pair = Pair::new(&client, &server_config());
    pair.settle();
    assert_eq!(pair.server.error, Some(ConnectionError::TooManyAuthAttempts));
}

#[test]
fn d_verbs_before_authentication_are_refused() {
    let mut pair = Pair::new(&stranger_config(), &server_config());
    assert_eq!(pair.client.connection.open(&ChannelOpen::Session), Err(VerbError::NotOpen));
    assert_eq!(pair.server.connection.accept_auth(), Err(VerbError::WrongState));
    assert_eq!(pair.client.connection.accept_host(), Err(VerbError::WrongState));
    assert_eq!(pair.client.connection.rekey(), Err(VerbError::NotOpen));
}

#[test]
fn a_channel_from_open_to_close() {
    let mut pair = Pair::open();
    let (ours, theirs) = session(&mut pair);
    let exec = ChannelRequest::Exec { command: Bytes::from_static(b"id") };
    let request = pair.client.connection.request(ours, &exec, true).unwrap().unwrap();
    pair.settle();
    let [Event::Request { request: got, reply, .. }] = &mut pair.server.take_events()[..] else {
        panic!("one request");
    };
    assert_eq!(*got, exec);
    pair.server.connection.respond(reply.take().unwrap(), true);
    send(&mut pair, theirs, b"out");
    let mut text = Bytes::from_static(b"err");
    pair.server.connection.send(theirs, DataStream::Stderr, &mut text).unwrap();
    pair.server.connection.eof(theirs);
    let status = ChannelRequest::ExitStatus { status: 3 };
    pair.server.connection.request(theirs, &status, false).unwrap();
    pair.server.connection.close(theirs);
    pair.settle();
    let data = |stream, data| Event::Data { channel: ours, stream, data: Bytes::from_static(data) };
    let expected = vec![
        Event::RequestAnswered { channel: ours, request, is_success: true },
        Event::Request { channel: ours, request: status, reply: None },
        data(DataStream::Main, b"out"),
        data(DataStream::Stderr, b"err"),
        Event::Eof { channel: ours },
        Event::Closed { channel: ours },
    ];
    assert_eq!(pair.client.take_events(), expected);
    assert_eq!(pair.server.take_events(), vec![Event::Closed { channel: theirs }]);
    assert_eq!(pair.client.connection.channel_count(), 0);
    assert_eq!(pair.server.connection.channel_count(), 0);
    let gone = pair.client.connection.send(ours, DataStream::Main, &mut Bytes::from_static(b"x"));
    assert_eq!(gone, Err(VerbError::UnknownChannel));
}

#[test]
fn half_close_leaves_the_other_half() {
    let mut pair = Pair::open();
    let (ours, theirs) = session(&mut pair);
    pair.client.connection.eof(ours);
    pair.settle();
    assert_eq!(pair.server.take_events(), vec![Event::Eof { channel: theirs }]);
    let refused = pair.client.connection.send(ours, DataStream::Main, &mut Bytes::from_static(b"x"));
    assert_eq!(refused, Err(VerbError::WrongState));
    send(&mut pair, theirs, b"still here");
    pair.settle();
    assert!(matches!(&pair.client.take_events()[..], [Event::Data { .. }]));
}

/// The reason for this crate.
#[test]
fn an_unread_channel_stalls_no_other_and_holds_no_more_than_its_window() {
    let mut pair = Pair::open();
    let (unread, unread_far) = session(&mut pair);
    let (live, live_far) = session(&mut pair);
    // Channel one: the client pushes as much as it can, the server never consumes.
    let mut offered = pattern(0, 8 * MIB);
    let mut held = ByteQueue::new();
    let mut echoed = 0;
    let mut round = 0;
    while echoed < 8 * MIB {
        pair.client.connection.send(unread, DataStream::Main, &mut offered).unwrap();
        let mut ping = pattern(round, 16 * 1024);
        pair.client.connection.send(live, DataStream::Main, &mut ping).unwrap();
        pair.settle();
        for event in pair.server.take_events() {
            match event {
                Event::Data { channel, data, .. } if channel == unread_far => held.push(data),
                Event::Data { channel, mut data, .. } if channel == live_far => {
                    pair.server.connection.consumed(channel, data.len());
                    pair.server.connection.send(channel, DataStream::Main, &mut data).unwrap();
                }
                _ => {}
            }
        }
        pair.settle();
        let before = echoed;
        for event in pair.client.take_events() {
            if let Event::Data { channel, data, .. } = event {
                pair.client.connection.consumed(channel, data.len());
                echoed += data.len();
            }
        }
        assert!(echoed > before, "the live channel stalled after {echoed} bytes");
        round += 1;
    }
    assert_eq!(held.len(), 2 * MIB, "exactly the window");
    assert_eq!(offered.len(), 8 * MIB - 2 * MIB - 256 * 1024, "window and send queue were taken");
    assert_eq!(pair.client.connection.send_room(unread), 0);
    // The reader wakes up: everything arrives.
    let mut received = 0;
    while received < 8 * MIB {
        let len = held.len();
        assert!(len > 0, "stalled after {received}");
        let mut bytes = bytes::BytesMut::new();
        held.copy_out(len, &mut bytes);
        assert!(bytes == pattern(received, len), "at {received}");
        received += len;
        pair.server.connection.consumed(unread_far, len);
        pair.client.connection.send(unread, DataStream::Main, &mut offered).unwrap();
        pair.settle();
        pair.client.connection.send(unread, DataStream::Main, &mut offered).unwrap();
        pair.settle();
        for event in pair.server.take_events() {
            if let Event::Data { data, .. } = event {
                held.push(data);
            }
        }
    }
}

#[test]
fn ready_channels_take_turns() {
    let mut pair = Pair::open();
    let (bulk, bulk_far) = session(&mut pair);
    let (key, key_far) = session(&mut pair);
    pair.client.connection.send(bulk, DataStream::Main, &mut pattern(0, 256 * 1024)).unwrap();
    pair.client.connection.send(key, DataStream::Main, &mut Bytes::from_static(b"k")).unwrap();
    pair.settle();
    let order: Vec<ChannelId> = pair
        .server
        .take_events()
        .into_iter()
        .filter_map(|e| if let Event::Data { channel, .. } = e { Some(channel) } else { None })
        .collect();
    assert_eq!(order[..3], [bulk_far, key_far, bulk_far], "the key press waits for one message only");
}

#[test]
fn writable_is_told_once_there_is_room() {
    let mut pair = Pair::open();
    let (ours, _) = session(&mut pair);
    let mut data = pattern(0, 300 * 1024);
    assert_eq!(pair.client.connection.send(ours, DataStream::Main, &mut data), Ok(256 * 1024));
    assert_eq!(pair.client.connection.send(ours, DataStream::Main, &mut data), Ok(0));
    pair.settle();
    assert_eq!(pair.client.take_events(), vec![Event::Writable { channel: ours }]);
    assert_eq!(pair.client.connection.send(ours, DataStream::Main, &mut data), Ok(44 * 1024));
}

#[test]
fn rekey_under_load_from_both_sides_at_once() {
    let mut pair = Pair::open();
    let (ours, theirs) = session(&mut pair);
    pair.chunk = Some(3_000);
    let total = 4 * MIB;
    let (mut up, mut down) = (pattern(0, total), pattern(7, total));
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let mut rekeys = 0;
    for round in 0.. {
        pair.client.connection.send(ours, DataStream::Main, &mut up).unwrap();
        pair.server.connection.send(theirs, DataStream::Main, &mut down).unwrap();
        if round % 50 == 10 {
            pair.client.connection.rekey().unwrap();
        }
        if round % 75 == 10 {
            pair.server.connection.rekey().unwrap();
        }
        let has_moved = pair.step();
        for (end, got) in [(&mut pair.server, &mut got_up), (&mut pair.client, &mut got_down)] {
            for event in end.take_events() {
                match event {
                    Event::Data { channel, data, .. } => {
                        end.connection.consumed(channel, data.len());
                        got.extend_from_slice(&data);
                    }
                    Event::Rekeyed => rekeys += 1,
                    _ => {}
                }
            }
            assert_eq!(end.error, None);
        }
        if got_up.len() == total && got_down.len() == total {
            break;
        }
        assert!(has_moved || round < 10, "stalled at {} and {}", got_up.len(), got_down.len());
    }
    assert!(got_up == pattern(0, total) && got_down == pattern(7, total));
    assert!(rekeys >= 4, "{rekeys}");
}

#[test]
fn rekey_by_bytes_and_by_time() {
    let mut server = server_config();
    server.timing.rekey_bytes = MIB as u64;
    server.timing.keepalive = None;
    let mut pair = Pair::open_with(&client_config(), &server);
    let (ours, _) = session(&mut pair);
    let mut data = pattern(0, 2 * MIB);
    while !data.is_empty() {
        pair.client.connection.send(ours, DataStream::Main, &mut data).unwrap();
        pair.settle();
    }
    let rekeys = |events: Vec<Event>| events.iter().filter(|e| **e == Event::Rekeyed).count();
    assert!(rekeys(pair.server.take_events()) >= 1);
    for _ in 0..60 {
        pair.advance(Duration::from_secs(61));
    }
    assert!(rekeys(pair.server.take_events()) >= 1, "an hour is over");
    assert_eq!((&pair.client.error, &pair.server.error), (&None, &None));
}

#[test]
fn g_a_silent_peer_is_given_up_by_the_numbers_of_the_moment() {
    let mut pair = Pair::open();
    let server = &mut pair.server.connection;
    server.set_keepalive(Some(Duration::from_secs(300)), 3);
    // The client is gone: nothing that the server sends is answered.
    let mut now = pair.now.after(Duration::from_secs(120));
    server.handle_timeout(now).unwrap();
    assert!(server.poll_output().is_none(), "it is not probed yet");

    server.set_keepalive(Some(Duration::from_secs(10)), 2);
    let mut probes = 0;
    let error = loop {
        match server.handle_timeout(now) {
            Ok(()) => probes += usize::from(server.poll_output().is_some()),
            Err(error) => break error,
        }
        now = now.after(Duration::from_secs(10));
    };
    assert_eq!((probes, error), (2, ConnectionError::Timeout(Deadline::Keepalive)));
}

#[test]
fn verbs_during_a_rekey_wait_for_its_end() {
    let mut pair = Pair::open();
    let (ours, theirs) = session(&mut pair);
    pair.client.connection.rekey().unwrap();
    pair.client.connection.send(ours, DataStream::Main, &mut Bytes::from_static(b"data")).unwrap();
    pair.client.connection.request(ours, &ChannelRequest::Shell, false).unwrap();
    pair.client.connection.open(&ChannelOpen::Session).unwrap();
    pair.client.connection.close(ours);
    pair.settle();
    let events = pair.server.take_events();
    let is_there = |wanted: &dyn Fn(&Event) -> bool| events.iter().any(wanted);
    assert!(is_there(&|e| *e == Event::Rekeyed));
    assert!(is_there(&|e| matches!(e, Event::Data { channel, .. } if *channel == theirs)));
    assert!(is_there(&|e| matches!(e, Event::Request { request: ChannelRequest::Shell, .. })));
    assert!(is_there(&|e| matches!(e, Event::Open { .. })));
    assert!(is_there(&|e| *e == Event::Closed { channel: theirs }));
}

#[test]
fn answers_keep_the_order_of_requests() {
    let mut pair = Pair::open();
    let (ours, _) = session(&mut pair);
    let unknown = ChannelRequest::Unknown { name: "x@example".into(), data: Bytes::new() };
    let mut ask =
        |request: &ChannelRequest| pair.client.connection.request(ours, request, true).unwrap().unwrap();
    let ids = [ask(&ChannelRequest::Shell), ask(&unknown), ask(&ChannelRequest::Keepalive)];
    pair.settle();
    assert_eq!(pair.client.take_events(), vec![], "the shell is not answered yet");
    for event in pair.server.take_events() {
        if let Event::Request { reply: Some(reply), request, .. } = event {
            assert_eq!(request, ChannelRequest::Shell, "the core answers the others");
            pair.server.connection.respond(reply, true);
        }
    }
    pair.settle();
    let answers: Vec<_> = pair
        .client
        .take_events()
        .into_iter()
        .map(|e| match e {
            Event::RequestAnswered { request, is_success, .. } => (request, is_success),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(answers, [(ids[0], true), (ids[1], false), (ids[2], true)]);
}

#[test]
fn global_requests_and_the_port() {
    let mut pair = Pair::open();
    let listener = TcpEndpoint { host: "localhost".into(), port: 0 };
    let forward = GlobalRequest::TcpipForward { listener: listener.clone() };
    let first = pair.client.connection.global_request(&forward, true).unwrap().unwrap();
    let unknown = GlobalRequest::Unknown { name: "x@example".into(), data: Bytes::from_static(b"?") };
    let second = pair.client.connection.global_request(&unknown, true).unwrap().unwrap();
    pair.settle();
    for event in pair.server.take_events() {
        if let Event::GlobalRequest { request, reply: Some(reply) } = event {
            assert_eq!(request, forward);
            pair.server.connection.respond_global(reply, GlobalReply::Port(4022));
        }
    }
    pair.settle();
    let expected = vec![
        Event::GlobalAnswered { request: first, success: Some(Bytes::from_static(&[0, 0, 15, 182])) },
        Event::GlobalAnswered { request: second, success: None },
    ];
    assert_eq!(pair.client.take_events(), expected);
    let forwarded = ChannelOpen::ForwardedTcpip {
        listener,
        originator: TcpEndpoint { host: "10.0.0.1".into(), port: 1 },
    };
    pair.server.connection.open(&forwarded).unwrap();
    pair.settle();
    assert!(matches!(&pair.client.take_events()[..], [Event::Open { open, .. }] if *open == forwarded));
}

#[test]
fn c_channel_types_of_the_wrong_direction_are_refused_by_the_core() {
    let originator = TcpEndpoint { host: "h".into(), port: 1 };
    let for_client = [
        ChannelOpen::AuthAgent,
        ChannelOpen::X11 { originator: originator.clone() },
        ChannelOpen::ForwardedStreamlocal { path: "/s".into() },
        ChannelOpen::ForwardedTcpip { listener: originator.clone(), originator: originator.clone() },
    ];
    let for_server = [
        ChannelOpen::Session,
        ChannelOpen::DirectStreamlocal { path: "/s".into() },
        ChannelOpen::DirectTcpip { target: originator.clone(), originator },
    ];
    let mut pair = Pair::open();
    for open in &for_client {
        pair.client.connection.open(open).unwrap();
    }
    for open in &for_server {
        pair.server.connection.open(open).unwrap();
    }
    pair.settle();
    for (end, count) in [(&mut pair.client, for_client.len()), (&mut pair.server, for_server.len())] {
        let events = end.take_events();
        assert_eq!(events.len(), count);
        for event in events {
            assert!(matches!(event, Event::OpenFailed { reason: OpenFailure::Prohibited, .. }), "{event:?}");
        }
    }
    let unknown = ChannelOpen::Unknown { kind: "x@example".into() };
    pair.client.connection.open(&unknown).unwrap();
    pair.settle();
    let events = pair.client.take_events();
    assert!(matches!(events[..], [Event::OpenFailed { reason: OpenFailure::UnknownType, .. }]));
}

#[test]
fn c_no_more_sessions_means_it() {
    let mut pair = Pair::open();
    let (_, _) = session(&mut pair);
    pair.client.connection.global_request(&GlobalRequest::NoMoreSessions, false).unwrap();
    pair.client.connection.open(&ChannelOpen::Session).unwrap();
    pair.client.connection.open(&ChannelOpen::DirectStreamlocal { path: "/s".into() }).unwrap();
    pair.settle();
    let events = pair.client.take_events();
    assert!(matches!(events[..], [Event::OpenFailed { reason: OpenFailure::Prohibited, .. }]), "{events:?}");
}

#[test]
fn f_channels_are_bounded() {
    let mut server = server_config();
    server.limits.channels_max = 10;
    server.limits.opens_pending_max = 4;
    let mut pair = Pair::open_with(&client_config(), &server);
    let count = |pair: &mut Pair, opens: usize| {
        for _ in 0..opens {
            pair.client.connection.open(&ChannelOpen::Session).unwrap();
        }
        pair.settle();
        for event in pair.server.take_events() {
            if let Event::Open { channel, .. } = event {
                pair.server.connection.accept_open(channel).unwrap();
            }
        }
        pair.settle();
        let events = pair.client.take_events();
        events.iter().filter(|e| matches!(e, Event::Opened { .. })).count()
    };
    assert_eq!(count(&mut pair, 6), 4, "pending");
    assert_eq!(count(&mut pair, 4), 4);
    assert_eq!(count(&mut pair, 4), 2, "ten in all");
    assert_eq!(pair.server.connection.channel_count(), 10);
}

#[test]
fn a_rejected_open_says_why() {
    let mut pair = Pair::open();
    let ours = pair.client.connection.open(&ChannelOpen::Session).unwrap();
    pair.settle();
    let Some(Event::Open { channel, .. }) = pair.server.take_events().pop() else { panic!("open") };
    pair.server.connection.reject_open(channel, OpenFailure::ConnectFailed, "no\nsuch host").unwrap();
    pair.settle();
    let expected = Event::OpenFailed {
        channel: ours,
        reason: OpenFailure::ConnectFailed,
        message: "no such host".into(),
    };
    assert_eq!(pair.client.take_events(), vec![expected]);
}

#[test]
fn a_channel_closed_while_it_was_being_opened_ends_cleanly() {
    let mut pair = Pair::open();
    let ours = pair.client.connection.open(&ChannelOpen::Session).unwrap();
    pair.client.connection.close(ours);
    pair.settle();
    let Some(Event::Open { channel, .. }) = pair.server.take_events().pop() else { panic!("open") };
    pair.server.connection.accept_open(channel).unwrap();
    pair.settle();
    assert_eq!(pair.client.take_events(), vec![Event::Closed { channel: ours }]);
    assert_eq!(pair.server.take_events(), vec![Event::Closed { channel }]);
}

#[test]
fn abort_drops_what_is_queued() {
    let mut pair = Pair::open();
    let (ours, theirs) = session(&mut pair);
    pair.client.connection.send(ours, DataStream::Main, &mut pattern(0, 200_000)).unwrap();
    pair.client.connection.abort(ours);
    pair.settle();
    assert_eq!(pair.server.take_events(), vec![Event::Closed { channel: theirs }]);
}

#[test]
fn goodbye_is_told() {
    let mut pair = Pair::open();
    pair.server.connection.disconnect(DisconnectReason::ByApplication, "going down");
    pair.settle();
    let expected =
        Event::Disconnected { reason: DisconnectReason::ByApplication, message: "going down".into() };
    assert_eq!(pair.client.take_events(), vec![expected]);
    assert!(pair.client.connection.is_closed() && pair.server.connection.is_closed());
    assert_eq!(pair.client.connection.poll_timeout(), None);
}

#[test]
fn a_handshake_has_a_deadline() {
    let mut pair = Pair::new(&client_config(), &server_config());
    let at = pair.server.connection.poll_timeout().unwrap();
    assert_eq!(at.since_origin(), Duration::from_secs(15));
    let result = pair.server.connection.handle_timeout(at);
    assert_eq!(result, Err(ConnectionError::Timeout(Deadline::Handshake)));
    assert!(pair.server.connection.is_closed());
    pair.settle();
}

#[test]
fn a_authentication_has_a_deadline() {
    let mut pair = Pair::new(&client_config(), &server_config());
    // Step until the server has keys, then let the client fall silent.
    while pair.server.connection.session_id().is_none() {
        pair.step();
    }
    let at = pair.server.connection.poll_timeout().unwrap();
    let result = pair.server.connection.handle_timeout(at);
    assert!(matches!(result, Err(ConnectionError::Timeout(_))), "{result:?}");
}

#[test]
fn a_dead_peer_is_noticed_and_a_silent_one_is_kept() {
    let mut pair = Pair::open();
    for _ in 0..100 {
        pair.advance(Duration::from_secs(31));
    }
    assert_eq!((&pair.client.error, &pair.server.error), (&None, &None), "both answer");
    let mut result = Ok(());
    let mut waited = Duration::ZERO;
    while result.is_ok() {
        let at = pair.server.connection.poll_timeout().unwrap();
        waited += at.since(pair.now);
        pair.now = at;
        result = pair.server.connection.handle_timeout(at);
    }
    assert_eq!(result, Err(ConnectionError::Timeout(Deadline::Keepalive)));
    assert!(waited <= Duration::from_secs(150), "{waited:?}");
}

#[test]
fn a_rekey_that_is_not_answered_has_a_deadline() {
    let mut pair = Pair::open();
    pair.server.connection.rekey().unwrap();
    let at = pair.server.connection.poll_timeout().unwrap();
    let result = pair.server.connection.handle_timeout(at);
    assert_eq!(result, Err(ConnectionError::Timeout(Deadline::Rekey)));
}

#[test]
fn f_a_flood_of_requests_is_taken_no_faster_than_it_is_answered() {
    let mut pair = Pair::open();
    let ask = GlobalRequest::Unknown { name: "flood@example".into(), data: Bytes::from(vec![0; 16]) };
    for _ in 0..10_000 {
        pair.client.connection.global_request(&ask, false).unwrap();
    }
    let output = pair.client.connection.poll_output().unwrap();
    let mut input = bytes::BytesMut::from(&output[..]);
    let before = input.len();
    for _ in 0..3 {
        let intake = pair.server.connection.handle_input(&mut input, pair.now).unwrap();
        assert_eq!(intake, wayleave_ssh::Intake::Full);
    }
    assert!(input.len() > before / 2, "most of it was left in the buffer");
    let mut events = 0;
    while pair.server.connection.poll_event().is_some() {
        events += 1;
    }
    assert!(events <= 256, "{events}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_chunking_gives_the_same_bytes(chunk in 1usize..5000, sizes in proptest::collection::vec(1usize..60_000, 1..6)) {
        let mut pair = Pair::new(&client_config(), &server_config());
        pair.chunk = Some(chunk);
        pair.settle();
        prop_assert!(pair.server.connection.is_open());
        pair.client.take_events();
        let (ours, _) = session(&mut pair);
        let mut sent = Vec::new();
        for size in sizes {
            let mut data = pattern(sent.len(), size);
            sent.extend_from_slice(&data);
            while !data.is_empty() {
                pair.client.connection.send(ours, DataStream::Main, &mut data).unwrap();
                pair.settle();
            }
        }
        let mut got = Vec::new();
        for event in pair.server.take_events() {
            if let Event::Data { data, .. } = event {
                got.extend_from_slice(&data);
            }
        }
        prop_assert!(got == sent);
    }

    #[test]
    fn f_arbitrary_bytes_after_the_version_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500), cut in 0usize..2000) {
        for is_server in [true, false] {
            let mut pair = Pair::new(&client_config(), &server_config());
            let (from, to) = if is_server { (&mut pair.client, &mut pair.server) } else { (&mut pair.server, &mut pair.client) };
            let output = from.connection.poll_output().unwrap();
            to.input.extend_from_slice(&output[..cut.min(output.len())]);
            to.input.extend_from_slice(&bytes);
            pair.settle();
        }
    }

    #[test]
    fn f_a_flipped_bit_never_panics_and_never_authenticates(position in 0usize..6000, bit in 0u8..8) {
        let mut pair = Pair::new(&client_config(), &server_config());
        pair.chunk = Some(1);
        let mut count = 0;
        loop {
            let has_moved = pair.step();
            if count == position && !pair.server.input.is_empty() {
                let last = pair.server.input.len() - 1;
                pair.server.input[last] ^= 1 << bit;
            }
            count += 1;
            if !has_moved || pair.server.connection.is_open() {
                break;
            }
        }
    }
}

/// A session channel, accepted: its two numbers.
fn session(pair: &mut Pair) -> (ChannelId, ChannelId) {
    let ours = pair.client.connection.open(&ChannelOpen::Session).unwrap();
    pair.settle();
    let Some(Event::Open { channel: theirs, .. }) = pair.server.take_events().pop() else {
        panic!("no open");
    };
    pair.server.connection.accept_open(theirs).unwrap();
    pair.settle();
    assert_eq!(pair.client.take_events(), vec![Event::Opened { channel: ours }]);
    (ours, theirs)
}

fn send(pair: &mut Pair, channel: ChannelId, data: &'static [u8]) {
    let mut data = Bytes::from_static(data);
    pair.server.connection.send(channel, DataStream::Main, &mut data).unwrap();
    assert!(data.is_empty());
}
