//! Certificates that count, and every way in which one must not. No stock tool here: see `tests/` for those.

use super::*;
use proptest::prelude::*;

const NOW: Wall = Wall::from_secs(1_000_000);

#[test]
fn a_good_certificate_counts_and_survives() {
    let certificate = sign(template());
    assert_eq!(check(&certificate, "alice"), Ok(()));
    let again = Certificate::from_openssh(&certificate.to_openssh()).unwrap();
    assert_eq!(again, certificate);
    assert_eq!(again.key(), &subject().public_key());
    assert_eq!(again.extensions().get("permit-pty").map(String::as_str), Some(""));
}

#[test]
fn d_host_certificate_is_no_user() {
    let host = sign(CertificateTemplate { kind: CertType::Host, ..template() });
    assert_eq!(check(&host, "alice"), Err(CertificateError::WrongType));
    let as_host = host.verify(&[ca().public_key()], CertType::Host, Some("alice"), &[], NOW);
    assert!(as_host.is_ok());
    let user = sign(template()).verify(&[ca().public_key()], CertType::Host, Some("alice"), &[], NOW);
    assert_eq!(user, Err(CertificateError::WrongType));
}

#[test]
fn d_an_authority_must_be_trusted_and_must_have_signed() {
    let certificate = sign(template());
    let other = KeyPair::from_seed(&[77; 32]).public_key();
    let verify = |keys: &[PublicKey]| certificate.verify(keys, CertType::User, Some("alice"), &[], NOW);
    assert_eq!(verify(&[other]), Err(CertificateError::UntrustedAuthority));
    assert_eq!(verify(&[]), Err(CertificateError::UntrustedAuthority));
    // Names the trusted authority, but another key made the signature.
    let forger = KeyPair::from_seed(&[78; 32]);
    let forged =
        template().sign_with(&ca().public_key().to_blob(), &[0; 32], |message| forger.sign(message)).unwrap();
    assert_eq!(check(&forged, "alice"), Err(CertificateError::BadSignature));
}

#[test]
fn d_every_signed_byte_counts() {
    let certificate = sign(template());
    for index in 0..certificate.blob.len() {
        let mut bytes = certificate.blob.to_vec();
        bytes[index] ^= 1;
        if let Ok(changed) = Certificate::parse(&bytes) {
            assert!(check(&changed, "alice").is_err(), "byte {index}");
        }
    }
}

#[test]
fn d_signed_by_a_certificate_is_refused() {
    let intermediate = sign(template());
    let certificate =
        template().sign_with(intermediate.as_blob(), &[0; 32], |message| subject().sign(message)).unwrap();
    assert_eq!(certificate.authority(), None);
    assert_eq!(check(&certificate, "alice"), Err(CertificateError::SignedByCertificate));
}

#[test]
fn d_validity_is_half_open() {
    let at = |secs| {
        sign(template()).verify(&[ca().public_key()], CertType::User, None, &[], Wall::from_secs(secs))
    };
    assert_eq!(at(999_899).unwrap_err(), CertificateError::NotYetValid);
    assert!(at(999_900).is_ok());
    assert!(at(1_000_099).is_ok());
    assert_eq!(at(1_000_100).unwrap_err(), CertificateError::Expired);
}

#[test]
fn d_principals_are_listed_exactly() {
    let certificate = sign(template());
    for wrong in ["", "Alice", "alice ", "alic", "alice,bob", "root", "*"] {
        assert_eq!(check(&certificate, wrong), Err(CertificateError::PrincipalNotListed), "{wrong:?}");
    }
    for kind in [CertType::User, CertType::Host] {
        let nobody = sign(CertificateTemplate { principals: vec![], kind, ..template() });
        for wanted in [None, Some("alice"), Some("")] {
            let result = nobody.verify(&[ca().public_key()], kind, wanted, &[], NOW);
            assert_eq!(result, Err(CertificateError::NoPrincipals), "{kind:?} {wanted:?}");
        }
    }
}

#[test]
fn d_unknown_critical_options_are_refused() {
    let certificate = sign(with_critical("force-command", "id"));
    let unknown = CertificateError::UnknownCriticalOption("force-command".into());
    assert_eq!(check(&certificate, "alice"), Err(unknown));
    let known = certificate.verify(&[ca().public_key()], CertType::User, None, &["force-command"], NOW);
    assert!(known.is_ok());
}

