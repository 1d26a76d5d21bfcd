//! The revision of what agents believe.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Orders policy snapshots: the cluster's generation first (raised by restore and clone), then a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct PolicyRevision {
    /// Raised when a backend is restored or cloned.
    pub generation: u64,
    /// Raised by every change.
    pub counter: u64,
}

impl fmt::Display for PolicyRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.counter)
    }
}
