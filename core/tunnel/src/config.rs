//! Timers and bounds of the pool.

use std::time::Duration;

/// See [`Config::default`] for the values that agents use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Bounds a whole attempt: connecting, TLS and the tunnel's hello.
    pub dial_deadline: Duration,
    /// An attempt that takes longer no longer keeps another from being made beside it. Doubled for each attempt that is
    /// under way before it.
    pub hedge_after: Duration,
    /// Attempts under way at once.
    pub dials_max: usize,
    /// Shortest wait before an address that failed is tried again.
    pub retry_min: Duration,
    /// Longest such wait.
    pub retry_max: Duration,
    /// Agents that lose a proxy together come back spread over this time.
    pub spread: Duration,
    /// A tunnel that lived this long makes earlier failures forgotten.
    pub stable_after: Duration,
    /// First wait after a shared address led to a proxy that is connected already; grows by a fifth each time.
    pub search_wait_min: Duration,
    /// Longest such wait.
    pub search_wait_max: Duration,
    /// Pause after a shared address was tried [`Config::search_tries`] times without reaching a new proxy.
    pub search_rest: Duration,
    /// Tries in one search: this many for each known proxy, and once more.
    pub search_tries: u32,
    /// When the strategy turns from a tunnel to every proxy to fewer, the others are kept so long, up to twice as long:
    /// until then proxies reach each other.
    pub excess_keep: Duration,
    /// First wait before tunnels that crowd in one zone are spread to another; doubles with each search.
    pub improve_wait_min: Duration,
    /// Longest such wait.
    pub improve_wait_max: Duration,
    /// Tries in one such search.
    pub improve_tries: u32,
    /// How long a question to Auth may take.
    pub ask_deadline: Duration,
    /// Auth is asked for the list of proxies again after this at the latest, whatever proxies tell.
    pub ask_interval: Duration,
    /// Agents that come to doubt the list together ask Auth spread over this time.
    pub doubt_wait: Duration,
    /// An agent that reaches no proxy asks Auth after this, up to twice as long: proxies that only restart are back before.
    pub lost_wait: Duration,
    /// Longest pause between questions for doubts that prove to be unfounded.
    pub doubt_wait_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dial_deadline: Duration::from_secs(20),
            hedge_after: Duration::from_secs(2),
            dials_max: 6,
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(8),
            spread: Duration::from_millis(500),
            stable_after: Duration::from_secs(10),
            search_wait_min: Duration::from_millis(100),
            search_wait_max: Duration::from_secs(4),
            search_rest: Duration::from_secs(60),
            search_tries: 6,
            excess_keep: Duration::from_secs(5),
            improve_wait_min: Duration::from_secs(10),
            improve_wait_max: Duration::from_secs(3600),
            improve_tries: 20,
            ask_deadline: Duration::from_secs(10),
            ask_interval: Duration::from_secs(600),
            doubt_wait: Duration::from_secs(5),
            lost_wait: Duration::from_secs(10),
            doubt_wait_max: Duration::from_secs(120),
        }
    }
}