#[test]
fn d_source_addresses_come_back() {
    let networks = |list: &str| {
        let certificate = sign(with_critical("source-address", list));
        certificate.verify(&[ca().public_key()], CertType::User, None, &[], NOW).map(|v| v.source_networks)
    };
    let list = networks("10.0.0.0/8,192.168.1.7,2001:db8::/32").unwrap().unwrap();
    for (address, inside) in [
        ("10.255.0.1", true),
        ("::ffff:10.1.1.1", true),
        ("11.0.0.1", false),
        ("192.168.1.7", true),
        ("192.168.1.8", false),
        ("2001:db8:1::1", true),
        ("2001:db9::1", false),
        ("a00::", false),
    ] {
        let address: IpAddr = address.parse().unwrap();
        assert_eq!(list.iter().any(|n| n.contains(address)), inside, "{address}");
    }
    let any = networks("0.0.0.0/0").unwrap().unwrap();
    assert!(any[0].contains("8.8.8.8".parse().unwrap()));
    assert!(!any[0].contains("::1".parse().unwrap()));
    for bad in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "host", "10.0.0.1,", "::/129"] {
        assert!(matches!(networks(bad), Err(CertificateError::MalformedCriticalOption(_))), "{bad:?}");
    }
}

#[test]
fn f_unsorted_or_duplicate_options_are_refused() {
    let option = |name: &str| {
        let mut out = Vec::new();
        out.put_string(name.as_bytes());
        out.put_string(b"");
        out
    };
    for names in [["b", "a"], ["a", "a"]] {
        let bytes: Vec<u8> = names.iter().flat_map(|n| option(n)).collect();
        assert!(read_options(&bytes).is_err(), "{names:?}");
    }
}

#[test]
fn f_counts_are_bounded() {
    let principals = vec!["p".to_owned(); PRINCIPALS_MAX + 1];
    let result = CertificateTemplate { principals, ..template() }.sign(&ca(), &[0; 32]);
    assert_eq!(result.err(), Some(DecodeError::TooLong("principals")));
    assert!(Certificate::parse(&vec![0; CERTIFICATE_BYTES_MAX + 1]).is_err());
}

proptest! {
    #[test]
    fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Certificate::parse(&bytes);
        let mut blob = Vec::new();
        blob.put_string(KeyType::Ed25519.certificate_name().as_bytes());
        blob.put_string(&[0; 32]);
        blob.put_string(&[1; 32]);
        blob.extend(&bytes);
        let _ = Certificate::parse(&blob);
    }

    #[test]
    fn f_truncated_certificates_never_parse(len in 0usize..400) {
        let certificate = sign(template());
        let cut = certificate.blob.get(..len).unwrap_or_default();
        prop_assert!(len >= certificate.blob.len() || Certificate::parse(cut).is_err());
    }

    #[test]
    fn f_networks_never_panic(text in "[0-9a-f.:/,+]{0,40}", octets in any::<u32>()) {
        for network in parse_networks(&text).unwrap_or_default() {
            let _ = network.contains(IpAddr::V4(octets.into()));
        }
    }
}

fn ca() -> KeyPair {
    KeyPair::from_seed(&[1; 32])
}

fn subject() -> KeyPair {
    KeyPair::from_seed(&[2; 32])
}

fn template() -> CertificateTemplate {
    CertificateTemplate {
        key: subject().public_key(),
        kind: CertType::User,
        serial: 42,
        key_id: "alice".into(),
        principals: vec!["alice".into(), "bob".into()],
        valid_after: Wall::from_secs(999_900),
        valid_before: Wall::from_secs(1_000_100),
        critical_options: Options::new(),
        extensions: Options::from([("permit-pty".into(), String::new())]),
    }
}

fn with_critical(name: &str, value: &str) -> CertificateTemplate {
    CertificateTemplate { critical_options: Options::from([(name.into(), value.into())]), ..template() }
}

fn sign(template: CertificateTemplate) -> Certificate {
    template.sign(&ca(), &[3; 32]).unwrap()
}

fn check(certificate: &Certificate, principal: &str) -> Result<(), CertificateError> {
    certificate.verify(&[ca().public_key()], CertType::User, Some(principal), &[], NOW).map(|_| ())
}
