//! Every byte once, half-close and reset as they were, whatever is cut.

use crate::world::{Fate, World};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::io::ErrorKind;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wayleave_resumable::News;

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n % 251) as u8 ^ (n >> 8) as u8).collect()
}

/// Sends bytes through an echo and gives what comes back.
async fn echoed(world: &mut World, bytes: usize) -> Vec<u8> {
    world.echo();
    let (mut stream, _) = world.client("alice");
    // Until the hellos are through, a loss is a loss.
    let mut byte = [0; 1];
    stream.write_all(b"?").await.unwrap();
    stream.read_exact(&mut byte).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = async {
        write.write_all(&pattern(bytes)).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receiving = async {
        let mut back = Vec::new();
        read.read_to_end(&mut back).await.unwrap();
        back
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(sending, receiving).1 }).await.unwrap()
}

#[tokio::test]
async fn an_uncut_stream_is_a_stream() {
    let mut world = World::new();
    assert!(echoed(&mut world, 3_000_000).await == pattern(3_000_000));
    assert!(world.policy.heard().is_empty(), "{:?}", world.policy.heard());
}

#[test]
fn whatever_byte_it_is_cut_at_every_byte_comes_back_once() {
    let cut = (3000..300_000_usize, 3000..300_000_usize)
        .prop_map(|(to_agent, to_client)| Fate::CutAfter { to_agent, to_client });
    let fate = prop_oneof![6 => cut, 1 => Just(Fate::Refuse)];
    let fates = proptest::collection::vec(fate, 1..12);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    TestRunner::new(ProptestConfig::with_cases(24))
        .run(&fates, |mut fates| {
            fates.insert(0, Fate::CutAfter { to_agent: 40_000, to_client: 40_000 });
            let mut world = World::new().fates(fates);
            let back = runtime.block_on(echoed(&mut world, 700_000));
            prop_assert!(back == pattern(700_000));
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn a_person_hears_of_a_loss_that_takes_a_moment() {
    let refused = std::iter::repeat_n(Fate::Refuse, 3);
    let mut world = World::new().fates([Fate::Stay].into_iter().chain(refused));
    let (mut client, dialler) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    client.write_all(b"x").await.unwrap();
    let mut byte = [0; 1];
    agent.read_exact(&mut byte).await.unwrap();
    agent.write_all(b"y").await.unwrap();
    client.read_exact(&mut byte).await.unwrap();
    world.cut();
    agent.write_all(b"while nobody is there").await.unwrap();
    let mut text = [0; 21];
    tokio::time::timeout(Duration::from_secs(30), client.read_exact(&mut text)).await.unwrap().unwrap();
    assert_eq!(&text, b"while nobody is there");
    let news = dialler.news.lock().unwrap().clone();
    assert!(news.is_empty() || news == [News::Reconnecting, News::Reconnected], "{news:?}");
    assert_eq!(world.policy.heard().last().unwrap(), "reattach alice");
}

#[tokio::test]
async fn the_last_bytes_wait_for_a_client_that_comes_back_for_them() {
    let mut world = World::new();
    let (mut client, _) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    client.write_all(b"go").await.unwrap();
    let mut go = [0; 2];
    agent.read_exact(&mut go).await.unwrap();
    agent.write_all(b"1").await.unwrap();
    let mut one = [0; 1];
    client.read_exact(&mut one).await.unwrap();

    world.cut();
    let mut rest = [0; 1];
    // The agent's end learns of the cut, then everything that is written is written in vain but for the resumption.
    let pending = tokio::time::timeout(Duration::from_millis(50), agent.read(&mut rest)).await;
    assert!(pending.is_err());
    agent.write_all(b"exit 0").await.unwrap();
    agent.flush().await.unwrap();
    let _ = tokio::time::timeout(Duration::from_millis(50), agent.shutdown()).await;
    drop(agent);

    let mut text = String::new();
    let reading = client.read_to_string(&mut text);
    tokio::time::timeout(Duration::from_secs(30), reading).await.unwrap().unwrap();
    assert_eq!(text, "exit 0");
}

#[tokio::test]
async fn a_client_that_goes_away_is_gone_at_once() {
    let mut world = World::new();
    let (mut client, _) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    client.write_all(b"bye").await.unwrap();
    client.flush().await.unwrap();
    drop(client);
    let mut text = [0; 3];
    agent.read_exact(&mut text).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), agent.read(&mut text)).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(agent);
    let none = async {
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        while world.count() > 0 {
            looks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), none).await.unwrap();
}

/// Both write much and read nothing until they have written.
#[tokio::test]
async fn g_two_writers_who_do_not_read_wait_for_their_pipes_only() {
    let mut world = World::new();
    let (mut client, _) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    let sent = pattern(200_000);
    let (ours, theirs) = (sent.clone(), sent.clone());
    let near = async {
        client.write_all(&ours).await.unwrap();
        let mut got = vec![0; 200_000];
        client.read_exact(&mut got).await.unwrap();
        got
    };
    let far = async {
        agent.write_all(&theirs).await.unwrap();
        let mut got = vec![0; 200_000];
        agent.read_exact(&mut got).await.unwrap();
        got
    };
    let both = async { tokio::join!(near, far) };
    let (a, b) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
    assert!(a == sent && b == sent);
}
