//! Traces: spans of what happens to one connection, for the operators' collector.
//!
//! The trace id is the one that every dial request carries. A span's own id follows from it and from where the span is
//! made ([`span_id`]), so that a process knows its parent's id without being told, and nothing travels for the sake of
//! tracing. Whether a trace is sampled follows from its id too: every process decides alike. A span that is not sampled
//! costs a comparison; one that is goes into a bounded queue or is dropped and counted, and nobody waits.

use crate::metrics::{Counter, Registry};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

/// Spans that wait to be sent; more are dropped.
pub(crate) const QUEUE_SPANS_MAX: usize = 4096;
/// Attributes of one span.
const ATTRIBUTES_MAX: usize = 16;

/// On which side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// It serves.
    Server,
    /// It asks.
    Client,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Failed(String),
}

/// A span that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpanRecord {
    pub(crate) trace: [u8; 16],
    pub(crate) id: [u8; 8],
    pub(crate) parent: Option<[u8; 8]>,
    pub(crate) name: &'static str,
    pub(crate) kind: SpanKind,
    pub(crate) began: SystemTime,
    pub(crate) took: Duration,
    pub(crate) attributes: Vec<(&'static str, String)>,
    pub(crate) outcome: Outcome,
}

/// Makes spans. Clones share the queue.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    per_million: u64,
    queue: mpsc::Sender<SpanRecord>,
    dropped: Counter,
}

impl Tracer {
    /// One that samples so many traces of a million, and where its spans come out.
    pub(crate) fn new(per_million: u32, registry: &Registry) -> (Self, mpsc::Receiver<SpanRecord>) {
        let (queue, spans) = mpsc::channel(QUEUE_SPANS_MAX);
        let help = "Spans that were dropped, because more came than the collector takes.";
        let dropped = registry.counter("traces_spans_dropped_total", help, &[]);
        let inner = Inner { per_million: u64::from(per_million), queue, dropped };
        (Self(Some(Arc::new(inner))), spans)
    }

    /// One that makes none.
    pub fn off() -> Self {
        Self(None)
    }

    /// Begins a span, which ends when it is dropped.
    pub fn begin(
        &self,
        name: &'static str,
        kind: SpanKind,
        trace: [u8; 16],
        id: [u8; 8],
        parent: Option<[u8; 8]>,
    ) -> Span {
        let sampled = self.0.as_ref().filter(|inner| is_sampled(&trace, inner.per_million));
        Span(sampled.map(|inner| {
            let record = SpanRecord {
                trace,
                id,
                parent,
                name,
                kind,
                began: SystemTime::now(),
                took: Duration::ZERO,
                attributes: Vec::new(),
                outcome: Outcome::Ok,
            };
            Box::new(Running { record, began: Instant::now(), inner: inner.clone() })
        }))
    }
}

/// A span under way.
#[must_use = "dropped at once it lasts no time"]
pub struct Span(Option<Box<Running>>);

struct Running {
    record: SpanRecord,
    began: Instant,
    inner: Arc<Inner>,
}

impl Span {
    /// Says something about it; the value is only made when somebody will see it.
    pub fn set(&mut self, name: &'static str, value: impl FnOnce() -> String) {
        if let Some(running) = &mut self.0
            && running.record.attributes.len() < ATTRIBUTES_MAX
        {
            running.record.attributes.push((name, value()));
        }
    }

    /// It did not work.
    pub fn fail(&mut self, why: impl FnOnce() -> String) {
        if let Some(running) = &mut self.0 {
            running.record.outcome = Outcome::Failed(why());
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(running) = self.0.take() else { return };
        let Running { mut record, began, inner } = *running;
        record.took = began.elapsed();
        if inner.queue.try_send(record).is_err() {
            inner.dropped.increment();
        }
    }
}

/// The id of a span: it follows from the trace, the process and the part of the work.
pub fn span_id(trace: &[u8; 16], process: &[u8; 16], part: &str) -> [u8; 8] {
    // FNV-1a: the same in every release and process, which the standard library's hash is not.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in trace.iter().chain(process).chain(part.as_bytes()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // An id of zeros is none.
    hash.max(1).to_be_bytes()
}

/// The id of a trace that a client begins, from a random one: every process samples it, and its root is the client's
/// ([`client_span`]). One of a million other ids looks the same.
pub fn client_trace(random: [u8; 16]) -> [u8; 16] {
    let mut trace = random;
    let (_, low) = trace.split_at_mut(8);
    let number = number_of(&random);
    low.copy_from_slice(&(number - number % MILLION).to_be_bytes());
    trace
}

/// The root of a trace that a client has begun; none of other traces, which begin at the ingress proxy.
pub fn client_span(trace: &[u8; 16]) -> Option<[u8; 8]> {
    number_of(trace).is_multiple_of(MILLION).then(|| span_id(trace, &[0; 16], "client"))
}

const MILLION: u64 = 1_000_000;

fn number_of(trace: &[u8; 16]) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = *trace;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn is_sampled(trace: &[u8; 16], per_million: u64) -> bool {
    number_of(trace) % MILLION < per_million
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_samples_the_same_traces() {
        let sampled = |per_million| {
            let traces = (0..10_000u64).map(|n| {
                let mut trace = [0; 16];
                trace[8..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
                trace
            });
            traces.filter(|trace| is_sampled(trace, per_million)).count()
        };
        assert_eq!((sampled(0), sampled(1_000_000)), (0, 10_000));
        let half = sampled(500_000);
        assert!((4_500..5_500).contains(&half), "{half}");
    }

    #[test]
    fn a_trace_of_a_client_is_sampled_by_all_who_sample_any() {
        for n in 1..1_000u64 {
            let mut random = [7; 16];
            random[8..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            let trace = client_trace(random);
            assert!(is_sampled(&trace, 1) && !is_sampled(&trace, 0));
            assert!(client_span(&trace).is_some() && client_span(&random).is_none());
            assert_eq!(trace[..8], random[..8]);
        }
    }

    #[test]
    fn ids_differ_by_trace_process_and_part() {
        let ids = [
            span_id(&[1; 16], &[2; 16], "dial"),
            span_id(&[1; 16], &[2; 16], "stream"),
            span_id(&[1; 16], &[3; 16], "dial"),
            span_id(&[4; 16], &[2; 16], "dial"),
        ];
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
        assert_eq!(ids[0], span_id(&[1; 16], &[2; 16], "dial"));
    }

    #[tokio::test]
    async fn a_full_queue_drops_spans_and_delays_nobody() {
        let registry = Registry::default();
        let (tracer, mut spans) = Tracer::new(1_000_000, &registry);
        for _ in 0..QUEUE_SPANS_MAX + 5 {
            drop(tracer.begin("dial", SpanKind::Server, [1; 16], [1; 8], None));
        }
        assert!(registry.render().contains("traces_spans_dropped_total 5\n"));
        assert_eq!(spans.recv().await.unwrap().name, "dial");
        let mut span = Tracer::off().begin("dial", SpanKind::Server, [1; 16], [1; 8], None);
        span.set("never", || panic!("nobody sees it"));
    }
}
