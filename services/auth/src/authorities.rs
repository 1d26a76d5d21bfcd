//! The certificate authorities with their private keys: how they are kept, and what they sign.
//!
//! Who may be issued what is decided by the callers (`join.rs`, `user_certificates.rs`); here is only the form. A
//! certificate is never issued for a key that is itself a certificate, nor for another type of key than ours.

use crate::authority_keys::{Authority, CertificateKeys, Generation, SshKeys};
use crate::authority_rotation::read_successions;
use crate::keys;
use crate::records::Records;
use crate::request_error::RequestError;
use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wayleave_api::auth::PublicKeys;
use wayleave_ca::{SignerFor, SshCertTemplate, SshCertType};
use wayleave_identity::{HostPrincipal, Principal, SSH_EXTENSION, UserPrincipal};
use wayleave_keystore::{AuthorityError, PolicySigner, X509Request, pin_of_certificate};
use wayleave_resource::{CaType, CertAuthoritySpec};
use wayleave_runtime::random_bytes;
use wayleave_ssh::{CertType, Certificate, CertificateTemplate, KeyPair, Options, PublicKey};
use wayleave_store::{Operation, StoreError};
use wayleave_vocab::{ClusterName, Wall};

/// How far the start of validity lies back, for clocks that are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// Longest SubjectPublicKeyInfo that is looked at.
const SPKI_BYTES_MAX: usize = 512;
/// Longest line of an SSH public key that is looked at.
const SSH_KEY_BYTES_MAX: usize = 1024;
/// The principal of a user without logins: no account can have this name.
const NO_LOGIN: &str = "-wayleave-no-login";

/// All authorities, ready to sign. They change while the service runs, when one of them rotates.
pub(crate) struct Authorities {
    cluster: ClusterName,
    held: ArcSwap<Held>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

/// The authorities as they stand.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) user: Authority<CertificateKeys>,
    pub(crate) host: Authority<CertificateKeys>,
    pub(crate) policy: Authority<PolicySigner>,
    /// Signs SSH certificates only.
    pub(crate) openssh: Authority<SshKeys>,
    /// How the keys of the policy authority followed each other.
    pub(crate) successions: Successions,
}

/// Successions of the policy key, oldest first: the bytes of each, and the signature of the key that went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Successions(pub(crate) Vec<(Vec<u8>, Vec<u8>)>);

impl Held {
    /// The public part of an authority, if this build has it.
    pub(crate) fn spec(&self, ca_type: CaType) -> Option<&CertAuthoritySpec> {
        match ca_type {
            CaType::User => Some(self.user.spec()),
            CaType::Host => Some(self.host.spec()),
            CaType::Policy => Some(self.policy.spec()),
            CaType::Openssh => Some(self.openssh.spec()),
            CaType::DbServer | CaType::DbClient | CaType::Jwt => None,
        }
    }
}

/// An authority that cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AuthoritiesError {
    /// X.509 failed.
    #[error("the {ca_type} certificate authority cannot be used")]
    X509 {
        /// Which.
        ca_type: CaType,
        /// Why.
        #[source]
        source: AuthorityError,
    },
    /// The stored keys are damaged or missing.
    #[error(
        "the stored keys of the {0} certificate authority are damaged: restore the backend from a backup"
    )]
    Stored(CaType),
}

/// Authorities that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("the authorities cannot be read")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    #[error("the succession of policy keys cannot be read: {0}")]
    Successions(String),
}

impl From<RequestError> for LoadError {
    fn from(error: RequestError) -> Self {
        Self::Successions(error.to_string())
    }
}

/// Both certificates of one key pair.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    /// Leaf, then the authority, PEM.
    pub(crate) tls_chain_pem: String,
    /// One line.
    pub(crate) ssh_certificate: String,
}

/// The two public keys that certificates are asked for.
#[derive(Debug, Clone)]
pub(crate) struct SubjectKeys {
    tls_spki_der: Vec<u8>,
    ssh: PublicKey,
}

