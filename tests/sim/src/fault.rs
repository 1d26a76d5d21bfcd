//! What goes wrong, and how it is put right again.

use crate::coverage::Mark;
use crate::event::Event;
use crate::network::{Host, Kind, LinkId};
use crate::proxy::State;
use crate::scenario::{self, FAULTS_FROM_MS, FAULTS_UNTIL_MS};
use crate::world::World;
use std::time::Duration;
use wayleave_vocab::TunnelStrategy;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    CutConnection,
    SilentConnection,
    Partition,
    OneWayPartition,
    Isolation,
    Crash,
    PowerLoss,
    GoneForGood,
    RollingRestart,
    DrainWithoutSuccessor,
    BackendStall,
    LeaseLoss,
    AgentRestart,
    AgentPowerLoss,
    StrategyChange,
    SlowHost,
    DeafProxy,
    WatchTrouble,
    HungListener,
    LyingProxy,
}

const ALL: [Fault; 20] = [
    Fault::CutConnection,
    Fault::SilentConnection,
    Fault::Partition,
    Fault::OneWayPartition,
    Fault::Isolation,
    Fault::Crash,
    Fault::PowerLoss,
    Fault::GoneForGood,
    Fault::RollingRestart,
    Fault::DrainWithoutSuccessor,
    Fault::BackendStall,
    Fault::LeaseLoss,
    Fault::AgentRestart,
    Fault::AgentPowerLoss,
    Fault::StrategyChange,
    Fault::SlowHost,
    Fault::DeafProxy,
    Fault::WatchTrouble,
    Fault::HungListener,
    Fault::LyingProxy,
];

#[derive(Debug, Clone, Copy)]
pub(crate) enum Mend {
    Unblock(Host, Host),
    Fast(Host),
    Backend,
    Hear(usize),
    Listen(usize),
    Watch,
}

impl World {
    pub(crate) fn plan_faults(&mut self) {
        for _ in 0..self.scenario.faults {
            let fault = self.random.pick(&ALL).unwrap_or(Fault::Crash);
            let at = self.random.between_ms(FAULTS_FROM_MS, FAULTS_UNTIL_MS);
            self.after(at, Event::Fault(fault));
        }
    }

    fn duration(&mut self) -> Duration {
        let longest = self.random.pick(&[1_000, 4_000, 18_000]).unwrap_or(1_000);
        self.random.between_ms(200, longest)
    }

