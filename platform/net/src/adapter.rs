//! The seam between services and protocol adapters. A service knows these traits only; `bin/` plugs adapters in.

use crate::stream::BoxStream;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use wayleave_dial::{DialRefusal, DialRequest, DialRoute};
use wayleave_identity::UserPrincipal;
use wayleave_runtime::Shutdown;
use wayleave_vocab::{HostId, Incarnation, UserName};

/// A stream that a proxy opened to this agent, after its dial request was read and before it was answered.
pub struct Inbound {
    /// The stream; the resource's own protocol starts after the answer.
    pub stream: BoxStream,
    /// What the proxy says about it. It routes and traces; it proves nothing.
    pub request: DialRequest,
    /// What happens to the stream beside its bytes, where it can be resumed.
    pub resumption: Option<mpsc::Receiver<ResumptionEvent>>,
}

/// Something that happens to a resumable stream. Whoever serves the stream notes it, and decides where an answer is
/// wanted; no answer is a no.
pub enum ResumptionEvent {
    /// The connection under it was lost; it waits for the client.
    Detached,
    /// The client is back, with a certificate and a proof that were verified: may it go on?
    Reattach {
        /// Who, by the certificate that was presented now.
        user: UserPrincipal,
        /// From where, as the proxy says.
        client_address: Option<SocketAddr>,
        /// Yes, or what the client may read.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Somebody knew the stream's name and not its secret, or was not its user.
    Refused {
        /// Who, if a certificate proved it.
        user: Option<UserName>,
        /// From where, as the proxy says.
        client_address: Option<SocketAddr>,
        /// What was wrong.
        reason: String,
    },
    /// Nobody came back in time: the stream ends once this is answered.
    Expired {
        /// It is noted.
        answer: oneshot::Sender<()>,
    },
}

/// Serves one protocol on the agent: takes a stream, proves who is asking, asks the policy, connects to the target.
pub trait Adapter: Send + Sync + 'static {
    /// Whether this adapter serves the target.
    fn serves(&self, request: &DialRequest) -> bool;

    /// How long a stream of this user waits for its client after the connection under it was lost; zero is not at all.
    ///
    /// # Errors
    /// What the user may read: he may have no such stream, now.
    fn max_detached(&self, _user: &UserPrincipal) -> Result<Duration, String> {
        Ok(Duration::ZERO)
    }

    /// Serves one stream to its end. Requested shutdown means: no new work, and end soon.
    fn serve(self: Arc<Self>, inbound: Inbound, shutdown: Shutdown) -> BoxFuture<'static, ()>;
}

/// Reaches resources through the cluster.
pub trait Dialer: Send + Sync + 'static {
    /// Opens a stream to what the request names.
    fn dial(&self, request: DialRequest) -> BoxFuture<'_, Result<Dialed, DialRefusal>>;
}

/// A stream that was opened, and the way it takes.
pub struct Dialed {
    /// The stream, ready for the resource's own protocol.
    pub stream: BoxStream,
    /// The proxies and the agent it runs through.
    pub route: DialRoute,
}

/// To be called once the other side has proved who it is. Until then its connection may have to give way to others.
pub type Known = Box<dyn FnOnce() + Send>;

/// An entry of a proxy that speaks a protocol of its own and turns it into dial requests (SSH on 3023).
pub trait Entry: Send + Sync + 'static {
    /// Serves one client connection to its end.
    fn serve(
        self: Arc<Self>,
        stream: BoxStream,
        client: SocketAddr,
        known: Known,
        dialer: Arc<dyn Dialer>,
        shutdown: Shutdown,
    ) -> BoxFuture<'static, ()>;
}

/// An entry of a proxy at which machines without an agent publish themselves (`ssh -R` to 3024).
pub trait PublishEntry: Send + Sync + 'static {
    /// Serves one connection of a machine to its end; what it publishes is hosted by the proxy meanwhile.
    fn serve(
        self: Arc<Self>,
        stream: BoxStream,
        client: SocketAddr,
        known: Known,
        hosting: Arc<dyn Hosting>,
        shutdown: Shutdown,
    ) -> BoxFuture<'static, ()>;
}

/// A proxy that serves machines in the place of their agents.
pub trait Hosting: Send + Sync + 'static {
    /// This life of the proxy.
    fn incarnation(&self) -> Incarnation;

    /// Makes a machine reachable through every proxy, until what is returned is dropped.
    fn host(&self, id: HostId, adapter: Arc<dyn Adapter>) -> Hosted;
}

/// A machine that a proxy serves in the place of an agent.
pub struct Hosted {
    /// Changes when the cluster may know the machine no more. Auth can tell.
    pub forgotten: watch::Receiver<u64>,
    /// Dropped, the machine is reachable here no more.
    pub registration: Box<dyn Send>,
}
