//! The transport layer (RFC 4253) as a machine: version exchange, packets, key exchanges in either
//! order, strict key exchange, and the messages below number 50. What remains is handed up.

use crate::algorithm::{CipherAlgorithm, KexAlgorithm, PublicKeyAlgorithm, SignatureAlgorithm};
use crate::certificate::Certificate;
use crate::cipher::DirectionKeys;
use crate::config::{Credential, LoginProofs, VERSION};
use crate::encoding::{DecodeError, Put, Reader};
use crate::entropy::Entropy;
use crate::error::ConnectionError;
use crate::kex::{
    COOKIE_BYTES, ClientExchange, KexError, Negotiated, Offer, Role, SessionKeys, SharedSecret, Transcript,
    answer, negotiate,
};
use crate::key::{KEY_BLOB_BYTES_MAX, PublicKey};
use crate::message::{self, DisconnectReason};
use crate::packet::{PACKET_BYTES_MAX, PacketReader, PacketWriter};
use crate::proof::RecordedExchange;
use crate::version::VersionReader;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Packets under one key before a rekey is due; well below the wrap of the sequence number.
const REKEY_PACKETS: u32 = 1 << 31;
/// Longest text of a DISCONNECT taken or sent.
const DISCONNECT_TEXT_BYTES_MAX: usize = 1024;
/// Largest key share: ML-KEM-768 plus X25519.
const SHARE_BYTES_MAX: usize = 2048;
/// From this output size on, the output allocation is kept for reuse.
const OUTPUT_KEEP_BYTES: usize = 32 * 1024;

/// What a server proved to own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostIdentity {
    /// A bare key, to be pinned or compared.
    Key(PublicKey),
    /// A certificate, to be verified against the host authorities.
    Certificate(Certificate),
}

/// What one side offers and, on the server, proves.
pub(crate) struct TransportConfig {
    pub(crate) kex: Vec<KexAlgorithm>,
    pub(crate) ciphers: Vec<CipherAlgorithm>,
    pub(crate) host_key_algorithms: Vec<PublicKeyAlgorithm>,
    /// Server only.
    pub(crate) host_keys: Vec<Credential>,
    pub(crate) rekey_bytes: u64,
    /// Client only: send a share for the most wanted method along with the first KEXINIT, which saves
    /// a round trip when the server wants the same.
    pub(crate) is_guessing: bool,
    /// Server only: what the client's login can be proven by.
    pub(crate) proof: LoginProofs,
}

/// What the transport hands up.
pub(crate) enum Incoming {
    /// A message for authentication or the connection protocol.
    Message(BytesMut),
    /// Client: the host's identity waits for a verdict.
    HostIdentity(HostIdentity),
    /// The first key exchange is complete.
    Ready,
    /// A later key exchange is complete.
    Rekeyed,
    /// The peer said goodbye.
    Disconnected(DisconnectReason, String),
}

/// Where the key exchange stands. Between exchanges application messages flow.
enum Phase {
    /// Waiting for the peer's version line; our KEXINIT is out already.
    Version(VersionReader),
    Idle,
    /// Our KEXINIT is out, theirs is not here.
    InitSent,
    /// Algorithms are chosen. The client holds its secrets; the server waits for the client's share.
    Exchange {
        negotiated: Negotiated,
        theirs: Bytes,
        client: Option<Box<ClientExchange>>,
        ignore_next: bool,
    },
    /// Client: everything verified but the identity itself.
    Verdict {
        keys: Box<SessionKeys>,
        host_key: Bytes,
    },
    /// Our NEWKEYS is out, theirs is not here.
    NewKeys(Box<DirectionKeys>),
    Closed,
}

/// The machine.
pub(crate) struct Transport {
    role: Role,
    config: TransportConfig,
    entropy: Box<dyn Entropy + Send>,
    reader: PacketReader,
    writer: PacketWriter,
    phase: Phase,
    our_init: Vec<u8>,
    /// Client: the share that went out with the first KEXINIT.
    guess: Option<Box<ClientExchange>>,
    peer_version: Vec<u8>,
    session_id: Option<[u8; 32]>,
    is_strict: Option<bool>,
    client_takes_ext_info: bool,
    /// Authenticated.
    is_trusted: bool,
    /// Client: the identity that was accepted.
    host_key: Option<Bytes>,
    /// Messages that wait for the end of a key exchange.
    deferred: VecDeque<Vec<u8>>,
    deferred_bytes: usize,
    /// Server: the first exchange, where logins are to be provable.
    recorded: Option<RecordedExchange>,
}

