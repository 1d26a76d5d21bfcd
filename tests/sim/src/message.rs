//! What travels over connections.

use crate::backend::{Reply, Request};
use crate::plan::PlanKey;
use bytes::Bytes;
use wayleave_peering::{AttemptId, RouteUpdate};
use wayleave_tunnel::ProxyList;
use wayleave_vocab::{HostId, Incarnation, TunnelStrategy};

#[derive(Debug, Clone)]
pub(crate) enum Payload {
    /// Of a tunnel: what a multiplexer wrote.
    Bytes(Bytes),
    Peer(PeerMessage),
    Request(Request),
    Reply(Reply),
    /// The other side is gone.
    Close,
}

impl Payload {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Peer(_) | Self::Request(_) | Self::Reply(_) | Self::Close => 0,
        }
    }
}

/// Between proxies. Dials go from side 0 to side 1, routes the other way.
#[derive(Debug, Clone)]
pub(crate) enum PeerMessage {
    Ping,
    Pong,
    Push(RouteUpdate),
    Withdrawn { proxy: HostId, incarnation: Incarnation },
    Resync,
    Dial { dial: usize, attempt: AttemptId, agent: usize, hops: usize },
    Answer { key: PlanKey, attempt: AttemptId, answer: Answer },
    Stream { dial: usize, attempt: AttemptId, part: Part },
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    Established,
    NotHere { incarnation: Incarnation, sequence: u64 },
    Unavailable,
}

/// A part of a proxied stream, in either direction.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Data(Bytes),
    Finish,
    Reset,
}

/// From a proxy to an agent, on the control stream. The simulation keeps them aside and sends their number.
#[derive(Debug, Clone)]
pub(crate) enum ControlMessage {
    Strategy { revision: u64, strategy: TunnelStrategy },
    Proxies(ProxyList),
    Drain,
}
