//! Proxies that say that the agent refuses: only what the agent signed, for this very attempt, ends a stream.

use crate::refused::{PATIENCE, check_alive, end_of, greet, read_frame, write_frame};
use crate::world::{Dialler, Network, World};
use bytes::BytesMut;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use wayleave_keystore::Credentials;
use wayleave_net::BoxStream;
use wayleave_resumable::{AgentStream, ClientStream};
use wayleave_resume_wire::exchange::{Asked, refusal_statement};
use wayleave_resume_wire::{Frame, Proof, Reattach, Refusal, Refused, Signed, StreamId};
use wayleave_vocab::SystemRole;

const PIPE_BYTES: usize = 64 * 1024;
const FINAL: [Refusal; 3] = [Refusal::Unknown, Refusal::Denied, Refusal::Superseded];

/// What a proxy does with a connection that wants a stream back.
pub(crate) enum Lie {
    /// Answers itself, knowing what was asked, and lets the agent hear nothing.
    Answer(Box<dyn FnOnce(Reattach) -> Vec<Frame> + Send>),
    /// Gives the agent another proof than the client's.
    OtherProof(fn(&mut Proof)),
}

impl Network {
    pub(crate) fn lie_instead(&self, answer: Box<dyn FnOnce(Reattach) -> Vec<Frame> + Send>) -> BoxStream {
        let (near, far) = duplex(PIPE_BYTES);
        self.tasks.spawn_many(async move {
            let mut far: BoxStream = Box::new(far);
            let Frame::Reattach(reattach) = read_frame(&mut far).await else { return };
            for frame in answer(reattach) {
                write_frame(&mut far, &frame).await;
            }
            let _ = far.shutdown().await;
        });
        Box::new(near)
    }

    pub(crate) fn lie(&self, mut agent: BoxStream, change: fn(&mut Proof)) -> BoxStream {
        let (near, far) = duplex(PIPE_BYTES);
        self.tasks.spawn_many(async move {
            let mut client: BoxStream = Box::new(far);
            let reattach = read_frame(&mut client).await;
            write_frame(&mut agent, &reattach).await;
            let challenge = read_frame(&mut agent).await;
            write_frame(&mut client, &challenge).await;
            let Frame::Proof(mut proof) = read_frame(&mut client).await else { return };
            change(&mut proof);
            write_frame(&mut agent, &Frame::Proof(proof)).await;
            let mut answer = Vec::new();
            let _ = agent.read_to_end(&mut answer).await;
            let _ = client.write_all(&answer).await;
            let _ = client.shutdown().await;
        });
        Box::new(near)
    }
}

/// A stream that both ends know.
async fn greeted(world: &mut World) -> (ClientStream, AgentStream, Arc<Dialler>) {
    let (mut client, dialler) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    (client, agent, dialler)
}

/// The connection is lost, a proxy lies about the next one, and the stream goes on by one that does not.
async fn check_goes_on(lies: impl IntoIterator<Item = Lie>) {
    let mut world = World::new();
    let (mut client, mut agent, dialler) = greeted(&mut world).await;
    dialler.lies.lock().unwrap().extend(lies);
    world.cut();
    check_alive(&mut client, &mut agent).await;
    assert!(dialler.lies.lock().unwrap().is_empty(), "every lie was told");
    let tried = dialler.tried.lock().unwrap().clone();
    assert_eq!(tried.last().unwrap(), &["liar.example.com:443"], "the liar comes after the others");
}

fn refused(refusal: Refusal) -> Refused {
    Refused::new(refusal, "it is not there any more, believe me")
}

/// What a proxy makes that has the credentials.
fn signed_by(credentials: &Credentials, reattach: Reattach, refusal: Refusal) -> Vec<Frame> {
    let refused = refused(refusal);
    let asked = Asked { reattach: &reattach, proved: None };
    let signed = credentials.sign(|own| refusal_statement(&asked, &refused, own)).unwrap();
    let signed = Signed { certificate: signed.certificate, signature: signed.signature };
    vec![Frame::Refused(refused), Frame::Refuser(signed)]
}

