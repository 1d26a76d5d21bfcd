//! One user's dial at the ingress proxy: what to try, in which order, and when to stop.

use crate::table::Candidate;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use wayleave_vocab::{HostId, Incarnation, Mono};

/// Most attempts of one dial.
pub const TRIED_MAX: usize = 16;

/// Timers of a dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanConfig {
    /// An attempt that has not answered by then is joined by the next.
    pub stagger: Duration,
    /// Bounds one attempt.
    pub attempt_deadline: Duration,
    /// Bounds the refresh of the routes.
    pub refresh_deadline: Duration,
    /// How long an agent that had a route, and is at none of the proxies any more, is waited for: it may be
    /// changing tunnels.
    pub linger: Duration,
    /// Bounds everything.
    pub deadline: Duration,
}

impl Default for PlanConfig {
    fn default() -> Self {
        Self {
            stagger: Duration::from_millis(150),
            attempt_deadline: Duration::from_secs(5),
            refresh_deadline: Duration::from_secs(1),
            linger: Duration::from_millis(1500),
            deadline: Duration::from_secs(15),
        }
    }
}

/// One attempt of one dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttemptId(u32);

/// How an agent is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// By a tunnel of this very proxy.
    Local {
        /// The tunnel's number, as given by the driver.
        tunnel: u64,
    },
    /// By a tunnel of another proxy.
    Peer {
        /// The proxy.
        proxy: HostId,
        /// Its life.
        incarnation: Incarnation,
    },
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// That proxy does not hold the agent's tunnel; its knowledge has this number.
    NotHere {
        /// The answering life.
        incarnation: Incarnation,
        /// The number of its statement.
        sequence: u64,
    },
    /// No connection to that proxy or agent, or it broke.
    Unreachable,
    /// It is there and cannot now (leaving, full).
    Unavailable,
    /// No answer within the deadline.
    TimedOut,
    /// The agent itself has decided (denied, invalid): no other way will do better. The driver keeps the
    /// agent's own words.
    Final,
}

/// One attempt in the account of a failed dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// The way.
    pub way: Way,
    /// How it failed.
    pub refusal: Refusal,
}

/// Why a dial failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialError {
    /// No proxy could reach the agent.
    Offline {
        /// What was tried, in the order of the answers; empty when there was no route at all.
        tried: Vec<Tried>,
    },
    /// The agent, or the proxy for it, has refused for good.
    Refused {
        /// The attempt whose words tell why.
        attempt: AttemptId,
        /// Its way.
        way: Way,
    },
    /// The whole time was used up.
    TimedOut {
        /// What was tried; attempts without an answer have [`Refusal::TimedOut`].
        tried: Vec<Tried>,
    },
}

