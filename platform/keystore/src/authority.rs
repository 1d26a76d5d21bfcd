//! An X.509 certificate authority of the cluster (ECDSA P-256).

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use std::net::IpAddr;
use wayleave_identity::{Principal, X509_EXTENSION_OID};
use wayleave_vocab::{Secret, Wall};

/// How long an authority's own certificate lives.
const AUTHORITY_YEARS: u64 = 10;
const YEAR_SECS: u64 = 365 * 24 * 3600;

/// A certificate authority with its private key. Only Auth holds one.
pub struct X509Authority {
    certificate_pem: String,
    certificate_der: Vec<u8>,
    key: KeyPair,
}

/// What a leaf certificate shall say. Validity is decided by the caller (`core/ca`).
#[derive(Debug)]
pub struct X509Request<'a> {
    /// Who it is; goes into our extension.
    pub principal: &'a Principal,
    /// Subject common name, for people who read certificates.
    pub common_name: &'a str,
    /// SubjectPublicKeyInfo of the subject's key, DER.
    pub spki_der: &'a [u8],
    /// DNS names the subject serves under.
    pub dns_names: &'a [String],
    /// Addresses the subject serves under.
    pub ip_addresses: &'a [IpAddr],
    /// Start of validity.
    pub not_before: Wall,
    /// End of validity.
    pub not_after: Wall,
    /// May authenticate as a TLS server.
    pub server: bool,
    /// May authenticate as a TLS client.
    pub client: bool,
    /// 16 random bytes.
    pub serial: [u8; 16],
}

/// A certificate that could not be made or an authority that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The subject's public key is not one that can be certified.
    #[error("the public key cannot be certified (ECDSA P-256 is expected)")]
    PublicKey(#[source] rcgen::Error),
    /// A name cannot be in a certificate.
    #[error("the name {name:?} cannot be in a certificate")]
    Name {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The stored certificate or key is damaged.
    #[error("the stored certificate authority is damaged")]
    Stored(#[source] rcgen::Error),
    /// Signing failed.
    #[error("signing failed")]
    Sign(#[source] rcgen::Error),
}

impl X509Authority {
    /// Makes a new authority, valid for ten years from a minute before `now`.
    ///
    /// # Errors
    /// [`AuthorityError::Sign`] when the key cannot be generated or used.
    pub fn generate(common_name: &str, serial: [u8; 16], now: Wall) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Sign)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(positive(serial));
        let start = now.as_secs().saturating_sub(60);
        params.not_before = date(start);
        params.not_after = date(start + AUTHORITY_YEARS * YEAR_SECS);
        let certificate = params.self_signed(&key).map_err(AuthorityError::Sign)?;
        Ok(Self { certificate_pem: certificate.pem(), certificate_der: certificate.der().to_vec(), key })
    }

    /// Reads what [`X509Authority::certificate_pem`] and [`X509Authority::private_key_pem`] gave.
    ///
    /// # Errors
    /// [`AuthorityError::Stored`] when either cannot be read.
    pub fn from_pem(certificate_pem: &str, private_key_pem: &Secret) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(private_key_pem.expose_secret()).map_err(AuthorityError::Stored)?;
        Issuer::from_ca_cert_pem(certificate_pem, &key).map_err(AuthorityError::Stored)?;
        let der = crate::tls::certificates_from_pem(certificate_pem)
            .into_iter()
            .next()
            .ok_or(AuthorityError::Stored(rcgen::Error::CouldNotParseCertificate))?;
        Ok(Self { certificate_pem: certificate_pem.to_owned(), certificate_der: der.to_vec(), key })
    }

    /// The authority's own certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's own certificate, DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate_der
    }

    /// The private key, PKCS#8 PEM.
    pub fn private_key_pem(&self) -> Secret {
        Secret::new(self.key.serialize_pem())
    }

    /// Issues a leaf certificate; PEM of the leaf alone.
    ///
    /// # Errors
    /// See [`AuthorityError`]: the public key, a name, or the signature.
    pub fn issue(&self, request: &X509Request<'_>) -> Result<String, AuthorityError> {
        let subject = SubjectPublicKeyInfo::from_der(request.spki_der).map_err(AuthorityError::PublicKey)?;
        let issuer =
            Issuer::from_ca_cert_pem(&self.certificate_pem, &self.key).map_err(AuthorityError::Stored)?;
        let params = leaf_params(request)?;
        let certificate = params.signed_by(&subject, &issuer).map_err(AuthorityError::Sign)?;
        Ok(certificate.pem())
    }
}

fn leaf_params(request: &X509Request<'_>) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(request.common_name);
    params.serial_number = Some(positive(request.serial));
    params.not_before = date(request.not_before.as_secs());
    params.not_after = date(request.not_after.as_secs());
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if request.server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if request.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    for name in request.dns_names {
        let text =
            name.as_str().try_into().map_err(|source| AuthorityError::Name { name: name.clone(), source })?;
        params.subject_alt_names.push(SanType::DnsName(text));
    }
    for address in request.ip_addresses {
        params.subject_alt_names.push(SanType::IpAddress(*address));
    }
    params.custom_extensions =
        vec![CustomExtension::from_oid_content(X509_EXTENSION_OID, request.principal.encode())];
    Ok(params)
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name.push(DnType::OrganizationName, "Wayleave");
    name
}

/// A serial number must be positive and not begin with a zero byte.
fn positive(mut serial: [u8; 16]) -> SerialNumber {
    serial[0] = (serial[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&serial)
}

/// A date for rcgen from seconds since 1970.
fn date(secs: u64) -> time::OffsetDateTime {
    let secs = i64::try_from(secs).unwrap_or(i64::MAX).min(253_402_300_799);
    time::OffsetDateTime::from_unix_timestamp(secs).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}
