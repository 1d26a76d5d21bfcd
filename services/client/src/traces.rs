//! Spans of this client's dials, for the collector that the environment names.

use crate::output;
use std::sync::OnceLock;
use std::time::Duration;
use wayleave_keystore::public_client_config;
use wayleave_runtime::{TaskGroup, random_bytes};
use wayleave_telemetry::{Collector, Registry, Span, SpanKind, TraceExporter, TraceResource, Tracer};
use wayleave_telemetry::{client_span, client_trace, span_id};
use wayleave_vocab::TraceId;

/// OpenTelemetry's own names: the whole address, and the one that `/v1/traces` comes behind.
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// How long the end of a command waits for the collector.
const LAST_WORDS: Duration = Duration::from_secs(2);
const EVERY_TRACE: u32 = 1_000_000;
/// All clients are one process in the ids of spans: what is made where follows from the trace.
const CLIENT: [u8; 16] = [0; 16];

static TRACER: OnceLock<Tracer> = OnceLock::new();

/// One dial: the root of its trace, if there are traces.
pub(crate) struct Dial {
    pub(crate) trace: TraceId,
    span: Span,
}

/// Runs a command with what the environment says of traces.
pub(crate) async fn with_traces<T>(command: impl Future<Output = T>) -> T {
    let Some(exporter) = set_up() else { return command.await };
    let tasks = TaskGroup::new();
    tasks.spawn("traces", exporter.run(tasks.shutdown()));
    let output = command.await;
    tasks.shutdown().request();
    // What the collector has not taken by then is lost.
    let _taken = tasks.drained(LAST_WORDS).await;
    output
}

fn set_up() -> Option<TraceExporter> {
    let (name, url) = endpoint(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?;
    let refused = |reason: String| output::note(&format!("{name}: {reason}; no traces are sent"));
    let collector: Collector = url.parse().map_err(|error| refused(format!("{error}"))).ok()?;
    let tls = public_client_config(None).map_err(|error| refused(error.to_string())).ok()?;
    let resource = TraceResource {
        service: "way",
        version: env!("CARGO_PKG_VERSION"),
        instance: TraceId::from_random(random_bytes()).to_string(),
        host: String::new(),
    };
    let registry = Registry::default();
    let (tracer, exporter) = TraceExporter::new(collector, EVERY_TRACE, tls, resource, &registry);
    TRACER.set(tracer).ok().map(|()| exporter)
}

/// The variable that counts, and the address of the collector.
fn endpoint(variable: impl Fn(&str) -> Option<String>) -> Option<(&'static str, String)> {
    if let Some(whole) = variable(TRACES_ENDPOINT) {
        return Some((TRACES_ENDPOINT, whole));
    }
    let base = variable(ENDPOINT)?;
    Some((ENDPOINT, format!("{}/v1/traces", base.trim_end_matches('/'))))
}

impl Dial {
    /// Begins one.
    pub(crate) fn begin() -> Self {
        let random = TraceId::from_random(random_bytes());
        // With a collector, the id says that its root is here, and that every process takes part.
        let trace = TRACER.get().map_or(random, |_| TraceId::from_random(client_trace(*random.as_bytes())));
        let root = client_span(trace.as_bytes()).unwrap_or_default();
        let span = tracer().begin("way.dial", SpanKind::Client, *trace.as_bytes(), root, None);
        Self { trace, span }
    }

    /// Begins to connect to a proxy.
    pub(crate) fn connect(&self, number: usize) -> Span {
        let trace = *self.trace.as_bytes();
        let id = span_id(&trace, &CLIENT, &format!("connection {number}"));
        tracer().begin("way.connect", SpanKind::Client, trace, id, client_span(&trace))
    }

    /// It came to nothing.
    pub(crate) fn fail(&mut self, why: impl FnOnce() -> String) {
        self.span.fail(why);
    }
}

/// One that makes no spans where there is no collector.
fn tracer() -> Tracer {
    TRACER.get().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collector_is_where_the_standard_variables_say() {
        let with = |values: &[(&str, &str)]| {
            endpoint(|name| values.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).to_owned()))
                .map(|(_, url)| url)
        };
        assert_eq!(with(&[]), None);
        let base = with(&[(ENDPOINT, "http://collector:4318/")]);
        assert_eq!(base.as_deref(), Some("http://collector:4318/v1/traces"));
        let both = with(&[(ENDPOINT, "http://other"), (TRACES_ENDPOINT, "https://collector/in")]);
        assert_eq!(both.as_deref(), Some("https://collector/in"));
    }

    #[test]
    fn without_a_collector_a_dial_has_a_trace_id_and_no_more() {
        let (one, other) = (Dial::begin(), Dial::begin());
        assert_ne!(one.trace, other.trace);
        drop(one.connect(0));
    }
}
