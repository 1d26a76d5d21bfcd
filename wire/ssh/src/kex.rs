//! Key exchange as pure computation: KEXINIT, negotiation, the two methods, key derivation.
//!
//! The order of messages is the business of `transport`; nothing here keeps state between packets
//! except the client's ephemeral secrets.

use crate::algorithm::{CipherAlgorithm, KexAlgorithm, PublicKeyAlgorithm, choose, names};
use crate::cipher::DirectionKeys;
use crate::encoding::{DecodeError, Put, Reader};
use crate::entropy::Entropy;
use crate::message;
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::digest::{Context, SHA256, digest};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest name list in a KEXINIT.
const NAME_LIST_BYTES_MAX: usize = 8 * 1024;
const STRICT_CLIENT: &str = "kex-strict-c-v00@openssh.com";
const STRICT_SERVER: &str = "kex-strict-s-v00@openssh.com";
const EXT_INFO_CLIENT: &str = "ext-info-c";
/// Offered because some peers refuse an empty list; no cipher here ever uses one.
const MACS: &str = "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com";
const MLKEM_KEY_BYTES: usize = 1184;
const MLKEM_CIPHERTEXT_BYTES: usize = 1088;
const X25519_BYTES: usize = 32;
/// Random bytes at the start of a KEXINIT.
pub(crate) const COOKIE_BYTES: usize = 16;

/// A key exchange that cannot be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KexError {
    /// Nothing in common in one of the lists.
    #[error("no {0} in common")]
    NothingInCommon(&'static str),
    /// A message is malformed.
    #[error("key exchange message is malformed: {0}")]
    Malformed(#[from] DecodeError),
    /// The peer's share is not a valid public value (all-zero results included).
    #[error("key exchange share is not acceptable")]
    Share,
    /// The server's signature over the exchange does not verify.
    #[error("host key signature does not verify")]
    Signature,
    /// The host key blob is not of the negotiated algorithm.
    #[error("host key does not fit the negotiated algorithm")]
    HostKey,
    /// The host key changed in the middle of a connection.
    #[error("host key changed during the connection")]
    HostKeyChanged,
}

/// Which end we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// What one side offers.
pub(crate) struct Offer<'a> {
    pub(crate) role: Role,
    pub(crate) kex: &'a [KexAlgorithm],
    pub(crate) host_keys: &'a [PublicKeyAlgorithm],
    pub(crate) ciphers: &'a [CipherAlgorithm],
    pub(crate) cookie: [u8; COOKIE_BYTES],
    /// Only the first exchange announces extensions.
    pub(crate) is_first: bool,
    /// A share for the most wanted method follows at once.
    pub(crate) is_guessing: bool,
}

impl Offer<'_> {
    /// The KEXINIT payload.
    pub(crate) fn to_payload(&self) -> Vec<u8> {
        let mut kex = self.kex.iter().map(|k| k.name()).collect::<Vec<_>>();
        if self.is_first {
            match self.role {
                Role::Client => kex.extend([EXT_INFO_CLIENT, STRICT_CLIENT]),
                Role::Server => kex.push(STRICT_SERVER),
            }
        }
        let kex = kex.join(",");
        let host_keys = self.host_keys.iter().map(|k| k.name()).collect::<Vec<_>>().join(",");
        let ciphers = self.ciphers.iter().map(|c| c.name()).collect::<Vec<_>>().join(",");
        let mut payload = Vec::with_capacity(1024);
        payload.put_byte(message::KEXINIT);
        payload.put_raw(&self.cookie);
        for list in [&kex, &host_keys, &ciphers, &ciphers] {
            payload.put_string(list.as_bytes());
        }
        for list in [MACS, MACS, "none", "none", "", ""] {
            payload.put_string(list.as_bytes());
        }
        payload.put_bool(self.is_guessing);
        payload.put_uint(0);
        payload
    }
}

/// The lists of a KEXINIT, borrowed.
struct Lists<'a> {
    kex: &'a [u8],
    host_keys: &'a [u8],
    cipher_to_server: &'a [u8],
    cipher_to_client: &'a [u8],
    compression: [&'a [u8]; 2],
    first_follows: bool,
}

