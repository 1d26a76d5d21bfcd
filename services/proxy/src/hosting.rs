//! Machines without an agent that published themselves at this proxy: it serves them in the place of their agents.
//!
//! To the rest of the cluster they are like agents with a tunnel to this proxy: they have a route here, and are dialled
//! through peers. What is done with a stream is the adapter's.

use crate::service::Shared;
use std::sync::Arc;
use wayleave_dial::{DialRefusal, DialRequest};
use wayleave_net::{Adapter, BoxStream, Hosted, Hosting, Inbound};
use wayleave_runtime::Clock;
use wayleave_telemetry::Counter;
use wayleave_vocab::{Capability, HostId, Incarnation};

/// Bytes under way to or from such a machine's adapter.
const PIPE_BYTES: usize = 64 * 1024;

/// The proxy as an entry for such machines sees it.
pub(crate) struct ProxyHosting(pub(crate) Arc<Shared>);

impl Hosting for ProxyHosting {
    fn incarnation(&self) -> Incarnation {
        self.0.routes.incarnation()
    }

    fn host(&self, id: HostId, adapter: Arc<dyn Adapter>) -> Hosted {
        let (number, forgotten) = self.0.registry.host(id, adapter);
        self.0.routes.tunnel_up(id, self.0.clock.mono());
        Hosted { forgotten, registration: Box::new(Registration { shared: self.0.clone(), id, number }) }
    }
}

/// Keeps a machine reachable.
struct Registration {
    shared: Arc<Shared>,
    id: HostId,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.shared.registry.unhost(self.id, self.number) {
            self.shared.routes.tunnel_down(self.id, self.shared.clock.mono());
        }
    }
}

/// Opens a stream to a machine that this proxy serves.
pub(crate) fn open_here(
    shared: &Shared,
    adapter: Arc<dyn Adapter>,
    request: &DialRequest,
) -> Result<BoxStream, DialRefusal> {
    if !adapter.serves(request) {
        let detail = format!("{} does not offer that: see `way ls`", request.target.name());
        return Err(DialRefusal::Denied { detail });
    }
    if request.resume.is_some() {
        // The other end is this very process: it is gone with the connection.
        let detail = format!("connections to {} end with their proxy", request.target.name());
        return Err(DialRefusal::Invalid { detail, missing: Some(Capability::Resume.name().to_owned()) });
    }
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let inbound = Inbound { stream: Box::new(far), request: request.clone(), resumption: None };
    shared.tasks.spawn_many(adapter.serve(inbound, shared.draining.clone()));
    // It may be a peer's, which nothing else counts.
    Ok(shared.registry.hosted_streams.count(Box::new(near), Counter::default(), Counter::default()))
}
