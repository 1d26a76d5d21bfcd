//! `-L` and `-D`: the agent connects to a target for the client, and to Unix sockets as the user.

use super::admission::Refused;
use super::connection::{Done, NodeConnection, Stage, reject_open};
use super::{NodeAdapter, address_policy};
use crate::driver::Core;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use wayleave_audit::{Event, PortAction};
use wayleave_net::BoxStream;
use wayleave_os::Account;
use wayleave_policy::Permit;
use wayleave_ssh::{ChannelId, OpenFailure, TcpEndpoint};

/// Looking up a name, and connecting each address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Why a channel is not opened.
#[derive(Debug)]
pub(crate) enum OpenRefusal {
    /// Not allowed.
    Refused(Refused),
    /// Allowed, and not to be noted.
    NotRecorded(Refused),
    /// Allowed, and not reached.
    Failed(String),
}

impl NodeConnection {
    /// The client asks for a connection to a host and port.
    pub(crate) fn open_tcp(&mut self, core: &mut Core<Done>, channel: ChannelId, target: TcpEndpoint) {
        let address = format!("{}:{}", target.host, target.port);
        let permit = match self.may_forward(core) {
            Ok(permit) => permit,
            Err(refused) => return self.refuse_open(core, channel, &address, &refused),
        };
        let (node, event) = (self.node.clone(), self.port_event(PortAction::LocalStart, &address));
        core.start(
            async move { Done::Connected(channel, address, connect(permit, node, event, &target).await) },
        );
    }

    /// The client asks for a connection to a Unix socket.
    pub(crate) fn open_unix(&mut self, core: &mut Core<Done>, channel: ChannelId, path: String) {
        let permit = match self.may_forward(core) {
            Ok(permit) => permit,
            Err(refused) => return self.refuse_open(core, channel, &path, &refused),
        };
        let Stage::Admitted(user) = &self.stage else { return };
        let account = user.account.clone();
        let (node, event) = (self.node.clone(), self.port_event(PortAction::LocalStart, &path));
        core.start(async move {
            let connected = connect_unix(permit, node, event, account, &path).await;
            Done::Connected(channel, path, connected)
        });
    }

    /// Whether the user may forward ports on this connection now.
    pub(crate) fn may_forward(&self, core: &Core<Done>) -> Result<Permit, Refused> {
        if !self.node.config.switches.port_forwarding {
            return Err(Refused::new(
                "port_forwarding is off in the agent's configuration",
                "this node does not allow port forwarding",
            ));
        }
        let is_certified = matches!(&self.stage, Stage::Admitted(user) if user.permissions.port_forwarding);
        if !is_certified {
            return Err(Refused::plain("your certificate does not permit port forwarding"));
        }
        let permit = self.permit(core.clock.wall())?;
        if !permit.options().port_forwarding {
            return Err(Refused::new(
                "no role allows port forwarding",
                "your roles do not allow port forwarding",
            ));
        }
        Ok(permit)
    }

    fn refuse_open(&mut self, core: &mut Core<Done>, channel: ChannelId, address: &str, refused: &Refused) {
        self.note_port_refused(core, PortAction::LocalStart, address, &refused.reason);
        reject_open(core, channel, OpenFailure::Prohibited, &refused.text);
    }

    /// A target was connected, or why not.
    pub(crate) fn on_connected(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        address: String,
        connected: Result<BoxStream, OpenRefusal>,
    ) {
        match connected {
            Ok(stream) => {
                core.pumps.attach_stream(channel, stream);
                self.stream_begins(core, channel, PortAction::LocalStop, address);
                // Refused only when the connection is over, which the driver sees.
                let _over = core.connection.accept_open(channel);
            }
            Err(OpenRefusal::Refused(refused)) => self.refuse_open(core, channel, &address, &refused),
            Err(OpenRefusal::NotRecorded(refused)) => {
                reject_open(core, channel, OpenFailure::Prohibited, &refused.text);
            }
            Err(OpenRefusal::Failed(text)) => {
                self.note_port_failed(core, PortAction::LocalStart, &address, &text);
                reject_open(core, channel, OpenFailure::ConnectFailed, &text);
            }
        }
    }
}

/// Notes the connection and makes it. This is the only place where the agent dials for a client.
async fn connect(
    permit: Permit,
    node: Arc<NodeAdapter>,
    event: Vec<Event>,
    target: &TcpEndpoint,
) -> Result<BoxStream, OpenRefusal> {
    record(&node, event).await?;
    let resolving = tokio::net::lookup_host((target.host.as_str(), target.port));
    let resolved = tokio::time::timeout(CONNECT_TIMEOUT, resolving)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| OpenRefusal::Failed(format!("{} is not found: {error}", target.host)))?;
    let mut last = OpenRefusal::Failed(format!("{} has no address", target.host));
    for address in resolved.take(ADDRESSES_MAX) {
        if let Some(why) = address_policy::refusal(address.ip()) {
            tracing::info!(user = %permit.user(), why, "a forward to a refused address was asked for");
            last = OpenRefusal::Refused(Refused::plain(format!("{} is refused: {why}", address.ip())));
            continue;
        }
        match connect_address(address).await {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => last = OpenRefusal::Failed(format!("{address}: {error}")),
        }
    }
    Err(last)
}

async fn connect_address(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    wayleave_net::tune(&stream);
    Ok(stream)
}

async fn connect_unix(
    permit: Permit,
    node: Arc<NodeAdapter>,
    event: Vec<Event>,
    account: Account,
    path: &str,
) -> Result<BoxStream, OpenRefusal> {
    record(&node, event).await?;
    tracing::debug!(login = %permit.login(), "a Unix socket is connected");
    match node.config.launcher.connect_unix(account, Path::new(path)).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(OpenRefusal::Failed(error.to_string())),
    }
}

async fn record(node: &NodeAdapter, event: Vec<Event>) -> Result<(), OpenRefusal> {
    node.record(event).await.map_err(|error| {
        OpenRefusal::NotRecorded(Refused {
            reason: error.to_string(),
            text: "refused while this node cannot write its audit log".to_owned(),
        })
    })
}
