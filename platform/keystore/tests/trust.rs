//! Who is believed: certificates that are right, and certificates that are wrong in one way each (letter D).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::Duration;
use wayleave_identity::{HostPrincipal, Principal, UserPrincipal};
use wayleave_keystore::{
    Audience, IdentifyError, Pins, TlsKey, TrustStore, X509Authority, X509Request, pin_of_certificate,
};
use wayleave_vocab::{ClusterName, HostId, SystemRole, Traits, UserName, Wall};

const NOW: Wall = Wall::from_secs(1_700_000_000);

struct Cluster {
    name: ClusterName,
    host: X509Authority,
    user: X509Authority,
}

fn cluster(name: &str) -> Cluster {
    Cluster {
        name: ClusterName::parse(name).unwrap(),
        host: X509Authority::generate("host", [1; 16], NOW).unwrap(),
        user: X509Authority::generate("user", [2; 16], NOW).unwrap(),
    }
}

fn trust(cluster: &Cluster) -> TrustStore {
    let trust = TrustStore::empty();
    trust.replace(&cluster.name, cluster.host.certificate_pem(), cluster.user.certificate_pem());
    trust
}

fn alice(cluster: &Cluster) -> Principal {
    Principal::User(UserPrincipal {
        name: UserName::parse("alice").unwrap(),
        cluster: cluster.name.clone(),
        roles: [].into(),
        logins: [].into(),
        traits: Traits::new(),
        local_admin: false,
        not_after: NOW.after(Duration::from_secs(3600)),
    })
}

fn node(cluster: &Cluster) -> Principal {
    Principal::Host(HostPrincipal {
        host_id: HostId::from_random([3; 16]),
        cluster: cluster.name.clone(),
        system_roles: [SystemRole::Node].into(),
        not_after: NOW.after(Duration::from_secs(3600)),
    })
}

fn issue(
    authority: &X509Authority,
    principal: &Principal,
    server: bool,
    client: bool,
) -> Vec<CertificateDer<'static>> {
    let key = TlsKey::generate().unwrap();
    let pem = authority
        .issue(&X509Request {
            principal,
            common_name: "test",
            spki_der: &key.spki_der(),
            dns_names: &[],
            ip_addresses: &[],
            not_before: NOW.before(Duration::from_secs(60)),
            not_after: NOW.after(Duration::from_secs(3600)),
            server,
            client,
            serial: [9; 16],
        })
        .unwrap();
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

fn identify(trust: &TrustStore, chain: &[CertificateDer<'_>], now: Wall) -> Result<Principal, IdentifyError> {
    trust.identify(chain, Audience::Client, now)
}

#[test]
fn a_user_and_a_process_are_who_their_certificates_say() {
    let cluster = cluster("demo");
    let trust = trust(&cluster);
    for (authority, principal) in [(&cluster.user, alice(&cluster)), (&cluster.host, node(&cluster))] {
        let chain = issue(authority, &principal, false, true);
        assert_eq!(identify(&trust, &chain, NOW).unwrap(), principal);
    }
}

#[test]
fn d_an_authority_vouches_for_its_own_purpose_only() {
    let cluster = cluster("demo");
    let trust = trust(&cluster);
    let user_by_host = issue(&cluster.host, &alice(&cluster), false, true);
    let host_by_user = issue(&cluster.user, &node(&cluster), false, true);
    for chain in [user_by_host, host_by_user] {
        assert!(matches!(identify(&trust, &chain, NOW), Err(IdentifyError::WrongAuthority)));
    }
}

#[test]
fn d_a_leaf_is_no_authority() {
    let cluster = cluster("demo");
    let trust = trust(&cluster);
    let chain = issue(&cluster.host, &node(&cluster), true, true);
    let forger = X509Authority::generate("host", [4; 16], NOW).unwrap();
    let mut forged = issue(&forger, &node(&cluster), true, true);
    forged.extend(chain);
    assert!(matches!(identify(&trust, &forged, NOW), Err(IdentifyError::Untrusted(_))));
}

#[test]
fn d_expired_early_foreign_and_unfit_certificates_identify_nobody() {
    let (here, elsewhere) = (cluster("demo"), cluster("other"));
    let trust_here = trust(&here);
    let good = issue(&here.user, &alice(&here), false, true);
    let late = NOW.after(Duration::from_secs(7200));
    let early = NOW.before(Duration::from_secs(7200));
    assert!(matches!(identify(&trust_here, &good, late), Err(IdentifyError::Untrusted(_))));
    assert!(matches!(identify(&trust_here, &good, early), Err(IdentifyError::Untrusted(_))));
    let server_only = issue(&here.user, &alice(&here), true, false);
    assert!(matches!(identify(&trust_here, &server_only, NOW), Err(IdentifyError::Untrusted(_))));
    let foreign = issue(&elsewhere.user, &alice(&elsewhere), false, true);
    assert!(matches!(identify(&trust_here, &foreign, NOW), Err(IdentifyError::Untrusted(_))));
    let claims_other = issue(&here.user, &alice(&elsewhere), false, true);
    assert!(matches!(identify(&trust_here, &claims_other, NOW), Err(IdentifyError::OtherCluster(_))));
    assert!(matches!(identify(&trust_here, &[], NOW), Err(IdentifyError::Missing)));
    let garbage = [CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff, 0x00])];
    assert!(matches!(identify(&trust_here, &garbage, NOW), Err(IdentifyError::NoIdentity)));
}

