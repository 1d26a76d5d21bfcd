//! What surrounds an event: who saw it, when, and as which in a row.

use crate::event::Event;
use serde::{Deserialize, Serialize};
use wayleave_vocab::{ClusterName, HostId, Wall};

/// Largest envelope in bytes. Texts and lists are bounded so that no event comes near it.
pub const ENVELOPE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The version this build writes.
const VERSION: u8 = 1;

/// An event with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Random, for whoever stores events elsewhere.
    pub uid: uuid::Uuid,
    /// When it happened, by the clock of its host.
    pub time: Wall,
    /// Who saw it, and as which event in a row.
    pub origin: Origin,
    /// What happened.
    pub event: Event,
}

/// Who saw an event. (host id, sequence) is unique: Auth takes each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The cluster.
    pub cluster: ClusterName,
    /// The process.
    pub host_id: HostId,
    /// Counts the events of the process, from 1, over restarts.
    pub sequence: u64,
}

/// Bytes that are no envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeEnvelopeError {
    /// More than the bound.
    #[error("the event has {0} bytes, at most {ENVELOPE_BYTES_MAX}")]
    TooLong(usize),
    /// Not of a shape that this build knows.
    #[error("the event cannot be read: {0}")]
    Malformed(String),
    /// The code is not that of the event.
    #[error("the event has code {given:?}, it should be {expected}")]
    WrongCode {
        /// What it has.
        given: String,
        /// What it should have.
        expected: &'static str,
    },
}

#[derive(Serialize, Deserialize)]
struct Form {
    v: u8,
    uid: uuid::Uuid,
    code: String,
    time: String,
    cluster_name: ClusterName,
    host_id: HostId,
    sequence: u64,
    #[serde(flatten)]
    event: Event,
}

impl Envelope {
    /// An envelope; `uid` is 16 random bytes, which the caller draws.
    pub fn new(event: Event, origin: Origin, uid: [u8; 16], now: Wall) -> Self {
        Self { uid: uuid::Builder::from_random_bytes(uid).into_uuid(), time: now, origin, event }
    }

    /// One line of JSON without the newline; the same envelope always gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let ms = i64::try_from(self.time.as_ms()).unwrap_or(i64::MAX);
        let time = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
        let form = Form {
            v: VERSION,
            uid: self.uid,
            code: self.event.code().to_owned(),
            time: time.to_string(),
            cluster_name: self.origin.cluster.clone(),
            host_id: self.origin.host_id,
            sequence: self.origin.sequence,
            event: self.event.clone(),
        };
        serde_json::to_vec(&form).expect("maps of strings always serialise")
    }

    /// Reads what [`Envelope::encode`] wrote. Texts that are too long are trimmed.
    ///
    /// # Errors
    /// When the bytes are too many, of another version or misshapen, or the code is not that of the event.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeEnvelopeError> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(DecodeEnvelopeError::TooLong(bytes.len()));
        }
        let malformed = |error: &dyn std::fmt::Display| DecodeEnvelopeError::Malformed(error.to_string());
        let form: Form = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
        if form.v != VERSION {
            return Err(malformed(&format_args!("version {}, this build reads {VERSION}", form.v)));
        }
        if form.code != form.event.code() {
            let given = form.code.chars().take(16).collect();
            return Err(DecodeEnvelopeError::WrongCode { given, expected: form.event.code() });
        }
        let time: jiff::Timestamp = form.time.parse().map_err(|error: jiff::Error| malformed(&error))?;
        let time = u64::try_from(time.as_millisecond()).map_err(|error| malformed(&error))?;
        Ok(Self {
            uid: form.uid,
            time: Wall::from_ms(time),
            origin: Origin { cluster: form.cluster_name, host_id: form.host_id, sequence: form.sequence },
            event: form.event,
        })
    }
}
