//! The client's half: offers its credentials one after the other.

use super::{METHOD_PUBLICKEY, SERVICE_USERAUTH, signed_message, signed_request};
use crate::algorithm::{PublicKeyAlgorithm, SignatureAlgorithm, names};
use crate::config::Credential;
use crate::encoding::{Put, Reader};
use crate::error::ConnectionError;
use crate::message;
use crate::transport::{Transport, malformed};
use std::collections::VecDeque;

/// Longest banner taken.
const BANNER_BYTES_MAX: usize = 16 * 1024;
/// Most banners taken.
const BANNERS_MAX: u32 = 16;
/// Longest list of methods.
const METHODS_BYTES_MAX: usize = 1024;

/// What the server's message means.
pub(crate) enum ClientStep {
    Wait,
    Banner(String),
    Authenticated,
}

/// State of the client's half.
#[derive(Debug)]
pub(crate) struct ClientAuth {
    user: String,
    untried: VecDeque<Credential>,
    is_accepted: bool,
    banners: u32,
}

impl ClientAuth {
    pub(crate) fn new(user: String, credentials: Vec<Credential>) -> Self {
        Self { user, untried: credentials.into(), is_accepted: false, banners: 0 }
    }

    /// Asks for the service and, without waiting for it, for the first credential: one round trip less.
    pub(crate) fn start(&mut self, transport: &mut Transport) -> Result<(), ConnectionError> {
        let mut request = vec![message::SERVICE_REQUEST];
        request.put_string(SERVICE_USERAUTH);
        transport.send(request)?;
        self.try_next(transport, "publickey")
    }

    pub(crate) fn handle(
        &mut self,
        payload: &[u8],
        transport: &mut Transport,
    ) -> Result<ClientStep, ConnectionError> {
        let number = payload.first().copied().unwrap_or(0);
        match number {
            message::SERVICE_ACCEPT => {
                self.is_accepted = true;
                Ok(ClientStep::Wait)
            }
            message::USERAUTH_BANNER => self.on_banner(payload),
            message::USERAUTH_FAILURE if self.is_accepted => {
                self.on_failure(payload, transport).map(|()| ClientStep::Wait)
            }
            message::USERAUTH_SUCCESS if self.is_accepted => Ok(ClientStep::Authenticated),
            _ => Err(ConnectionError::Protocol("unexpected message before authentication")),
        }
    }

    fn on_banner(&mut self, payload: &[u8]) -> Result<ClientStep, ConnectionError> {
        let fail = malformed(message::USERAUTH_BANNER);
        self.banners += 1;
        if self.banners > BANNERS_MAX {
            return Err(ConnectionError::Limit("banners"));
        }
        let mut reader = Reader::new(payload);
        reader.u8().map_err(&fail)?;
        let text = reader.string_max(BANNER_BYTES_MAX, "banner").map_err(&fail)?;
        let mut text = String::from_utf8_lossy(text).into_owned();
        text.retain(|c| c == '\n' || c == '\t' || !c.is_control());
        Ok(ClientStep::Banner(text))
    }

    fn on_failure(&mut self, payload: &[u8], transport: &mut Transport) -> Result<(), ConnectionError> {
        let fail = malformed(message::USERAUTH_FAILURE);
        let mut reader = Reader::new(payload);
        reader.u8().map_err(&fail)?;
        let methods = reader.text(METHODS_BYTES_MAX, "methods").map_err(&fail)?;
        reader.bool().map_err(&fail)?;
        reader.end().map_err(&fail)?;
        self.try_next(transport, methods)
    }

    fn try_next(&mut self, transport: &mut Transport, methods: &str) -> Result<(), ConnectionError> {
        let failed = || ConnectionError::AuthenticationFailed { methods_left: methods.to_owned() };
        if !names(methods.as_bytes()).any(|m| m == METHOD_PUBLICKEY) {
            return Err(failed());
        }
        let credential = self.untried.pop_front().ok_or_else(failed)?;
        let session_id =
            transport.session_id().ok_or(ConnectionError::Protocol("authentication before key exchange"))?;
        let (algorithm, blob) = match &credential.certificate {
            None => {
                let blob = credential.key.public_key().to_blob();
                (PublicKeyAlgorithm::key(SignatureAlgorithm::Ed25519), blob)
            }
            Some(certificate) => {
                let blob = certificate.as_blob().to_vec();
                (PublicKeyAlgorithm::certificate(SignatureAlgorithm::Ed25519), blob)
            }
        };
        let signed = signed_message(session_id, &self.user, algorithm.name(), &blob);
        let mut request = signed_request(&self.user, algorithm.name(), &blob);
        request.put_string(&credential.key.sign(&signed));
        transport.send(request)
    }
}
