//! How a stream finds its agent: by a tunnel held here, or through a peer that holds one.
//!
//! What is tried, in which order and for how long is decided by `core/peering`'s [`DialPlan`].

use crate::hosting::open_here;
use crate::metrics::refusal_kind;
use crate::registry;
use crate::service::Shared;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use wayleave_dial::{DialRefusal, DialRequest, DialResponse, DialRoute};
use wayleave_mux::Class;
use wayleave_net::{BoxStream, DIAL_MESSAGE_TIMEOUT, Dialed, Dialer, read_message, write_message};
use wayleave_peering::{
    AttemptId, Candidate, DialError, DialPlan, Outcome, PlanConfig, PlanEffect, Refusal, Resolution,
    RouteState, Way,
};
use wayleave_runtime::{Clock, Shutdown, random_u64};
use wayleave_telemetry::{Span, SpanKind, client_span, span_id};
use wayleave_vocab::{HostId, Mono, NodeName};

/// The part of a trace that a client's dial is, and that a peer's is.
pub(crate) const DIAL_SPAN: &str = "dial";
/// Answers of attempts that wait to be looked at.
const ANSWERS_MAX: usize = 16;
/// How long a dial waits for a proxy that has just started to learn what there is.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// The plan is asked at least this often.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Dials on behalf of a client of this proxy.
pub(crate) struct ProxyDialer(pub(crate) Arc<Shared>);

impl Dialer for ProxyDialer {
    fn dial(&self, request: DialRequest) -> BoxFuture<'_, Result<Dialed, DialRefusal>> {
        Box::pin(async move {
            let mut ready = self.0.cluster.ready.subscribe();
            if tokio::time::timeout(READY_TIMEOUT, ready.wait_for(|ready| *ready)).await.is_err() {
                let detail = "this proxy does not know the cluster yet, try again".to_owned();
                return Err(DialRefusal::Unavailable { detail });
            }
            let began = Instant::now();
            let own = self.0.config.host_id;
            let trace = *request.trace_id.as_bytes();
            let id = span_id(&trace, own.as_bytes(), DIAL_SPAN);
            let mut span =
                self.0.tracer.begin("proxy.dial", SpanKind::Server, trace, id, client_span(&trace));
            let dialled = dial(&self.0, request).await;
            let is_local = dialled.as_ref().map_or(true, |dialled| dialled.route.home_proxy == own);
            self.0.metrics.dialled(began, is_local, dialled.as_ref().err());
            span.set("wayleave.way", || if is_local { "tunnel" } else { "peer-tunnel" }.to_owned());
            match &dialled {
                Ok(dialled) => {
                    span.set("wayleave.home_proxy", || dialled.route.home_proxy.to_string());
                    span.set("wayleave.agent", || dialled.route.agent.to_string());
                }
                Err(refusal) => span.fail(|| refusal_kind(refusal).to_owned()),
            }
            dialled
        })
    }
}

async fn dial(shared: &Arc<Shared>, request: DialRequest) -> Result<Dialed, DialRefusal> {
    let host_id = resolve(shared, request.target.name())?;
    let name = request.target.name().to_string();
    Run::new(shared, DialRequest { host_id: Some(host_id), ..request }, host_id, name).run().await
}

/// Dials for a peer: a tunnel held here or nothing.
pub(crate) async fn dial_local(
    shared: &Arc<Shared>,
    host_id: HostId,
    request: DialRequest,
) -> Result<BoxStream, DialRefusal> {
    if !shared.registry.has(host_id) {
        let (incarnation, sequence) = shared.routes.not_here();
        return Err(DialRefusal::NotHere { incarnation, sequence });
    }
    open_stream(shared, host_id, &request).await
}