impl Transport {
    pub(crate) fn new(role: Role, config: TransportConfig, entropy: Box<dyn Entropy + Send>) -> Self {
        let mut transport = Self {
            role,
            config,
            entropy,
            reader: PacketReader::new(),
            writer: PacketWriter::new(),
            phase: Phase::Version(VersionReader::new(role == Role::Client)),
            our_init: Vec::new(),
            guess: None,
            peer_version: Vec::new(),
            session_id: None,
            is_strict: None,
            client_takes_ext_info: false,
            is_trusted: false,
            host_key: None,
            deferred: VecDeque::new(),
            deferred_bytes: 0,
            recorded: None,
        };
        transport.writer.output.put_raw(VERSION.as_bytes());
        transport.writer.output.put_raw(b"\r\n");
        transport.write_first().expect("a first packet in clear has no cipher that could fail");
        transport
    }

    fn write_first(&mut self) -> Result<(), ConnectionError> {
        // Without a share there is nothing to guess with, and the exchange takes its usual course.
        if self.role == Role::Client && self.config.is_guessing {
            let wanted = self.config.kex.first();
            self.guess =
                wanted.and_then(|kex| ClientExchange::start(*kex, &mut *self.entropy).ok()).map(Box::new);
        }
        self.write_init()?;
        match &self.guess {
            None => Ok(()),
            Some(exchange) => Ok(self.writer.write(&share_message(exchange))?),
        }
    }

    /// The session id, once the first exchange is complete.
    pub(crate) const fn session_id(&self) -> Option<&[u8; 32]> {
        self.session_id.as_ref()
    }

    /// The first exchange, where logins are to be provable.
    pub(crate) const fn recorded(&self) -> Option<&RecordedExchange> {
        self.recorded.as_ref()
    }

    /// Version line of the peer, once received.
    pub(crate) fn peer_version(&self) -> &[u8] {
        &self.peer_version
    }

    /// Whether application messages may go out at once.
    pub(crate) const fn can_send(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Whether a key exchange, the first included, is under way.
    pub(crate) const fn is_exchanging(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Closed)
    }

    /// Whether nothing more is read before the embedder answers.
    pub(crate) const fn awaits_verdict(&self) -> bool {
        matches!(self.phase, Phase::Verdict { .. })
    }

    /// Bytes that wait to be sent, sealed or deferred.
    pub(crate) fn backlog_bytes(&self) -> usize {
        self.writer.output.len() + self.deferred_bytes
    }

    pub(crate) fn output_len(&self) -> usize {
        self.writer.output.len()
    }

    pub(crate) fn take_output(&mut self) -> Option<Bytes> {
        if self.writer.output.is_empty() {
            return None;
        }
        if self.writer.output.len() < OUTPUT_KEEP_BYTES {
            return Some(std::mem::take(&mut self.writer.output).freeze());
        }
        Some(self.writer.output.split().freeze())
    }

    /// After authentication packets may be large, and the peer may start a key exchange.
    pub(crate) fn trust_peer(&mut self) {
        self.reader.bytes_max = PACKET_BYTES_MAX;
        self.is_trusted = true;
        self.recorded = None;
    }

    /// Whether the present keys have protected enough.
    pub(crate) fn is_rekey_due(&self) -> bool {
        let (reader, writer) = (&self.reader, &self.writer);
        self.can_send()
            && (reader.bytes_since_keys >= self.config.rekey_bytes
                || writer.bytes_since_keys >= self.config.rekey_bytes
                || reader.packets_since_keys >= REKEY_PACKETS
                || writer.packets_since_keys >= REKEY_PACKETS)
    }

    /// Starts a key exchange unless one is under way.
    pub(crate) fn start_rekey(&mut self) -> Result<(), ConnectionError> {
        if self.can_send() {
            self.write_init()?;
            self.phase = Phase::InitSent;
        }
        Ok(())
    }

