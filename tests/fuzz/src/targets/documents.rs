//! Documents and words: policy, resources, configuration, events, identities, invitations.

use super::{DOCUMENT, SMALL, lines, owned};
use crate::{Target, text};
use wayleave_audit::Envelope;
use wayleave_ca::{Delta, Digest, GateState, SignedHead, Snapshot, SnapshotGate, parse_pins};
use wayleave_client::Invitation;
use wayleave_client::identity_file::Identity;
use wayleave_config::{CaPin, Config, StaticToken};
use wayleave_identity::{Principal, Publisher};
use wayleave_instance::JoinToken;
use wayleave_policy::CompiledRole;
use wayleave_resource::{Kind, Resource};
use wayleave_vocab::{
    ClusterName, HostId, HostPort, Labels, Login, NodeName, ResourceName, RoleName, Secret, SystemRole, Ttl,
    UserName, Wall,
};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "snapshot", memory_bytes_max: DOCUMENT, seeds: snapshots, run: snapshot },
    Target { name: "head", memory_bytes_max: SMALL, seeds: heads, run: head },
    Target { name: "configuration", memory_bytes_max: DOCUMENT, seeds: configurations, run: configuration },
    Target { name: "resource_yaml", memory_bytes_max: DOCUMENT, seeds: resources_yaml, run: resource_yaml },
    Target { name: "resource_json", memory_bytes_max: DOCUMENT, seeds: resources_json, run: resource_json },
    Target { name: "audit_event", memory_bytes_max: SMALL, seeds: events, run: event },
    Target { name: "principal", memory_bytes_max: SMALL, seeds: principals, run: principal },
    Target { name: "identity_file", memory_bytes_max: SMALL, seeds: identity_files, run: identity_file },
    Target { name: "words", memory_bytes_max: SMALL, seeds: some_words, run: words },
];

fn snapshots() -> Vec<Vec<u8>> {
    let snapshot = include_bytes!("../../../../core/ca/golden/snapshot_v1.json").to_vec();
    let read = Snapshot::decode(&snapshot).unwrap();
    let mut parts = read.parts().clone();
    parts.roles.clear();
    parts.revision.counter += 1;
    let delta = read.delta_to(&Snapshot::new(parts)).encode();
    vec![snapshot, delta]
}

fn snapshot(bytes: &[u8]) {
    let read = Snapshot::decode(bytes);
    let delta = Delta::decode(bytes);
    if let Ok(snapshot) = &read {
        // What was read is written the same way for ever.
        let again = Snapshot::decode(&snapshot.encode()).unwrap();
        assert_eq!(again.parts(), snapshot.parts());
        if let Ok(delta) = &delta {
            let _applied = snapshot.apply(delta);
        }
    }
}

fn heads() -> Vec<Vec<u8>> {
    let digest = Digest::of(b"x").to_string();
    let head = format!(
        "{{\"cluster\":\"demo\",\"revision\":{{\"generation\":1,\"counter\":2}},\"digest\":\"{digest}\",\"time\":5000}}"
    );
    vec![head.into_bytes()]
}

fn head(bytes: &[u8]) {
    let cluster = ClusterName::parse("demo").unwrap();
    let mut gate = SnapshotGate::new(GateState { cluster, keys: vec!["key".to_owned()], highest: None });
    let signed = SignedHead { bytes: bytes.to_vec(), signature: Vec::new() };
    let every = |_: &str, _: &[u8], _: &[u8]| true;
    let _outcome = gate.handle_head(&signed, &every, Wall::from_secs(6));
}

fn configurations() -> Vec<Vec<u8>> {
    owned(&[
        include_bytes!("../../../../core/config/tests/data/field.yaml"),
        b"version: v3\nwayleave: {nodename: a, data_dir: /tmp/x, join_params: {token_name: t, method: token}}\nauth_service: {enabled: true}",
        b"&a [*a, *a]",
    ])
}

fn configuration(bytes: &[u8]) {
    if let Err(errors) = Config::parse(&text(bytes), "fuzz.yaml") {
        let _shown = errors.to_string();
    }
}

fn resources_yaml() -> Vec<Vec<u8>> {
    owned(&[
        include_bytes!("../../../../core/resource/golden/role.yaml"),
        include_bytes!("../../../../core/resource/golden/user.yaml"),
        include_bytes!("../../../../core/resource/golden/lock.yaml"),
        include_bytes!("../../../../core/resource/golden/node.yaml"),
        include_bytes!("../../../../core/resource/golden/token.yaml"),
        include_bytes!("../../../../core/resource/golden/cluster_networking_config.yaml"),
        b"kind: role\nversion: v7\nmetadata: {name: x}\nspec: {allow: {logins: ['{{internal.logins}}'], node_labels_expression: 'contains(user.spec.traits[\"a\"], \"b\") || !equals(labels.env, \"c\")', node_labels: {'a': '^(x|y)+$'}}}",
    ])
}

