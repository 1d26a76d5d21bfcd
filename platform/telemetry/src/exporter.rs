//! Sends spans to a collector: OTLP/HTTP with JSON, in batches, in its own task.

use crate::metrics::{Counter, Registry};
use crate::otlp::{TraceResource, body};
use crate::trace::{SpanRecord, Tracer};
use http::{Method, Request, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use wayleave_net::{BoxStream, connect_tcp, connect_tls};
use wayleave_runtime::Shutdown;
use wayleave_vocab::HostPort;

/// Spans of one request.
const BATCH_SPANS_MAX: usize = 512;
/// How long spans wait for others.
const GATHER_TIME: Duration = Duration::from_secs(2);
/// How long one request may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a batch is tried before it is dropped.
const ATTEMPTS_MAX: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const TRACES_PATH: &str = "/v1/traces";

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    address: HostPort,
    is_tls: bool,
    path: String,
}

/// An address of a collector that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{url:?} is no address of a collector: write http://HOST:4318 or https://HOST, with or without a path"
)]
pub struct ParseCollectorError {
    /// What was given.
    pub url: String,
}

impl std::str::FromStr for Collector {
    type Err = ParseCollectorError;

    fn from_str(url: &str) -> Result<Self, ParseCollectorError> {
        let bad = || ParseCollectorError { url: url.chars().take(200).collect() };
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let (is_tls, port) = match uri.scheme_str() {
            Some("http") => (false, 4318),
            Some("https") => (true, 443),
            _ => return Err(bad()),
        };
        let authority =
            uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(bad)?;
        let address = HostPort::parse(authority.as_str(), Some(port)).map_err(|_| bad())?;
        let path = match uri.path() {
            "" | "/" => TRACES_PATH.to_owned(),
            path => path.to_owned(),
        };
        Ok(Self { address, is_tls, path })
    }
}

/// The task that sends.
pub struct TraceExporter {
    collector: Collector,
    tls: Arc<ClientConfig>,
    resource: TraceResource,
    spans: mpsc::Receiver<SpanRecord>,
    exported: Counter,
    failed: Counter,
}

impl TraceExporter {
    /// A tracer that samples so many traces of a million, and the task that sends what it makes. `tls` is for `https`.
    pub fn new(
        collector: Collector,
        per_million: u32,
        tls: Arc<ClientConfig>,
        resource: TraceResource,
        registry: &Registry,
    ) -> (Tracer, Self) {
        let (tracer, spans) = Tracer::new(per_million, registry);
        let exported = registry.counter("traces_spans_exported_total", "Spans that the collector took.", &[]);
        let help = "Spans that the collector did not take.";
        let failed = registry.counter("traces_spans_failed_total", help, &[]);
        (tracer, Self { collector, tls, resource, spans, exported, failed })
    }

