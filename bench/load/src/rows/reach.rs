//! Row 11: an agent's tunnel is up at one proxy; when does another proxy reach the agent?

use crate::fleet::Fleet;
use crate::loader::number;
use crate::place::Place;
use crate::report::{Findings, Judgement};
use crate::sample::Series;
use crate::store::{Store, StoreKind};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// Agents that connect in one run, one after the other.
const AGENTS: u64 = 200;
/// Proxies of the cluster that is full already.
const FULL_PROXIES: usize = 4;
const HOME: usize = 0;
const INGRESS: usize = 1;
const MICROS_PER_MS: f64 = 1_000.0;
const P50_MAX_MS: f64 = 20.0;
const P99_MAX_MS: f64 = 100.0;

/// By which way routes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Both,
    /// Proxies tell each other nothing.
    Backend,
    /// The backend is away.
    Push,
}

impl Way {
    const ALL: [Self; 3] = [Self::Both, Self::Backend, Self::Push];

    fn name(self) -> &'static str {
        match self {
            Self::Both => "both ways",
            Self::Backend => "by the backend",
            Self::Push => "backend away",
        }
    }
}

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    let mut findings = Findings::default();
    for kind in StoreKind::ALL {
        for way in Way::ALL {
            let name = format!("{}, {}", kind.name(), way.name());
            eprintln!("  {name}");
            let reports = reach(place, kind, way, 0)?;
            judge(&mut findings, &name, &reports)?;
        }
    }
    let full = place.options.tunnels;
    for way in Way::ALL {
        let name = format!("SQLite, {}, beside {} tunnels", way.name(), full * FULL_PROXIES as u64);
        eprintln!("  {name}");
        let reports = reach(place, StoreKind::Sqlite, way, full)?;
        judge(&mut findings, &name, &reports)?;
    }
    findings.notes.push(format!(
        "{AGENTS} simulated agents in each run, one after the other: from the hello that makes the agent known at its home \
         proxy until a stream to it through another proxy is established, dials that come too early and their connections \
         included. Proxies tell each other nothing with `peer_route_push: no`. Away is: etcd and PostgreSQL stand still \
         (SIGSTOP); of SQLite, Auth is killed with it. etcd's data is in memory."
    ));
    findings.notes.push(format!(
        "The {} tunnels beside it are of as many agents, {full} at each of {FULL_PROXIES} proxies.",
        full * FULL_PROXIES as u64
    ));
    Ok(findings)
}

/// What each run told.
fn reach(place: &mut Place<'_>, kind: StoreKind, way: Way, full: u64) -> Result<Vec<Value>> {
    place.clear();
    let mut site = place.site()?;
    site.pushes_routes = way != Way::Backend;
    site.store = Store::start(kind);
    let runs = place.options.runs as u64;
    let proxies = if full == 0 { 2 } else { FULL_PROXIES };
    let others = full * proxies as u64;
    let places = vec![(Ipv4Addr::LOCALHOST.into(), Vec::new()); proxies];
    let mut fleet = Fleet::start_on(site, others + runs * AGENTS + 1, &places)?;
    for proxy in 0..proxies {
        if full > 0 {
            fleet.connect(proxy, full * proxy as u64, full)?;
        }
    }
    // One more: from then on the proxies know the cluster and each other.
    fleet.reach(HOME, INGRESS, others + runs * AGENTS, 1)?;
    if way == Way::Push {
        fleet.lose_backend()?;
    }
    (0..runs).map(|run| fleet.reach(HOME, INGRESS, others + run * AGENTS, AGENTS)).collect()
}

fn judge(findings: &mut Findings, name: &str, reports: &[Value]) -> Result<()> {
    for (share, key, max) in [("p50", "p50_us", P50_MAX_MS), ("p99", "p99_us", P99_MAX_MS)] {
        let samples = reports.iter().map(|report| Ok(number(report, key)? / MICROS_PER_MS));
        let series = Series::new(format!("{name}, {share}"), "ms", samples.collect::<Result<_>>()?)?;
        let judged = Judgement::at_most(series.name.clone(), series.median, max);
        findings.judgements.push(judged.in_unit("ms"));
        findings.series.push(series);
    }
    for report in reports {
        ensure!(report.get("failed") == Some(&json!(0)), "{name}: not every agent was reached: {report}");
    }
    Ok(())
}
