//! Row 5: from the start of the program to its last port being open.

use crate::cluster::{ALL_ROLES, AllRoles};
use crate::place::Place;
use crate::report::{Findings, Judgement};
use crate::sample::Series;
use anyhow::Result;
use std::time::{Duration, Instant};

const START_MAX_MS: f64 = 150.0;
/// Between two attempts to connect: short beside what is measured, long enough to leave the core to the program.
const LOOK: Duration = Duration::from_micros(250);

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    place.clear();
    let runs = place.options.runs;
    let all_roles = AllRoles::new(place.site()?)?;
    all_roles.start()?.stop()?;
    let (mut listening, mut reachable) = (Vec::new(), Vec::new());
    // The first start warms up and does not count.
    for run in 0..=runs {
        let started = Instant::now();
        let mut daemon = all_roles.site.start(ALL_ROLES)?;
        daemon.wait_listening(&all_roles.addresses, LOOK)?;
        let listening_ms = started.elapsed().as_secs_f64() * 1_000.0;
        all_roles.wait_reachable()?;
        let reachable_ms = started.elapsed().as_secs_f64() * 1_000.0;
        daemon.stop()?;
        if run > 0 {
            listening.push(listening_ms);
            reachable.push(reachable_ms);
        }
    }
    let listening = Series::new("wayleave start, every port open", "ms", listening)?;
    let mut findings = Findings::default();
    findings
        .judgements
        .push(Judgement::at_most(listening.name.clone(), listening.median, START_MAX_MS).in_unit("ms"));
    findings.notes.push(
        "Ports: Auth, web, SSH and peering. The second series ends with the first `ssh node true` that succeeds, its \
         own time included, and has no goal."
            .to_owned(),
    );
    let reachable = Series::new("wayleave start, first ssh through its own proxy done", "ms", reachable)?;
    Ok(findings.with(vec![listening, reachable]))
}