/// How a dial ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// By this attempt the user is connected.
    Established {
        /// The attempt.
        attempt: AttemptId,
        /// Its way.
        by: Way,
    },
    /// Not connected.
    Failed(DialError),
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanEffect {
    /// Try this; answer with `handle_established` or `handle_refused`.
    Dial {
        /// Names the attempt.
        attempt: AttemptId,
        /// The way.
        way: Way,
        /// No answer is taken after this.
        deadline: Mono,
    },
    /// Stop an attempt; if it was established, close it.
    Cancel {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Bring the routes of this agent up to date, by the backend if it answers; then call
    /// `handle_candidates`, at once and whenever they change.
    Refresh {
        /// No answer is waited for after this.
        deadline: Mono,
    },
    /// The end. Nothing follows but cancels.
    Done(Outcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refresh {
    /// Not asked for yet.
    Unused,
    Asked {
        until: Mono,
    },
    Done,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    step: Step,
    deadline: Mono,
}

/// A way, and how new the knowledge was that made it worth trying.
#[derive(Debug, Clone, Copy)]
struct Step {
    way: Way,
    sequence: u64,
}

/// A dial under way.
#[derive(Debug)]
pub struct DialPlan {
    config: PlanConfig,
    /// Orders equal candidates differently in every dial.
    seed: u64,
    deadline: Mono,
    is_one_hop: bool,
    /// Still to be tried, the best first.
    waiting: VecDeque<Candidate>,
    waiting_local: Option<u64>,
    attempts: BTreeMap<AttemptId, Attempt>,
    /// When the next one may join those that have not answered.
    next_at: Mono,
    tried: Vec<(Step, Refusal)>,
    next_attempt: u32,
    refresh: Refresh,
    had_route: bool,
    linger_until: Option<Mono>,
    is_done: bool,
    effects: VecDeque<PlanEffect>,
}

impl DialPlan {
    /// Plans a dial that came from a client. `local`: the number of the agent's newest tunnel at this proxy, if
    /// there is one; numbers are the driver's and never used twice.
    pub fn new(
        config: PlanConfig,
        local: Option<u64>,
        candidates: Vec<Candidate>,
        seed: u64,
        now: Mono,
    ) -> Self {
        let mut plan = Self::empty(config, local, seed, now);
        plan.offer(candidates);
        plan.go_on(now);
        plan
    }

    /// Plans a dial that came from a peer: by an own tunnel or not at all, so that there is one hop only.
    pub fn from_peer(config: PlanConfig, local: Option<u64>, now: Mono) -> Self {
        let mut plan = Self::empty(config, local, 0, now);
        plan.is_one_hop = true;
        plan.refresh = Refresh::Done;
        plan.go_on(now);
        plan
    }

    /// The attempt has reached the agent.
    pub fn handle_established(&mut self, attempt: AttemptId, now: Mono) {
        let Some(Attempt { step, deadline }) = self.attempts.get(&attempt).copied() else {
            self.effects.push_back(PlanEffect::Cancel { attempt });
            return;
        };
        if deadline <= now {
            self.handle_timeout(now);
            return;
        }
        self.attempts.remove(&attempt);
        self.finish(Outcome::Established { attempt, by: step.way });
    }

    /// The attempt has failed.
    pub fn handle_refused(&mut self, attempt: AttemptId, refusal: Refusal, now: Mono) {
        let Some(Attempt { step, .. }) = self.attempts.remove(&attempt) else { return };
        self.tried.push((step, refusal));
        if refusal == Refusal::Final {
            self.finish(Outcome::Failed(DialError::Refused { attempt, way: step.way }));
            return;
        }
        // What has answered makes room for the next at once.
        self.next_at = now;
        if let Refusal::NotHere { .. } = refusal {
            self.ask_refresh(now);
        }
        self.go_on(now);
    }

    /// The routes as they are known now, asked for or not. What was tried is tried again only if there has
    /// been news of it.
    pub fn handle_candidates(&mut self, local: Option<u64>, candidates: Vec<Candidate>, now: Mono) {
        if self.is_done {
            return;
        }
        if let Refresh::Asked { .. } = self.refresh {
            self.refresh = Refresh::Done;
        }
        self.offer_local(local);
        if !self.is_one_hop {
            self.offer(candidates);
        }
        self.go_on(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Mono) {
        let late: Vec<AttemptId> =
            self.attempts.iter().filter(|(_, attempt)| attempt.deadline <= now).map(|(id, _)| *id).collect();
        for id in late {
            self.effects.push_back(PlanEffect::Cancel { attempt: id });
            if let Some(Attempt { step, .. }) = self.attempts.remove(&id) {
                self.tried.push((step, Refusal::TimedOut));
            }
        }
        if matches!(self.refresh, Refresh::Asked { until } if until <= now) {
            self.refresh = Refresh::Done;
        }
        if !self.is_done && self.deadline <= now {
            self.tried.extend(self.attempts.values().map(|attempt| (attempt.step, Refusal::TimedOut)));
            let tried = self.account();
            self.finish(Outcome::Failed(DialError::TimedOut { tried }));
            return;
        }
        self.go_on(now);
    }

    /// When [`DialPlan::handle_timeout`] wants to be called; none once the dial has ended.
    pub fn poll_timeout(&self) -> Option<Mono> {
        if self.is_done {
            return None;
        }
        let mut times = vec![self.deadline];
        times.extend(self.attempts.values().map(|attempt| attempt.deadline));
        if self.has_next() {
            times.push(self.next_at);
        }
        if let Refresh::Asked { until } = self.refresh {
            times.push(until);
        }
        times.extend(self.linger_until);
        times.into_iter().min()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<PlanEffect> {
        self.effects.pop_front()
    }

    /// The dial has ended.
    pub fn is_done(&self) -> bool {
        self.is_done
    }
}

impl DialPlan {
    fn empty(config: PlanConfig, local: Option<u64>, seed: u64, now: Mono) -> Self {
        Self {
            config,
            seed,
            deadline: now.after(config.deadline),
            is_one_hop: false,
            waiting: VecDeque::new(),
            waiting_local: local,
            attempts: BTreeMap::new(),
            next_at: now,
            tried: Vec::new(),
            next_attempt: 1,
            refresh: Refresh::Unused,
            had_route: local.is_some(),
            linger_until: None,
            is_done: false,
            effects: VecDeque::new(),
        }
    }

    /// How often a way was tried, and the newest knowledge that it was tried with or has answered.
    fn history(&self, way: Way) -> (usize, u64) {
        let attempts = self.attempts.values().map(|attempt| attempt.step);
        let mine = attempts.chain(self.tried.iter().map(|(step, _)| *step)).filter(|step| step.way == way);
        let answers =
            self.tried.iter().filter(|(step, _)| step.way == way).map(|(_, refusal)| match refusal {
                Refusal::NotHere { sequence, .. } => *sequence,
                // Not worth another deadline.
                Refusal::TimedOut => u64::MAX,
                Refusal::Unreachable | Refusal::Unavailable | Refusal::Final => 0,
            });
        (mine.clone().count(), mine.map(|step| step.sequence).chain(answers).max().unwrap_or(0))
    }

    fn offer_local(&mut self, local: Option<u64>) {
        self.had_route |= local.is_some();
        self.waiting_local = local.filter(|tunnel| self.history(Way::Local { tunnel: *tunnel }).0 == 0);
    }

    /// Replaces what waits by those candidates that are worth an attempt: new ones, and those that failed once
    /// and have been heard of since.
    fn offer(&mut self, candidates: Vec<Candidate>) {
        self.had_route |= !candidates.is_empty();
        let seed = self.seed;
        let is_worthy = |candidate: &Candidate| {
            let way = Way::Peer { proxy: candidate.proxy, incarnation: candidate.incarnation };
            let is_under_way = self.attempts.values().any(|attempt| attempt.step.way == way);
            match self.history(way) {
                (0, _) => true,
                (1, sequence) => !is_under_way && candidate.sequence > sequence,
                (_, _) => false,
            }
        };
        let mut worthy: Vec<Candidate> = candidates.into_iter().filter(is_worthy).collect();
        worthy.sort_by_key(|candidate| (candidate.state, mix(seed, candidate.proxy)));
        self.waiting = worthy.into();
    }

    fn has_next(&self) -> bool {
        let has_room = self.tried.len() + self.attempts.len() < TRIED_MAX;
        has_room && (self.waiting_local.is_some() || !self.waiting.is_empty())
    }

    fn account(&self) -> Vec<Tried> {
        self.tried.iter().map(|(step, refusal)| Tried { way: step.way, refusal: *refusal }).collect()
    }

    fn ask_refresh(&mut self, now: Mono) {
        if self.refresh == Refresh::Unused {
            let until = now.after(self.config.refresh_deadline);
            self.refresh = Refresh::Asked { until };
            self.effects.push_back(PlanEffect::Refresh { deadline: until });
        }
    }

    /// Starts what is due, or finds that nothing is left.
    fn go_on(&mut self, now: Mono) {
        if self.is_done {
            return;
        }
        while self.has_next() && (self.attempts.is_empty() || self.next_at <= now) {
            let Some(step) = self.next_step() else { break };
            self.start(step, now);
        }
        let is_exhausted = self.attempts.is_empty();
        if !is_exhausted {
            self.linger_until = None;
            return;
        }
        self.ask_refresh(now);
        if let Refresh::Asked { .. } = self.refresh {
            return;
        }
        let patience = if self.had_route && !self.is_one_hop { self.config.linger } else { Duration::ZERO };
        let until = *self.linger_until.get_or_insert(now.after(patience));
        if until <= now || self.tried.len() >= TRIED_MAX {
            let tried = self.account();
            self.finish(Outcome::Failed(DialError::Offline { tried }));
        }
    }

    fn next_step(&mut self) -> Option<Step> {
        if let Some(tunnel) = self.waiting_local.take() {
            return Some(Step { way: Way::Local { tunnel }, sequence: 0 });
        }
        let Candidate { proxy, incarnation, sequence, .. } = self.waiting.pop_front()?;
        Some(Step { way: Way::Peer { proxy, incarnation }, sequence })
    }

    fn start(&mut self, step: Step, now: Mono) {
        let attempt = AttemptId(self.next_attempt);
        self.next_attempt += 1;
        let deadline = now.after(self.config.attempt_deadline).min(self.deadline);
        self.attempts.insert(attempt, Attempt { step, deadline });
        self.next_at = now.after(self.config.stagger);
        self.effects.push_back(PlanEffect::Dial { attempt, way: step.way, deadline });
    }

    fn finish(&mut self, outcome: Outcome) {
        for attempt in std::mem::take(&mut self.attempts).into_keys() {
            self.effects.push_back(PlanEffect::Cancel { attempt });
        }
        self.is_done = true;
        self.effects.push_back(PlanEffect::Done(outcome));
    }
}

/// A different order of the proxies for every seed.
fn mix(seed: u64, proxy: HostId) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = proxy.as_bytes().iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, fold);
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
