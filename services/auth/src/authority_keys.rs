//! The private keys of one authority, one generation or two while it rotates, and the record that keeps them.
//!
//! Which generation signs is decided by `core/ca` from the public part; here that part is made from the private keys, so
//! that the two cannot disagree.

use crate::authorities::AuthoritiesError;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use wayleave_ca::{RotationError, SignerFor, signer};
use wayleave_keystore::{PolicySigner, X509Authority};
use wayleave_resource::{CaKeys, CaType, CertAuthority, CertAuthoritySpec, Metadata, RotationPhase};
use wayleave_runtime::random_bytes;
use wayleave_ssh::KeyPair;
use wayleave_store::Operation;
use wayleave_vocab::{ClusterName, Secret, Wall};

/// An authority as stored, with its private keys. Never `Debug`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityRecord {
    phase: RotationPhase,
    /// In the order of the public part: those that sign, then those that are only trusted.
    generations: Vec<GenerationRecord>,
}

/// The private keys of one generation. Never `Debug`.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GenerationRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ssh_seed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x509_certificate_pem: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x509_private_key_pem: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy_seed: Option<String>,
}

impl GenerationRecord {
    fn ssh_key(&self, ca_type: CaType) -> Result<KeyPair, AuthoritiesError> {
        let seed = self.ssh_seed.as_deref().and_then(unhex);
        let seed: Option<[u8; 32]> = seed.and_then(|seed| seed.try_into().ok());
        seed.map(|seed| KeyPair::from_seed(&seed)).ok_or(AuthoritiesError::Stored(ca_type))
    }
}

/// The keys of one generation of an authority.
pub(crate) trait Generation: Sized {
    fn generate(ca_type: CaType, cluster: &ClusterName, now: Wall) -> Result<Self, AuthoritiesError>;
    fn read(ca_type: CaType, record: GenerationRecord) -> Result<Self, AuthoritiesError>;
    fn record(&self) -> GenerationRecord;
    fn public(&self) -> CaKeys;
}

/// An authority with all of its generations.
pub(crate) struct Authority<K> {
    spec: CertAuthoritySpec,
    /// As many as the public part names, in its order: active, then trusted.
    generations: Vec<Arc<K>>,
}

impl<K> Clone for Authority<K> {
    fn clone(&self) -> Self {
        Self { spec: self.spec.clone(), generations: self.generations.clone() }
    }
}

impl<K: Generation> Authority<K> {
    pub(crate) fn generate(
        ca_type: CaType,
        cluster: &ClusterName,
        now: Wall,
    ) -> Result<Self, AuthoritiesError> {
        let keys = K::generate(ca_type, cluster, now)?;
        let spec = CertAuthoritySpec {
            ca_type,
            cluster: cluster.clone(),
            phase: RotationPhase::Standby,
            active: vec![keys.public()],
            trusted: Vec::new(),
        };
        Ok(Self { spec, generations: vec![keys.into()] })
    }

    /// Reads what [`Authority::operations`] stored.
    pub(crate) fn read(
        ca_type: CaType,
        cluster: &ClusterName,
        record: &[u8],
    ) -> Result<Self, AuthoritiesError> {
        let damaged = || AuthoritiesError::Stored(ca_type);
        let record: AuthorityRecord = serde_json::from_slice(record).map_err(|_| damaged())?;
        let generations: Vec<Arc<K>> = record
            .generations
            .into_iter()
            .map(|generation| K::read(ca_type, generation).map(Into::into))
            .collect::<Result<_, _>>()?;
        let mut public = generations.iter().map(|keys| keys.public());
        let active = public.next().ok_or_else(damaged)?;
        let trusted = public.collect();
        let spec = CertAuthoritySpec {
            ca_type,
            cluster: cluster.clone(),
            phase: record.phase,
            active: vec![active],
            trusted,
        };
        // A phase that its keys do not fit signs nothing.
        signer(&spec, SignerFor::Servers).map_err(|_| damaged())?;
        Ok(Self { spec, generations })
    }

    /// What stores it: the private record, and the public part as a resource.
    pub(crate) fn operations(&self) -> [Operation; 2] {
        let record = AuthorityRecord {
            phase: self.spec.phase,
            generations: self.generations.iter().map(|keys| keys.record()).collect(),
        };
        let private = crate::records::put(crate::keys::authority(self.spec.ca_type.as_str()), &record);
        [private, crate::resource_store::put_operation(&self.resource().into())]
    }

    pub(crate) fn resource(&self) -> CertAuthority {
        CertAuthority { metadata: Metadata::default(), spec: self.spec.clone() }
    }

    pub(crate) fn spec(&self) -> &CertAuthoritySpec {
        &self.spec
    }

    /// The keys that sign.
    pub(crate) fn signer(&self, for_whom: SignerFor) -> &K {
        let public = signer(&self.spec, for_whom).expect("an authority is only made with keys that fit");
        let found = self.generations.iter().find(|keys| keys.public() == *public);
        found.expect("the public part is made from these very keys")
    }

