//! The server's half: proves that the client holds a certified key, and asks the embedder.

use super::{METHOD_PUBLICKEY, SERVICE_CONNECTION, SERVICE_USERAUTH, USER_BYTES_MAX, signed_message};
use crate::algorithm::PublicKeyAlgorithm;
use crate::certificate::{CERTIFICATE_BYTES_MAX, CertType, Certificate};
use crate::encoding::{DecodeError, Put, Reader};
use crate::error::ConnectionError;
use crate::event::AuthAttempt;
use crate::key::{KEY_BLOB_BYTES_MAX, SecurityKeyAssertion};
use crate::message;
use crate::proof::LoginProof;
use crate::transport::{Transport, malformed};

/// Requests without a signature (probes for keys and methods) before the connection is cut.
const PROBES_MAX: u32 = 64;
/// Longest method or service name.
const METHOD_BYTES_MAX: usize = 128;
/// Critical option that wants a PIN or a fingerprint, and the extension that waives the touch.
const VERIFY_REQUIRED: &str = "verify-required";
const NO_TOUCH_REQUIRED: &str = "no-touch-required";

/// State of the server's half.
#[derive(Debug)]
pub(crate) struct ServerAuth {
    has_service: bool,
    probes: u32,
    attempts: u32,
    attempts_max: u32,
    banner: Option<String>,
    /// An attempt is with the embedder.
    pub(crate) is_pending: bool,
}

impl ServerAuth {
    pub(crate) fn new(attempts_max: u32, banner: Option<String>) -> Self {
        Self { has_service: false, probes: 0, attempts: 0, attempts_max, banner, is_pending: false }
    }

    /// One message before authentication. An attempt is returned when its signature holds.
    pub(crate) fn handle(
        &mut self,
        payload: &[u8],
        transport: &mut Transport,
    ) -> Result<Option<AuthAttempt>, ConnectionError> {
        match payload.first().copied().unwrap_or(0) {
            message::SERVICE_REQUEST => self.on_service(payload, transport).map(|()| None),
            message::USERAUTH_REQUEST if self.has_service => self.on_request(payload, transport),
            message::CONNECTION_START.. => {
                Err(ConnectionError::Protocol("channel message before authentication"))
            }
            _ => Err(ConnectionError::Protocol("unexpected message before authentication")),
        }
    }

    fn on_service(&mut self, payload: &[u8], transport: &mut Transport) -> Result<(), ConnectionError> {
        let fail = malformed(message::SERVICE_REQUEST);
        let mut reader = Reader::new(payload);
        reader.u8().map_err(&fail)?;
        let name = reader.string_max(METHOD_BYTES_MAX, "service").map_err(&fail)?;
        reader.end().map_err(&fail)?;
        if name != SERVICE_USERAUTH || self.has_service {
            return Err(ConnectionError::Protocol("service is not available"));
        }
        self.has_service = true;
        let mut accept = vec![message::SERVICE_ACCEPT];
        accept.put_string(SERVICE_USERAUTH);
        transport.send(accept)?;
        if let Some(text) = self.banner.take() {
            let mut banner = vec![message::USERAUTH_BANNER];
            banner.put_string(text.as_bytes());
            banner.put_string(b"");
            transport.send(banner)?;
        }
        Ok(())
    }

    fn on_request(
        &mut self,
        payload: &[u8],
        transport: &mut Transport,
    ) -> Result<Option<AuthAttempt>, ConnectionError> {
        let request = Request::parse(payload).map_err(malformed(message::USERAUTH_REQUEST))?;
        if request.service != SERVICE_CONNECTION {
            return Err(ConnectionError::Protocol("service is not available"));
        }
        let Some(offer) = request.offer.as_ref().and_then(Offer::certificate) else {
            return self.refuse_probe(transport);
        };
        let Some(signature) = offer.signature else {
            self.count_probe()?;
            let mut ok = vec![message::USERAUTH_PK_OK];
            ok.put_string(offer.algorithm.name().as_bytes());
            ok.put_string(offer.certificate.as_blob());
            return transport.send(ok).map(|()| None);
        };
        let session_id =
            transport.session_id().ok_or(ConnectionError::Protocol("authentication before key exchange"))?;
        let signed =
            signed_message(session_id, request.user, offer.algorithm.name(), offer.certificate.as_blob());
        let verified = offer.certificate.key().verify(offer.algorithm.signature, &signed, signature);
        let Ok(security_key) = verified else {
            return self.refuse(transport).map(|()| None);
        };
        if !is_presence_enough(&offer.certificate, security_key) {
            return self.refuse(transport).map(|()| None);
        }
        self.is_pending = true;
        let proof = transport.recorded().map(|exchange| {
            let (algorithm, certificate) = (offer.algorithm, &offer.certificate);
            Box::new(LoginProof::new(exchange.clone(), request.user, algorithm, certificate, signature))
        });
        let user = request.user.to_owned();
        Ok(Some(AuthAttempt { user, certificate: offer.certificate, security_key, proof }))
    }

