//! Resumable streams: bytes that go on over another connection when the one that carried them is lost.
//!
//! [`Stream`] is one end of such a stream, a machine without IO: it keeps what the other end has not acknowledged,
//! says what to send, and starts again at the right byte on the next attachment. [`Attachments`] decides which of
//! several attachments counts. [`Budget`] bounds what all streams of a process keep together.
//!
//! How it looks on the wire is `wire/resume`; who may attach is decided by whoever serves the stream. The machine counts
//! what is received and never holds it: within one attachment bytes arrive in order, so a number is all that is needed.
//!
//! # What a driver must do
//! 1. Take at most [`Stream::room`] bytes from its user, and hand them in with `handle_write`.
//! 2. Send what [`Stream::poll_segment`] gives, in that order, as far as the connection takes it.
//! 3. Tell what arrives by the `handle_*` of its kind, and the loss of the connection by `handle_lost`.
//! 4. Call [`Stream::handle_timeout`] at [`Stream::poll_timeout`], and do what [`Stream::poll_effect`] says.

mod attachment;
mod budget;
mod outgoing;
mod stream;

pub use attachment::{Attachments, Attempt, Superseded};
pub use budget::Budget;
pub use outgoing::{KEPT_BYTES_BASE, KEPT_BYTES_FLOOR, KEPT_BYTES_MAX};
pub use stream::{Effect, End, Role, Segment, Stream, Violation};