fn resolve(shared: &Shared, node: &NodeName) -> Result<HostId, DialRefusal> {
    let state = |host: HostId| {
        if shared.registry.has(host) {
            RouteState::Fresh
        } else {
            shared.routes.with_table(|table| table.state(host))
        }
    };
    let name = node.to_string();
    match shared.cluster.with_nodes(|nodes| nodes.resolve(node, state)) {
        Resolution::One(host) => Ok(host),
        Resolution::Ambiguous(hosts) => {
            Err(DialRefusal::Ambiguous { name, count: u32::try_from(hosts.len()).unwrap_or(u32::MAX) })
        }
        Resolution::NoneLive(hosts) => Err(DialRefusal::Offline {
            name,
            detail: format!(
                "{} nodes of this name are registered and none is connected to any proxy",
                hosts.len()
            ),
        }),
        Resolution::Unknown => Err(DialRefusal::UnknownTarget { name }),
    }
}

/// Opens a stream on the tunnel held here and asks the agent.
async fn open_stream(
    shared: &Shared,
    host_id: HostId,
    request: &DialRequest,
) -> Result<BoxStream, DialRefusal> {
    let unreachable = |detail: String| DialRefusal::Offline { name: host_id.to_string(), detail };
    let (_, way) =
        shared.registry.find(host_id).ok_or_else(|| unreachable("its tunnel has just ended".to_owned()))?;
    let tunnel = match way {
        registry::Way::Tunnel(tunnel, capabilities) => {
            request.check(&format!("the agent of {}", request.target.name()), &capabilities)?;
            tunnel
        }
        registry::Way::Here(adapter) => return open_here(shared, adapter, request),
    };
    let mut stream = tunnel.open(Class::Interactive).map_err(|e| unreachable(e.to_string()))?;
    write_message(&mut stream, request).await.map_err(|e| unreachable(e.to_string()))?;
    let response: DialResponse =
        read_message(&mut stream, DIAL_MESSAGE_TIMEOUT).await.map_err(|e| unreachable(e.to_string()))?;
    match response {
        DialResponse::Established { .. } => Ok(Box::new(stream)),
        DialResponse::Refused { refusal } => Err(refusal),
    }
}

/// One answer of one attempt.
struct Answer {
    attempt: AttemptId,
    result: Result<BoxStream, DialRefusal>,
}

/// One dial under way.
struct Run<'a> {
    shared: &'a Arc<Shared>,
    request: DialRequest,
    host_id: HostId,
    name: String,
    attempts: BTreeMap<AttemptId, (Way, Shutdown)>,
    established: BTreeMap<AttemptId, BoxStream>,
    final_words: BTreeMap<AttemptId, DialRefusal>,
    learned: watch::Receiver<u64>,
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
}

impl<'a> Run<'a> {
    fn new(shared: &'a Arc<Shared>, request: DialRequest, host_id: HostId, name: String) -> Self {
        Self {
            shared,
            request,
            host_id,
            name,
            attempts: BTreeMap::new(),
            established: BTreeMap::new(),
            final_words: BTreeMap::new(),
            learned: shared.routes.learned.subscribe(),
            answers: mpsc::channel(ANSWERS_MAX),
        }
    }

    async fn run(mut self) -> Result<Dialed, DialRefusal> {
        let now = self.shared.clock.mono();
        let (local, candidates) = self.candidates();
        let mut plan = DialPlan::new(PlanConfig::default(), local, candidates, random_u64(), now);
        loop {
            while let Some(effect) = plan.poll_effect() {
                match effect {
                    PlanEffect::Done(outcome) => return self.finish(outcome),
                    // Peers and Auth push their news by themselves: what is known is current, and more may come.
                    PlanEffect::Refresh { .. } => {
                        let (local, candidates) = self.candidates();
                        plan.handle_candidates(local, candidates, self.shared.clock.mono());
                    }
                    effect => self.act(effect),
                }
            }
            self.wait(&mut plan).await;
        }
    }

    /// Where the agent may be, as it is known now.
    fn candidates(&self) -> (Option<u64>, Vec<Candidate>) {
        let own = self.shared.config.host_id;
        let mut candidates = self.shared.routes.with_table(|table| table.candidates(self.host_id));
        candidates.retain(|candidate| candidate.proxy != own);
        (self.shared.registry.find(self.host_id).map(|(number, _)| number), candidates)
    }

