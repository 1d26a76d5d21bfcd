//! The frames.

use crate::reader::Reader;
use bytes::{Buf, BufMut, BytesMut};

/// The version this build writes and reads.
pub const VERSION: u8 = 1;
/// Bytes of every frame's header.
pub const HEADER_BYTES: usize = 4;
/// The same, where data is meant.
pub const DATA_HEADER_BYTES: usize = HEADER_BYTES;
/// Most bytes of one frame of data.
pub const DATA_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of any other body.
pub const BODY_BYTES_MAX: usize = 24 * 1024;
/// Longest certificate: the longest identity, keys and names.
pub const CERTIFICATE_BYTES_MAX: usize = 20 * 1024;
/// Longest signature.
const SIGNATURE_BYTES_MAX: usize = 512;
/// Longest list of proxies.
const PROXIES_BYTES_MAX: usize = 2 * 1024;
/// Longest text in a frame.
const TEXT_BYTES_MAX: usize = 1024;

const DATA: u8 = 0;
const FIN: u8 = 1;
const RESET: u8 = 2;
const ASK: u8 = 3;
const ACKNOWLEDGE: u8 = 4;
const PING: u8 = 5;
const PONG: u8 = 6;
const CLIENT_HELLO: u8 = 16;
const AGENT_HELLO: u8 = 17;
const NOT_RESUMABLE: u8 = 18;
const REATTACH: u8 = 32;
const CHALLENGE: u8 = 33;
const PROOF: u8 = 34;
const ATTACHED: u8 = 35;
const REFUSED: u8 = 36;
const REFUSER: u8 = 37;

/// Names a stream at its agent. Not secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub [u8; 16]);

/// A certificate (X.509, DER) and a signature by its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The certificate.
    pub certificate: Vec<u8>,
    /// ECDSA P-256 with SHA-256, DER.
    pub signature: Vec<u8>,
}

/// The client's half of the exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// X25519.
    pub share: [u8; 32],
    /// The user.
    pub signed: Signed,
}

/// The agent's half of the exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentHello {
    /// X25519.
    pub share: [u8; 32],
    /// Names the stream from now on.
    pub stream: StreamId,
    /// How long the stream waits for its client.
    pub max_detached_ms: u64,
    /// Where proxies answer, as the agent knows them.
    pub proxies: Vec<String>,
    /// The agent.
    pub signed: Signed,
}

/// A client wants its stream back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reattach {
    /// Which.
    pub stream: StreamId,
    /// Fresh.
    pub nonce: [u8; 32],
    /// What the client has received.
    pub received: u64,
}

/// The agent wants to see a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenge {
    /// Fresh.
    pub nonce: [u8; 32],
}

/// The client knows the secret, and is the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// By the secret.
    pub mac: [u8; 32],
    /// The user, maybe by a newer certificate.
    pub signed: Signed,
}

/// The agent knows the secret, and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// What the agent has received.
    pub received: u64,
    /// By the secret.
    pub mac: [u8; 32],
}

/// Why a stream is not given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is none of that name (any more).
    Unknown,
    /// The proof is wrong, or the user may not.
    Denied,
    /// A later attempt has it.
    Superseded,
    /// Try again.
    Busy,
}

impl Refusal {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Unknown => 1,
            Self::Denied => 2,
            Self::Superseded => 3,
            Self::Busy => 4,
        }
    }
}

/// The stream is not given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why, for programs.
    pub refusal: Refusal,
    /// Why, for people; what is longer than a frame holds is cut before it is signed.
    pub text: String,
}

impl Refused {
    /// With as much of the text as a frame holds.
    pub fn new(refusal: Refusal, text: &str) -> Self {
        Self { refusal, text: fitting(text).to_owned() }
    }
}

/// What goes over an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// So many bytes follow.
    Data {
        /// How many.
        bytes: usize,
    },
    /// The sender writes no more.
    Fin,
    /// The sender is gone.
    Reset,
    /// The sender wants an acknowledgement.
    Ask,
    /// What the sender has received.
    Acknowledge {
        /// Offset behind the last byte.
        received: u64,
    },
    /// The sender wants an answer.
    Ping {
        /// What the sender has received.
        received: u64,
    },
    /// The answer.
    Pong {
        /// What the sender has received.
        received: u64,
    },
    /// The client's first frame on a new stream.
    ClientHello(ClientHello),
    /// The answer: the stream can be resumed.
    AgentHello(AgentHello),
    /// The answer: it cannot, and goes on without.
    NotResumable {
        /// Why, for people.
        text: String,
    },
    /// The client's first frame where it wants a stream back.
    Reattach(Reattach),
    /// The agent's answer.
    Challenge(Challenge),
    /// The client's answer to that.
    Proof(Proof),
    /// The agent's answer to that; what follows is the stream.
    Attached(Attached),
    /// Somebody says no: a proxy in between can as well.
    Refused(Refused),
    /// The agent's signature for the refusal in front of it.
    Refuser(Signed),
}

