//! `-R`: the node listens for the client, on the loopback or on a Unix socket as the user.
//!
//! There is no `GatewayPorts`: an address other than the loopback is refused, and a port below 1024 needs
//! the login root, as if the user listened himself.

use super::NodeAdapter;
use super::admission::Refused;
use super::agent_forwarding::AgentForwarding;
use super::connection::{Done, NodeConnection, Stage, Unconfirmed, answer_global};
use crate::driver::Core;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixStream};
use wayleave_audit::{Event, PortAction};
use wayleave_net::BoxStream;
use wayleave_os::{Launcher, UserListener};
use wayleave_policy::{Permit, SessionOptions};
use wayleave_runtime::Shutdown;
use wayleave_ssh::{ChannelOpen, GlobalReply, GlobalReplyToken, TcpEndpoint};
use wayleave_vocab::Mono;

/// Listeners at a time on one connection, those being made included.
const FORWARDS_MAX: usize = 32;
/// First port that users other than root may listen on.
const UNPRIVILEGED_PORT_MIN: u16 = 1024;
/// Pause after a failed accept, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is listened on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ForwardKey {
    /// Host as asked for and the port that is bound.
    Tcp(String, u16),
    /// Path as asked for.
    Unix(String),
}

/// The listeners of a connection.
#[derive(Default)]
pub(crate) struct Forwards {
    active: BTreeMap<ForwardKey, Forward>,
    starting: usize,
}

/// A listener that is accepted on.
struct Forward {
    since: Mono,
    _stop: StopOnDrop,
}

impl Forwards {
    /// Ends all; gives where they listened, and since when.
    pub(crate) fn end(&mut self) -> Vec<(String, Mono)> {
        let active = std::mem::take(&mut self.active);
        active.into_iter().map(|(key, forward)| (key.to_string(), forward.since)).collect()
    }
}

impl fmt::Display for ForwardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => f.write_str(path),
        }
    }
}

/// Ends the accepting of a listener.
pub(crate) struct StopOnDrop(pub(crate) Shutdown);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.request();
    }
}

/// A listener was made, or why not.
pub(crate) struct Listening {
    key: ForwardKey,
    is_any_port: bool,
    reply: Option<GlobalReplyToken>,
    listeners: Result<Vec<Listener>, ListenError>,
}

/// Why there is no listener.
enum ListenError {
    /// It was not to be noted.
    NotRecorded(String),
    /// It could not be made.
    Failed(String),
}

/// One socket that is accepted on.
pub(crate) enum Listener {
    /// On the loopback.
    Tcp(TcpListener),
    /// As the user.
    Unix(Box<UserListener>),
}

/// Somebody connected.
pub(crate) struct Incoming {
    accepting: Accepting,
    stream: Accepted,
}

/// What waits for connections.
struct Accepting {
    key: ForwardKey,
    listener: Listener,
    stop: Shutdown,
    node: Arc<NodeAdapter>,
    /// Written before each connection is offered to the client.
    event: Vec<Event>,
}

enum Accepted {
    Tcp(BoxStream, SocketAddr),
    Unix(UnixStream),
}

impl NodeConnection {
    /// The client asks for a port.
    pub(crate) fn listen_tcp(
        &mut self,
        core: &mut Core<Done>,
        asked: TcpEndpoint,
        reply: Option<GlobalReplyToken>,
    ) {
        let address = format!("{}:{}", asked.host, asked.port);
        let permit = match self.may_listen(core, &asked) {
            Ok(permit) => permit,
            Err(refused) => return self.refuse_listener(core, &address, &refused, reply),
        };
        let event = self.port_event(PortAction::RemoteStart, &address);
        let node = self.node.clone();
        self.forwards.starting += 1;
        core.start(async move {
            let is_any_port = asked.port == 0;
            let listeners = match node.record(event).await {
                Ok(()) => bind(permit, &asked).await.map_err(|error| ListenError::Failed(error.to_string())),
                Err(error) => Err(ListenError::NotRecorded(error.to_string())),
            };
            let port = listeners.as_ref().map_or(asked.port, |(port, _)| *port);
            let key = ForwardKey::Tcp(asked.host, port);
            let listeners = listeners.map(|(_, listeners)| listeners);
            Done::Listening(Listening { key, is_any_port, reply, listeners })
        });
    }

    /// The client asks for a Unix socket.
    pub(crate) fn listen_unix(
        &mut self,
        core: &mut Core<Done>,
        path: String,
        reply: Option<GlobalReplyToken>,
    ) {
        let permit = match self.may_listen_more(core) {
            Ok(permit) => permit,
            Err(refused) => return self.refuse_listener(core, &path, &refused, reply),
        };
        let Stage::Admitted(user) = &self.stage else {
            return answer_global(core, reply, GlobalReply::Failure);
        };
        let account = user.account.clone();
        let (node, event) = (self.node.clone(), self.port_event(PortAction::RemoteStart, &path));
        self.forwards.starting += 1;
        core.start(async move {
            let listeners = match node.record(event).await {
                Ok(()) => bind_unix(permit, &node.config.launcher, account, &path).await,
                Err(error) => Err(ListenError::NotRecorded(error.to_string())),
            };
            Done::Listening(Listening { key: ForwardKey::Unix(path), is_any_port: false, reply, listeners })
        });
    }

