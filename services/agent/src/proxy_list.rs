//! The cluster's proxies, as the pool wants them.

use wayleave_api::auth::ProxyRecord;
use wayleave_tunnel::{ProxyInfo, ProxyList, Zone};
use wayleave_vocab::{HostPort, Incarnation};

/// The proxies of a list; records that cannot be read are left out.
pub(crate) fn proxies(records: &[ProxyRecord], revision: u64) -> ProxyList {
    ProxyList { revision, proxies: records.iter().filter_map(proxy).collect() }
}

fn proxy(record: &ProxyRecord) -> Option<ProxyInfo> {
    Some(ProxyInfo {
        id: record.host_id.parse().ok()?,
        incarnation: Incarnation(record.incarnation),
        address: HostPort::parse(&record.direct_address, None).ok(),
        zone: Zone::parse(&record.zone),
        draining: record.draining,
    })
}