/// Bytes that are no frame. The attachment is to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing of that kind is known.
    #[error("a frame of the unknown kind {0}")]
    Kind(u8),
    /// The declared length is more than such a frame may have.
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    /// Another version.
    #[error("version {0} is not understood, only {VERSION}")]
    Version(u8),
    /// The body is not what its kind says.
    #[error("a malformed frame")]
    Malformed,
}

/// The header of so many bytes of data, at most [`DATA_BYTES_MAX`].
pub fn data_header(bytes: usize) -> [u8; DATA_HEADER_BYTES] {
    header(DATA, bytes)
}

fn header(kind: u8, bytes: usize) -> [u8; HEADER_BYTES] {
    let [_, high, middle, low] = u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    [kind, high, middle, low]
}

impl Frame {
    /// Takes the next frame from the front, if it is there; of data only the header.
    ///
    /// # Errors
    /// See [`DecodeError`]; lengths are judged by the header alone.
    pub fn decode(input: &mut BytesMut) -> Result<Option<Self>, DecodeError> {
        let Some([kind, high, middle, low]) = input.first_chunk::<HEADER_BYTES>().copied() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(usize::MAX);
        let length_max = if kind == DATA { DATA_BYTES_MAX } else { BODY_BYTES_MAX };
        if !is_known(kind) {
            return Err(DecodeError::Kind(kind));
        }
        if length > length_max {
            return Err(DecodeError::TooLong(length));
        }
        if kind == DATA {
            input.advance(HEADER_BYTES);
            return Ok(Some(Self::Data { bytes: length }));
        }
        if input.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        input.advance(HEADER_BYTES);
        let body = input.split_to(length);
        decode_body(kind, &body).map(Some)
    }

    /// Appends the frame; of data only the header.
    pub fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_slice(&[0; HEADER_BYTES]);
        let kind = self.encode_body(out);
        let length = match self {
            Self::Data { bytes } => *bytes,
            _ => out.len() - start - HEADER_BYTES,
        };
        if let Some(place) = out.get_mut(start..start + HEADER_BYTES) {
            place.copy_from_slice(&header(kind, length));
        }
    }

    fn encode_body(&self, out: &mut BytesMut) -> u8 {
        match self {
            Self::Data { .. } => DATA,
            Self::Fin => FIN,
            Self::Reset => RESET,
            Self::Ask => ASK,
            Self::Acknowledge { received } => number(out, ACKNOWLEDGE, *received),
            Self::Ping { received } => number(out, PING, *received),
            Self::Pong { received } => number(out, PONG, *received),
            Self::ClientHello(hello) => {
                out.put_u8(VERSION);
                out.put_slice(&hello.share);
                put_signed(out, &hello.signed);
                CLIENT_HELLO
            }
            Self::AgentHello(hello) => {
                out.put_u8(VERSION);
                out.put_slice(&hello.share);
                out.put_slice(&hello.stream.0);
                out.put_u64(hello.max_detached_ms);
                put_string(out, joined(&hello.proxies).as_bytes());
                put_signed(out, &hello.signed);
                AGENT_HELLO
            }
            Self::NotResumable { text } => {
                put_text(out, text);
                NOT_RESUMABLE
            }
            Self::Reattach(reattach) => {
                out.put_u8(VERSION);
                out.put_slice(&reattach.stream.0);
                out.put_slice(&reattach.nonce);
                out.put_u64(reattach.received);
                REATTACH
            }
            Self::Challenge(challenge) => {
                out.put_u8(VERSION);
                out.put_slice(&challenge.nonce);
                CHALLENGE
            }
            Self::Proof(proof) => {
                out.put_slice(&proof.mac);
                put_signed(out, &proof.signed);
                PROOF
            }
            Self::Attached(attached) => {
                out.put_u64(attached.received);
                out.put_slice(&attached.mac);
                ATTACHED
            }
            Self::Refused(refused) => {
                out.put_u8(refused.refusal.code());
                put_text(out, &refused.text);
                REFUSED
            }
            Self::Refuser(signed) => {
                put_signed(out, signed);
                REFUSER
            }
        }
    }
}