impl SubjectKeys {
    /// Reads keys as they come in a request: Ed25519 for SSH; the TLS key is checked when it is certified.
    pub(crate) fn parse(keys: Option<&PublicKeys>) -> Result<Self, RequestError> {
        let invalid = |what: &str| RequestError::Invalid(what.to_owned());
        let keys = keys.ok_or_else(|| invalid("the request has no public keys"))?;
        if keys.tls_spki_der.is_empty() || keys.tls_spki_der.len() > SPKI_BYTES_MAX {
            return Err(invalid("the TLS public key is missing or too long"));
        }
        if keys.ssh_public_key.len() > SSH_KEY_BYTES_MAX {
            return Err(invalid("the SSH public key is too long"));
        }
        let ssh = PublicKey::from_openssh(&keys.ssh_public_key)
            .map_err(|_| invalid("the SSH public key is not an OpenSSH public key"))?;
        if !matches!(ssh, PublicKey::Ed25519(_)) {
            return Err(invalid("the SSH public key must be an Ed25519 key"));
        }
        Ok(Self { tls_spki_der: keys.tls_spki_der.clone(), ssh })
    }
}

/// What an SSH user certificate permits where a stock sshd decides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SshPermits {
    pub(crate) port_forwarding: bool,
    pub(crate) agent_forwarding: bool,
    pub(crate) x11_forwarding: bool,
}

impl Authorities {
    fn new(cluster: &ClusterName, held: Held) -> Self {
        Self { cluster: cluster.clone(), held: ArcSwap::from_pointee(held), changes: watch::Sender::new(0) }
    }

    /// New authorities, and the operations that store them: private keys in their own family, public parts as resources.
    pub(crate) fn generate(
        cluster: &ClusterName,
        now: Wall,
    ) -> Result<(Self, Vec<Operation>), AuthoritiesError> {
        let held = Held {
            user: Authority::generate(CaType::User, cluster, now)?,
            host: Authority::generate(CaType::Host, cluster, now)?,
            policy: Authority::generate(CaType::Policy, cluster, now)?,
            openssh: Authority::generate(CaType::Openssh, cluster, now)?,
            successions: Successions::default(),
        };
        let operations = [
            held.user.operations(),
            held.host.operations(),
            held.policy.operations(),
            held.openssh.operations(),
        ]
        .concat();
        Ok((Self::new(cluster, held), operations))
    }

    /// Reads what is stored.
    pub(crate) async fn load(records: &Records, cluster: &ClusterName) -> Result<Self, LoadError> {
        let held = Held {
            user: stored(records, CaType::User, cluster).await?,
            host: stored(records, CaType::Host, cluster).await?,
            policy: stored(records, CaType::Policy, cluster).await?,
            openssh: stored(records, CaType::Openssh, cluster).await?,
            successions: read_successions(records).await?,
        };
        Ok(Self::new(cluster, held))
    }

