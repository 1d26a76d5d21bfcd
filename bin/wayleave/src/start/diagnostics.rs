//! What the process as a whole shows on its diagnostics listener.

use super::Process;
use super::running::Keeper;
use anyhow::Context;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use wayleave_instance::{EventJournal, Instance};
use wayleave_keystore::public_client_config;
use wayleave_runtime::{Clock, SystemClock, TaskGroup};
use wayleave_telemetry::{
    Collector, Diagnostics, Finding, FindingSeverity, TraceExporter, TraceResource, register_process,
};
use wayleave_vocab::{NodeName, Wall};

/// Certificates renew when two thirds of their life have passed; by three quarters they should have.
const RENEWAL_OVERDUE: f64 = 0.75;
/// Open files above this share of the limit are worth a word.
const FILES_SHARE_MAX: f64 = 0.9;

/// Opens the listener, if one is configured. It ends with `helpers`: the state of a drain can be watched.
pub(crate) async fn start(process: &Process, helpers: &TaskGroup) -> anyhow::Result<()> {
    let diagnostics = &process.diagnostics;
    register_process(diagnostics, env!("CARGO_PKG_VERSION"));
    diagnostics.health.check(|| files().into_iter().collect());
    let (shutdown, findings) = (process.shutdown.clone(), "the process is ending");
    diagnostics.health.check(move || {
        let is_ending = shutdown.is_requested();
        is_ending.then(|| Finding::unready("ending", findings)).into_iter().collect()
    });
    let Some(address) = process.config.instance.diag_addr else { return Ok(()) };
    let listener = diagnostics.bind(address).await.context("the diagnostics listener")?;
    let bound: SocketAddr = listener.address().context("the address of the diagnostics listener")?;
    tracing::info!(address = %bound, "diagnostics: /metrics, /healthz, /readyz");
    if !bound.ip().is_loopback() {
        tracing::warn!(
            address = %bound,
            "the diagnostics listener has no login and is not on loopback: let only those reach it who watch"
        );
    }
    let shutdown = helpers.shutdown();
    helpers.spawn("diagnostics", listener.run(helpers.clone(), shutdown));
    Ok(())
}

/// Sends traces from now on, if a collector is configured, under the identity of this process.
pub(crate) fn trace(
    process: &Process,
    instance: &Instance,
    name: &NodeName,
    helpers: &TaskGroup,
) -> anyhow::Result<Diagnostics> {
    let mut diagnostics = process.diagnostics.clone();
    let Some(config) = &process.config.tracing else { return Ok(diagnostics) };
    let collector: Collector = config.exporter_url.parse().context("tracing_service.exporter_url")?;
    let resource = TraceResource {
        service: "wayleave",
        version: env!("CARGO_PKG_VERSION"),
        instance: instance.host_id().to_string(),
        host: name.to_string(),
    };
    let tls = public_client_config(None).context("tracing_service")?;
    let rate = config.sampling_rate_per_million;
    let (tracer, exporter) = TraceExporter::new(collector, rate, tls, resource, &diagnostics.metrics);
    helpers.spawn("traces", exporter.run(helpers.shutdown()));
    diagnostics.tracer = tracer;
    Ok(diagnostics)
}

/// Shows the identity of the process.
pub(crate) fn watch_identity(diagnostics: &Diagnostics, instance: &Arc<Instance>, clock: &Arc<SystemClock>) {
    let shown = instance.clone();
    let help = "Until when the certificates of this process hold, in seconds since 1970.";
    diagnostics.metrics.computed_gauge("wayleave_certificate_not_after_seconds", help, &[], move || {
        Some(Duration::from_secs(shown.validity().1.as_secs()).as_secs_f64())
    });
    let (instance, clock) = (instance.clone(), clock.clone());
    diagnostics.health.check(move || certificate(instance.validity(), clock.wall()).into_iter().collect());
}

fn certificate((issued, not_after): (Wall, Wall), now: Wall) -> Option<Finding> {
    if now >= not_after {
        let text = "the certificates of this process have run out and were not renewed: see the log for why Auth does \
                    not renew them, or join again with a new token";
        return Some(Finding::unready("certificate_expired", text));
    }
    let overdue = issued.after(not_after.since(issued).mul_f64(RENEWAL_OVERDUE));
    (now >= overdue).then(|| {
        let hours = not_after.since(now).as_secs() / 3600;
        let text = format!(
            "the certificates of this process end in {hours} h and were not renewed: Auth must answer"
        );
        Finding::degraded("certificate_expiring", text)
    })
}

/// Shows the journal of events.
pub(crate) fn watch_journal(diagnostics: &Diagnostics, events: &EventJournal, bytes_max: u64) {
    let shown = events.clone();
    let help = "Audit events that wait for Auth, in bytes on disk.";
    let bytes = |bytes: u64| u32::try_from(bytes).map_or(f64::MAX, f64::from);
    diagnostics
        .metrics
        .computed_gauge("audit_journal_bytes", help, &[], move || Some(bytes(shown.held_bytes())));
    let help = "Audit events that may wait, in bytes on disk; when they do, nobody is let in.";
    diagnostics.metrics.computed_gauge("audit_journal_bytes_max", help, &[], move || Some(bytes(bytes_max)));
    let events = events.clone();
    diagnostics.health.check(move || {
        let text = "the journal of audit events is full, so nobody is let in: Auth must take what waits";
        events.is_full().then(|| Finding::unready("journal_full", text)).into_iter().collect()
    });
}

/// Shows the policy that this process holds.
pub(crate) fn watch_policy(diagnostics: &Diagnostics, keeper: &Keeper, clock: &Arc<SystemClock>) {
    let revision = keeper.clone();
    let help = "The revision of the policy that this process holds.";
    diagnostics.metrics.computed_gauge("wayleave_policy_revision", help, &[], move || {
        Some(u32::try_from(revision.revision().counter).map_or(f64::MAX, f64::from))
    });
    let (age, clock) = (keeper.clone(), clock.clone());
    let help = "Age of Auth's last word on the policy.";
    diagnostics.metrics.computed_gauge("wayleave_policy_age_seconds", help, &[], move || {
        age.age(clock.wall()).map(|age| age.as_secs_f64())
    });
}

fn files() -> Option<Finding> {
    let open = wayleave_telemetry::open_files()?;
    let most = wayleave_telemetry::open_files_max()?;
    let number = |count: u64| u32::try_from(count).map_or(f64::MAX, f64::from);
    (number(open) > number(most) * FILES_SHARE_MAX).then(|| Finding {
        code: "files_short",
        severity: FindingSeverity::Degraded,
        detail: format!("{open} of {most} files are open: raise LimitNOFILE= of the unit"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(now_secs: u64, expected: Option<&str>) {
        let validity = (Wall::from_secs(1_000), Wall::from_secs(2_000));
        let found = certificate(validity, Wall::from_secs(now_secs));
        assert_eq!(found.map(|finding| finding.code), expected, "{now_secs}");
    }

    #[test]
    fn a_certificate_that_was_not_renewed_is_told_before_it_ends() {
        check(1_000, None);
        check(1_700, None);
        check(1_750, Some("certificate_expiring"));
        check(1_999, Some("certificate_expiring"));
        check(2_000, Some("certificate_expired"));
    }
}