fn is_known(kind: u8) -> bool {
    matches!(kind, DATA..=PONG | CLIENT_HELLO..=NOT_RESUMABLE | REATTACH..=REFUSER)
}

fn decode_body(kind: u8, body: &[u8]) -> Result<Frame, DecodeError> {
    let mut reader = Reader::new(body);
    let frame = match kind {
        FIN => Frame::Fin,
        RESET => Frame::Reset,
        ASK => Frame::Ask,
        ACKNOWLEDGE => Frame::Acknowledge { received: reader.u64()? },
        PING => Frame::Ping { received: reader.u64()? },
        PONG => Frame::Pong { received: reader.u64()? },
        CLIENT_HELLO => {
            version(&mut reader)?;
            Frame::ClientHello(ClientHello { share: reader.array()?, signed: signed(&mut reader)? })
        }
        AGENT_HELLO => {
            version(&mut reader)?;
            Frame::AgentHello(AgentHello {
                share: reader.array()?,
                stream: StreamId(reader.array()?),
                max_detached_ms: reader.u64()?,
                proxies: proxies(&mut reader)?,
                signed: signed(&mut reader)?,
            })
        }
        NOT_RESUMABLE => Frame::NotResumable { text: text(&mut reader)? },
        REATTACH => {
            version(&mut reader)?;
            Frame::Reattach(Reattach {
                stream: StreamId(reader.array()?),
                nonce: reader.array()?,
                received: reader.u64()?,
            })
        }
        CHALLENGE => {
            version(&mut reader)?;
            Frame::Challenge(Challenge { nonce: reader.array()? })
        }
        PROOF => Frame::Proof(Proof { mac: reader.array()?, signed: signed(&mut reader)? }),
        ATTACHED => Frame::Attached(Attached { received: reader.u64()?, mac: reader.array()? }),
        REFUSED => {
            let refusal = match reader.u8()? {
                1 => Refusal::Unknown,
                2 => Refusal::Denied,
                3 => Refusal::Superseded,
                4 => Refusal::Busy,
                _ => return Err(DecodeError::Malformed),
            };
            Frame::Refused(Refused { refusal, text: text(&mut reader)? })
        }
        REFUSER => Frame::Refuser(signed(&mut reader)?),
        other => return Err(DecodeError::Kind(other)),
    };
    reader.finish()?;
    Ok(frame)
}

fn version(reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    match reader.u8()? {
        VERSION => Ok(()),
        other => Err(DecodeError::Version(other)),
    }
}

fn signed(reader: &mut Reader<'_>) -> Result<Signed, DecodeError> {
    let certificate = reader.string(CERTIFICATE_BYTES_MAX)?.to_vec();
    let signature = reader.string(SIGNATURE_BYTES_MAX)?.to_vec();
    Ok(Signed { certificate, signature })
}

fn text(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    let bytes = reader.string(TEXT_BYTES_MAX)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Malformed)
}

fn proxies(reader: &mut Reader<'_>) -> Result<Vec<String>, DecodeError> {
    let bytes = reader.string(PROXIES_BYTES_MAX)?;
    let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::Malformed)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// As many as fit.
fn joined(proxies: &[String]) -> String {
    let mut joined = String::new();
    for proxy in proxies {
        if joined.len() + proxy.len() + 1 > PROXIES_BYTES_MAX {
            break;
        }
        joined.push_str(proxy);
        joined.push('\n');
    }
    joined
}

fn number(out: &mut BytesMut, kind: u8, value: u64) -> u8 {
    out.put_u64(value);
    kind
}

/// Lengths over the bound make a frame that is refused, never one that is misread.
fn put_string(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
    out.put_slice(bytes);
}

fn put_signed(out: &mut BytesMut, signed: &Signed) {
    put_string(out, &signed.certificate);
    put_string(out, &signed.signature);
}

fn put_text(out: &mut BytesMut, text: &str) {
    put_string(out, fitting(text).as_bytes());
}

fn fitting(text: &str) -> &str {
    text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or_default()
}
