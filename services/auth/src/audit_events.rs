//! What Auth itself notes in the audit log.

use crate::auth_core::AuthCore;
use crate::join::HostRecord;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use wayleave_api::auth::JoinRequest;
use wayleave_audit::{Actor, CertKind, Change, ChangedKind, Event, Outcome, Subject, Text, bounded_list};
use wayleave_identity::UserPrincipal;
use wayleave_resource::{Kind, Resource};
use wayleave_vocab::{HostId, Login, RoleName, UserName, Wall};

/// Who writes, for the log and for what is noted in resources.
#[derive(Debug, Clone)]
pub(crate) struct Author {
    pub(crate) user: UserName,
    pub(crate) local_admin: bool,
    pub(crate) roles: BTreeSet<RoleName>,
    pub(crate) client_address: SocketAddr,
}

impl Author {
    pub(crate) fn of(user: &UserPrincipal, client_address: SocketAddr) -> Self {
        Self {
            user: user.name.clone(),
            local_admin: user.local_admin,
            roles: user.roles.clone(),
            client_address,
        }
    }

    fn actor(&self) -> Actor {
        Actor {
            user: Text::new(self.user.to_string()),
            local_admin: self.local_admin,
            client_addr: Some(address(self.client_address)),
        }
    }
}

fn address(client: SocketAddr) -> Text {
    Text::new(client.to_string())
}

fn outcome(refused: Option<&str>) -> Outcome {
    match refused {
        None => Outcome::Success,
        Some(reason) => Outcome::Failure { error: Text::new(reason) },
    }
}

/// A process joined.
pub(crate) fn joined(record: &HostRecord, client: SocketAddr) -> Event {
    Event::InstanceJoin {
        joined_host_id: Some(record.host_id),
        node_name: Text::new(record.hostname.to_string()),
        token_name: Text::new(record.token.as_str()),
        method: Text::new("token"),
        roles: bounded_list(&record.system_roles),
        client_addr: Some(address(client)),
        outcome: Outcome::Success,
    }
}

/// A process was not let in. The secret of the token is not among what is noted; a name that holds a whole token is cut
/// before its last part.
pub(crate) fn join_refused(request: &JoinRequest, reason: &str, client: SocketAddr) -> Event {
    Event::InstanceJoin {
        joined_host_id: None,
        node_name: Text::new(request.hostname.chars().take(253).collect::<String>()),
        token_name: Text::new(public_name(&request.token_name)),
        method: Text::new("token"),
        roles: bounded_list(
            request.system_roles.iter().take(16).map(|r| r.chars().take(32).collect::<String>()),
        ),
        client_addr: Some(address(client)),
        outcome: outcome(Some(reason)),
    }
}

/// The public part of what was given as the name of a token, should a client have put all of it there.
pub(crate) fn public_name(name: &str) -> String {
    let public = match name.rsplit_once('.') {
        Some((public, secret)) if secret.len() >= 16 => public,
        Some(_) | None => name,
    };
    public.chars().take(128).collect()
}

/// Certificates of a process were renewed.
pub(crate) fn host_certificates(record: &HostRecord, not_after: Wall) -> Event {
    Event::CertCreate {
        subject: Subject::Host(record.host_id),
        cert_type: CertKind::Host,
        roles: bounded_list(&record.system_roles),
        logins: Vec::new(),
        expires: not_after.as_secs(),
    }
}

/// Certificates of a user were issued.
pub(crate) fn user_certificates(principal: &UserPrincipal) -> Event {
    Event::CertCreate {
        subject: Subject::User(Text::new(principal.name.to_string())),
        cert_type: CertKind::User,
        roles: bounded_list(&principal.roles),
        logins: bounded_list(&principal.logins),
        expires: principal.not_after.as_secs(),
    }
}

/// Somebody logged in, or tried to. A name that nobody has is not kept: people type passwords there.
pub(crate) fn login(user: Option<&UserName>, client: SocketAddr, refused: Option<&str>) -> Event {
    Event::UserLogin {
        user: user.map_or_else(|| Text::new("(no such user)"), |user| Text::new(user.to_string())),
        method: Text::new("local"),
        client_addr: Some(address(client)),
        outcome: outcome(refused),
    }
}