    fn write_init(&mut self) -> Result<(), ConnectionError> {
        let mut cookie = [0; COOKIE_BYTES];
        match self.config.proof {
            LoginProofs::Kept { cookie: Some(given) } if self.session_id.is_none() => cookie = given,
            LoginProofs::Kept { .. } | LoginProofs::None => self.entropy.fill(&mut cookie),
        }
        let offer = Offer {
            role: self.role,
            kex: &self.config.kex,
            host_keys: &self.config.host_key_algorithms,
            ciphers: &self.config.ciphers,
            cookie,
            is_first: self.session_id.is_none(),
            is_guessing: self.guess.is_some(),
        };
        self.our_init = offer.to_payload();
        self.writer.write(&self.our_init)?;
        Ok(())
    }

    /// Sends a message of authentication or the connection protocol, after a running key exchange.
    pub(crate) fn send(&mut self, payload: Vec<u8>) -> Result<(), ConnectionError> {
        if self.can_send() {
            self.writer.write(&payload)?;
        } else if !matches!(self.phase, Phase::Closed) {
            self.deferred_bytes += payload.len();
            self.deferred.push_back(payload);
        }
        Ok(())
    }

    /// Seals a message whose payload is appended by `fill`. Only while [`Self::can_send`].
    pub(crate) fn send_with(
        &mut self,
        payload_bytes: usize,
        fill: impl FnOnce(&mut BytesMut),
    ) -> Result<(), ConnectionError> {
        Ok(self.writer.write_with(payload_bytes, fill)?)
    }

    /// Room for a burst of output in one allocation.
    pub(crate) fn reserve_output(&mut self, bytes: usize) {
        self.writer.output.reserve(bytes);
    }