fn resource_yaml(bytes: &[u8]) {
    match Resource::parse_yaml(&text(bytes)) {
        Ok(resources) => resources.iter().for_each(check_resource),
        Err(errors) => drop(errors.to_string()),
    }
}

fn resources_json() -> Vec<Vec<u8>> {
    owned(&[
        include_bytes!("../../../../core/resource/golden/role.json"),
        include_bytes!("../../../../core/resource/golden/user.json"),
        include_bytes!("../../../../core/resource/golden/lock.json"),
        include_bytes!("../../../../core/resource/golden/node.json"),
        include_bytes!("../../../../core/resource/golden/proxy.json"),
        include_bytes!("../../../../core/resource/golden/token.json"),
        include_bytes!("../../../../core/resource/golden/cert_authority.json"),
        include_bytes!("../../../../core/resource/golden/cluster_auth_preference.json"),
    ])
}

fn resource_json(bytes: &[u8]) {
    match Resource::parse_json(&text(bytes)) {
        Ok(resource) => check_resource(&resource),
        Err(errors) => drop(errors.to_string()),
    }
}

/// What was read is written so that it is read again, and a role compiles or says why not.
fn check_resource(resource: &Resource) {
    assert_eq!(Resource::parse_json(&resource.to_json()).unwrap(), *resource);
    if let Resource::Role(role) = resource
        && let Err(errors) = CompiledRole::compile(role)
    {
        errors.iter().for_each(|error| drop(error.to_string()));
    }
}

fn events() -> Vec<Vec<u8>> {
    lines(include_str!("../../../../core/audit/golden/events_v1.jsonl"))
}

fn event(bytes: &[u8]) {
    if let Ok(envelope) = Envelope::decode(bytes) {
        assert_eq!(Envelope::decode(&envelope.encode()).unwrap(), envelope);
    }
}

fn principals() -> Vec<Vec<u8>> {
    owned(&[
        include_bytes!("../../../../core/identity/golden/user_v1.json"),
        include_bytes!("../../../../core/identity/golden/host_v1.json"),
    ])
}

fn principal(bytes: &[u8]) {
    if let Ok(publisher) = Publisher::decode(&text(bytes)) {
        assert_eq!(Publisher::decode(&publisher.encode()).unwrap(), publisher);
    }
    if let Ok(principal) = Principal::decode(bytes) {
        assert_eq!(Principal::decode(&principal.encode()).unwrap(), principal);
    }
}

fn identity_files() -> Vec<Vec<u8>> {
    owned(&[
        b"# cluster: demo\n-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAA\n-----END PRIVATE KEY-----\n",
        b"ssh-ed25519-cert-v01@openssh.com AAAA\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n@cert-authority *.demo ssh-ed25519 AAAA\n",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n",
    ])
}

fn identity_file(bytes: &[u8]) {
    if let Err(error) = Identity::parse(&text(bytes)) {
        let _shown = error.to_string();
    }
}

fn some_words() -> Vec<Vec<u8>> {
    owned(&[
        b"https://[::1]:3080/web/invite/0a1b#ca-pin=sha256:ab",
        b"node,proxy:0123456789abcdef0123456789abcdef",
        b"sha256:0000000000000000000000000000000000000000000000000000000000000000",
        b"proxy.example.com:443",
        b"env=prod,team=a b",
        b"1h30m",
        b"0e0e0e0e-0e0e-4e0e-8e0e-0e0e0e0e0e0e",
        b"users/alice",
    ])
}

fn words(bytes: &[u8]) {
    let text = &*text(bytes);
    let _ = text.parse::<Invitation>();
    let _ = JoinToken::parse(&Secret::new(text.to_owned()));
    let _ = StaticToken::parse(text);
    let _ = text.parse::<CaPin>();
    let _ = parse_pins(text);
    let _ = text.parse::<Digest>();
    let _ = text.parse::<wayleave_audit::ChainHash>();
    let _ = text.parse::<wayleave_keystore::Pins>();
    let _ = HostPort::parse(text, Some(443));
    let _ = text.parse::<Labels>();
    let _ = text.parse::<Ttl>();
    let _ = text.parse::<HostId>();
    let _ = text.parse::<SystemRole>();
    let _ = text.parse::<Kind>();
    let _ = wayleave_store::Key::parse(text);
    let _ = (ClusterName::parse(text), Login::parse(text), NodeName::parse(text), UserName::parse(text));
    let _ = (ResourceName::parse(text), RoleName::parse(text));
}