impl<'a> Lists<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        reader.u8()?;
        reader.take(COOKIE_BYTES)?;
        let mut list = || reader.string_max(NAME_LIST_BYTES_MAX, "name list");
        let (kex, host_keys) = (list()?, list()?);
        let (cipher_to_server, cipher_to_client) = (list()?, list()?);
        let (_, _) = (list()?, list()?);
        let compression = [list()?, list()?];
        let (_, _) = (list()?, list()?);
        let first_follows = reader.bool()?;
        reader.u32()?;
        reader.end()?;
        Ok(Self { kex, host_keys, cipher_to_server, cipher_to_client, compression, first_follows })
    }
}

/// The cookie of a KEXINIT payload.
pub(crate) fn cookie_of(init: &[u8]) -> Result<[u8; COOKIE_BYTES], DecodeError> {
    let mut reader = Reader::new(init);
    if reader.u8()? != message::KEXINIT {
        return Err(DecodeError::Invalid("KEXINIT"));
    }
    let cookie = reader.take(COOKIE_BYTES)?;
    cookie.try_into().map_err(|_| DecodeError::Truncated)
}

/// The outcome of a negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Negotiated {
    pub(crate) kex: KexAlgorithm,
    pub(crate) host_key: PublicKeyAlgorithm,
    pub(crate) to_server: CipherAlgorithm,
    pub(crate) to_client: CipherAlgorithm,
    /// Both sides announced strict key exchange (meaningful in the first exchange only).
    pub(crate) is_strict: bool,
    /// The client takes EXT_INFO (meaningful in the first exchange only).
    pub(crate) client_takes_ext_info: bool,
    /// The most wanted algorithms of both sides agree: a guessed exchange packet counts.
    pub(crate) is_guess_right: bool,
    /// The peer sends a guessed exchange packet, and the guess is wrong.
    pub(crate) ignore_next: bool,
}

/// Chooses algorithms from the two KEXINIT payloads. `is_strict_before` is what the first exchange found.
pub(crate) fn negotiate(
    role: Role,
    ours: &[u8],
    theirs: &[u8],
    is_strict_before: Option<bool>,
) -> Result<Negotiated, KexError> {
    let (ours, theirs) = (Lists::parse(ours)?, Lists::parse(theirs)?);
    let (client, server) = match role {
        Role::Client => (&ours, &theirs),
        Role::Server => (&theirs, &ours),
    };
    let has = |list: &[u8], name: &str| names(list).any(|n| n == name.as_bytes());
    let is_strict =
        is_strict_before.unwrap_or_else(|| has(client.kex, STRICT_CLIENT) && has(server.kex, STRICT_SERVER));
    let kex_name = choose(client.kex, server.kex);
    let kex = KexAlgorithm::ALL
        .into_iter()
        .find(|k| kex_name == Some(k.name().as_bytes()))
        .ok_or(KexError::NothingInCommon("key exchange method"))?;
    let host_key = choose(client.host_keys, server.host_keys)
        .and_then(PublicKeyAlgorithm::from_name)
        .ok_or(KexError::NothingInCommon("host key algorithm"))?;
    let to_server = choose_cipher(client.cipher_to_server, server.cipher_to_server, is_strict)?;
    let to_client = choose_cipher(client.cipher_to_client, server.cipher_to_client, is_strict)?;
    for (ours, theirs) in client.compression.iter().zip(server.compression) {
        if choose(ours, theirs) != Some(b"none") {
            return Err(KexError::NothingInCommon("compression method"));
        }
    }
    let first = |list| names(list).next();
    let is_guess_right =
        first(client.kex) == first(server.kex) && first(client.host_keys) == first(server.host_keys);
    Ok(Negotiated {
        kex,
        host_key,
        to_server,
        to_client,
        is_strict,
        client_takes_ext_info: has(client.kex, EXT_INFO_CLIENT),
        is_guess_right,
        ignore_next: theirs.first_follows && !is_guess_right,
    })
}

/// ChaCha20-Poly1305 without strict key exchange lets packets be cut (CVE-2023-48795): not chosen then.
fn choose_cipher(client: &[u8], server: &[u8], is_strict: bool) -> Result<CipherAlgorithm, KexError> {
    names(client)
        .filter(|wanted| names(server).any(|had| had == *wanted))
        .find_map(|name| CipherAlgorithm::ALL.into_iter().find(|c| c.name().as_bytes() == name))
        .filter(|cipher| is_strict || *cipher != CipherAlgorithm::ChaCha20Poly1305)
        .ok_or(KexError::NothingInCommon("cipher"))
}

