//! Events as they are stored: golden, bounded, each once.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wayleave_audit::{
    Actor, AppRef, CertKind, Change, ChangedKind, DecodeEnvelopeError, DisconnectReason, Envelope, Event,
    EventBudget, EventBudgets, Intake, IntakeOutcome, IntakeRefusal, Origin, Outcome, PortAction,
    ResumptionAction, SenderRefusal, SessionRef, SftpAction, SftpActionKind, SftpTotals, Subject, Traffic,
    bounded_list, check_sender,
};
use wayleave_vocab::{ClusterName, HostId, Login, Mono, SessionId, SystemRole, Wall};

fn host(n: u8) -> HostId {
    HostId::from_random([n; 16])
}

fn envelope(event: Event, sequence: u64) -> Envelope {
    let origin = Origin { cluster: ClusterName::parse("demo").unwrap(), host_id: host(1), sequence };
    Envelope::new(event, origin, [2; 16], Wall::from_ms(1_800_000_000_123))
}

fn session() -> SessionRef {
    SessionRef {
        sid: SessionId::from_random([3; 16]),
        user: "alice".into(),
        login: Login::parse("root").unwrap(),
        server_id: host(4),
        server_hostname: "web-1".into(),
    }
}

fn app() -> AppRef {
    AppRef {
        sid: SessionId::from_random([3; 16]),
        user: "alice".into(),
        app_name: "db-1".into(),
        target_port: 5432,
        server_id: host(4),
    }
}

fn failure() -> Outcome {
    Outcome::Failure { error: "no".into() }
}

/// One of every kind, failures too where they have their own code.
fn all() -> Vec<Event> {
    let actor = || Actor { user: "alice".into(), local_admin: false, client_addr: Some("10.0.0.1:5".into()) };
    let changed = |kind, change| Event::Changed {
        kind,
        change,
        name: "x".into(),
        actor: actor(),
        details: vec!["roles access".into()],
    };
    let resumption = |action, outcome| Event::Resumption {
        user: "alice".into(),
        sid: SessionId::from_random([3; 16]),
        server_id: host(4),
        server_hostname: "web-1".into(),
        action,
        client_addr: None,
        outcome,
    };
    let login = |outcome| Event::UserLogin {
        user: "alice".into(),
        method: "local".into(),
        client_addr: None,
        outcome,
    };
    let join = |joined_host_id, outcome| Event::InstanceJoin {
        joined_host_id,
        node_name: "web-1".into(),
        token_name: "t1".into(),
        method: "token".into(),
        roles: vec!["Node".into()],
        client_addr: None,
        outcome,
    };
    let traffic = Traffic { bytes_received: 17, bytes_sent: 4_000_000_000_000 };
    let port = |action, duration_ms, traffic| Event::Port {
        session: session(),
        action,
        addr: "127.0.0.1:80".into(),
        duration_ms,
        traffic,
        outcome: Outcome::Success,
    };
    let exec =
        |outcome| Event::Exec { session: session(), command: "id".into(), exit_code: Some(0), outcome };
    let app_start =
        |outcome| Event::AppSessionStart { app: app(), client_addr: Some("10.0.0.1:5".into()), outcome };
    vec![
        login(Outcome::Success),
        login(failure()),
        Event::AuthAttempt { user: "eve".into(), client_addr: None, error: "unknown authority".into() },
        Event::CertCreate {
            subject: Subject::User("alice".into()),
            cert_type: CertKind::User,
            roles: bounded_list(["access"]),
            logins: bounded_list(["root"]),
            expires: 1_800_000_000,
        },
        Event::CertCreate {
            subject: Subject::Host(host(4)),
            cert_type: CertKind::Host,
            roles: vec![],
            logins: vec![],
            expires: 1,
        },
        join(Some(host(4)), Outcome::Success),
        join(None, failure()),
        Event::SessionStart {
            session: session(),
            interactive: true,
            client_addr: None,
            policy_revision: "1.2".into(),
        },
        Event::SessionEnd {
            session: session(),
            duration_ms: 5,
            traffic: Some(traffic),
            exit_code: None,
            reason: Some("idle".into()),
        },
        Event::SessionRejected {
            user: "eve".into(),
            login: "root".into(),
            server_id: host(4),
            server_hostname: "web-1".into(),
            reason: "no role".into(),
            client_addr: None,
        },
        exec(Outcome::Success),
        exec(failure()),
        Event::Subsystem { session: session(), name: "sftp".into(), outcome: Outcome::Success },
        port(PortAction::LocalStart, None, None),
        port(PortAction::LocalStop, Some(9), Some(traffic)),
        port(PortAction::RemoteStop, Some(9), None),
        port(PortAction::RemoteConnection, None, None),
        port(PortAction::RemoteConnectionStop, Some(9), Some(traffic)),
        Event::Forward { session: session(), what: "agent".into(), outcome: failure() },
        Event::SftpSummary {
            session: session(),
            totals: SftpTotals { files_read: 1, ..SftpTotals::default() },
            actions: vec![
                SftpAction { action: SftpActionKind::Read, path: "/etc/hosts".into(), target: None },
                SftpAction { action: SftpActionKind::Rename, path: "a".into(), target: Some("b".into()) },
            ],
            actions_omitted: 3,
        },
        Event::ClientDisconnect {
            user: "alice".into(),
            sid: Some(SessionId::from_random([3; 16])),
            server_id: host(4),
            cause: DisconnectReason::Locked,
            reason: "lock".into(),
        },
        changed(ChangedKind::User, Change::Created),
        changed(ChangedKind::User, Change::Updated),
        changed(ChangedKind::User, Change::Deleted),
        changed(ChangedKind::Role, Change::Created),
        changed(ChangedKind::Role, Change::Updated),
        changed(ChangedKind::Role, Change::Deleted),
        changed(ChangedKind::Token, Change::Created),
        changed(ChangedKind::Lock, Change::Created),
        changed(ChangedKind::Lock, Change::Deleted),
        Event::Credentials { name: "bob".into(), action: "invite".into(), actor: actor() },
        Event::AccessDenied { actor: actor(), action: "update role access".into(), reason: "no rule".into() },
        Event::ServiceState { service: "ssh".into(), state: "policy_stale".into(), details: "".into() },
        app_start(Outcome::Success),
        app_start(failure()),
        Event::AppSessionEnd { app: app(), duration_ms: 5, bytes_received: 6, bytes_sent: 7 },
        resumption(ResumptionAction::Detached, Outcome::Success),
        resumption(ResumptionAction::Resumed, failure()),
        resumption(ResumptionAction::Expired, Outcome::Success),
    ]
}