    /// Says goodbye; nothing is read or sent afterwards.
    pub(crate) fn disconnect(&mut self, reason: DisconnectReason, text: &str) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        let cut = text.get(..DISCONNECT_TEXT_BYTES_MAX).unwrap_or(text);
        let mut payload = vec![message::DISCONNECT];
        payload.put_uint(reason.code());
        payload.put_string(cut.as_bytes());
        payload.put_string(b"");
        // A peer that never said its version cannot read a packet.
        if !matches!(self.phase, Phase::Version(_)) && self.writer.write(&payload).is_err() {
            self.writer.output.clear();
        }
        self.close();
    }

    fn close(&mut self) {
        self.phase = Phase::Closed;
        self.deferred.clear();
        self.deferred_bytes = 0;
    }

    /// The next thing for the layers above; `None` when more input or a verdict is needed.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Incoming>, ConnectionError> {
        loop {
            match &mut self.phase {
                Phase::Verdict { .. } | Phase::Closed => return Ok(None),
                Phase::Version(reader) => {
                    let Some(version) = reader.next(input)? else { return Ok(None) };
                    self.peer_version = version;
                    self.phase = Phase::InitSent;
                }
                Phase::Idle | Phase::InitSent | Phase::Exchange { .. } | Phase::NewKeys(_) => {
                    let Some(payload) = self.reader.next(input)? else { return Ok(None) };
                    if let Some(incoming) = self.handle(payload)? {
                        return Ok(Some(incoming));
                    }
                }
            }
        }
    }

    /// The next payload as it is, whatever it means.
    #[cfg(test)]
    pub(crate) fn next_raw(&mut self, input: &mut BytesMut) -> Option<BytesMut> {
        self.reader.next(input).ok().flatten()
    }

    fn handle(&mut self, payload: BytesMut) -> Result<Option<Incoming>, ConnectionError> {
        let number = payload.first().copied().unwrap_or(0);
        let is_first = self.session_id.is_none() || self.is_first_unfinished();
        if let Phase::Exchange { ignore_next, .. } = &mut self.phase
            && (message::KEX_ECDH_INIT..message::TRANSPORT_END).contains(&number)
            && std::mem::take(ignore_next)
        {
            return Ok(None);
        }
        match number {
            message::DISCONNECT => self.on_disconnect(&payload).map(Some),
            message::KEXINIT => self.on_init(payload.freeze()).map(|()| None),
            message::KEX_ECDH_INIT => self.on_share(&payload).map(|()| None),
            message::KEX_ECDH_REPLY => self.on_reply(&payload),
            message::NEWKEYS => self.on_new_keys(&payload, is_first).map(Some),
            message::IGNORE | message::DEBUG | message::UNIMPLEMENTED | message::EXT_INFO => {
                self.refuse_while_strict(is_first)?;
                Ok(None)
            }
            message::SERVICE_REQUEST | message::SERVICE_ACCEPT | message::TRANSPORT_END.. => {
                self.refuse_while_exchanging()?;
                Ok(Some(Incoming::Message(payload)))
            }
            _ => {
                self.refuse_while_strict(is_first)?;
                self.refuse_while_exchanging()?;
                self.unimplemented()?;
                Ok(None)
            }
        }
    }

    /// The session id is set when the exchange is computed, before the NEWKEYS of the peer.
    const fn is_first_unfinished(&self) -> bool {
        matches!(self.phase, Phase::NewKeys(_)) && self.reader.is_clear()
    }

    /// During the first exchange under strict rules only the exchange itself may be heard. Until the
    /// peer's KEXINIT it is not known whether they apply; [`Self::on_init`] then sees that it was not first.
    fn refuse_while_strict(&self, is_first: bool) -> Result<(), ConnectionError> {
        if is_first && self.is_strict == Some(true) {
            return Err(ConnectionError::Protocol("message during strict key exchange"));
        }
        Ok(())
    }

    /// Between its KEXINIT and its NEWKEYS the peer may not send anything else.
    fn refuse_while_exchanging(&self) -> Result<(), ConnectionError> {
        let is_refused = match self.phase {
            Phase::Idle => false,
            Phase::InitSent => self.session_id.is_none(),
            Phase::Exchange { .. }
            | Phase::NewKeys(_)
            | Phase::Verdict { .. }
            | Phase::Version(_)
            | Phase::Closed => true,
        };
        if is_refused {
            return Err(ConnectionError::Protocol("message during key exchange"));
        }
        Ok(())
    }

    /// Answers the last packet with UNIMPLEMENTED (RFC 4253 section 11.4).
    pub(crate) fn unimplemented(&mut self) -> Result<(), ConnectionError> {
        let mut payload = vec![message::UNIMPLEMENTED];
        payload.put_uint(self.reader.last_sequence());
        self.writer.write(&payload)?;
        Ok(())
    }

    fn on_disconnect(&mut self, payload: &[u8]) -> Result<Incoming, ConnectionError> {
        self.close();
        let mut reader = Reader::new(payload);
        reader.u8().map_err(malformed(message::DISCONNECT))?;
        let reason = DisconnectReason::from_code(reader.u32().unwrap_or(0));
        let text = reader.string_max(DISCONNECT_TEXT_BYTES_MAX, "text").unwrap_or_default();
        let text = String::from_utf8_lossy(text).replace(char::is_control, " ");
        Ok(Incoming::Disconnected(reason, text))
    }

    fn on_init(&mut self, theirs: Bytes) -> Result<(), ConnectionError> {
        match self.phase {
            // Every exchange costs a signature: strangers get one.
            Phase::Idle if !self.is_trusted => {
                return Err(ConnectionError::Protocol("second key exchange before authentication"));
            }
            Phase::Idle => self.write_init()?,
            Phase::InitSent => {}
            _ => return Err(ConnectionError::Protocol("KEXINIT during key exchange")),
        }
        let negotiated = negotiate(self.role, &self.our_init, &theirs, self.is_strict)?;
        if self.session_id.is_none() {
            if negotiated.is_strict && self.reader.packets_since_keys != 1 {
                return Err(ConnectionError::Protocol("strict key exchange did not start with KEXINIT"));
            }
            self.is_strict = Some(negotiated.is_strict);
            self.client_takes_ext_info = negotiated.client_takes_ext_info;
        }
        let client = match self.role {
            Role::Server => None,
            Role::Client => Some(match self.guess.take() {
                Some(exchange) if negotiated.is_guess_right => exchange,
                _ => {
                    let exchange = ClientExchange::start(negotiated.kex, &mut *self.entropy)?;
                    self.writer.write(&share_message(&exchange))?;
                    Box::new(exchange)
                }
            }),
        };
        let ignore_next = negotiated.ignore_next;
        self.phase = Phase::Exchange { negotiated, theirs, client, ignore_next };
        Ok(())
    }

    /// Server: the client's share.
    fn on_share(&mut self, payload: &[u8]) -> Result<(), ConnectionError> {
        let (Role::Server, Phase::Exchange { negotiated, theirs, .. }) = (self.role, &self.phase) else {
            return Err(ConnectionError::Protocol("unexpected key exchange message"));
        };
        let client_share = parse_share(payload).map_err(KexError::from)?;
        let (server_share, secret) = answer(negotiated.kex, client_share, &mut *self.entropy)?;
        let credential =
            host_credential(&self.config.host_keys, negotiated.host_key).ok_or(KexError::HostKey)?;
        let host_key = match &credential.certificate {
            Some(certificate) if negotiated.host_key.is_certificate => certificate.as_blob().to_vec(),
            _ => credential.key.public_key().to_blob(),
        };
        let transcript = Transcript {
            client_version: &self.peer_version,
            server_version: VERSION.as_bytes(),
            client_init: theirs,
            server_init: &self.our_init,
            host_key: &host_key,
            client_share,
            server_share: &server_share,
        };
        let hash = transcript.hash(&secret);
        let is_first = self.session_id.is_none();
        if is_first && matches!(self.config.proof, LoginProofs::Kept { .. }) {
            self.recorded = Some(RecordedExchange::new(&transcript, &secret));
        }
        let mut reply = vec![message::KEX_ECDH_REPLY];
        reply.put_string(&host_key);
        reply.put_string(&server_share);
        reply.put_string(&credential.key.sign(&hash));
        let keys = SessionKeys::derive(negotiated, &secret, &hash, self.session_id.get_or_insert(hash));
        self.writer.write(&reply)?;
        self.switch_writer(&keys.to_client)?;
        if is_first && self.client_takes_ext_info {
            self.writer.write(&ext_info())?;
        }
        self.phase = Phase::NewKeys(Box::new(keys.to_server));
        Ok(())
    }

    /// Client: the server's share and proof.
    fn on_reply(&mut self, payload: &[u8]) -> Result<Option<Incoming>, ConnectionError> {
        let Phase::Exchange { negotiated, theirs, client: Some(exchange), .. } = &self.phase else {
            return Err(ConnectionError::Protocol("unexpected key exchange message"));
        };
        let reply = Reply::parse(payload).map_err(KexError::from)?;
        let secret: SharedSecret = exchange.finish(reply.share)?;
        let hash = Transcript {
            client_version: VERSION.as_bytes(),
            server_version: &self.peer_version,
            client_init: &self.our_init,
            server_init: theirs,
            host_key: reply.host_key,
            client_share: &exchange.share,
            server_share: reply.share,
        }
        .hash(&secret);
        let identity = reply.verify(negotiated.host_key, &hash)?;
        let keys = SessionKeys::derive(negotiated, &secret, &hash, self.session_id.get_or_insert(hash));
        match &self.host_key {
            Some(known) if known == reply.host_key => {
                self.finish_client(keys)?;
                Ok(None)
            }
            Some(_) => Err(KexError::HostKeyChanged.into()),
            None => {
                let host_key = Bytes::copy_from_slice(reply.host_key);
                self.phase = Phase::Verdict { keys: Box::new(keys), host_key };
                Ok(Some(Incoming::HostIdentity(identity)))
            }
        }
    }

    /// Client: the embedder takes the host's identity. False when none is waiting.
    pub(crate) fn accept_host(&mut self) -> Result<bool, ConnectionError> {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Verdict { keys, host_key } => {
                self.host_key = Some(host_key);
                self.finish_client(*keys)?;
                Ok(true)
            }
            other => {
                self.phase = other;
                Ok(false)
            }
        }
    }

    fn finish_client(&mut self, keys: SessionKeys) -> Result<(), ConnectionError> {
        self.switch_writer(&keys.to_server)?;
        self.phase = Phase::NewKeys(Box::new(keys.to_client));
        Ok(())
    }

    fn switch_writer(&mut self, keys: &DirectionKeys) -> Result<(), ConnectionError> {
        self.writer.write(&[message::NEWKEYS])?;
        self.writer.rekey(keys, self.is_strict == Some(true)).map_err(|_| KexError::Share)?;
        Ok(())
    }

    fn on_new_keys(&mut self, payload: &[u8], is_first: bool) -> Result<Incoming, ConnectionError> {
        let Phase::NewKeys(keys) = &self.phase else {
            return Err(ConnectionError::Protocol("unexpected NEWKEYS"));
        };
        if payload.len() != 1 {
            return Err(malformed(message::NEWKEYS)(DecodeError::Trailing));
        }
        self.reader.rekey(keys, self.is_strict == Some(true)).map_err(|_| KexError::Share)?;
        self.phase = Phase::Idle;
        self.our_init = Vec::new();
        self.deferred_bytes = 0;
        while let Some(payload) = self.deferred.pop_front() {
            self.writer.write(&payload)?;
        }
        Ok(if is_first { Incoming::Ready } else { Incoming::Rekeyed })
    }
}

