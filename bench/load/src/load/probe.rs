//! Dials at a steady rate to agents at random, as users make them: by whichever of the proxies answers.
//!
//! A line `mark` on standard input forgets what was, and begins to count; the end of the input ends it.

use crate::authority::{Authority, agent_name};
use crate::latency::Latencies;
use crate::options::ProbeOptions;
use crate::say;
use crate::target::ECHO;
use crate::visitor::dial;
use anyhow::{Context, Result, bail, ensure};
use rustls::ClientConfig;
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use wayleave_dial::DialRefusal;
use wayleave_net::{BoxStream, connect_tls};
use wayleave_runtime::{TaskGroup, random_u64};

const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Of those that fail, so many are told of.
const TOLD_MAX: u64 = 5;

struct Tally {
    since: Instant,
    latencies: Latencies,
    /// When the last of those that failed was begun.
    last_failure: Option<Duration>,
}

pub(crate) async fn run(options: ProbeOptions) -> Result<()> {
    let tls = Authority::read(&options.ca)?.dial_tls()?;
    let tally = Arc::new(Mutex::new(Tally::new()));
    let (dials, options) = (TaskGroup::new(), Arc::new(options));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.rate.get());
    say(&json!({ "dialling": options.rate.get() }))?;
    loop {
        tokio::select! {
            line = lines.next_line() => match line?.as_deref() {
                Some("mark") => *tally.lock().unwrap_or_else(PoisonError::into_inner) = Tally::new(),
                Some(other) => bail!("{other:?} is nothing to do"),
                None => break,
            },
            _ = ticks.tick() => {
                let (tls, tally, options) = (tls.clone(), tally.clone(), options.clone());
                dials.spawn_many(async move {
                    let began = Instant::now();
                    let reaching = tokio::time::timeout(DIAL_TIMEOUT, reach(&options, tls)).await;
                    let reached = reaching.context("no answer in time").and_then(|reached| reached);
                    tally.lock().unwrap_or_else(PoisonError::into_inner).add(began, reached);
                });
            }
        }
    }
    dials.drained(DIAL_TIMEOUT).await;
    let tally = std::mem::replace(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner), Tally::new());
    let last_failure = tally.last_failure.map(|last| last.as_secs_f64());
    let mut report = tally.latencies.report(tally.since.elapsed());
    if let Some(report) = report.as_object_mut() {
        report.insert("last_failure_seconds".into(), json!(last_failure));
    }
    say(&report)
}

impl Tally {
    fn new() -> Self {
        Self { since: Instant::now(), latencies: Latencies::default(), last_failure: None }
    }

    fn add(&mut self, began: Instant, reached: Result<()>) {
        // One that began before the mark is of what was.
        let Some(at) = began.checked_duration_since(self.since) else { return };
        match reached {
            Ok(()) => self.latencies.add(began.elapsed()),
            Err(error) => {
                self.latencies.failed += 1;
                self.last_failure = self.last_failure.max(Some(at));
                if self.latencies.failed <= TOLD_MAX {
                    eprintln!("  a dial failed: {error:#}");
                }
            }
        }
    }
}

/// As `way` does: a proxy that does not answer or is going away is followed by the next one.
async fn reach(options: &ProbeOptions, tls: Arc<ClientConfig>) -> Result<()> {
    let name = agent_name(options.first + random_u64() % options.count)?;
    let first = random_u64() as usize;
    let mut last = None;
    for number in 0..options.proxies.len() {
        let at = first.wrapping_add(number) % options.proxies.len();
        let proxy = options.proxies.get(at).context("no proxies")?;
        let dialled = async {
            let mut stream: BoxStream = Box::new(connect_tls(proxy, tls.clone()).await?);
            dial(&mut stream, &name).await?;
            Ok::<_, anyhow::Error>(stream)
        };
        match dialled.await {
            Ok(mut stream) => {
                stream.write_all(&[ECHO]).await?;
                stream.flush().await?;
                ensure!(stream.read_u8().await? == ECHO, "another byte came back");
                return Ok(stream.shutdown().await?);
            }
            Err(error) => match error.downcast_ref::<DialRefusal>() {
                None | Some(DialRefusal::Unavailable { .. } | DialRefusal::NotHere { .. }) => {
                    last = Some(error)
                }
                Some(_) => return Err(error),
            },
        }
    }
    Err(last.context("no proxies")?)
}
