//! Points in time as people read them.

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use std::time::Duration;
use wayleave_runtime::{Clock, SystemClock};
use wayleave_vocab::{Ttl, Wall};

/// The time of day.
pub(crate) fn now() -> Wall {
    SystemClock::new().wall()
}

/// RFC 3339 in UTC and whole seconds, for programs.
pub(crate) fn rfc3339(at: Wall) -> String {
    timestamp(Wall::from_secs(at.as_secs())).to_string()
}

/// Local time with its zone, for people.
pub(crate) fn local(at: Wall) -> String {
    in_zone(&timestamp(at).to_zoned(TimeZone::system()))
}

fn in_zone(at: &Zoned) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string()
}

fn timestamp(at: Wall) -> Timestamp {
    Timestamp::from_millisecond(i64::try_from(at.as_ms()).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX)
}

/// A point in time as people type it: RFC 3339, a day or a time of day in local time, or how long ago.
pub(crate) fn parse(text: &str) -> Result<Wall, String> {
    parse_at(text, now(), TimeZone::system())
}

fn parse_at(text: &str, now: Wall, zone: TimeZone) -> Result<Wall, String> {
    let text = text.trim();
    if let Ok(ago) = text.parse::<Ttl>() {
        return Ok(now.before(ago.0));
    }
    let local =
        || text.parse::<jiff::civil::DateTime>().and_then(|at| at.to_zoned(zone).map(|at| at.timestamp()));
    let at = text.parse::<Timestamp>().or_else(|_| local()).map_err(|_| {
        format!("{text:?} is no time such as 2026-11-27T15:00:00Z, 2026-11-27, 2026-11-27T15:00 or 2h (ago)")
    })?;
    let ms = u64::try_from(at.as_millisecond()).map_err(|_| format!("{text:?} is before 1970"))?;
    Ok(Wall::from_ms(ms))
}

/// How long something still lasts, rounded to minutes (to seconds below one minute).
pub(crate) fn remaining(until: Wall, now: Wall) -> String {
    let seconds = until.since(now).as_secs();
    let rounded = if seconds >= 60 { (seconds + 30) / 60 * 60 } else { seconds };
    Ttl(Duration::from_secs(rounded)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_told_in_minutes() {
        let now = Wall::from_secs(1_000);
        assert_eq!(remaining(Wall::from_secs(1_000 + 11 * 3600 + 53 * 60 + 7), now), "11h53m");
        assert_eq!(remaining(Wall::from_secs(1_000 + 3599), now), "1h");
        assert_eq!(remaining(Wall::from_secs(1_030), now), "30s");
        assert_eq!(remaining(Wall::from_secs(10), now), "0s");
    }

    #[test]
    fn times_are_read_as_people_type_them() {
        let now = Wall::from_secs(1_800_000_000);
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(parse_at(text, now, TimeZone::UTC).ok().map(Wall::as_secs), expected, "{text}");
        };
        check("2h", Some(1_800_000_000 - 7200));
        check("2027-01-15T08:00:00Z", Some(1_800_000_000));
        check("2027-01-15T09:00:00+01:00", Some(1_800_000_000));
        check("2027-01-15T08:00", Some(1_800_000_000));
        check("2027-01-15 08:00:00", Some(1_800_000_000));
        check("2027-01-15", Some(1_800_000_000 - 8 * 3600));
        for nonsense in ["yesterday", "", "12", "1960-01-01T00:00:00Z", "2027-13-01"] {
            check(nonsense, None);
        }
    }

    #[test]
    fn times_are_written_for_programs_and_for_people() {
        let at = Wall::from_secs(1_651_892_041);
        assert_eq!(rfc3339(Wall::from_ms(at.as_ms() + 290)), "2022-05-07T02:54:01Z");
        let utc = timestamp(at).to_zoned(TimeZone::UTC);
        assert_eq!(in_zone(&utc), "2022-05-07 02:54:01 +0000 UTC");
    }
}
