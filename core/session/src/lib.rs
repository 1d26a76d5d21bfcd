//! When a connection to a target must be refused a session, and when it must end.
//!
//! One [`Connection`] per authenticated connection of a user, in every protocol: it counts sessions, watches silence and
//! the certificate, and takes new terms when policy or locks change. [`UserConnections`] counts the connections of each
//! user on this agent. Neither decides who may enter (`core/policy`) nor closes anything: they return effects.

mod connection;
mod user_connections;

pub use connection::{Connection, Effect, EndReason, Now, OpenRefusal, Terms};
pub use user_connections::{TooManyConnections, UserConnections};
