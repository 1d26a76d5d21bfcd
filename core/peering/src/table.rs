//! What this proxy believes about the others' tunnels: one table for each life of each proxy.

use crate::update::{Applied, Change, RouteError, RouteUpdate, Source};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use wayleave_vocab::{HostId, Incarnation, Mono};

/// Most proxies in the table.
pub const PROXIES_MAX: usize = 1000;
/// Most lives of one proxy at a time.
pub const LIVES_MAX: usize = 4;
/// Most agents at one proxy.
pub const ROUTES_MAX: usize = 250_000;
/// Most statements remembered that came before the one they follow.
const AHEAD_MAX: usize = 64;

/// Timers of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableConfig {
    /// Routes go when lease and peer connection have both been gone for this long.
    pub expire_after: Duration,
    /// How long a missing update may be late before a snapshot is asked for.
    pub gap_patience: Duration,
    /// Time between two questions for a snapshot.
    pub resync_interval: Duration,
}

impl Default for TableConfig {
    fn default() -> Self {
        Self {
            expire_after: Duration::from_secs(60),
            gap_patience: Duration::from_millis(100),
            resync_interval: Duration::from_secs(1),
        }
    }
}

/// How far a route can be relied on; the better ones compare as less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteState {
    /// Nothing speaks against it.
    Fresh,
    /// The lease is lost, the peer connection broken, or a newer life has begun: tried last.
    Suspect,
    /// There is no route.
    None,
}

/// A proxy that may hold an agent's tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The proxy.
    pub proxy: HostId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The highest number of its statements that was seen.
    pub sequence: u64,
    /// How far it can be relied on; never [`RouteState::None`].
    pub state: RouteState,
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableEffect {
    /// Updates are missing: get a snapshot from this life of the proxy, or from the backend.
    Resync {
        /// The proxy.
        proxy: HostId,
        /// Its life.
        incarnation: Incarnation,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// Nothing was heard of it.
    Unknown,
    Up,
    Lost,
}

impl Sign {
    fn of(is_up: bool) -> Self {
        if is_up { Self::Up } else { Self::Lost }
    }
}

/// The newest statement about one agent.
#[derive(Debug, Clone, Copy)]
struct Entry {
    sequence: u64,
    has_tunnel: bool,
}

/// How much of one way's statements has come without a hole.
#[derive(Debug, Default)]
struct Continuity {
    until: u64,
    /// Statements behind a hole: what each follows, and its number.
    ahead: BTreeMap<u64, u64>,
}

impl Continuity {
    /// Notes a statement that follows another.
    fn note(&mut self, base: u64, sequence: u64) {
        if base > self.until && self.ahead.len() < AHEAD_MAX {
            self.ahead.insert(base, sequence);
        } else if base <= self.until {
            self.until = self.until.max(sequence);
        }
        while let Some((base, sequence)) =
            self.ahead.first_key_value().map(|(base, sequence)| (*base, *sequence))
            && base <= self.until
        {
            self.until = self.until.max(sequence);
            self.ahead.pop_first();
        }
    }

    fn is_whole(&self) -> bool {
        self.ahead.is_empty()
    }
}

#[derive(Debug)]
struct Life {
    /// The highest number seen.
    sequence: u64,
    /// Agents that are not named below had no tunnel at this number.
    floor: u64,
    entries: BTreeMap<HostId, Entry>,
    by_watch: Continuity,
    by_peer: Continuity,
    lease: Sign,
    lease_revision: u64,
    peer: Sign,
    /// Neither lease nor peer connection since then.
    gone_since: Option<Mono>,
    resync_at: Option<Mono>,
}

impl Life {
    fn new(now: Mono) -> Self {
        Self {
            sequence: 0,
            floor: 0,
            entries: BTreeMap::new(),
            by_watch: Continuity::default(),
            by_peer: Continuity::default(),
            lease: Sign::Unknown,
            lease_revision: 0,
            peer: Sign::Unknown,
            gone_since: Some(now),
            resync_at: None,
        }
    }

    /// Notes one agent's state at a number; gives whether that changed the table.
    fn state(&mut self, agent: HostId, sequence: u64, has_tunnel: bool) -> bool {
        let had = match self.entries.get(&agent) {
            Some(entry) if entry.sequence >= sequence => return false,
            Some(entry) => entry.has_tunnel,
            None if self.floor >= sequence => return false,
            None => false,
        };
        self.entries.insert(agent, Entry { sequence, has_tunnel });
        had != has_tunnel
    }

    /// Notes that all agents but these had no tunnel at a number; gives those that had one before.
    fn raise_floor(&mut self, sequence: u64, named: &BTreeSet<HostId>) -> Vec<HostId> {
        if sequence <= self.floor {
            return Vec::new();
        }
        self.floor = sequence;
        let is_over = |agent: &HostId, entry: &Entry| entry.sequence < sequence && !named.contains(agent);
        let gone = self.entries.iter().filter(|(agent, entry)| is_over(agent, entry) && entry.has_tunnel);
        let gone = gone.map(|(agent, _)| *agent).collect();
        self.entries.retain(|agent, entry| !is_over(agent, entry));
        gone
    }

    /// Takes a statement; gives the agents that lost and that got their tunnel by it.
    fn take(&mut self, sequence: u64, change: Change) -> (Vec<HostId>, Vec<HostId>) {
        match change {
            Change::Snapshot { agents } => {
                let come =
                    agents.iter().copied().filter(|agent| self.state(*agent, sequence, true)).collect();
                (self.raise_floor(sequence, &agents), come)
            }
            Change::Delta { added, removed, .. } => {
                let gone = removed.into_iter().filter(|agent| self.state(*agent, sequence, false)).collect();
                let come = added.into_iter().filter(|agent| self.state(*agent, sequence, true)).collect();
                (gone, come)
            }
        }
    }

    fn is_suspect(&self) -> bool {
        self.lease == Sign::Lost || self.peer == Sign::Lost
    }

    fn note_signs(&mut self, now: Mono) {
        if self.lease == Sign::Up || self.peer == Sign::Up {
            self.gone_since = None;
        } else if self.gone_since.is_none() {
            self.gone_since = Some(now);
        }
    }
}

/// How many routes stand how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteCounts {
    /// Lease and peer connection say nothing against them.
    pub fresh: usize,
    /// Tried last.
    pub suspect: usize,
}

