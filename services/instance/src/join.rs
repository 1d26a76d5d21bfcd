//! Opening an identity, or joining for one.

use crate::error::{InstanceError, role_list, with_sources};
use crate::join_token::JoinToken;
use crate::stored::{FILE, StoredCertificate, StoredIdentity, VERSION};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tonic::{Response, Status};
use wayleave_api::auth::host_client::HostClient;
use wayleave_api::auth::public_client::PublicClient;
use wayleave_api::auth::{JoinRequest, JoinResponse, PingRequest, PolicySnapshot, PublicKeys, RenewRequest};
use wayleave_api::{ALPN_AUTH, auth};
use wayleave_ca::{CLOCK_SKEW, CaType, SignerFor, Snapshot, is_issued_by_signer};
use wayleave_keystore::{
    Credentials, IdentityDir, Pins, TlsKey, TrustStore, certificate_begins, client_config,
    pinned_client_config, public_client_config,
};
use wayleave_net::{AddressBook, ClockComplaint};
use wayleave_rpc::{CALL_TIMEOUT, Channel, PublicPinsError, channel_through, public_pins};
use wayleave_runtime::{Clock, random_bytes};
use wayleave_ssh::{Certificate, Credential, KeyPair};
use wayleave_vocab::{ClusterName, HostId, NodeName, Secret, SystemRole, Wall};

/// The certificate that every process holds beside those of its roles.
const INSTANCE: &str = "Instance";
/// Host certificates live this long when the answer does not say otherwise.
const VALIDITY_UNKNOWN_SECS: u64 = 3600;
/// Longest answer: certificates, and a policy of 64 MiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024 + 256 * 1024;

/// What a process needs to get its identity.
pub struct InstanceConfig {
    /// Directory of the process's state.
    pub data_dir: PathBuf,
    /// The name in host certificates.
    pub node_name: NodeName,
    /// The roles that the configuration enables.
    pub roles: BTreeSet<SystemRole>,
    /// Token, if one is configured.
    pub token: Option<JoinToken>,
    /// Pins of the host authority, if configured.
    pub pins: Pins,
    /// Where the cluster is reached: Auth itself, or proxies that pass the connection through.
    pub addresses: AddressBook,
    /// Further names for the host certificates.
    pub additional_principals: Vec<String>,
}

/// The identity of this process.
pub struct Instance {
    host_id: HostId,
    cluster: ClusterName,
    trust: TrustStore,
    own: Credentials,
    roles: BTreeMap<SystemRole, RoleIdentity>,
    policy_keys: Vec<String>,
    joined_with: Mutex<Option<PolicySnapshot>>,
    directory: IdentityDir,
    stored: Mutex<StoredIdentity>,
    channel: Channel,
    additional_principals: Vec<String>,
}

/// What a service of one role presents.
#[derive(Clone)]
pub struct RoleIdentity {
    /// For TLS.
    pub tls: Credentials,
    /// For SSH: the host key with its certificate, now and later.
    pub ssh: watch::Sender<Option<Credential>>,
}

impl Instance {
    /// Reads the identity from the data directory; joins, or joins again for a role that it lacks.
    ///
    /// # Errors
    /// See [`InstanceError`]; each says what to do.
    pub async fn open(config: InstanceConfig, clock: &dyn Clock) -> Result<Self, InstanceError> {
        let directory =
            IdentityDir::open(&config.data_dir.join("identity")).map_err(InstanceError::Directory)?;
        let stored: Option<StoredIdentity> = directory.read(FILE).map_err(InstanceError::Directory)?;
        let Some(stored) = stored else {
            let (stored, snapshot) = join(&config, clock).await?;
            directory.write(FILE, &stored).map_err(InstanceError::Directory)?;
            tracing::info!(host_id = %stored.host_id, cluster = %stored.cluster_name, "joined the cluster");
            return Self::from_stored(stored, snapshot, directory, &config);
        };
        if stored.version != VERSION {
            return Err(InstanceError::Damaged(format!("version {} of the identity", stored.version)));
        }
        let instance = Self::from_stored(stored, None, directory, &config)?;
        let missing: BTreeSet<SystemRole> =
            config.roles.iter().copied().filter(|role| !instance.roles.contains_key(role)).collect();
        if missing.is_empty() {
            return Ok(instance);
        }
        let Some(token) = &config.token else {
            return Err(InstanceError::RoleMissing { missing: role_list(&missing) });
        };
        let (stored, snapshot) = instance.extend(token, &config, &missing, clock).await?;
        instance.directory.write(FILE, &stored).map_err(InstanceError::Directory)?;
        tracing::info!(host_id = %stored.host_id, roles = %role_list(&missing), "joined again with more roles");
        Self::from_stored(stored, snapshot, instance.directory, &config)
    }