    async fn wait(&mut self, plan: &mut DialPlan) {
        let now = self.shared.clock.mono();
        let pause = plan.poll_timeout().map_or(LOOK_MAX, |at| at.since(now).min(LOOK_MAX));
        tokio::select! {
            Some(answer) = self.answers.1.recv() => self.answered(plan, answer),
            Ok(()) = self.learned.changed() => {
                let (local, candidates) = self.candidates();
                plan.handle_candidates(local, candidates, self.shared.clock.mono());
            }
            () = tokio::time::sleep(pause) => plan.handle_timeout(self.shared.clock.mono()),
        }
    }

    fn act(&mut self, effect: PlanEffect) {
        match effect {
            PlanEffect::Dial { attempt, way, deadline } => {
                let given_up = Shutdown::new();
                self.attempts.insert(attempt, (way, given_up.clone()));
                self.dial(attempt, way, deadline, given_up);
            }
            PlanEffect::Cancel { attempt } => {
                if let Some((_, given_up)) = self.attempts.remove(&attempt) {
                    given_up.request();
                }
                self.established.remove(&attempt);
            }
            PlanEffect::Refresh { .. } | PlanEffect::Done(_) => {}
        }
    }

    fn dial(&self, attempt: AttemptId, way: Way, deadline: Mono, given_up: Shutdown) {
        let (shared, host_id, sender) = (self.shared.clone(), self.host_id, self.answers.0.clone());
        let request = DialRequest { from_peer: matches!(way, Way::Peer { .. }), ..self.request.clone() };
        let mut span = self.attempt_span(way);
        self.shared.tasks.spawn_many(async move {
            let within = deadline.since(shared.clock.mono());
            let attempting = async {
                match way {
                    Way::Local { .. } => open_stream(&shared, host_id, &request).await,
                    Way::Peer { proxy, .. } => shared.peers.dial(proxy, &request).await,
                }
            };
            let Some(result) = given_up.until(tokio::time::timeout(within, attempting)).await else {
                return span.fail(|| "another way was faster".to_owned());
            };
            let result = result.unwrap_or_else(|_| {
                Err(DialRefusal::TimedOut { detail: "a proxy did not answer".to_owned() })
            });
            if let Err(refusal) = &result {
                span.fail(|| refusal_kind(refusal).to_owned());
            }
            drop(span);
            let _ = sender.send(Answer { attempt, result }).await;
        });
    }

    fn attempt_span(&self, way: Way) -> Span {
        let (own, trace) = (self.shared.config.host_id, *self.request.trace_id.as_bytes());
        let parent = span_id(&trace, own.as_bytes(), DIAL_SPAN);
        let (part, to) = match way {
            Way::Local { .. } => ("attempt by tunnel".to_owned(), own),
            Way::Peer { proxy, .. } => (format!("attempt by {proxy}"), proxy),
        };
        let id = span_id(&trace, own.as_bytes(), &part);
        let mut span = self.shared.tracer.begin("proxy.attempt", SpanKind::Client, trace, id, Some(parent));
        span.set("wayleave.proxy", || to.to_string());
        span
    }

    fn answered(&mut self, plan: &mut DialPlan, answer: Answer) {
        let now = self.shared.clock.mono();
        let Some((way, _)) = self.attempts.get(&answer.attempt) else { return };
        let refusal = match answer.result {
            Ok(stream) => {
                self.established.insert(answer.attempt, stream);
                plan.handle_established(answer.attempt, now);
                return;
            }
            Err(refusal) => refusal,
        };
        tracing::debug!(?way, %refusal, "one way to the agent failed");
        let kind = match &refusal {
            DialRefusal::NotHere { incarnation, sequence } => {
                if let Way::Peer { proxy, .. } = way {
                    let gone = self.shared.routes.with_table(|table| {
                        table.handle_not_here(self.host_id, *proxy, *incarnation, *sequence, now)
                    });
                    if let Err(error) = gone {
                        tracing::debug!(%error, "a withdrawn route cannot be noted");
                    }
                }
                Refusal::NotHere { incarnation: *incarnation, sequence: *sequence }
            }
            DialRefusal::Offline { .. } | DialRefusal::UnknownTarget { .. } => Refusal::Unreachable,
            DialRefusal::Unavailable { .. } => Refusal::Unavailable,
            DialRefusal::TimedOut { .. } => Refusal::TimedOut,
            DialRefusal::Denied { .. } | DialRefusal::Invalid { .. } | DialRefusal::Ambiguous { .. } => {
                match way {
                    Way::Local { .. } => Refusal::Final,
                    // A peer that claims a tunnel which it has not got must not end the search for the true one.
                    Way::Peer { .. } => Refusal::Unreachable,
                }
            }
        };
        if let Way::Peer { .. } = way {
            self.shared.metrics.peer_failed(kind);
        }
        self.final_words.insert(answer.attempt, refusal);
        plan.handle_refused(answer.attempt, kind, now);
    }

