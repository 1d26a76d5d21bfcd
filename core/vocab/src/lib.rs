//! The words of Wayleave as types: ids, names, addresses, time, secrets, labels.
//!
//! Everything here is a plain value that is valid by construction. There is no policy, no
//! encoding for the wire and no effect: see `core/identity` for who somebody is, `wire/dial` for
//! how a dial request travels, `platform/runtime` for the clock.

mod address;
mod id;
mod labels;
mod name;
mod printable;
mod release;
mod revision;
mod secret;
mod system_role;
mod time;
mod tunnel_strategy;

pub use address::{HostPort, ParseHostPortError};
pub use id::{HostId, Incarnation, ParseIdError, SessionId, TraceId};
pub use labels::{LABEL_KEY_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, Labels, ParseLabelsError};
pub use name::{ClusterName, Login, NameError, NodeName, ResourceName, RoleName, TokenName, UserName};
pub use printable::{is_hostile, printable};
pub use release::{CAPABILITIES_MAX, CAPABILITY_BYTES_MAX, Capabilities, Capability, Unsupported, Versions};
pub use revision::PolicyRevision;
pub use secret::{Secret, SecretBytes};
pub use system_role::{ParseSystemRoleError, SystemRole};
pub use time::{Mono, ParseTtlError, Ttl, Wall};
pub use tunnel_strategy::TunnelStrategy;

/// Traits of a user: name to values, filled from the user resource or an identity provider.
pub type Traits = std::collections::BTreeMap<String, Vec<String>>;
