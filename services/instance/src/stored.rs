//! The identity as it lies in `data_dir/identity/process.json`.

use serde::{Deserialize, Serialize};
use wayleave_vocab::{ClusterName, HostId, Wall};

/// Name of the file.
pub(crate) const FILE: &str = "process.json";
/// The version this build writes.
pub(crate) const VERSION: u32 = 1;

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredIdentity {
    pub(crate) version: u32,
    pub(crate) host_id: HostId,
    pub(crate) cluster_name: ClusterName,
    pub(crate) certificates: Vec<StoredCertificate>,
    pub(crate) host_ca_pem: String,
    pub(crate) policy_keys_pem: Vec<String>,
    /// When the certificates were issued and when the first of them ends.
    pub(crate) issued: Wall,
    pub(crate) not_after: Wall,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredCertificate {
    /// "Instance" or a system role.
    pub(crate) role: String,
    pub(crate) tls_key_pem: String,
    pub(crate) tls_chain_pem: String,
    pub(crate) ssh_key_openssh: String,
    pub(crate) ssh_certificate: String,
}
