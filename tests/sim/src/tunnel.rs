//! Drives the two multiplexers of a tunnel over a link: side 0 is the agent, side 1 the proxy.

use crate::coverage::Mark;
use crate::event::Machine;
use crate::message::{ControlMessage, Payload};
use crate::mutation::Mutation;
use crate::network::{Host, LinkId};
use crate::world::World;
use bytes::{Bytes, BytesMut};
use wayleave_mux::{Event, Mux, MuxError};
use wayleave_tunnel::TunnelId;
use wayleave_vocab::Mono;

/// Bytes that the kernels of both sides hold at most.
const IN_FLIGHT_BYTES_MAX: usize = 32 * 1024;
/// Bytes pulled from a multiplexer at a time.
const PULL_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) agent: usize,
    pub(crate) boot: u32,
    pub(crate) id: TunnelId,
    pub(crate) life: usize,
    pub(crate) muxes: [Option<Mux>; 2],
    pub(crate) inputs: [BytesMut; 2],
    /// World time since when a side has been ready.
    pub(crate) ready_at: [Option<Mono>; 2],
    /// The proxy tells others of it.
    pub(crate) is_published: bool,
    /// The agent gives it up once its streams have ended.
    pub(crate) is_leaving: bool,
}

impl World {
    pub(crate) fn tunnel_host(&self, link: LinkId, side: usize) -> Option<Host> {
        self.links.get(&link).map(|link| link.hosts[side])
    }

    /// One end's multiplexer and its host's time, if that end is there.
    pub(crate) fn mux(&mut self, link: LinkId, side: usize) -> Option<(&mut Mux, Mono)> {
        let now = self.local(self.tunnel_host(link, side)?);
        let mux = self.tunnels.get_mut(&link)?.muxes[side].as_mut()?;
        Some((mux, now))
    }

    pub(crate) fn tunnel_input(&mut self, link: LinkId, side: usize, bytes: &Bytes) {
        let Some(host) = self.tunnel_host(link, side) else { return };
        let now = self.local(host);
        let Some(tunnel) = self.tunnels.get_mut(&link) else { return };
        tunnel.inputs[side].extend_from_slice(bytes);
        let Some(mux) = tunnel.muxes[side].as_mut() else { return };
        if let Err(error) = mux.handle_input(&mut tunnel.inputs[side], now) {
            self.violate(format!("honest multiplexers quarrel: {error}"));
        }
        self.touch(Machine::Mux(link, side));
    }

    pub(crate) fn serve_mux(&mut self, link: LinkId, side: usize) {
        self.mux_events(link, side);
        while self.links.get(&link).is_some_and(|link| link.lanes[1 - side].bytes < IN_FLIGHT_BYTES_MAX) {
            let mut out = BytesMut::new();
            let Some((mux, now)) = self.mux(link, side) else { return };
            if !mux.has_output() || mux.poll_output(&mut out, PULL_BYTES, now) == 0 {
                break;
            }
            self.send(link, side, Payload::Bytes(out.freeze()));
            self.mux_events(link, side);
        }
        let Some(host) = self.tunnel_host(link, side) else { return };
        let at = self.mux(link, side).and_then(|(mux, _)| mux.poll_timeout());
        if !self.is_mutated(Mutation::NoKeepalive) {
            self.arm(Machine::Mux(link, side), host, at);
        }
    }

    fn mux_events(&mut self, link: LinkId, side: usize) {
        while let Some((mux, _)) = self.mux(link, side)
            && let Some(event) = mux.poll_event()
        {
            match event {
                Event::Pong { .. } => self.note(Mark::MuxPing),
                Event::Reset { .. } => self.note(Mark::StreamReset),
                Event::Writable { .. } => self.note(Mark::StreamWritable),
                Event::StreamOpened { .. } => self.note(Mark::StreamOpened),
                _ => {}
            }
            if side == 0 { self.agent_event(link, event) } else { self.proxy_event(link, event) }
        }
    }

    pub(crate) fn time_mux(&mut self, link: LinkId, side: usize) {
        let Some((mux, now)) = self.mux(link, side) else { return };
        match mux.handle_timeout(now) {
            Ok(()) => {}
            Err(MuxError::Silent(_)) => {
                self.note(Mark::MuxSilent);
                self.end_lost(link, side);
            }
            Err(error) => self.violate(format!("a multiplexer failed by itself: {error}")),
        }
    }

    /// A side has learnt that the tunnel is no more.
    pub(crate) fn tunnel_lost(&mut self, link: LinkId, side: usize) {
        let Some(tunnel) = self.tunnels.get_mut(&link) else { return };
        tunnel.muxes[side] = None;
        if side == 0 { self.agent_tunnel_lost(link) } else { self.proxy_tunnel_lost(link) }
    }

    /// Puts a message on a tunnel's control stream.
    pub(crate) fn send_control(&mut self, link: LinkId, message: ControlMessage) {
        let number = self.control.len() as u64;
        self.control.push(message);
        let bytes = Bytes::copy_from_slice(&number.to_be_bytes());
        if let Some((mux, _)) = self.mux(link, 1)
            && mux.send_control(bytes).is_err()
        {
            self.violate("a small control message was refused".to_owned());
        }
        self.touch(Machine::Mux(link, 1));
    }
}
