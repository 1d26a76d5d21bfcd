//! Liveness and round-trip time: when to ping, when the peer counts as dead.

use crate::config::{Config, Role};
use std::time::Duration;
use wayleave_vocab::Mono;

/// Assumed before the first pong.
const ROUND_TRIP_GUESS: Duration = Duration::from_millis(100);
/// While data flows, a sample older than this is renewed.
const ROUND_TRIP_FRESH: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Ping {
    None,
    Queued,
    Sent { at: Mono },
}

#[derive(Debug)]
pub(crate) struct Heartbeat {
    silence_before_ping: Duration,
    dead_after: Duration,
    heard_at: Mono,
    ping: Ping,
    nonce: u64,
    smoothed: Option<(Duration, Mono)>,
}

impl Heartbeat {
    pub(crate) fn new(role: Role, config: &Config, now: Mono) -> Self {
        let silence_before_ping = match role {
            Role::Connector => config.keepalive,
            // The connector's pings keep both sides informed; the acceptor asks only when they stop.
            Role::Acceptor => config.keepalive.saturating_mul(3) / 2,
        };
        Self {
            silence_before_ping,
            dead_after: config.dead_after,
            heard_at: now,
            ping: Ping::None,
            nonce: 0,
            smoothed: None,
        }
    }

    pub(crate) fn heard(&mut self, now: Mono) {
        self.heard_at = self.heard_at.max(now);
    }

    pub(crate) fn is_dead(&self, now: Mono) -> bool {
        now >= self.heard_at.after(self.dead_after)
    }

    pub(crate) fn dead_after(&self) -> Duration {
        self.dead_after
    }

    /// True once when a ping must be queued because the peer is silent.
    pub(crate) fn wants_ping(&mut self, now: Mono) -> bool {
        let due = now >= self.heard_at.after(self.silence_before_ping);
        due && self.queue_ping()
    }

    /// True once when a ping must be queued because the round-trip time is not known well enough.
    pub(crate) fn wants_sample(&mut self, now: Mono) -> bool {
        let stale = self.smoothed.is_none_or(|(_, at)| now.since(at) > ROUND_TRIP_FRESH);
        stale && self.queue_ping()
    }

    /// True when a ping must be queued because the user asked; false while one is under way.
    pub(crate) fn asks_now(&mut self) -> bool {
        self.queue_ping()
    }

    fn queue_ping(&mut self) -> bool {
        let free = matches!(self.ping, Ping::None);
        if free {
            self.ping = Ping::Queued;
        }
        free
    }

    /// The ping leaves now; gives its nonce.
    pub(crate) fn ping_sent(&mut self, now: Mono) -> u64 {
        self.nonce = self.nonce.wrapping_add(1);
        self.ping = Ping::Sent { at: now };
        self.nonce
    }

    /// A pong came; gives its round-trip time if it answers the last ping.
    pub(crate) fn pong(&mut self, nonce: u64, now: Mono) -> Option<Duration> {
        let Ping::Sent { at } = self.ping else { return None };
        if nonce != self.nonce {
            return None;
        }
        self.ping = Ping::None;
        let sample = now.since(at);
        let smoothed =
            self.smoothed.map_or(sample, |(old, _)| (old.saturating_mul(7).saturating_add(sample)) / 8);
        self.smoothed = Some((smoothed, now));
        Some(sample)
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.smoothed.map(|(round_trip, _)| round_trip)
    }

    pub(crate) fn round_trip_or_guess(&self) -> Duration {
        self.round_trip().unwrap_or(ROUND_TRIP_GUESS)
    }

    pub(crate) fn next_timeout(&self) -> Mono {
        let dead_at = self.heard_at.after(self.dead_after);
        match self.ping {
            Ping::None => dead_at.min(self.heard_at.after(self.silence_before_ping)),
            Ping::Queued | Ping::Sent { .. } => dead_at,
        }
    }
}
