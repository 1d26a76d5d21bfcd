//! `cert_authority`: what everybody may know of a certificate authority. Private keys are never part of a resource.

use crate::metadata::Metadata;
use crate::reader::{At, Fields};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use wayleave_vocab::ClusterName;

/// Most keys of one authority: two while it rotates, and some that are still trusted.
const KEYS_MAX: usize = 8;

/// The public part of a certificate authority. The name of the resource is its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertAuthority {
    /// Labels, revision, description.
    pub metadata: Metadata,
    /// The keys.
    pub spec: CertAuthoritySpec,
}

/// The public keys of an authority and where its rotation stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertAuthoritySpec {
    /// What it signs.
    #[serde(rename = "type")]
    pub ca_type: CaType,
    /// The cluster that it speaks for.
    pub cluster: ClusterName,
    /// Where the rotation stands.
    pub phase: RotationPhase,
    /// The keys that sign. The first one is used.
    pub active: Vec<CaKeys>,
    /// Keys that do not sign and are trusted all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted: Vec<CaKeys>,
}

/// The public halves of one generation of an authority's keys. Which are present depends on its type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaKeys {
    /// The SSH key as `authorized_keys` writes it: `ssh-ed25519 AAAA…`, without a comment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ssh_public_key: Option<String>,
    /// The self-signed X.509 certificate in PEM.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub x509_certificate_pem: Option<String>,
    /// The key of signatures that are no certificates (policy, JWT): SubjectPublicKeyInfo in PEM.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signing_public_key_pem: Option<String>,
}

/// What an authority signs. Authorities differ by purpose and direction, so that none speaks for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaType {
    /// Certificates of users.
    User,
    /// Certificates of the cluster's processes.
    Host,
    /// Snapshots of policy.
    Policy,
    /// User certificates for agentless OpenSSH nodes.
    Openssh,
    /// Certificates of database servers.
    DbServer,
    /// Client certificates that database servers accept.
    DbClient,
    /// Assertions for applications.
    Jwt,
}

/// Where the rotation of an authority stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotationPhase {
    /// No rotation.
    #[default]
    Standby,
    /// The new key is trusted; the old one signs.
    Init,
    /// Clients get certificates of the new key, servers of the old one; both are trusted.
    UpdateClients,
    /// Everybody gets certificates of the new key; both are trusted.
    UpdateServers,
    /// Back to the old key; both are trusted.
    Rollback,
}

/// A word that names no authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no certificate authority; there are {}", CaType::ALL.map(CaType::as_str).join(", "))]
pub struct ParseCaTypeError {
    given: String,
}

impl CaType {
    /// Every type, in the order of declaration.
    pub const ALL: [Self; 7] =
        [Self::User, Self::Host, Self::Policy, Self::Openssh, Self::DbServer, Self::DbClient, Self::Jwt];

    /// The word in `type:`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Host => "host",
            Self::Policy => "policy",
            Self::Openssh => "openssh",
            Self::DbServer => "db_server",
            Self::DbClient => "db_client",
            Self::Jwt => "jwt",
        }
    }
}

impl fmt::Display for CaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CaType {
    type Err = ParseCaTypeError;

    fn from_str(s: &str) -> Result<Self, ParseCaTypeError> {
        Self::ALL
            .into_iter()
            .find(|ca| ca.as_str() == s)
            .ok_or_else(|| ParseCaTypeError { given: crate::tree::short(s) })
    }
}

impl CertAuthoritySpec {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let ca_type = fields.required("type", At::parse);
        let cluster = fields.required("cluster", At::parse);
        let phase = fields.or_default("phase", |at| {
            at.word(&[
                ("standby", RotationPhase::Standby),
                ("init", RotationPhase::Init),
                ("update_clients", RotationPhase::UpdateClients),
                ("update_servers", RotationPhase::UpdateServers),
                ("rollback", RotationPhase::Rollback),
            ])
        });
        let active = fields.required("active", read_keys);
        let trusted = fields.or_default("trusted", read_keys);
        Some(Self { ca_type: ca_type?, cluster: cluster?, phase: phase?, active: active?, trusted: trusted? })
    }
}

fn read_keys(at: &At<'_>) -> Option<Vec<CaKeys>> {
    let keys: Vec<CaKeys> = at.each(|at| {
        let mut fields = at.fields()?;
        let ssh_public_key = fields.optional("ssh_public_key", At::line_of_text);
        let pem = |at: &At<'_>| at.text().map(str::to_owned);
        let x509_certificate_pem = fields.optional("x509_certificate_pem", pem);
        let signing_public_key_pem = fields.optional("signing_public_key_pem", pem);
        fields.finish();
        Some(CaKeys {
            ssh_public_key: ssh_public_key?,
            x509_certificate_pem: x509_certificate_pem?,
            signing_public_key_pem: signing_public_key_pem?,
        })
    })?;
    if keys.len() > KEYS_MAX {
        return at.fail(format_args!("{} keys, at most {KEYS_MAX}", keys.len()));
    }
    Some(keys)
}
