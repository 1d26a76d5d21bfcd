//! Bytes of any content for every decoder: no panic, and no more memory than its target allows.
//!
//! A [`Target`] is a function of bytes around one or more decoders, with seeds that they accept. The driver
//! ([`Driver`]) gives it the seeds, the inputs below `corpus/NAME/`, and mutations of both that a seed number
//! determines. [`memory`] counts what an input makes it allocate. [`decoders`] lists the decoders of the sources, so
//! that none is without a target. `cargo xtask fuzz` runs the same for as long as one likes.

#![expect(clippy::unwrap_used, reason = "a test harness stops at the first surprise")]

pub mod decoders;
mod driver;
pub mod memory;
mod mutate;
mod targets;

pub use driver::{Driver, Finding};
pub use mutate::Mutator;
pub use targets::all;

/// A decoder, or several that belong together.
pub struct Target {
    /// Names it in reports, and its directory below `corpus`.
    pub name: &'static str,
    /// What one input may make it hold at a time, in bytes.
    pub memory_bytes_max: usize,
    /// Inputs that it accepts, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Takes one input. What it makes of it does not matter.
    pub run: fn(&[u8]),
}

/// The input as text, the way readers of files make it.
fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
