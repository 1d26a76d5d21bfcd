//! User authentication (RFC 4252), `publickey` only: certificates on the server, keys and
//! certificates on the client. Who may log in is not decided here.

pub(crate) mod client;
pub(crate) mod server;

use crate::encoding::Put;
use crate::message;

pub(crate) const SERVICE_USERAUTH: &[u8] = b"ssh-userauth";
pub(crate) const SERVICE_CONNECTION: &[u8] = b"ssh-connection";
pub(crate) const METHOD_PUBLICKEY: &[u8] = b"publickey";
/// Longest user name.
pub(crate) const USER_BYTES_MAX: usize = 255;

/// What a client signs (RFC 4252 section 7).
pub(crate) fn signed_message(session_id: &[u8; 32], user: &str, algorithm: &str, key: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(256 + key.len());
    message.put_string(session_id);
    message.put_raw(&signed_request(user, algorithm, key));
    message
}

/// The USERAUTH_REQUEST up to and without its signature.
pub(crate) fn signed_request(user: &str, algorithm: &str, key: &[u8]) -> Vec<u8> {
    let mut request = Vec::with_capacity(256 + key.len());
    request.put_byte(message::USERAUTH_REQUEST);
    request.put_string(user.as_bytes());
    request.put_string(SERVICE_CONNECTION);
    request.put_string(METHOD_PUBLICKEY);
    request.put_bool(true);
    request.put_string(algorithm.as_bytes());
    request.put_string(key);
    request
}
