//! The cluster's proxies, as the pool wants them.

use wayleave_api::auth::ProxyRecord;
use wayleave_tunnel::{ProxyInfo, ProxyList, Zone};
use wayleave_vocab::{HostPort, Incarnation};

/// The proxies of a list; records that cannot be read are left out.
pub fn proxies(records: &[ProxyRecord], revision: u64) -> ProxyList {
    ProxyList { revision, proxies: records.iter().filter_map(proxy).collect() }
}

/// Where the proxies answer: each by itself, and together. Those that leave are left out.
pub(crate) fn addresses(records: &[ProxyRecord]) -> Vec<HostPort> {
    let staying = records.iter().filter(|record| !record.draining);
    let texts =
        staying.flat_map(|record| std::iter::once(&record.direct_address).chain(&record.public_addresses));
    texts.filter_map(|text| HostPort::parse(text, None).ok()).collect()
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
