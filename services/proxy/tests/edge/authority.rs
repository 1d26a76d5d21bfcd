//! The authorities of one cluster, and certificates from them.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use wayleave_identity::{HostPrincipal, Principal, UserPrincipal};
use wayleave_keystore::{Credentials, PolicySigner, TlsKey, TrustStore, X509Authority, X509Request};
use wayleave_runtime::{Clock, SystemClock};
use wayleave_vocab::{ClusterName, HostId, SystemRole, Traits, UserName, Wall};

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct Authorities {
    pub(crate) name: ClusterName,
    pub(crate) trust: TrustStore,
    pub(crate) policy: PolicySigner,
    host: X509Authority,
    user: X509Authority,
    serial: AtomicU8,
}

impl Authorities {
    pub(crate) fn new(name: &str) -> Self {
        let now = now().before(HOUR);
        let name = ClusterName::parse(name).unwrap();
        let host = X509Authority::generate("host", [1; 16], now).unwrap();
        let user = X509Authority::generate("user", [2; 16], now).unwrap();
        let trust = TrustStore::empty();
        trust.replace(&name, host.certificate_pem(), user.certificate_pem());
        let policy = PolicySigner::from_seed(&[7; 32]).unwrap();
        Self { name, trust, policy, host, user, serial: AtomicU8::new(3) }
    }

    /// Those of the host authority and of the user authority.
    pub(crate) fn certificates_pem(&self) -> [&str; 2] {
        [self.host.certificate_pem(), self.user.certificate_pem()]
    }

    pub(crate) fn host(&self, host_id: HostId, roles: &[SystemRole]) -> Credentials {
        let principal = Principal::Host(HostPrincipal {
            host_id,
            cluster: self.name.clone(),
            system_roles: roles.iter().copied().collect(),
            not_after: now().after(HOUR),
        });
        self.issue(&self.host, &principal)
    }

    pub(crate) fn user(&self, name: &str) -> Credentials {
        let principal = Principal::User(UserPrincipal {
            name: UserName::parse(name).unwrap(),
            cluster: self.name.clone(),
            roles: [].into(),
            logins: [].into(),
            traits: Traits::new(),
            local_admin: false,
            not_after: now().after(HOUR),
        });
        self.issue(&self.user, &principal)
    }

    fn issue(&self, authority: &X509Authority, principal: &Principal) -> Credentials {
        let key = TlsKey::generate().unwrap();
        let pem = authority
            .issue(&X509Request {
                principal,
                common_name: "test",
                spki_der: &key.spki_der(),
                dns_names: &[],
                ip_addresses: &[],
                not_before: now().before(HOUR),
                not_after: now().after(HOUR),
                server: true,
                client: true,
                serial: [self.serial.fetch_add(1, Ordering::Relaxed); 16],
            })
            .unwrap();
        Credentials::from_pem(&pem, &key.to_pem()).unwrap()
    }
}

pub(crate) fn now() -> Wall {
    SystemClock::new().wall()
}
