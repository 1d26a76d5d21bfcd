//! Who does not get a stream: other users, old proofs, wrong secrets, users who are locked, proxies.

use crate::world::World;
use bytes::BytesMut;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wayleave_net::BoxStream;
use wayleave_resumable::{AgentStream, ClientStream, News};
use wayleave_resume_wire::{Frame, Proof, Reattach, Refusal, Signed, StreamId};
use wayleave_vocab::SystemRole;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes go both ways once: both ends know the secret then.
pub(crate) async fn greet(client: &mut ClientStream, agent: &mut AgentStream) {
    let mut byte = [0; 1];
    client.write_all(b"x").await.unwrap();
    agent.read_exact(&mut byte).await.unwrap();
    agent.write_all(b"y").await.unwrap();
    client.read_exact(&mut byte).await.unwrap();
}

/// It still carries bytes both ways.
pub(crate) async fn check_alive(client: &mut ClientStream, agent: &mut AgentStream) {
    let (mut there, mut back) = ([0; 1], [0; 1]);
    let near = async {
        client.write_all(b"1").await.unwrap();
        client.read_exact(&mut back).await.unwrap();
    };
    let far = async {
        agent.read_exact(&mut there).await.unwrap();
        agent.write_all(b"2").await.unwrap();
        agent.flush().await.unwrap();
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(near, far) }).await.unwrap();
    assert_eq!((&there, &back), (b"1", b"2"));
}

/// The client's stream ends, with a reason.
pub(crate) async fn end_of(client: &mut ClientStream) -> String {
    let mut byte = [0; 1];
    let read = tokio::time::timeout(PATIENCE, client.read(&mut byte)).await.unwrap();
    read.unwrap_err().to_string()
}

