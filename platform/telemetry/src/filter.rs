//! Which events are written.

use crate::setting::Severity;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The environment variable that overrides the configured severity.
pub const FILTER_VARIABLE: &str = "WAYLEAVE_LOG";

/// Libraries whose lower severities tell about packets, not about Wayleave. Naming one in the variable lifts
/// its cap.
const CAPPED_TARGETS: [&str; 11] = [
    "h2",
    "hyper",
    "hyper_util",
    "log",
    "mio",
    "rustls",
    "tokio_tungstenite",
    "tokio_util",
    "tonic",
    "tower",
    "tungstenite",
];

/// Later directives win over earlier ones for the same target, so what a person asked for comes last.
pub(crate) fn build(severity: Severity, asked_for: Option<&str>) -> Result<EnvFilter, ParseError> {
    let cap = severity.min(Severity::Warn).directive();
    let mut directives = severity.directive().to_owned();
    for target in CAPPED_TARGETS {
        directives.push_str(&format!(",{target}={cap}"));
    }
    if let Some(asked_for) = asked_for.filter(|text| !text.trim().is_empty()) {
        directives.push(',');
        directives.push_str(asked_for);
    }
    EnvFilter::try_new(directives)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorWatch;
    use tracing_subscriber::prelude::*;

    fn check(severity: Severity, asked_for: Option<&str>, expected: &[&str]) {
        let watch = ErrorWatch::for_every_severity();
        let filter = build(severity, asked_for).unwrap();
        let subscriber = tracing_subscriber::registry().with(filter).with(watch.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "wayleave_proxy", "own error");
            tracing::info!(target: "wayleave_proxy", "own info");
            tracing::debug!(target: "wayleave_proxy", "own debug");
            tracing::warn!(target: "h2::codec", "h2 warn");
            tracing::debug!(target: "h2::codec", "h2 debug");
        });
        assert_eq!(watch.errors(), expected, "{severity:?} {asked_for:?}");
    }

    #[test]
    fn the_variable_overrides_and_noisy_libraries_are_capped() {
        check(Severity::Info, None, &["own error", "own info", "h2 warn"]);
        check(Severity::Info, Some(""), &["own error", "own info", "h2 warn"]);
        check(Severity::Error, None, &["own error"]);
        check(Severity::Error, Some("debug"), &["own error", "own info", "own debug"]);
        check(Severity::Info, Some("wayleave_proxy=off,h2=debug"), &["h2 warn", "h2 debug"]);
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_refused() {
        assert!(build(Severity::Info, Some("wayleave_proxy=loud")).is_err());
    }
}
