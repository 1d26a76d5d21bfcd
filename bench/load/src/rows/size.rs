//! Row 7: how big the programs are that people install.

use crate::place::Place;
use crate::report::{Findings, Judgement};
use crate::sample::Series;
use anyhow::{Context, Result};

const BYTES_PER_MB: f64 = 1_000_000.0;
const DAEMON_MAX_MB: f64 = 40.0;
const WAY_MAX_MB: f64 = 15.0;

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    let mut findings = Findings::default();
    for (program, goal) in [("wayleave", DAEMON_MAX_MB), ("way", WAY_MAX_MB)] {
        let path = place.options.bin_dir.join(program);
        let bytes = std::fs::metadata(&path).with_context(|| path.display().to_string())?.len();
        let megabytes = bytes as f64 / BYTES_PER_MB;
        findings.judgements.push(Judgement::at_most(program.to_owned(), megabytes, goal).in_unit("MB"));
        findings.series.push(Series::new(program, "MB", vec![megabytes])?);
    }
    findings.notes.push("As built; the release profile strips symbols. MB are 10^6 bytes.".to_owned());
    Ok(findings)
}