    /// A signed attempt failed, here or at the embedder.
    pub(crate) fn refuse(&mut self, transport: &mut Transport) -> Result<(), ConnectionError> {
        self.is_pending = false;
        self.attempts += 1;
        if self.attempts >= self.attempts_max {
            return Err(ConnectionError::TooManyAuthAttempts);
        }
        send_failure(transport)
    }

    fn refuse_probe(&mut self, transport: &mut Transport) -> Result<Option<AuthAttempt>, ConnectionError> {
        self.count_probe()?;
        send_failure(transport).map(|()| None)
    }

    fn count_probe(&mut self) -> Result<(), ConnectionError> {
        self.probes += 1;
        if self.probes > PROBES_MAX {
            return Err(ConnectionError::TooManyAuthAttempts);
        }
        Ok(())
    }
}

fn send_failure(transport: &mut Transport) -> Result<(), ConnectionError> {
    let mut failure = vec![message::USERAUTH_FAILURE];
    failure.put_string(METHOD_PUBLICKEY);
    failure.put_bool(false);
    transport.send(failure)
}

/// A FIDO key must have been touched unless the certificate waives it, and the user verified where
/// the certificate asks for that. A key that cannot verify users does not meet `verify-required`.
pub(crate) fn is_presence_enough(certificate: &Certificate, assertion: Option<SecurityKeyAssertion>) -> bool {
    let wants_verification = certificate.critical_options().contains_key(VERIFY_REQUIRED);
    let waives_touch = certificate.extensions().contains_key(NO_TOUCH_REQUIRED);
    match assertion {
        None => !wants_verification,
        Some(seen) => (seen.user_present || waives_touch) && (seen.user_verified || !wants_verification),
    }
}

/// A USERAUTH_REQUEST, borrowed.
struct Request<'a> {
    user: &'a str,
    service: &'a [u8],
    /// For `publickey` only.
    offer: Option<Offer<'a>>,
}

struct Offer<'a> {
    algorithm: &'a [u8],
    key: &'a [u8],
    signature: Option<&'a [u8]>,
}

/// An offer that is a well-formed user certificate.
struct CertificateOffer<'a> {
    algorithm: PublicKeyAlgorithm,
    certificate: Certificate,
    signature: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        reader.u8()?;
        let user = reader.text(USER_BYTES_MAX, "user name")?;
        let service = reader.string_max(METHOD_BYTES_MAX, "service")?;
        let method = reader.string_max(METHOD_BYTES_MAX, "method")?;
        if method != METHOD_PUBLICKEY {
            return Ok(Self { user, service, offer: None });
        }
        let is_signed = reader.bool()?;
        let algorithm = reader.string_max(METHOD_BYTES_MAX, "algorithm")?;
        let key = reader.string_max(CERTIFICATE_BYTES_MAX, "key")?;
        let signature =
            if is_signed { Some(reader.string_max(KEY_BLOB_BYTES_MAX, "signature")?) } else { None };
        reader.end()?;
        Ok(Self { user, service, offer: Some(Offer { algorithm, key, signature }) })
    }
}

impl<'a> Offer<'a> {
    fn certificate(&self) -> Option<CertificateOffer<'a>> {
        let algorithm = PublicKeyAlgorithm::from_name(self.algorithm).filter(|a| a.is_certificate)?;
        let certificate = Certificate::parse(self.key).ok()?;
        let fits = certificate.kind() == CertType::User && certificate.key().takes(algorithm.signature);
        fits.then_some(CertificateOffer { algorithm, certificate, signature: self.signature })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn f_arbitrary_requests_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Request::parse(&bytes);
            let mut payload = vec![message::USERAUTH_REQUEST];
            payload.put_string(b"alice");
            payload.put_string(SERVICE_CONNECTION);
            payload.put_string(METHOD_PUBLICKEY);
            payload.extend(&bytes);
            if let Ok(Request { offer: Some(offer), .. }) = Request::parse(&payload) {
                let _ = offer.certificate();
            }
        }
    }
}
