//! Roles that were taken from users whose certificates still name them.
//!
//! Agents know no users, only certificates, and a certificate cannot be changed. So the snapshot says which roles of
//! whom count no more, until every certificate that could name them has run out.

use serde::{Deserialize, Serialize};
use wayleave_vocab::{RoleName, UserName, Wall};

/// A role that a user no longer holds, whatever certificates of before say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    /// The user.
    pub user: UserName,
    /// The role.
    pub role: RoleName,
    /// When no certificate with it is valid any more.
    pub until: Wall,
}
