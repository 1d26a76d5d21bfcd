//! Who may do what: `(Principal, Resource, Context, now) -> Permit | Denial`.
//!
//! Roles are compiled once into a [`Policy`]; decisions then cost microseconds. Only this crate can make a [`Permit`].
//! It verifies no certificate (`platform/keystore`, `adapters/ssh`), stores no role (`services/auth`) and opens nothing.
//!
//! Start at [`Policy::decide_ssh`].

mod denial;
mod expression;
mod lock;
mod options;
mod pattern;
mod permit;
mod policy;
mod preset;
mod role;
mod subject;
mod template;

pub use denial::{Denial, DenialReason, DenyKey};
pub use expression::ExpressionError;
pub use lock::{LOCKS_STALE_AFTER, LockMatch, LockSet};
pub use options::{SessionOptions, Settings};
pub use pattern::PatternError;
pub use permit::{AdminPermit, Permit};
pub use policy::{Context, LOGINS_MAX, NodeView, Policy, ResourceView};
pub use preset::{access, auditor, editor, presets};
pub use role::{CompiledRole, RoleError, RoleProblem};
pub use subject::Subject;
pub use template::TemplateError;
