//! How the cluster is doing, for administrators who look: what proxies report, and the routes.
//!
//! Reports are kept in memory only: a proxy reports again within seconds, and more often while somebody looks. Those of
//! proxies that talk to another Auth instance come by way of the backend, while somebody looks (`shared_reports.rs`).

use crate::auth_core::AuthCore;
use crate::presence::record_of_proxy;
use crate::shared_reports::{Aged, MARK_INTERVAL};
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
pub(crate) const WATCHED_INTERVAL: Duration = Duration::from_secs(1);
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
    /// When other instances were last asked for theirs.
    marked: Option<Mono>,
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

    /// Whether it is time to ask other instances again; they count as asked then.
    pub(crate) fn is_mark_due(&self, now: Mono) -> bool {
        let mut inner = self.lock();
        let is_due = inner.marked.is_none_or(|marked| now.since(marked) >= MARK_INTERVAL);
        if is_due {
            inner.marked = Some(now);
        }
        is_due
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn newest(reports: impl Iterator<Item = (HostId, Aged)>) -> BTreeMap<HostId, Aged> {
    let mut newest: BTreeMap<HostId, Aged> = BTreeMap::new();
    for (proxy, report) in reports {
        if newest.get(&proxy).is_none_or(|known| report.1 < known.1) {
            newest.insert(proxy, report);
        }
    }
    newest
}

impl AuthCore {
    /// The cluster at a glance.
    pub(crate) async fn overview(&self) -> GetOverviewResponse {
        let others = self.reports_of_others().await;
        let now = self.clock.mono();
        let mirrored = self.mirror.all(Kind::Proxy);
        let ids = mirrored.iter().filter_map(|mirrored| match &mirrored.resource {
            Resource::Proxy(proxy) => Some(proxy.host_id),
            _ => None,
        });
        let own = self.reports.look(&ids.collect(), now);
        let own = own.into_iter().map(|(proxy, (report, at))| (proxy, (report, now.since(at))));
        let reports = newest(own.chain(others));
        let proxies = mirrored.iter().filter_map(|mirrored| {
            let Resource::Proxy(proxy) = &mirrored.resource else { return None };
            let mut record = record_of_proxy(mirrored)?;
            record.problems.clone_from(&proxy.status.problems);
            let report = reports.get(&proxy.host_id);
            let age = report.map_or(Duration::ZERO, |(_, age)| *age);
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
        assert_eq!([103, 110, 123].map(|second| reports.is_mark_due(at(second))), [true, false, true]);
    }

    #[test]
    fn of_two_reports_of_a_proxy_the_newer_one_counts() {
        let proxy = HostId::from_random([1; 16]);
        let report = |agents, seconds| {
            let report = ProxyStatusReport { agents, ..ProxyStatusReport::default() };
            (proxy, (report, Duration::from_secs(seconds)))
        };
        for reports in [[report(1, 9), report(2, 1)], [report(2, 1), report(1, 9)]] {
            assert_eq!(newest(reports.into_iter())[&proxy].0.agents, 2);
        }
    }
}