    fn may_listen_more(&self, core: &Core<Done>) -> Result<Permit, Refused> {
        if self.forwards.active.len() + self.forwards.starting >= FORWARDS_MAX {
            return Err(Refused::plain(format!("a connection has {FORWARDS_MAX} remote forwards at most")));
        }
        self.may_forward(core)
    }

    fn may_listen(&self, core: &Core<Done>, asked: &TcpEndpoint) -> Result<Permit, Refused> {
        let permit = self.may_listen_more(core)?;
        if loopback_addresses(&asked.host).is_empty() {
            return Err(Refused::plain("remote forwards listen on localhost only"));
        }
        let is_root = matches!(&self.stage, Stage::Admitted(user) if user.account.is_root());
        if asked.port != 0 && asked.port < UNPRIVILEGED_PORT_MIN && !is_root {
            return Err(Refused::plain("a port below 1024 needs the login root"));
        }
        Ok(permit)
    }

    fn refuse_listener(
        &mut self,
        core: &mut Core<Done>,
        address: &str,
        refused: &Refused,
        reply: Option<GlobalReplyToken>,
    ) {
        self.note_port_refused(core, PortAction::RemoteStart, address, &refused.reason);
        answer_global(core, reply, GlobalReply::Failure);
    }

    /// A listener is there, or why not.
    pub(crate) fn on_listening(&mut self, core: &mut Core<Done>, listening: Listening) {
        let Listening { key, is_any_port, reply, listeners } = listening;
        self.forwards.starting = self.forwards.starting.saturating_sub(1);
        let listeners = match listeners {
            Ok(listeners) => listeners,
            Err(ListenError::NotRecorded(reason)) => {
                tracing::debug!(reason, "a remote forward was not noted");
                return answer_global(core, reply, GlobalReply::Failure);
            }
            Err(ListenError::Failed(reason)) => {
                tracing::debug!(reason, "a remote forward failed");
                self.note_port_failed(core, PortAction::RemoteStart, &key.to_string(), &reason);
                return answer_global(core, reply, GlobalReply::Failure);
            }
        };
        // The policy may have changed while the listener was made.
        if let Err(refused) = self.may_forward(core) {
            self.note_port_failed(core, PortAction::RemoteStart, &key.to_string(), &refused.reason);
            return answer_global(core, reply, GlobalReply::Failure);
        }
        let stop = Shutdown::new();
        let event = self.port_event(PortAction::RemoteConnection, &key.to_string());
        for listener in listeners {
            let (key, stop) = (key.clone(), stop.clone());
            let accepting = Accepting { key, listener, stop, node: self.node.clone(), event: event.clone() };
            core.start(accept(accepting));
        }
        let answer = match &key {
            ForwardKey::Tcp(_, port) if is_any_port => GlobalReply::Port(*port),
            ForwardKey::Tcp(..) | ForwardKey::Unix(_) => GlobalReply::Success,
        };
        self.forwards.active.insert(key, Forward { since: core.clock.mono(), _stop: StopOnDrop(stop) });
        answer_global(core, reply, answer);
    }

    /// The client wants a port no more.
    pub(crate) fn cancel_tcp(
        &mut self,
        core: &mut Core<Done>,
        asked: &TcpEndpoint,
        reply: Option<GlobalReplyToken>,
    ) {
        self.cancel(core, &ForwardKey::Tcp(asked.host.clone(), asked.port), reply);
    }

    /// The client wants a Unix socket no more.
    pub(crate) fn cancel_unix(&mut self, core: &mut Core<Done>, path: &str, reply: Option<GlobalReplyToken>) {
        self.cancel(core, &ForwardKey::Unix(path.to_owned()), reply);
    }

    fn cancel(&mut self, core: &mut Core<Done>, key: &ForwardKey, reply: Option<GlobalReplyToken>) {
        let Some(forward) = self.forwards.active.remove(key) else {
            return answer_global(core, reply, GlobalReply::Failure);
        };
        self.note_port_end(core, PortAction::RemoteStop, &key.to_string(), forward.since, None);
        answer_global(core, reply, GlobalReply::Success);
    }

    /// Ends the listeners that the policy of the moment allows no more. Connections that came to them go on.
    pub(crate) fn end_forwards_without_right(&mut self, core: &mut Core<Done>, options: &SessionOptions) {
        if !options.port_forwarding {
            self.end_listeners(core);
        }
        if !options.forward_agent && matches!(self.agent, AgentForwarding::On { .. }) {
            tracing::info!("a forwarded agent is no longer allowed");
            self.agent = AgentForwarding::Off;
        }
    }

