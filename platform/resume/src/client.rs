//! The client's end: makes connections anew, and proves whose stream it is.

use crate::link::{Link, LinkEvent};
use crate::pending::{FrameError, Pending};
use crate::wakers::{Seat, Wakers};
use futures::future::BoxFuture;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep, sleep_until};
use wayleave_keystore::{Audience, Credentials, SignError, StatementError, TrustStore, is_certified_for};
use wayleave_net::BoxStream;
use wayleave_resume::{Budget, End, Role, Stream};
use wayleave_resume_wire::exchange::{
    Asked, Attempt, Ephemeral, StreamSecret, agent_statement, client_statement, proof_statement,
    refusal_statement,
};
use wayleave_resume_wire::{
    AgentHello, ClientHello, Frame, Proof, Reattach, Refusal, Refused, Signed, StreamId,
};
use wayleave_runtime::{Clock, SystemClock, random_bytes, random_u64};
use wayleave_vocab::{HostId, SystemRole};

/// Until the agent says how long it waits, nothing waits.
const MAX_DETACHED_UNKNOWN: Duration = Duration::ZERO;
/// Longest time that the client tries, whatever the agent says.
const MAX_DETACHED_MAX: Duration = Duration::from_secs(24 * 3600);
/// An interruption shorter than this is not worth a word.
const MOMENT: Duration = Duration::from_secs(1);
/// First and longest pause between tries.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// Makes connections to an agent, and hears how it goes.
pub trait Redial: Send + Sync + 'static {
    /// Connects to the agent through any proxy, with a dial request that asks for a reattachment.
    ///
    /// Nothing that a proxy says ends the stream: an error is one try that failed.
    fn redial<'a>(&'a self, to: RedialTo<'a>) -> BoxFuture<'a, Result<Redialled, RedialError>>;

    /// Something that a person may want to know.
    fn tell(&self, news: &News);
}

/// Where to.
#[derive(Debug, Clone, Copy)]
pub struct RedialTo<'a> {
    /// The agent.
    pub agent: HostId,
    /// Addresses of proxies that the agent named.
    pub proxies: &'a [String],
    /// Addresses of proxies through which the stream was not given back, the latest last: to be tried after all others,
    /// in this order.
    pub tried: &'a [String],
}

/// A connection to the agent.
pub struct Redialled {
    /// What the agent's answer will come by.
    pub connection: BoxStream,
    /// What the user presents now.
    pub credentials: Credentials,
    /// Whom the client believes now: the authorities may have rotated since the stream began.
    pub trust: TrustStore,
    /// The address of the proxy that it runs through.
    pub proxy: String,
}

/// Why there is no connection. Another try may do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RedialError(pub String);

/// How it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The connection was lost a moment ago, and is not back yet.
    Reconnecting,
    /// It is back, after the former was said.
    Reconnected,
    /// A loss will end this stream.
    NotResumable {
        /// Why.
        reason: String,
    },
}

/// The agent that must be at the other end, and who asks.
#[derive(Clone)]
pub struct Agent {
    /// Names for one of which its certificate is.
    pub names: Vec<String>,
    /// What its certificate says that it may be.
    pub role: SystemRole,
    /// Whom the client believes.
    pub trust: TrustStore,
}

/// What both ends know of a stream that can be resumed.
struct Resumable {
    stream: StreamId,
    agent: HostId,
    proxies: Vec<String>,
    secret: StreamSecret,
}

