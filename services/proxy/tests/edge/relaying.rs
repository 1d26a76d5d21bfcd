//! What proxies relay from Auth to agents.

use crate::agent::Agent;
use crate::authority::now;
use crate::cluster::Cluster;
use std::time::Duration;
use wayleave_api::agent::proxy_to_agent;
use wayleave_api::auth::cluster_event::Event;
use wayleave_api::auth::{PolicyDelta, PolicySnapshot, SignedHead as WireHead};
use wayleave_ca::{
    CaKeys, CaType, CertAuthority, CertAuthoritySpec, Digest, Head, RotationPhase, SignedHead, Snapshot,
    SnapshotParts,
};
use wayleave_keystore::inflate_policy;
use wayleave_resource::{Lock, LockSpec, LockTarget, Metadata};
use wayleave_vocab::{HostId, PolicyRevision, ResourceName, UserName};

/// Bytes that a lock takes at least in these tests.
const LOCK_BYTES: usize = 1000;

/// A policy of at least so many bytes, signed.
fn policy(cluster: &Cluster, counter: u64, bytes: usize) -> PolicySnapshot {
    let target = |number: usize| LockTarget::User(UserName::parse(format!("user-{number}")).unwrap());
    let policy = signed_policy(cluster, counter, (0..bytes / LOCK_BYTES).map(target).collect());
    assert!(policy.payload.len() >= bytes);
    policy
}

/// A policy with locks on these, signed.
pub(crate) fn signed_policy(cluster: &Cluster, counter: u64, locked: Vec<LockTarget>) -> PolicySnapshot {
    let authorities = &cluster.authorities;
    let signer = &authorities.policy;
    let revision = PolicyRevision { generation: 1, counter };
    let authority = |ca_type: CaType, keys: CaKeys| {
        let spec = CertAuthoritySpec {
            ca_type,
            cluster: authorities.name.clone(),
            phase: RotationPhase::Standby,
            active: vec![keys],
            trusted: Vec::new(),
        };
        CertAuthority { metadata: Metadata::default(), spec }
    };
    let signing = CaKeys { signing_public_key_pem: Some(signer.public_key_pem()), ..CaKeys::default() };
    let x509 = |pem: &str| CaKeys { x509_certificate_pem: Some(pem.to_owned()), ..CaKeys::default() };
    let [host, user] = authorities.certificates_pem();
    let lock = |(number, target): (usize, LockTarget)| Lock {
        name: ResourceName::parse(format!("lock-{number}")).unwrap(),
        metadata: Metadata { description: Some("x".repeat(LOCK_BYTES)), ..Metadata::default() },
        spec: LockSpec { target, message: String::new(), expires: None, created_at: None, created_by: None },
    };
    let payload = Snapshot::new(SnapshotParts {
        revision,
        cluster: authorities.name.clone(),
        issued: now(),
        cas: vec![
            authority(CaType::Policy, signing),
            authority(CaType::Host, x509(host)),
            authority(CaType::User, x509(user)),
        ],
        roles: Vec::new(),
        locks: locked.into_iter().enumerate().map(lock).collect(),
        withdrawn: vec![],
        auth_preference: Default::default(),
        networking: Default::default(),
    })
    .encode();
    let head =
        Head { cluster: authorities.name.clone(), revision, digest: Digest::of(&payload), time: now() };
    let head = head.encode();
    let signature = signer.sign(&SignedHead::message(&head));
    PolicySnapshot { payload, head: Some(WireHead { payload: head, signature }), ..Default::default() }
}

/// The next policy that the agent is told.
async fn relayed(agent: &mut Agent) -> PolicySnapshot {
    loop {
        let message = agent.heard().await.expect("the tunnel stays");
        if let proxy_to_agent::Message::Snapshot(mut snapshot) = message {
            snapshot.payload = inflate_policy(&std::mem::take(&mut snapshot.deflated_payload)).unwrap();
            return snapshot;
        }
    }
}

#[tokio::test]
async fn a_policy_of_many_megabytes_reaches_the_agents() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let mut agent = Agent::connect(&cluster, &proxy.web, HostId::from_random([9; 16])).await;
    for (counter, bytes) in [(1, 1000), (2, 100_000), (3, 6_000_000)] {
        let policy = policy(&cluster, counter, bytes);
        cluster.auth.tell(Event::Snapshot(policy.clone()));
        let relaying = tokio::time::timeout(Duration::from_secs(30), relayed(&mut agent));
        assert!(relaying.await.unwrap() == policy, "{bytes} bytes arrive as they are");
    }
}

#[tokio::test]
async fn o_a_policy_that_auth_did_not_sign_is_not_relayed() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let mut agent = Agent::connect(&cluster, &proxy.web, HostId::from_random([9; 16])).await;
    let mut forged = policy(&cluster, 1, 2000);
    forged.payload.push(b' ');
    cluster.auth.tell(Event::Snapshot(forged));
    let good = policy(&cluster, 2, 1000);
    cluster.auth.tell(Event::Snapshot(good.clone()));
    assert!(relayed(&mut agent).await == good);
}

/// The difference between two policies, as Auth sends it.
fn delta(from: &PolicySnapshot, to: &PolicySnapshot) -> PolicyDelta {
    let (old, new) = (Snapshot::decode(&from.payload).unwrap(), Snapshot::decode(&to.payload).unwrap());
    let at = old.parts().revision;
    PolicyDelta {
        payload: old.delta_to(&new).encode(),
        head: to.head.clone(),
        from_generation: at.generation,
        from_counter: at.counter,
        ..Default::default()
    }
}

async fn relayed_delta(agent: &mut Agent) -> PolicyDelta {
    loop {
        if let proxy_to_agent::Message::Delta(delta) = agent.heard().await.expect("the tunnel stays") {
            return delta;
        }
    }
}

#[tokio::test]
async fn who_holds_the_policy_before_is_told_what_changed_and_others_the_whole() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let mut agent = Agent::connect(&cluster, &proxy.web, HostId::from_random([9; 16])).await;
    let (first, second) = (policy(&cluster, 1, 50_000), policy(&cluster, 2, 52_000));
    cluster.auth.tell(Event::Snapshot(first.clone()));
    assert!(relayed(&mut agent).await == first);
    let change = delta(&first, &second);
    assert!(change.payload.len() < 10_000);
    cluster.auth.tell(Event::Delta(change.clone()));
    assert_eq!(relayed_delta(&mut agent).await, change);
    let mut late = Agent::connect(&cluster, &proxy.web, HostId::from_random([8; 16])).await;
    assert!(relayed(&mut late).await == second, "who holds nothing is told everything");
    // Who cannot use what changed asks for the whole, and gets it once.
    agent.say_policy_held(1);
    assert!(relayed(&mut agent).await == second);
}

#[tokio::test]
async fn o_a_change_that_does_not_lead_to_what_auth_signed_is_not_relayed() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy(1).await;
    let mut agent = Agent::connect(&cluster, &proxy.web, HostId::from_random([9; 16])).await;
    let (first, second) = (policy(&cluster, 1, 50_000), policy(&cluster, 2, 52_000));
    cluster.auth.tell(Event::Snapshot(first.clone()));
    assert!(relayed(&mut agent).await == first);
    let mut forged = delta(&first, &policy(&cluster, 2, 90_000));
    forged.head = second.head.clone();
    // The proxy starts over and is told the whole.
    cluster.auth.tell_watchers_from_the_start(&second);
    cluster.auth.tell(Event::Delta(forged));
    assert!(relayed(&mut agent).await == second);
}
