//! The Auth Service over real TLS and gRPC on loopback, with the memory backend and a clock that tests move.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop the test")]

mod access;
mod auditing;
mod copies;
mod harness;
mod joining;
mod published;
mod publishing;
mod resources;
mod rotating;
mod secrecy;
mod starting;
mod strangers;
mod tidying;
mod users;
