//! How long certificates live.

use std::time::Duration;
use wayleave_vocab::{Ttl, Wall};

/// Life of a user's certificate when nobody says.
pub const DEFAULT_CERTIFICATE_TTL: Duration = Duration::from_secs(12 * 3600);
/// Longest life of a user's certificate, whatever anybody says.
pub const CERTIFICATE_TTL_MAX: Duration = Duration::from_secs(30 * 3600);
/// Shortest life that is asked for in earnest; less is read as this.
pub const CERTIFICATE_TTL_MIN: Duration = Duration::from_secs(60);
/// Certificates begin this much before they are issued, for clocks that are behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: Wall,
    /// The first moment after it.
    pub not_after: Wall,
}

impl Validity {
    /// From a minute ago for `ttl` from now, in whole seconds, because certificates know no others.
    pub fn new(ttl: Duration, now: Wall) -> Self {
        Self {
            not_before: Wall::from_secs(now.before(CLOCK_SKEW).as_secs()),
            not_after: Wall::from_secs(now.after(ttl).as_secs()),
        }
    }

    /// The same, ending no later than `limit`: a re-issued certificate does not outlive what it was issued for.
    #[must_use]
    pub fn ending_by(self, limit: Wall) -> Self {
        Self { not_before: self.not_before, not_after: self.not_after.min(Wall::from_secs(limit.as_secs())) }
    }
}

/// Whether something is to be issued again that was issued at `issued`: after so much of its life, or when that is still to
/// come, because the clock was ahead then: it is not valid yet.
pub fn is_renewal_due(issued: Wall, after: Duration, now: Wall) -> bool {
    now.since(issued) >= after || issued.since(now) > CLOCK_SKEW
}

/// The life of a user's certificate: what was asked for (or the cluster's default), capped by the roles, capped by 30 h.
pub fn certificate_ttl(requested: Option<Ttl>, role_max: Option<Ttl>, default: Ttl) -> Duration {
    let wanted = requested.unwrap_or(default).0.max(CERTIFICATE_TTL_MIN);
    let by_roles = role_max.map_or(CERTIFICATE_TTL_MAX, |ttl| ttl.0);
    wanted.min(by_roles).min(CERTIFICATE_TTL_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(requested: Option<u64>, role_max: Option<u64>, default: u64, expected: u64) {
        let hours = |h| Ttl(Duration::from_secs(h * 3600));
        let got = certificate_ttl(requested.map(hours), role_max.map(hours), hours(default));
        assert_eq!(got, hours(expected).0, "{requested:?} {role_max:?} {default}");
    }

    #[test]
    fn e_no_certificate_outlives_its_caps() {
        check(None, None, 12, 12);
        check(None, Some(8), 12, 8);
        check(Some(4), Some(8), 12, 4);
        check(Some(20), Some(30), 12, 20);
        check(Some(100), Some(50), 12, 30);
        check(None, None, 100, 30);
    }

    #[test]
    fn what_was_issued_by_a_clock_that_was_ahead_is_issued_again() {
        let (issued, after) = (Wall::from_secs(10_000), Duration::from_secs(600));
        for (now, expected) in
            [(10_000, false), (10_599, false), (10_600, true), (9_940, false), (9_939, true)]
        {
            assert_eq!(is_renewal_due(issued, after, Wall::from_secs(now)), expected, "{now}");
        }
    }

    #[test]
    fn validity_begins_before_now_and_never_outlives_a_limit() {
        let now = Wall::from_ms(1_000_000_500);
        let validity = Validity::new(Duration::from_secs(10), now);
        assert_eq!(validity.not_before, Wall::from_secs(999_940));
        assert_eq!(validity.not_after, Wall::from_secs(1_000_010));
        assert_eq!(validity.ending_by(Wall::from_ms(1_000_005_900)).not_after, Wall::from_secs(1_000_005));
        assert_eq!(validity.ending_by(Wall::from_secs(2_000_000)), validity);
    }
}
