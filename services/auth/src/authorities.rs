//! The certificate authorities with their private keys: how they are kept, and what they sign.
//!
//! Who may be issued what is decided by the callers (`join.rs`, `user_certificates.rs`); here is only the form. A
//! certificate is never issued for a key that is itself a certificate, nor for another type of key than ours.

use crate::keys;
use crate::request_error::RequestError;
use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use wayleave_api::auth::PublicKeys;
use wayleave_ca::{SshCertTemplate, SshCertType};
use wayleave_identity::{HostPrincipal, Principal, SSH_EXTENSION, UserPrincipal};
use wayleave_keystore::{AuthorityError, PolicySigner, X509Authority, X509Request, pin_of_certificate};
use wayleave_resource::{CaKeys, CaType, CertAuthority, CertAuthoritySpec, Metadata, RotationPhase};
use wayleave_runtime::random_bytes;
use wayleave_ssh::{CertType, Certificate, CertificateTemplate, KeyPair, Options, PublicKey};
use wayleave_store::{Key, Operation};
use wayleave_vocab::{ClusterName, Secret, Wall};

/// How far the start of validity lies back, for clocks that are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// Longest SubjectPublicKeyInfo that is looked at.
const SPKI_BYTES_MAX: usize = 512;
/// Longest line of an SSH public key that is looked at.
const SSH_KEY_BYTES_MAX: usize = 1024;
/// The principal of a user without logins: no account can have this name.
const NO_LOGIN: &str = "-wayleave-no-login";

/// The authorities that this build creates and uses.
const IN_USE: [CaType; 4] = [CaType::User, CaType::Host, CaType::Policy, CaType::Openssh];
/// Those that every cluster has had from its beginning.
const FIRST: [CaType; 3] = [CaType::User, CaType::Host, CaType::Policy];

/// An authority as stored, with its private keys. Never `Debug`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ssh_seed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x509_certificate_pem: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x509_private_key_pem: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy_seed: Option<String>,
}

/// All authorities, ready to sign.
pub(crate) struct Authorities {
    cluster: ClusterName,
    user: CertificateAuthority,
    host: CertificateAuthority,
    policy: PolicySigner,
    /// Signs SSH certificates only.
    openssh: KeyPair,
}

struct CertificateAuthority {
    ssh: KeyPair,
    x509: X509Authority,
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
    /// New authorities, and the operations that store them: private keys in their own family, public parts as resources.
    pub(crate) fn generate(
        cluster: &ClusterName,
        now: Wall,
    ) -> Result<(Self, Vec<Operation>), AuthoritiesError> {
        let make = |ca_type: CaType| {
            let x509 = X509Authority::generate(&format!("{ca_type} CA of {cluster}"), random_bytes(), now)
                .map_err(|source| AuthoritiesError::X509 { ca_type, source })?;
            Ok(CertificateAuthority { ssh: KeyPair::from_seed(&random_bytes()), x509 })
        };
        let policy = PolicySigner::from_seed(&random_bytes::<32>())
            .map_err(|_| AuthoritiesError::Stored(CaType::Policy))?;
        let authorities = Self {
            cluster: cluster.clone(),
            user: make(CaType::User)?,
            host: make(CaType::Host)?,
            policy,
            openssh: KeyPair::from_seed(&random_bytes()),
        };
        let operations = IN_USE.iter().flat_map(|ca_type| authorities.store(*ca_type)).collect();
        Ok((authorities, operations))
    }

    /// Where the private keys of each authority are, in the order that [`Authorities::read`] wants them.
    pub(crate) fn stored_at() -> [Key; 3] {
        FIRST.map(|ca_type| keys::authority(ca_type.as_str()))
    }

    /// Where the private key of the openssh authority is. Clusters of earlier releases have none.
    pub(crate) fn openssh_stored_at() -> Key {
        keys::authority(CaType::Openssh.as_str())
    }

    /// A new openssh authority: its private record and the operations that store it.
    pub(crate) fn generate_openssh(cluster: &ClusterName) -> Vec<Operation> {
        store_openssh(cluster, &KeyPair::from_seed(&random_bytes()))
    }

    /// Reads what [`Authorities::generate`] stored.
    pub(crate) fn read(
        cluster: &ClusterName,
        records: [&[u8]; 3],
        openssh: &[u8],
    ) -> Result<Self, AuthoritiesError> {
        let [user, host, policy] = records;
        let policy: AuthorityRecord = parse(CaType::Policy, policy)?;
        let policy = policy
            .policy_seed
            .and_then(|seed| unhex(&seed))
            .and_then(|seed| PolicySigner::from_seed(&seed).ok())
            .ok_or(AuthoritiesError::Stored(CaType::Policy))?;
        Ok(Self {
            cluster: cluster.clone(),
            user: CertificateAuthority::read(CaType::User, user)?,
            host: CertificateAuthority::read(CaType::Host, host)?,
            policy,
            openssh: read_ssh(CaType::Openssh, parse(CaType::Openssh, openssh)?)?,
        })
    }

    fn store(&self, ca_type: CaType) -> Vec<Operation> {
        let (record, public) = match ca_type {
            CaType::User => self.user.records(),
            CaType::Host => self.host.records(),
            CaType::Policy => {
                let record = AuthorityRecord {
                    ssh_seed: None,
                    x509_certificate_pem: None,
                    x509_private_key_pem: None,
                    policy_seed: Some(hex(self.policy.seed().expose_secret())),
                };
                let signing_public_key_pem = Some(self.policy.public_key_pem());
                (record, CaKeys { signing_public_key_pem, ..CaKeys::default() })
            }
            CaType::Openssh => return store_openssh(&self.cluster, &self.openssh),
            CaType::DbServer | CaType::DbClient | CaType::Jwt => return Vec::new(),
        };
        store(&self.cluster, ca_type, &record, public)
    }