enum Phase {
    /// The agent has not answered the hello yet.
    Greeting(Box<(Ephemeral, ClientHello)>),
    Resumable(Arc<Resumable>),
    /// The stream ends with its connection.
    Plain,
    Reattaching(Arc<Resumable>, BoxFuture<'static, Result<Reattached, String>>),
    Failed(String),
}

struct Reattached {
    pending: Pending,
    agent_received: u64,
}

/// A stream to an agent that outlives its connections.
///
/// Dropped before both directions have ended, it tells the agent that it is gone.
pub struct ClientStream {
    link: Link,
    phase: Phase,
    agent: Agent,
    redial: Arc<dyn Redial>,
    wakers: Arc<Wakers>,
    waker: Waker,
}

/// Why the agent's hello is not believed.
#[derive(Debug, thiserror::Error)]
enum HelloError {
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error("it is not from the agent that was dialled")]
    OtherAgent,
    #[error(transparent)]
    Share(#[from] wayleave_resume_wire::exchange::ShareError),
}

impl ClientStream {
    /// Takes a connection that was answered as one of a resumable stream. Sends the hello and waits for nothing.
    ///
    /// # Errors
    /// When the user's key cannot sign.
    pub fn new(
        connection: BoxStream,
        credentials: &Credentials,
        agent: Agent,
        redial: Arc<dyn Redial>,
    ) -> Result<Self, SignError> {
        let ephemeral = Ephemeral::new(random_bytes()).map_err(|_| SignError::Key)?;
        let signed = sign(credentials, |certificate| client_statement(&ephemeral.share(), certificate))?;
        let hello = ClientHello { share: ephemeral.share(), signed };
        let machine = |now| Stream::new(Role::Client, Budget::default(), MAX_DETACHED_UNKNOWN, now);
        let mut link = Link::new(machine, connection);
        link.say(&Frame::ClientHello(hello.clone()));
        let wakers = Arc::new(Wakers::default());
        let phase = Phase::Greeting(Box::new((ephemeral, hello)));
        Ok(Self { link, phase, agent, redial, waker: Waker::from(wakers.clone()), wakers })
    }

