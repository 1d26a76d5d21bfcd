//! SECURITY N where streams are resumed: a guess costs a connection, is told nothing, and costs the agent little.

use crate::hand::{Hand, bytes_of, challenged, rest_of};
use crate::refused::{check_alive, greet};
use crate::world::World;
use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use wayleave_resume_wire::{Frame, Proof, Refused};
use wayleave_runtime::{Clock, SystemClock};
use wayleave_vocab::SystemRole;

#[tokio::test]
async fn n_one_connection_may_guess_once() {
    let mut world = World::new();
    world.echo();
    let alice = world.authorities.user("alice");
    let hand = Hand::begin(&world, &alice).await;
    let mut connection = world.raw();
    let attempt = challenged(&mut connection, hand.reattach(0)).await;
    let good = hand.proof(&attempt, &alice);
    let wrong = Proof { mac: [0; 32], ..good.clone() };

    connection
        .write_all(&[bytes_of(&Frame::Proof(wrong)), bytes_of(&Frame::Proof(good))].concat())
        .await
        .unwrap();

    let mut answer = BytesMut::from(&rest_of(&mut connection).await[..]);
    let frames: Vec<Frame> = std::iter::from_fn(|| Frame::decode(&mut answer).unwrap()).collect();
    assert!(matches!(frames[..], [Frame::Refused(_), Frame::Refuser(_)]), "{frames:?}");
    assert!(world.policy.asked.lock().unwrap().is_empty());
}

/// The certificate is not even looked at, so no guess costs a verification or tells whose certificate would do.
#[tokio::test]
async fn n_whoever_does_not_know_the_secret_is_told_the_same_whatever_else_he_brings() {
    let mut world = World::new();
    world.echo();
    let (authorities, now) = (&world.authorities, SystemClock::new().wall());
    let alice = authorities.user("alice");
    let hand = Hand::begin(&world, &alice).await;
    let ended = |user: &mut wayleave_identity::UserPrincipal| user.not_after = now;
    let guessers = [
        alice.clone(),
        authorities.user("mallory"),
        authorities.user_who("alice", ended),
        authorities.host(SystemRole::Node, &["web-1"]),
        World::new().authorities.user("alice"),
    ];
    let mut told: Vec<Refused> = Vec::new();
    for guesser in &guessers {
        told.push(hand.refused(&world, guesser, |proof| proof.mac[31] ^= 1).await);
    }
    let garbage = hand.refused(&world, &alice, |proof| {
        proof.mac[0] ^= 1;
        proof.signed.certificate = vec![0x30; 100];
        proof.signed.signature = Vec::new();
    });
    told.push(garbage.await);

    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    // Nor does it say that the secret was right.
    assert_eq!(hand.refused(&world, &guessers[1], |_| ()).await, told[0]);
    world.wait_heard("refused mallory").await;
    let heard = world.policy.heard();
    let guessed = heard.iter().filter(|heard| heard.contains("refused : the proof is not by the secret"));
    assert_eq!(guessed.count(), told.len(), "{heard:?}");
}

/// Hundreds of guesses at once, from whoever knows the stream's name: its user does not notice.
#[tokio::test]
async fn n_guesses_end_no_stream_and_keep_its_user_out_of_none() {
    let mut world = World::new();
    let (mut client, _) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    world.cut();
    check_alive(&mut client, &mut agent).await;
    let (asking, proof) = crate::refused::reattachment(&world.recorded.lock().unwrap()[1]);
    let first = world.set_apart();

    for _ in 0..300 {
        let mut connection = world.raw();
        let _challenge = challenged(&mut connection, asking).await;
        connection.write_all(&bytes_of(&Frame::Proof(proof.clone()))).await.unwrap();
        assert!(!rest_of(&mut connection).await.is_empty());
    }

    check_alive(&mut client, &mut agent).await;
    first.request();
    check_alive(&mut client, &mut agent).await;
}
