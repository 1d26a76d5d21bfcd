//! Metrics of a process, and their text for Prometheus.
//!
//! A metric is registered once, by whoever counts, and then costs an atomic operation. What is known anyway (how many
//! tunnels there are) is asked for when somebody reads, see [`Registry::computed_gauge`]. Label values are from closed
//! sets, never names of users, nodes or addresses: a scrape stays as long as it is, however large the cluster.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most series of one process; what is registered beyond counts for nobody.
pub const SERIES_MAX: usize = 2_000;
/// Upper bounds, in microseconds, of the buckets in which durations are counted.
const BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 15_000_000,
];

/// Labels of one series: names and values of closed sets.
pub type SeriesLabels<'a> = &'a [(&'static str, &'a str)];

/// A number that only rises.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Some more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Counts one until what is returned is dropped.
    #[must_use = "dropped at once it counts nothing"]
    pub fn hold(&self) -> Held {
        self.0.fetch_add(1, Ordering::Relaxed);
        Held(self.clone())
    }

    /// Sets the number.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One that a [`Gauge`] counts.
#[derive(Debug)]
pub struct Held(Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How often something took how long.
#[derive(Debug, Clone, Default)]
pub struct Durations(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Durations {
    /// Something took that long.
    pub fn observe(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.iter().zip(&self.0.counts).find(|(bound, _)| took_us <= **bound);
        if let Some((_, count)) = bucket {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.0.sum_us.fetch_add(took_us, Ordering::Relaxed);
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Something began then and has just ended.
    pub fn observe_since(&self, began: Instant) {
        self.observe(began.elapsed());
    }

    /// How often something was observed.
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }
}

/// All metrics of a process. Clones are the same registry.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Vec<Family>>>);

struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    series: Vec<Series>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

struct Series {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

enum Value {
    Counter(Counter),
    Gauge(Gauge),
    Durations(Durations),
    Computed(Computation),
}

/// Asked for each time somebody reads; `None` while there is nothing to tell.
type Computation = Arc<dyn Fn() -> Option<f64> + Send + Sync>;

impl Registry {
    /// A counter. Its name ends with `_total`. Registered again it is the same one.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: SeriesLabels<'_>) -> Counter {
        let made = Value::Counter(Counter::default());
        match self.register(name, help, Kind::Counter, labels, made) {
            Value::Counter(counter) => counter,
            _ => Counter::default(),
        }
    }

    /// A gauge that is set.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: SeriesLabels<'_>) -> Gauge {
        match self.register(name, help, Kind::Gauge, labels, Value::Gauge(Gauge::default())) {
            Value::Gauge(gauge) => gauge,
            _ => Gauge::default(),
        }
    }

    /// Durations, counted in buckets. The name ends with `_seconds`.
    pub fn durations(&self, name: &'static str, help: &'static str, labels: SeriesLabels<'_>) -> Durations {
        let made = Value::Durations(Durations::default());
        match self.register(name, help, Kind::Histogram, labels, made) {
            Value::Durations(durations) => durations,
            _ => Durations::default(),
        }
    }

    /// A gauge that is asked for when somebody reads. Registered again, the newer computation counts.
    pub fn computed_gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: SeriesLabels<'_>,
        compute: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        self.replace(name, help, Kind::Gauge, labels, Arc::new(compute));
    }

    /// The same for a number that only rises.
    pub fn computed_counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: SeriesLabels<'_>,
        compute: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        self.replace(name, help, Kind::Counter, labels, Arc::new(compute));
    }

    /// Everything, in the text format 0.0.4 of Prometheus.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for family in self.lock().iter() {
            family.render(&mut text);
        }
        text
    }

    /// The names of all metrics and what they mean, in order.
    pub fn names(&self) -> Vec<(&'static str, &'static str)> {
        let mut names: Vec<_> = self.lock().iter().map(|family| (family.name, family.help)).collect();
        names.sort_unstable();
        names
    }

    fn register(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: SeriesLabels<'_>,
        made: Value,
    ) -> Value {
        let mut families = self.lock();
        let Some(series) = find(&mut families, name, help, kind, labels) else { return made };
        match series {
            Found::Known(series) => series.value.share(),
            Found::New(list) => {
                list.push(Series { labels: owned(labels), value: made.share() });
                made
            }
        }
    }

    fn replace(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: SeriesLabels<'_>,
        compute: Computation,
    ) {
        let value = Value::Computed(compute);
        let mut families = self.lock();
        match find(&mut families, name, help, kind, labels) {
            Some(Found::Known(series)) => series.value = value,
            Some(Found::New(list)) => list.push(Series { labels: owned(labels), value }),
            None => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Family>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Found<'a> {
    Known(&'a mut Series),
    New(&'a mut Vec<Series>),
}

/// Where a series is or belongs; nowhere once there are too many, or when the name is one of another kind.
fn find<'a>(
    families: &'a mut Vec<Family>,
    name: &'static str,
    help: &'static str,
    kind: Kind,
    labels: SeriesLabels<'_>,
) -> Option<Found<'a>> {
    let count: usize = families.iter().map(|family| family.series.len()).sum();
    let index = families.iter().position(|family| family.name == name).unwrap_or_else(|| {
        families.push(Family { name, help, kind, series: Vec::new() });
        families.len().saturating_sub(1)
    });
    let family = families.get_mut(index).filter(|family| family.kind == kind)?;
    let is_same = |series: &Series| {
        series.labels.len() == labels.len()
            && series.labels.iter().zip(labels).all(|(own, other)| own.0 == other.0 && own.1 == other.1)
    };
    match family.series.iter().position(is_same) {
        Some(index) => family.series.get_mut(index).map(Found::Known),
        None if count >= SERIES_MAX => None,
        None => Some(Found::New(&mut family.series)),
    }
}

fn owned(labels: SeriesLabels<'_>) -> Vec<(&'static str, String)> {
    labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

impl Value {
    fn share(&self) -> Self {
        match self {
            Self::Counter(counter) => Self::Counter(counter.clone()),
            Self::Gauge(gauge) => Self::Gauge(gauge.clone()),
            Self::Durations(durations) => Self::Durations(durations.clone()),
            Self::Computed(compute) => Self::Computed(compute.clone()),
        }
    }
}

impl Family {
    fn render(&self, text: &mut String) {
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {kind}", self.name, self.help, self.name);
        for series in &self.series {
            series.render(self.name, text);
        }
    }
}

impl Series {
    fn render(&self, name: &str, text: &mut String) {
        let labels = self.labels_with(None);
        let _ = match &self.value {
            Value::Counter(counter) => writeln!(text, "{name}{labels} {}", counter.get()),
            Value::Gauge(gauge) => writeln!(text, "{name}{labels} {}", gauge.get()),
            Value::Computed(compute) => match compute() {
                Some(value) => writeln!(text, "{name}{labels} {value}"),
                None => Ok(()),
            },
            Value::Durations(durations) => {
                self.render_durations(name, durations, text);
                Ok(())
            }
        };
    }

    fn render_durations(&self, name: &str, durations: &Durations, text: &mut String) {
        // Read before the buckets: the whole is never less than its parts.
        let buckets: Vec<u64> =
            durations.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let all = durations.count();
        let mut below = 0u64;
        for (bound_us, count) in BOUNDS_US.iter().zip(buckets) {
            below = below.saturating_add(count);
            let bound = seconds(*bound_us).to_string();
            let _ = writeln!(text, "{name}_bucket{} {below}", self.labels_with(Some(&bound)));
        }
        let labels = self.labels_with(None);
        let _ = writeln!(text, "{name}_bucket{} {}", self.labels_with(Some("+Inf")), all.max(below));
        let _ = writeln!(text, "{name}_sum{labels} {}", seconds(durations.0.sum_us.load(Ordering::Relaxed)));
        let _ = writeln!(text, "{name}_count{labels} {}", all.max(below));
    }

    fn labels_with(&self, bound: Option<&str>) -> String {
        let own = self.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
        let all: Vec<String> = own.chain(bound.map(|bound| format!("le=\"{bound}\""))).collect();
        if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
    }
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let registry = Registry::default();
        registry.counter("dials_total", "Dials.", &[("way", "tunnel"), ("result", "ok")]).add(3);
        registry.gauge("tunnels", "Tunnels.", &[]).set(-2);
        registry.computed_gauge("age_seconds", "Age.", &[], || Some(1.5));
        registry.computed_gauge("nothing", "Nothing.", &[], || None);
        let expected = "# HELP dials_total Dials.\n# TYPE dials_total counter\n\
             dials_total{way=\"tunnel\",result=\"ok\"} 3\n\
             # HELP tunnels Tunnels.\n# TYPE tunnels gauge\ntunnels -2\n\
             # HELP age_seconds Age.\n# TYPE age_seconds gauge\nage_seconds 1.5\n\
             # HELP nothing Nothing.\n# TYPE nothing gauge\n";
        assert_eq!(registry.render(), expected);
    }

    #[test]
    fn durations_fall_into_buckets_that_add_up() {
        let registry = Registry::default();
        let durations = registry.durations("took_seconds", "Time.", &[("way", "x")]);
        for took_ms in [1, 3, 20_000] {
            durations.observe(Duration::from_millis(took_ms));
        }
        let text = registry.render();
        for line in [
            "took_seconds_bucket{way=\"x\",le=\"0.0005\"} 0",
            "took_seconds_bucket{way=\"x\",le=\"0.001\"} 1",
            "took_seconds_bucket{way=\"x\",le=\"0.005\"} 2",
            "took_seconds_bucket{way=\"x\",le=\"15\"} 2",
            "took_seconds_bucket{way=\"x\",le=\"+Inf\"} 3",
            "took_seconds_sum{way=\"x\"} 20.004",
            "took_seconds_count{way=\"x\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn a_series_that_is_registered_again_is_the_same() {
        let registry = Registry::default();
        registry.counter("a_total", "A.", &[("x", "1")]).increment();
        registry.counter("a_total", "A.", &[("x", "1")]).increment();
        assert_eq!(registry.counter("a_total", "A.", &[("x", "1")]).get(), 2);
        assert_eq!(registry.counter("a_total", "A.", &[("x", "2")]).get(), 0);
        registry.computed_gauge("b", "B.", &[], || Some(1.0));
        registry.computed_gauge("b", "B.", &[], || Some(2.0));
        assert!(registry.render().contains("\nb 2\n"));
    }

    #[test]
    fn f_series_are_bounded_and_values_stay_on_their_line() {
        let registry = Registry::default();
        for n in 0..SERIES_MAX + 10 {
            registry.counter("many_total", "Many.", &[("n", &n.to_string())]).increment();
        }
        assert_eq!(registry.render().lines().count(), SERIES_MAX + 2);
        let registry = Registry::default();
        registry.counter("odd_total", "Odd.", &[("x", "a\"b\\c\nd")]).increment();
        assert!(registry.render().ends_with("odd_total{x=\"a\\\"b\\\\c\\nd\"} 1\n"));
    }

    #[test]
    fn what_is_held_counts_until_it_is_dropped() {
        let gauge = Gauge::default();
        let held = gauge.hold();
        assert_eq!(gauge.get(), 1);
        drop(held);
        assert_eq!(gauge.get(), 0);
    }
}