    /// Takes over authorities that have changed in the backend: here, or in another Auth Service. `public` are their
    /// public parts as they are known.
    pub(crate) async fn follow(
        &self,
        records: &Records,
        public: Vec<CertAuthoritySpec>,
    ) -> Result<(), LoadError> {
        let mut held = Held::clone(&self.held.load());
        let mut changed = false;
        for spec in public {
            if held.spec(spec.ca_type).is_none_or(|known| *known == spec) {
                continue;
            }
            changed = true;
            match spec.ca_type {
                CaType::User => held.user = stored(records, CaType::User, &self.cluster).await?,
                CaType::Host => held.host = stored(records, CaType::Host, &self.cluster).await?,
                CaType::Policy => {
                    held.policy = stored(records, CaType::Policy, &self.cluster).await?;
                    held.successions = read_successions(records).await?;
                }
                CaType::Openssh => {
                    held.openssh = stored(records, CaType::Openssh, &self.cluster).await?;
                }
                CaType::DbServer | CaType::DbClient | CaType::Jwt => {}
            }
        }
        if changed {
            self.held.store(Arc::new(held));
            self.changes.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// The authorities as they stand.
    pub(crate) fn held(&self) -> Arc<Held> {
        self.held.load_full()
    }

    /// Woken when an authority has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The name in every certificate.
    pub(crate) fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Host CA certificates that are trusted, PEM.
    pub(crate) fn host_ca_pem(&self) -> String {
        self.held().host.generations().map(|keys| keys.x509.certificate_pem()).collect()
    }

    /// User CA certificates that are trusted, PEM.
    pub(crate) fn user_ca_pem(&self) -> String {
        self.held().user.generations().map(|keys| keys.x509.certificate_pem()).collect()
    }

    /// Host CA keys for known_hosts, without marker or pattern.
    pub(crate) fn host_ca_ssh(&self) -> Vec<String> {
        self.held().host.generations().map(|keys| keys.ssh.public_key().to_openssh()).collect()
    }

    /// SSH keys that users' certificates are verified with.
    pub(crate) fn user_ca_keys(&self) -> Vec<PublicKey> {
        self.held().user.generations().map(|keys| keys.ssh.public_key()).collect()
    }

    /// SSH keys that processes' certificates are verified with.
    pub(crate) fn host_ca_keys(&self) -> Vec<PublicKey> {
        self.held().host.generations().map(|keys| keys.ssh.public_key()).collect()
    }

    /// Keys for `TrustedUserCAKeys` of machines that are entered by a proxy.
    pub(crate) fn openssh_ca_ssh(&self) -> Vec<String> {
        self.held().openssh.generations().map(|keys| keys.0.public_key().to_openssh()).collect()
    }

    /// Authenticates what Auth itself gave out a moment ago. Every instance of Auth can check it.
    pub(crate) fn mac(&self, purpose: &str, message: &[u8]) -> Vec<u8> {
        let held = self.held();
        let key = hmac::Key::new(hmac::HMAC_SHA256, held.openssh.signer(SignerFor::Clients).0.expose_seed());
        let mut context = hmac::Context::with_key(&key);
        context.update(purpose.as_bytes());
        context.update(&[0]);
        context.update(message);
        context.sign().as_ref().to_vec()
    }

    /// A certificate of a user with which a proxy enters a machine.
    pub(crate) fn sign_openssh(
        &self,
        template: SshCertTemplate,
        key: PublicKey,
    ) -> Result<Certificate, RequestError> {
        sign(&self.held().openssh.signer(SignerFor::Clients).0, template, key)
    }

    /// An SSH certificate of the host authority.
    pub(crate) fn sign_by_host_ca(
        &self,
        template: SshCertTemplate,
        key: PublicKey,
    ) -> Result<Certificate, RequestError> {
        sign(&self.held().host.signer(SignerFor::Servers).ssh, template, key)
    }

    /// What a joining process is given as `ca_pin`: one for each host CA key that is trusted.
    pub(crate) fn pins(&self) -> Vec<String> {
        let held = self.held();
        held.host.generations().filter_map(|keys| pin_of_certificate(keys.x509.certificate_der())).collect()
    }

    /// The pin of the host CA key that signs now.
    pub(crate) fn host_signer_pin(&self) -> String {
        let held = self.held();
        pin_of_certificate(held.host.signer(SignerFor::Servers).x509.certificate_der()).unwrap_or_default()
    }

    /// Signs with the policy authority.
    pub(crate) fn sign_policy(&self, message: &[u8]) -> Vec<u8> {
        self.held().policy.signer(SignerFor::Servers).sign(message)
    }

    /// The keys by which policy may be signed, SubjectPublicKeyInfo in PEM.
    pub(crate) fn policy_keys(&self) -> Vec<String> {
        self.held().policy.generations().map(PolicySigner::public_key_pem).collect()
    }

    /// Certificates for a user.
    pub(crate) fn issue_user(
        &self,
        user: &UserPrincipal,
        keys: &SubjectKeys,
        permits: SshPermits,
        now: Wall,
    ) -> Result<Issued, RequestError> {
        let principal = Principal::User(user.clone());
        let x509 = X509Request {
            principal: &principal,
            common_name: user.name.as_str(),
            spki_der: &keys.tls_spki_der,
            dns_names: &[],
            ip_addresses: &[],
            not_before: now.before(CLOCK_SKEW),
            not_after: user.not_after,
            server: false,
            client: true,
            serial: random_bytes(),
        };
        let mut principals: Vec<String> = user.logins.iter().map(ToString::to_string).collect();
        if principals.is_empty() {
            principals.push(NO_LOGIN.to_owned());
        }
        let mut extensions = identity_extension(&principal);
        let allowed = [
            ("permit-pty", true),
            ("permit-port-forwarding", permits.port_forwarding),
            ("permit-agent-forwarding", permits.agent_forwarding),
            ("permit-X11-forwarding", permits.x11_forwarding),
        ];
        for (name, _) in allowed.into_iter().filter(|(_, yes)| *yes) {
            extensions.insert(name.to_owned(), String::new());
        }
        let ssh = SshRequest { kind: CertType::User, key_id: user.name.as_str(), principals, extensions };
        self.held().user.signer(SignerFor::Clients).issue(&x509, ssh, keys)
    }

    /// Certificates for a process. The names are those of its TLS and SSH servers.
    pub(crate) fn issue_host(
        &self,
        host: &HostPrincipal,
        names: &HostNames,
        keys: &SubjectKeys,
        now: Wall,
    ) -> Result<Issued, RequestError> {
        let principal = Principal::Host(host.clone());
        let host_id = host.host_id.to_string();
        let x509 = X509Request {
            principal: &principal,
            common_name: &host_id,
            spki_der: &keys.tls_spki_der,
            dns_names: &names.dns_names,
            ip_addresses: &names.ip_addresses,
            not_before: now.before(CLOCK_SKEW),
            not_after: host.not_after,
            server: true,
            client: true,
            serial: random_bytes(),
        };
        let addresses = names.ip_addresses.iter().map(ToString::to_string);
        let ssh = SshRequest {
            kind: CertType::Host,
            key_id: &host_id,
            principals: names.dns_names.iter().cloned().chain(addresses).collect(),
            extensions: identity_extension(&principal),
        };
        self.held().host.signer(SignerFor::Servers).issue(&x509, ssh, keys)
    }
}

/// What a process serves under.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostNames {
    pub(crate) dns_names: Vec<String>,
    pub(crate) ip_addresses: Vec<IpAddr>,
}

struct SshRequest<'a> {
    kind: CertType,
    key_id: &'a str,
    principals: Vec<String>,
    extensions: Options,
}

