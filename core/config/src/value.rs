//! Values that the configuration is made of and that vocabulary does not have.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Something written in the file itself, or the absolute path of the file that holds it.
///
/// Parsing is pure: whoever needs the value reads the path. It has no readable `Debug`, since the
/// value may be a secret.
#[derive(Clone)]
pub enum ValueOrPath<T> {
    /// The value as written.
    Value(T),
    /// The absolute path of a file with the value; surrounding white space there does not count.
    Path(PathBuf),
}

impl<T> fmt::Debug for ValueOrPath<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(..)"),
            Self::Path(path) => write!(f, "Path({})", path.display()),
        }
    }
}

/// The SHA-256 of a CA certificate's public key (its SubjectPublicKeyInfo in DER), written
/// `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CaPin([u8; 32]);

/// Text that is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a CA pin: expected sha256: and 64 hexadecimal digits")]
pub struct ParseCaPinError;

impl CaPin {
    /// From the digest.
    pub const fn from_sha256(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest.
    pub const fn as_sha256(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for CaPin {
    type Err = ParseCaPinError;

    fn from_str(s: &str) -> Result<Self, ParseCaPinError> {
        let digits = s.trim().strip_prefix("sha256:").ok_or(ParseCaPinError)?;
        let mut digest = [0_u8; 32];
        let mut pairs = digits.as_bytes().chunks_exact(2);
        for byte in &mut digest {
            let pair = pairs.next().ok_or(ParseCaPinError)?;
            *byte = pair
                .iter()
                .try_fold(0, |sum, digit| hex(*digit).map(|value| sum << 4 | value))
                .ok_or(ParseCaPinError)?;
        }
        if digits.len() == 64 { Ok(Self(digest)) } else { Err(ParseCaPinError) }
    }
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

impl fmt::Display for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_reads_back_what_it_prints() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(text.parse::<CaPin>().unwrap().to_string(), text);
        assert_eq!(text.to_uppercase().replace("SHA256", "sha256").parse(), text.parse::<CaPin>());
    }

    #[test]
    fn what_is_nearly_a_pin_is_none() {
        for digits in
            ["", "0a", &"0".repeat(63), &"0".repeat(65), &"0".repeat(66), &"0g".repeat(32), &"é".repeat(32)]
        {
            assert_eq!(format!("sha256:{digits}").parse::<CaPin>(), Err(ParseCaPinError), "{digits}");
        }
        assert_eq!("0a".repeat(32).parse::<CaPin>(), Err(ParseCaPinError));
    }
}