/// The fields of KEX_ECDH_REPLY.
struct Reply<'a> {
    host_key: &'a [u8],
    share: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Reply<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        reader.u8()?;
        let host_key = reader.string()?;
        let share = reader.string_max(SHARE_BYTES_MAX, "share")?;
        let signature = reader.string_max(KEY_BLOB_BYTES_MAX, "signature")?;
        reader.end()?;
        Ok(Self { host_key, share, signature })
    }

    fn verify(&self, algorithm: PublicKeyAlgorithm, hash: &[u8; 32]) -> Result<HostIdentity, KexError> {
        let identity = if algorithm.is_certificate {
            HostIdentity::Certificate(Certificate::parse(self.host_key)?)
        } else {
            HostIdentity::Key(PublicKey::from_blob(self.host_key)?)
        };
        let key = match &identity {
            HostIdentity::Key(key) => key,
            HostIdentity::Certificate(certificate) => certificate.key(),
        };
        if !key.takes(algorithm.signature) {
            return Err(KexError::HostKey);
        }
        key.verify(algorithm.signature, hash, self.signature).map_err(|_| KexError::Signature)?;
        Ok(identity)
    }
}

fn share_message(exchange: &ClientExchange) -> Vec<u8> {
    let mut payload = vec![message::KEX_ECDH_INIT];
    payload.put_string(&exchange.share);
    payload
}

