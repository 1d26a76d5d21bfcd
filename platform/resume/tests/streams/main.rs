//! Both ends over connections that are cut: what arrives, who gets a stream back, and who does not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod exact;
mod lying;
mod refused;
mod world;
