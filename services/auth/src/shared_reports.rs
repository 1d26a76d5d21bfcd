//! Reports of proxies for whoever looks at another Auth instance than the one that a proxy talks to.
//!
//! Who is asked for an overview leaves a mark in the backend, under a lease; while it stands, the other instances put the
//! reports that they get beside it. With one instance, and while nobody looks, nothing is written.

use crate::auth_core::AuthCore;
use crate::keys;
use prost::Message as _;
use std::collections::BTreeMap;
use std::time::Duration;
use wayleave_api::auth::ProxyStatusReport;
use wayleave_store::{Backend, Key, StoreError};
use wayleave_vocab::{HostId, Mono, Wall};

/// How long a mark stands, and how often it is made anew.
const MARK_LIFE: Duration = Duration::from_secs(60);
pub(crate) const MARK_INTERVAL: Duration = Duration::from_secs(20);
/// A report that is not followed by another goes.
const REPORT_LIFE: Duration = Duration::from_secs(30);
/// Most reports that are read.
const SHARED_MAX: usize = 1_024;
/// Of the time in front of a stored report, in milliseconds since 1970.
const TIME_BYTES: usize = 8;

/// A report, and how old it is.
pub(crate) type Aged = (ProxyStatusReport, Duration);

impl AuthCore {
    /// Takes the report of a proxy; gives the time until the next one.
    pub(crate) async fn take_report(&self, proxy: HostId, report: ProxyStatusReport) -> Duration {
        let next = self.reports.take(proxy, report, self.clock.mono());
        match self.share_report(proxy, &report).await {
            Ok(true) => next.min(crate::overview::WATCHED_INTERVAL),
            Ok(false) => next,
            Err(error) => {
                tracing::debug!(%error, "a report for another Auth instance is lost");
                next
            }
        }
    }

    /// True when somebody looks at another instance: he is given the report.
    async fn share_report(&self, proxy: HostId, report: &ProxyStatusReport) -> Result<bool, StoreError> {
        let backend = self.records.backend();
        let own = keys::reports_wanted_by(self.host_id);
        let marks = backend.range(&keys::reports_wanted(), None, 2).await?;
        if marks.items.iter().all(|mark| mark.key == own) {
            return Ok(false);
        }
        let value = encode(report, self.clock.wall());
        put_for(backend.as_ref(), keys::report_of(proxy), value, REPORT_LIFE).await?;
        Ok(true)
    }

    /// What other instances know of proxies, as far as it is there: they give it from now on.
    pub(crate) async fn reports_of_others(&self) -> BTreeMap<HostId, Aged> {
        self.read_others().await.unwrap_or_else(|error| {
            tracing::debug!(%error, "reports at other Auth instances cannot be read");
            BTreeMap::new()
        })
    }

    async fn read_others(&self) -> Result<BTreeMap<HostId, Aged>, StoreError> {
        let backend = self.records.backend();
        let instances = backend.range(&keys::auth_instances(), None, 2).await?;
        if instances.items.len() < 2 {
            return Ok(BTreeMap::new());
        }
        let now: Mono = self.clock.mono();
        if self.reports.is_mark_due(now) {
            put_for(backend.as_ref(), keys::reports_wanted_by(self.host_id), Vec::new(), MARK_LIFE).await?;
        }
        let (prefix, wall) = (keys::shared_reports(), self.clock.wall());
        let page = backend.range(&prefix, None, SHARED_MAX).await?;
        let reports = page.items.iter().filter_map(|item| {
            let proxy = item.key.as_str().rsplit_once('/')?.1.parse().ok()?;
            Some((proxy, decode(&item.value, wall)?))
        });
        Ok(reports.collect())
    }
}

async fn put_for(backend: &dyn Backend, key: Key, value: Vec<u8>, life: Duration) -> Result<(), StoreError> {
    let lease = backend.lease_grant(life).await?;
    backend.put(&key, value.into(), Some(lease)).await.map(|_| ())
}

fn encode(report: &ProxyStatusReport, now: Wall) -> Vec<u8> {
    let mut value = now.as_ms().to_be_bytes().to_vec();
    value.extend(report.encode_to_vec());
    value
}

fn decode(value: &[u8], now: Wall) -> Option<Aged> {
    let (time, report) = value.split_at_checked(TIME_BYTES)?;
    let at = Wall::from_ms(u64::from_be_bytes(time.try_into().ok()?));
    Some((ProxyStatusReport::decode(report).ok()?, now.since(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_report_is_read_with_its_age_and_anything_else_is_none() {
        let report = ProxyStatusReport { agents: 7, ..ProxyStatusReport::default() };
        let at = Wall::from_secs(100);
        let value = encode(&report, at);
        assert_eq!(decode(&value, Wall::from_secs(103)), Some((report, Duration::from_secs(3))));
        assert_eq!(decode(&value, Wall::from_secs(99)), Some((report, Duration::ZERO)));
        assert_eq!(decode(&value[..7], at), None);
        assert_eq!(decode(&[&value[..8], &[0xff]].concat(), at), None);
    }
}
