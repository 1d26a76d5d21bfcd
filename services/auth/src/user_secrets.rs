//! What is secret about a user: password, second factor, and the count of failures.
//!
//! An attempt is noted as a failure before the password is looked at and cleared when it was right: however many
//! attempts come at once, no more than [`FAILURES_MAX`] guesses are ever compared.

use crate::auth_core::AuthCore;
use crate::keys;
use crate::one_time_code::{TotpSecret, TotpStep};
use crate::password::PasswordHash;
use crate::records::{Stored, encode, put};
use crate::request_error::RequestError;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wayleave_store::{Condition, Operation, Revision, StoreError};
use wayleave_vocab::{UserName, Wall};

/// Failures until a user is locked.
pub(crate) const FAILURES_MAX: usize = 5;
/// Failures count for so long.
pub(crate) const FAILURE_WINDOW: Duration = Duration::from_secs(30 * 60);
/// How long a user is locked after too many.
pub(crate) const LOCKOUT: Duration = Duration::from_secs(30 * 60);
const ATTEMPTS_MAX: usize = 64;

/// The secrets of one user, as stored. Never `Debug`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UserSecrets {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) password: Option<PasswordHash>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) totp: Option<TotpSecret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_totp_step: Option<TotpStep>,
    #[serde(default)]
    pub(crate) failures: Vec<Wall>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) locked_until: Option<Wall>,
    /// Public half of the invitation that is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) invite: Option<String>,
}

/// Whether a guess may be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    Admitted,
    LockedUntil(Wall),
}

impl UserSecrets {
    /// Notes an attempt as failed, for now.
    fn begin_attempt(&mut self, now: Wall) -> Attempt {
        if let Some(until) = self.locked_until.filter(|until| now < *until) {
            return Attempt::LockedUntil(until);
        }
        self.locked_until = None;
        self.failures.retain(|at| now.since(*at) < FAILURE_WINDOW);
        self.failures.push(now);
        if self.failures.len() >= FAILURES_MAX {
            self.locked_until = Some(now.after(LOCKOUT));
            self.failures.clear();
        }
        Attempt::Admitted
    }

    /// The attempt was right.
    pub(crate) fn end_attempt(&mut self, step: Option<TotpStep>) {
        self.failures.clear();
        self.locked_until = None;
        self.last_totp_step = step.or(self.last_totp_step);
    }
}

impl AuthCore {
    pub(crate) async fn user_secrets(
        &self,
        user: &UserName,
    ) -> Result<Option<Stored<UserSecrets>>, RequestError> {
        self.records.read(&keys::user_secret(user)).await
    }

    /// Notes an attempt, and the secrets to compare with; none for a user who has none.
    pub(crate) async fn begin_attempt(
        &self,
        user: &UserName,
    ) -> Result<Option<(Attempt, Stored<UserSecrets>)>, RequestError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(mut stored) = self.user_secrets(user).await? else { return Ok(None) };
            let attempt = stored.value.begin_attempt(self.clock.wall());
            if matches!(attempt, Attempt::LockedUntil(_)) {
                return Ok(Some((attempt, stored)));
            }
            let key = keys::user_secret(user);
            let written =
                self.records.backend().compare_and_swap(&key, stored.revision, encode(&stored.value)).await;
            match written {
                Ok(revision) => {
                    stored.revision = revision;
                    return Ok(Some((attempt, stored)));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(RequestError::store("note the attempt")(error)),
            }
        }
        Err(RequestError::Busy("too many attempts for this user at once, try again".to_owned()))
    }
}

/// The condition and operation that write the secrets over what was read.
pub(crate) fn replace(
    user: &UserName,
    secrets: &UserSecrets,
    read_at: Option<Revision>,
) -> (Condition, Operation) {
    let key = keys::user_secret(user);
    let condition = match read_at {
        Some(revision) => Condition::RevisionIs(key.clone(), revision),
        None => Condition::Absent(key.clone()),
    };
    (condition, put(key, secrets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> Wall {
        Wall::from_secs(1_800_000_000).after(Duration::from_secs(minutes * 60))
    }

    #[test]
    fn n_five_failures_in_half_an_hour_lock_for_half_an_hour() {
        let mut secrets = UserSecrets::default();
        for minute in 0..5 {
            assert_eq!(secrets.begin_attempt(at(minute)), Attempt::Admitted);
        }
        assert_eq!(secrets.begin_attempt(at(5)), Attempt::LockedUntil(at(34)));
        assert_eq!(secrets.begin_attempt(at(33)), Attempt::LockedUntil(at(34)));
        assert_eq!(secrets.begin_attempt(at(34)), Attempt::Admitted);
    }

    #[test]
    fn n_failures_are_forgotten_with_time_and_with_success() {
        let mut secrets = UserSecrets::default();
        for minute in 0..20 {
            assert_eq!(secrets.begin_attempt(at(minute * 10)), Attempt::Admitted, "one in ten minutes");
        }
        for minute in 0..20 {
            assert_eq!(secrets.begin_attempt(at(1000 + minute)), Attempt::Admitted);
            secrets.end_attempt(Some(minute));
        }
        assert_eq!(secrets.last_totp_step, Some(19));
    }
}
