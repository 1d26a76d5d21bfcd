//! The configuration file: one YAML file in, typed and valid structs out, or every mistake at once.
//!
//! [`Config::parse`] is pure: it opens no file, asks for no host name and no environment. What the
//! file names by path stays a path ([`ValueOrPath`]), to be read at the edge by whoever builds the
//! part. [`Config::configure`] writes a commented file for chosen services, [`reference_markdown`] the page of
//! all keys; both come from the same table of keys (`keys`) that parsing uses.
//!
//! Keys are of three classes: read here; known to the field but not here, which pass only where
//! they switch something off; and unknown. None is ever ignored.
//!
//! It is not the cluster's dynamic configuration (`core/resource`), and it starts nothing (`bin/wayleave`).

mod auth;
mod check;
mod config;
mod error;
mod instance;
mod keys;
mod proxy;
mod reference;
mod sample;
mod section;
mod ssh;
mod storage;
mod tracing;
mod value;
mod yaml;

pub use auth::{AuthConfig, LockingMode, ParseStaticTokenError, StaticToken};
pub use config::Config;
pub use error::{ConfigError, ConfigErrors, ERRORS_MAX};
pub use instance::{
    ConnectionLimits, InstanceConfig, JoinConfig, JoinMethod, LogConfig, LogFormat, LogSeverity, Upstream,
};
pub use proxy::{KeyPairFiles, PeerConfig, ProxyConfig, ProxyProtocol, ProxySshConfig};
pub use reference::reference_markdown;
pub use sample::{ParseServiceError, SampleOptions, SampleStorage, Service};
pub use ssh::{CommandLabel, LabelName, SshConfig};
pub use storage::{EtcdStorage, StorageConfig};
pub use tracing::TracingConfig;
pub use value::{CaPin, LogOutput, ParseCaPinError, ValueOrPath};
pub use yaml::{DEPTH_MAX, FILE_BYTES_MAX, NODES_MAX, TEXT_BYTES_MAX};