pub(crate) async fn read_frame(stream: &mut BoxStream) -> Frame {
    let mut input = BytesMut::new();
    let reading = async {
        loop {
            if let Some(frame) = Frame::decode(&mut input).unwrap() {
                return frame;
            }
            assert_ne!(stream.read_buf(&mut input).await.unwrap(), 0, "an answer comes first");
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap()
}

pub(crate) async fn write_frame(stream: &mut BoxStream, frame: &Frame) {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
}

async fn refusal(stream: &mut BoxStream) -> Refusal {
    match read_frame(stream).await {
        Frame::Refused(refused) => refused.refusal,
        other => panic!("{other:?}"),
    }
}

/// The frames of a connection that wanted a stream back.
pub(crate) fn reattachment(recorded: &[u8]) -> (Reattach, Proof) {
    let mut input = BytesMut::from(recorded);
    match (Frame::decode(&mut input).unwrap(), Frame::decode(&mut input).unwrap()) {
        (Some(Frame::Reattach(reattach)), Some(Frame::Proof(proof))) => (reattach, proof),
        other => panic!("{other:?}"),
    }
}

/// A stream that was lost and is back, and what went over the wire for that.
async fn resumed(world: &mut World) -> (ClientStream, AgentStream, Reattach, Proof) {
    let (mut client, _) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    world.cut();
    check_alive(&mut client, &mut agent).await;
    let (reattach, proof) = reattachment(&world.recorded.lock().unwrap()[1]);
    (client, agent, reattach, proof)
}

#[tokio::test]
async fn k_another_users_certificate_gets_no_stream() {
    let mut world = World::new();
    let (mut client, dialler) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    *dialler.credentials.lock().unwrap() = world.authorities.user("mallory");
    world.cut();
    // Whoever serves the stream must look for the loss to be seen.
    let mut byte = [0; 1];
    let (reason, _) = tokio::join!(end_of(&mut client), async {
        let _ = tokio::time::timeout(Duration::from_secs(1), agent.read(&mut byte)).await;
    });
    assert!(reason.contains("not your session"), "{reason}");
    world.wait_heard("refused mallory").await;
}

#[tokio::test]
async fn k_a_certificate_of_another_cluster_gets_no_stream() {
    let mut world = World::new();
    let (mut client, dialler) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    *dialler.credentials.lock().unwrap() = World::new().authorities.user("alice");
    world.cut();
    let mut byte = [0; 1];
    let (reason, _) = tokio::join!(end_of(&mut client), async {
        let _ = tokio::time::timeout(Duration::from_secs(1), agent.read(&mut byte)).await;
    });
    assert!(reason.contains("log in again"), "{reason}");
}

#[tokio::test]
async fn o_a_replayed_proof_is_refused_and_the_stream_goes_on() {
    let mut world = World::new();
    let (mut client, mut agent, reattach, proof) = resumed(&mut world).await;

    let mut replay = world.raw();
    write_frame(&mut replay, &Frame::Reattach(reattach)).await;
    assert!(matches!(read_frame(&mut replay).await, Frame::Challenge(_)));
    write_frame(&mut replay, &Frame::Proof(proof)).await;

    assert_eq!(refusal(&mut replay).await, Refusal::Denied);
    check_alive(&mut client, &mut agent).await;
    world.wait_heard("an old one").await;
}

#[tokio::test]
async fn o_a_wrong_mac_is_refused_and_the_stream_goes_on() {
    let mut world = World::new();
    let (mut client, mut agent, reattach, proof) = resumed(&mut world).await;

    let mut forged = world.raw();
    write_frame(&mut forged, &Frame::Reattach(Reattach { nonce: [1; 32], ..reattach })).await;
    assert!(matches!(read_frame(&mut forged).await, Frame::Challenge(_)));
    write_frame(&mut forged, &Frame::Proof(Proof { mac: [0; 32], ..proof })).await;

    assert_eq!(refusal(&mut forged).await, Refusal::Denied);
    check_alive(&mut client, &mut agent).await;
}

#[tokio::test]
async fn a_silent_connections_that_want_streams_back_keep_nobody_from_his_own() {
    let mut world = World::new();
    let (mut client, mut agent, ..) = resumed(&mut world).await;
    let _silent: Vec<BoxStream> = (0..1000).map(|_| world.raw()).collect();
    world.cut();
    // Sooner than any of them runs out of time by itself.
    let alive = tokio::time::timeout(Duration::from_secs(8), check_alive(&mut client, &mut agent));
    alive.await.unwrap();
}

#[tokio::test]
async fn o_a_name_that_nobody_has_opens_nothing() {
    let world = World::new();
    let mut stream = world.raw();
    let guess = Reattach { stream: StreamId([5; 16]), nonce: [1; 32], received: 0 };
    write_frame(&mut stream, &Frame::Reattach(guess)).await;
    assert_eq!(refusal(&mut stream).await, Refusal::Unknown);
}

#[tokio::test]
async fn f_frames_that_do_not_belong_there_end_that_connection_only() {
    let mut world = World::new();
    let (mut client, mut agent, ..) = resumed(&mut world).await;
    for frame in [Frame::Fin, Frame::Data { bytes: 3 }, Frame::Ping { received: 1 }] {
        let mut stream = world.raw();
        write_frame(&mut stream, &frame).await;
        assert_eq!(refusal(&mut stream).await, Refusal::Unknown);
    }
    let mut garbage = world.raw();
    garbage.write_all(&[0xff; 100]).await.unwrap();
    assert_eq!(garbage.read(&mut [0; 1]).await.unwrap_or(0), 0);
    check_alive(&mut client, &mut agent).await;
}

#[tokio::test]
async fn j_a_locked_user_does_not_get_his_stream_back() {
    let mut world = World::new();
    let (mut client, _) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    *world.policy.answer.lock().unwrap() = Err("access is locked: back on Monday".into());
    world.cut();
    let mut byte = [0; 1];
    let (reason, _) = tokio::join!(end_of(&mut client), async {
        let _ = tokio::time::timeout(Duration::from_secs(1), agent.read(&mut byte)).await;
    });
    assert!(reason.contains("back on Monday"), "{reason}");
}

#[tokio::test]
async fn j_a_stream_whose_user_is_locked_does_not_wait() {
    let mut world = World::new();
    let (mut client, _) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    *world.policy.max_detached.lock().unwrap() = Err("access is locked".into());
    world.cut();
    let mut byte = [0; 1];
    let ended = tokio::time::timeout(PATIENCE, agent.read(&mut byte)).await.unwrap();
    assert!(ended.unwrap_err().to_string().contains("locked"));
}

/// The host authority was rotated while the stream was open; then its agent began anew and knows it no more.
#[tokio::test]
async fn g_a_refusal_under_a_newer_authority_ends_the_stream() {
    let mut world = World::new();
    let (mut client, dialler) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    world.authorities.rotate_host();
    world.restart_agent(world.authorities.host(SystemRole::Node, &["web-1"]));
    *dialler.trust.lock().unwrap() = world.authorities.trust();
    world.cut();
    let reason = end_of(&mut client).await;
    assert!(reason.contains("cannot be resumed"), "{reason}");
}

#[tokio::test]
async fn g_a_stream_that_nobody_comes_back_for_ends() {
    let mut world = World::new();
    *world.policy.max_detached.lock().unwrap() = Ok(Duration::from_millis(200));
    let (mut client, _) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    drop(std::mem::replace(
        &mut *world.fates.lock().unwrap(),
        std::iter::repeat_n(crate::world::Fate::Refuse, 1000).collect(),
    ));
    world.cut();
    let mut byte = [0; 1];
    let ended = tokio::time::timeout(PATIENCE, agent.read(&mut byte)).await.unwrap();
    assert!(ended.unwrap_err().to_string().contains("in time"));
    assert_eq!(world.policy.heard(), ["detached", "expired"]);
    assert_eq!(world.count(), 0);
    assert!(end_of(&mut client).await.contains("in time"));
}

#[tokio::test]
async fn a_role_that_wants_no_resumption_gets_none() {
    let mut world = World::new();
    *world.policy.max_detached.lock().unwrap() = Ok(Duration::ZERO);
    let (mut client, dialler) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    assert!(matches!(dialler.news.lock().unwrap().as_slice(), [News::NotResumable { .. }]));
    world.cut();
    let mut byte = [0; 1];
    assert!(tokio::time::timeout(PATIENCE, agent.read(&mut byte)).await.unwrap().is_err());
    assert!(end_of(&mut client).await.contains("lost"));
}

/// A proxy in place of the agent: it has a certificate of the cluster, and not the node's.
#[tokio::test]
async fn o_a_proxy_cannot_be_the_agent_of_a_stream() {
    for (role, names) in [(SystemRole::Proxy, ["web-1"]), (SystemRole::Node, ["web-2"])] {
        let mut world = World::new();
        let credentials = world.authorities.host(role, &names);
        world.restart_agent(credentials);
        let (mut client, dialler) = world.client("alice");
        let mut agent = world.streams.recv().await.unwrap();
        greet(&mut client, &mut agent).await;
        let news = dialler.news.lock().unwrap().clone();
        assert!(matches!(news.as_slice(), [News::NotResumable { .. }]), "{news:?}");
    }
}

/// A proxy that answers with a hello that was made for somebody else.
#[tokio::test]
async fn o_a_hello_for_another_client_is_not_believed() {
    let world = World::new();
    let signed = Signed { certificate: vec![1, 2, 3], signature: vec![4] };
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (_, dialler) = world.client("alice");
    let agent = wayleave_resumable::Agent {
        names: vec!["web-1".into()],
        role: SystemRole::Node,
        trust: world.authorities.trust(),
    };
    let credentials = world.authorities.user("alice");
    let mut client = ClientStream::new(Box::new(near), &credentials, agent, dialler.clone()).unwrap();
    let mut far: BoxStream = Box::new(far);
    let hello = wayleave_resume_wire::AgentHello {
        share: [9; 32],
        stream: StreamId([1; 16]),
        max_detached_ms: 1000,
        proxies: Vec::new(),
        signed,
    };
    write_frame(&mut far, &Frame::AgentHello(hello)).await;
    write_frame(&mut far, &Frame::Data { bytes: 1 }).await;
    far.write_all(b"z").await.unwrap();
    let mut byte = [0; 1];
    client.read_exact(&mut byte).await.unwrap();
    assert!(matches!(dialler.news.lock().unwrap().as_slice(), [News::NotResumable { .. }]));
}