#[tokio::test]
async fn o_a_refusal_that_nobody_signed_ends_no_stream() {
    let unsigned =
        FINAL.map(|refusal| Lie::Answer(Box::new(move |_: Reattach| vec![Frame::Refused(refused(refusal))])));
    check_goes_on(unsigned).await;
}

#[tokio::test]
async fn o_a_refusal_that_another_than_the_agent_signed_ends_no_stream() {
    let mut world = World::new();
    let (mut client, mut agent, dialler) = greeted(&mut world).await;
    let others = [
        world.authorities.host(SystemRole::Proxy, &["web-1"]),
        world.authorities.other_host(SystemRole::Node, &["web-1"]),
        World::new().authorities.host(SystemRole::Node, &["web-1"]),
    ];
    dialler.lies.lock().unwrap().extend(others.map(|other| {
        Lie::Answer(Box::new(move |reattach: Reattach| signed_by(&other, reattach, Refusal::Unknown)))
    }));
    world.cut();
    check_alive(&mut client, &mut agent).await;
}

/// The agent signs that it knows no stream of another name, and that one who asked earlier gets none.
#[tokio::test]
async fn o_the_agents_refusal_of_another_attempt_ends_no_stream() {
    let mut world = World::new();
    let (mut client, mut agent, dialler) = greeted(&mut world).await;
    let mut asking = world.raw();
    let other = Reattach { stream: StreamId([5; 16]), nonce: [1; 32], received: 0 };
    write_frame(&mut asking, &Frame::Reattach(other)).await;
    let mut genuine = Vec::new();
    asking.read_to_end(&mut genuine).await.unwrap();
    let mut genuine = BytesMut::from(&genuine[..]);
    let frames: Vec<Frame> = std::iter::from_fn(|| Frame::decode(&mut genuine).unwrap()).collect();
    assert!(matches!(frames[..], [Frame::Refused(_), Frame::Refuser(_)]), "{frames:?}");
    dialler.lies.lock().unwrap().push_back(Lie::Answer(Box::new(move |_: Reattach| frames)));
    world.cut();
    check_alive(&mut client, &mut agent).await;
}

/// The agent refuses what the proxy made of the proof, and the proxy brings the client that refusal.
#[tokio::test]
async fn o_a_proof_that_a_proxy_changed_ends_no_stream() {
    let changes: [fn(&mut Proof); 3] = [
        |proof| proof.mac[0] ^= 1,
        |proof| proof.signed.signature[10] ^= 1,
        |proof| proof.signed.certificate[100] ^= 1,
    ];
    check_goes_on(changes.map(Lie::OtherProof)).await;
}

#[tokio::test]
async fn a_stream_that_the_agent_has_forgotten_ends_at_once() {
    let mut world = World::new();
    let (mut client, _agent, _) = greeted(&mut world).await;
    world.restart_agent(world.authorities.host(SystemRole::Node, &["web-1"]));
    world.cut();
    let reason = tokio::time::timeout(Duration::from_secs(5), end_of(&mut client)).await.unwrap();
    assert!(reason.contains("started anew"), "{reason}");
}

/// However often it is said: the time that the agent gave ends it.
#[tokio::test]
async fn g_a_stream_that_is_refused_without_a_signature_ends_in_time() {
    let mut world = World::new();
    *world.policy.max_detached.lock().unwrap() = Ok(Duration::from_millis(300));
    let (mut client, _agent, dialler) = greeted(&mut world).await;
    dialler.lies.lock().unwrap().extend(
        (0..1000)
            .map(|_| Lie::Answer(Box::new(|_: Reattach| vec![Frame::Refused(refused(Refusal::Unknown))]))),
    );
    world.cut();
    let reason = tokio::time::timeout(PATIENCE, end_of(&mut client)).await.unwrap();
    assert!(reason.contains("in time"), "{reason}");
}
