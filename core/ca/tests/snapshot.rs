//! Snapshots and deltas: canonical, bounded, and never read as less than they say.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use proptest::prelude::*;
use wayleave_ca::{DecodeSnapshotError, Delta, Snapshot, SnapshotParts, Withdrawal};
use wayleave_resource::{ClusterAuthPreference, ClusterNetworkingConfig, Lock, Resource, Role};
use wayleave_vocab::{ClusterName, HostId, PolicyRevision, RoleName, UserName, Wall};

fn role(name: &str, login: &str) -> Role {
    let text = format!(
        "kind: role\nversion: v8\nmetadata: {{name: {name}}}\nspec: {{allow: {{logins: [{login}], node_labels: {{'*': '*'}}}}}}"
    );
    match Resource::parse_yaml(&text).unwrap().remove(0) {
        Resource::Role(role) => *role,
        other => panic!("{other:?}"),
    }
}

fn lock(name: &str, user: &str) -> Lock {
    let text =
        format!("kind: lock\nversion: v2\nmetadata: {{name: {name}}}\nspec: {{target: {{user: {user}}}}}");
    match Resource::parse_yaml(&text).unwrap().remove(0) {
        Resource::Lock(lock) => lock,
        other => panic!("{other:?}"),
    }
}

fn snapshot(counter: u64, roles: Vec<Role>, locks: Vec<Lock>) -> Snapshot {
    Snapshot::new(SnapshotParts {
        revision: PolicyRevision { generation: 1, counter },
        cluster: ClusterName::parse("demo").unwrap(),
        issued: Wall::from_secs(1_800_000_000 + counter),
        cas: vec![],
        roles,
        locks,
        withdrawn: vec![],
        auth_preference: ClusterAuthPreference::default(),
        networking: ClusterNetworkingConfig::default(),
    })
}

#[test]
fn the_encoding_is_canonical_and_matches_its_golden_file() {
    let (a, b) = (role("a", "root"), role("b", "ubuntu"));
    let mut revised = a.clone();
    revised.metadata.revision = Some("17".to_owned());
    let one = snapshot(1, vec![b.clone(), revised], vec![lock("l2", "eve"), lock("l1", "mallory")]);
    let two = snapshot(1, vec![a, b], vec![lock("l1", "mallory"), lock("l2", "eve")]);
    assert_eq!(one.encode(), two.encode());
    let text = String::from_utf8(one.encode()).unwrap();
    assert_eq!(text, include_str!("../golden/snapshot_v1.json").trim_end());
    assert_eq!(Snapshot::decode(&one.encode()), Ok(one));
}

#[test]
fn a_role_from_the_future_is_set_aside_and_a_lock_from_the_future_is_not() {
    let text =
        String::from_utf8(snapshot(1, vec![role("a", "root")], vec![lock("l", "eve")]).encode()).unwrap();
    let newer = text.replace("\"logins\"", "\"logins_of_tomorrow\"");
    let read = Snapshot::decode(newer.as_bytes()).unwrap();
    assert_eq!(read.unreadable_roles().len(), 1);
    assert!(read.parts().roles.is_empty());
    let delta = read.delta_to(&snapshot(2, vec![], vec![]));
    assert_eq!(read.apply(&delta), Err(DecodeSnapshotError::NeedsWhole));
    let newer = text.replace("\"target\":{\"user\"", "\"target\":{\"planet\"");
    assert!(matches!(Snapshot::decode(newer.as_bytes()), Err(DecodeSnapshotError::Malformed(_))));
    assert!(Snapshot::decode(text.replace("\"v\":1", "\"v\":2").as_bytes()).is_err());
}

#[test]
fn j_withdrawn_roles_travel_with_snapshots_and_deltas() {
    let before = snapshot(1, vec![role("a", "root")], vec![]);
    let withdrawal = |user: &str, role: &str| Withdrawal {
        user: UserName::parse(user).unwrap(),
        role: RoleName::parse(role).unwrap(),
        until: Wall::from_secs(1_800_000_000),
    };
    let (one, two) = (withdrawal("alice", "a"), withdrawal("bob", "a"));
    let with = |counter, withdrawn: &[Withdrawal]| {
        Snapshot::new(SnapshotParts {
            withdrawn: withdrawn.to_vec(),
            ..snapshot(counter, vec![role("a", "root")], vec![]).parts().clone()
        })
    };
    let after = with(2, &[two.clone(), one.clone()]);
    assert_eq!(after.encode(), with(2, &[one, two]).encode(), "the order of writing does not count");
    let text = String::from_utf8(after.encode()).unwrap();
    assert!(text.contains(r#""withdrawn":[{"user":"alice","role":"a","until":1800000000000}"#), "{text}");
    assert_eq!(Snapshot::decode(&after.encode()).unwrap(), after);
    for (old, new) in [(&before, &after), (&after, &with(3, &[]))] {
        let delta = Delta::decode(&old.delta_to(new).encode()).unwrap();
        assert_eq!(old.apply(&delta).unwrap().encode(), new.encode());
    }
}

#[test]
fn j_a_locked_process_is_shut_out_while_the_lock_is_in_force() {
    let (stolen, other) = (HostId::from_random([1; 16]), HostId::from_random([2; 16]));
    let text = format!(
        "kind: lock\nversion: v2\nmetadata: {{name: stolen}}\nspec: {{target: {{server_id: {stolen}}}, expires: '2027-01-15T08:00:00Z'}}"
    );
    let Resource::Lock(on_host) = Resource::parse_yaml(&text).unwrap().remove(0) else { panic!("no lock") };
    let end = on_host.spec.expires.unwrap();
    let snapshot = snapshot(1, vec![], vec![lock("l", "eve"), on_host]);
    assert!(snapshot.is_host_locked(stolen, Wall::from_ms(end.as_ms() - 1)));
    assert!(!snapshot.is_host_locked(stolen, end));
    assert!(!snapshot.is_host_locked(other, Wall::from_secs(0)));
}

proptest! {
    #[test]
    fn a_delta_leads_to_the_same_bytes(
        before in proptest::collection::btree_map("[a-d]", "[m-p]", 0..4),
        after in proptest::collection::btree_map("[a-d]", "[m-p]", 0..4),
    ) {
        let roles = |map: &std::collections::BTreeMap<String, String>| map.iter().map(|(n, l)| role(n, l)).collect();
        let locks = |map: &std::collections::BTreeMap<String, String>| map.iter().map(|(n, u)| lock(n, u)).collect();
        let old = snapshot(1, roles(&before), locks(&after));
        let new = snapshot(2, roles(&after), locks(&before));
        let delta = Delta::decode(&old.delta_to(&new).encode()).unwrap();
        prop_assert_eq!(old.apply(&delta).unwrap().encode(), new.encode());
        prop_assert!(new.apply(&delta).is_err());
    }

    #[test]
    fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256), text in "\\PC{0,200}") {
        let _ = Snapshot::decode(&bytes);
        let _ = Delta::decode(&bytes);
        let _ = wayleave_ca::parse_pins(&text);
    }
}
