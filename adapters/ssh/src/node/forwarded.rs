//! What is written about forwarded ports: each connection and listener from its begin to its end.

use super::connection::{Done, NodeConnection};
use super::events::{self, duration_ms, traffic};
use crate::driver::Core;
use crate::pump::Traffic;
use std::collections::BTreeMap;
use wayleave_audit::{Event, Outcome, PortAction, Text};
use wayleave_ssh::ChannelId;
use wayleave_vocab::Mono;

/// The forwarded connections that are open, of either direction.
#[derive(Default)]
pub(crate) struct Streams(BTreeMap<ChannelId, Stream>);

/// What is said at the end of a connection.
struct Stream {
    stop: PortAction,
    address: String,
    since: Mono,
}

impl NodeConnection {
    /// What is written before a forward.
    pub(crate) fn port_event(&self, action: PortAction, address: &str) -> Vec<Event> {
        self.port(action, address, Outcome::Success).into_iter().collect()
    }

    pub(crate) fn port(&self, action: PortAction, address: &str, outcome: Outcome) -> Option<Event> {
        let session = self.session_ref(self.id)?;
        Some(Event::Port {
            session,
            action,
            addr: Text::new(address),
            duration_ms: None,
            traffic: None,
            outcome,
        })
    }

    /// Notes that a forward was refused; a client that goes on asking is disconnected.
    pub(crate) fn note_port_refused(
        &mut self,
        core: &mut Core<Done>,
        action: PortAction,
        address: &str,
        reason: &str,
    ) {
        if let Some(event) = self.port(action, address, events::failure(reason)) {
            self.note_refused(core, event);
        }
    }

    /// Notes that a forward was allowed and did not come about.
    pub(crate) fn note_port_failed(
        &self,
        core: &mut Core<Done>,
        action: PortAction,
        address: &str,
        reason: &str,
    ) {
        if let Some(event) = self.port(action, address, events::failure(reason)) {
            self.note(core, event);
        }
    }

    /// A forwarded connection is open.
    pub(crate) fn stream_begins(
        &mut self,
        core: &Core<Done>,
        channel: ChannelId,
        stop: PortAction,
        address: String,
    ) {
        self.streams.0.insert(channel, Stream { stop, address, since: core.clock.mono() });
    }

    /// It is closed, if the channel was one.
    pub(crate) fn stream_ends(&mut self, core: &mut Core<Done>, channel: ChannelId, through: Traffic) {
        if let Some(stream) = self.streams.0.remove(&channel) {
            self.note_port_end(core, stream.stop, &stream.address, stream.since, Some(through));
        }
    }

    /// Notes that a connection or a listener has ended.
    pub(crate) fn note_port_end(
        &self,
        core: &mut Core<Done>,
        action: PortAction,
        address: &str,
        since: Mono,
        through: Option<Traffic>,
    ) {
        let Some(session) = self.session_ref(self.id) else { return };
        let event = Event::Port {
            session,
            action,
            addr: Text::new(address),
            duration_ms: Some(duration_ms(core, since)),
            traffic: through.map(traffic),
            outcome: Outcome::Success,
        };
        self.note(core, event);
    }

    /// The connection is gone, and with it everything that was forwarded on it.
    pub(crate) fn end_forwards(&mut self, core: &mut Core<Done>) {
        for (channel, stream) in std::mem::take(&mut self.streams.0) {
            let through = core.pumps.remove(channel);
            self.note_port_end(core, stream.stop, &stream.address, stream.since, Some(through));
        }
        self.end_listeners(core);
    }

    /// Nothing is listened on any more.
    pub(crate) fn end_listeners(&mut self, core: &mut Core<Done>) {
        for (address, since) in self.forwards.end() {
            self.note_port_end(core, PortAction::RemoteStop, &address, since, None);
        }
    }
}