#[test]
fn events_match_their_golden_file_and_read_back() {
    let golden = include_str!("../golden/events_v1.jsonl");
    let mut written = String::new();
    for event in all() {
        let envelope = envelope(event, 7);
        let bytes = envelope.encode();
        assert_eq!(Envelope::decode(&bytes), Ok(envelope));
        written.push_str(std::str::from_utf8(&bytes).unwrap());
        written.push('\n');
    }
    println!("{written}");
    assert_eq!(written, golden, "the golden file should be what is printed above");
}

#[test]
fn ends_that_were_not_counted_are_read_as_such() {
    let old = r#"{"v":1,"uid":"02020202-0202-4202-8202-020202020202","code":"T2004I","time":"2027-01-15T08:00:00.123Z","cluster_name":"demo","host_id":"01010101-0101-4101-8101-010101010101","sequence":7,"event":"session.end","sid":"03030303-0303-4303-8303-030303030303","user":"alice","login":"root","server_id":"04040404-0404-4404-8404-040404040404","server_hostname":"web-1","duration_ms":5}"#;
    let event = Envelope::decode(old.as_bytes()).unwrap().event;
    assert!(matches!(event, Event::SessionEnd { traffic: None, duration_ms: 5, .. }), "{event:?}");
}

#[test]
fn a_code_that_is_not_the_events_is_refused() {
    let text = String::from_utf8(envelope(all().remove(0), 1).encode()).unwrap();
    let forged = text.replace("T1000I", "T1000W");
    assert!(matches!(Envelope::decode(forged.as_bytes()), Err(DecodeEnvelopeError::WrongCode { .. })));
    assert!(Envelope::decode(text.replace("\"v\":1", "\"v\":2").as_bytes()).is_err());
}

