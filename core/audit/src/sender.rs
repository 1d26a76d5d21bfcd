//! Which events a process may send: what its services see, about the machines that it serves.

use crate::event::Event;
use std::collections::BTreeSet;
use wayleave_vocab::{HostId, SystemRole};

/// An event that a process of its system roles may not send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SenderRefusal {
    /// Only Auth itself notes such events.
    #[error("a process with the system roles {roles} may not send events of code {code}")]
    OtherKind {
        /// The code of the event.
        code: &'static str,
        /// The roles of the sender.
        roles: String,
    },
    /// It tells of another machine.
    #[error("host {sender} sent an event about host {named}")]
    OtherMachine {
        /// Who sent it.
        sender: HostId,
        /// Of which machine it tells.
        named: HostId,
    },
}

/// Judges an event of a process whose certificate was verified. An agent tells of itself only; a proxy also of the
/// published machines that are connected to it. What concerns users, resources, certificates and joins is noted by Auth.
///
/// # Errors
/// When the event is not the process's to tell.
pub fn check_sender(
    sender: HostId,
    roles: &BTreeSet<SystemRole>,
    event: &Event,
) -> Result<(), SenderRefusal> {
    let is_proxy = roles.contains(&SystemRole::Proxy);
    let told_of = match event {
        Event::AuthAttempt { .. } => Some(sender),
        Event::SessionStart { session, .. }
        | Event::SessionEnd { session, .. }
        | Event::Exec { session, .. }
        | Event::Subsystem { session, .. }
        | Event::Port { session, .. }
        | Event::Forward { session, .. }
        | Event::SftpSummary { session, .. } => Some(session.server_id),
        Event::AppSessionStart { app, .. } | Event::AppSessionEnd { app, .. } => Some(app.server_id),
        Event::SessionRejected { server_id, .. }
        | Event::Resumption { server_id, .. }
        | Event::ClientDisconnect { server_id, .. } => Some(*server_id),
        Event::UserLogin { .. }
        | Event::CertCreate { .. }
        | Event::InstanceJoin { .. }
        | Event::Changed { .. }
        | Event::Credentials { .. }
        | Event::AccessDenied { .. }
        | Event::ServiceState { .. } => None,
    };
    let serves_users = is_proxy || roles.iter().any(|role| role.is_agent());
    match told_of {
        Some(named) if serves_users && (is_proxy || named == sender) => Ok(()),
        Some(named) if serves_users => Err(SenderRefusal::OtherMachine { sender, named }),
        _ => {
            let roles: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
            Err(SenderRefusal::OtherKind { code: event.code(), roles: roles.join(",") })
        }
    }
}
