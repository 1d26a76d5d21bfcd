//! SSH 2.0 as a machine without IO: both roles, bytes in, bytes and events out.
//!
//! A [`Connection`] knows nothing of sockets, clocks, randomness, users or policy. Its embedder reads
//! a stream into a buffer, hands the buffer in, answers the events, and writes the output. What it
//! speaks: AES-GCM and ChaCha20-Poly1305, Curve25519 with and without ML-KEM-768, strict key exchange,
//! rekeying from either side, OpenSSH certificates for users and hosts, every channel and request
//! type of OpenSSH. What it does not speak is refused, never guessed: no CBC, no SHA-1, no
//! passwords, no compression.
//!
//! **Flow control is the consumer's.** Received data is an [`Event::Data`]; the peer may send more on
//! that channel only after [`Connection::consumed`]. A channel that nobody reads holds at most its
//! window, and no other channel notices. To the other side, [`Connection::send`] takes what fits a
//! bounded queue, and [`Event::Writable`] says when more fits; ready channels take turns, one message
//! each.
//!
//! **Verdicts.** [`Event::HostIdentity`] and [`Event::AuthAttempt`] stop the connection until they are
//! answered. The machine proves possession of keys; [`Certificate::verify`] and the embedder decide
//! what they are worth.
//!
//! A driver, here over a blocking stream and with the application as a closure:
//!
//! ```
//! use bytes::BytesMut;
//! use std::io::{Read, Write};
//! use wayleave_ssh::{Connection, ConnectionError, Event, Intake};
//! use wayleave_vocab::Mono;
//!
//! fn drive(
//!     connection: &mut Connection,
//!     stream: &mut (impl Read + Write),
//!     clock: impl Fn() -> Mono,
//!     mut on_event: impl FnMut(&mut Connection, Event),
//! ) -> std::io::Result<()> {
//!     let mut input = BytesMut::new();
//!     let mut failure: Option<ConnectionError> = None;
//!     loop {
//!         // 1. Input. `Full` means: look at the events before reading more.
//!         let intake = match connection.handle_input(&mut input, clock()) {
//!             Ok(intake) => intake,
//!             Err(error) => {
//!                 failure = Some(error);
//!                 Intake::Hungry
//!             }
//!         };
//!         // 2. Events and output, until neither has more: output makes `Writable` events.
//!         loop {
//!             let mut is_idle = true;
//!             while let Some(event) = connection.poll_event() {
//!                 on_event(connection, event);
//!                 is_idle = false;
//!             }
//!             while let Some(output) = connection.poll_output() {
//!                 stream.write_all(&output)?;
//!                 is_idle = false;
//!             }
//!             if is_idle {
//!                 break;
//!             }
//!         }
//!         if connection.is_closed() {
//!             return failure.map_or(Ok(()), |error| Err(std::io::Error::other(error)));
//!         }
//!         // 3. Wait for the stream. An async driver also waits for `poll_timeout()`, upon which it
//!         //    calls `handle_timeout`, and for its application's own data to send.
//!         if intake == Intake::Hungry {
//!             let filled = input.len();
//!             input.resize(filled + 64 * 1024, 0);
//!             let read = stream.read(&mut input[filled..])?;
//!             input.truncate(filled + read);
//!             if read == 0 {
//!                 return Ok(());
//!             }
//!         }
//!     }
//! }
//! ```
//!
//! Where to look: `transport` for the order of key exchanges, `packet` and `cipher` for the bytes on the
//! wire, `mux` and `mux_send` for channels, `userauth` for authentication, `connection` for the verbs.

#[cfg(test)]
mod adversary_tests;
mod algorithm;
mod byte_queue;
mod certificate;
mod channel;
mod cipher;
mod config;
mod connection;
mod encoding;
mod entropy;
mod error;
mod event;
mod kex;
mod key;
mod message;
mod mux;
mod mux_send;
mod packet;
mod private_key;
mod proof;
mod request;
mod transport;
mod userauth;
mod version;

pub use algorithm::{
    CipherAlgorithm, HOST_KEY_ALGORITHMS, KexAlgorithm, PublicKeyAlgorithm, SignatureAlgorithm,
};
pub use byte_queue::ByteQueue;
pub use certificate::{
    CERTIFICATE_BYTES_MAX, CertType, Certificate, CertificateError, CertificateTemplate, OPTIONS_MAX,
    Options, PRINCIPALS_MAX, SourceNetwork, Verified,
};
pub use config::{Algorithms, ClientConfig, Credential, Limits, LoginProofs, ServerConfig, Timing};
pub use connection::{Connection, Intake};
pub use encoding::DecodeError;
pub use entropy::Entropy;
pub use error::{ConnectionError, Deadline, VerbError};
pub use event::{
    AuthAttempt, ChannelId, DataStream, Event, GlobalReply, GlobalReplyToken, OpenFailure, ReplyToken,
    RequestId,
};
pub use kex::KexError;
pub use key::{ParseKeyError, PublicKey, SecurityKeyAssertion, SignatureError};
pub use message::DisconnectReason;
pub use packet::{PACKET_BEFORE_AUTH_BYTES_MAX, PACKET_BYTES_MAX, PacketError};
pub use private_key::{KeyPair, PrivateKeyError};
pub use proof::{LoginProof, PROOF_BYTES_MAX, ProofError, ProvenLogin};
pub use request::{
    ChannelOpen, ChannelRequest, GlobalRequest, TcpEndpoint, TerminalSize, encode_terminal_modes,
    terminal_modes,
};
pub use transport::HostIdentity;
pub use version::{VERSION_LINE_BYTES_MAX, VersionError};