/// The table. Feed it from the backend's watch and from peer connections, in any order.
#[derive(Debug, Default)]
pub struct RouteTable {
    config: TableConfig,
    proxies: BTreeMap<HostId, BTreeMap<Incarnation, Life>>,
    /// Lives up to this one have withdrawn their routes for good.
    withdrawn: BTreeMap<HostId, Incarnation>,
    index: BTreeMap<HostId, Vec<(HostId, Incarnation)>>,
    revision: u64,
    effects: VecDeque<TableEffect>,
}

impl RouteTable {
    /// An empty table.
    pub fn new(config: TableConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes an update. Of what it says about an agent only a higher sequence of the same life counts.
    ///
    /// # Errors
    /// [`RouteError::NotItsOwn`] when a peer speaks for another proxy, [`RouteError::TooMany`] at the bounds.
    pub fn handle_update(
        &mut self,
        source: Source,
        update: RouteUpdate,
        now: Mono,
    ) -> Result<Applied, RouteError> {
        check_source(source, update.proxy)?;
        if update.change.len() > ROUTES_MAX {
            return Err(RouteError::TooMany("routes"));
        }
        let RouteUpdate { proxy, incarnation, sequence, change } = update;
        let patience = now.after(self.config.gap_patience);
        let Some(life) = self.life(proxy, incarnation, now)? else { return Ok(Applied::Stale) };
        if life.entries.len().saturating_add(change.len()) > 2 * ROUTES_MAX {
            return Err(RouteError::TooMany("routes"));
        }
        let is_newer = sequence > life.sequence;
        life.sequence = life.sequence.max(sequence);
        let way = match source {
            Source::Watch => &mut life.by_watch,
            Source::Peer(_) => &mut life.by_peer,
        };
        way.note(change.base(), sequence);
        if life.by_watch.is_whole() && life.by_peer.is_whole() {
            life.resync_at = None;
        } else {
            life.resync_at.get_or_insert(patience);
        }
        let (gone, come) = life.take(sequence, change);
        self.relink(proxy, incarnation, &gone, &come);
        // A way that failed is worth another try once it has been heard of since.
        self.revision += u64::from(is_newer);
        Ok(Applied::Now)
    }

    /// The proxy has left and taken all its routes with it; nothing of this life or an earlier one is
    /// believed again.
    ///
    /// # Errors
    /// [`RouteError::NotItsOwn`].
    pub fn handle_withdrawn(
        &mut self,
        source: Source,
        proxy: HostId,
        incarnation: Incarnation,
    ) -> Result<(), RouteError> {
        check_source(source, proxy)?;
        if !self.withdrawn.contains_key(&proxy) && self.withdrawn.len() >= PROXIES_MAX {
            return Err(RouteError::TooMany("proxies"));
        }
        let floor = self.withdrawn.entry(proxy).or_insert(incarnation);
        *floor = (*floor).max(incarnation);
        self.drop_lives(proxy, |life, _| life <= incarnation);
        Ok(())
    }

    /// The lease of a life was granted or has been lost, at a revision of the backend; earlier revisions
    /// that come late are ignored.
    ///
    /// # Errors
    /// [`RouteError::TooMany`].
    pub fn handle_lease(
        &mut self,
        proxy: HostId,
        incarnation: Incarnation,
        is_up: bool,
        revision: u64,
        now: Mono,
    ) -> Result<(), RouteError> {
        if !is_up && !self.has_life(proxy, incarnation) {
            return Ok(());
        }
        let Some(life) = self.life(proxy, incarnation, now)? else { return Ok(()) };
        if revision >= life.lease_revision {
            life.lease_revision = revision;
            life.lease = Sign::of(is_up);
            life.note_signs(now);
            self.revision += 1;
        }
        Ok(())
    }

    /// A peer connection to this life of a proxy was made or has broken.
    ///
    /// # Errors
    /// [`RouteError::TooMany`].
    pub fn handle_peer(
        &mut self,
        proxy: HostId,
        incarnation: Incarnation,
        is_up: bool,
        now: Mono,
    ) -> Result<(), RouteError> {
        if !is_up && !self.has_life(proxy, incarnation) {
            return Ok(());
        }
        let newest = self.newest(proxy);
        if is_up && newest.is_some_and(|newest| incarnation < newest) && !self.has_life(proxy, incarnation) {
            // A former life that is still there, as in a restart with overlap: believed while connected.
            self.proxies.entry(proxy).or_default().insert(incarnation, Life::new(now));
        }
        let Some(life) = self.life(proxy, incarnation, now)? else { return Ok(()) };
        life.peer = Sign::of(is_up);
        life.note_signs(now);
        self.revision += 1;
        self.drop_former_lives(proxy);
        Ok(())
    }

    /// A proxy that was dialled says that the agent is not there: a statement with a number like any other.
    ///
    /// # Errors
    /// [`RouteError::TooMany`].
    pub fn handle_not_here(
        &mut self,
        agent: HostId,
        proxy: HostId,
        incarnation: Incarnation,
        sequence: u64,
        now: Mono,
    ) -> Result<(), RouteError> {
        let Some(life) = self.life(proxy, incarnation, now)? else { return Ok(()) };
        if sequence > life.sequence {
            life.sequence = sequence;
        }
        if life.state(agent, sequence, false) {
            self.relink(proxy, incarnation, &[agent], &[]);
        }
        Ok(())
    }

    /// Time has passed: routes expire, snapshots are asked for.
    pub fn handle_timeout(&mut self, now: Mono) {
        let expire_after = self.config.expire_after;
        let is_expired = |life: &Life| life.gone_since.is_some_and(|since| now >= since.after(expire_after));
        let proxies: Vec<HostId> = self.proxies.keys().copied().collect();
        for proxy in proxies {
            self.drop_lives(proxy, |_, life| is_expired(life));
        }
        let again = now.after(self.config.resync_interval);
        for (proxy, lives) in &mut self.proxies {
            for (incarnation, life) in lives {
                if life.resync_at.is_some_and(|at| at <= now) {
                    life.resync_at = Some(again);
                    let effect = TableEffect::Resync { proxy: *proxy, incarnation: *incarnation };
                    self.effects.push_back(effect);
                }
            }
        }
    }

    /// When [`RouteTable::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Mono> {
        let lives = self.proxies.values().flat_map(BTreeMap::values);
        lives
            .flat_map(|life| {
                [life.resync_at, life.gone_since.map(|since| since.after(self.config.expire_after))]
            })
            .flatten()
            .min()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<TableEffect> {
        self.effects.pop_front()
    }

    /// Proxies that may hold the agent's tunnel, the more reliable first, then in order of id.
    pub fn candidates(&self, agent: HostId) -> Vec<Candidate> {
        let links = self.index.get(&agent).map(Vec::as_slice).unwrap_or_default();
        let mut candidates: Vec<Candidate> =
            links.iter().filter_map(|(proxy, incarnation)| self.candidate(*proxy, *incarnation)).collect();
        candidates.sort_by_key(|candidate| (candidate.state, candidate.proxy, candidate.incarnation));
        candidates
    }

    /// The best route to an agent.
    pub fn state(&self, agent: HostId) -> RouteState {
        self.candidates(agent).first().map_or(RouteState::None, |candidate| candidate.state)
    }

    /// Rises whenever the answer of [`RouteTable::candidates`] may have changed for some agent.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The highest number of a life's statements that was seen here.
    pub fn sequence(&self, proxy: HostId, incarnation: Incarnation) -> Option<u64> {
        self.proxies.get(&proxy)?.get(&incarnation).map(|life| life.sequence)
    }

    /// How many routes there are.
    pub fn route_count(&self) -> usize {
        self.index.values().map(Vec::len).sum()
    }

    /// How many of them are fresh and suspect. Walks all of them.
    pub fn route_counts(&self) -> RouteCounts {
        let mut counts = RouteCounts::default();
        for (proxy, lives) in &self.proxies {
            for (incarnation, life) in lives {
                let routes = life.entries.values().filter(|entry| entry.has_tunnel).count();
                match self.candidate(*proxy, *incarnation).map(|candidate| candidate.state) {
                    Some(RouteState::Suspect) => counts.suspect += routes,
                    Some(RouteState::Fresh | RouteState::None) | None => counts.fresh += routes,
                }
            }
        }
        counts
    }
}

impl RouteTable {
    fn candidate(&self, proxy: HostId, incarnation: Incarnation) -> Option<Candidate> {
        let life = self.proxies.get(&proxy)?.get(&incarnation)?;
        let is_former = self.newest(proxy).is_some_and(|newest| newest > incarnation);
        let state = if is_former || life.is_suspect() { RouteState::Suspect } else { RouteState::Fresh };
        Some(Candidate { proxy, incarnation, sequence: life.sequence, state })
    }

