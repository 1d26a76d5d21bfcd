//! Both ends over connections that are cut: what arrives, who gets a stream back, and who does not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod decided;
mod exact;
mod guessed;
mod hand;
mod lying;
mod refused;
mod secrecy;
mod stalled;
mod widened;
mod world;