    /// The id that Auth assigned.
    pub fn host_id(&self) -> HostId {
        self.host_id
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Whom it believes. Follows the policy once the services run.
    pub fn trust(&self) -> &TrustStore {
        &self.trust
    }

    /// What a role presents; `None` when the process does not hold it.
    pub fn role(&self, role: SystemRole) -> Option<&RoleIdentity> {
        self.roles.get(&role)
    }

    /// The keys that signed policy when this process joined, SPKI in PEM.
    pub fn policy_keys(&self) -> &[String] {
        &self.policy_keys
    }

    /// The directory of the identity.
    pub fn directory(&self) -> &IdentityDir {
        &self.directory
    }

    /// The policy that came with joining, once.
    pub fn take_joined_snapshot(&self) -> Option<PolicySnapshot> {
        self.joined_with.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A channel to Auth that presents the instance certificate.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A channel to Auth that presents the certificate of one role.
    ///
    /// # Errors
    /// When TLS cannot be set up or the process does not hold the role.
    pub fn channel_as(&self, role: SystemRole, addresses: &AddressBook) -> Result<Channel, InstanceError> {
        let identity = self
            .role(role)
            .ok_or_else(|| InstanceError::RoleMissing { missing: role.as_str().to_lowercase() })?;
        let tls = client_config(&identity.tls, &self.trust, SystemRole::Auth, None, &[ALPN_AUTH])
            .map_err(InstanceError::Tls)?;
        let outer = public_client_config(Some(&self.trust)).map_err(InstanceError::Tls)?;
        Ok(channel_through(addresses.clone(), tls, outer))
    }

    /// When the certificates were issued and until when they hold.
    pub fn validity(&self) -> (Wall, Wall) {
        let stored = self.lock_stored();
        (stored.issued, stored.not_after)
    }

    /// The host authority has other keys by now than those that issued the certificates here.
    pub(crate) fn is_issued_by_others(&self, policy: &Snapshot) -> bool {
        let authorities = &policy.parts().cas;
        let Some(host) = authorities.iter().find(|ca| ca.spec.ca_type == CaType::Host) else { return false };
        let stored = self.lock_stored();
        let mut chains = stored.certificates.iter().map(|certificate| &certificate.tls_chain_pem);
        chains.any(|chain| !is_issued_by_signer(chain, &host.spec, SignerFor::Servers))
    }

    /// New certificates for the same roles; the services present them from the next handshake.
    pub(crate) async fn renew(&self, now: Wall) -> Result<(), InstanceError> {
        let roles: BTreeSet<SystemRole> = self.roles.keys().copied().collect();
        let keys = NewKeys::generate(&roles)?;
        let request = RenewRequest {
            system_roles: roles.iter().map(ToString::to_string).collect(),
            keys: keys.public(),
            additional_principals: self.additional_principals.clone(),
        };
        let mut auth = HostClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let answer = answered(auth.renew(request)).await?;
        let (stored, _) = keys.with_answer(answer, now)?;
        check_begun(&stored, now)?;
        self.directory.write(FILE, &stored).map_err(InstanceError::Directory)?;
        self.present(&stored)?;
        *self.lock_stored() = stored;
        Ok(())
    }

    async fn extend(
        &self,
        token: &JoinToken,
        config: &InstanceConfig,
        missing: &BTreeSet<SystemRole>,
        clock: &dyn Clock,
    ) -> Result<(StoredIdentity, Option<PolicySnapshot>), InstanceError> {
        check_clock(&self.channel, clock).await?;
        let all: BTreeSet<SystemRole> = self.roles.keys().copied().chain(missing.iter().copied()).collect();
        let keys = NewKeys::generate(&all)?;
        let request = join_request(config, token, &all, &keys);
        let mut auth = HostClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let answer = answered(auth.extend_roles(request)).await?;
        let now = clock.wall();
        let (stored, snapshot) = keys.with_answer(answer, now)?;
        check_begun(&stored, now)?;
        Ok((stored, snapshot))
    }

    fn from_stored(
        stored: StoredIdentity,
        joined_with: Option<PolicySnapshot>,
        directory: IdentityDir,
        config: &InstanceConfig,
    ) -> Result<Self, InstanceError> {
        let trust = TrustStore::empty();
        trust.replace(&stored.cluster_name, &stored.host_ca_pem, "");
        let own = Credentials::empty();
        let tls =
            client_config(&own, &trust, SystemRole::Auth, None, &[ALPN_AUTH]).map_err(InstanceError::Tls)?;
        let outer = public_client_config(Some(&trust)).map_err(InstanceError::Tls)?;
        let mut roles = BTreeMap::new();
        for certificate in stored.certificates.iter().filter(|c| c.role != INSTANCE) {
            let role = certificate
                .role
                .parse()
                .map_err(|_| InstanceError::Damaged(format!("the role {:?}", certificate.role)))?;
            roles.insert(role, RoleIdentity { tls: Credentials::empty(), ssh: watch::Sender::new(None) });
        }
        let instance = Self {
            host_id: stored.host_id,
            cluster: stored.cluster_name.clone(),
            trust,
            own,
            roles,
            policy_keys: stored.policy_keys_pem.clone(),
            joined_with: Mutex::new(joined_with),
            directory,
            channel: channel_through(config.addresses.clone(), tls, outer),
            additional_principals: config.additional_principals.clone(),
            stored: Mutex::new(stored.clone()),
        };
        instance.present(&stored)?;
        Ok(instance)
    }

    /// Hands certificates to everything that presents them.
    fn present(&self, stored: &StoredIdentity) -> Result<(), InstanceError> {
        for certificate in &stored.certificates {
            let key = Secret::new(certificate.tls_key_pem.clone());
            let credentials = if certificate.role == INSTANCE {
                &self.own
            } else {
                let Some(identity) = certificate.role.parse().ok().and_then(|r| self.roles.get(&r)) else {
                    continue;
                };
                identity.ssh.send_replace(Some(ssh_identity(certificate)?));
                &identity.tls
            };
            credentials.replace(&certificate.tls_chain_pem, &key).map_err(InstanceError::Credentials)?;
        }
        Ok(())
    }

    fn lock_stored(&self) -> MutexGuard<'_, StoredIdentity> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn join(
    config: &InstanceConfig,
    clock: &dyn Clock,
) -> Result<(StoredIdentity, Option<PolicySnapshot>), InstanceError> {
    let Some(token) = &config.token else {
        return Err(InstanceError::NoToken { wanted: role_list(&config.roles) });
    };
    let pins =
        if config.pins.is_empty() { learned_pins(&config.addresses).await? } else { config.pins.clone() };
    let tls = pinned_client_config(&pins, SystemRole::Auth, &[ALPN_AUTH]).map_err(InstanceError::Tls)?;
    let outer = public_client_config(None).map_err(InstanceError::Tls)?;
    let keys = NewKeys::generate(&config.roles)?;
    let request = join_request(config, token, &config.roles, &keys);
    let channel = channel_through(config.addresses.clone(), tls, outer);
    check_clock(&channel, clock).await?;
    let mut auth = PublicClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let answer = answered(auth.join(request)).await?;
    let now = clock.wall();
    let (stored, snapshot) = keys.with_answer(answer, now)?;
    check_begun(&stored, now)?;
    Ok((stored, snapshot))
}

/// Asks for nothing while it would not be valid here: a process that joined so would be let in nowhere until the time has
/// come that a wrong clock showed.
async fn check_clock(channel: &Channel, clock: &dyn Clock) -> Result<(), InstanceError> {
    let pong = match answered(PublicClient::new(channel.clone()).ping(PingRequest {})).await {
        Ok(pong) => pong,
        // What is asked for next is judged by itself.
        Err(InstanceError::Refused(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    let by = Wall::from_ms(pong.now_ms).since(clock.wall());
    if by > CLOCK_SKEW {
        return Err(InstanceError::Clock(ClockComplaint::AuthAhead { by }));
    }
    Ok(())
}

/// Refuses what is not valid yet. Nobody would take it, and Auth neither once its clock is right.
fn check_begun(issued: &StoredIdentity, now: Wall) -> Result<(), InstanceError> {
    match begins(issued) {
        Some(begins) if begins <= now => Ok(()),
        Some(_) | None => Err(InstanceError::Clock(ClockComplaint::IssuedAhead)),
    }
}

/// The answer of Auth, which has a deadline.
async fn answered<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, InstanceError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(InstanceError::from_status(&status)),
        Err(_) => {
            Err(InstanceError::Unreachable(format!("it did not answer within {} s", CALL_TIMEOUT.as_secs())))
        }
    }
}

/// What the first proxy says that a public authority vouches for.
async fn learned_pins(addresses: &AddressBook) -> Result<Pins, InstanceError> {
    let mut unreachable = None;
    for address in &addresses.in_order() {
        match public_pins(address).await {
            Ok(pins) => {
                tracing::info!(%address, "a public authority vouches for the proxy: its CA pins are believed");
                return Ok(pins);
            }
            Err(error @ (PublicPinsError::Unreachable(_) | PublicPinsError::TimedOut { .. })) => {
                unreachable = Some(error);
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(%address, error, "it cannot tell what to trust");
            }
        }
    }
    match unreachable {
        Some(error) => Err(InstanceError::Unreachable(with_sources(&error))),
        None => Err(InstanceError::NothingToTrust),
    }
}

fn join_request(
    config: &InstanceConfig,
    token: &JoinToken,
    roles: &BTreeSet<SystemRole>,
    keys: &NewKeys,
) -> JoinRequest {
    JoinRequest {
        token_name: token.name().to_owned(),
        token_secret: token.secret().expose_secret().to_owned(),
        system_roles: roles.iter().map(ToString::to_string).collect(),
        hostname: config.node_name.to_string(),
        keys: keys.public(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        additional_principals: config.additional_principals.clone(),
    }
}

/// Fresh keys: one pair for the instance, one for each role, in order.
struct NewKeys(Vec<(String, TlsKey, KeyPair)>);

impl NewKeys {
    fn generate(roles: &BTreeSet<SystemRole>) -> Result<Self, InstanceError> {
        std::iter::once(INSTANCE.to_owned())
            .chain(roles.iter().map(ToString::to_string))
            .map(|name| {
                let tls = TlsKey::generate().map_err(InstanceError::Credentials)?;
                Ok((name, tls, KeyPair::from_seed(&random_bytes())))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn public(&self) -> Vec<PublicKeys> {
        let one = |(_, tls, ssh): &(String, TlsKey, KeyPair)| PublicKeys {
            tls_spki_der: tls.spki_der(),
            ssh_public_key: ssh.public_key().to_openssh(),
        };
        self.0.iter().map(one).collect()
    }

    /// Joins the private keys and the certificates that came for them.
    fn with_answer(
        self,
        answer: JoinResponse,
        now: Wall,
    ) -> Result<(StoredIdentity, Option<PolicySnapshot>), InstanceError> {
        let bad = |what: &str| InstanceError::BadAnswer(what.to_owned());
        let trust = answer.trust.ok_or_else(|| bad("it has no trust bundle"))?;
        let mut certificates = Vec::new();
        let mut not_after = now.after(std::time::Duration::from_secs(VALIDITY_UNKNOWN_SECS));
        for (name, tls, ssh) in self.0 {
            let issued: &auth::HostCertificate = answer
                .certificates
                .iter()
                .find(|c| c.role == name)
                .ok_or_else(|| bad("a certificate is missing"))?;
            let tls_key_pem = tls.to_pem();
            let credentials = Credentials::from_pem(&issued.tls_chain_pem, &tls_key_pem)
                .map_err(InstanceError::Credentials)?;
            let leaf = credentials.leaf().ok_or_else(|| bad("a certificate is missing"))?;
            let principal = wayleave_keystore::principal_from_certificate(&leaf)
                .map_err(|e| InstanceError::BadAnswer(e.to_string()))?;
            not_after =
                if name == INSTANCE { principal.not_after() } else { not_after.min(principal.not_after()) };
            certificates.push(StoredCertificate {
                role: name,
                tls_key_pem: tls_key_pem.expose_secret().to_owned(),
                tls_chain_pem: issued.tls_chain_pem.clone(),
                ssh_key_openssh: ssh.to_openssh("wayleave").to_string(),
                ssh_certificate: issued.ssh_certificate.clone(),
            });
        }
        let stored = StoredIdentity {
            version: VERSION,
            host_id: answer.host_id.parse().map_err(|_| bad("the host id is no UUID"))?,
            cluster_name: answer.cluster_name.parse().map_err(|_| bad("the cluster name is none"))?,
            certificates,
            host_ca_pem: trust.host_ca_pem,
            policy_keys_pem: trust.policy_keys_pem,
            issued: now,
            not_after,
        };
        Ok((stored, trust.snapshot))
    }
}

/// From when the certificates hold.
fn begins(stored: &StoredIdentity) -> Option<Wall> {
    let first = stored.certificates.first()?;
    let key = Secret::new(first.tls_key_pem.clone());
    certificate_begins(&Credentials::from_pem(&first.tls_chain_pem, &key).ok()?.leaf()?)
}

fn ssh_identity(stored: &StoredCertificate) -> Result<Credential, InstanceError> {
    let damaged = |what: &str| InstanceError::Damaged(format!("the SSH {what} of the role {}", stored.role));
    let key = KeyPair::from_openssh(&stored.ssh_key_openssh).map_err(|_| damaged("host key"))?;
    let certificate =
        Certificate::from_openssh(&stored.ssh_certificate).map_err(|_| damaged("host certificate"))?;
    Credential::certified(Arc::new(key), certificate).ok_or_else(|| damaged("host certificate"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wayleave_keystore::{ClientAuth, X509Authority, X509Request, server_config};
    use wayleave_runtime::{SystemClock, TaskGroup};
    use wayleave_vocab::HostPort;

    /// A server whose certificate no public authority vouches for.
    async fn private_server(tasks: &TaskGroup) -> HostPort {
        let now = SystemClock::new().wall();
        let authority = X509Authority::generate("host", [1; 16], now).unwrap();
        let key = TlsKey::generate().unwrap();
        let principal = wayleave_identity::Principal::Host(wayleave_identity::HostPrincipal {
            host_id: HostId::from_random([1; 16]),
            cluster: ClusterName::parse("demo").unwrap(),
            system_roles: [SystemRole::Proxy].into(),
            not_after: now.after(std::time::Duration::from_secs(60)),
        });
        let pem = authority.issue(&X509Request {
            principal: &principal,
            common_name: "proxy",
            spki_der: &key.spki_der(),
            dns_names: &[],
            ip_addresses: &[std::net::IpAddr::from([127, 0, 0, 1])],
            not_before: now,
            not_after: now.after(std::time::Duration::from_secs(60)),
            server: true,
            client: false,
            serial: [2; 16],
        });
        let credentials = Credentials::from_pem(&pem.unwrap(), &key.to_pem()).unwrap();
        let tls =
            server_config(&credentials, &TrustStore::empty(), ClientAuth::None, &[b"http/1.1"]).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = HostPort::from_socket(listener.local_addr().unwrap());
        tasks.spawn("server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = tokio_rustls::TlsAcceptor::from(tls.clone()).accept(stream).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn d_a_process_without_a_pin_trusts_nothing_blindly() {
        let tasks = TaskGroup::new();
        let private = private_server(&tasks).await;
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = HostPort::from_socket(free.local_addr().unwrap());
        drop(free);
        let learned = learned_pins(&AddressBook::new(vec![private.clone()])).await;
        assert!(matches!(learned, Err(InstanceError::NothingToTrust)), "{learned:?}");
        let learned = learned_pins(&AddressBook::new(vec![closed, private])).await;
        assert!(matches!(learned, Err(InstanceError::Unreachable(_))), "{learned:?}");
    }
}
