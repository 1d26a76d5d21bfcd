//! One connection of one user.

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;
use wayleave_vocab::{Mono, SessionId, Wall};

/// The wall clock may jump, so whatever depends on it is looked at this often.
const WALL_CHECK_EVERY: Duration = Duration::from_secs(60);
/// Most sessions on one connection when no role says fewer.
const SESSIONS_MAX: usize = 1024;

/// Both clocks, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For silence and deadlines.
    pub mono: Mono,
    /// For certificates.
    pub wall: Wall,
}

/// What a permit grants a connection, as far as time and numbers go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// How long it may be silent in both directions.
    pub idle_timeout: Option<Duration>,
    /// When it ends with its certificate, if it does.
    pub ends: Option<Wall>,
    /// Most sessions at once.
    pub max_sessions: Option<NonZeroU32>,
}

/// Why a connection ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// It was silent for too long.
    Idle {
        /// How long it may be.
        limit: Duration,
    },
    /// Its certificate ran out.
    CertificateExpired,
    /// A lock was set.
    Locked {
        /// What the user may read.
        message: String,
    },
    /// Policy no longer allows it.
    PolicyChanged,
    /// The service stops and has waited.
    Drained,
}

/// Why no session may be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenRefusal {
    /// As many as allowed are open.
    #[error("{max} sessions are open on this connection, more are not allowed")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// The service stops: connect again, and another one answers.
    #[error("the service is stopping: connect again")]
    Draining,
    /// The connection is ending.
    #[error("the connection is ending: {0}")]
    Ending(EndReason),
}

/// What the caller must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell the user and close the connection with everything on it.
    End(EndReason),
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {
    terms: Terms,
    sessions: BTreeSet<SessionId>,
    active: Mono,
    seen: Now,
    phase: Phase,
    effects: VecDeque<Effect>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Open,
    /// No new sessions; what runs may run until then.
    Draining {
        until: Mono,
    },
    Ended(EndReason),
}

impl Connection {
    /// A connection that was just permitted.
    pub fn new(terms: Terms, now: Now) -> Self {
        let mut connection = Self {
            terms,
            sessions: BTreeSet::new(),
            active: now.mono,
            seen: now,
            phase: Phase::Open,
            effects: VecDeque::new(),
        };
        connection.handle_timeout(now);
        connection
    }

    /// The client wants a session.
    ///
    /// # Errors
    /// When there are too many, the service stops, or the connection is ending.
    pub fn handle_open(&mut self, session: SessionId, now: Now) -> Result<(), OpenRefusal> {
        self.handle_timeout(now);
        match &self.phase {
            Phase::Open => {}
            Phase::Draining { .. } => return Err(OpenRefusal::Draining),
            Phase::Ended(reason) => return Err(OpenRefusal::Ending(reason.clone())),
        }
        let asked = self.terms.max_sessions.map(|max| usize::try_from(max.get()).unwrap_or(usize::MAX));
        let max = asked.unwrap_or(SESSIONS_MAX).min(SESSIONS_MAX);
        if self.sessions.len() >= max {
            return Err(OpenRefusal::TooMany { max });
        }
        self.sessions.insert(session);
        self.active = now.mono;
        Ok(())
    }

    /// A session ended by itself.
    pub fn handle_close(&mut self, session: SessionId, now: Now) {
        self.sessions.remove(&session);
        self.active = self.active.max(now.mono);
        self.handle_timeout(now);
    }

    /// Bytes went in or out. Cheap: call it as often as you like.
    pub fn handle_activity(&mut self, now: Mono) {
        self.active = self.active.max(now);
    }

    /// Policy or locks changed, and policy was asked again.
    pub fn handle_decision(&mut self, decision: Result<Terms, EndReason>, now: Now) {
        match decision {
            Ok(terms) => {
                self.terms = terms;
                self.handle_timeout(now);
            }
            Err(reason) => self.end(reason),
        }
    }

    /// The service stops: no new sessions, and the end at `until` or with the last session.
    pub fn handle_drain(&mut self, until: Mono, now: Now) {
        match self.phase {
            Phase::Open | Phase::Draining { .. } => self.phase = Phase::Draining { until },
            Phase::Ended(_) => {}
        }
        self.handle_timeout(now);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.seen = now;
        if self.terms.ends.is_some_and(|ends| ends <= now.wall) {
            self.end(EndReason::CertificateExpired);
        }
        if let Some(limit) = self.terms.idle_timeout
            && now.mono.since(self.active) >= limit
        {
            self.end(EndReason::Idle { limit });
        }
        if let Phase::Draining { until } = self.phase
            && (until <= now.mono || self.sessions.is_empty())
        {
            self.end(EndReason::Drained);
        }
    }

    /// When to call [`Connection::handle_timeout`] next, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Mono> {
        let drain = match self.phase {
            Phase::Open => None,
            Phase::Draining { until } => Some(until),
            Phase::Ended(_) => return None,
        };
        let idle = self.terms.idle_timeout.map(|limit| self.active.after(limit));
        let certificate = self.terms.ends.map(|ends| {
            let left = ends.since(self.seen.wall);
            self.seen.mono.after(left.min(WALL_CHECK_EVERY))
        });
        [drain, idle, certificate].into_iter().flatten().min()
    }

    /// The next thing that the caller must do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// How many sessions are open.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The first reason stands.
    fn end(&mut self, reason: EndReason) {
        if !matches!(self.phase, Phase::Ended(_)) {
            self.phase = Phase::Ended(reason.clone());
            self.effects.push_back(Effect::End(reason));
        }
    }
}

/// What the user reads.
impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle { limit } => {
                write!(f, "the session was silent for {} s, which is the limit", limit.as_secs())
            }
            Self::CertificateExpired => f.write_str("your certificate has expired: log in again"),
            Self::Locked { message } if message.is_empty() => f.write_str("access is locked"),
            Self::Locked { message } => write!(f, "access is locked: {message}"),
            Self::PolicyChanged => f.write_str("your roles no longer allow this session"),
            Self::Drained => f.write_str("the service is stopping: connect again"),
        }
    }
}
