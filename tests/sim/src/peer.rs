//! Connections between proxies. Each proxy makes one to every other; dials go out on it, routes come back.

use crate::coverage::Mark;
use crate::event::{Event, Machine};
use crate::message::{Payload, PeerMessage};
use crate::network::{Host, Kind, LinkId};
use crate::proxy::{RouteNews, State};
use crate::scenario::slot_of;
use crate::world::World;
use std::time::Duration;
use wayleave_peering::Source;
use wayleave_vocab::{HostId, Incarnation, Mono};

/// A peer connection without any message for this long is dead.
const PEER_DEAD_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Peering {
    /// Who made it, who accepted it.
    pub(crate) lives: [usize; 2],
    /// World time when each side last heard the other.
    heard_at: [Mono; 2],
    /// World time since when the maker may dial.
    pub(crate) up_at: Option<Mono>,
}

impl World {
    /// The connections of a life on one side, given up or not.
    pub(crate) fn peer_links(&self, life: usize, side: usize) -> Vec<LinkId> {
        let mine = self.peerings.iter().filter(|(_, peering)| peering.lives[side] == life);
        mine.map(|(id, _)| *id).collect()
    }

    /// A connection over which that life of a proxy can be dialled.
    pub(crate) fn peer_link_to(
        &self,
        life: usize,
        proxy: HostId,
        incarnation: Incarnation,
    ) -> Option<LinkId> {
        self.peerings
            .iter()
            .filter(|(id, peering)| {
                let other = &self.lives[peering.lives[1]];
                let is_open = self.links.get(id).is_some_and(|link| !link.closed[0]);
                is_open
                    && peering.lives[0] == life
                    && peering.up_at.is_some()
                    && (other.id, other.incarnation) == (proxy, incarnation)
            })
            .map(|(id, _)| *id)
            .next_back()
    }

    /// Pings, gives up what is silent, and connects to listed proxies.
    pub(crate) fn tend_peers(&mut self, life: usize) {
        for side in 0..2 {
            for link in self.peer_links(life, side) {
                let Some(peering) = self.peerings.get(&link) else { continue };
                let is_dead = self.now.since(peering.heard_at[side]) > PEER_DEAD_AFTER;
                if is_dead {
                    self.end_lost(link, side);
                } else if side == 0 {
                    self.send(link, 0, Payload::Peer(PeerMessage::Ping));
                }
            }
        }
        let listed: Vec<(HostId, Incarnation)> = self.lives[life]
            .list
            .iter()
            .flat_map(|list| &list.proxies)
            .filter(|proxy| proxy.id != self.lives[life].id)
            .map(|proxy| (proxy.id, proxy.incarnation))
            .collect();
        for (proxy, incarnation) in listed {
            let has_one = self.peerings.iter().any(|(id, peering)| {
                let other = &self.lives[peering.lives[1]];
                let is_open = self.links.get(id).is_some_and(|link| !link.closed[0]);
                is_open && peering.lives[0] == life && other.id == proxy && other.incarnation >= incarnation
            });
            if !has_one {
                let wait = self.random.between_ms(1, 20);
                self.after(wait, Event::PeerArrives { life, slot: slot_of(proxy) });
            }
        }
    }

    pub(crate) fn peer_arrives(&mut self, life: usize, slot: usize) {
        let Some(other) = self.slots.get(slot).and_then(|slot| slot.listening) else { return };
        let hosts = [Host::Proxy(self.lives[life].slot), Host::Proxy(slot)];
        let is_blocked = self.ways.is_blocked(hosts[0], hosts[1]) || self.ways.is_blocked(hosts[1], hosts[0]);
        if is_blocked || !self.lives[life].is_alive() || !self.lives[other].is_alive() {
            return;
        }
        let link = self.connect(Kind::Peer, hosts);
        let peering = Peering { lives: [life, other], heard_at: [self.now; 2], up_at: None };
        self.peerings.insert(link, peering);
        let wait = self.delay(hosts[0], hosts[1]);
        self.after(wait, Event::PeerAnswer { link });
        let now = self.local(hosts[1]);
        if let Some(publisher) = &mut self.lives[other].publisher {
            publisher.handle_peer_connected(Self::route_link(link), now);
        }
        self.touch(Machine::Publisher(other));
    }

    /// The maker knows whom it has reached.
    pub(crate) fn peer_answer(&mut self, link: LinkId) {
        let Some(peering) = self.peerings.get_mut(&link) else { return };
        let [life, other] = peering.lives;
        if self.links.get(&link).is_none_or(|link| link.closed[0]) || !self.lives[life].is_alive() {
            return;
        }
        peering.up_at = Some(self.now);
        peering.heard_at[0] = self.now;
        let (proxy, incarnation) = (self.lives[other].id, self.lives[other].incarnation);
        let now = self.local(Host::Proxy(self.lives[life].slot));
        if self.lives[life].table.handle_peer(proxy, incarnation, true, now).is_err() {
            self.violate("a peer has no room in the table".to_owned());
        }
        self.touch(Machine::Table(life));
    }

    pub(crate) fn peer_lost(&mut self, link: LinkId, side: usize) {
        let Some(peering) = self.peerings.get(&link) else { return };
        let [life, other] = peering.lives;
        let was_up = peering.up_at.is_some();
        if side == 1 {
            if let Some(publisher) = &mut self.lives[other].publisher {
                publisher.handle_peer_lost(Self::route_link(link));
            }
            self.served_dials_lost(link);
            return;
        }
        let (proxy, incarnation) = (self.lives[other].id, self.lives[other].incarnation);
        if let Some(peering) = self.peerings.get_mut(&link) {
            peering.up_at = None;
        }
        let now = self.local(Host::Proxy(self.lives[life].slot));
        if was_up && self.lives[life].is_alive() && self.peer_link_to(life, proxy, incarnation).is_none() {
            let _ = self.lives[life].table.handle_peer(proxy, incarnation, false, now);
            self.note(Mark::RouteSuspect);
        }
        self.touch(Machine::Table(life));
        self.made_dials_lost(link);
    }

    pub(crate) fn peer_message(&mut self, link: LinkId, side: usize, message: PeerMessage) {
        let Some(peering) = self.peerings.get_mut(&link) else { return };
        peering.heard_at[side] = self.now;
        let (life, other) = (peering.lives[side], peering.lives[1 - side]);
        if self.lives[life].state == State::Dead {
            return;
        }
        let source = Source::Peer(self.lives[other].id);
        match message {
            PeerMessage::Ping => self.send(link, side, Payload::Peer(PeerMessage::Pong)),
            PeerMessage::Pong => {}
            PeerMessage::Push(update) => self.route_news(life, RouteNews::Update(source, update)),
            PeerMessage::Withdrawn { proxy, incarnation } => {
                self.route_news(life, RouteNews::Withdrawn(source, proxy, incarnation));
            }
            PeerMessage::Resync => {
                let now = self.local(Host::Proxy(self.lives[life].slot));
                if let Some(publisher) = &mut self.lives[life].publisher {
                    publisher.handle_peer_connected(Self::route_link(link), now);
                }
                self.touch(Machine::Publisher(life));
            }
            PeerMessage::Dial { dial, attempt, agent, hops } => {
                self.serve_dial(link, dial, attempt, agent, hops)
            }
            PeerMessage::Answer { key, attempt, answer } => self.peer_answered(key, attempt, answer),
            PeerMessage::Stream { dial, attempt, part } => self.peer_part(link, side, dial, attempt, part),
        }
    }
}