/// The shared secret in the form in which it is hashed: an mpint or a string, with its length.
pub(crate) struct SharedSecret(Zeroizing<Vec<u8>>);

impl SharedSecret {
    pub(crate) fn encoded(&self) -> Zeroizing<Vec<u8>> {
        self.0.clone()
    }

    pub(crate) fn from_encoded(encoded: Zeroizing<Vec<u8>>) -> Self {
        Self(encoded)
    }
}

/// The client's half-finished exchange.
pub(crate) struct ClientExchange {
    x25519: PrivateKey,
    mlkem: Option<DecapsulationKey>,
    /// Q_C or C_INIT, as sent.
    pub(crate) share: Vec<u8>,
}

impl ClientExchange {
    pub(crate) fn start(kex: KexAlgorithm, entropy: &mut (dyn Entropy + Send)) -> Result<Self, KexError> {
        let (x25519, x25519_share) = x25519_key(entropy)?;
        let mut share = Vec::with_capacity(MLKEM_KEY_BYTES + X25519_BYTES);
        let mlkem = match kex {
            KexAlgorithm::Curve25519Sha256 | KexAlgorithm::Curve25519Sha256Libssh => None,
            KexAlgorithm::MlKem768X25519Sha256 => {
                let key = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| KexError::Share)?;
                let public = key.encapsulation_key().map_err(|_| KexError::Share)?;
                share.put_raw(public.key_bytes().map_err(|_| KexError::Share)?.as_ref());
                Some(key)
            }
        };
        share.put_raw(&x25519_share);
        Ok(Self { x25519, mlkem, share })
    }

    pub(crate) fn finish(&self, server_share: &[u8]) -> Result<SharedSecret, KexError> {
        let Some(mlkem) = &self.mlkem else {
            return x25519_secret(&self.x25519, server_share, plain_secret);
        };
        let (ciphertext, x25519_share) =
            server_share.split_at_checked(MLKEM_CIPHERTEXT_BYTES).ok_or(KexError::Share)?;
        let post_quantum = mlkem.decapsulate(Ciphertext::from(ciphertext)).map_err(|_| KexError::Share)?;
        x25519_secret(&self.x25519, x25519_share, |classical| hybrid_secret(post_quantum.as_ref(), classical))
    }
}

/// The server's answer to a client share: its own share and the secret.
pub(crate) fn answer(
    kex: KexAlgorithm,
    client_share: &[u8],
    entropy: &mut (dyn Entropy + Send),
) -> Result<(Vec<u8>, SharedSecret), KexError> {
    let (x25519, x25519_share) = x25519_key(entropy)?;
    match kex {
        KexAlgorithm::Curve25519Sha256 | KexAlgorithm::Curve25519Sha256Libssh => {
            let secret = x25519_secret(&x25519, client_share, plain_secret)?;
            Ok((x25519_share.to_vec(), secret))
        }
        KexAlgorithm::MlKem768X25519Sha256 => {
            let (mlkem_share, x25519_peer) =
                client_share.split_at_checked(MLKEM_KEY_BYTES).ok_or(KexError::Share)?;
            let key = EncapsulationKey::new(&ML_KEM_768, mlkem_share).map_err(|_| KexError::Share)?;
            let (ciphertext, post_quantum) = key.encapsulate().map_err(|_| KexError::Share)?;
            let secret = x25519_secret(&x25519, x25519_peer, |classical| {
                hybrid_secret(post_quantum.as_ref(), classical)
            })?;
            Ok(([ciphertext.as_ref(), &x25519_share].concat(), secret))
        }
    }
}

fn x25519_key(entropy: &mut (dyn Entropy + Send)) -> Result<(PrivateKey, [u8; X25519_BYTES]), KexError> {
    let mut secret = Zeroizing::new([0; X25519_BYTES]);
    entropy.fill(secret.as_mut_slice());
    let key = PrivateKey::from_private_key(&X25519, secret.as_slice()).map_err(|_| KexError::Share)?;
    let public = key.compute_public_key().map_err(|_| KexError::Share)?;
    let public = public.as_ref().try_into().map_err(|_| KexError::Share)?;
    Ok((key, public))
}

