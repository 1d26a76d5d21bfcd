//! One-time codes (TOTP, RFC 6238): six digits, 30 s, one step of skew, each step accepted once.

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use totp_rs::{Builder, Totp};
use wayleave_runtime::random_bytes;
use wayleave_vocab::Wall;

const SECRET_BYTES: usize = 20;
const DIGITS: usize = 6;

/// The shared secret of one user's second factor, as stored.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TotpSecret {
    #[serde(with = "crate::base64_bytes")]
    secret: Vec<u8>,
}

/// The number of a 30 s step since 1970.
pub(crate) type TotpStep = u64;

impl TotpSecret {
    pub(crate) fn generate() -> Self {
        Self { secret: random_bytes::<SECRET_BYTES>().to_vec() }
    }

    /// The `otpauth://` URI that authenticator applications read.
    pub(crate) fn uri(&self, cluster: &str, user: &str) -> String {
        let (cluster, user) = (percent(cluster), percent(user));
        let secret = BASE32_NOPAD.encode(&self.secret);
        format!(
            "otpauth://totp/{cluster}:{user}?secret={secret}&issuer={cluster}&algorithm=SHA1&digits={DIGITS}&period=30"
        )
    }

    /// The step that `code` is of, if it is one that may be used: of now or the step before or after, and behind
    /// `last_used`. A code is good once.
    pub(crate) fn accept(&self, code: &str, last_used: Option<TotpStep>, now: Wall) -> Option<TotpStep> {
        let digits: String = code.chars().filter(|c| *c != ' ').take(DIGITS + 1).collect();
        if digits.len() != DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let step = self.totp()?.check(&digits, now.as_secs())?;
        last_used.is_none_or(|used| step > used).then_some(step)
    }

    fn totp(&self) -> Option<Totp> {
        let secret: [u8; SECRET_BYTES] = self.secret.as_slice().try_into().ok()?;
        Some(Builder::new().with_secret(totp_rs::Secret::new_stack(secret)).build_noncompliant())
    }

    #[cfg(test)]
    pub(crate) fn code(&self, now: Wall) -> String {
        self.totp().unwrap().generate(now.as_secs()).to_string()
    }
}

fn percent(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(b).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn n_a_code_is_good_once_and_for_its_time() {
        let secret = TotpSecret::generate();
        let now = Wall::from_secs(1_800_000_000);
        let code = secret.code(now);
        let step = secret.accept(&code, None, now).unwrap();
        assert_eq!(secret.accept(&code, Some(step), now), None, "the same code again");
        assert_eq!(secret.accept(&code, None, now.after(Duration::from_secs(120))), None, "too late");
        for bad in ["", "12345", "1234567", "abcdef", "000000000000000000000"] {
            assert_eq!(secret.accept(bad, None, now), None, "{bad:?}");
        }
        let next = secret.code(now.after(Duration::from_secs(30)));
        assert!(secret.accept(&next, Some(step), now.after(Duration::from_secs(30))).is_some());
    }

    #[test]
    fn codes_match_rfc_6238() {
        let secret = TotpSecret { secret: b"12345678901234567890".to_vec() };
        assert_eq!(secret.code(Wall::from_secs(59)), "287082");
        assert_eq!(secret.code(Wall::from_secs(1_111_111_109)), "081804");
    }

    #[test]
    fn the_uri_names_cluster_and_user() {
        let uri = TotpSecret { secret: vec![0; 20] }.uri("demo", "alice@example.com");
        assert!(uri.starts_with("otpauth://totp/demo:alice%40example.com?secret=AAAA"), "{uri}");
    }
}
