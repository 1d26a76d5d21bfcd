//! Rows 1 and 2: a command on a node, from nothing to its exit code.

use crate::cluster::NODE;
use crate::place::{Field, Place};
use crate::report::{Findings, Judgement};
use crate::sample::{Series, take_turns};
use crate::watched;
use anyhow::Result;
use std::process::Command;

const PEERED: &str = "ssh via way proxy ssh, peered";
const ONE_HOP: &str = "ssh via way proxy ssh, one hop";
const WAY_PEERED: &str = "way ssh, peered";
const WAY_ONE_HOP: &str = "way ssh, one hop";
const JUMPED: &str = "ssh -J jump";
const DIRECT: &str = "ssh direct";

/// Ratios that rows 1 and 2 may not exceed.
const STOCK_TO_JUMP_MAX: f64 = 0.6;
const STOCK_TO_DIRECT_MAX: f64 = 1.0;
const WAY_TO_JUMP_MAX: f64 = 0.2;

pub(super) fn stock(place: &mut Place<'_>) -> Result<Findings> {
    let series = measure(place, &[PEERED, ONE_HOP, JUMPED, DIRECT])?;
    let mut findings = Findings::default();
    findings.judgements.extend([
        Judgement::at_most(format!("{PEERED} / {JUMPED}"), series.ratio(PEERED, JUMPED)?, STOCK_TO_JUMP_MAX),
        Judgement::at_most(
            format!("{PEERED} / {DIRECT}"),
            series.ratio(PEERED, DIRECT)?,
            STOCK_TO_DIRECT_MAX,
        ),
    ]);
    Ok(findings.with(series.0))
}

pub(super) fn way(place: &mut Place<'_>) -> Result<Findings> {
    let series = measure(place, &[WAY_PEERED, WAY_ONE_HOP, JUMPED, DIRECT])?;
    let mut findings = Findings::default();
    findings.judgements.extend([Judgement::at_most(
        format!("{WAY_PEERED} / {JUMPED}"),
        series.ratio(WAY_PEERED, JUMPED)?,
        WAY_TO_JUMP_MAX,
    )]);
    Ok(findings.with(series.0))
}

struct Contenders(Vec<Series>);

impl Contenders {
    fn ratio(&self, ours: &str, theirs: &str) -> Result<f64> {
        crate::report::ratio(&self.0, ours, theirs)
    }
}

fn measure(place: &mut Place<'_>, contenders: &[&'static str]) -> Result<Contenders> {
    let runs = place.options.runs;
    let field = place.field()?;
    let times = take_turns(contenders, runs, |contender| {
        let wall = watched::time(command(field, contender)?.arg("true"))?;
        // What the run before leaves to be cleaned up is not the next one's.
        field.peered.node.wait_alone()?;
        field.openssh.target.wait_alone()?;
        field.openssh.jump.wait_alone()?;
        Ok(wall.as_secs_f64() * 1_000.0)
    })?;
    let series = contenders.iter().zip(times).map(|(name, times)| Series::new(*name, "ms", times));
    Ok(Contenders(series.collect::<Result<_>>()?))
}

fn command(field: &Field, contender: &str) -> Result<Command> {
    let (site, ingress, home) = (&field.peered.site, field.peered.ingress().web, field.peered.home().web);
    match contender {
        PEERED => site.ssh(ingress, NODE),
        ONE_HOP => site.ssh(home, NODE),
        WAY_PEERED => Ok(site.way_ssh(ingress, NODE)),
        WAY_ONE_HOP => Ok(site.way_ssh(home, NODE)),
        JUMPED => Ok(field.openssh.jumped()),
        _ => Ok(field.openssh.direct()),
    }
}