impl CertificateKeys {
    fn issue(
        &self,
        x509: &X509Request<'_>,
        ssh: SshRequest<'_>,
        keys: &SubjectKeys,
    ) -> Result<Issued, RequestError> {
        let leaf = self.x509.issue(x509).map_err(|error| match error {
            AuthorityError::PublicKey(_) | AuthorityError::Name { .. } => {
                RequestError::Invalid(error.to_string())
            }
            AuthorityError::Stored(_) | AuthorityError::Sign(_) => RequestError::Broken(error.to_string()),
        })?;
        let template = CertificateTemplate {
            key: keys.ssh.clone(),
            kind: ssh.kind,
            serial: u64::from_be_bytes(random_bytes()),
            key_id: ssh.key_id.to_owned(),
            principals: ssh.principals,
            valid_after: x509.not_before,
            valid_before: x509.not_after,
            critical_options: Options::new(),
            extensions: ssh.extensions,
        };
        let certificate: Certificate = template
            .sign(&self.ssh, &random_bytes())
            .map_err(|error| RequestError::Invalid(format!("no SSH certificate can say this: {error}")))?;
        Ok(Issued {
            tls_chain_pem: format!("{}{}", with_final_newline(leaf), self.x509.certificate_pem()),
            ssh_certificate: certificate.to_openssh(),
        })
    }
}

fn sign(authority: &KeyPair, template: SshCertTemplate, key: PublicKey) -> Result<Certificate, RequestError> {
    let options = |raw: BTreeMap<String, Vec<u8>>| -> Result<Options, RequestError> {
        let text = |(name, value)| String::from_utf8(value).map(|value| (name, value));
        let texts: Result<Options, _> = raw.into_iter().map(text).collect();
        texts.map_err(|_| RequestError::Broken("an option of an SSH certificate is no text".to_owned()))
    };
    let template = CertificateTemplate {
        key,
        kind: match template.cert_type {
            SshCertType::User => CertType::User,
            SshCertType::Host => CertType::Host,
        },
        serial: u64::from_be_bytes(random_bytes()),
        key_id: template.key_id,
        principals: template.principals,
        valid_after: template.validity.not_before,
        valid_before: template.validity.not_after,
        critical_options: options(template.critical_options)?,
        extensions: options(template.extensions)?,
    };
    template
        .sign(authority, &random_bytes())
        .map_err(|error| RequestError::Invalid(format!("no SSH certificate can say this: {error}")))
}

fn with_final_newline(mut pem: String) -> String {
    if !pem.ends_with('\n') {
        pem.push('\n');
    }
    pem
}

fn identity_extension(principal: &Principal) -> Options {
    let json = String::from_utf8(principal.encode()).expect("a principal is encoded as JSON, which is UTF-8");
    Options::from([(SSH_EXTENSION.to_owned(), json)])
}

async fn stored<K: Generation>(
    records: &Records,
    ca_type: CaType,
    cluster: &ClusterName,
) -> Result<Authority<K>, LoadError> {
    let item = records.backend().get(&keys::authority(ca_type.as_str())).await?;
    let item = item.ok_or(AuthoritiesError::Stored(ca_type))?;
    Ok(Authority::read(ca_type, cluster, &item.value)?)
}
