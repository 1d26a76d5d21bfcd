//! Certificates for simulated agents and users, from the authorities of the cluster that is measured.

use anyhow::{Context, Result};
use rustls::ClientConfig;
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wayleave_api::{ALPN_DIAL, ALPN_TUNNEL};
use wayleave_identity::{HostPrincipal, Principal, UserPrincipal};
use wayleave_keystore::{Credentials, TlsKey, TrustStore, X509Authority, X509Request, client_config};
use wayleave_runtime::{Clock, SystemClock, random_bytes};
use wayleave_vocab::{ClusterName, HostId, NodeName, Secret, SystemRole, Traits, UserName};

/// Certificates live longer than any measurement.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// What `wayleave-bench` takes from the backend of its cluster.
#[derive(Deserialize)]
struct File {
    cluster: String,
    host_certificate_pem: String,
    host_key_pem: String,
    user_certificate_pem: String,
    user_key_pem: String,
}

/// Issues certificates. One key serves all of them: keys cost nothing but time here.
pub(crate) struct Authority {
    cluster: ClusterName,
    certificates: [String; 2],
    host: X509Authority,
    user: X509Authority,
    key: TlsKey,
    clock: SystemClock,
}

impl Authority {
    /// # Errors
    /// When the file is missing or no such file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        let file: File = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        let cluster = ClusterName::parse(&file.cluster)?;
        Ok(Self {
            cluster,
            certificates: [file.host_certificate_pem.clone(), file.user_certificate_pem.clone()],
            host: X509Authority::from_pem(&file.host_certificate_pem, &Secret::new(file.host_key_pem))?,
            user: X509Authority::from_pem(&file.user_certificate_pem, &Secret::new(file.user_key_pem))?,
            key: TlsKey::generate()?,
            clock: SystemClock::new(),
        })
    }

    /// TLS of a tunnel of one agent.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub(crate) fn tunnel_tls(&self, host_id: HostId) -> Result<Arc<ClientConfig>> {
        let principal = Principal::Host(HostPrincipal {
            host_id,
            cluster: self.cluster.clone(),
            system_roles: [SystemRole::Node].into(),
            not_after: self.clock.wall().after(VALIDITY),
        });
        self.tls(&self.host, &principal, ALPN_TUNNEL)
    }

    /// TLS of a user's dials.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub(crate) fn dial_tls(&self) -> Result<Arc<ClientConfig>> {
        let principal = Principal::User(UserPrincipal {
            name: UserName::parse("load")?,
            cluster: self.cluster.clone(),
            roles: [].into(),
            logins: [].into(),
            traits: Traits::new(),
            local_admin: false,
            not_after: self.clock.wall().after(VALIDITY),
        });
        self.tls(&self.user, &principal, ALPN_DIAL)
    }

    fn tls(
        &self,
        authority: &X509Authority,
        principal: &Principal,
        alpn: &[u8],
    ) -> Result<Arc<ClientConfig>> {
        let now = self.clock.wall();
        let pem = authority.issue(&X509Request {
            principal,
            common_name: "load",
            spki_der: &self.key.spki_der(),
            dns_names: &[],
            ip_addresses: &[],
            not_before: now.before(CLOCK_SKEW),
            not_after: now.after(VALIDITY),
            server: false,
            client: true,
            serial: random_bytes(),
        })?;
        let credentials = Credentials::from_pem(&pem, &self.key.to_pem())?;
        // Each one's own, as each agent and each user has it: what one has verified is not verified for another.
        let trust = TrustStore::empty();
        let [host, user] = &self.certificates;
        trust.replace(&self.cluster, host, user);
        Ok(client_config(&credentials, &trust, SystemRole::Proxy, None, &[alpn])?)
    }
}

/// The id of a simulated agent.
pub(crate) fn agent_id(number: u64) -> HostId {
    let mut bytes = [0x10; 16];
    let (_, tail) = bytes.split_at_mut(8);
    tail.copy_from_slice(&number.to_be_bytes());
    HostId::from_random(bytes)
}

/// The name of a simulated agent.
///
/// # Errors
/// Never for what [`agent_id`] takes.
pub(crate) fn agent_name(number: u64) -> Result<NodeName> {
    Ok(NodeName::parse(format!("load-{number}"))?)
}
