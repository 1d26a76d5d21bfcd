//! One simulated agent: does what the pool wants, tells it what happened.

use crate::agents::{connect, greet};
use crate::pooled::Shared;
use rustls::ClientConfig;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use tokio::sync::mpsc;
use wayleave_agent::proxies;
use wayleave_api::agent::{ClusterView, ProxyHello, proxy_to_agent};
use wayleave_net::Tunnel;
use wayleave_runtime::{Clock as _, Shutdown, random_u64};
use wayleave_tunnel::{Config, Connected, DialFailure, Effect, Pool, TunnelId};
use wayleave_vocab::{HostId, HostPort, Incarnation, Mono};

const NEWS_QUEUE: usize = 16;

enum News {
    Dialled(TunnelId, Result<(Tunnel, ProxyHello, Connected), DialFailure>),
    Said(TunnelId, proxy_to_agent::Message),
    Lost(TunnelId),
}

struct Keeper {
    shared: Arc<Shared>,
    index: usize,
    id: HostId,
    tls: Arc<ClientConfig>,
    pool: Pool,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    dials: BTreeMap<TunnelId, Shutdown>,
    sender: mpsc::Sender<News>,
}

/// Keeps the tunnels of one agent for ever.
pub(crate) async fn keep(shared: Arc<Shared>, index: usize, id: HostId, tls: Arc<ClientConfig>) {
    let now = shared.clock.mono();
    let mut pool = Pool::new(Config::default(), shared.proxies.clone(), random_u64(), now);
    pool.handle_strategy(shared.strategy, now);
    let (sender, mut news) = mpsc::channel(NEWS_QUEUE);
    let (tunnels, dials) = (BTreeMap::new(), BTreeMap::new());
    let mut keeper = Keeper { shared, index, id, tls, pool, tunnels, dials, sender };
    loop {
        keeper.act();
        let now = keeper.now();
        let wake = keeper.pool.poll_timeout().map(|at| at.since(now));
        tokio::select! {
            Some(item) = news.recv() => keeper.handle(item),
            () = tokio::time::sleep(wake.unwrap_or_default()), if wake.is_some() => {
                let now = keeper.now();
                keeper.pool.handle_timeout(now);
            }
        }
    }
}

impl Keeper {
    fn now(&self) -> Mono {
        self.shared.clock.mono()
    }

    fn act(&mut self) {
        while let Some(effect) = self.pool.poll_effect() {
            match effect {
                Effect::AskAuth { .. } => self.ask_auth(),
                Effect::Dial { id, address, wanted, avoid, .. } => self.dial(id, address, wanted, avoid),
                Effect::Abandon { id } => {
                    if let Some(given_up) = self.dials.remove(&id) {
                        given_up.request();
                    }
                }
                Effect::Close { id, reason } => {
                    if let Some(tunnel) = self.tunnels.get(&id) {
                        if reason.drains() && tunnel.stream_count() > 0 {
                            tunnel.go_away();
                        } else {
                            tunnel.close();
                        }
                    }
                }
                Effect::Publish { connected } => {
                    self.shared.board().publish(self.index, !connected.is_empty());
                    self.shared.changed.notify_one();
                }
            }
        }
    }

    fn ask_auth(&mut self) {
        self.shared.asked.fetch_add(1, Ordering::Relaxed);
        let now = self.now();
        let view = self.shared.view.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match view {
            Some(list) => {
                let _ = self.pool.handle_answer(list, now);
            }
            None => self.pool.handle_ask_failed(now),
        }
    }

    fn dial(&mut self, id: TunnelId, address: HostPort, wanted: Option<HostId>, avoid: Vec<Connected>) {
        let given_up = Shutdown::new();
        self.dials.insert(id, given_up.clone());
        let (shared, tls, agent, sender) =
            (self.shared.clone(), self.tls.clone(), self.id, self.sender.clone());
        self.shared.tasks.spawn_many(async move {
            let (said, lost) = (sender.clone(), sender.clone());
            let on_message = move |message| {
                // One that does not fit is followed by another.
                let _ = said.try_send(News::Said(id, message));
            };
            let tasks = shared.tasks.clone();
            let on_end = move || {
                tasks.spawn_many(async move { drop(lost.send(News::Lost(id)).await) });
            };
            let dialling = connect(&address, tls, shared.target, &shared.tasks, on_message, on_end);
            let Some(connected) = given_up.until(dialling).await else { return };
            let result = match connected {
                Ok((tunnel, hello)) => meet(tunnel, hello, agent, wanted, &avoid),
                Err(error) => {
                    shared.note_failure(&error);
                    Err(DialFailure::Failed)
                }
            };
            let _ = sender.send(News::Dialled(id, result)).await;
        });
    }

    fn handle(&mut self, news: News) {
        let now = self.now();
        match news {
            News::Dialled(id, Ok((tunnel, hello, connected))) => {
                self.dials.remove(&id);
                self.shared.dials.fetch_add(1, Ordering::Relaxed);
                self.pool.handle_dialled(id, connected.proxy, connected.incarnation, now);
                self.tunnels.insert(id, tunnel);
                hello.view.iter().for_each(|view| self.hear(id, view));
            }
            News::Dialled(id, Err(failure)) => {
                self.dials.remove(&id);
                self.shared.dials_failed.fetch_add(1, Ordering::Relaxed);
                self.pool.handle_dial_failed(id, failure, now);
            }
            News::Said(id, proxy_to_agent::Message::View(view)) => self.hear(id, &view),
            News::Said(id, proxy_to_agent::Message::Drain(_)) => self.pool.handle_drain(id, now),
            News::Said(..) => {}
            News::Lost(id) => {
                self.tunnels.remove(&id);
                self.pool.handle_lost(id, now);
            }
        }
    }

    fn hear(&mut self, id: TunnelId, view: &ClusterView) {
        let list = proxies(&view.proxies, view.revision);
        *self.shared.view.lock().unwrap_or_else(PoisonError::into_inner) = Some(list.clone());
        let now = self.now();
        // A list that is too long is no list.
        let _ = self.pool.handle_proxies(id, list, now);
    }
}

/// Tells the proxy who the agent is, if it is one that is wanted.
fn meet(
    tunnel: Tunnel,
    hello: ProxyHello,
    agent: HostId,
    wanted: Option<HostId>,
    avoid: &[Connected],
) -> Result<(Tunnel, ProxyHello, Connected), DialFailure> {
    let failure = match hello.proxy_id.parse::<HostId>() {
        Ok(proxy) if wanted.is_none_or(|wanted| wanted == proxy) => {
            let connected = Connected { proxy, incarnation: Incarnation(hello.incarnation) };
            if avoid.contains(&connected) {
                DialFailure::AlreadyConnected(connected)
            } else if greet(&tunnel, agent).is_ok() {
                return Ok((tunnel, hello, connected));
            } else {
                DialFailure::Failed
            }
        }
        Ok(_) | Err(_) => DialFailure::Failed,
    };
    tunnel.close();
    Err(failure)
}