    /// Sends until shutdown, then what is left, once.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut is_failing = false;
        loop {
            let mut batch = Vec::new();
            if shutdown.until(self.spans.recv_many(&mut batch, BATCH_SPANS_MAX)).await.is_none() {
                while batch.len() < BATCH_SPANS_MAX
                    && let Ok(span) = self.spans.try_recv()
                {
                    batch.push(span);
                }
                if !batch.is_empty() {
                    let _ = self.export(&batch).await;
                }
                return;
            }
            if batch.is_empty() {
                return;
            }
            let gathering = async {
                while batch.len() < BATCH_SPANS_MAX {
                    let room = BATCH_SPANS_MAX.saturating_sub(batch.len());
                    if self.spans.recv_many(&mut batch, room).await == 0 {
                        return;
                    }
                }
            };
            let _ = shutdown.until(tokio::time::timeout(GATHER_TIME, gathering)).await;
            let sent = self.send(&batch, &shutdown).await;
            if let Err(reason) = &sent
                && !is_failing
            {
                tracing::warn!(collector = %self.collector.address, reason, "traces cannot be sent: they are dropped");
            }
            is_failing = sent.is_err();
        }
    }

    /// Sends one batch, trying again a few times.
    async fn send(&self, batch: &[SpanRecord], shutdown: &Shutdown) -> Result<(), String> {
        let mut last = String::new();
        for attempt in 0..ATTEMPTS_MAX {
            match self.export(batch).await {
                Ok(()) => return Ok(()),
                Err(reason) => last = reason,
            }
            let pause = RETRY_PAUSE * (attempt + 1);
            if shutdown.until(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
        self.failed.add(batch.len() as u64);
        Err(last)
    }

    async fn export(&self, batch: &[SpanRecord]) -> Result<(), String> {
        let sending = self.post(body(&self.resource, batch));
        let status = tokio::time::timeout(EXPORT_TIMEOUT, sending)
            .await
            .map_err(|_| format!("no answer within {} s", EXPORT_TIMEOUT.as_secs()))??;
        if !status.is_success() {
            return Err(format!("it says {status}"));
        }
        self.exported.add(batch.len() as u64);
        Ok(())
    }

    async fn post(&self, body: String) -> Result<http::StatusCode, String> {
        let Collector { address, is_tls, path } = &self.collector;
        let stream: BoxStream = match is_tls {
            true => Box::new(connect_tls(address, self.tls.clone()).await.map_err(|e| e.to_string())?),
            false => Box::new(connect_tcp(address).await.map_err(|e| e.to_string())?),
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        let asking = sender.send_request(request);
        tokio::pin!(connection);
        tokio::pin!(asking);
        tokio::select! {
            biased;
            answer = &mut asking => answer.map(|answer| answer.status()).map_err(|e| e.to_string()),
            ended = &mut connection => {
                ended.map_err(|e| e.to_string())?;
                asking.await.map(|answer| answer.status()).map_err(|e| e.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::SpanKind;
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use wayleave_runtime::TaskGroup;

    #[test]
    fn addresses_of_collectors_are_read_as_people_write_them() {
        let check = |url: &str, expected: Option<(&str, bool, &str)>| {
            let read = url.parse::<Collector>().ok();
            let read = read.as_ref().map(|c| (c.address.to_string(), c.is_tls, c.path.as_str()));
            assert_eq!(read, expected.map(|(a, t, p)| (a.to_owned(), t, p)), "{url}");
        };
        check("http://127.0.0.1:4318", Some(("127.0.0.1:4318", false, "/v1/traces")));
        check("http://otel.example.com", Some(("otel.example.com:4318", false, "/v1/traces")));
        check("https://otel.example.com/api/traces", Some(("otel.example.com:443", true, "/api/traces")));
        for bad in ["", "otel:4318", "grpc://otel:4317", "file:///tmp/x", "http://user:pw@otel", "http://"] {
            check(bad, None);
        }
    }

    fn resource() -> TraceResource {
        TraceResource { service: "wayleave", version: "1", instance: "i".to_owned(), host: "h".to_owned() }
    }

    fn no_tls() -> Arc<ClientConfig> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        Arc::new(config)
    }

    /// One request, answered with a status.
    async fn take(listener: &TcpListener, status: &str) -> (String, Value) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut received = Vec::new();
        let (head, length) = loop {
            received.push(stream.read_u8().await.unwrap());
            if received.ends_with(b"\r\n\r\n") {
                let head = String::from_utf8(received.clone()).unwrap().to_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                break (head.clone(), length.parse::<usize>().unwrap());
            }
        };
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        (head, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn spans_reach_a_collector_also_when_it_fails_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let registry = Registry::default();
        let (tracer, exporter) =
            TraceExporter::new(url.parse().unwrap(), 1_000_000, no_tls(), resource(), &registry);
        let (tasks, shutdown) = (TaskGroup::new(), Shutdown::new());
        tasks.spawn("traces", exporter.run(shutdown.clone()));
        let mut span = tracer.begin("dial", SpanKind::Server, [1; 16], [2; 8], None);
        span.set("wayleave.way", || "tunnel".to_owned());
        drop(span);
        let (head, refused) = take(&listener, "503 Service Unavailable").await;
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/json"));
        let (_, taken) = take(&listener, "200 OK").await;
        assert_eq!(refused, taken, "the batch is tried again");
        let span = &taken["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!((&span["name"], &span["kind"]), (&"dial".into(), &2.into()));
        drop(tracer.begin("last", SpanKind::Client, [1; 16], [3; 8], Some([2; 8])));
        shutdown.request();
        let (_, last) = take(&listener, "200 OK").await;
        assert_eq!(last["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["parentSpanId"], "0202020202020202");
        assert!(tasks.finish(Duration::from_secs(5)).await);
        assert!(registry.render().contains("traces_spans_exported_total 2\n"));
    }
}
