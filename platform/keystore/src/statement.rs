//! Statements: bytes signed by who holds a certificate of the cluster, outside of a TLS handshake.
//!
//! What is signed must begin as no signature of TLS does; whoever builds a statement sees to that.

use crate::credentials::Credentials;
use crate::trust::{Audience, IdentifyError, TrustStore};
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;
use wayleave_identity::Principal;
use wayleave_vocab::Wall;
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A certificate and a signature by its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedStatement {
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// ECDSA P-256 with SHA-256, DER.
    pub signature: Vec<u8>,
}

/// A statement that cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// There is no certificate yet.
    #[error("there is no certificate to sign with yet")]
    NoCertificate,
    /// The key is of another kind.
    #[error("the key of the certificate cannot sign statements")]
    Key,
    /// The library failed.
    #[error("signing failed")]
    Sign(#[source] rustls::Error),
}

/// A statement that is not believed.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// The certificate identifies nobody.
    #[error("the certificate is not believed")]
    Certificate(#[source] IdentifyError),
    /// The signature is not by its key, or over something else.
    #[error("the signature is not by the certificate's key over this statement")]
    Signature(#[source] webpki::Error),
}

impl Credentials {
    /// Signs the statement that `build` makes of the certificate (DER) that is presented now.
    ///
    /// # Errors
    /// See [`SignError`].
    pub fn sign(&self, build: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<SignedStatement, SignError> {
        let current = self.current().ok_or(SignError::NoCertificate)?;
        let certificate = current.cert.first().ok_or(SignError::NoCertificate)?.to_vec();
        let signer =
            current.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).ok_or(SignError::Key)?;
        let signature = signer.sign(&build(&certificate)).map_err(SignError::Sign)?;
        Ok(SignedStatement { certificate, signature })
    }
}

impl TrustStore {
    /// Who signed a statement: somebody of this cluster, with a certificate that is good now for `audience`.
    ///
    /// # Errors
    /// See [`StatementError`].
    pub fn verify_statement(
        &self,
        certificate: &[u8],
        signature: &[u8],
        statement: &[u8],
        audience: Audience,
        now: Wall,
    ) -> Result<Principal, StatementError> {
        let leaf = CertificateDer::from(certificate);
        let principal =
            self.identify(std::slice::from_ref(&leaf), audience, now).map_err(StatementError::Certificate)?;
        EndEntityCert::try_from(&leaf)
            .and_then(|leaf| {
                leaf.verify_signature(webpki::aws_lc_rs::ECDSA_P256_SHA256, statement, signature)
            })
            .map_err(StatementError::Signature)?;
        Ok(principal)
    }
}

/// Whether a certificate (DER) is for a name. It must have been verified.
pub fn is_certified_for(certificate: &[u8], name: &str) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|found| match found {
        GeneralName::DNSName(found) => found.eq_ignore_ascii_case(name),
        _ => false,
    })
}
