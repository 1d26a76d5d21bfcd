//! How both ends come to a secret that nobody in between knows, and how they prove it later.
//!
//! Each end makes a new X25519 share and signs it with the key of its certificate: the client its own share, the agent
//! its own share and all of what the client sent. So an agent's answer is good for one client's hello only, and who
//! passes the frames on can neither learn the secret nor put himself in the place of either end. Signatures begin as
//! those of TLS 1.3 do (64 spaces and a context, RFC 8446, section 4.4.3), with contexts of our own: no signature of
//! one protocol is good in the other.

use crate::frame::{AgentHello, Challenge, ClientHello, Proof, Reattach, Refused, StreamId, VERSION};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

const CLIENT_CONTEXT: &str = "wayleave resume, client hello";
const AGENT_CONTEXT: &str = "wayleave resume, agent hello";
const PROOF_CONTEXT: &str = "wayleave resume, proof";
const REFUSAL_CONTEXT: &str = "wayleave resume, refusal";
const SECRET_INFO: &[u8] = b"wayleave resume, secret of a stream";
const CLIENT_MAC: &[u8] = b"wayleave resume, client";
const AGENT_MAC: &[u8] = b"wayleave resume, agent";
const SIGNED_PADDING: [u8; 64] = [b' '; 64];

/// A share that cannot be made or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the share of the other end cannot be used")]
pub struct ShareError;

/// The private half of a share; good for one exchange.
pub struct Ephemeral {
    key: PrivateKey,
    share: [u8; 32],
}

/// The secret of one stream. It is never sent.
pub struct StreamSecret(Zeroizing<[u8; 32]>);

/// What a proof is about: one attempt, with what is new in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The stream.
    pub stream: StreamId,
    /// Of the client.
    pub client_nonce: [u8; 32],
    /// Of the agent.
    pub agent_nonce: [u8; 32],
    /// What the client has received.
    pub client_received: u64,
}

/// What came from whoever is refused: no refusal is good for another attempt, or for a proof that a proxy changed.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Which stream, and with which nonce.
    pub reattach: &'a Reattach,
    /// How he proved that it is his, where it came to that.
    pub proved: Option<(&'a Challenge, &'a Proof)>,
}

impl Ephemeral {
    /// From 32 random bytes that nobody else knows.
    ///
    /// # Errors
    /// [`ShareError`] when the library refuses them.
    pub fn new(entropy: [u8; 32]) -> Result<Self, ShareError> {
        let entropy = Zeroizing::new(entropy);
        let key = PrivateKey::from_private_key(&X25519, &*entropy).map_err(|_| ShareError)?;
        let public = key.compute_public_key().map_err(|_| ShareError)?;
        let share = public.as_ref().try_into().map_err(|_| ShareError)?;
        Ok(Self { key, share })
    }

    /// The public half.
    pub fn share(&self) -> [u8; 32] {
        self.share
    }

    /// The secret that both ends come to. Both hellos must have been verified, or be verified before it is used.
    ///
    /// # Errors
    /// [`ShareError`] when the other share is no point, or gives no secret.
    pub fn secret(
        &self,
        other: &[u8; 32],
        client: &ClientHello,
        agent: &AgentHello,
    ) -> Result<StreamSecret, ShareError> {
        let other = UnparsedPublicKey::new(&X25519, other);
        agree(&self.key, other, ShareError, |shared| {
            // A point of small order gives zero (RFC 7748, section 6.1).
            if shared.iter().fold(0, |all, byte| all | byte) == 0 {
                return Err(ShareError);
            }
            let salt = Salt::new(HKDF_SHA256, &agent_statement(client, agent));
            let keys = salt.extract(shared);
            let mut secret = Zeroizing::new([0; 32]);
            let expanded = keys.expand(&[SECRET_INFO], SecretLength).map_err(|_| ShareError)?;
            expanded.fill(&mut *secret).map_err(|_| ShareError)?;
            Ok(StreamSecret(secret))
        })
    }
}

struct SecretLength;

impl KeyType for SecretLength {
    fn len(&self) -> usize {
        32
    }
}

