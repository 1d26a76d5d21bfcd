//! Spans as OTLP/HTTP with JSON (opentelemetry-proto 1.x, `ExportTraceServiceRequest`), and the request that carries them.

use crate::trace::{Outcome, SpanKind, SpanRecord};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// What every span of a process has in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceResource {
    /// `service.name`.
    pub service: &'static str,
    /// `service.version`.
    pub version: &'static str,
    /// `service.instance.id`: the host id.
    pub instance: String,
    /// `host.name`.
    pub host: String,
}

/// The body of one export.
pub(crate) fn body(resource: &TraceResource, spans: &[SpanRecord]) -> String {
    let attributes = json!([
        attribute("service.name", resource.service),
        attribute("service.version", resource.version),
        attribute("service.instance.id", &resource.instance),
        attribute("host.name", &resource.host),
    ]);
    let spans: Vec<Value> = spans.iter().map(span).collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": attributes},
        "scopeSpans": [{"scope": {"name": "wayleave", "version": resource.version}, "spans": spans}],
    }]})
    .to_string()
}

fn span(record: &SpanRecord) -> Value {
    let kind = match record.kind {
        SpanKind::Server => 2,
        SpanKind::Client => 3,
    };
    let status = match &record.outcome {
        Outcome::Ok => json!({"code": 1}),
        Outcome::Failed(message) => json!({"code": 2, "message": message}),
    };
    let attributes: Vec<Value> =
        record.attributes.iter().map(|(name, value)| attribute(name, value)).collect();
    let mut span = json!({
        "traceId": hex(&record.trace),
        "spanId": hex(&record.id),
        "name": record.name,
        "kind": kind,
        "startTimeUnixNano": nanoseconds(record.began),
        "endTimeUnixNano": nanoseconds(record.began + record.took),
        "attributes": attributes,
        "status": status,
    });
    if let Some(parent) = record.parent {
        span["parentSpanId"] = Value::String(hex(&parent));
    }
    span
}

fn attribute(name: &str, value: &str) -> Value {
    json!({"key": name, "value": {"stringValue": value}})
}

/// 64-bit numbers are texts in the JSON of protobuf.
fn nanoseconds(at: SystemTime) -> String {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_span_looks_as_collectors_read_it() {
        let resource = TraceResource {
            service: "wayleave",
            version: "1.2.3",
            instance: "id".to_owned(),
            host: "proxy-1".to_owned(),
        };
        let record = SpanRecord {
            trace: [0xab; 16],
            id: [1; 8],
            parent: Some([2; 8]),
            name: "dial",
            kind: SpanKind::Server,
            began: UNIX_EPOCH + Duration::from_secs(1),
            took: Duration::from_millis(5),
            attributes: vec![("wayleave.way", "tunnel".to_owned())],
            outcome: Outcome::Failed("offline".to_owned()),
        };
        let expected = json!({"resourceSpans": [{
            "resource": {"attributes": [
                {"key": "service.name", "value": {"stringValue": "wayleave"}},
                {"key": "service.version", "value": {"stringValue": "1.2.3"}},
                {"key": "service.instance.id", "value": {"stringValue": "id"}},
                {"key": "host.name", "value": {"stringValue": "proxy-1"}},
            ]},
            "scopeSpans": [{"scope": {"name": "wayleave", "version": "1.2.3"}, "spans": [{
                "traceId": "abababababababababababababababab",
                "spanId": "0101010101010101",
                "parentSpanId": "0202020202020202",
                "name": "dial",
                "kind": 2,
                "startTimeUnixNano": "1000000000",
                "endTimeUnixNano": "1005000000",
                "attributes": [{"key": "wayleave.way", "value": {"stringValue": "tunnel"}}],
                "status": {"code": 2, "message": "offline"},
            }]}],
        }]});
        let written: Value = serde_json::from_str(&body(&resource, &[record])).unwrap();
        assert_eq!(written, expected);
    }
}
