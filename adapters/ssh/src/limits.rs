//! The limits of a connection, as a permit says them and as `core/session` keeps them; and how many
//! connections each user has.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wayleave_audit::DisconnectReason;
use wayleave_policy::{Denial, DenialReason, SessionOptions, Settings};
use wayleave_runtime::Clock;
use wayleave_session::{EndReason, Now, Terms, TooManyConnections, UserConnections};
use wayleave_ssh::{Connection, Timing};
use wayleave_vocab::{UserName, Wall};

/// Sessions at a time on one connection where no role says.
const SESSIONS_MAX: NonZeroU32 = NonZeroU32::new(10).expect("ten is not zero");

/// Least silence after which a client is probed, whatever the cluster says.
const KEEPALIVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// How a silent client is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive {
    interval: Duration,
    unanswered_max: u32,
}

impl Keepalive {
    /// As the cluster says. A client is probed once at least.
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            interval: settings.keep_alive_interval.0.max(KEEPALIVE_INTERVAL_MIN),
            unanswered_max: settings.keep_alive_count_max.max(1),
        }
    }

    /// From now on, on a connection that is open.
    pub(crate) fn apply(self, connection: &mut Connection) {
        connection.set_keepalive(Some(self.interval), self.unanswered_max);
    }

    /// The deadlines of a connection.
    pub(crate) fn timing(self, handshake_max: Duration, auth_max: Duration) -> Timing {
        Timing {
            handshake_max,
            auth_max,
            keepalive: Some(self.interval),
            keepalive_unanswered_max: self.unanswered_max,
            ..Timing::default()
        }
    }
}

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
    fn a_client_is_never_probed_without_pause_nor_given_up_unprobed() {
        let zero = Settings {
            keep_alive_interval: wayleave_vocab::Ttl(Duration::ZERO),
            keep_alive_count_max: 0,
            ..Settings::default()
        };
        let timing = Keepalive::of(&zero).timing(Duration::ZERO, Duration::ZERO);
        assert_eq!((timing.keepalive, timing.keepalive_unanswered_max), (Some(Duration::from_secs(1)), 1));
        let usual = Keepalive::of(&Settings::default()).timing(Duration::ZERO, Duration::ZERO);
        assert_eq!((usual.keepalive, usual.keepalive_unanswered_max), (Some(Duration::from_secs(300)), 3));
    }

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
