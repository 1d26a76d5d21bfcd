//! CA pins: how a joining process knows the cluster before it trusts anything.

use crate::digest::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Most pins that are read from one value.
pub const PINS_MAX: usize = 16;

/// `sha256:` and the digest of a CA certificate's SubjectPublicKeyInfo (DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin(Digest);

/// Text that is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a pin of the form sha256: and 64 hexadecimal digits")]
pub struct ParsePinError {
    /// What was given, cut to 80 characters.
    pub given: String,
}

impl Pin {
    /// The pin of a key, given as SubjectPublicKeyInfo in DER.
    pub fn of_spki(der: &[u8]) -> Self {
        Self(Digest::of(der))
    }
}

/// Reads one or several pins, separated by commas or white space. None at all is an error too.
///
/// # Errors
/// When one of them is no pin, or there are none, or more than [`PINS_MAX`].
pub fn parse_pins(text: &str) -> Result<Vec<Pin>, ParsePinError> {
    let words = text.split([',', ' ', '\t', '\r', '\n']).filter(|word| !word.is_empty());
    let pins: Vec<Pin> = words.map(str::parse).collect::<Result<_, _>>()?;
    if pins.is_empty() || pins.len() > PINS_MAX {
        return Err(ParsePinError { given: text.chars().take(80).collect() });
    }
    Ok(pins)
}

/// True if the key is one of those pinned.
pub fn pins_match(pins: &[Pin], spki_der: &[u8]) -> bool {
    pins.contains(&Pin::of_spki(spki_der))
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Pin {
    type Err = ParsePinError;

    fn from_str(s: &str) -> Result<Self, ParsePinError> {
        let fail = || ParsePinError { given: s.chars().take(80).collect() };
        let hex = s.trim().strip_prefix("sha256:").ok_or_else(fail)?;
        hex.parse().map(Self).map_err(|_| fail())
    }
}

impl Serialize for Pin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_reads_back_what_it_prints() {
        let pin = Pin::of_spki(b"key");
        assert_eq!(pin.to_string().parse(), Ok(pin));
        assert_eq!(pin.to_string().to_uppercase().replace("SHA256", "sha256").parse(), Ok(pin));
        assert!(pins_match(&[pin], b"key"));
        assert!(!pins_match(&[pin], b"other"));
        assert!(!pins_match(&[], b"key"));
    }

    #[test]
    fn several_pins_are_read_and_none_is_refused() {
        let (a, b) = (Pin::of_spki(b"a"), Pin::of_spki(b"b"));
        assert_eq!(parse_pins(&format!("{a},\n {b}\n")), Ok(vec![a, b]));
        for bad in ["", " , ", "sha256:", "sha256:12", "md5:00", &format!("{a},x")] {
            assert!(parse_pins(bad).is_err(), "{bad:?}");
        }
    }
}