    fn newest(&self, proxy: HostId) -> Option<Incarnation> {
        self.proxies.get(&proxy)?.last_key_value().map(|(incarnation, _)| *incarnation)
    }

    fn has_life(&self, proxy: HostId, incarnation: Incarnation) -> bool {
        self.proxies.get(&proxy).is_some_and(|lives| lives.contains_key(&incarnation))
    }

    /// The life that is spoken of, made if it is the newest; none when it is over.
    fn life(
        &mut self,
        proxy: HostId,
        incarnation: Incarnation,
        now: Mono,
    ) -> Result<Option<&mut Life>, RouteError> {
        if self.withdrawn.get(&proxy).is_some_and(|floor| incarnation <= *floor) {
            return Ok(None);
        }
        if !self.has_life(proxy, incarnation) {
            if self.newest(proxy).is_some_and(|newest| incarnation < newest) {
                return Ok(None);
            }
            if !self.proxies.contains_key(&proxy) && self.proxies.len() >= PROXIES_MAX {
                return Err(RouteError::TooMany("proxies"));
            }
            self.proxies.entry(proxy).or_default().insert(incarnation, Life::new(now));
            self.drop_former_lives(proxy);
        }
        Ok(self.proxies.get_mut(&proxy).and_then(|lives| lives.get_mut(&incarnation)))
    }

