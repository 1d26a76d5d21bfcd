//! SECURITY E where streams are resumed: coming back is a way in, and no wider than the one by which the user came.

use crate::hand::Hand;
use crate::refused::{PATIENCE, check_alive, end_of, greet};
use crate::world::{Fate, World};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wayleave_keystore::Credentials;
use wayleave_resume_wire::{Frame, Refusal};
use wayleave_runtime::{Clock, SystemClock};
use wayleave_vocab::SystemRole;

/// Shorter than anybody waits in vain, longer than a connection takes to come back.
const BRIEF: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(3600);

/// He comes back by a certificate, is lost again, and nobody comes back.
async fn check_expires(began_with: &str, came_back_with: &str) {
    let mut world = World::new();
    *world.policy.max_detached.lock().unwrap() = Ok(LONG);
    world.policy.waits.lock().unwrap().insert("brief", BRIEF);
    let with = |role: &str| world.authorities.user_with("alice", &[role]);
    let (mut client, dialler) = world.client_of(with(began_with));
    *dialler.credentials.lock().unwrap() = with(came_back_with);
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    world.cut();
    check_alive(&mut client, &mut agent).await;

    world.fates.lock().unwrap().extend(std::iter::repeat_n(Fate::Refuse, 1000));
    world.cut();

    let mut byte = [0; 1];
    let ended = tokio::time::timeout(PATIENCE, agent.read(&mut byte)).await;
    let ended = ended.unwrap_or_else(|_| panic!("{began_with} and then {came_back_with} waits"));
    assert!(ended.unwrap_err().to_string().contains("in time"));
}

#[tokio::test]
async fn e_a_newer_certificate_does_not_lengthen_the_wait_of_an_older_one() {
    check_expires("brief", "patient").await;
}

#[tokio::test]
async fn e_a_restriction_in_a_newer_certificate_counts_for_a_stream_that_has_come_back() {
    check_expires("patient", "brief").await;
}

/// Whatever does not log in does not resume.
#[tokio::test]
async fn e_a_certificate_that_logs_in_nowhere_resumes_nothing() {
    let mut world = World::new();
    world.echo();
    let authorities = &world.authorities;
    let now = SystemClock::new().wall();
    let alice = authorities.user("alice");
    let hand = Hand::begin(&world, &alice).await;
    let expired = authorities.user_who("alice", |user| user.not_after = now.before(Duration::from_secs(1)));
    let others: [(&str, Credentials); 4] = [
        ("expired", expired),
        ("another cluster's", World::new().authorities.user("alice")),
        ("the node's own", authorities.host(SystemRole::Node, &["web-1"])),
        ("a proxy's", authorities.other_host(SystemRole::Proxy, &["alice"])),
    ];
    for (what, credentials) in others {
        let refused = hand.refused(&world, &credentials, |_| ()).await;
        assert_eq!(refused.refusal, Refusal::Denied, "{what}");
    }
    assert!(world.policy.asked.lock().unwrap().is_empty(), "nobody was asked about them");
    let (_connection, answer) = hand.come_back(&world, &alice, |_| ()).await;
    assert!(matches!(answer, Frame::Attached(_)), "{answer:?}");
}

/// Nobody serves the stream any more: its last bytes go to whoever may still have a stream, as the policy is now.
#[tokio::test]
async fn e_the_last_bytes_go_to_nobody_whose_roles_want_no_resumption() {
    let mut world = World::new();
    world.policy.waits.lock().unwrap().insert("none", Duration::ZERO);
    let (mut client, dialler) = world.client_of(world.authorities.user_with("alice", &["patient"]));
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    *dialler.credentials.lock().unwrap() = world.authorities.user_with("alice", &["none"]);
    world.policy.deafen();
    world.fates.lock().unwrap().push_back(Fate::Refuse);
    world.cut();
    agent.write_all(b"for her eyes only").await.unwrap();
    let finishing = tokio::time::timeout(Duration::from_millis(50), agent.shutdown()).await;
    drop((finishing, agent));

    let reason = end_of(&mut client).await;

    assert!(reason.contains("end with their connection"), "{reason}");
}