fn parse_share(payload: &[u8]) -> Result<&[u8], DecodeError> {
    let mut reader = Reader::new(payload);
    reader.u8()?;
    let share = reader.string_max(SHARE_BYTES_MAX, "share")?;
    reader.end()?;
    Ok(share)
}

/// The algorithms under which a server can present these keys: certificates first.
pub(crate) fn host_algorithms(host_keys: &[Credential]) -> Vec<PublicKeyAlgorithm> {
    let has_certificate = host_keys.iter().any(|k| k.certificate.is_some());
    let certificate = PublicKeyAlgorithm::certificate(SignatureAlgorithm::Ed25519);
    let key = PublicKeyAlgorithm::key(SignatureAlgorithm::Ed25519);
    if has_certificate { vec![certificate, key] } else { vec![key] }
}

fn host_credential(host_keys: &[Credential], algorithm: PublicKeyAlgorithm) -> Option<&Credential> {
    host_keys.iter().find(|k| !algorithm.is_certificate || k.certificate.is_some())
}

/// EXT_INFO with `server-sig-algs` (RFC 8308 section 3.1).
fn ext_info() -> Vec<u8> {
    let names = SignatureAlgorithm::ALL.map(SignatureAlgorithm::name).join(",");
    let mut payload = vec![message::EXT_INFO];
    payload.put_uint(1);
    payload.put_string(b"server-sig-algs");
    payload.put_string(names.as_bytes());
    payload
}

pub(crate) fn malformed(message: u8) -> impl Fn(DecodeError) -> ConnectionError {
    move |source| ConnectionError::Malformed { message, source }
}
