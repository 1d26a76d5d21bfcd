//! The seam between services and protocol adapters. A service knows these traits only; `bin/` plugs adapters in.

use crate::stream::BoxStream;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use wayleave_dial::{DialRefusal, DialRequest, DialRoute};
use wayleave_runtime::Shutdown;

/// A stream that a proxy opened to this agent, after its dial request was read and before it was answered.
pub struct Inbound {
    /// The stream; the resource's own protocol starts after the answer.
    pub stream: BoxStream,
    /// What the proxy says about it. It routes and traces; it proves nothing.
    pub request: DialRequest,
}

/// Serves one protocol on the agent: takes a stream, proves who is asking, asks the policy, connects to the target.
pub trait Adapter: Send + Sync + 'static {
    /// Whether this adapter serves the target.
    fn serves(&self, request: &DialRequest) -> bool;

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
