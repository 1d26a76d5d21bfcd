//! Row 14: the proxy that holds an agent's tunnel falls silent; the agent is reached by its other tunnel.

use crate::cluster::Site;
use crate::daemon::pause;
use crate::fleet::Fleet;
use crate::loader::number;
use crate::place::Place;
use crate::report::{Findings, Judgement};
use crate::sample::Series;
use anyhow::{Result, anyhow};
use std::time::Duration;
use wayleave_scenario::Network;

const AGENTS: u64 = 100;
const SECONDS_MAX: f64 = 1.0;
const MICROS_PER_SECOND: f64 = 1_000_000.0;
/// Between two runs: long enough for the proxies to trust each other again.
const REST: Duration = Duration::from_secs(5);
/// The proxies, by number: where clients enter, the one that falls silent, the one with the other tunnels.
const INGRESS: usize = 0;
const SILENT: usize = 1;
const OTHER: usize = 2;

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    place.clear();
    let (site, runs) = (place.site()?, place.options.runs);
    // The namespace of the network is that of one thread, and ends with it.
    std::thread::scope(|scope| scope.spawn(|| in_network(site, runs)).join())
        .map_err(|_| anyhow!("a network of its own cannot be made: that takes root"))?
}

fn in_network(site: Site, runs: usize) -> Result<Findings> {
    eprintln!(
        "  starting Auth, three proxies, one of them on a host of its own, and {AGENTS} simulated agents"
    );
    let mut network = Network::enter();
    let host = network.host();
    let hub = (network.hub().address(), Vec::new());
    let places = [hub.clone(), (host.address(), host.prefix()), hub];
    let mut fleet = Fleet::start_on(site, AGENTS, &places)?;
    fleet.connect(SILENT, 0, AGENTS)?;
    fleet.connect(OTHER, 0, AGENTS)?;
    for proxy in [INGRESS, SILENT, OTHER] {
        fleet.sweep(proxy, 0, AGENTS)?;
    }
    let (mut calm, mut silent) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        calm.push(fleet.sweep(INGRESS, 0, AGENTS)?);
        network.hub().part_from(&[&host]);
        silent.push(fleet.sweep(INGRESS, 0, AGENTS)?);
        network.hub().meet(&[&host]);
        pause(REST);
        eprint!("\r  run {run} of {runs}");
    }
    eprintln!();
    let mut findings = Findings::default();
    for (name, reports) in [("a dial, all is well", &calm), ("a dial after the silence began", &silent)] {
        for (share, key) in [("p50", "p50_us"), ("p99", "p99_us")] {
            let samples = reports.iter().map(|report| Ok(number(report, key)? / MICROS_PER_SECOND));
            let samples = samples.collect::<Result<Vec<_>>>()?;
            findings.series.push(Series::new(format!("{name}, {share}"), "s", samples)?);
        }
    }
    let worst = findings.series.last().map_or(f64::NAN, |series| series.max);
    let what = "a dial after the silence began, worst p99".to_owned();
    findings.judgements.push(Judgement::at_most(what, worst, SECONDS_MAX).in_unit("s"));
    findings.notes.push(format!(
        "{AGENTS} agents with two tunnels each, one to the proxy that falls silent, none to the one that is entered. That \
         proxy is in a network namespace; all that it sends and is sent is lost without a word, and at once every agent is \
         dialled once, 32 at a time. {} s of rest between runs.",
        REST.as_secs()
    ));
    Ok(findings)
}