    /// A newer life ends the former ones, except while a peer connection shows that one is still there.
    fn drop_former_lives(&mut self, proxy: HostId) {
        let Some(newest) = self.newest(proxy) else { return };
        self.drop_lives(proxy, |incarnation, life| incarnation < newest && life.peer != Sign::Up);
        let lives = self.proxies.get(&proxy).map_or(0, BTreeMap::len);
        if lives > LIVES_MAX
            && let Some(oldest) = self.proxies.get(&proxy).and_then(|lives| lives.keys().next().copied())
        {
            self.drop_lives(proxy, |incarnation, _| incarnation == oldest);
        }
    }

    fn drop_lives(&mut self, proxy: HostId, is_over: impl Fn(Incarnation, &Life) -> bool) {
        let Some(lives) = self.proxies.get_mut(&proxy) else { return };
        let over: Vec<Incarnation> =
            lives.iter().filter(|(n, life)| is_over(**n, life)).map(|(n, _)| *n).collect();
        let dropped: Vec<_> = over.into_iter().filter_map(|n| Some((n, lives.remove(&n)?))).collect();
        if lives.is_empty() {
            self.proxies.remove(&proxy);
        }
        for (incarnation, life) in dropped {
            let agents: Vec<HostId> = life.entries.into_keys().collect();
            self.relink(proxy, incarnation, &agents, &[]);
        }
    }

    /// Takes agents out of the index and puts others in.
    fn relink(&mut self, proxy: HostId, incarnation: Incarnation, gone: &[HostId], come: &[HostId]) {
        if !gone.is_empty() || !come.is_empty() {
            self.revision += 1;
        }
        for agent in gone {
            let Some(links) = self.index.get_mut(agent) else { continue };
            links.retain(|link| *link != (proxy, incarnation));
            if links.is_empty() {
                self.index.remove(agent);
            }
        }
        for agent in come {
            self.index.entry(*agent).or_default().push((proxy, incarnation));
        }
    }
}

fn check_source(source: Source, claimed: HostId) -> Result<(), RouteError> {
    match source {
        Source::Peer(speaker) if speaker != claimed => Err(RouteError::NotItsOwn { claimed, speaker }),
        Source::Peer(_) | Source::Watch => Ok(()),
    }
}
