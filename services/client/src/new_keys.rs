//! Fresh keys for a login: made here, certified by Auth, never sent anywhere.

use crate::failure::Failure;
use crate::identity_file::{Identity, IdentityParts};
use std::collections::BTreeSet;
use wayleave_api::auth::{PublicKeys, UserCertificates};
use wayleave_keystore::TlsKey;
use wayleave_runtime::random_bytes;
use wayleave_ssh::KeyPair;
use wayleave_vocab::{ClusterName, HostPort, Secret};

/// Most proxies that an identity names.
const PROXIES_MAX: usize = 64;

/// A TLS key and an SSH key that nobody has certified yet.
pub(crate) struct NewKeys {
    tls: TlsKey,
    ssh: KeyPair,
}

impl NewKeys {
    /// Draws both.
    pub(crate) fn generate() -> Result<Self, Failure> {
        let tls = TlsKey::generate().map_err(Failure::doing("cannot make a key"))?;
        Ok(Self { tls, ssh: KeyPair::from_seed(&random_bytes()) })
    }

    /// What Auth is asked to certify.
    pub(crate) fn public(&self) -> PublicKeys {
        PublicKeys { tls_spki_der: self.tls.spki_der(), ssh_public_key: self.ssh.public_key().to_openssh() }
    }

    /// The keys with what Auth made of them. An answer about other keys is refused. The cluster's proxies that Auth names
    /// come behind `proxies`.
    pub(crate) fn certified(
        self,
        answer: UserCertificates,
        proxies: Vec<HostPort>,
    ) -> Result<Identity, Failure> {
        let cluster = ClusterName::parse(answer.cluster_name)
            .map_err(Failure::doing("the Auth Service answered with a bad cluster name"))?;
        let others = answer.proxy_addresses.iter().filter_map(|text| HostPort::parse(text, None).ok());
        let mut seen = BTreeSet::new();
        let all = proxies.into_iter().chain(others).filter(|address| seen.insert(address.clone()));
        let parts = IdentityParts {
            cluster,
            proxies: all.take(PROXIES_MAX).collect(),
            auth_servers: Vec::new(),
            tls_key_pem: self.tls.to_pem(),
            tls_chain_pem: answer.tls_chain_pem,
            ssh_key_openssh: Secret::new(self.ssh.to_openssh(&answer.user).to_string()),
            ssh_certificate: answer.ssh_certificate,
            host_ca_pem: answer.host_ca_pem,
            host_ca_ssh: answer.host_ca_ssh,
        };
        Identity::new(parts).map_err(Failure::doing("the Auth Service's certificates cannot be used"))
    }
}
