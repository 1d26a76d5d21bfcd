//! Drives the pool machine: dials what it wants, tells it what happened.

use crate::proxy_list;
use crate::service::{END_TIMEOUT, Shared};
use crate::tunnel::{self, DialError, Established, Surplus, TunnelNews, Waiting};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use wayleave_api::agent::{ClusterView, proxy_to_agent};
use wayleave_api::auth::{PolicyDelta, PolicySnapshot};
use wayleave_ca::Snapshot;
use wayleave_keystore::inflate_policy;
use wayleave_net::{Tunnel, clock_complaint};
use wayleave_runtime::{Clock, Shutdown, random_u64};
use wayleave_tunnel::{Config, DialFailure, Effect, Pool, ProxyList, TunnelId};
use wayleave_vocab::{HostId, HostPort, Mono};

/// News of tunnels that wait to be handled.
const NEWS_QUEUE: usize = 256;
/// Connections kept for the sake of balancers that count them, and for how long: a search begins with more tries than
/// this in that time, and goes on with fewer.
const SURPLUS_MAX: usize = 8;
const SURPLUS_TIME: Duration = Duration::from_secs(3);
/// The machine is asked at least this often, so that a clock that jumped is noticed.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// A policy that no proxy confirmed for this long is doubted; Auth signs a head every 15 s.
const POLICY_UNCONFIRMED_MAX: Duration = Duration::from_secs(60);

enum News {
    Answered(Option<ProxyList>),
    Dialled(TunnelId, Box<Result<Established, DialError>>),
    Said(TunnelId, wayleave_api::agent::ProxyToAgent, Waiting),
    Lost(TunnelId, wayleave_net::TunnelClosed),
}

/// Keeps tunnels until shutdown, then drains them.
pub(crate) async fn run(shared: Arc<Shared>, shutdown: Shutdown) {
    let now = shared.clock.mono();
    let mut policy = shared.config.policy.watch();
    let (sender, mut news) = mpsc::channel(NEWS_QUEUE);
    let pool = Pool::new(Config::default(), shared.config.proxies.clone(), random_u64(), now);
    let mut driver = Driver {
        shared,
        pool,
        tunnels: BTreeMap::new(),
        owners: BTreeMap::new(),
        dials: BTreeMap::new(),
        surplus: VecDeque::new(),
        news: sender,
        has_told: false,
    };
    driver.obey();
    loop {
        driver.look_at_policy();
        driver.act();
        let now = driver.shared.clock.mono();
        let pause = driver.pool.poll_timeout().map_or(LOOK_MAX, |at| at.since(now).min(LOOK_MAX));
        tokio::select! {
            () = shutdown.requested() => break,
            Some(item) = news.recv() => driver.handle(item),
            Ok(()) = policy.changed() => driver.obey(),
            () = tokio::time::sleep(pause) => {
                let now = driver.shared.clock.mono();
                driver.pool.handle_timeout(now);
            }
        }
    }
    driver.drain(&mut news).await;
}

/// One dial that the pool wants.
struct Attempt {
    id: TunnelId,
    address: HostPort,
    wanted: Option<HostId>,
    avoid: Vec<wayleave_tunnel::Connected>,
    deadline: Mono,
}

struct Driver {
    shared: Arc<Shared>,
    pool: Pool,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    /// Whose tunnels they are.
    owners: BTreeMap<TunnelId, HostId>,
    dials: BTreeMap<TunnelId, Shutdown>,
    /// What led to proxies that are connected already, the newest last.
    surplus: VecDeque<(Mono, Surplus)>,
    news: mpsc::Sender<News>,
    /// That no proxy is reached has been said.
    has_told: bool,
}

impl Driver {
    fn act(&mut self) {
        let now = self.now();
        self.surplus.retain(|(since, _)| now.since(*since) < SURPLUS_TIME);
        while let Some(effect) = self.pool.poll_effect() {
            match effect {
                Effect::AskAuth { deadline } => self.ask_auth(deadline),
                Effect::Dial { id, address, wanted, avoid, deadline } => {
                    self.dial(Attempt { id, address, wanted, avoid, deadline });
                }
                Effect::Abandon { id } => {
                    if let Some(given_up) = self.dials.remove(&id) {
                        given_up.request();
                    }
                }
                Effect::Close { id, reason } => {
                    tracing::debug!(?reason, "giving up a tunnel");
                    if let Some(tunnel) = self.tunnels.get(&id) {
                        if reason.drains() && tunnel.stream_count() > 0 {
                            tunnel.go_away()
                        } else {
                            tunnel.close()
                        }
                    }
                }
                Effect::Publish { connected } => {
                    self.has_told &= connected.is_empty();
                    tracing::info!(proxies = connected.len(), "connected to proxies");
                    self.shared.connected.send_replace(connected);
                }
            }
        }
    }

    fn now(&self) -> Mono {
        self.shared.clock.mono()
    }

