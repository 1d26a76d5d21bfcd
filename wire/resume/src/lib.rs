//! Resumable streams on the wire: frames, and the exchange by which both ends agree on a secret.
//!
//! A stream that its dial request and the answer call resumable carries frames instead of bare bytes. Each has a
//! header of four bytes (kind, then the length of what follows, big-endian) and a body of at most
//! [`BODY_BYTES_MAX`]; of data only the header is a frame, its bytes follow. What the frames mean is
//! `core/resume`.
//!
//! The [`exchange`] runs beside the data and costs no round trip: each end signs a share with the key of its
//! certificate, and the secret that follows from both is known to no proxy in between. It is never sent; to attach
//! again both ends prove that they know it, over nonces that are new each time.

pub mod exchange;
mod frame;
mod reader;

pub use frame::{
    AgentHello, Attached, BODY_BYTES_MAX, CERTIFICATE_BYTES_MAX, Challenge, ClientHello, DATA_BYTES_MAX,
    DATA_HEADER_BYTES, DecodeError, Frame, HEADER_BYTES, Proof, Reattach, Refusal, Refused, Signed, StreamId,
    VERSION, data_header,
};
