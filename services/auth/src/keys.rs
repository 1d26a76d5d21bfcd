//! Where Auth keeps what in the backend. Secrets have their own families: nothing that is listed or watched for others
//! lies beside a private key, a hash or a second factor.

use wayleave_resource::Kind;
use wayleave_store::Key;
use wayleave_vocab::{HostId, TokenName, UserName};

fn family(text: &'static str) -> Key {
    Key::parse(text).expect("the families are constants that follow the rule of keys")
}

fn below(parent: &Key, segment: &str) -> Key {
    parent.child(segment).expect("typed names and ids have no slash, no control character and are short")
}

/// What the cluster is: name, id of this Auth, generation.
pub(crate) fn cluster() -> Key {
    family("/cluster")
}

/// Stands in a backend that a copy is being put into, until it is whole.
pub(crate) fn restoring() -> Key {
    family("/restoring")
}

/// Says that the backend is a copy, until the next Auth has noted it.
pub(crate) fn restored() -> Key {
    family("/restored")
}

/// Marks that a copy sets and deletes again to know how far it is.
pub(crate) fn copy_marks() -> Key {
    family("/copies")
}

pub(crate) fn copy_mark(number: u64) -> Key {
    below(&copy_marks(), &number.to_string())
}

/// The Auth instances that run, each under its lease.
pub(crate) fn auth_instances() -> Key {
    family("/instances/auth")
}

pub(crate) fn auth_instance(id: HostId) -> Key {
    below(&auth_instances(), &id.to_string())
}

/// Certificate authorities with their private keys.
pub(crate) fn authority(purpose: &str) -> Key {
    below(&family("/authorities"), purpose)
}

/// Resources in their stored form; the only family that is mirrored and watched.
pub(crate) fn resources() -> Key {
    family("/resources")
}

pub(crate) fn resources_of(kind: Kind) -> Key {
    below(&resources(), kind.as_str())
}

pub(crate) fn resource(kind: Kind, name: &str) -> Option<Key> {
    resources_of(kind).child(name).ok()
}

/// Hashes of join secrets.
pub(crate) fn token_secret(name: &TokenName) -> Key {
    below(&family("/secrets/tokens"), name.as_str())
}

/// Password, second factor and failures of a user.
pub(crate) fn user_secret(name: &UserName) -> Key {
    below(&family("/secrets/users"), name.as_str())
}

/// Invitations by the public half of their token.
pub(crate) fn invites() -> Key {
    family("/secrets/invites")
}

pub(crate) fn invite(id: &str) -> Option<Key> {
    invites().child(id).ok()
}

/// What was issued to a process.
pub(crate) fn hosts() -> Key {
    family("/hosts")
}

pub(crate) fn host(id: HostId) -> Key {
    below(&hosts(), &id.to_string())
}

/// What is known of a machine that was published by `ssh -R`, by its name in lower case.
pub(crate) fn published() -> Key {
    family("/published")
}

pub(crate) fn published_as(name: &wayleave_vocab::NodeName) -> Key {
    below(&published(), &name.as_str().to_ascii_lowercase())
}

/// The newest signed snapshot of policy.
pub(crate) fn policy() -> Key {
    family("/policy")
}

pub(crate) fn policy_snapshot() -> Key {
    below(&policy(), "snapshot")
}

/// How the keys of the policy authority followed each other.
pub(crate) fn policy_successions() -> Key {
    below(&policy(), "successions")
}

/// Routes of proxies, those of each under its lease.
pub(crate) fn routes() -> Key {
    family("/routes")
}

/// All routes of a proxy.
pub(crate) fn routes_of(proxy: HostId) -> Key {
    below(&routes(), &proxy.to_string())
}

/// A change of them that was written later.
pub(crate) fn routes_change(proxy: HostId, number: u8) -> Key {
    below(&routes_of(proxy), &number.to_string())
}

/// What an entry about routes says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RoutesEntry {
    Everything,
    Change,
}

/// Whose routes the entry is about; none when it is not about routes.
pub(crate) fn parse_routes(key: &Key) -> Option<(HostId, RoutesEntry)> {
    let path = key.as_str().strip_prefix(routes().as_str())?.strip_prefix('/')?;
    let (proxy, entry) = match path.split_once('/') {
        Some((proxy, _)) => (proxy, RoutesEntry::Change),
        None => (path, RoutesEntry::Everything),
    };
    Some((proxy.parse().ok()?, entry))
}

/// Reports of proxies for whoever looks at another Auth instance, each under a lease.
pub(crate) fn shared_reports() -> Key {
    family("/reports/proxies")
}

pub(crate) fn report_of(proxy: HostId) -> Key {
    below(&shared_reports(), &proxy.to_string())
}

/// The instances at which somebody looks.
pub(crate) fn reports_wanted() -> Key {
    family("/reports/wanted")
}

pub(crate) fn reports_wanted_by(instance: HostId) -> Key {
    below(&reports_wanted(), &instance.to_string())
}

/// How often each proxy has started.
pub(crate) fn incarnation(proxy: HostId) -> Key {
    below(&family("/incarnations"), &proxy.to_string())
}

/// The audit log, an entry for each event, in the order of the chain.
pub(crate) fn audit_events() -> Key {
    family("/audit/events")
}

pub(crate) fn audit_event(sequence: u64) -> Key {
    below(&audit_events(), &format!("{sequence:020}"))
}

/// Where the audit chain stands.
pub(crate) fn audit_head() -> Key {
    family("/audit/head")
}

/// Signed statements about the chain.
pub(crate) fn audit_checkpoints() -> Key {
    family("/audit/checkpoints")
}

/// One of them, by the chain's length then.
pub(crate) fn audit_checkpoint(length: u64) -> Key {
    below(&audit_checkpoints(), &format!("{length:020}"))
}

/// The length at the newest of them.
pub(crate) fn audit_checkpointed() -> Key {
    family("/audit/checkpointed")
}

/// The last event of a process that was appended.
pub(crate) fn audit_source(host: HostId) -> Key {
    below(&family("/audit/sources"), &host.to_string())
}
