//! Row 13: every proxy dies at once, and all agents come back.

use crate::fleet::Fleet;
use crate::loader::{Loader, number};
use crate::place::Place;
use crate::proc_fs::cpu_seconds;
use crate::report::{Findings, Judgement};
use crate::sample::Series;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

const PROXIES: usize = 2;
/// Processes of simulated agents.
const POOLS: u64 = 3;
const SECONDS_MAX: f64 = 10.0;
/// Dials a second that a user would notice the storm by.
const PROBES_PER_SECOND: u64 = 50;
const MICROS_PER_SECOND: f64 = 1_000_000.0;

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    place.clear();
    let (count, runs) = (place.options.tunnels, place.options.runs);
    eprintln!("  starting Auth, {PROXIES} proxies and {count} simulated agents");
    let mut fleet = Fleet::start(place.site()?, count, PROXIES)?;
    let mut pools = start_pools(&fleet, count)?;
    for proxy in 0..PROXIES {
        fleet.sweep(proxy, 0, count)?;
    }
    let (mut storms, mut auth_cpu) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        let mut probe = fleet.probe(count, PROBES_PER_SECOND)?;
        probe.line()?;
        let cpu = cpu_seconds(fleet.auth_pid())?;
        pools.iter_mut().try_for_each(|pool| pool.tell("watch"))?;
        probe.tell("mark")?;
        fleet.kill_proxies()?;
        fleet.restart_proxies()?;
        let storm: Vec<Value> = pools.iter_mut().map(Loader::line).collect::<Result<_>>()?;
        auth_cpu.push(cpu_seconds(fleet.auth_pid())? - cpu);
        let dials = probe.finish()?;
        let are_back = |pool: &Value| pool.get("all_in_seconds").is_some_and(Value::is_number);
        ensure!(storm.iter().all(are_back), "not all came back: {storm:?}");
        // Being back is being reached, through every proxy.
        for proxy in 0..PROXIES {
            fleet.sweep(proxy, 0, count)?;
        }
        storms.push((storm, dials));
        eprint!("\r  run {run} of {runs}");
    }
    eprintln!();
    findings(count, &storms, auth_cpu)
}

/// Simulated agents in several processes, as descriptors are limited and an agent may dial two proxies at a time.
fn start_pools(fleet: &Fleet, count: u64) -> Result<Vec<Loader>> {
    let share = count.div_ceil(POOLS);
    let firsts = (0..POOLS).map(|pool| pool * share).filter(|first| *first < count);
    firsts.map(|first| fleet.pool(first, share.min(count - first), 1)).collect()
}

/// What every process of agents and the probe told of one storm.
type Storm = (Vec<Value>, Value);

fn findings(count: u64, storms: &[Storm], auth_cpu: Vec<f64>) -> Result<Findings> {
    let of_pools = |key: &str, fold: fn(f64, f64) -> f64, scale: f64| -> Result<Vec<f64>> {
        let fold_run = |(pools, _): &Storm| {
            let each = pools.iter().map(|pool| number(pool, key));
            Ok(each.collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, fold) / scale)
        };
        storms.iter().map(fold_run).collect()
    };
    let last = |key: &str, scale: f64| of_pools(key, f64::max, scale);
    let all = |key: &str, scale: f64| of_pools(key, |a, b| a + b, scale);
    let each = count as f64;
    let last_failures = storms.iter().map(|(_, dials)| match dials.get("last_failure_seconds") {
        Some(Value::Null) | None => Ok(0.0),
        Some(_) => number(dials, "last_failure_seconds"),
    });
    let mut findings = Findings::default().with(vec![
        Series::new("99.9 % of the agents back", "s", last("share_in_seconds", 1.0)?)?,
        Series::new("all agents back", "s", last("all_in_seconds", 1.0)?)?,
        Series::new("half of the agents back", "s", last("p50_us", MICROS_PER_SECOND)?)?,
        Series::new("last dial that failed, begun", "s", last_failures.collect::<Result<_>>()?)?,
        Series::new("dials of an agent that failed", "each", all("dials_failed", each)?)?,
        Series::new("Auth requests of an agent", "each", all("asked", each)?)?,
        Series::new("CPU of Auth", "s", auth_cpu)?,
    ]);
    let median = |name: &str| {
        findings.series.iter().find(|series| series.name == name).map_or(f64::NAN, |series| series.median)
    };
    let (back, asked) = (median("99.9 % of the agents back"), median("Auth requests of an agent"));
    findings.judgements = vec![
        Judgement::at_most("99.9 % of the agents back".to_owned(), back, SECONDS_MAX).in_unit("s"),
        Judgement::at_most("Auth requests of a returning agent".to_owned(), asked, 0.0).in_unit("each"),
    ];
    findings.notes.push(format!(
        "{count} agents in {POOLS} processes, the slowest of which counts, one tunnel each, on {PROXIES} proxies; agents, their pools (`core/tunnel`), clients and proxies \
         share the cores. The proxies are killed together (SIGKILL) and started again at once; times count from the kill. \
         No TLS resumption. Agents notice by themselves, and after each run every one of them is dialled through every proxy."
    ));
    findings.notes.push(format!("Why dials of agents failed: {}.", failures(storms)));
    let failed: f64 = storms.iter().map(|(_, dials)| number(dials, "failed")).sum::<Result<f64>>()?;
    let done: f64 = storms.iter().map(|(_, dials)| number(dials, "done")).sum::<Result<f64>>()?;
    findings.notes.push(format!(
        "{PROBES_PER_SECOND} dials a second to agents at random meanwhile: {done:.0} done, {failed:.0} failed."
    ));
    Ok(findings)
}

/// Reasons and how often, of all runs together.
fn failures(storms: &[Storm]) -> String {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let reports = storms.iter().flat_map(|(pools, _)| pools);
    for (reason, count) in reports.filter_map(|pool| pool.get("failures")?.as_object()).flatten() {
        *counts.entry(reason).or_default() += count.as_u64().unwrap_or(0);
    }
    let listed: Vec<String> = counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    if listed.is_empty() { "none did".to_owned() } else { listed.join(", ") }
}