    /// Somebody connected: the client is offered the stream, if the user may still forward.
    pub(crate) fn on_incoming(&mut self, core: &mut Core<Done>, incoming: Incoming) {
        let Incoming { accepting, stream } = incoming;
        if accepting.stop.is_requested() {
            return;
        }
        let (open, stream): (_, BoxStream) = match (&accepting.key, stream) {
            (ForwardKey::Tcp(host, port), Accepted::Tcp(stream, peer)) => {
                let listener = TcpEndpoint { host: host.clone(), port: *port };
                let originator = TcpEndpoint { host: peer.ip().to_string(), port: peer.port() };
                (ChannelOpen::ForwardedTcpip { listener, originator }, stream)
            }
            (ForwardKey::Unix(path), Accepted::Unix(stream)) => {
                (ChannelOpen::ForwardedStreamlocal { path: path.clone() }, Box::new(stream))
            }
            // A listener accepts its own kind only.
            (ForwardKey::Tcp(..), Accepted::Unix(_)) | (ForwardKey::Unix(_), Accepted::Tcp(..)) => return,
        };
        let address = accepting.key.to_string();
        core.start(accept(accepting));
        if let Err(refused) = self.may_forward(core) {
            tracing::debug!(reason = refused.reason, "a forwarded connection was refused");
            return self.note_port_failed(core, PortAction::RemoteConnection, &address, &refused.reason);
        }
        match core.connection.open(&open) {
            Ok(channel) => {
                self.unconfirmed.insert(channel, Unconfirmed { stream, listener: Some(address) });
            }
            Err(error) => {
                tracing::debug!(%error, "a forwarded connection was dropped");
                self.note_port_failed(core, PortAction::RemoteConnection, &address, &error.to_string());
            }
        }
    }
}

/// Waits for the next connection that can be noted.
async fn accept(accepting: Accepting) -> Done {
    loop {
        let Some(stream) = accepting.stop.until(accept_one(&accepting.listener)).await else {
            return Done::Noted;
        };
        match accepting.node.record(accepting.event.clone()).await {
            Ok(()) => return Done::Incoming(Incoming { accepting, stream }),
            Err(error) => tracing::debug!(%error, "a forwarded connection was dropped"),
        }
    }
}

async fn accept_one(listener: &Listener) -> Accepted {
    loop {
        let accepted = match listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                wayleave_net::tune(&stream);
                Accepted::Tcp(Box::new(stream), peer)
            }),
            Listener::Unix(listener) => listener.accept().await.map(Accepted::Unix),
        };
        match accepted {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::debug!(%error, "a forwarded connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The loopback addresses that a host in the client's request means; none when it means others.
fn loopback_addresses(host: &str) -> Vec<IpAddr> {
    match host {
        "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        _ => host.parse::<IpAddr>().ok().filter(IpAddr::is_loopback).into_iter().collect(),
    }
}

/// Binds the port on each loopback address; the first one must succeed, and chooses the port if any will do.
async fn bind(permit: Permit, asked: &TcpEndpoint) -> io::Result<(u16, Vec<Listener>)> {
    let mut port = asked.port;
    let mut listeners = Vec::new();
    for address in loopback_addresses(&asked.host) {
        match TcpListener::bind((address, port)).await {
            Ok(listener) => {
                port = listener.local_addr()?.port();
                listeners.push(Listener::Tcp(listener));
            }
            Err(error) if listeners.is_empty() => return Err(error),
            // A machine without IPv6, or a port that is free on one of the two only.
            Err(error) => tracing::debug!(%error, "a remote forward listens on IPv4 only"),
        }
    }
    tracing::debug!(user = %permit.user(), port, "a remote forward listens");
    Ok((port, listeners))
}

async fn bind_unix(
    permit: Permit,
    launcher: &Launcher,
    account: wayleave_os::Account,
    path: &str,
) -> Result<Vec<Listener>, ListenError> {
    let listener = launcher
        .listen_unix(account, Path::new(path))
        .await
        .map_err(|error| ListenError::Failed(error.to_string()))?;
    tracing::debug!(user = %permit.user(), "a remote forward listens on a Unix socket");
    Ok(vec![Listener::Unix(Box::new(listener))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_is_listened_on() {
        check("localhost", 2);
        check("127.0.0.1", 1);
        check("::1", 1);
        for wider in ["", "*", "0.0.0.0", "::", "10.0.0.1", "example.com"] {
            check(wider, 0);
        }
    }

    fn check(host: &str, expected: usize) {
        assert_eq!(loopback_addresses(host).len(), expected, "{host:?}");
    }
}
