//! Logs of a process: where they go, how much, and in which form.
//!
//! Libraries only emit (`tracing::info!`); a composition root calls [`init`] once. `WAYLEAVE_LOG` overrides
//! the configured severity with a filter (`debug`, `wayleave_proxy=trace,h2=info`). One event is one line
//! whatever peers put into it. A closed or full output loses lines and never stops the process. Audit events
//! are not logs: see `core/audit`.
//!
//! Beside the log a process shows numbers ([`Registry`]) and whether it can work ([`Health`]) on a listener for its
//! operators ([`Diagnostics`]), and sends traces to their collector ([`Tracer`]).

mod diagnostics;
mod error_watch;
mod exporter;
mod filter;
mod health;
mod line;
mod metrics;
mod otlp;
mod output;
mod process_stats;
mod setting;
mod trace;

pub use diagnostics::{Diagnostics, DiagnosticsListener};
pub use error_watch::ErrorWatch;
pub use exporter::{Collector, ParseCollectorError, TraceExporter};
pub use filter::FILTER_VARIABLE;
pub use health::{Finding, Health, Readiness, Severity as FindingSeverity, State};
pub use metrics::{Counter, Durations, Gauge, Held, Registry, SERIES_MAX, SeriesLabels};
pub use otlp::TraceResource;
pub use process_stats::{open_files, open_files_max, register_process};
pub use setting::{LogConfig, LogFormat, LogOutput, ParseLogSettingError, Severity};
pub use trace::{Span, SpanKind, Tracer, client_span, client_trace, span_id};

use output::Output;
use std::path::PathBuf;
use std::sync::Arc;
use tracing_subscriber::fmt::format::{JsonFields, format};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, fmt};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The file of [`LogOutput::File`] cannot be opened for appending.
    #[error("cannot open the log file {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The environment holds a filter that cannot be read.
    #[error("{FILTER_VARIABLE} is not a log filter such as \"debug\" or \"wayleave_proxy=trace,h2=info\"")]
    Filter {
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was set up before; it can be once in a process.
    #[error("logging is already set up")]
    AlreadySet,
}

/// Held for the life of the process; writes out what the system still buffers when it is dropped.
#[derive(Debug)]
#[must_use = "dropped at once it flushes before there is anything to flush"]
pub struct Guard {
    output: Arc<Output>,
}

impl Guard {
    /// How many lines could not be written since the start: the output is closed, or its disk is full.
    pub fn lines_lost(&self) -> u64 {
        self.output.lines_lost()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.output.flush();
    }
}

/// Sets up logging for this process, from `config` and the environment variable `WAYLEAVE_LOG`. Events of
/// libraries that use the `log` crate come along.
///
/// # Errors
/// See [`InitError`]; nothing is set up then.
pub fn init(config: &LogConfig) -> Result<Guard, InitError> {
    let filter_text = std::env::var_os(FILTER_VARIABLE).map(|text| text.to_string_lossy().into_owned());
    let filter = filter::build(config.severity, filter_text.as_deref())
        .map_err(|source| InitError::Filter { source })?;
    let output = Arc::new(Output::open(&config.output)?);
    tracing_subscriber::registry()
        .with(filter)
        .with(layer(config.format, Arc::clone(&output)))
        .try_init()
        .map_err(|_| InitError::AlreadySet)?;
    Ok(Guard { output })
}

fn layer<S>(log_format: LogFormat, output: Arc<Output>) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let base =
        fmt::layer().with_ansi(false).with_writer(output::LineWriters(output)).log_internal_errors(false);
    match log_format {
        LogFormat::Text => base.event_format(line::OneLine(format())).boxed(),
        LogFormat::Brief => {
            base.event_format(line::OneLine(format().without_time().with_target(false))).boxed()
        }
        LogFormat::Json => base
            .fmt_fields(JsonFields::new())
            .event_format(line::OneLine(format().json().flatten_event(true)))
            .boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn logged(format: LogFormat, emit: impl FnOnce()) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let output = Arc::new(Output::open(&LogOutput::File(path.clone())).unwrap());
        let subscriber = tracing_subscriber::registry().with(layer(format, output));
        tracing::subscriber::with_default(subscriber, emit);
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn text_has_time_level_target_spans_and_fields() {
        let lines = logged(LogFormat::Text, || {
            let span = tracing::info_span!("connection", id = 7);
            let _entered = span.enter();
            tracing::warn!(bytes = 3, "too short");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        let rest = " WARN connection{id=7}: wayleave_telemetry::tests: too short bytes=3";
        assert!(line.ends_with(rest) && line.starts_with("20"), "{line}");
    }

    #[test]
    fn brief_says_what_a_person_needs() {
        assert_eq!(logged(LogFormat::Brief, || tracing::info!("hello")), [" INFO hello"]);
    }

    #[test]
    fn json_is_one_flat_object_a_line() {
        let lines = logged(LogFormat::Json, || tracing::error!(user = "a\nb", "gone"));
        let [line] = &lines[..] else { panic!("{lines:?}") };
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&value["level"], &value["message"]), (&"ERROR".into(), &"gone".into()));
        assert_eq!(value["user"], "a\nb");
        assert!(value["timestamp"].is_string());
    }

    #[test]
    fn f_what_a_peer_sent_stays_on_its_line() {
        let hostile = "x\n2026-01-01T00:00:00Z ERROR forged\r\x1b[2J\u{9b}31m\u{202e}";
        for format in [LogFormat::Text, LogFormat::Brief, LogFormat::Json] {
            let lines = logged(format, || tracing::info!(name = %hostile, "{hostile}"));
            let [line] = &lines[..] else { panic!("{lines:?}") };
            assert!(!line.chars().any(char::is_control), "{format:?} {line:?}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let path = Path::new("/nonexistent/directory/log");
        let error = Output::open(&LogOutput::File(path.to_owned())).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/directory/log"), "{error}");
    }
}