#[test]
fn each_event_is_taken_once_and_only_from_its_own_host() {
    let cluster = ClusterName::parse("demo").unwrap();
    let mut intake = Intake::new(cluster, BTreeMap::new());
    let event = |sequence| envelope(all().remove(0), sequence);
    assert_eq!(
        intake.handle_event(host(9), &event(1)),
        Err(IntakeRefusal::OtherHost { sender: host(9), named: host(1) })
    );
    assert_eq!(intake.handle_event(host(1), &event(0)), Err(IntakeRefusal::NoSequence));
    assert_eq!(intake.handle_event(host(1), &event(1)), Ok(IntakeOutcome::Append));
    // Not stored yet, so it is not a duplicate.
    assert_eq!(intake.handle_event(host(1), &event(1)), Ok(IntakeOutcome::Append));
    intake.appended(&event(1));
    assert_eq!(intake.handle_event(host(1), &event(1)), Ok(IntakeOutcome::Duplicate));
    assert_eq!(intake.handle_event(host(1), &event(4)), Ok(IntakeOutcome::AppendAfterGap { missing: 2 }));
    assert_eq!(
        intake.handle_event(host(1), &event(u64::MAX)),
        Ok(IntakeOutcome::AppendAfterGap { missing: u64::MAX - 2 })
    );
    assert_eq!(intake.last(host(1)), 1);
}

proptest! {
    #[test]
    fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = Envelope::decode(&bytes);
    }

    #[test]
    fn f_any_text_stays_one_bounded_line(command in "(?s).{0,9000}") {
        let event = Event::Exec { session: session(), command: command.into(), exit_code: None, outcome: Outcome::Success };
        let envelope = envelope(event, 1);
        let bytes = envelope.encode();
        prop_assert!(!bytes.contains(&b'\n'));
        prop_assert!(bytes.len() < 32 * 1024);
        prop_assert_eq!(Envelope::decode(&bytes), Ok(envelope));
    }
}

#[test]
fn i_a_process_sends_only_what_its_services_see_of_its_machines() {
    let roles = |roles: &[SystemRole]| roles.iter().copied().collect::<BTreeSet<_>>();
    let own = ["auth", "session", "exec", "subsystem", "port", "forward", "sftp", "app", "client"];
    let mut refused = 0;
    for event in all() {
        let json = String::from_utf8(envelope(event.clone(), 1).encode()).unwrap();
        let is_own = own.iter().any(|kind| json.contains(&format!("\"event\":\"{kind}")));
        // The events here are of host 4; without a host they are of whoever sends them.
        let sent = |host, roles: &BTreeSet<SystemRole>| check_sender(host, roles, &event);
        assert_eq!(sent(host(4), &roles(&[SystemRole::Node])).is_ok(), is_own, "{json}");
        assert_eq!(sent(host(5), &roles(&[SystemRole::Proxy])).is_ok(), is_own, "{json}");
        for nobody in [roles(&[SystemRole::Auth]), roles(&[SystemRole::Bot]), roles(&[])] {
            assert!(sent(host(4), &nobody).is_err(), "{json}");
        }
        let foreign = sent(host(5), &roles(&[SystemRole::Node]));
        if let Err(SenderRefusal::OtherMachine { sender, named }) = foreign {
            assert_eq!((sender, named), (host(5), host(4)), "{json}");
            refused += 1;
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn i_a_budget_holds_honest_bursts_and_bounds_the_rest() {
    let at = |millis| Mono::from_origin(Duration::from_millis(millis));
    let mut budgets = EventBudgets::default();
    // 150 sessions a second with six events each, for an hour.
    let longest = all().into_iter().filter(|event| event.code().starts_with("T2"));
    let bytes = longest.map(|event| envelope(event, 1).encode().len() as u64).max().unwrap();
    for second in 0..3600 {
        assert_eq!(budgets.admit(host(1), 150 * 6 * bytes.max(600), at(second * 1000)), Ok(()), "{second}");
    }
    let budget = EventBudget { bytes_per_minute: 600, burst_bytes: 1000 };
    let mut budgets = EventBudgets::new(budget);
    let taken = (0..600_000).step_by(10).filter(|ms| budgets.admit(host(1), 1, at(*ms)).is_ok()).count();
    assert!((6900..=7000).contains(&taken), "{taken} of 1000 at once and 600 in each of ten minutes");
    let told = budgets.admit(host(1), 100, at(600_000)).unwrap_err();
    assert!(budgets.admit(host(1), 100, at(600_000).after(told.retry_after)).is_ok());
    assert_eq!(
        budgets.admit(host(2), 5000, at(600_000)),
        Ok(()),
        "what is larger than a budget takes a full one"
    );
}
