//! SECURITY A where streams are resumed: who stops in the middle, sends without end or takes nothing.

use crate::hand::{Hand, bytes_of, challenged, rest_of};
use crate::refused::{check_alive, greet, write_frame};
use crate::world::World;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use wayleave_keystore::Credentials;
use wayleave_net::BoxStream;
use wayleave_resume_wire::exchange::Attempt;
use wayleave_resume_wire::{BODY_BYTES_MAX, Frame, Reattach, StreamId};
use wayleave_vocab::SystemRole;

/// More than the agent has room for, all stages together.
const STALLED_PER_STAGE: usize = 120;
/// The most that the agent may hold of one connection that proved nothing.
const TAKEN_BYTES_MAX: usize = 64 * 1024;
/// Longest that a connection may last on which nothing moves: a frame each way, the signature, the end.
const STALL_LIMIT: Duration = Duration::from_secs(40);

#[tokio::test]
async fn a_whoever_stops_in_the_middle_of_a_handshake_is_let_go_and_delays_nobody() {
    let mut world = World::new();
    let (mut client, _) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    let first = world.set_apart();
    world.echo();
    let alice = world.authorities.user("alice");
    let hand = Hand::begin(&world, &alice).await;
    let stalled = &mut stalled(&world, &hand, &alice).await;

    first.request();
    let alive = tokio::time::timeout(Duration::from_secs(8), check_alive(&mut client, &mut agent));

    alive.await.expect("sooner than any of them runs out of time by itself");
    for connection in stalled {
        let _refusal = rest_of(connection).await;
    }
    let (_connection, answer) = hand.come_back(&world, &alice, |_| ()).await;
    assert!(matches!(answer, Frame::Attached(_)), "{answer:?}");
}

/// Connections that each stop somewhere: before the proof, in it, before the request, in it.
async fn stalled(world: &World, hand: &Hand, user: &Credentials) -> Vec<BoxStream> {
    let mut stalled = Vec::new();
    for number in 0..2 * STALLED_PER_STAGE {
        let mut connection = world.raw();
        let attempt = challenged(&mut connection, hand.reattach(0)).await;
        let proof = bytes_of(&Frame::Proof(hand.proof(&attempt, user)));
        let part = if number % 2 == 0 { 0 } else { proof.len() / 2 };
        connection.write_all(&proof[..part]).await.unwrap();
        stalled.push(connection);
    }
    let asking = bytes_of(&Frame::Reattach(hand.reattach(0)));
    for part in [0, 2, asking.len() / 2] {
        for _ in 0..STALLED_PER_STAGE {
            let mut connection = world.raw();
            connection.write_all(&asking[..part]).await.unwrap();
            stalled.push(connection);
        }
    }
    stalled
}

/// Every beginning of both frames, and then the end of the connection.
#[tokio::test]
async fn a_a_frame_that_breaks_off_ends_its_connection_at_once() {
    let mut world = World::new();
    world.echo();
    let alice = world.authorities.user("alice");
    let hand = Hand::begin(&world, &alice).await;
    let asking = bytes_of(&Frame::Reattach(hand.reattach(0)));
    for length in 0..asking.len() {
        let mut connection = world.raw();
        connection.write_all(&asking[..length]).await.unwrap();
        connection.shutdown().await.unwrap();
        assert!(rest_of(&mut connection).await.is_empty(), "{length} bytes");
    }
    let proof = hand.proof(&Attempt::new(&hand.reattach(0), [0; 32]), &alice);
    let length = bytes_of(&Frame::Proof(proof)).len();
    for length in (0..length).step_by(7) {
        let mut connection = world.raw();
        let attempt = challenged(&mut connection, hand.reattach(0)).await;
        let proof = bytes_of(&Frame::Proof(hand.proof(&attempt, &alice)));
        connection.write_all(&proof[..length.min(proof.len() - 1)]).await.unwrap();
        connection.shutdown().await.unwrap();
        assert!(rest_of(&mut connection).await.is_empty(), "{length} bytes");
    }
    let (_connection, answer) = hand.come_back(&world, &alice, |_| ()).await;
    assert!(matches!(answer, Frame::Attached(_)), "{answer:?}");
}

#[tokio::test]
async fn a_what_a_stranger_sends_without_end_is_not_kept() {
    let [_, high, middle, low] = u32::try_from(BODY_BYTES_MAX).unwrap().to_be_bytes();
    let stranger = Frame::Reattach(Reattach { stream: StreamId([5; 16]), nonce: [1; 32], received: 0 });
    // The kinds are those of the frames that a client sends here.
    for beginning in
        [vec![32, high, middle, low], vec![34, high, middle, low], bytes_of(&stranger), vec![0xff]]
    {
        let world = World::new();
        let (taken, beginning_bytes) = (Arc::new(AtomicUsize::new(0)), beginning.len());
        let stream = Talker { beginning, taken: taken.clone(), takes_answers: true };
        world.resumptions().reattach(Box::new(stream), None).await;
        let taken = taken.load(Ordering::Relaxed);
        assert!((beginning_bytes..=TAKEN_BYTES_MAX).contains(&taken), "{taken} bytes were taken");
    }
}

#[tokio::test(start_paused = true)]
async fn a_whoever_takes_no_answer_is_let_go() {
    let world = World::new();
    let asking = Frame::Reattach(Reattach { stream: StreamId([5; 16]), nonce: [1; 32], received: 0 });
    let stream = Talker { beginning: bytes_of(&asking), taken: Arc::default(), takes_answers: false };
    let agent = world.authorities.resumptions(world.authorities.host(SystemRole::Node, &["web-1"]));
    let serving = agent.reattach(Box::new(stream), None);
    tokio::time::timeout(STALL_LIMIT, serving).await.expect("it is let go");
}

/// Says something and then nothing but zeros, as fast as it is read.
struct Talker {
    beginning: Vec<u8>,
    taken: Arc<AtomicUsize>,
    takes_answers: bool,
}

impl AsyncRead for Talker {
    fn poll_read(self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.beginning.is_empty() {
            let zeros = vec![0; buf.remaining()];
            buf.put_slice(&zeros);
        } else {
            let count = this.beginning.len().min(buf.remaining());
            buf.put_slice(&this.beginning[..count]);
            this.beginning.drain(..count);
        }
        this.taken.fetch_add(buf.filled().len() - before, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Talker {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.takes_answers { Poll::Ready(Ok(data.len())) } else { Poll::Pending }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.takes_answers { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

/// A refused connection is not read further, whatever still arrives on it.
#[tokio::test]
async fn a_a_refused_connection_is_closed_though_its_client_goes_on() {
    let world = World::new();
    let mut connection: BoxStream = world.raw();
    write_frame(&mut connection, &Frame::Fin).await;
    let rest = rest_of(&mut connection).await;
    assert!(!rest.is_empty(), "it is told");
}
