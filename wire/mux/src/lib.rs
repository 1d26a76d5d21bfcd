//! The multiplexer of agent tunnels: many byte streams and one control channel over one TLS connection.
//!
//! [`Mux`] is a machine without IO: bytes from the socket go into [`Mux::handle_input`], bytes for the
//! socket are pulled from [`Mux::poll_output`] only when the socket can take them, so that what is most
//! urgent is decided at the last moment. What a stream carries is none of its business (see `wire/dial`
//! for how a stream starts), nor is who the peer is (TLS, `core/identity`).
//!
//! # On the wire
//! Each side first sends a [preface](frame::Preface). Then frames: payload length (u24), kind (u8), stream
//! id (u32), all big-endian, and the payload. Stream 0 is control; the side that connected opens odd ids,
//! the side that accepted even ones, each in rising order. See [`frame`].
//!
//! # What a driver must do
//! 1. Read whenever the socket has bytes: flow control is per stream, so an unread stream never needs the
//!    socket to be left unread. Call `handle_input`, then drain [`Mux::poll_event`].
//! 2. Say [`Mux::consumed`] when a consumer has really taken bytes, and [`Mux::reset`] when it goes away.
//! 3. While the socket is writable and [`Mux::has_output`], pull `poll_output` with a small budget.
//! 4. Call [`Mux::handle_timeout`] at [`Mux::poll_timeout`].
//! 5. On an error, send what `poll_output` still gives (one closing frame) and close the connection.

mod config;
mod control;
mod error;
mod event;
pub mod frame;
mod heartbeat;
mod input;
mod mux;
mod output;
mod schedule;
mod stream;

pub use config::{Config, Role};
pub use error::{ControlError, MuxError, OpenError, SendError};
pub use event::{Class, Event, GoAwayCode, ResetCode, StreamId};
pub use mux::Mux;
