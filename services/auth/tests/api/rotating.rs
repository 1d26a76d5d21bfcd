//! Rotation of the authorities, step by step, while everybody goes on.

use crate::harness::{Cluster, HOUR, Process, refused, within};
use tonic::Code;
use wayleave_api::auth::{GetStatusRequest, PolicySnapshot, RotateAuthorityRequest, RotateAuthorityResponse};
use wayleave_keystore::{IdentityDir, PolicyKeeper, TrustStore};
use wayleave_runtime::Clock;
use wayleave_vocab::ClusterName;

async fn rotate(
    cluster: &Cluster,
    ca_type: &str,
    phase: &str,
) -> Result<RotateAuthorityResponse, tonic::Status> {
    let request =
        RotateAuthorityRequest { r#type: ca_type.to_owned(), phase: phase.to_owned(), force: false };
    Ok(cluster.admin().rotate_authority(request).await?.into_inner())
}

/// Goes to a phase and returns it as the answer names it.
async fn step(cluster: &Cluster, ca_type: &str, phase: &str) {
    let answer = rotate(cluster, ca_type, phase).await.unwrap();
    assert_eq!(answer.authority.unwrap().phase, phase);
}

/// The authority at the end of a chain.
fn issuer(chain_pem: &str) -> &str {
    &chain_pem[chain_pem.rfind("-----BEGIN").unwrap()..]
}

async fn may_call(cluster: &Cluster, process: &Process) -> bool {
    let mut host = cluster.host(process);
    let request = wayleave_api::auth::RegisterRequest::default();
    within(host.register(request)).await.is_ok()
}

#[tokio::test]
async fn a_host_authority_rotates_while_processes_join_and_call() {
    let cluster = Cluster::start().await;
    let old = cluster.join(&["Node"], "old").await;
    let pin = cluster.api.ca_pins();
    step(&cluster, "host", "init").await;
    assert_eq!(cluster.api.ca_pins().len(), 2, "both keys are trusted");
    let during = cluster.join(&["Node"], "during").await;
    let chain = |process: &Process| issuer(&process.answer.certificates[0].tls_chain_pem).to_owned();
    assert_eq!(chain(&during), chain(&old), "the old key signs");
    step(&cluster, "host", "update_clients").await;
    step(&cluster, "host", "update_servers").await;
    let new = cluster.join(&["Node"], "new").await;
    assert_ne!(chain(&new), chain(&old), "the new key signs");
    assert!(may_call(&cluster, &old).await, "both keys are trusted");
    assert!(may_call(&cluster, &new).await);
    let told = refused(rotate(&cluster, "host", "standby").await, Code::Aborted);
    assert!(told.contains("old") && told.contains("during") && !told.contains("new,"), "{told}");
    let request =
        RotateAuthorityRequest { r#type: "host".to_owned(), phase: "standby".to_owned(), force: true };
    cluster.admin().rotate_authority(request).await.unwrap();
    assert_eq!(cluster.api.ca_pins().len(), 1);
    assert_ne!(cluster.api.ca_pins(), pin);
    assert!(!may_call(&cluster, &old).await, "the old key has gone");
    assert!(may_call(&cluster, &new).await);
}

#[tokio::test]
async fn a_user_authority_rotates_and_goes_back() {
    let cluster = Cluster::start().await;
    cluster.create_user("alice", &["access"], &["root"]).await;
    let (before, _) = cluster.sign("alice", HOUR).await;
    step(&cluster, "user", "init").await;
    step(&cluster, "user", "update_clients").await;
    let (after, _) = cluster.sign("alice", HOUR).await;
    assert_ne!(issuer(&after.tls_chain_pem), issuer(&before.tls_chain_pem));
    step(&cluster, "user", "rollback").await;
    let (back, _) = cluster.sign("alice", HOUR).await;
    assert_eq!(issuer(&back.tls_chain_pem), issuer(&before.tls_chain_pem));
    step(&cluster, "user", "standby").await;
    let mut alice = cluster.user("alice").await;
    assert!(within(alice.get_status(GetStatusRequest {})).await.is_ok());
}

#[tokio::test]
async fn steps_that_do_not_follow_are_refused_and_a_restart_goes_on() {
    let cluster = Cluster::start().await;
    let told = refused(rotate(&cluster, "host", "update_servers").await, Code::InvalidArgument);
    assert!(told.contains("standby"), "{told}");
    refused(rotate(&cluster, "jwt", "init").await, Code::InvalidArgument);
    refused(rotate(&cluster, "host", "later").await, Code::InvalidArgument);
    // Without a phase it is the next step.
    let answer = rotate(&cluster, "host", "").await.unwrap();
    assert_eq!(answer.next_phases, ["update_clients", "rollback"]);
    let pins = cluster.api.ca_pins();
    let (backend, clock, directory) = cluster.stop().await;
    let cluster = Cluster::start_on(backend, clock, directory, |_| {}).await;
    assert_eq!(cluster.api.ca_pins(), pins);
    step(&cluster, "host", "update_clients").await;
}

/// The policy as it is handed out, once the publisher has seen the change.
async fn wait_offered(cluster: &Cluster, successions: usize, keys: usize) -> PolicySnapshot {
    within(async {
        loop {
            let offered = cluster.api.trust_bundle().unwrap();
            let snapshot = offered.snapshot.unwrap();
            let text = String::from_utf8_lossy(&snapshot.payload).into_owned();
            let named = text.matches("signing_public_key_pem").count();
            if snapshot.successions.len() == successions && named == keys {
                return snapshot;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

fn keeper(directory: &tempfile::TempDir, keys: Vec<String>) -> PolicyKeeper {
    let name = ClusterName::parse("demo").unwrap();
    let directory = IdentityDir::open(&directory.path().join("identity")).unwrap();
    PolicyKeeper::open(directory, name, keys, TrustStore::empty()).unwrap()
}

fn believes(cluster: &Cluster, keeper: &PolicyKeeper, offered: &PolicySnapshot) -> bool {
    let head = offered.head.as_ref().unwrap();
    keeper.accept_successions(offered.links());
    keeper.accept_snapshot(&offered.payload, &head.payload, &head.signature, cluster.clock.wall()).is_ok()
}

#[tokio::test]
async fn o_an_agent_that_slept_through_rotations_follows_the_succession_of_policy_keys() {
    let cluster = Cluster::start().await;
    let trust = cluster.join(&["Node"], "n-1").await.answer.trust.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let sleeper = keeper(&directory, trust.policy_keys_pem.clone());
    assert!(believes(&cluster, &sleeper, &trust.snapshot.unwrap()));
    for _ in 0..2 {
        for phase in ["init", "update_clients", "update_servers", "standby"] {
            step(&cluster, "policy", phase).await;
        }
    }
    let offered = wait_offered(&cluster, 2, 1).await;
    let mut without = offered.clone();
    without.successions.clear();
    assert!(!believes(&cluster, &sleeper, &without), "a key that nobody vouches for");
    let mut forged = offered.clone();
    forged.successions[0].signature[0] ^= 1;
    assert!(!believes(&cluster, &sleeper, &forged));
    assert!(believes(&cluster, &sleeper, &offered));
    // What was learned outlives a restart.
    drop(sleeper);
    let woken = keeper(&directory, trust.policy_keys_pem);
    assert!(believes(&cluster, &woken, &without));
}

#[tokio::test]
async fn o_a_policy_key_that_was_taken_back_is_vouched_for_by_nobody() {
    let cluster = Cluster::start().await;
    for phase in ["init", "update_clients", "update_servers"] {
        step(&cluster, "policy", phase).await;
    }
    wait_offered(&cluster, 1, 2).await;
    step(&cluster, "policy", "rollback").await;
    step(&cluster, "policy", "standby").await;
    wait_offered(&cluster, 0, 1).await;
    assert_eq!(cluster.api.trust_bundle().unwrap().policy_keys_pem.len(), 1);
}