#[test]
fn d_who_was_verified_a_moment_ago_is_not_believed_a_moment_too_long() {
    let (here, elsewhere) = (cluster("demo"), cluster("demo"));
    let trust_here = trust(&here);
    let chain = issue(&here.user, &alice(&here), false, true);
    let last = NOW.after(Duration::from_secs(3600));
    let second = Duration::from_secs(1);
    for now in [last.before(second), last] {
        assert_eq!(identify(&trust_here, &chain, now).unwrap(), alice(&here));
    }
    assert!(matches!(identify(&trust_here, &chain, last.after(second)), Err(IdentifyError::Untrusted(_))));
    let early = NOW.before(Duration::from_secs(61));
    assert!(matches!(identify(&trust_here, &chain, early), Err(IdentifyError::Untrusted(_))));
    let as_server = trust_here.identify(&chain, Audience::Server, last);
    assert!(matches!(as_server, Err(IdentifyError::Untrusted(_))));
    let mut longer = chain.clone();
    longer.extend(issue(&elsewhere.user, &alice(&here), false, true));
    longer.swap(0, 1);
    assert!(matches!(identify(&trust_here, &longer, last), Err(IdentifyError::Untrusted(_))));

    trust_here.replace(&elsewhere.name, elsewhere.host.certificate_pem(), elsewhere.user.certificate_pem());
    assert!(matches!(identify(&trust_here, &chain, last), Err(IdentifyError::Untrusted(_))));
}

#[test]
fn pins_name_one_key() {
    let (here, elsewhere) = (cluster("demo"), cluster("other"));
    let pin = pin_of_certificate(here.host.certificate_der()).unwrap();
    let pins: Pins = format!("{}, sha256:{}", pin.to_uppercase().replace("SHA256", "sha256"), "0".repeat(64))
        .parse()
        .unwrap();
    assert!(pins.contains(here.host.certificate_der()));
    assert!(!pins.contains(elsewhere.host.certificate_der()));
    for bad in ["sha256:12", "md5:00", &"0".repeat(64)] {
        assert!(bad.parse::<Pins>().is_err(), "{bad}");
    }
}

#[test]
fn an_authority_is_the_same_after_it_was_stored() {
    let first = X509Authority::generate("host", [1; 16], NOW).unwrap();
    let again = X509Authority::from_pem(first.certificate_pem(), &first.private_key_pem()).unwrap();
    assert_eq!(first.certificate_der(), again.certificate_der());
}