    fn handle(&mut self, news: News) {
        let now = self.now();
        match news {
            News::Answered(None) => self.pool.handle_ask_failed(now),
            News::Answered(Some(list)) => {
                if let Err(error) = self.pool.handle_answer(list, now) {
                    tracing::warn!(%error, "Auth's list of proxies is refused");
                }
            }
            News::Dialled(id, result) => self.dialled(id, *result),
            News::Said(id, message, _waiting) => self.said(id, message),
            News::Lost(id, reason) => {
                tracing::info!(reason = &reason as &dyn std::error::Error, "a tunnel ended");
                self.shared.metrics.tunnels_lost.increment();
                self.tunnels.remove(&id);
                self.owners.remove(&id);
                self.pool.handle_lost(id, now);
            }
        }
    }

    fn dialled(&mut self, id: TunnelId, result: Result<Established, DialError>) {
        self.dials.remove(&id);
        let now = self.now();
        match result {
            Ok(established) => {
                tracing::info!(proxy = %established.proxy.proxy, "a tunnel is up");
                self.shared.metrics.dials.increment();
                self.surplus.clear();
                self.pool.handle_dialled(id, established.proxy.proxy, established.proxy.incarnation, now);
                self.tunnels.insert(id, established.tunnel);
                self.owners.insert(id, established.proxy.proxy);
                if let Some(view) = &established.hello.view {
                    self.hear(id, view);
                }
                self.listen(id, established.news);
            }
            Err(DialError::AlreadyConnected(proxy, surplus)) => {
                self.keep(surplus);
                self.pool.handle_dial_failed(id, DialFailure::AlreadyConnected(proxy), now);
            }
            Err(error) => {
                let reason = &error as &dyn std::error::Error;
                match clock_complaint(&error) {
                    Some(complaint) => {
                        tracing::warn!(
                            error = reason,
                            "dialling a proxy failed: {complaint}: set the clocks right"
                        );
                    }
                    // Behind a balancer, addresses of single proxies need not lead anywhere. Nobody has to know of each.
                    None if !self.pool.connected().is_empty()
                        || std::mem::replace(&mut self.has_told, true) =>
                    {
                        tracing::debug!(error = reason, "dialling a proxy failed");
                    }
                    None => {
                        tracing::warn!(error = reason, "no proxy is reached now, trying again until one is")
                    }
                }
                self.shared.metrics.dials_failed.increment();
                self.pool.handle_dial_failed(id, DialFailure::Failed, now);
            }
        }
    }

    /// A balancer that counts connections leads to another proxy only while this one counts.
    fn keep(&mut self, surplus: Surplus) {
        if self.surplus.len() == SURPLUS_MAX {
            self.surplus.pop_front();
        }
        self.surplus.push_back((self.now(), surplus));
    }

