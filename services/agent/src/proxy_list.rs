//! What proxies say of the cluster, as the pool wants it.

use wayleave_api::agent::ClusterView;
use wayleave_api::auth::ProxyRecord;
use wayleave_tunnel::{ProxyInfo, ProxyList, Zone};
use wayleave_vocab::{HostPort, Incarnation, TunnelStrategy};

/// The proxies of a view; records that cannot be read are left out.
pub(crate) fn proxies(view: &ClusterView) -> ProxyList {
    let proxies = view.proxies.iter().filter_map(proxy).collect();
    ProxyList { revision: view.revision, proxies }
}

/// The strategy of a view, when it carries one.
pub(crate) fn strategy(view: &ClusterView) -> Option<TunnelStrategy> {
    let text = &view.networking.as_ref()?.tunnel_strategy_json;
    serde_json::from_str(text)
        .inspect_err(|error| tracing::warn!(%error, "the cluster's tunnel strategy is not understood"))
        .ok()
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
