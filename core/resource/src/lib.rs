//! Typed resources: `kind / version / metadata / spec`, read from YAML and JSON, written back the same.
//!
//! Reading refuses what it does not know (kinds, fields, versions) and what this build cannot enforce, names every
//! mistake with its line, and never guesses. There is no policy here: what a role means is `core/policy`, how a
//! resource is stored is `services/auth`. Secrets (token secrets, passwords, private keys) are never part of a resource.
//!
//! Start at [`Resource`].

mod auth_preference;
mod cert_authority;
mod error;
mod kind;
mod lock;
mod metadata;
mod networking;
mod node;
mod proxy;
mod reader;
mod resource;
mod role;
mod token;
mod tree;
mod user;
mod yaml;

pub use auth_preference::{AuthPreferenceSpec, ClusterAuthPreference, LoginType, SecondFactor};
pub use cert_authority::{CaKeys, CaType, CertAuthority, CertAuthoritySpec, ParseCaTypeError, RotationPhase};
pub use error::{ResourceError, ResourceErrors};
pub use kind::{Kind, ParseKindError};
pub use lock::{Lock, LockSpec, LockTarget};
pub use metadata::Metadata;
pub use networking::{ClusterNetworkingConfig, NetworkingSpec};
pub use node::{CommandLabel, EnforcedBy, Node, NodeSpec};
pub use proxy::{PROBLEMS_MAX, Proxy, ProxySpec, ProxyStatus};
pub use reader::{ENTRIES_MAX, FIELD_BYTES_MAX};
pub use resource::Resource;
pub use role::{
    AdminVerb, LabelSelector, LockingMode, RecordSession, RecordingMode, Role, RoleConditions, RoleOptions,
    RoleSpec, RoleVersion, Rule, RuleTarget,
};
pub use token::{JoinMethod, PUBLISHED_MAX, PublishGrant, Token, TokenSpec};
pub use tree::{DEPTH_MAX, NODES_MAX, TEXT_BYTES_MAX};
pub use user::{User, UserSpec, UserStatus, WithdrawnRole};