    /// Every generation that is trusted.
    pub(crate) fn generations(&self) -> impl Iterator<Item = &K> {
        self.generations.iter().map(AsRef::as_ref)
    }

    /// Begins a rotation with fresh keys.
    pub(crate) fn begin(&self, now: Wall) -> Result<Self, RotateError> {
        let new = K::generate(self.spec.ca_type, &self.spec.cluster, now)?;
        let spec = wayleave_ca::begin(&self.spec, new.public())?;
        let mut known = self.generations.clone();
        known.push(new.into());
        Ok(Self::arranged(spec, &known))
    }

    /// Takes the next step of a rotation.
    pub(crate) fn advance(&self, to: RotationPhase) -> Result<Self, RotateError> {
        let spec = wayleave_ca::advance(&self.spec, to)?;
        Ok(Self::arranged(spec, &self.generations))
    }

    fn arranged(spec: CertAuthoritySpec, known: &[Arc<K>]) -> Self {
        let named = wayleave_ca::trusted(&spec);
        let generations =
            named.filter_map(|public| known.iter().find(|keys| keys.public() == *public).cloned()).collect();
        Self { spec, generations }
    }
}

/// A step that was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotateError {
    #[error(transparent)]
    Step(#[from] RotationError),
    #[error(transparent)]
    Keys(#[from] AuthoritiesError),
}

/// The keys of an authority that signs certificates.
pub(crate) struct CertificateKeys {
    pub(crate) ssh: KeyPair,
    pub(crate) x509: X509Authority,
}

impl Generation for CertificateKeys {
    fn generate(ca_type: CaType, cluster: &ClusterName, now: Wall) -> Result<Self, AuthoritiesError> {
        let x509 = X509Authority::generate(&format!("{ca_type} CA of {cluster}"), random_bytes(), now)
            .map_err(|source| AuthoritiesError::X509 { ca_type, source })?;
        Ok(Self { ssh: KeyPair::from_seed(&random_bytes()), x509 })
    }

    fn read(ca_type: CaType, record: GenerationRecord) -> Result<Self, AuthoritiesError> {
        let damaged = || AuthoritiesError::Stored(ca_type);
        let ssh = record.ssh_key(ca_type)?;
        let certificate = record.x509_certificate_pem.ok_or_else(damaged)?;
        let key = Secret::new(record.x509_private_key_pem.ok_or_else(damaged)?);
        let x509 = X509Authority::from_pem(&certificate, &key)
            .map_err(|source| AuthoritiesError::X509 { ca_type, source })?;
        Ok(Self { ssh, x509 })
    }

    fn record(&self) -> GenerationRecord {
        GenerationRecord {
            ssh_seed: Some(hex(self.ssh.expose_seed())),
            x509_certificate_pem: Some(self.x509.certificate_pem().to_owned()),
            x509_private_key_pem: Some(self.x509.private_key_pem().expose_secret().to_owned()),
            policy_seed: None,
        }
    }

    fn public(&self) -> CaKeys {
        CaKeys {
            ssh_public_key: Some(self.ssh.public_key().to_openssh()),
            x509_certificate_pem: Some(self.x509.certificate_pem().to_owned()),
            signing_public_key_pem: None,
        }
    }
}

/// The key of an authority that signs SSH certificates only.
pub(crate) struct SshKeys(pub(crate) KeyPair);

impl Generation for SshKeys {
    fn generate(_: CaType, _: &ClusterName, _: Wall) -> Result<Self, AuthoritiesError> {
        Ok(Self(KeyPair::from_seed(&random_bytes())))
    }

    fn read(ca_type: CaType, record: GenerationRecord) -> Result<Self, AuthoritiesError> {
        record.ssh_key(ca_type).map(Self)
    }

    fn record(&self) -> GenerationRecord {
        GenerationRecord { ssh_seed: Some(hex(self.0.expose_seed())), ..Default::default() }
    }

    fn public(&self) -> CaKeys {
        CaKeys { ssh_public_key: Some(self.0.public_key().to_openssh()), ..CaKeys::default() }
    }
}

impl Generation for PolicySigner {
    fn generate(ca_type: CaType, _: &ClusterName, _: Wall) -> Result<Self, AuthoritiesError> {
        Self::from_seed(&random_bytes::<32>()).map_err(|_| AuthoritiesError::Stored(ca_type))
    }

    fn read(ca_type: CaType, record: GenerationRecord) -> Result<Self, AuthoritiesError> {
        record
            .policy_seed
            .and_then(|seed| unhex(&seed))
            .and_then(|seed| Self::from_seed(&seed).ok())
            .ok_or(AuthoritiesError::Stored(ca_type))
    }

    fn record(&self) -> GenerationRecord {
        GenerationRecord { policy_seed: Some(hex(self.seed().expose_secret())), ..Default::default() }
    }

    fn public(&self) -> CaKeys {
        CaKeys { signing_public_key_pem: Some(self.public_key_pem()), ..CaKeys::default() }
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).ok()
}
