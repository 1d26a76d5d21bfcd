//! What is said of an audit log that was verified.

use crate::cli::write_out;
use anyhow::bail;
use serde::Serialize;
use wayleave_auth::AuditVerdict;

/// How it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum VerdictFormat {
    Text,
    Json,
}

/// For programs. What only one of both verdicts has is absent in the other.
#[derive(Debug, Default, Serialize)]
struct Report {
    cluster: String,
    is_whole: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_fault: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoints: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries_after_last_checkpoint: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_checkpoint_seconds: Option<u64>,
}

/// The text of a log that is whole. A broken one is printed in JSON, and is an error either way.
pub(super) fn say(verdict: &AuditVerdict, format: VerdictFormat) -> anyhow::Result<String> {
    let report = report(verdict);
    let json = || serde_json::to_string_pretty(&report).map(|text| format!("{text}\n"));
    match (&report.first_fault, format) {
        (None, VerdictFormat::Json) => Ok(json()?),
        (None, VerdictFormat::Text) => Ok(text(&report)),
        (Some(fault), format) => {
            if format == VerdictFormat::Json {
                write_out(&json()?)?;
            }
            bail!("the audit log of the cluster {} is not whole: {fault}", report.cluster)
        }
    }
}

fn report(verdict: &AuditVerdict) -> Report {
    let cluster = verdict.cluster.to_string();
    let last_checkpoint_seconds = verdict.last_checkpoint.map(|time| time.as_secs());
    match &verdict.log {
        Ok(verified) => Report {
            cluster,
            is_whole: true,
            first_fault: None,
            entries: Some(verified.chain.length),
            last_hash: Some(verified.chain.last.to_string()),
            checkpoints: Some(verified.checkpoints),
            entries_after_last_checkpoint: Some(verified.uncovered),
            last_checkpoint_seconds,
        },
        Err(fault) => Report {
            cluster,
            first_fault: Some(fault.to_string()),
            last_checkpoint_seconds,
            ..Report::default()
        },
    }
}

fn text(report: &Report) -> String {
    let Report { cluster, entries, last_hash, checkpoints, entries_after_last_checkpoint, .. } = report;
    format!(
        "The audit log of the cluster {cluster} is whole.\n\
         entries: {}\nlast hash: {}\nsigned checkpoints: {}\nentries after the last checkpoint: {}\n",
        entries.unwrap_or_default(),
        last_hash.as_deref().unwrap_or_default(),
        checkpoints.unwrap_or_default(),
        entries_after_last_checkpoint.unwrap_or_default(),
    )
}