    /// Does one thing with the link, and whatever has to be done before that.
    fn poll_with<T>(
        &mut self,
        seat: Seat,
        cx: &mut Context<'_>,
        mut step: impl FnMut(&mut Link, &mut Context<'_>) -> Poll<Result<io::Result<T>, LinkEvent>>,
    ) -> Poll<io::Result<T>> {
        self.wakers.register(seat, cx);
        let waker = self.waker.clone();
        let mut cx = Context::from_waker(&waker);
        loop {
            if let Phase::Reattaching(known, trying) = &mut self.phase
                && let Poll::Ready(result) = trying.as_mut().poll(&mut cx)
            {
                let known = known.clone();
                self.reattached(known, result);
            }
            match step(&mut self.link, &mut cx) {
                Poll::Ready(Ok(result)) => return Poll::Ready(result),
                Poll::Ready(Err(LinkEvent::Lost(reason))) => self.lost(reason),
                Poll::Ready(Err(LinkEvent::Expired)) => {
                    self.phase =
                        Phase::Failed("the connection was lost, and did not come back in time".into());
                }
                Poll::Ready(Err(LinkEvent::Frame(frame))) => self.on_frame(*frame),
                Poll::Pending => match &self.phase {
                    Phase::Failed(reason) => {
                        return Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::ConnectionAborted,
                            reason.clone(),
                        )));
                    }
                    Phase::Greeting(_) | Phase::Resumable(_) | Phase::Plain | Phase::Reattaching(..) => {
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    fn lost(&mut self, reason: String) {
        self.link.detach();
        let is_over = self.link.machine.end() != End::Open && self.link.machine.is_settled();
        let phase = std::mem::replace(&mut self.phase, Phase::Plain);
        self.phase = match phase {
            _ if is_over => Phase::Plain,
            Phase::Resumable(known) => {
                tracing::debug!(reason, "the connection was lost: making another");
                let received = self.link.machine.received();
                let trying = reattach(self.redial.clone(), self.agent.clone(), known.clone(), received);
                Phase::Reattaching(known, Box::pin(trying))
            }
            Phase::Greeting(_) | Phase::Plain => Phase::Failed(format!("the connection was lost: {reason}")),
            phase @ (Phase::Reattaching(..) | Phase::Failed(_)) => phase,
        };
    }

    fn reattached(&mut self, known: Arc<Resumable>, result: Result<Reattached, String>) {
        let attached = result.and_then(|reattached| {
            let Reattached { pending: Pending { connection, input }, agent_received } = reattached;
            self.link.attach(connection, input, agent_received).map_err(|error| error.to_string())
        });
        self.phase = match attached {
            Ok(()) => Phase::Resumable(known),
            Err(reason) => Phase::Failed(format!("the connection was lost and cannot be resumed: {reason}")),
        };
    }

    fn on_frame(&mut self, frame: Frame) {
        let phase = std::mem::replace(&mut self.phase, Phase::Plain);
        match (phase, frame) {
            (Phase::Greeting(greeting), Frame::AgentHello(hello)) => {
                match self.judge(&greeting.0, &greeting.1, &hello) {
                    Ok(known) => {
                        let lifetime = Duration::from_millis(hello.max_detached_ms).min(MAX_DETACHED_MAX);
                        self.link.machine.handle_max_detached(lifetime);
                        self.phase = Phase::Resumable(Arc::new(known));
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "the agent's hello is not believed"
                        );
                        self.redial.tell(&News::NotResumable { reason: error.to_string() });
                    }
                }
            }
            (Phase::Greeting(_), Frame::NotResumable { text }) => {
                tracing::debug!(reason = text, "this connection cannot be resumed");
                self.redial.tell(&News::NotResumable { reason: text });
            }
            (phase, _) => {
                self.phase = phase;
                self.lost("it carries what does not belong here".to_owned());
            }
        }
    }

    fn judge(
        &self,
        ephemeral: &Ephemeral,
        own: &ClientHello,
        hello: &AgentHello,
    ) -> Result<Resumable, HelloError> {
        let Signed { certificate, signature } = &hello.signed;
        let statement = agent_statement(own, hello);
        let now = SystemClock::new().wall();
        let trust = &self.agent.trust;
        let principal = trust.verify_statement(certificate, signature, &statement, Audience::Server, now)?;
        let is_named = self.agent.names.iter().any(|name| is_certified_for(certificate, name));
        let host = principal.as_host_with(self.agent.role).filter(|_| is_named);
        let host = host.ok_or(HelloError::OtherAgent)?;
        let secret = ephemeral.secret(&hello.share, own, hello)?;
        let proxies = hello.proxies.clone();
        Ok(Resumable { stream: hello.stream, agent: host.host_id, proxies, secret })
    }
}

pub(crate) fn sign(
    credentials: &Credentials,
    build: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Result<Signed, SignError> {
    let signed = credentials.sign(build)?;
    Ok(Signed { certificate: signed.certificate, signature: signed.signature })
}

/// Tries until it is attached, or the agent refuses for good. Whoever polls it gives up when the stream's time is over.
async fn reattach(
    redial: Arc<dyn Redial>,
    agent: Agent,
    known: Arc<Resumable>,
    received: u64,
) -> Result<Reattached, String> {
    let tell_at = Instant::now() + MOMENT;
    let mut is_told = false;
    let mut pause = RETRY_MIN;
    let mut tried: Vec<String> = Vec::new();
    loop {
        let mut trying = Box::pin(attempt(&*redial, &agent, &known, &mut tried, received));
        let result = loop {
            tokio::select! {
                result = &mut trying => break result,
                () = sleep_until(tell_at), if !is_told => {
                    redial.tell(&News::Reconnecting);
                    is_told = true;
                }
            }
        };
        drop(trying);
        match result {
            Ok(reattached) => {
                if is_told {
                    redial.tell(&News::Reconnected);
                }
                return Ok(reattached);
            }
            Err(AttemptError::Refused(reason)) => return Err(reason),
            Err(AttemptError::Again(reason)) => tracing::debug!(reason, "not connected yet"),
        }
        // Decorrelated: whoever lost the same proxy does not come back at the same time.
        let spread = u64::try_from((pause * 3).saturating_sub(RETRY_MIN).as_millis()).unwrap_or(0).max(1);
        pause = (RETRY_MIN + Duration::from_millis(random_u64() % spread)).min(RETRY_MAX);
        sleep(pause).await;
    }
}

/// Why one try gave nothing.
enum AttemptError {
    /// It may have been the proxy.
    Again(String),
    /// The agent itself says that no try will.
    Refused(String),
}

async fn attempt(
    redial: &dyn Redial,
    agent: &Agent,
    known: &Resumable,
    tried: &mut Vec<String>,
    received: u64,
) -> Result<Reattached, AttemptError> {
    let to = RedialTo { agent: known.agent, proxies: &known.proxies, tried };
    let redialled = redial.redial(to).await.map_err(|error| AttemptError::Again(error.0))?;
    let Redialled { connection, credentials, trust, proxy } = redialled;
    let agent = &Agent { trust, ..agent.clone() };
    tried.retain(|other| *other != proxy);
    tried.push(proxy);
    let mut pending = Pending::new(connection);
    let again = |error: FrameError| AttemptError::Again(error.to_string());
    let reattach = Reattach { stream: known.stream, nonce: random_bytes(), received };
    pending.write(&Frame::Reattach(reattach)).await.map_err(again)?;
    let challenge = match pending.read().await.map_err(again)? {
        Frame::Challenge(challenge) => challenge,
        other => {
            let asked = Asked { reattach: &reattach, proved: None };
            return Err(refused(pending, other, agent, known.agent, &asked).await);
        }
    };
    let attempt = Attempt::new(&reattach, challenge.nonce);
    let signed = sign(&credentials, |certificate| proof_statement(&attempt, certificate))
        .map_err(|error| AttemptError::Again(error.to_string()))?;
    let proof = Proof { mac: known.secret.client_mac(&attempt), signed };
    pending.write(&Frame::Proof(proof.clone())).await.map_err(again)?;
    match pending.read().await.map_err(again)? {
        Frame::Attached(attached)
            if known.secret.is_agent_mac(&attached.mac, &attempt, attached.received) =>
        {
            Ok(Reattached { pending, agent_received: attached.received })
        }
        Frame::Attached(_) => {
            Err(AttemptError::Again("what answers does not know the stream's secret".into()))
        }
        other => {
            let asked = Asked { reattach: &reattach, proved: Some((&challenge, &proof)) };
            Err(refused(pending, other, agent, known.agent, &asked).await)
        }
    }
}

/// What an answer other than the one that was hoped for means.
async fn refused(
    mut pending: Pending,
    answer: Frame,
    agent: &Agent,
    host_id: HostId,
    asked: &Asked<'_>,
) -> AttemptError {
    let Frame::Refused(refused) = answer else {
        return AttemptError::Again(FrameError::Unexpected.to_string());
    };
    match refused.refusal {
        Refusal::Busy => return AttemptError::Again(refused.text),
        Refusal::Unknown | Refusal::Denied | Refusal::Superseded => {}
    }
    match pending.read().await {
        Ok(Frame::Refuser(signed)) if is_refusal_of(agent, host_id, asked, &refused, &signed) => {
            AttemptError::Refused(refused.text)
        }
        Ok(_) | Err(_) => {
            AttemptError::Again(format!("refused, and not by the agent's signature: {}", refused.text))
        }
    }
}

fn is_refusal_of(
    agent: &Agent,
    host_id: HostId,
    asked: &Asked<'_>,
    refused: &Refused,
    signed: &Signed,
) -> bool {
    let Signed { certificate, signature } = signed;
    let statement = refusal_statement(asked, refused, certificate);
    let now = SystemClock::new().wall();
    agent
        .trust
        .verify_statement(certificate, signature, &statement, Audience::Server, now)
        .is_ok_and(|who| who.as_host_with(agent.role).is_some_and(|host| host.host_id == host_id))
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_with(Seat::Reader, cx, |link, cx| link.poll_read(cx, buf))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut is_ahead = false;
        let written = self.poll_with(Seat::Writer, cx, |link, cx| link.poll_write(cx, data, &mut is_ahead));
        if is_ahead {
            self.wakers.wake_one(Seat::Reader);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with(Seat::Writer, cx, |link, cx| link.poll_flush(cx).map_ok(Ok))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with(Seat::Writer, cx, |link, cx| link.poll_finish(cx).map_ok(Ok))
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let machine = &mut self.link.machine;
        if machine.end() == End::Open || !machine.is_finished() {
            machine.handle_abort();
        }
        self.link.close(&mut Context::from_waker(Waker::noop()));
    }
}
