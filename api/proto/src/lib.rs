//! Contracts between processes: the Auth Service, the control messages of agent tunnels and the peer service.
//!
//! The messages and stubs are generated from `proto/` at build time; there is no logic here but reading a list as pairs.

pub use generated::agent::v1 as agent;
pub use generated::auth::v1 as auth;
pub use generated::peer::v1 as peer;
use wayleave_vocab::Versions;

/// The packages nested as the generator expects them.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    reason = "generated code"
)]
mod generated {
    pub mod auth {
        pub mod v1 {
            tonic::include_proto!("wayleave.auth.v1");
        }
    }
    pub mod agent {
        pub mod v1 {
            tonic::include_proto!("wayleave.agent.v1");
        }
    }
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("wayleave.peer.v1");
        }
    }
}

impl auth::PolicySnapshot {
    /// The succession of policy keys: the bytes of each link, and its signature.
    pub fn links(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.successions.iter().map(|link| (link.payload.as_slice(), link.signature.as_slice()))
    }
}

impl auth::PolicyDelta {
    /// The succession of policy keys, as with a snapshot.
    pub fn links(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.successions.iter().map(|link| (link.payload.as_slice(), link.signature.as_slice()))
    }
}

/// ALPN of the Auth API, passed through by proxies unterminated.
pub const ALPN_AUTH: &[u8] = b"wayleave-auth/1";
/// ALPN of an agent's tunnel.
pub const ALPN_TUNNEL: &[u8] = b"wayleave-tunnel/1";
/// ALPN of a client that dials a resource.
pub const ALPN_DIAL: &[u8] = b"wayleave-dial/1";
/// ALPN of the stream on which a proxy forwards a client to Auth with its address in front.
pub const ALPN_FORWARD: &[u8] = b"wayleave-forward/1";
/// Versions of the control messages that this build speaks.
pub const CONTROL_VERSIONS: Versions = Versions::only(1);
/// Versions of the peer service that this build speaks.
pub const PEER_VERSIONS: Versions = Versions::only(1);