    /// The name in every certificate.
    pub(crate) fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Host CA certificates, PEM.
    pub(crate) fn host_ca_pem(&self) -> &str {
        self.host.x509.certificate_pem()
    }

    /// User CA certificates, PEM.
    pub(crate) fn user_ca_pem(&self) -> &str {
        self.user.x509.certificate_pem()
    }

    /// Host CA keys for known_hosts, without marker or pattern.
    pub(crate) fn host_ca_ssh(&self) -> Vec<String> {
        vec![self.host.ssh.public_key().to_openssh()]
    }

    /// SSH keys that users' certificates are verified with.
    pub(crate) fn user_ca_keys(&self) -> Vec<PublicKey> {
        vec![self.user.ssh.public_key()]
    }

    /// SSH keys that processes' certificates are verified with.
    pub(crate) fn host_ca_keys(&self) -> Vec<PublicKey> {
        vec![self.host.ssh.public_key()]
    }

    /// Keys for `TrustedUserCAKeys` of machines that are entered by a proxy.
    pub(crate) fn openssh_ca_ssh(&self) -> Vec<String> {
        vec![self.openssh.public_key().to_openssh()]
    }

    /// Authenticates what Auth itself gave out a moment ago. Every instance of Auth can check it.
    pub(crate) fn mac(&self, purpose: &str, message: &[u8]) -> Vec<u8> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.openssh.expose_seed());
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
        sign(&self.openssh, template, key)
    }

    /// An SSH certificate of the host authority.
    pub(crate) fn sign_by_host_ca(
        &self,
        template: SshCertTemplate,
        key: PublicKey,
    ) -> Result<Certificate, RequestError> {
        sign(&self.host.ssh, template, key)
    }

    /// What a joining process is given as `ca_pin`.
    pub(crate) fn pins(&self) -> Vec<String> {
        pin_of_certificate(self.host.x509.certificate_der()).into_iter().collect()
    }

    /// Signs policy.
    pub(crate) fn policy(&self) -> &PolicySigner {
        &self.policy
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
        self.user.issue(&x509, ssh, keys)
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
        self.host.issue(&x509, ssh, keys)
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

impl CertificateAuthority {
    fn read(ca_type: CaType, record: &[u8]) -> Result<Self, AuthoritiesError> {
        let damaged = || AuthoritiesError::Stored(ca_type);
        let mut record: AuthorityRecord = parse(ca_type, record)?;
        let certificate = record.x509_certificate_pem.take().ok_or_else(damaged)?;
        let key = Secret::new(record.x509_private_key_pem.take().ok_or_else(damaged)?);
        let x509 = X509Authority::from_pem(&certificate, &key)
            .map_err(|source| AuthoritiesError::X509 { ca_type, source })?;
        Ok(Self { ssh: read_ssh(ca_type, record)?, x509 })
    }

    fn records(&self) -> (AuthorityRecord, CaKeys) {
        let record = AuthorityRecord {
            ssh_seed: Some(hex(self.ssh.expose_seed())),
            x509_certificate_pem: Some(self.x509.certificate_pem().to_owned()),
            x509_private_key_pem: Some(self.x509.private_key_pem().expose_secret().to_owned()),
            policy_seed: None,
        };
        let public = CaKeys {
            ssh_public_key: Some(self.ssh.public_key().to_openssh()),
            x509_certificate_pem: Some(self.x509.certificate_pem().to_owned()),
            signing_public_key_pem: None,
        };
        (record, public)
    }

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

fn read_ssh(ca_type: CaType, record: AuthorityRecord) -> Result<KeyPair, AuthoritiesError> {
    let damaged = || AuthoritiesError::Stored(ca_type);
    let seed = record.ssh_seed.and_then(|seed| unhex(&seed)).ok_or_else(damaged)?;
    let seed: [u8; 32] = seed.try_into().map_err(|_| damaged())?;
    Ok(KeyPair::from_seed(&seed))
}

fn store_openssh(cluster: &ClusterName, key: &KeyPair) -> Vec<Operation> {
    let record = AuthorityRecord {
        ssh_seed: Some(hex(key.expose_seed())),
        x509_certificate_pem: None,
        x509_private_key_pem: None,
        policy_seed: None,
    };
    let public = CaKeys { ssh_public_key: Some(key.public_key().to_openssh()), ..CaKeys::default() };
    store(cluster, CaType::Openssh, &record, public)
}

fn store(cluster: &ClusterName, ca_type: CaType, record: &AuthorityRecord, public: CaKeys) -> Vec<Operation> {
    let resource = CertAuthority {
        metadata: Metadata::default(),
        spec: CertAuthoritySpec {
            ca_type,
            cluster: cluster.clone(),
            phase: RotationPhase::Standby,
            active: vec![public],
            trusted: Vec::new(),
        },
    };
    let private = crate::records::put(keys::authority(ca_type.as_str()), record);
    vec![private, crate::resource_store::put_operation(&resource.into())]
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

fn parse(ca_type: CaType, record: &[u8]) -> Result<AuthorityRecord, AuthoritiesError> {
    serde_json::from_slice(record).map_err(|_| AuthoritiesError::Stored(ca_type))
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).ok()
}
