//! An authenticator application.

use crate::canary::note_canary;
use crate::wait::wait_for;
use data_encoding::BASE32_NOPAD;
use std::time::{SystemTime, UNIX_EPOCH};
use totp_rs::{Builder, Secret, Totp};

const SECRET_BYTES: usize = 20;
const STEP_SECONDS: u64 = 30;
/// How long a code stays good at least once it is given.
const MARGIN_SECONDS: u64 = 10;

/// Gives codes for one user, each once.
pub struct OneTimeCodes {
    totp: Totp,
    last_step: u64,
}

impl OneTimeCodes {
    /// Takes the `otpauth://` address that an invitation shows, wherever it stands in a text. Its secret is a canary.
    ///
    /// # Panics
    /// When there is none.
    pub fn from_uri(text: &str) -> Self {
        let (_, rest) = text.split_once("secret=").unwrap_or_else(|| panic!("no one-time secret in {text}"));
        let secret: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
        note_canary(&secret);
        let bytes: [u8; SECRET_BYTES] = BASE32_NOPAD.decode(secret.as_bytes()).unwrap().try_into().unwrap();
        Self { totp: Builder::new().with_secret(Secret::new_stack(bytes)).build_noncompliant(), last_step: 0 }
    }

    /// A code that was not given before and is good now. Auth takes the step before and the step after as well, so
    /// that three can be had at once; for a fourth this waits.
    pub fn next_code(&mut self) -> String {
        let step = wait_for("the next one-time code", || {
            let now = step_now();
            // The one of the step before must not run out on its way.
            let oldest = step_at(seconds_now() + MARGIN_SECONDS).saturating_sub(1);
            let next = (self.last_step + 1).max(oldest);
            (next <= now + 1).then_some(next)
        });
        self.last_step = step;
        self.totp.generate(step * STEP_SECONDS).to_string()
    }

    /// A code that is not good at any time near.
    pub fn wrong_code(&self) -> String {
        let near = step_now();
        let code = |step| self.totp.generate(step * STEP_SECONDS).to_string();
        (0..10)
            .map(|digit| format!("{digit}{digit}1{digit}7{digit}"))
            .find(|guess| (near - 3..near + 4).all(|step| code(step) != *guess))
            .unwrap()
    }
}

fn step_now() -> u64 {
    step_at(seconds_now())
}

fn step_at(seconds: u64) -> u64 {
    seconds / STEP_SECONDS
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