    fn random_life(&mut self) -> Option<usize> {
        let running: Vec<usize> =
            (0..self.lives.len()).filter(|life| self.lives[*life].state == State::Running).collect();
        self.random.pick(&running)
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::CutConnection => self.cut_connection(),
            Fault::SilentConnection => self.silence_connection(),
            Fault::Partition => self.partition(true),
            Fault::OneWayPartition => self.partition(false),
            Fault::Isolation => self.isolate(),
            Fault::Crash => self.crash(Mark::FaultCrash, true, true),
            Fault::PowerLoss => self.crash(Mark::FaultPowerLoss, false, true),
            Fault::GoneForGood => self.crash(Mark::FaultGoneForGood, false, false),
            Fault::RollingRestart => self.rolling_restart(true),
            Fault::DrainWithoutSuccessor => self.rolling_restart(false),
            Fault::BackendStall => self.stall_backend(),
            Fault::LeaseLoss => {
                if let Some(life) = self.random_life() {
                    self.note(Mark::FaultLeaseLoss);
                    let life = (self.lives[life].id, self.lives[life].incarnation);
                    self.backend.end_lease(life);
                    if self.random.chance(50) {
                        self.stall_backend();
                    }
                }
            }
            Fault::AgentRestart => self.restart_agent(Mark::FaultAgentRestart, true),
            Fault::AgentPowerLoss => self.restart_agent(Mark::FaultAgentPowerLoss, false),
            Fault::StrategyChange => self.change_strategy(),
            Fault::SlowHost => self.slow_host(),
            Fault::DeafProxy => self.deafen(),
            Fault::LyingProxy => {
                if let Some(life) = self.random_life() {
                    self.note(Mark::FaultLyingProxy);
                    self.begin_to_lie(life);
                }
            }
            Fault::WatchTrouble => {
                self.watch_trouble += 1;
                let wait = self.random.between_ms(5_000, 18_000);
                self.after(wait, Event::Mend(Mend::Watch));
            }
            Fault::HungListener => {
                if let Some(life) = self.random_life() {
                    self.note(Mark::FaultHungListener);
                    self.lives[life].is_hung += 1;
                    let wait = self.duration();
                    self.after(wait, Event::Mend(Mend::Listen(life)));
                }
            }
        }
    }

    pub(crate) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Unblock(from, to) => {
                self.ways.unblock(from, to, self.now);
                self.resume_lanes();
            }
            Mend::Fast(host) => self.ways.slow_down(host, false, self.now),
            Mend::Backend => {
                let now = self.local(Host::Backend);
                self.backend.recover(now);
            }
            Mend::Hear(life) => {
                self.lives[life].deaf_until = self.now;
                for news in self.lives[life].deaf.take().into_iter().flatten() {
                    if self.lives[life].is_alive() {
                        self.route_news(life, news);
                    }
                }
            }
            Mend::Listen(life) => {
                self.lives[life].is_hung -= 1;
                self.lives[life].answers_since = self.now;
            }
            Mend::Watch => self.watch_trouble -= 1,
        }
    }

    fn random_link(&mut self) -> Option<LinkId> {
        let is_open = |kind: Kind| kind == Kind::Tunnel || kind == Kind::Peer;
        let open: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, link)| is_open(link.kind) && link.closed == [false; 2] && !link.is_silent)
            .map(|(id, _)| *id)
            .collect();
        self.random.pick(&open)
    }

    /// A middlebox resets the connection: both sides learn it.
    fn cut_connection(&mut self) {
        let Some(link) = self.random_link() else { return };
        self.note(Mark::FaultCutConnection);
        self.end_lost(link, 0);
        self.end_lost(link, 1);
    }

    /// A middlebox forgets the connection: nobody learns it.
    fn silence_connection(&mut self) {
        let Some(link) = self.random_link() else { return };
        self.note(Mark::FaultSilentConnection);
        if let Some(link) = self.links.get_mut(&link) {
            link.is_silent = true;
        }
    }

    fn random_host(&mut self) -> Host {
        match self.random.below(10) {
            0..=5 => Host::Proxy(self.random.below(self.slots.len())),
            6..=8 => Host::Agent(self.random.below(self.agents.len())),
            _ => Host::Backend,
        }
    }

    fn partition(&mut self, both_ways: bool) {
        let (a, b) = (Host::Proxy(self.random.below(self.slots.len())), self.random_host());
        if a == b {
            return;
        }
        self.note(if both_ways { Mark::FaultPartition } else { Mark::FaultOneWayPartition });
        let time = self.duration();
        let swapped = self.random.chance(50);
        let first = if swapped { (b, a) } else { (a, b) };
        self.block(first, time);
        if both_ways {
            self.block((first.1, first.0), time);
        }
    }

    fn isolate(&mut self) {
        let host = self.random_host();
        self.note(Mark::FaultPartition);
        let time = self.duration();
        let proxies = (0..self.slots.len()).map(Host::Proxy);
        let others: Vec<Host> =
            proxies.chain((0..self.agents.len()).map(Host::Agent)).chain([Host::Backend]).collect();
        for other in others.into_iter().filter(|other| *other != host) {
            self.block((host, other), time);
            self.block((other, host), time);
        }
    }

    fn block(&mut self, (from, to): (Host, Host), time: Duration) {
        self.ways.block(from, to, self.now);
        self.after(time, Event::Mend(Mend::Unblock(from, to)));
    }

    fn crash(&mut self, mark: Mark, tells: bool, comes_back: bool) {
        let Some(life) = self.random_life() else { return };
        let slot = self.lives[life].slot;
        let is_last = self.slots.iter().filter(|slot| !slot.is_gone).count() == 1;
        if !comes_back && is_last {
            return;
        }
        self.note(mark);
        self.kill(life, tells);
        if comes_back {
            self.note(Mark::FaultRestart);
            let wait = self.duration();
            self.after(wait, Event::StartSlot(slot));
        } else {
            self.slots[slot].is_gone = true;
        }
    }

    fn rolling_restart(&mut self, with_overlap: bool) {
        let Some(life) = self.random_life() else { return };
        let slot = self.lives[life].slot;
        self.drain(life);
        if with_overlap {
            self.note(Mark::FaultRollingRestart);
            self.note(Mark::TwoLives);
            let wait = self.random.between_ms(0, 3000);
            self.after(wait, Event::StartSlot(slot));
        } else {
            self.note(Mark::FaultDrainWithoutSuccessor);
            let wait = crate::proxy::GRACE + self.random.between_ms(100, 5000);
            self.after(wait, Event::StartSlot(slot));
        }
    }

    fn stall_backend(&mut self) {
        if self.backend.is_stalled {
            return;
        }
        self.note(Mark::FaultBackendStall);
        let now = self.local(Host::Backend);
        self.backend.stall(now);
        let wait = self.duration();
        self.after(wait, Event::Mend(Mend::Backend));
    }

    fn restart_agent(&mut self, mark: Mark, tells: bool) {
        let agent = self.random.below(self.agents.len());
        self.note(mark);
        self.stop_agent(agent, tells);
        let wait = self.duration();
        self.after(wait, Event::BootAgent(agent));
    }

    fn change_strategy(&mut self) {
        let next = match self.backend.strategy() {
            TunnelStrategy::AgentMesh => scenario::peering(1 + self.random.below(2) as u16),
            TunnelStrategy::ProxyPeering { .. } => scenario::draw_strategy(&mut self.random),
        };
        self.note(match next {
            TunnelStrategy::AgentMesh => Mark::FaultStrategyToMesh,
            TunnelStrategy::ProxyPeering { .. } => Mark::FaultStrategyToPeering,
        });
        self.backend.set_strategy(next);
    }

    fn slow_host(&mut self) {
        let host = self.random_host();
        self.note(Mark::FaultSlowHost);
        self.ways.slow_down(host, true, self.now);
        let wait = self.duration();
        self.after(wait, Event::Mend(Mend::Fast(host)));
    }

    fn deafen(&mut self) {
        let Some(life) = self.random_life() else { return };
        if self.lives[life].deaf.is_some() {
            return;
        }
        self.note(Mark::FaultDeafProxy);
        self.lives[life].deaf = Some(Vec::new());
        let wait = self.random.between_ms(5_000, 18_000);
        self.after(wait, Event::Mend(Mend::Hear(life)));
    }
}
