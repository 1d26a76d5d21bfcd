//! The first start makes a cluster: its name, its authorities, its preset roles, in one batch. Later starts find them.
//!
//! A crash before the batch leaves nothing, a crash after it leaves everything; of two first starts one makes the
//! cluster and the other finds it.

use crate::authorities::{Authorities, AuthoritiesError, LoadError};
use crate::config::AuthConfig;
use crate::keys;
use crate::records::{Records, decode, decode_resource, put};
use crate::request_error::RequestError;
use crate::resource_store::put_operation;
use serde::{Deserialize, Serialize};
use wayleave_keystore::{IdentityDir, IdentityDirError};
use wayleave_policy::presets;
use wayleave_resource::{ClusterAuthPreference, ClusterNetworkingConfig, Kind, NetworkingSpec, Resource};
use wayleave_runtime::random_bytes;
use wayleave_store::{Condition, StoreError};
use wayleave_vocab::{ClusterName, HostId, Wall};

/// File that names this Auth instance, in `data_dir/auth`.
const INSTANCE_FILE: &str = "instance.json";
const ATTEMPTS_MAX: usize = 8;
/// The generation of a cluster that was never restored or cloned.
pub(crate) const FIRST_GENERATION: u64 = 1;

/// What the cluster is, as stored.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterRecord {
    pub(crate) v: u8,
    pub(crate) name: ClusterName,
    /// Raised when a backend is restored or cloned.
    pub(crate) generation: u64,
    pub(crate) created: Wall,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InstanceRecord {
    host_id: HostId,
}

/// What a start found or made.
pub(crate) struct Bootstrapped {
    pub(crate) cluster: ClusterRecord,
    pub(crate) authorities: Authorities,
    pub(crate) host_id: HostId,
    /// True when this start made the cluster.
    pub(crate) created: bool,
}

/// The Auth Service cannot start on this backend.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// Another name than the cluster has.
    #[error(
        "the backend belongs to the cluster {stored}, the configuration says {configured}: a cluster keeps its name. Set auth_service.cluster_name to {stored}, or use another data_dir"
    )]
    OtherCluster {
        /// The cluster's name.
        stored: ClusterName,
        /// What the configuration says.
        configured: ClusterName,
    },
    /// A copy was begun and not ended.
    #[error("the backend was not restored to its end: run `wayleave backend restore` or `clone` again")]
    HalfRestored,
    /// The backend failed.
    #[error("the backend cannot be used")]
    Store(#[from] StoreError),
    /// What is stored cannot be read.
    #[error("what the backend holds cannot be read: {0}")]
    Damaged(String),
    /// The authorities cannot be made or read.
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] IdentityDirError),
}

/// Finds the cluster in the backend, or makes it.
pub(crate) async fn bootstrap(
    config: &AuthConfig,
    records: &Records,
    now: Wall,
) -> Result<Bootstrapped, BootstrapError> {
    let host_id = instance_id(config)?;
    if records.backend().get(&keys::restoring()).await?.is_some() {
        return Err(BootstrapError::HalfRestored);
    }
    let mut created = false;
    if read_cluster(records).await?.is_none() {
        created = create(config, records, now).await?;
    }
    let cluster = read_cluster(records)
        .await?
        .ok_or_else(|| BootstrapError::Damaged("the record of the cluster is gone".to_owned()))?;
    if cluster.name != config.cluster_name {
        return Err(BootstrapError::OtherCluster {
            stored: cluster.name,
            configured: config.cluster_name.clone(),
        });
    }
    let authorities = Authorities::load(records, &cluster.name).await?;
    apply_settings(config, records).await?;
    Ok(Bootstrapped { cluster, authorities, host_id, created })
}

/// The id of this Auth instance: it stays with the data directory.
fn instance_id(config: &AuthConfig) -> Result<HostId, BootstrapError> {
    let directory = IdentityDir::open(&config.data_dir.join("auth"))?;
    if let Some(record) = directory.read::<InstanceRecord>(INSTANCE_FILE)? {
        return Ok(record.host_id);
    }
    let record = InstanceRecord { host_id: HostId::from_random(random_bytes()) };
    directory.write(INSTANCE_FILE, &record)?;
    Ok(record.host_id)
}

