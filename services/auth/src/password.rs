//! Passwords: what is accepted, how it is hashed, and that a guess costs the same whether or not the user exists.
//!
//! Hashing is argon2id off the runtime's threads, [`CONCURRENT_HASHES_MAX`] at a time: a flood of logins queues here and
//! nowhere else. Lockout is not here, see `login.rs`.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::Semaphore;
use wayleave_runtime::random_bytes;
use wayleave_vocab::Secret;

/// Shortest password in characters.
pub const PASSWORD_CHARS_MIN: usize = 12;
/// Longest password in characters.
pub const PASSWORD_CHARS_MAX: usize = 128;
/// How many hashes are computed at once; each takes 19 MiB for some tens of milliseconds.
const CONCURRENT_HASHES_MAX: usize = 2;
/// How many logins may wait for a hash; more are told to come again.
const WAITING_HASHES_MAX: usize = 64;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// A password that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PasswordRuleError {
    /// Too few characters.
    #[error("the password has fewer than {PASSWORD_CHARS_MIN} characters")]
    Short,
    /// Too many characters.
    #[error("the password has more than {PASSWORD_CHARS_MAX} characters")]
    Long,
    /// It is the user's name, or one character again and again.
    #[error(
        "the password is too easy to guess: it contains little more than the user name or one repeated character"
    )]
    Guessable,
}

/// Hashing did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HashError {
    /// Too many logins wait already.
    #[error("too many logins at once, try again in a moment")]
    Busy,
    /// The hash function failed (out of memory).
    #[error("the password could not be hashed: {0}")]
    Failed(String),
}

/// A password as it is stored.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PasswordHash {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    #[serde(with = "crate::base64_bytes")]
    salt: Vec<u8>,
    #[serde(with = "crate::base64_bytes")]
    hash: Vec<u8>,
}

/// Checks the rules for a new password of `user`.
pub(crate) fn check_rules(password: &Secret, user: &str) -> Result<(), PasswordRuleError> {
    let text = password.expose_secret();
    let count = text.chars().count();
    if count < PASSWORD_CHARS_MIN {
        return Err(PasswordRuleError::Short);
    }
    if count > PASSWORD_CHARS_MAX {
        return Err(PasswordRuleError::Long);
    }
    let mut chars = text.chars();
    let first = chars.next();
    let repeated = chars.all(|c| Some(c) == first);
    if repeated || text.eq_ignore_ascii_case(user) {
        return Err(PasswordRuleError::Guessable);
    }
    Ok(())
}

/// Hashes and verifies passwords, a few at a time.
#[derive(Clone)]
pub(crate) struct PasswordHasher {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    cost: Cost,
    /// Verified against when there is no user, so that the answer takes as long.
    nobody: PasswordHash,
}

#[derive(Debug, Clone, Copy)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl PasswordHasher {
    pub(crate) fn new() -> Self {
        let cost = Cost {
            memory_kib: Params::DEFAULT_M_COST,
            passes: Params::DEFAULT_T_COST,
            lanes: Params::DEFAULT_P_COST,
        };
        Self {
            running: Arc::new(Semaphore::new(CONCURRENT_HASHES_MAX)),
            waiting: Arc::new(Semaphore::new(WAITING_HASHES_MAX)),
            cost,
            nobody: PasswordHash {
                memory_kib: cost.memory_kib,
                passes: cost.passes,
                lanes: cost.lanes,
                salt: random_bytes::<SALT_BYTES>().to_vec(),
                hash: vec![0; HASH_BYTES],
            },
        }
    }

    /// Hashes a new password.
    pub(crate) async fn hash(&self, password: Secret) -> Result<PasswordHash, HashError> {
        let mut record = PasswordHash {
            memory_kib: self.cost.memory_kib,
            passes: self.cost.passes,
            lanes: self.cost.lanes,
            salt: random_bytes::<SALT_BYTES>().to_vec(),
            hash: Vec::new(),
        };
        record.hash = self.compute(password, record.clone()).await?;
        Ok(record)
    }

    /// True when the password is the one that was hashed. Without a record it computes one hash all the same and says no.
    pub(crate) async fn verify(
        &self,
        password: Secret,
        record: Option<PasswordHash>,
    ) -> Result<bool, HashError> {
        let known = record.is_some();
        let record = record.unwrap_or_else(|| self.nobody.clone());
        let expected = record.hash.clone();
        let got = self.compute(password, record).await?;
        Ok(verify_slices_are_equal(&got, &expected).is_ok() && known)
    }

    async fn compute(&self, password: Secret, with: PasswordHash) -> Result<Vec<u8>, HashError> {
        let _waiting = self.waiting.clone().try_acquire_owned().map_err(|_| HashError::Busy)?;
        let running = self.running.clone().acquire_owned().await.map_err(|_| HashError::Busy)?;
        tokio::task::spawn_blocking(move || {
            let _running = running;
            argon2id(&password, &with)
        })
        .await
        .map_err(|e| HashError::Failed(e.to_string()))?
    }
}

fn argon2id(password: &Secret, with: &PasswordHash) -> Result<Vec<u8>, HashError> {
    let failed = |e: argon2::Error| HashError::Failed(e.to_string());
    let params = Params::new(with.memory_kib, with.passes, with.lanes, Some(HASH_BYTES)).map_err(failed)?;
    let mut out = vec![0; HASH_BYTES];
    // A password longer than the rule allows was never stored; cutting it keeps the cost flat.
    let text = password.expose_secret().as_bytes();
    let text = text.get(..PASSWORD_CHARS_MAX * 4).unwrap_or(text);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(text, &with.salt, &mut out)
        .map_err(failed)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(password: &str, expected: Result<(), PasswordRuleError>) {
        assert_eq!(check_rules(&Secret::new(password.to_owned()), "alice"), expected, "{password:?}");
    }

    #[test]
    fn passwords_have_a_length_and_are_not_trivial() {
        check("short", Err(PasswordRuleError::Short));
        check("twelve chars", Ok(()));
        check("aaaaaaaaaaaaaa", Err(PasswordRuleError::Guessable));
        check(&"ab".repeat(65), Err(PasswordRuleError::Long));
        check(&"ä1".repeat(60), Ok(()));
    }

    #[tokio::test]
    async fn n_a_password_verifies_only_against_its_own_hash_and_nobody_verifies() {
        let hasher = PasswordHasher::new();
        let secret = |s: &str| Secret::new(s.to_owned());
        let record = hasher.hash(secret("correct horse battery")).await.unwrap();
        assert!(hasher.verify(secret("correct horse battery"), Some(record.clone())).await.unwrap());
        assert!(!hasher.verify(secret("wrong horse battery"), Some(record.clone())).await.unwrap());
        assert!(!hasher.verify(secret("correct horse battery"), None).await.unwrap());
        let again = hasher.hash(secret("correct horse battery")).await.unwrap();
        assert_ne!(again.hash, record.hash, "every hash has its own salt");
    }

    #[test]
    fn n_the_dummy_costs_what_a_real_hash_costs() {
        let hasher = PasswordHasher::new();
        assert_eq!(hasher.nobody.memory_kib, hasher.cost.memory_kib);
        assert_eq!(hasher.nobody.passes, hasher.cost.passes);
        assert_eq!(hasher.nobody.lanes, hasher.cost.lanes);
    }
}
