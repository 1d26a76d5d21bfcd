//! How the cluster is doing, for administrators who look: what proxies report, and the routes.
//!
//! Reports are kept in memory only: a proxy reports again within seconds, and more often while somebody looks. With several
//! Auth instances each knows the reports of the proxies that talk to it.

use crate::auth_core::AuthCore;
use crate::presence::record_of_proxy;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wayleave_api::auth::{
    AgentRoute, GetOverviewResponse, ListRoutesRequest, ListRoutesResponse, ProxyOverview, ProxyStatusReport,
    RouteProxy,
};
use wayleave_resource::{Kind, Resource};
use wayleave_vocab::{HostId, Mono};

/// Time between two reports while somebody looks, and while nobody does.
const WATCHED_INTERVAL: Duration = Duration::from_secs(1);
const QUIET_INTERVAL: Duration = Duration::from_secs(5);
/// Somebody looks until so long after the last look.
const LOOKING: Duration = Duration::from_secs(60);
/// Most proxies whose reports are kept.
const REPORTS_MAX: usize = 1024;
/// Routes of one page.
const PAGE_ROUTES_MAX: usize = 5_000;

/// The last report of each proxy.
#[derive(Default)]
pub(crate) struct Reports(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    by_proxy: BTreeMap<HostId, (ProxyStatusReport, Mono)>,
    looked: Option<Mono>,
}

impl Reports {
    /// Keeps a report; gives the time until the next one.
    pub(crate) fn take(&self, proxy: HostId, report: ProxyStatusReport, now: Mono) -> Duration {
        let mut inner = self.lock();
        if inner.by_proxy.len() < REPORTS_MAX || inner.by_proxy.contains_key(&proxy) {
            inner.by_proxy.insert(proxy, (report, now));
        }
        match inner.looked {
            Some(looked) if now.since(looked) < LOOKING => WATCHED_INTERVAL,
            Some(_) | None => QUIET_INTERVAL,
        }
    }

    /// What is known of the proxies that still exist; the others are forgotten.
    fn look(&self, known: &BTreeSet<HostId>, now: Mono) -> BTreeMap<HostId, (ProxyStatusReport, Mono)> {
        let mut inner = self.lock();
        inner.looked = Some(now);
        inner.by_proxy.retain(|proxy, _| known.contains(proxy));
        inner.by_proxy.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AuthCore {
    /// The cluster at a glance.
    pub(crate) fn overview(&self) -> GetOverviewResponse {
        let now = self.clock.mono();
        let mirrored = self.mirror.all(Kind::Proxy);
        let ids = mirrored.iter().filter_map(|mirrored| match &mirrored.resource {
            Resource::Proxy(proxy) => Some(proxy.host_id),
            _ => None,
        });
        let reports = self.reports.look(&ids.collect(), now);
        let proxies = mirrored.iter().filter_map(|mirrored| {
            let Resource::Proxy(proxy) = &mirrored.resource else { return None };
            let mut record = record_of_proxy(mirrored)?;
            record.problems.clone_from(&proxy.status.problems);
            let report = reports.get(&proxy.host_id);
            let age = report.map_or(Duration::ZERO, |(_, at)| now.since(*at));
            Some(ProxyOverview {
                record: Some(record),
                online: self.routes.proxy_is_online(proxy.host_id),
                report: report.map(|(report, _)| *report),
                report_age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            })
        });
        let revision = self.snapshots.current().map(|published| published.revision).unwrap_or_default();
        let errors = self.mirror.policy();
        let problems = errors.policy.errors().iter().map(|error| format!("a stored role is broken: {error}"));
        GetOverviewResponse {
            cluster_name: self.authorities.cluster().to_string(),
            version: self.config.version.clone(),
            backend: self.config.backend_name.clone(),
            policy_generation: revision.generation,
            policy_counter: revision.counter,
            nodes_registered: self.mirror.count(Kind::Node) as u64,
            nodes_online: self.routes.online().len() as u64,
            audit_queue: self.audit.waiting() as u64,
            calls: self.metrics.calls(),
            proxies: proxies.collect(),
            problems: problems.collect(),
        }
    }

    /// Agents in order of id, and the proxies that hold their tunnels.
    pub(crate) fn list_routes(&self, request: &ListRoutesRequest) -> ListRoutesResponse {
        let size = match usize::try_from(request.page_size) {
            Ok(size @ 1..PAGE_ROUTES_MAX) => size,
            Ok(_) | Err(_) => PAGE_ROUTES_MAX,
        };
        let name_of = |kind: Kind, id: HostId| {
            let mirrored = self.mirror.get(kind, &id.to_string());
            match mirrored.as_deref().map(|mirrored| &mirrored.resource) {
                Some(Resource::Node(node)) => node.spec.hostname.to_string(),
                Some(Resource::Proxy(proxy)) => proxy.spec.hostname.clone(),
                _ => String::new(),
            }
        };
        let holders = self.routes.holders();
        let mut behind = holders
            .into_iter()
            .map(|(agent, proxies)| (agent.to_string(), agent, proxies))
            .filter(|(text, _, _)| *text > request.page_token)
            .collect::<Vec<_>>();
        behind.sort_by(|a, b| a.0.cmp(&b.0));
        let has_more = behind.len() > size;
        behind.truncate(size);
        let next_page_token = match behind.last() {
            Some((last, _, _)) if has_more => last.clone(),
            Some(_) | None => String::new(),
        };
        let route = |(text, agent, proxies): (String, HostId, Vec<HostId>)| AgentRoute {
            host_id: text,
            name: name_of(Kind::Node, agent),
            proxies: proxies
                .into_iter()
                .map(|proxy| RouteProxy { host_id: proxy.to_string(), name: name_of(Kind::Proxy, proxy) })
                .collect(),
        };
        ListRoutesResponse { routes: behind.into_iter().map(route).collect(), next_page_token }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f_reports_are_bounded_and_come_often_only_while_somebody_looks() {
        let reports = Reports::default();
        let id = |n: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            HostId::from_random(bytes)
        };
        let at = |seconds| Mono::ZERO.after(Duration::from_secs(seconds));
        let report = ProxyStatusReport::default;
        assert_eq!(reports.take(id(0), report(), at(1)), QUIET_INTERVAL);
        let known = reports.look(&[id(0)].into(), at(2));
        assert_eq!(known.len(), 1);
        assert_eq!(reports.take(id(0), report(), at(3)), WATCHED_INTERVAL);
        assert_eq!(reports.take(id(0), report(), at(100)), QUIET_INTERVAL);
        for n in 0..REPORTS_MAX + 10 {
            reports.take(id(n), report(), at(101));
        }
        let all = (0..REPORTS_MAX + 10).map(id).collect();
        assert_eq!(reports.look(&all, at(102)).len(), REPORTS_MAX);
        assert_eq!(reports.look(&[id(1)].into(), at(103)).len(), 1, "who is gone is forgotten");
    }
}
