//! Tests of policy through its public interface.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod applications;
mod decisions;
mod explanations;
mod properties;
mod speed;
mod support;