    fn finish(mut self, outcome: Outcome) -> Result<Dialed, DialRefusal> {
        let ingress_proxy = self.shared.config.host_id;
        let offline = |name: String, detail: String| DialRefusal::Offline { name, detail };
        match outcome {
            Outcome::Established { attempt, by } => {
                let stream = self
                    .established
                    .remove(&attempt)
                    .ok_or_else(|| offline(self.name.clone(), "the stream was lost".to_owned()))?;
                let home_proxy = match by {
                    Way::Local { .. } => ingress_proxy,
                    Way::Peer { proxy, .. } => proxy,
                };
                let metrics = &self.shared.metrics;
                let (up, down) = (metrics.bytes_from_clients.clone(), metrics.bytes_to_clients.clone());
                let stream = self.shared.client_streams.count(stream, up, down);
                Ok(Dialed { stream, route: DialRoute { ingress_proxy, home_proxy, agent: self.host_id } })
            }
            Outcome::Failed(DialError::Refused { attempt, .. }) => Err(self
                .final_words
                .remove(&attempt)
                .unwrap_or_else(|| offline(self.name.clone(), "the agent refused".to_owned()))),
            Outcome::Failed(DialError::Offline { tried }) if tried.is_empty() => {
                Err(offline(self.name.clone(), "no proxy holds a tunnel of it".to_owned()))
            }
            Outcome::Failed(DialError::Offline { tried }) => {
                if let Some(refusal) = self.peers_own_words() {
                    return Err(refusal);
                }
                let detail = self.account(&tried);
                Err(offline(self.name.clone(), detail))
            }
            Outcome::Failed(DialError::TimedOut { tried }) => {
                let detail = self.account(&tried);
                Err(DialRefusal::TimedOut { detail })
            }
        }
    }

    /// Why a peer refused what it could reach: heard when no other way was left.
    fn peers_own_words(&mut self) -> Option<DialRefusal> {
        let says_why = |refusal: &DialRefusal| {
            matches!(refusal, DialRefusal::Denied { .. } | DialRefusal::Invalid { .. })
        };
        let attempt = *self.final_words.iter().find(|(_, refusal)| says_why(refusal))?.0;
        self.final_words.remove(&attempt)
    }

    /// What was tried, for the person who waits.
    fn account(&self, tried: &[wayleave_peering::Tried]) -> String {
        let one = |tried: &wayleave_peering::Tried| {
            let way = match tried.way {
                Way::Local { .. } => "this proxy's own tunnel".to_owned(),
                Way::Peer { proxy, .. } => format!("proxy {proxy}"),
            };
            let why = match tried.refusal {
                Refusal::NotHere { .. } => "does not hold its tunnel",
                Refusal::Unreachable => "cannot reach it",
                Refusal::Unavailable => "is not available",
                Refusal::TimedOut => "did not answer in time",
                Refusal::Final => "was refused",
            };
            format!("{way} {why}")
        };
        if tried.is_empty() {
            return "no proxy holds a tunnel of it".to_owned();
        }
        tried.iter().map(one).collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Run<'_> {
    /// A client that goes away takes its attempts with it.
    fn drop(&mut self) {
        for (_, given_up) in self.attempts.values() {
            given_up.request();
        }
    }
}
