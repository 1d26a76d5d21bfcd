//! The limits of a connection, as a permit says them and as `core/session` keeps them; and how many
//! connections each user has.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wayleave_audit::DisconnectReason;
use wayleave_policy::{Denial, DenialReason, SessionOptions};
use wayleave_runtime::Clock;
use wayleave_session::{EndReason, Now, Terms, TooManyConnections, UserConnections};
use wayleave_vocab::{UserName, Wall};

/// Sessions at a time on one connection where no role says.
const SESSIONS_MAX: NonZeroU32 = NonZeroU32::new(10).expect("ten is not zero");

/// Both clocks.
pub(crate) fn now(clock: &dyn Clock) -> Now {
    Now { mono: clock.mono(), wall: clock.wall() }
}

/// What the options grant to a connection whose certificate ends then.
pub(crate) fn terms(options: &SessionOptions, certificate_ends: Wall) -> Terms {
    Terms {
        idle_timeout: options.idle_timeout(),
        ends: options.disconnect_expired_cert.then_some(certificate_ends),
        max_sessions: Some(options.max_sessions.unwrap_or(SESSIONS_MAX)),
    }
}

/// Why a running connection ends when the policy says no.
pub(crate) fn end_reason(denial: Denial) -> EndReason {
    match denial.reason {
        DenialReason::Locked { lock } => EndReason::Locked { message: lock.message },
        DenialReason::OtherCluster { .. }
        | DenialReason::CertificateExpired { .. }
        | DenialReason::UnknownRole { .. }
        | DenialReason::BrokenRole { .. }
        | DenialReason::LocksStale { .. }
        | DenialReason::DeniedByRole { .. }
        | DenialReason::LoginNotInCertificate
        | DenialReason::NoRoleAllowsNode
        | DenialReason::LoginNotAllowed
        | DenialReason::NoRoleAllowsApp
        | DenialReason::NoRuleAllows { .. } => EndReason::PolicyChanged,
    }
}

/// The same for the audit log.
pub(crate) fn disconnect_cause(reason: &EndReason) -> DisconnectReason {
    match reason {
        EndReason::Idle { .. } => DisconnectReason::Idle,
        EndReason::CertificateExpired => DisconnectReason::CertificateExpired,
        EndReason::Locked { .. } => DisconnectReason::Locked,
        EndReason::PolicyChanged => DisconnectReason::PolicyChanged,
        EndReason::Drained => DisconnectReason::Draining,
    }
}

/// Counts connections of users on this agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct UserSlots(Arc<Mutex<UserConnections>>);

/// One connection of a user; counted until dropped.
#[derive(Debug)]
pub(crate) struct UserSlot {
    slots: UserSlots,
    user: UserName,
}

impl UserSlots {
    /// Takes a slot.
    ///
    /// # Errors
    /// When the user has as many connections as he may.
    pub(crate) fn take(
        &self,
        user: &UserName,
        max: Option<NonZeroU32>,
    ) -> Result<UserSlot, TooManyConnections> {
        self.lock().handle_connect(user, max)?;
        Ok(UserSlot { slots: self.clone(), user: user.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, UserConnections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UserSlot {
    fn drop(&mut self) {
        self.slots.lock().handle_disconnect(&self.user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_again_when_its_connection_is_gone() {
        let slots = UserSlots::default();
        let alice = UserName::parse("alice").unwrap();
        let one = NonZeroU32::new(1);

        let first = slots.take(&alice, one).unwrap();

        assert!(slots.take(&alice, one).is_err());
        drop(first);
        assert!(slots.take(&alice, one).is_ok());
    }
}
