//! What the entry asks of Auth.

use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use wayleave_ssh::{Certificate, LoginProof, PublicKey};
use wayleave_vocab::{HostId, Incarnation, Labels, NodeName, SessionId};

/// The Auth Service, as the entry needs it.
pub trait PublicationAuthority: Send + Sync + 'static {
    /// Publishes a machine, renews that, or adds ports to it.
    fn publish(&self, wish: PublishWish) -> BoxFuture<'_, Result<Published, PublicationError>>;

    /// What was published is gone.
    fn withdraw(&self, name: NodeName, publication: SessionId)
    -> BoxFuture<'_, Result<(), PublicationError>>;

    /// Bytes that the login of a user on the machine must contain.
    fn begin_login(&self, host_id: HostId) -> BoxFuture<'_, Result<Challenge, PublicationError>>;

    /// A certificate for one connection to the machine.
    fn sign_login(&self, wish: SignWish) -> BoxFuture<'_, Result<Certificate, PublicationError>>;
}

/// A machine to be published.
#[derive(Debug, Clone)]
pub struct PublishWish {
    /// That the publisher connected here.
    pub proof: LoginProof,
    /// The same in every wish about it.
    pub publication: SessionId,
    /// This life of the proxy.
    pub incarnation: Incarnation,
    /// Its name.
    pub name: NodeName,
    /// Every port under the name.
    pub ports: BTreeSet<u16>,
    /// The host key that its sshd showed; none without SSH.
    pub target_key: Option<PublicKey>,
    /// The key that users are shown.
    pub shown_key: PublicKey,
    /// Where the publisher connected from.
    pub client: SocketAddr,
}

/// A published machine.
#[derive(Debug, Clone)]
pub struct Published {
    /// Its id.
    pub host_id: HostId,
    /// For the key that users are shown.
    pub host_certificate: Certificate,
    /// It has no SSH that can be entered.
    pub tcp_only: bool,
    /// Its labels.
    pub labels: Labels,
}

/// What makes a login fresh.
#[derive(Debug, Clone)]
pub struct Challenge {
    /// Given back with the proof.
    pub challenge: Vec<u8>,
    /// For the key exchange.
    pub cookie: [u8; 16],
}

/// A user who is to enter a machine.
#[derive(Debug, Clone)]
pub struct SignWish {
    /// Which machine.
    pub host_id: HostId,
    /// What the login had to contain.
    pub challenge: Vec<u8>,
    /// That he logged in.
    pub proof: LoginProof,
    /// The key to certify.
    pub key: PublicKey,
    /// Where he connected from, as far as is known.
    pub client: Option<SocketAddr>,
}

/// Auth did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicationError {
    /// It refused.
    #[error("{0}")]
    Refused(String),
    /// It did not answer, or cannot do it now.
    #[error("the Auth Service cannot be asked now: {0}")]
    Unavailable(String),
}