async fn read_cluster(records: &Records) -> Result<Option<ClusterRecord>, BootstrapError> {
    let Some(item) = records.backend().get(&keys::cluster()).await? else { return Ok(None) };
    let stored = decode::<ClusterRecord>(&item).map_err(|e| BootstrapError::Damaged(e.to_string()))?;
    Ok(Some(stored.value))
}

/// Makes the cluster; false when somebody else did meanwhile.
async fn create(config: &AuthConfig, records: &Records, now: Wall) -> Result<bool, BootstrapError> {
    let (_, mut operations) = Authorities::generate(&config.cluster_name, now)?;
    let cluster =
        ClusterRecord { v: 1, name: config.cluster_name.clone(), generation: FIRST_GENERATION, created: now };
    operations.push(put(keys::cluster(), &cluster));
    operations.extend(presets().into_iter().map(|role| put_operation(&Resource::from(role))));
    operations.push(put_operation(&ClusterNetworkingConfig::default().into()));
    operations.push(put_operation(&ClusterAuthPreference::default().into()));
    match records.commit(vec![Condition::Absent(keys::cluster())], operations).await {
        Ok(_) => Ok(true),
        Err(StoreError::AlreadyExists { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Settings of the file win over what is stored; what the file does not say stays.
async fn apply_settings(config: &AuthConfig, records: &Records) -> Result<(), BootstrapError> {
    let networking = |stored: Option<Resource>| {
        let mut resource = match stored {
            Some(Resource::ClusterNetworkingConfig(resource)) => resource,
            _ => ClusterNetworkingConfig::default(),
        };
        let strategy = config.tunnel_strategy.unwrap_or(resource.spec.tunnel_strategy);
        if let Some(spec) = &config.networking {
            resource.spec = NetworkingSpec { tunnel_strategy: strategy, ..spec.clone() };
        }
        resource.spec.tunnel_strategy = strategy;
        Resource::from(resource)
    };
    let preference = |stored: Option<Resource>| {
        let mut resource = match stored {
            Some(Resource::ClusterAuthPreference(resource)) => resource,
            _ => ClusterAuthPreference::default(),
        };
        if let Some(spec) = &config.authentication {
            resource.spec = spec.clone();
        }
        Resource::from(resource)
    };
    apply(records, Kind::ClusterNetworkingConfig, networking).await?;
    apply(records, Kind::ClusterAuthPreference, preference).await
}

async fn apply(
    records: &Records,
    kind: Kind,
    change: impl Fn(Option<Resource>) -> Resource,
) -> Result<(), BootstrapError> {
    let name = kind.only_name().unwrap_or_default();
    let Some(key) = keys::resource(kind, name) else { return Ok(()) };
    for _ in 0..ATTEMPTS_MAX {
        let item = records.backend().get(&key).await?;
        let stored = item.as_ref().and_then(decode_resource);
        let changed = change(stored.clone());
        if stored.as_ref() == Some(&changed) {
            return Ok(());
        }
        let condition = match item {
            Some(item) => Condition::RevisionIs(key.clone(), item.revision),
            None => Condition::Absent(key.clone()),
        };
        match records.commit(vec![condition], vec![put_operation(&changed)]).await {
            Ok(_) => return Ok(()),
            Err(
                StoreError::Conflict { .. } | StoreError::AlreadyExists { .. } | StoreError::NotFound { .. },
            ) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(BootstrapError::Damaged(format!("the {kind} is being written by too many at once")))
}

impl From<LoadError> for BootstrapError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Store(error) => Self::Store(error),
            LoadError::Authorities(error) => Self::Authorities(error),
            LoadError::Successions(what) => Self::Damaged(what),
        }
    }
}

impl From<RequestError> for BootstrapError {
    fn from(error: RequestError) -> Self {
        Self::Damaged(error.to_string())
    }
}
