//! Who may do what: `(Principal, Resource, Context, now) -> Permit | Denial`.
//!
//! Roles are compiled once into a [`Policy`]; decisions then cost microseconds. Only this crate can make a [`Permit`].
//! It verifies no certificate (`platform/keystore`, `adapters/ssh`), stores no role (`services/auth`) and opens nothing.
//!
//! Start at [`Policy::decide_ssh`]. [`Policy::explain_ssh`] says how a decision came about, [`compare`] what a change would
//! do, [`widens_own_role`] whether somebody's own write would give him more.

mod compare;
mod denial;
mod explain;
mod expression;
mod lock;
mod options;
mod own_write;
mod pattern;
mod permit;
mod policy;
mod preset;
mod role;
mod subject;
mod template;

pub use compare::{Access, COMPARISON_MAX, Comparison, compare};
pub use denial::{Denial, DenialReason, DenyKey};
pub use explain::{
    AdminExplanation, AdminRoleTrace, DecidedBy, Explanation, Finding, RoleState, RoleTrace, RuleTrace,
    Section, SectionTrace,
};
pub use expression::ExpressionError;
pub use lock::{LOCKS_STALE_AFTER, LockMatch, LockSet};
pub use options::{MAX_DETACHED, SessionOptions, Settings};
pub use own_write::{Widening, widens_own_role, widens_own_user};
pub use pattern::PatternError;
pub use permit::{AdminPermit, AppPermit, Permit};
pub use policy::{Context, LOGINS_MAX, NodeView, Policy, ResourceView};
pub use preset::{access, auditor, editor, presets};
pub use role::{CompiledRole, RoleError, RoleProblem};
pub use subject::Subject;
pub use template::TemplateError;
