//! The Auth Service: holds the authorities and the backend, issues certificates, and is the only writer of policy.
//!
//! [`AuthService::build`] finds or makes the cluster in a backend, [`AuthService::bind`] opens the port (3025),
//! [`BoundAuthService::run`] serves until shutdown. Every call passes the gate (`gate.rs`), which looks its method up in
//! one table (`authorization.rs`). What is allowed to whom is decided by `core/policy`; what certificates and snapshots
//! are is `core/ca`; here are the effects.

mod admin_identity;
mod audit_events;
mod audit_log;
mod audit_verify;
mod auth_core;
mod authorities;
mod authority_keys;
mod authority_rotation;
mod authorization;
mod base64_bytes;
mod bootstrap;
mod change_preview;
mod cluster_watch;
mod config;
mod connection;
mod gate;
mod housekeeping;
mod instances;
mod join;
mod keys;
mod listener;
mod local_api;
mod login;
mod metered_backend;
mod metrics;
mod mirror;
mod node_list;
mod one_time_code;
mod openssh_login;
mod openssh_token;
mod overview;
mod password;
mod policy_view;
mod presence;
mod publication;
mod rate_limit;
mod records;
mod request_error;
mod resource_store;
mod resource_watch;
mod route_log;
mod route_publisher;
mod route_table;
mod routes;
mod rpc_admin;
mod rpc_host;
mod rpc_public;
mod service;
mod shared_reports;
mod slots;
mod snapshots;
mod token_secret;
mod tokens;
mod transfer;
mod user_certificates;
mod user_secrets;
mod users;

pub use admin_identity::{ADMIN_IDENTITY_FILE, AdminIdentityError, admin_identity_path, local_admin_name};
pub use audit_verify::{AuditFault, AuditVerdict, VerifyAuditError, verify_audit_log};
pub use authorities::AuthoritiesError;
pub use bootstrap::BootstrapError;
pub use config::{AUTH_PORT, AuthConfig, Lifetimes, Limits, StaticToken};
pub use local_api::LocalApi;
pub use password::{PASSWORD_CHARS_MAX, PASSWORD_CHARS_MIN};
pub use rate_limit::{RateLimit, TooManyCalls};
pub use request_error::RequestError;
pub use service::{AuthService, BoundAuthService, BuildError, StartError};
pub use snapshots::PublishError;
pub use transfer::{
    BackupFile, BackupHeader, Copied, Existing, Progress, TransferError, backup, clone_backend, restore,
};
