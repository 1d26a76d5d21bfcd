//! Control messages: two lanes, so that a short message never waits behind a long one.

use crate::error::{ControlError, MuxError};
use crate::frame::CONTROL_SMALL_BYTES_MAX;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;

/// What one lane may hold above the longest message.
const QUEUE_SLACK_BYTES: usize = 1024 * 1024;
/// Messages that one lane may hold.
const QUEUE_MESSAGES_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Small,
    Large,
}

impl Lane {
    pub(crate) fn of_length(length: usize) -> Self {
        if length <= CONTROL_SMALL_BYTES_MAX { Self::Small } else { Self::Large }
    }
}

/// Messages waiting to be sent on one lane.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    /// The first message is partly sent: its total length went out.
    is_begun: bool,
}

/// One part of a message: the total length when it is the first part.
pub(crate) struct Part {
    pub(crate) total: Option<u32>,
    pub(crate) bytes: Bytes,
}

impl Outgoing {
    pub(crate) fn push(&mut self, message: Bytes, longest: u32) -> Result<(), ControlError> {
        let bound = usize::try_from(longest).unwrap_or(usize::MAX);
        if message.len() > bound {
            return Err(ControlError::TooLong(message.len()));
        }
        let after = self.queued_bytes.saturating_add(message.len());
        if after > bound.saturating_add(QUEUE_SLACK_BYTES) || self.queue.len() >= QUEUE_MESSAGES_MAX {
            return Err(ControlError::Full);
        }
        self.queued_bytes = after;
        self.queue.push_back(message);
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn next_part(&mut self, bytes_max: usize) -> Option<Part> {
        let message = self.queue.front_mut()?;
        let total = if self.is_begun { None } else { u32::try_from(message.len()).ok() };
        let bytes = message.split_to(message.len().min(bytes_max));
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes.len());
        self.is_begun = message.has_remaining();
        if !self.is_begun {
            self.queue.pop_front();
        }
        if self.queue.is_empty() {
            *self = Self::default();
        }
        Some(Part { total, bytes })
    }
}

/// A message of one lane that is being received.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    assembling: Option<Assembly>,
}

#[derive(Debug)]
struct Assembly {
    missing_bytes: usize,
    /// Grows with what really came, never with what was declared.
    received: BytesMut,
}

impl Incoming {
    /// The next frame of this lane starts with a total length.
    pub(crate) fn is_idle(&self) -> bool {
        self.assembling.is_none()
    }

    pub(crate) fn begin(&mut self, total: u32, longest: u32) -> Result<(), MuxError> {
        if total > longest {
            return Err(MuxError::ControlTooLong(total));
        }
        let missing_bytes = usize::try_from(total).map_err(|_| MuxError::ControlTooLong(total))?;
        self.assembling = Some(Assembly { missing_bytes, received: BytesMut::new() });
        Ok(())
    }

    /// Bytes that the message still lacks; a frame may not carry more.
    pub(crate) fn missing_bytes(&self) -> usize {
        self.assembling.as_ref().map_or(0, |assembly| assembly.missing_bytes)
    }

    /// Adds bytes, at most [`Self::missing_bytes`]; gives the message when it is whole.
    pub(crate) fn add(&mut self, bytes: BytesMut) -> Option<Bytes> {
        let assembly = self.assembling.as_mut()?;
        assembly.missing_bytes = assembly.missing_bytes.saturating_sub(bytes.len());
        if assembly.received.is_empty() {
            assembly.received = bytes;
        } else {
            assembly.received.extend_from_slice(&bytes);
        }
        if assembly.missing_bytes > 0 {
            return None;
        }
        self.assembling.take().map(|whole| whole.received.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_and_put_together() {
        let mut outgoing = Outgoing::default();
        let mut incoming = Incoming::default();
        outgoing.push(Bytes::from(vec![7; 50]), 100).unwrap();
        let mut whole = None;
        while let Some(part) = outgoing.next_part(20) {
            if let Some(total) = part.total {
                incoming.begin(total, 100).unwrap();
            }
            whole = incoming.add(BytesMut::from(&part.bytes[..]));
        }
        assert_eq!(whole, Some(Bytes::from(vec![7; 50])));
        assert!(incoming.is_idle() && outgoing.is_empty());
    }

    #[test]
    fn f_a_message_over_the_bound_is_refused_before_allocation() {
        assert_eq!(Incoming::default().begin(101, 100), Err(MuxError::ControlTooLong(101)));
        assert_eq!(Outgoing::default().push(Bytes::from(vec![0; 101]), 100), Err(ControlError::TooLong(101)));
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut outgoing = Outgoing::default();
        let taken = (0..10_000).take_while(|_| outgoing.push(Bytes::from_static(b"x"), 100).is_ok()).count();
        assert_eq!(taken, QUEUE_MESSAGES_MAX);
    }
}
