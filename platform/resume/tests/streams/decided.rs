//! SECURITY B where streams are resumed: the stream that is asked for, the one that is proved and the one that is given
//! are one, and so are the user who proves, the user who is judged and the user who was there before.

use crate::hand::{Hand, bytes_of, challenged, rest_of};
use crate::refused::{read_frame, write_frame};
use crate::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wayleave_resume_wire::{DATA_HEADER_BYTES, Frame, Refusal, data_header};
use wayleave_vocab::UserName;

const SENT: &[u8] = b"sent before the answer was there";

#[tokio::test]
async fn b_the_secret_of_one_stream_proves_no_other_of_the_same_user() {
    let mut world = World::new();
    world.echo();
    let alice = world.authorities.user("alice");
    let (one, two) = (Hand::begin(&world, &alice).await, Hand::begin(&world, &alice).await);
    let mixed = Hand { stream: one.stream, secret: two.secret, connection: two.connection };

    let refused = mixed.refused(&world, &alice, |_| ()).await;

    assert_eq!(refused.refusal, Refusal::Denied, "{refused:?}");
    let (_connection, answer) = one.come_back(&world, &alice, |_| ()).await;
    assert!(matches!(answer, Frame::Attached(_)), "{answer:?}");
}

#[tokio::test]
async fn b_a_stream_is_named_once() {
    let mut world = World::new();
    world.echo();
    let alice = world.authorities.user("alice");
    let (one, two) = (Hand::begin(&world, &alice).await, Hand::begin(&world, &alice).await);
    let mut connection = world.raw();
    let attempt = challenged(&mut connection, one.reattach(0)).await;

    // In place of the proof, with a good one behind it.
    let (again, proof) = (Frame::Reattach(two.reattach(0)), Frame::Proof(one.proof(&attempt, &alice)));
    connection.write_all(&[bytes_of(&again), bytes_of(&proof)].concat()).await.unwrap();

    assert!(rest_of(&mut connection).await.is_empty(), "nobody is attached");
    assert!(world.policy.asked.lock().unwrap().is_empty());
}

/// The user's name in the target's form: another spelling is another user.
#[tokio::test]
async fn b_a_name_that_is_nearly_the_users_is_another_users() {
    let mut world = World::new();
    world.echo();
    let hand = Hand::begin(&world, &world.authorities.user("alice")).await;
    for name in ["Alice", "ALICE", "alice.", "alice@demo", "alic", "alice1"] {
        let refused = hand.refused(&world, &world.authorities.user(name), |_| ()).await;
        assert_eq!(refused.refusal, Refusal::Denied, "{name}");
        world.wait_heard(&format!("refused {name}: ")).await;
    }
    for name in ["alice ", "alice\0", "аlice", "alice/../bob"] {
        assert!(UserName::parse(name).is_err(), "{name:?} is nobody's name");
    }
    assert!(world.policy.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn b_who_is_judged_is_who_proved_and_not_who_began() {
    let mut world = World::new();
    world.echo();
    let hand = Hand::begin(&world, &world.authorities.user_with("alice", &["first"])).await;

    let (_connection, answer) =
        hand.come_back(&world, &world.authorities.user_with("alice", &["second"]), |_| ()).await;

    assert!(matches!(answer, Frame::Attached(_)), "{answer:?}");
    let asked = world.policy.asked.lock().unwrap().clone();
    let roles: Vec<&str> = asked.iter().flat_map(|user| &user.roles).map(|role| role.as_str()).collect();
    assert_eq!(roles, ["second"]);
}

/// However the bytes are cut into pieces, they are read the same: what stands behind the proof is the stream's.
#[tokio::test]
async fn b_a_handshake_in_pieces_is_read_as_one_in_a_piece() {
    let mut world = World::new();
    world.echo();
    let alice = world.authorities.user("alice");
    for piece in [1, 3, 7, 100, usize::MAX] {
        let hand = Hand::begin(&world, &alice).await;
        let mut connection = world.raw();
        let attempt = challenged(&mut connection, hand.reattach(0)).await;
        let mut bytes = bytes_of(&Frame::Proof(hand.proof(&attempt, &alice)));
        bytes.extend_from_slice(&data_header(SENT.len()));
        bytes.extend_from_slice(SENT);
        for part in bytes.chunks(piece.min(bytes.len())) {
            connection.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(echo_behind_the_answer(&mut connection).await, SENT, "in pieces of {piece}");
    }
}

/// What the stream sends back after the agent's answer; acknowledgements are nobody's business here.
async fn echo_behind_the_answer(connection: &mut wayleave_net::BoxStream) -> Vec<u8> {
    let mut input = bytes::BytesMut::new();
    let mut echo = Vec::new();
    let mut is_attached = false;
    while echo.len() < SENT.len() {
        match Frame::decode(&mut input).unwrap() {
            Some(Frame::Attached(_)) => is_attached = true,
            Some(Frame::Data { bytes }) => {
                while input.len() < bytes {
                    assert_ne!(connection.read_buf(&mut input).await.unwrap(), 0);
                }
                echo.extend_from_slice(&input.split_to(bytes));
            }
            Some(Frame::Acknowledge { .. } | Frame::Ask | Frame::Ping { .. } | Frame::Pong { .. }) => {}
            Some(other) => panic!("{other:?}"),
            None => assert_ne!(connection.read_buf(&mut input).await.unwrap(), 0),
        }
    }
    assert!(is_attached);
    echo
}

/// A frame whose header counts more or less than its fields is no frame: nothing is guessed from it.
#[tokio::test]
async fn b_a_frame_of_the_wrong_length_is_no_request() {
    let mut world = World::new();
    world.echo();
    let alice = world.authorities.user("alice");
    let hand = Hand::begin(&world, &alice).await;
    let asking = bytes_of(&Frame::Reattach(hand.reattach(0)));
    for length in (0..asking.len() + 8).filter(|length| *length != asking.len() - DATA_HEADER_BYTES) {
        let mut connection = world.raw();
        let mut bytes = asking.clone();
        bytes[3] = u8::try_from(length).unwrap();
        bytes.resize(DATA_HEADER_BYTES + length, 0);
        connection.write_all(&bytes).await.unwrap();
        assert!(rest_of(&mut connection).await.is_empty(), "{length} bytes");
    }
    let mut connection = world.raw();
    write_frame(&mut connection, &Frame::Reattach(hand.reattach(0))).await;
    assert!(matches!(read_frame(&mut connection).await, Frame::Challenge(_)));
}
