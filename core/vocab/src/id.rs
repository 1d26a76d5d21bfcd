//! Ids. One type per thing, so that a session is never passed where a host is wanted.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// An id that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is not a UUID: {given:?}")]
pub struct ParseIdError {
    /// Which kind of id was wanted.
    pub what: &'static str,
    /// What was given, cut to 64 characters.
    pub given: String,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(uuid::Uuid);

        impl $name {
            /// An id of 16 random bytes, which the caller draws (core has no entropy).
            pub fn from_random(bytes: [u8; 16]) -> Self {
                Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
            }

            /// The 16 bytes of the id.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($what, "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(s: &str) -> Result<Self, ParseIdError> {
                uuid::Uuid::try_parse(s).map(Self).map_err(|_| ParseIdError {
                    what: $what,
                    given: s.chars().take(64).collect(),
                })
            }
        }
    };
}

uuid_id!(
    /// A process of the cluster (Auth, Proxy or agent), assigned by Auth at join.
    HostId,
    "host id"
);
uuid_id!(
    /// One session of a user on a resource.
    SessionId,
    "session id"
);
uuid_id!(
    /// Follows one connection through client, proxies and agent in logs.
    TraceId,
    "trace id"
);

/// Counts the starts of one process id; a higher one is a newer life of the same proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_prints() {
        let id = HostId::from_random([7; 16]);
        assert_eq!(id.to_string().parse::<HostId>(), Ok(id));
    }

    #[test]
    fn a_wrong_id_says_which_kind_was_wanted() {
        let error = "nonsense".parse::<SessionId>().unwrap_err();
        assert_eq!(error.to_string(), "session id is not a UUID: \"nonsense\"");
    }
}