fn x25519_secret(
    key: &PrivateKey,
    peer: &[u8],
    finish: impl FnOnce(&[u8]) -> SharedSecret,
) -> Result<SharedSecret, KexError> {
    agree(key, UnparsedPublicKey::new(&X25519, peer), KexError::Share, |secret| {
        // A point of small order gives zero (RFC 7748 section 6.1).
        if secret.iter().fold(0, |all, byte| all | byte) == 0 {
            return Err(KexError::Share);
        }
        Ok(finish(secret))
    })
}

fn plain_secret(secret: &[u8]) -> SharedSecret {
    let mut encoded = Zeroizing::new(Vec::with_capacity(40));
    encoded.put_mpint(secret);
    SharedSecret(encoded)
}

/// K = SHA-256(K_PQ || K_CL), hashed as a string (draft-ietf-sshm-mlkem-hybrid-kex section 2.4).
fn hybrid_secret(post_quantum: &[u8], classical: &[u8]) -> SharedSecret {
    let mut context = Context::new(&SHA256);
    context.update(post_quantum);
    context.update(classical);
    let mut encoded = Zeroizing::new(Vec::with_capacity(36));
    encoded.put_string(context.finish().as_ref());
    SharedSecret(encoded)
}

/// Everything that goes into the exchange hash beside the secret.
pub(crate) struct Transcript<'a> {
    pub(crate) client_version: &'a [u8],
    pub(crate) server_version: &'a [u8],
    pub(crate) client_init: &'a [u8],
    pub(crate) server_init: &'a [u8],
    pub(crate) host_key: &'a [u8],
    pub(crate) client_share: &'a [u8],
    pub(crate) server_share: &'a [u8],
}

impl<'a> Transcript<'a> {
    /// In the order in which they are hashed.
    pub(crate) fn parts(&self) -> [&'a [u8]; 7] {
        [
            self.client_version,
            self.server_version,
            self.client_init,
            self.server_init,
            self.host_key,
            self.client_share,
            self.server_share,
        ]
    }

    /// H (RFC 5656 section 4, RFC 8731 section 3).
    pub(crate) fn hash(&self, secret: &SharedSecret) -> [u8; 32] {
        let mut bytes = Zeroizing::new(Vec::with_capacity(8192));
        for part in self.parts() {
            bytes.put_string(part);
        }
        bytes.put_raw(&secret.0);
        sha256(&bytes)
    }
}

/// Keys of both directions.
pub(crate) struct SessionKeys {
    pub(crate) to_server: DirectionKeys,
    pub(crate) to_client: DirectionKeys,
}

impl SessionKeys {
    /// RFC 4253 section 7.2: letters A and C for client to server, B and D for server to client.
    pub(crate) fn derive(
        negotiated: &Negotiated,
        secret: &SharedSecret,
        hash: &[u8; 32],
        session_id: &[u8; 32],
    ) -> Self {
        let direction = |cipher: CipherAlgorithm, iv_letter, key_letter| {
            let mut iv = [0; 12];
            let block = expand(secret, hash, session_id, iv_letter, iv.len());
            iv.copy_from_slice(block.get(..12).unwrap_or(&[0; 12]));
            let key = expand(secret, hash, session_id, key_letter, cipher.key_bytes());
            DirectionKeys { cipher, key, iv }
        };
        Self {
            to_server: direction(negotiated.to_server, b'A', b'C'),
            to_client: direction(negotiated.to_client, b'B', b'D'),
        }
    }
}

fn expand(
    secret: &SharedSecret,
    hash: &[u8; 32],
    session_id: &[u8; 32],
    letter: u8,
    key_bytes: usize,
) -> Zeroizing<Vec<u8>> {
    let mut input = Zeroizing::new(Vec::with_capacity(256));
    input.put_raw(&secret.0);
    input.put_raw(hash);
    let common = input.len();
    input.put_byte(letter);
    input.put_raw(session_id);
    let mut key = Zeroizing::new(Vec::with_capacity(96));
    key.put_raw(&sha256(&input));
    while key.len() < key_bytes {
        input.truncate(common);
        input.put_raw(&key);
        let next = sha256(&input);
        key.put_raw(&next);
    }
    key.truncate(key_bytes);
    key
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}