/// What the client signs.
pub fn client_statement(share: &[u8; 32], certificate: &[u8]) -> Vec<u8> {
    statement(CLIENT_CONTEXT, &[&[VERSION], share, &digest_of(&[certificate])])
}

/// What the agent signs: all of what the client sent, and all of its own hello but the signature.
pub fn agent_statement(client: &ClientHello, agent: &AgentHello) -> Vec<u8> {
    let hello = digest_of(&[&client.share, &client.signed.certificate, &client.signed.signature]);
    let lifetime = agent.max_detached_ms.to_be_bytes();
    let certificate = digest_of(&[&agent.signed.certificate]);
    let proxies: Vec<&[u8]> = agent.proxies.iter().map(String::as_bytes).collect();
    let proxies = digest_of(&proxies);
    let parts: [&[u8]; 7] =
        [&[VERSION], &hello, &agent.share, &agent.stream.0, &lifetime, &proxies, &certificate];
    statement(AGENT_CONTEXT, &parts)
}

/// What the user signs to get a stream back.
pub fn proof_statement(attempt: &Attempt, certificate: &[u8]) -> Vec<u8> {
    statement(PROOF_CONTEXT, &[&[VERSION], &attempt.bytes(), &digest_of(&[certificate])])
}

/// What the agent signs when it gives a stream not back. It needs not know the stream for that.
pub fn refusal_statement(asked: &Asked<'_>, refused: &Refused, certificate: &[u8]) -> Vec<u8> {
    let Reattach { stream, nonce, received } = asked.reattach;
    let proof = asked.proved.map_or([0; 32], |(challenge, Proof { mac, signed })| {
        digest_of(&[&challenge.nonce, mac, &signed.certificate, &signed.signature])
    });
    let text = digest_of(&[refused.text.as_bytes(), certificate]);
    let code = [refused.refusal.code()];
    let parts: [&[u8]; 7] = [&[VERSION], &stream.0, nonce, &received.to_be_bytes(), &proof, &code, &text];
    statement(REFUSAL_CONTEXT, &parts)
}

/// Over parts whose borders count.
fn digest_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn statement(context: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut statement = SIGNED_PADDING.to_vec();
    statement.extend_from_slice(context.as_bytes());
    statement.push(0);
    parts.iter().for_each(|part| statement.extend_from_slice(part));
    statement
}

impl StreamSecret {
    /// The client's proof that it knows the secret.
    pub fn client_mac(&self, attempt: &Attempt) -> [u8; 32] {
        self.mac(&[CLIENT_MAC, &attempt.bytes()])
    }

    /// The agent's proof, over what it has received as well.
    pub fn agent_mac(&self, attempt: &Attempt, agent_received: u64) -> [u8; 32] {
        self.mac(&[AGENT_MAC, &attempt.bytes(), &agent_received.to_be_bytes()])
    }

    /// Whether it is the client's, in a time that does not tell how nearly.
    pub fn is_client_mac(&self, mac: &[u8; 32], attempt: &Attempt) -> bool {
        verify_slices_are_equal(mac, &self.client_mac(attempt)).is_ok()
    }

    /// The same for the agent's.
    pub fn is_agent_mac(&self, mac: &[u8; 32], attempt: &Attempt, agent_received: u64) -> bool {
        verify_slices_are_equal(mac, &self.agent_mac(attempt, agent_received)).is_ok()
    }

    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &*self.0));
        parts.iter().for_each(|part| context.update(part));
        let mut mac = [0; 32];
        mac.copy_from_slice(context.sign().as_ref());
        mac
    }
}

impl Attempt {
    /// One attempt, once both nonces are known.
    pub fn new(reattach: &Reattach, agent_nonce: [u8; 32]) -> Self {
        Self {
            stream: reattach.stream,
            client_nonce: reattach.nonce,
            agent_nonce,
            client_received: reattach.received,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let received = self.client_received.to_be_bytes();
        [&self.stream.0[..], &self.client_nonce, &self.agent_nonce, &received].concat()
    }
}