/// A resource was written.
pub(crate) fn written(resource: &Resource, created: bool, by: &Author) -> Event {
    let details = match resource {
        Resource::User(user) => bounded_list(&user.spec.roles),
        Resource::Lock(lock) => vec![Text::new(lock.spec.target.to_string())],
        Resource::Token(token) => bounded_list(&token.spec.roles),
        _ => Vec::new(),
    };
    let change = if created { Change::Created } else { Change::Updated };
    changed(resource.kind(), change, resource.name().as_str(), by, details)
}

/// A resource was deleted.
pub(crate) fn deleted(kind: Kind, name: &str, by: &Author) -> Event {
    changed(kind, Change::Deleted, name, by, Vec::new())
}

fn changed(kind: Kind, change: Change, name: &str, by: &Author, details: Vec<Text>) -> Event {
    let kind = match kind {
        Kind::Role => ChangedKind::Role,
        Kind::User => ChangedKind::User,
        Kind::Token => ChangedKind::Token,
        Kind::Lock => ChangedKind::Lock,
        Kind::Node => ChangedKind::Node,
        Kind::Proxy => ChangedKind::Proxy,
        Kind::CertAuthority => ChangedKind::CertAuthority,
        Kind::ClusterNetworkingConfig => ChangedKind::ClusterNetworkingConfig,
        Kind::ClusterAuthPreference => ChangedKind::ClusterAuthPreference,
    };
    Event::Changed { kind, change, name: Text::new(name), actor: by.actor(), details }
}

/// What happened to the password or second factor of a user.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CredentialAction {
    Invite,
    Reset,
    PasswordSet,
}

/// A password was set, or a link for that was made.
pub(crate) fn credentials(user: &UserName, action: CredentialAction, by: &Author) -> Event {
    let action = match action {
        CredentialAction::Invite => "invite",
        CredentialAction::Reset => "reset",
        CredentialAction::PasswordSet => "password_set",
    };
    Event::Credentials { name: Text::new(user.to_string()), action: Text::new(action), actor: by.actor() }
}

/// A machine that was published may show another host key.
pub(crate) fn host_key_forgotten(host: HostId, fingerprint: &str, by: &Author) -> Event {
    let details = vec![Text::new("host key forgotten"), Text::new(fingerprint)];
    changed(Kind::Node, Change::Updated, &host.to_string(), by, details)
}

/// A certificate for one connection to a machine that is entered by a proxy.
pub(crate) fn openssh_certificate(principal: &UserPrincipal, login: &Login, not_after: Wall) -> Event {
    Event::CertCreate {
        subject: Subject::User(Text::new(principal.name.to_string())),
        cert_type: CertKind::Openssh,
        roles: bounded_list(&principal.roles),
        logins: vec![Text::new(login.as_str())],
        expires: not_after.as_secs(),
    }
}

/// A known caller was refused.
pub(crate) fn denied(who: &str, local_admin: bool, action: &str, reason: &str, client: SocketAddr) -> Event {
    let actor = Actor { user: Text::new(who), local_admin, client_addr: Some(address(client)) };
    Event::AccessDenied { actor, action: Text::new(action), reason: Text::new(reason) }
}

/// The Auth Service began or ended.
pub(crate) fn service(state: &str) -> Event {
    Event::ServiceState { service: Text::new("auth"), state: Text::new(state), details: Text::default() }
}

/// The backend was filled from a backup or another backend; what was done after that copy is not in it.
pub(crate) fn restored(generation: u64) -> Event {
    let details = Text::new(format!("generation {generation}"));
    Event::ServiceState { service: Text::new("auth"), state: Text::new("restored"), details }
}

impl AuthCore {
    /// Appends an event that goes with no change. A refusal stands whether or not it can be noted.
    pub(crate) async fn note(&self, event: Event) {
        if let Err(error) = self.audit.note(vec![event]).await {
            tracing::warn!(%error, "an audit event was lost");
        }
    }
}
