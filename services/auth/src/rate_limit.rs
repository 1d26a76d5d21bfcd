//! Limits on what strangers may ask, per address: a bucket that fills slowly and empties by one per call.
//!
//! Memory is bounded: at most [`ADDRESSES_MAX`] addresses are remembered; when all of them are busy, new ones share
//! one bucket. IPv6 addresses count by their /64, which is what one customer gets.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::Duration;
use wayleave_vocab::Mono;

/// How many addresses are remembered.
pub(crate) const ADDRESSES_MAX: usize = 16_384;

/// How much one address may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Calls per minute in the long run; zero refuses everything once the burst is used.
    pub per_minute: u32,
    /// Calls at once.
    pub burst: u32,
}

/// The call came too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many attempts from this address, try again in {} s", retry_after.as_secs().max(1))]
pub struct TooManyCalls {
    /// When there is room again.
    pub retry_after: Duration,
}

/// Buckets per address.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    limit: RateLimit,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Calls that are free, in millionths.
    micro_calls: u64,
    filled_at: Mono,
}

const MICRO: u64 = 1_000_000;

impl RateLimiter {
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self { limit, buckets: Mutex::new(HashMap::new()) }
    }

    /// Takes one call of an address, or says when to come back.
    pub(crate) fn admit(&self, address: IpAddr, now: Mono) -> Result<(), TooManyCalls> {
        let mut buckets = self.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut key = network(address);
        if !buckets.contains_key(&key) && buckets.len() >= ADDRESSES_MAX {
            let limit = self.limit;
            buckets
                .retain(|_, bucket| bucket.filled(limit, now).micro_calls < u64::from(limit.burst) * MICRO);
            if buckets.len() >= ADDRESSES_MAX {
                key = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let full = Bucket { micro_calls: u64::from(self.limit.burst) * MICRO, filled_at: now };
        let bucket = buckets.entry(key).or_insert(full);
        *bucket = bucket.filled(self.limit, now);
        match bucket.micro_calls.checked_sub(MICRO) {
            Some(rest) => {
                bucket.micro_calls = rest;
                Ok(())
            }
            None => Err(TooManyCalls { retry_after: bucket.next_call(self.limit) }),
        }
    }
}

impl Bucket {
    fn filled(self, limit: RateLimit, now: Mono) -> Self {
        let micros = u64::try_from(now.since(self.filled_at).as_micros()).unwrap_or(u64::MAX);
        let gained = micros.saturating_mul(u64::from(limit.per_minute)) / 60;
        let micro_calls = self.micro_calls.saturating_add(gained).min(u64::from(limit.burst) * MICRO);
        Self { micro_calls, filled_at: now }
    }

    fn next_call(self, limit: RateLimit) -> Duration {
        let missing = MICRO.saturating_sub(self.micro_calls);
        match missing.saturating_mul(60).checked_div(u64::from(limit.per_minute)) {
            Some(micros) => Duration::from_micros(micros),
            None => Duration::from_secs(3600),
        }
    }
}

pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit { per_minute: 20, burst: 40 };

    fn at(secs: u64) -> Mono {
        Mono::from_origin(Duration::from_secs(secs))
    }

    fn admitted(limiter: &RateLimiter, address: &str, now: Mono) -> usize {
        let address = address.parse().unwrap();
        (0..1000).take_while(|_| limiter.admit(address, now).is_ok()).count()
    }

    #[test]
    fn n_a_burst_then_a_slow_rate_for_each_address() {
        let limiter = RateLimiter::new(LIMIT);
        assert_eq!(admitted(&limiter, "192.0.2.1", at(0)), 40);
        assert_eq!(admitted(&limiter, "192.0.2.1", at(60)), 20);
        assert_eq!(admitted(&limiter, "192.0.2.2", at(60)), 40, "another address");
        let denied = limiter.admit("192.0.2.1".parse().unwrap(), at(60)).unwrap_err();
        assert_eq!(denied.retry_after, Duration::from_secs(3));
        assert_eq!(admitted(&limiter, "192.0.2.1", at(100_000)), 40, "never more than the burst");
    }

    #[test]
    fn n_one_ipv6_network_is_one_address_and_mapped_ipv4_is_ipv4() {
        let limiter = RateLimiter::new(LIMIT);
        assert_eq!(admitted(&limiter, "2001:db8::1", at(0)), 40);
        assert_eq!(admitted(&limiter, "2001:db8::2", at(0)), 0);
        assert_eq!(admitted(&limiter, "192.0.2.1", at(0)), 40);
        assert_eq!(admitted(&limiter, "::ffff:192.0.2.1", at(0)), 0);
    }

    #[test]
    fn a_memory_is_bounded_however_many_addresses_come() {
        let limiter = RateLimiter::new(LIMIT);
        for n in 0..(u32::try_from(ADDRESSES_MAX).unwrap() + 5000) {
            let _ = limiter.admit(IpAddr::V4(std::net::Ipv4Addr::from(n)), at(0));
        }
        assert!(limiter.buckets.lock().unwrap().len() <= ADDRESSES_MAX + 1);
        assert_eq!(admitted(&limiter, "203.0.113.9", at(0)), 0, "strangers share what is left");
        assert_eq!(admitted(&limiter, "203.0.113.9", at(600)), 40, "idle addresses are forgotten");
    }
}
