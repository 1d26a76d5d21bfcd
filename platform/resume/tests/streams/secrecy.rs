//! SECURITY M where streams are resumed: what passes through and what proves is in no log, no reason and no news.

use crate::hand::Hand;
use crate::refused::{check_alive, greet};
use crate::world::World;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wayleave_resume_wire::{Frame, Proof};

const CANARY: &[u8] = b"canary-typed-at-a-prompt";

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Bytes as a log would show them.
fn shapes(secret: &[u8]) -> [String; 4] {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers = format!("{secret:?}");
    let text = String::from_utf8_lossy(secret).into_owned();
    [hex.to_uppercase(), hex, numbers.trim_matches(['[', ']']).to_owned(), text]
}

/// Refused ones too: a reason tells what was wrong, not what was brought.
async fn proofs_that_were_made(world: &mut World) -> Vec<Vec<u8>> {
    world.echo();
    let alice = world.authorities.user("alice");
    let hand = Hand::begin(world, &alice).await;
    let mut macs = Vec::new();
    let mallory = world.authorities.user("mallory");
    let mut keep = |proof: &mut Proof| macs.push(proof.mac.to_vec());
    let _refused = hand.refused(world, &mallory, &mut keep).await;
    let broken = |proof: &mut Proof| {
        proof.mac[0] ^= 1;
        keep(proof);
    };
    let _refused = hand.refused(world, &alice, broken).await;
    let (_connection, answer) = hand.come_back(world, &alice, |proof| macs.push(proof.mac.to_vec())).await;
    let Frame::Attached(attached) = answer else { panic!("{answer:?}") };
    macs.push(attached.mac.to_vec());
    macs
}

#[tokio::test]
async fn m_neither_what_passes_nor_what_proves_is_logged() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // For this thread, on which the whole test runs.
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut world = World::new();
    let (mut client, dialler) = world.client("alice");
    let mut agent = world.streams.recv().await.unwrap();
    greet(&mut client, &mut agent).await;
    client.write_all(CANARY).await.unwrap();
    let mut typed = vec![0; CANARY.len()];
    agent.read_exact(&mut typed).await.unwrap();
    world.cut();
    check_alive(&mut client, &mut agent).await;
    let (_, resumed) = crate::refused::reattachment(&world.recorded.lock().unwrap()[1]);

    let mut secrets = proofs_that_were_made(&mut world).await;
    secrets.extend([CANARY.to_vec(), resumed.mac.to_vec(), resumed.signed.signature]);
    world.wait_heard("refused mallory").await;

    let mut said = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    assert!(said.contains("was refused a stream"), "the log is captured: {said}");
    said += &world.policy.heard().join("\n");
    said += &format!("{:?}", dialler.news.lock().unwrap());
    for shape in secrets.iter().flat_map(|secret| shapes(secret)) {
        assert!(!said.contains(&shape), "{shape:?} is in {said}");
    }
}
