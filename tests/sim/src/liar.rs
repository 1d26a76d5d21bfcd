//! A proxy that lies to its agents: it is the only one, the others are leaving, and nothing newer will ever come. Signed
//! policy it can only keep back.

use crate::coverage::Mark;
use crate::message::ControlMessage;
use crate::network::Host;
use crate::proxy::State;
use crate::world::World;
use std::time::Duration;
use wayleave_tunnel::{ProxyInfo, ProxyList};
use wayleave_vocab::Incarnation;

/// An agent whose policy nobody has confirmed for this long comes to doubt.
const UNCONFIRMED_FOR: Duration = Duration::from_secs(10);

impl World {
    /// From now on this life of a proxy lies, until it ends.
    pub(crate) fn begin_to_lie(&mut self, life: usize) {
        self.lives[life].is_liar = true;
        if let Some(list) = self.lives[life].list.clone() {
            self.tell_agents(life, &ControlMessage::Proxies(list));
        }
    }

    /// What a proxy makes of what it should tell an agent.
    pub(crate) fn as_told(&mut self, life: usize, message: ControlMessage) -> Option<ControlMessage> {
        if !self.lives[life].is_liar {
            return Some(message);
        }
        match message {
            ControlMessage::Strategy { .. } => None,
            ControlMessage::Drain => Some(ControlMessage::Drain),
            ControlMessage::Proxies(list) => {
                self.note(Mark::LieTold);
                let own = self.lives[life].id;
                let leaves_out = self.random.chance(50);
                let others = list.proxies.into_iter().filter(|proxy| proxy.id != own && !leaves_out);
                let gone = |proxy: ProxyInfo| ProxyInfo {
                    incarnation: Incarnation(proxy.incarnation.0 + 1),
                    draining: true,
                    ..proxy
                };
                let itself = ProxyInfo {
                    id: own,
                    incarnation: self.lives[life].incarnation,
                    address: None,
                    zone: None,
                    draining: false,
                };
                let proxies = others.map(gone).chain([itself]).collect();
                Some(ControlMessage::Proxies(ProxyList { revision: u64::MAX, proxies }))
            }
        }
    }

    /// True when the proxy passes a question to Auth on.
    pub(crate) fn passes_on(&mut self, life: usize) -> bool {
        let is_only = self.lives.iter().filter(|life| life.state == State::Running).count() == 1;
        !self.lives[life].is_liar || is_only || self.random.chance(50)
    }

    /// Signed heads come every few seconds over any tunnel to an honest proxy; without them an agent doubts.
    pub(crate) fn confirm_policy(&mut self, agent: usize) {
        let now = self.local(Host::Agent(agent));
        let is_confirmed = self.tunnels.values().any(|tunnel| {
            let life = &self.lives[tunnel.life];
            tunnel.agent == agent && !life.is_liar && life.is_alive() && tunnel.muxes[0].is_some()
        });
        let Some(process) = self.agents.get_mut(agent) else { return };
        process.is_confirmed = is_confirmed;
        if is_confirmed {
            process.confirmed_at = now;
        } else if now.since(process.confirmed_at) > UNCONFIRMED_FOR
            && let Some(pool) = &mut process.pool
            && !pool.connected().is_empty()
        {
            pool.handle_doubt(now);
            self.note(Mark::PolicyDoubted);
            self.touch(crate::event::Machine::Pool(agent));
        }
    }
}
