//! Live sessions end when they must (SECURITY J), clock stepped.

use std::num::NonZeroU32;
use std::time::Duration;
use wayleave_session::{
    Connection, Effect, EndReason, Now, OpenRefusal, Terms, TooManyConnections, UserConnections,
};
use wayleave_vocab::{Mono, SessionId, UserName, Wall};

fn at(secs: u64) -> Now {
    Now { mono: Mono::from_origin(Duration::from_secs(secs)), wall: Wall::from_secs(1000 + secs) }
}

fn session(n: u8) -> SessionId {
    SessionId::from_random([n; 16])
}

fn terms() -> Terms {
    Terms::default()
}

/// Steps the clock to every timeout until the connection ends, and says when and why.
fn run(connection: &mut Connection, until_secs: u64) -> Option<(u64, EndReason)> {
    loop {
        if let Some(Effect::End(reason)) = connection.poll_effect() {
            return Some((0, reason));
        }
        let next = connection.poll_timeout()?.since_origin().as_secs();
        if next > until_secs {
            return None;
        }
        connection.handle_timeout(at(next));
        if let Some(Effect::End(reason)) = connection.poll_effect() {
            assert_eq!(connection.poll_effect(), None);
            assert_eq!(connection.poll_timeout(), None);
            return Some((next, reason));
        }
    }
}

#[test]
fn without_terms_nothing_ends() {
    let mut connection = Connection::new(terms(), at(0));
    connection.handle_open(session(1), at(0)).unwrap();
    assert_eq!(run(&mut connection, u64::MAX), None);
}

#[test]
fn j_silence_ends_it_and_activity_does_not() {
    let limit = Duration::from_secs(30);
    let mut connection = Connection::new(Terms { idle_timeout: Some(limit), ..terms() }, at(0));
    connection.handle_activity(at(20).mono);
    connection.handle_activity(at(10).mono);
    assert_eq!(run(&mut connection, 1000), Some((50, EndReason::Idle { limit })));
    assert_eq!(
        connection.handle_open(session(1), at(51)),
        Err(OpenRefusal::Ending(EndReason::Idle { limit }))
    );
}

#[test]
fn j_the_certificate_ends_it_also_when_the_clock_jumps() {
    let ends = Some(Wall::from_secs(1000 + 600));
    let mut connection = Connection::new(Terms { ends, ..terms() }, at(0));
    assert_eq!(run(&mut connection, 1000), Some((600, EndReason::CertificateExpired)));
    let mut connection = Connection::new(Terms { ends, ..terms() }, at(0));
    let jumped = Now { mono: connection.poll_timeout().unwrap(), wall: Wall::from_secs(5000) };
    assert!(jumped.mono <= at(60).mono);
    connection.handle_timeout(jumped);
    assert_eq!(connection.poll_effect(), Some(Effect::End(EndReason::CertificateExpired)));
    let mut late = Connection::new(Terms { ends, ..terms() }, at(600));
    assert_eq!(late.poll_effect(), Some(Effect::End(EndReason::CertificateExpired)));
}

#[test]
fn j_a_lock_ends_it_and_new_terms_apply_at_once() {
    let mut connection = Connection::new(terms(), at(0));
    let limit = Duration::from_secs(5);
    connection.handle_decision(Ok(Terms { idle_timeout: Some(limit), ..terms() }), at(4));
    assert_eq!(connection.poll_effect(), None);
    connection.handle_decision(Err(EndReason::Locked { message: "leaving".into() }), at(4));
    connection.handle_decision(Err(EndReason::PolicyChanged), at(4));
    let Some(Effect::End(reason)) = connection.poll_effect() else { panic!("it should have ended") };
    assert_eq!(reason.to_string(), "access is locked: leaving");
    assert_eq!(connection.poll_effect(), None);
}

#[test]
fn sessions_are_counted() {
    let max_sessions = NonZeroU32::new(2);
    let mut connection = Connection::new(Terms { max_sessions, ..terms() }, at(0));
    connection.handle_open(session(1), at(0)).unwrap();
    connection.handle_open(session(2), at(0)).unwrap();
    assert_eq!(connection.handle_open(session(3), at(0)), Err(OpenRefusal::TooMany { max: 2 }));
    connection.handle_close(session(1), at(1));
    connection.handle_open(session(3), at(1)).unwrap();
    assert_eq!(connection.sessions(), 2);
}

#[test]
fn g_a_drain_waits_for_sessions_but_not_for_ever() {
    let mut connection = Connection::new(terms(), at(0));
    connection.handle_open(session(1), at(0)).unwrap();
    connection.handle_drain(at(100).mono, at(1));
    assert_eq!(connection.poll_effect(), None);
    assert_eq!(connection.handle_open(session(2), at(2)), Err(OpenRefusal::Draining));
    assert_eq!(run(&mut connection, 1000), Some((100, EndReason::Drained)));
    let mut connection = Connection::new(terms(), at(0));
    connection.handle_open(session(1), at(0)).unwrap();
    connection.handle_drain(at(100).mono, at(1));
    connection.handle_close(session(1), at(2));
    assert_eq!(connection.poll_effect(), Some(Effect::End(EndReason::Drained)));
}

#[test]
fn k_one_users_connections_do_not_count_for_another() {
    let (alice, bob) = (UserName::parse("alice").unwrap(), UserName::parse("bob").unwrap());
    let mut open = UserConnections::default();
    let one = NonZeroU32::new(1);
    open.handle_connect(&alice, one).unwrap();
    assert_eq!(open.handle_connect(&alice, one), Err(TooManyConnections { max: 1 }));
    open.handle_connect(&bob, one).unwrap();
    open.handle_disconnect(&alice);
    open.handle_disconnect(&alice);
    assert_eq!((open.count(&alice), open.count(&bob)), (0, 1));
    open.handle_connect(&alice, one).unwrap();
    open.handle_connect(&alice, None).unwrap();
    assert_eq!(open.count(&alice), 2);
}
