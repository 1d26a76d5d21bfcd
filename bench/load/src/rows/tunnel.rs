//! Plain TCP through a tunnel, beside rathole and without either.

use crate::fleet::{Fleet, Visitor};
use crate::place::Place;
use crate::rathole::Rathole;
use anyhow::{Context, Result};
use std::net::SocketAddr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    Peered,
    OneHop,
    Rathole,
    Direct,
}

impl Path {
    pub(super) const ALL: [Self; 4] = [Self::Peered, Self::OneHop, Self::Rathole, Self::Direct];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Peered => "local port, peered",
            Self::OneHop => "local port, one hop",
            Self::Rathole => "rathole TLS",
            Self::Direct => "direct",
        }
    }
}

/// Everything that a connection may lead through.
pub(super) struct Tunnels {
    peered: Visitor,
    one_hop: Visitor,
    rathole: Rathole,
    pub(super) fleet: Fleet,
}

impl Tunnels {
    pub(super) const NOTE: &'static str = "The entry is a plain local port: of the visitor in front of our proxies \
        (which keeps some TLS connections to its proxy made ahead), of rathole's server in front of its client (which \
        does the same). The agent and the visitor are of `wayleave-load` and run our own tunnels; the proxies are \
        `wayleave`. The agent holds one tunnel, to the proxy that is entered in one hop.";

    /// Starts all of it and waits until a byte comes back by every path.
    pub(super) fn start(place: &mut Place<'_>) -> Result<Self> {
        eprintln!("  starting Auth, two proxies, a simulated agent and visitors; rathole");
        let mut fleet = Fleet::start(place.site()?, 1, 2)?;
        fleet.connect(0, 0, 1)?;
        let one_hop = fleet.visit(0, 0)?;
        let peered = fleet.visit(1, 0)?;
        let rathole = Rathole::start(&place.path("rathole"), &place.options.bin_dir, fleet.target_address)?;
        fleet.wait_echo(rathole.entry)?;
        Ok(Self { peered, one_hop, rathole, fleet })
    }

    /// Where a client connects.
    pub(super) fn entry(&self, path: Path) -> SocketAddr {
        match path {
            Path::Peered => self.peered.entry,
            Path::OneHop => self.one_hop.entry,
            Path::Rathole => self.rathole.entry,
            Path::Direct => self.fleet.target_address,
        }
    }

    /// The processes that a connection passes, from the entry on.
    pub(super) fn processes(&self, path: Path) -> Result<Vec<(&'static str, u32)>> {
        let agent = self.fleet.agents().first().context("no agent was connected")?.pid();
        let home = ("home proxy", self.fleet.proxy(0)?.daemon.pid());
        let ingress = ("ingress proxy", self.fleet.proxy(1)?.daemon.pid());
        let target = ("target", self.fleet.target.pid());
        let agent = ("agent (simulated)", agent);
        Ok(match path {
            Path::Peered => vec![("visitor", self.peered.loader.pid()), ingress, home, agent, target],
            Path::OneHop => vec![("visitor", self.one_hop.loader.pid()), home, agent, target],
            Path::Rathole => vec![
                ("rathole server", self.rathole.server.pid()),
                ("rathole client", self.rathole.client.pid()),
                target,
            ],
            Path::Direct => vec![target],
        })
    }
}
