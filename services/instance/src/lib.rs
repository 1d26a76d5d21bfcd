//! The identity of one process: joined once with a token, kept in `data_dir`, renewed before it ends; and the journal in
//! which the process speaks under that identity.
//!
//! A process that has no identity trusts nothing blindly: it needs the pin of the cluster's host authority. What the
//! identity is used for is the business of the services that it is handed to.

mod error;
mod events;
mod join;
mod join_token;
mod renew;
mod stored;

pub use error::InstanceError;
pub use events::{EventJournal, EventJournalError, forward_events};
pub use join::{Instance, InstanceConfig, RoleIdentity};
pub use join_token::JoinToken;
pub use renew::{PolicyWatch, renew_loop};
