//! Simulated agents that keep their tunnels by the machine of the product's agents (`core/tunnel`), whatever happens.
//!
//! A line `watch` on standard input, then the end of all proxies: when every agent has lost its tunnels and has one
//! again, or a time has passed, one line tells how long they took and how often Auth would have been asked.

use crate::authority::{Authority, agent_id};
use crate::keeper;
use crate::latency::Latencies;
use crate::options::PooledOptions;
use crate::say;
use anyhow::{Result, bail};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::Notify;
use wayleave_runtime::{SystemClock, TaskGroup};
use wayleave_tunnel::ProxyList;
use wayleave_vocab::{HostPort, TunnelStrategy};

/// How long is waited for agents that do not come back.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of all agents; the rest may be late.
const SHARE: f64 = 0.999;

pub(crate) struct Shared {
    pub(crate) clock: SystemClock,
    pub(crate) proxies: Vec<HostPort>,
    pub(crate) strategy: TunnelStrategy,
    pub(crate) target: SocketAddr,
    pub(crate) tasks: TaskGroup,
    /// What Auth would answer: what the proxies last said.
    pub(crate) view: Mutex<Option<ProxyList>>,
    pub(crate) board: Mutex<Board>,
    pub(crate) changed: Notify,
    pub(crate) asked: AtomicU64,
    pub(crate) dials: AtomicU64,
    pub(crate) dials_failed: AtomicU64,
    /// How often a dial failed by which error of the system, or by something else.
    pub(crate) failures: Mutex<BTreeMap<String, u64>>,
}

/// What has become of the agents since somebody began to watch.
pub(crate) struct Board {
    agents: Vec<State>,
    /// How many have been lost and are there again.
    back: usize,
    up: usize,
}

#[derive(Clone, Copy, Default)]
struct State {
    is_lost: bool,
    up_at: Option<Instant>,
}

impl Board {
    fn watch(&mut self) {
        self.back = 0;
        for agent in &mut self.agents {
            agent.is_lost = false;
        }
    }

    pub(crate) fn publish(&mut self, index: usize, is_up: bool) {
        let Some(agent) = self.agents.get_mut(index) else { return };
        match (agent.up_at, is_up) {
            (None, true) => {
                agent.up_at = Some(Instant::now());
                self.up += 1;
                self.back += usize::from(agent.is_lost);
            }
            (Some(_), false) => {
                agent.up_at = None;
                self.up -= 1;
                self.back -= usize::from(agent.is_lost);
                agent.is_lost = true;
            }
            (None, false) | (Some(_), true) => {}
        }
    }
}

pub(crate) async fn run(options: PooledOptions) -> Result<()> {
    let authority = Authority::read(&options.ca)?;
    let count = usize::try_from(options.count)?;
    let shared = Arc::new(Shared {
        clock: SystemClock::new(),
        proxies: options.proxies,
        strategy: TunnelStrategy::ProxyPeering { agent_connection_count: options.connections },
        target: options.target,
        tasks: TaskGroup::new(),
        view: Mutex::default(),
        board: Mutex::new(Board { agents: vec![State::default(); count], back: 0, up: 0 }),
        changed: Notify::new(),
        asked: AtomicU64::new(0),
        dials: AtomicU64::new(0),
        dials_failed: AtomicU64::new(0),
        failures: Mutex::default(),
    });
    let started = Instant::now();
    for index in 0..count {
        let id = agent_id(options.first + index as u64);
        shared.tasks.spawn_many(keeper::keep(shared.clone(), index, id, authority.tunnel_tls(id)?));
    }
    shared.wait(|board| board.up == count).await?;
    say(&json!({ "done": count, "seconds": started.elapsed().as_secs_f64() }))?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.as_str() {
            "watch" => watch(&shared, count).await?,
            other => bail!("{other:?} is nothing to do"),
        }
    }
    Ok(())
}

async fn watch(shared: &Shared, count: usize) -> Result<()> {
    let counters = [&shared.asked, &shared.dials, &shared.dials_failed];
    let before = counters.map(|counter| counter.load(Ordering::Relaxed));
    shared.board().watch();
    shared.failures().clear();
    let began = Instant::now();
    let enough = (count as f64 * SHARE).ceil() as usize;
    let share_in = shared.wait(|board| board.back >= enough).await.map(|()| began.elapsed().as_secs_f64());
    let all_in = shared.wait(|board| board.back == count).await.map(|()| began.elapsed().as_secs_f64());
    let mut latencies = Latencies::default();
    for agent in shared.board().agents.iter().filter(|agent| agent.is_lost) {
        agent.up_at.iter().for_each(|up_at| latencies.add(up_at.duration_since(began)));
    }
    let mut report = latencies.report(began.elapsed());
    let [asked, dials, dials_failed] = counters.map(|counter| counter.load(Ordering::Relaxed));
    let [asked_before, dials_before, failed_before] = before;
    if let Some(report) = report.as_object_mut() {
        report.insert("share_in_seconds".into(), json!(share_in.ok()));
        report.insert("all_in_seconds".into(), json!(all_in.ok()));
        report.insert("asked".into(), json!(asked - asked_before));
        report.insert("dials".into(), json!(dials - dials_before));
        report.insert("dials_failed".into(), json!(dials_failed - failed_before));
        report.insert("failures".into(), json!(*shared.failures()));
    }
    say(&report)
}

impl Shared {
    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failures(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note_failure(&self, error: &anyhow::Error) {
        let system = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
        let reason = system.map_or_else(|| "something else".to_owned(), |error| error.kind().to_string());
        *self.failures().entry(reason).or_default() += 1;
    }

    async fn wait(&self, is_done: impl Fn(&Board) -> bool) -> Result<()> {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if is_done(&self.board()) {
                    return;
                }
                changed.await;
            }
        };
        Ok(tokio::time::timeout(PATIENCE, waiting).await?)
    }
}
