//! Proof of a login for somebody who was not there: the first key exchange of a connection, and what a client signed in it.
//!
//! A server that keeps it can show a third party that the holder of a certificate logged in as one login, on a connection
//! to one host key (RFC 4253 section 8, RFC 4252 section 7). Freshness comes from the third party's own bytes in the
//! cookie of the server's KEXINIT. The proof holds the secret of the exchange, so it is shown only to whoever may know
//! everything that was said on that connection.

use crate::algorithm::PublicKeyAlgorithm;
use crate::certificate::{CERTIFICATE_BYTES_MAX, Certificate};
use crate::encoding::{DecodeError, Put, Reader};
use crate::kex::{COOKIE_BYTES, SharedSecret, Transcript, cookie_of};
use crate::key::{KEY_BLOB_BYTES_MAX, SignatureError};
use crate::userauth::server::is_presence_enough;
use crate::userauth::{USER_BYTES_MAX, signed_message};
use std::fmt;
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest encoded proof: two KEXINITs, two certificates, and what is small beside them.
pub const PROOF_BYTES_MAX: usize = 256 * 1024;
/// The first byte of an encoded proof.
const FORMAT: u8 = 1;
/// Longest message or share of a key exchange.
const EXCHANGE_PART_BYTES_MAX: usize = 64 * 1024;

/// The parts of an exchange in the order in which they are hashed.
const PARTS: usize = 7;

/// The first key exchange as the server saw it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RecordedExchange {
    parts: [Vec<u8>; PARTS],
    secret: Zeroizing<Vec<u8>>,
}

/// One login, provable.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginProof {
    exchange: RecordedExchange,
    user: String,
    algorithm: String,
    certificate: Vec<u8>,
    signature: Vec<u8>,
}

/// What a proof that holds says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenLogin {
    /// The login that was asked for.
    pub user: String,
    /// The certificate; only possession of its key is proven.
    pub certificate: Certificate,
    /// The host key or host certificate that the client was shown, in binary form.
    pub host_key: Vec<u8>,
    /// The cookie of the server's KEXINIT.
    pub cookie: [u8; COOKIE_BYTES],
}

/// A proof that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProofError {
    /// Not the encoding of a proof.
    #[error("the proof of the login is malformed: {0}")]
    Malformed(#[from] DecodeError),
    /// The client's signature is not over this exchange, login and certificate.
    #[error("the proof of the login does not hold")]
    Signature(#[from] SignatureError),
    /// A security key was not touched, or its user not verified.
    #[error("the security key did not see its user")]
    Presence,
}

impl RecordedExchange {
    pub(crate) fn new(transcript: &Transcript<'_>, secret: &SharedSecret) -> Self {
        Self { parts: transcript.parts().map(<[u8]>::to_vec), secret: secret.encoded() }
    }

    fn transcript(&self) -> Transcript<'_> {
        let [client_version, server_version, client_init, server_init, host_key, client_share, server_share] =
            &self.parts;
        Transcript {
            client_version,
            server_version,
            client_init,
            server_init,
            host_key,
            client_share,
            server_share,
        }
    }

    fn hash(&self) -> [u8; 32] {
        self.transcript().hash(&SharedSecret::from_encoded(self.secret.clone()))
    }
}

impl LoginProof {
    pub(crate) fn new(
        exchange: RecordedExchange,
        user: &str,
        algorithm: PublicKeyAlgorithm,
        certificate: &Certificate,
        signature: &[u8],
    ) -> Self {
        Self {
            exchange,
            user: user.to_owned(),
            algorithm: algorithm.name().to_owned(),
            certificate: certificate.as_blob().to_vec(),
            signature: signature.to_vec(),
        }
    }

    /// For transport. It holds the secret of the exchange.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(16 * 1024));
        out.put_byte(FORMAT);
        for part in &self.exchange.parts {
            out.put_string(part);
        }
        out.put_string(&self.exchange.secret);
        out.put_string(self.user.as_bytes());
        out.put_string(self.algorithm.as_bytes());
        out.put_string(&self.certificate);
        out.put_string(&self.signature);
        out
    }

    /// Reads what [`LoginProof::encode`] wrote.
    ///
    /// # Errors
    /// [`ProofError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ProofError> {
        if bytes.len() > PROOF_BYTES_MAX {
            return Err(DecodeError::TooLong("proof").into());
        }
        let mut reader = Reader::new(bytes);
        if reader.u8()? != FORMAT {
            return Err(DecodeError::Invalid("format of the proof").into());
        }
        let mut parts: [Vec<u8>; PARTS] = Default::default();
        for part in &mut parts {
            *part = reader.string_max(EXCHANGE_PART_BYTES_MAX, "part of an exchange")?.to_vec();
        }
        let secret = Zeroizing::new(reader.string_max(KEY_BLOB_BYTES_MAX, "secret")?.to_vec());
        let user = reader.text(USER_BYTES_MAX, "user name")?.to_owned();
        let algorithm = reader.text(USER_BYTES_MAX, "algorithm")?.to_owned();
        let certificate = reader.string_max(CERTIFICATE_BYTES_MAX, "certificate")?.to_vec();
        let signature = reader.string_max(KEY_BLOB_BYTES_MAX, "signature")?.to_vec();
        reader.end()?;
        Ok(Self { exchange: RecordedExchange { parts, secret }, user, algorithm, certificate, signature })
    }

    /// Whether the holder of the certificate's key asked for this login on this exchange. Whether the certificate, the
    /// host key and the cookie are worth anything is the caller's to say.
    ///
    /// # Errors
    /// Why it does not hold.
    pub fn verify(&self) -> Result<ProvenLogin, ProofError> {
        let algorithm = PublicKeyAlgorithm::from_name(self.algorithm.as_bytes())
            .filter(|algorithm| algorithm.is_certificate)
            .ok_or(DecodeError::Invalid("algorithm"))?;
        let certificate = Certificate::parse(&self.certificate)?;
        let session_id = self.exchange.hash();
        let signed = signed_message(&session_id, &self.user, algorithm.name(), &self.certificate);
        let assertion = certificate.key().verify(algorithm.signature, &signed, &self.signature)?;
        if !is_presence_enough(&certificate, assertion) {
            return Err(ProofError::Presence);
        }
        let transcript = self.exchange.transcript();
        Ok(ProvenLogin {
            user: self.user.clone(),
            certificate,
            host_key: transcript.host_key.to_vec(),
            cookie: cookie_of(transcript.server_init)?,
        })
    }
}

/// Shows nothing of the secret.
impl fmt::Debug for LoginProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginProof").field("user", &self.user).finish_non_exhaustive()
    }
}
