//! Names that people choose. Each kind has its own type, its own length and its own alphabet.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A name that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no {what}: {rule}")]
pub struct NameError {
    /// Which kind of name was wanted.
    pub what: &'static str,
    /// What was given, cut to 64 characters.
    pub given: String,
    /// What such a name looks like.
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Longest name in bytes.
            pub const BYTES_MAX: usize = $max;

            /// Reads a name; the error says the rule that it breaks.
            pub fn parse(s: impl Into<String>) -> Result<Self, NameError> {
                let s = s.into();
                let check: fn(&str) -> bool = $check;
                if s.is_empty() || s.len() > $max || !check(&s) {
                    return Err(NameError {
                        what: $what,
                        given: s.chars().take(64).collect(),
                        rule: $rule,
                    });
                }
                Ok(Self(s))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(s: &str) -> Result<Self, NameError> {
                Self::parse(s)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Self::parse(String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

fn is_dns_like(s: &str) -> bool {
    s.as_bytes()[0].is_ascii_alphanumeric()
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
        && !s.contains("..")
        && !s.ends_with('.')
}

fn is_plain(s: &str) -> bool {
    !s.starts_with('-')
        && s.bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@' | b'+' | b':'))
}

fn is_lower_dns(s: &str) -> bool {
    is_dns_like(s) && !s.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_login(s: &str) -> bool {
    !s.starts_with('-')
        && s.chars().all(|c| {
            !c.is_control()
                && !c.is_whitespace()
                && !matches!(c, ':' | '/' | '\\' | '"' | '\'' | '`' | '$' | '*' | ',')
        })
}

name!(
    /// The cluster's name; part of every certificate, cannot change.
    ClusterName, "cluster name", 190,
    "lower-case letters, digits, dots and hyphens, beginning with a letter or digit, 190 bytes at most", is_lower_dns
);
name!(
    /// What a node is called in `ssh login@node`.
    NodeName, "node name", 253,
    "letters, digits, dots and hyphens, beginning with a letter or digit, 253 bytes at most", is_dns_like
);
name!(
    /// A user of the cluster.
    UserName, "user name", 128,
    "letters, digits and . - _ @ + : , not beginning with a hyphen, 128 bytes at most", is_plain
);
name!(
    /// A role: what a user may do.
    RoleName, "role name", 128,
    "letters, digits and . - _ @ + : , not beginning with a hyphen, 128 bytes at most", is_plain
);
name!(
    /// The public name of a join token (its secret is another value).
    TokenName, "token name", 128,
    "letters, digits and . - _ @ + : , not beginning with a hyphen, 128 bytes at most", is_plain
);
name!(
    /// The name of any resource, where the kind is not known.
    ResourceName, "resource name", 253,
    "letters, digits and . - _ @ + : , not beginning with a hyphen, 253 bytes at most", is_plain
);
name!(
    /// An account of the target's operating system.
    Login, "login", 64,
    "no white space, control characters, quotes or any of : / \\ $ * , and not beginning with a hyphen, 64 bytes at most", is_login
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_be_options_or_paths_are_refused() {
        for bad in ["", "-oProxyCommand=x", "a/b", "a b", "..", "a..b", "x;y", "a\n", &"a".repeat(254)] {
            assert!(NodeName::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["-l", "a b", "root:0", "$(id)", "a/b", "*"] {
            assert!(Login::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ordinary_names_are_names() {
        assert!(NodeName::parse("ip-10-1-1-187.ec2.internal").is_ok());
        assert!(Login::parse("ubuntu").is_ok());
        assert!(UserName::parse("alice@example.com").is_ok());
        assert!(ClusterName::parse("Demo").is_err());
    }

    #[test]
    fn deserialising_applies_the_rule() {
        assert!(serde_json::from_str::<UserName>("\"a b\"").is_err());
    }
}
