//! What the embedder decides beforehand, for either role.

use crate::algorithm::{CipherAlgorithm, HOST_KEY_ALGORITHMS, KexAlgorithm, PublicKeyAlgorithm};
use crate::certificate::Certificate;
use crate::private_key::KeyPair;
use std::sync::Arc;
use std::time::Duration;

/// The version line without its line end; the part after `SSH-2.0-` must be printable and short.
pub(crate) const VERSION: &str = concat!("SSH-2.0-Wayleave_", env!("CARGO_PKG_VERSION"));

/// Flow control and counts of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Channels at a time, in all states.
    pub channels_max: usize,
    /// Channels that the peer asked for and the embedder has not answered yet.
    pub opens_pending_max: usize,
    /// Receive window of each channel, in bytes.
    pub window_bytes: u32,
    /// Largest channel data message taken and made, in bytes; at most 65,536.
    pub packet_bytes: u32,
    /// Bytes that each channel holds for sending before `send` takes no more.
    pub send_queue_bytes: usize,
    /// Output bytes that are sealed ahead of the driver. Later data of other channels waits behind them.
    pub output_bytes: usize,
}

/// Largest `packet_bytes`.
pub(crate) const DATA_BYTES_MAX: u32 = 64 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Self {
            channels_max: 256,
            opens_pending_max: 32,
            window_bytes: 2 * 1024 * 1024,
            packet_bytes: 32 * 1024,
            send_queue_bytes: 256 * 1024,
            output_bytes: 128 * 1024,
        }
    }
}

/// Deadlines and intervals.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From creation to the end of the first key exchange; also for every later exchange.
    pub handshake_max: Duration,
    /// From the end of the first key exchange to authentication.
    pub auth_max: Duration,
    /// Silence after which a keepalive is sent; `None` sends none.
    pub keepalive: Option<Duration>,
    /// Keepalives without any sign of life after which the connection is given up.
    pub keepalive_unanswered_max: u32,
    /// Time after which keys are exchanged again.
    pub rekey_after: Duration,
    /// Bytes in one direction after which keys are exchanged again.
    pub rekey_bytes: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            handshake_max: Duration::from_secs(15),
            auth_max: Duration::from_secs(60),
            keepalive: Some(Duration::from_secs(30)),
            keepalive_unanswered_max: 3,
            rekey_after: Duration::from_secs(3600),
            rekey_bytes: 1 << 30,
        }
    }
}

/// Algorithms in order of preference.
#[derive(Debug, Clone)]
pub struct Algorithms {
    /// Key exchange methods.
    pub kex: Vec<KexAlgorithm>,
    /// Ciphers, the same for both directions.
    pub ciphers: Vec<CipherAlgorithm>,
}

impl Default for Algorithms {
    fn default() -> Self {
        Self { kex: KexAlgorithm::ALL.to_vec(), ciphers: CipherAlgorithm::ALL.to_vec() }
    }
}

/// A key with its certificate, if it has one: a host's identity or a user's credential.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The key pair.
    pub key: Arc<KeyPair>,
    /// A certificate over exactly that key.
    pub certificate: Option<Certificate>,
}

impl Credential {
    /// A bare key.
    pub fn key(key: Arc<KeyPair>) -> Self {
        Self { key, certificate: None }
    }

    /// A key with its certificate; `None` when the certificate is over another key.
    pub fn certified(key: Arc<KeyPair>, certificate: Certificate) -> Option<Self> {
        (*certificate.key() == key.public_key()).then_some(Self { key, certificate: Some(certificate) })
    }
}

/// Whether a server keeps what a login can be proven by to others (see [`crate::LoginProof`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoginProofs {
    /// It does not.
    #[default]
    None,
    /// It does.
    Kept {
        /// The cookie of the first KEXINIT, from whoever wants the proof to be fresh; random without.
        cookie: Option<[u8; 16]>,
    },
}

/// The server side.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Host keys; for each algorithm the first that has it is used. Must not be empty.
    pub host_keys: Vec<Credential>,
    /// Text shown to the client before authentication.
    pub banner: Option<String>,
    /// Signed authentication requests that may fail before the connection is cut.
    pub auth_attempts_max: u32,
    /// Whether logins are to be provable.
    pub proofs: LoginProofs,
    /// Algorithms.
    pub algorithms: Algorithms,
    /// Flow control and counts.
    pub limits: Limits,
    /// Deadlines and intervals.
    pub timing: Timing,
}

impl ServerConfig {
    /// With the defaults for all but the host keys.
    pub fn new(host_keys: Vec<Credential>) -> Self {
        Self {
            host_keys,
            banner: None,
            auth_attempts_max: 6,
            proofs: LoginProofs::None,
            algorithms: Algorithms::default(),
            limits: Limits::default(),
            timing: Timing::default(),
        }
    }
}

/// The client side.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The login to ask for.
    pub user: String,
    /// Tried in this order.
    pub credentials: Vec<Credential>,
    /// Host key algorithms in order of preference.
    pub host_key_algorithms: Vec<PublicKeyAlgorithm>,
    /// Send a key share for the most wanted method along with the first message (RFC 4253 section 7.1):
    /// saves a round trip with a server that wants the same, costs one share otherwise.
    pub is_guessing: bool,
    /// Algorithms.
    pub algorithms: Algorithms,
    /// Flow control and counts.
    pub limits: Limits,
    /// Deadlines and intervals.
    pub timing: Timing,
}

impl ClientConfig {
    /// With the defaults for all but the login and its credentials.
    pub fn new(user: String, credentials: Vec<Credential>) -> Self {
        Self {
            user,
            credentials,
            host_key_algorithms: HOST_KEY_ALGORITHMS.to_vec(),
            is_guessing: true,
            algorithms: Algorithms::default(),
            limits: Limits::default(),
            timing: Timing::default(),
        }
    }
}