    fn said(&mut self, id: TunnelId, message: wayleave_api::agent::ProxyToAgent) {
        match message.message {
            Some(proxy_to_agent::Message::View(view)) => self.hear(id, &view),
            Some(proxy_to_agent::Message::Drain(_)) => {
                let now = self.now();
                self.pool.handle_drain(id, now);
            }
            Some(proxy_to_agent::Message::Snapshot(snapshot)) => self.accept(snapshot),
            Some(proxy_to_agent::Message::Delta(delta)) => self.accept_delta(id, &delta),
            Some(proxy_to_agent::Message::Head(head)) => {
                if let Err(error) = self.shared.accept_head(&head) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a proxy relayed a policy head that is refused"
                    );
                }
            }
            Some(proxy_to_agent::Message::Hello(_)) | None => {}
        }
    }

    /// What changed; when that does not fit, the whole is asked for.
    fn accept_delta(&self, id: TunnelId, delta: &PolicyDelta) {
        if let Err(error) = self.shared.accept_delta(delta) {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(error, "a change of policy does not fit: asking for the whole");
            if let Some(tunnel) = self.tunnels.get(&id) {
                tunnel::ask_for_policy(&self.shared, tunnel);
            }
        }
    }

    fn accept(&self, mut snapshot: PolicySnapshot) {
        if snapshot.payload.is_empty() {
            match inflate_policy(&snapshot.deflated_payload) {
                Ok(payload) => snapshot.payload = payload,
                Err(error) => return tracing::warn!(%error, "a proxy relayed a policy that cannot be read"),
            }
        }
        if let Err(error) = self.shared.accept_policy(&snapshot) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a proxy relayed a policy that is refused"
            );
        }
    }

    /// What the verified policy says of tunnels. No proxy is asked what it thinks of that.
    fn obey(&mut self) {
        let Some(policy) = self.shared.config.policy.watch().borrow().clone() else { return };
        let now = self.now();
        self.pool.handle_strategy(policy.parts().networking.spec.tunnel_strategy, now);
        self.leave_locked(&policy);
    }

    /// Proxies confirm the policy every few seconds. When none does, they may be keeping a newer one back: Auth is
    /// asked by another way.
    fn look_at_policy(&mut self) {
        let age = self.shared.config.policy.age(self.shared.clock.wall());
        if !self.tunnels.is_empty() && age.is_none_or(|age| age > POLICY_UNCONFIRMED_MAX) {
            let now = self.now();
            self.pool.handle_doubt(now);
        }
    }

    /// Closes the tunnels to proxies that a lock shuts out.
    fn leave_locked(&self, policy: &Snapshot) {
        let now = self.shared.clock.wall();
        for (id, proxy) in self.owners.iter().filter(|(_, proxy)| policy.is_host_locked(**proxy, now)) {
            if let Some(tunnel) = self.tunnels.get(id) {
                tracing::info!(%proxy, "a lock ends the tunnel to a proxy");
                tunnel.close();
            }
        }
    }

    /// What a proxy tells of the others is a hint.
    fn hear(&mut self, id: TunnelId, view: &ClusterView) {
        let now = self.now();
        if let Err(error) =
            self.pool.handle_proxies(id, proxy_list::proxies(&view.proxies, view.revision), now)
        {
            tracing::warn!(%error, "a proxy's list of proxies is refused");
        }
    }

    /// Auth is asked for the proxies, by TLS that ends there, through whichever proxy answers.
    fn ask_auth(&self, deadline: Mono) {
        let (shared, news) = (self.shared.clone(), self.news.clone());
        self.shared.tasks.spawn_many(async move {
            let within = deadline.since(shared.clock.mono());
            let asked = tokio::time::timeout(within, shared.ask_auth()).await;
            let list = match asked {
                Ok(Ok(list)) => Some(list),
                Ok(Err(status)) => {
                    let clock = clock_complaint(&status).map(tracing::field::display);
                    tracing::warn!(error = %status.message(), clock, "asking Auth for the proxies failed");
                    None
                }
                Err(_) => {
                    tracing::warn!("asking Auth for the proxies took too long");
                    None
                }
            };
            let _ = news.send(News::Answered(list)).await;
        });
    }

    fn dial(&mut self, attempt: Attempt) {
        tracing::debug!(address = %attempt.address, wanted = ?attempt.wanted, "dialling a proxy");
        let given_up = Shutdown::new();
        self.dials.insert(attempt.id, given_up.clone());
        let (shared, news) = (self.shared.clone(), self.news.clone());
        self.shared.tasks.spawn_many(async move {
            let Attempt { id, address, wanted, avoid, deadline } = attempt;
            let within = deadline.since(shared.clock.mono());
            let attempt = tokio::time::timeout(within, tunnel::dial(&shared, &address, wanted, &avoid));
            let Some(result) = given_up.until(attempt).await else { return };
            let result = result.unwrap_or(Err(DialError::NoHello));
            let _ = news.send(News::Dialled(id, Box::new(result))).await;
        });
    }

    fn listen(&self, id: TunnelId, mut from: mpsc::Receiver<TunnelNews>) {
        let news = self.news.clone();
        self.shared.tasks.spawn_many(async move {
            while let Some(item) = from.recv().await {
                let (item, last) = match item {
                    TunnelNews::Message(message, waiting) => (News::Said(id, message, waiting), false),
                    TunnelNews::Closed(reason) => (News::Lost(id, reason), true),
                };
                if news.send(item).await.is_err() || last {
                    return;
                }
            }
        });
    }

    /// No new streams; those that exist may finish within the drain timeout, and are then asked to end.
    async fn drain(mut self, news: &mut mpsc::Receiver<News>) {
        let shared = self.shared.clone();
        self.dials.values().for_each(Shutdown::request);
        for tunnel in self.tunnels.values() {
            if tunnel.stream_count() > 0 { tunnel.go_away() } else { tunnel.close() }
        }
        if tokio::time::timeout(shared.config.drain_timeout, self.until_gone(news)).await.is_err() {
            let streams = shared.streams.running();
            tracing::info!(streams, "the drain timeout has passed: the streams that are left end");
        }
        // What they have to say goes out by the tunnels.
        shared.stream_shutdown.request();
        shared.streams.finish(END_TIMEOUT).await;
        self.tunnels.values().for_each(Tunnel::close);
        let _ = tokio::time::timeout(END_TIMEOUT, self.until_gone(news)).await;
    }

    /// Waits until there is no tunnel any more.
    async fn until_gone(&mut self, news: &mut mpsc::Receiver<News>) {
        while !self.tunnels.is_empty() {
            match news.recv().await {
                Some(News::Lost(id, _)) => {
                    self.tunnels.remove(&id);
                }
                // One that came about in the last moment.
                Some(News::Dialled(_, established)) => {
                    if let Ok(established) = *established {
                        established.tunnel.close();
                    }
                }
                Some(News::Answered(_) | News::Said(..)) => {}
                None => return,
            }
        }
    }
}
