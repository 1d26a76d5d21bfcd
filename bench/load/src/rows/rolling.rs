//! Row 15: every proxy is restarted, one after another, under sessions and dials.

use crate::cluster::NODE;
use crate::daemon::{pause, wait_for};
use crate::fleet::Fleet;
use crate::loader::number;
use crate::place::Place;
use crate::report::{Findings, Judgement};
use crate::sample::Series;
use anyhow::Result;
use serde_json::Value;
use std::time::{Duration, Instant};

const PROXIES: usize = 3;
const TUNNELS: u16 = 2;
const AGENTS: u64 = 200;
/// Of both kinds together, a thousand.
const WAY_SESSIONS: u64 = 900;
const STOCK_SESSIONS: u64 = 100;
const DIALS_PER_SECOND: u64 = 500;
/// How often a line goes through each session.
const INTERVAL: Duration = Duration::from_secs(5);
/// Between two restarts, as somebody who looks whether all is well.
const REST: Duration = Duration::from_secs(5);
const MICROS_PER_MS: f64 = 1_000.0;

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    place.clear();
    eprintln!("  starting Auth, {PROXIES} proxies, an agent, {AGENTS} simulated ones and 1000 sessions");
    let mut site = place.site()?;
    (site.connections, site.shutdown_timeout) = (TUNNELS, "20s");
    let mut fleet = Fleet::start(site, AGENTS, PROXIES)?;
    let _agents = fleet.pool(0, AGENTS, TUNNELS)?;
    fleet.site.make_user("auth")?;
    let first = fleet.proxy(0)?.web;
    let _node = fleet.site.start_node(first)?;
    for number in 0..PROXIES {
        fleet.site.wait_reachable(fleet.proxy(number)?.web, NODE)?;
    }
    let site = &fleet.site;
    let way = format!(
        "{} -i {} ssh {}@{NODE} cat",
        site.bin_dir().join("way").display(),
        site.identity().display(),
        site.login
    );
    let stock = site.ssh(first, NODE)?;
    let stock: Vec<_> = std::iter::once(stock.get_program()).chain(stock.get_args()).collect();
    let stock = stock.join(std::ffi::OsStr::new(" ")).to_string_lossy().into_owned() + " cat";
    let mut sessions =
        [fleet.sessions(&way, WAY_SESSIONS, INTERVAL)?, fleet.sessions(&stock, STOCK_SESSIONS, INTERVAL)?];
    let mut probe = fleet.probe(AGENTS, DIALS_PER_SECOND)?;
    probe.line()?;
    pause(REST);
    let mut restarts = Vec::new();
    sessions.iter_mut().try_for_each(|sessions| sessions.tell("mark"))?;
    probe.tell("mark")?;
    for number in 0..PROXIES {
        let began = Instant::now();
        fleet.restart_proxy(number)?;
        wait_for("the proxy to reach every agent", || Ok(fleet.sweep(number, 0, AGENTS).ok()))?;
        restarts.push(began.elapsed().as_secs_f64());
        pause(REST);
        eprint!("\r  proxy {} of {PROXIES}", number + 1);
    }
    eprintln!();
    let dials = probe.finish()?;
    let [way, stock] = sessions;
    findings(&dials, &way.finish()?, &stock.finish()?, restarts)
}

fn findings(dials: &Value, way: &Value, stock: &Value, restarts: Vec<f64>) -> Result<Findings> {
    let mut findings = Findings { is_single: true, ..Findings::default() };
    findings.series.push(Series::new("restart of a proxy until it reaches every agent", "s", restarts)?);
    for (name, report) in
        [("a dial", dials), ("a line through `way ssh`", way), ("a line through `ssh`", stock)]
    {
        for (share, key) in [("p50", "p50_us"), ("p99", "p99_us"), ("longest", "max_us")] {
            let value = number(report, key)? / MICROS_PER_MS;
            findings.series.push(Series::new(format!("{name}, {share}"), "ms", vec![value])?);
        }
    }
    let lost = number(way, "failed")? + number(stock, "failed")?;
    let wrong = number(way, "wrong")? + number(stock, "wrong")?;
    findings.judgements = vec![
        Judgement::at_most("failed dials".to_owned(), number(dials, "failed")?, 0.0).in_unit("dials"),
        Judgement::at_most("lost sessions".to_owned(), lost, 0.0).in_unit("sessions"),
        Judgement::at_most("lines lost or changed".to_owned(), wrong, 0.0).in_unit("lines"),
    ];
    findings.notes.push(format!(
        "{WAY_SESSIONS} sessions of `way ssh` and {STOCK_SESSIONS} of stock `ssh` by `way proxy ssh`, each a process of its \
         own, on one agent with {TUNNELS} tunnels; a line of its own goes through each every {} s and must come back. {:.0} \
         dials at {DIALS_PER_SECOND} a second to {AGENTS} simulated agents, each by the first of {PROXIES} proxies that \
         answers. Each proxy is told to stop, drains, and is started again.",
        INTERVAL.as_secs(),
        number(dials, "done")?,
    ));
    findings.notes.push(
        "Sessions by the SSH port (`ssh -J`) cannot go on elsewhere: a proxy that stops waits for them, up to its drain \
         timeout. They are not among these; `tests/scenario/tests/ssh_jump.rs` has them."
            .to_owned(),
    );
    Ok(findings)
}
