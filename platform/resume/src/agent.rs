//! The agent's end: keeps streams whose connection was lost, and gives them to whoever proves to be their client.

use crate::client::sign;
use crate::link::{Link, LinkEvent};
use crate::pending::{FrameError, Pending};
use crate::wakers::{Seat, Wakers};
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Sleep, sleep, timeout};
use wayleave_identity::{Principal, UserPrincipal};
use wayleave_keystore::{Audience, Credentials, TrustStore};
use wayleave_net::{Admission, BoxStream, Lobby, ResumptionEvent, Slots};
use wayleave_resume::{Attachments, Budget, End, Role, Stream};
use wayleave_resume_wire::exchange::{
    Asked, Attempt, Ephemeral, StreamSecret, agent_statement, client_statement, proof_statement,
    refusal_statement,
};
use wayleave_resume_wire::{
    AgentHello, Attached, Challenge, ClientHello, Frame, Refusal, Refused, Signed, StreamId,
};
use wayleave_runtime::{Clock, random_bytes};
use wayleave_vocab::{UserName, Wall};

/// Streams that can be resumed at a time; further ones go on without.
const STREAMS_MAX: usize = 16 * 1024;
/// Streams of one user that wait for their client, a quarter of all; a further one ends with its connection.
const DETACHED_PER_USER_MAX: u32 = 4096;
/// Connections at a time that want a stream back and have not proved whose it is. One that is silent gives way.
const ATTEMPTS: Slots = Slots { connections_max: 512, strangers_max: 512 };
/// How long whoever serves a stream may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last bytes of a stream wait for a client that is connected and takes nothing.
const LINGER_TIMEOUT: Duration = Duration::from_secs(300);
/// Events that wait for whoever serves the stream.
const EVENTS_MAX: usize = 16;

/// How long a stream of a user may wait, or why he may have none.
pub type MaxDetached = Arc<dyn Fn(&UserPrincipal) -> Result<Duration, String> + Send + Sync>;

/// Who the agent is, and whom it believes.
pub struct ResumptionsConfig {
    /// What the agent presents.
    pub credentials: Credentials,
    /// Whom it believes.
    pub trust: TrustStore,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What all streams keep together.
    pub budget: Budget,
    /// Where proxies answer, for clients that know fewer.
    pub proxies: watch::Receiver<Vec<String>>,
}

/// The resumable streams of one agent.
pub struct Resumptions {
    config: ResumptionsConfig,
    streams: Mutex<HashMap<StreamId, Arc<Shared>>>,
    detached: Mutex<HashMap<UserName, u32>>,
    /// Connections that want a stream back and have not proved whose it is.
    lobby: Lobby,
}

/// A stream that has begun.
pub struct Begun {
    /// For whoever serves it.
    pub stream: AgentStream,
    /// What happens to it beside its bytes.
    pub events: mpsc::Receiver<ResumptionEvent>,
    /// Keeps the stream; to be run beside whoever serves it, and until it ends after that.
    pub keeper: BoxFuture<'static, ()>,
}

/// The agent's end, for whoever serves the stream. Dropped after a shutdown, what it wrote still reaches the client;
/// dropped before, the client is told that it is gone.
pub struct AgentStream(Arc<Shared>);

struct Shared {
    this: Weak<Shared>,
    owner: Arc<Resumptions>,
    state: Mutex<State>,
    wakers: Arc<Wakers>,
    waker: Waker,
    max_detached: MaxDetached,
    events: mpsc::Sender<ResumptionEvent>,
}

struct State {
    link: Link,
    phase: Phase,
    known: Known,
    attachments: Attachments,
    /// It counts among the user's that wait.
    is_counted: bool,
}

enum Phase {
    /// Somebody serves it.
    Served,
    /// Its time is over, and whoever serves it is being told.
    Expiring,
    /// Nobody serves it any more; what was written is still to arrive.
    Lingering(Option<Pin<Box<Sleep>>>),
    Ended(String),
}

/// Whose it is.
enum Known {
    /// The client has not said hello.
    Nobody,
    /// It ends with its connection.
    Unresumable,
    User(Box<Owner>),
}

struct Owner {
    stream: StreamId,
    /// As who began it.
    user: UserPrincipal,
    /// As who came back last.
    returned: Option<UserPrincipal>,
    secret: StreamSecret,
}

impl Owner {
    /// How long it waits: by what he was when he began and by what he is now, so that neither lengthens the other.
    fn wait(&self, max_detached: &MaxDetached) -> Result<Duration, String> {
        // By now the certificates may have run out: the one that the client comes back with must be good.
        let ageless =
            |user: &UserPrincipal| UserPrincipal { not_after: Wall::from_ms(u64::MAX), ..user.clone() };
        let begun = wait_of(max_detached, &ageless(&self.user))?;
        let returned =
            self.returned.as_ref().map(|user| wait_of(max_detached, &ageless(user))).transpose()?;
        Ok(returned.map_or(begun, |returned| returned.min(begun)))
    }
}

/// How long a stream of the user waits; one that may not wait at all is an error.
fn wait_of(max_detached: &MaxDetached, user: &UserPrincipal) -> Result<Duration, String> {
    let lifetime = max_detached(user)?;
    if lifetime.is_zero() {
        return Err("your roles want sessions to end with their connection".to_owned());
    }
    Ok(lifetime)
}

enum Kept {
    Ended,
    Expired,
}

/// Why somebody does not get a stream.
struct Denied {
    refusal: Refusal,
    /// For the client.
    text: String,
    /// For the audit log, where the stream exists.
    reason: Option<(Option<UserName>, String)>,
}

impl Denied {
    fn new(refusal: Refusal, text: &str) -> Self {
        Self { refusal, text: text.to_owned(), reason: None }
    }

    fn noted(text: &str, user: Option<&UserName>, reason: impl Into<String>) -> Self {
        let reason = Some((user.cloned(), reason.into()));
        Self { refusal: Refusal::Denied, text: text.to_owned(), reason }
    }
}

impl Resumptions {
    /// None yet.
    pub fn new(config: ResumptionsConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            streams: Mutex::default(),
            detached: Mutex::default(),
            lobby: Lobby::new("resumptions", ATTEMPTS),
        })
    }

    /// How many can be resumed now.
    pub fn count(&self) -> usize {
        lock(&self.streams).len()
    }

    /// Begins a stream on a connection whose dial request asked for one.
    pub fn begin(self: &Arc<Self>, connection: BoxStream, max_detached: MaxDetached) -> Begun {
        let budget = self.config.budget.clone();
        let link = Link::new(|now| Stream::new(Role::Agent, budget, Duration::ZERO, now), connection);
        let state = State {
            link,
            phase: Phase::Served,
            known: Known::Nobody,
            attachments: Attachments::default(),
            is_counted: false,
        };
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let wakers = Arc::new(Wakers::default());
        let shared = Arc::new_cyclic(|this| Shared {
            this: this.clone(),
            owner: self.clone(),
            state: Mutex::new(state),
            waker: Waker::from(wakers.clone()),
            wakers,
            max_detached,
            events: sender,
        });
        let keeper = Box::pin(keep(Keeping(shared.clone())));
        Begun { stream: AgentStream(shared), events, keeper }
    }

    /// Somebody wants a stream back on this connection. Returns when he has it or was refused.
    pub async fn reattach(&self, connection: BoxStream, client_address: Option<SocketAddr>) {
        let pending = Pending::new(connection);
        let address = client_address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        let Some(admission) = self.lobby.admit(address, Instant::now()) else {
            let text = "too many sessions are being resumed on this node: try again";
            return self.refuse(pending, Denied::new(Refusal::Busy, text), None).await;
        };
        let _ = admission.evicted().until(self.reattach_admitted(pending, client_address, &admission)).await;
    }

    async fn reattach_admitted(
        &self,
        mut pending: Pending,
        client_address: Option<SocketAddr>,
        admission: &Admission,
    ) {
        let gone = |text: &str| Denied::new(Refusal::Unknown, text);
        let reattach = match pending.read().await {
            Ok(Frame::Reattach(reattach)) => reattach,
            Ok(_) => return self.refuse(pending, gone("nobody was asked for"), None).await,
            Err(error) => return tracing::debug!(%error, "a connection for a resumption said nothing"),
        };
        let shared = lock(&self.streams).get(&reattach.stream).cloned();
        let Some(shared) = shared else {
            let denied = gone("the session is not there any more: it ended, or the agent was started anew");
            let asked = Asked { reattach: &reattach, proved: None };
            return self.refuse(pending, denied, Some(&asked)).await;
        };
        let number = shared.lock().attachments.handle_challenge();
        let challenge = Challenge { nonce: random_bytes() };
        let attempt = Attempt::new(&reattach, challenge.nonce);
        let proved = async {
            pending.write(&Frame::Challenge(challenge)).await?;
            match pending.read().await? {
                Frame::Proof(proof) => Ok(proof),
                _ => Err(FrameError::Unexpected),
            }
        };
        let proof = match proved.await {
            Ok(proof) => proof,
            Err(error) => return tracing::debug!(%error, "a resumption was not proved"),
        };
        let judged = match self.judge(&shared, &attempt, &proof.mac, &proof.signed) {
            Ok(user) => {
                admission.known();
                shared.ask(user.clone(), client_address).await.map(|()| user)
            }
            Err(denied) => Err(denied),
        };
        if let Err(denied) = judged.and_then(|user| shared.attach(number, &attempt, user, &mut pending)) {
            if let Some((user, reason)) = &denied.reason {
                tracing::info!(reason, "somebody was refused a stream that he wanted back");
                let (user, reason) = (user.clone(), reason.clone());
                let _ = shared.events.try_send(ResumptionEvent::Refused { user, client_address, reason });
            }
            let asked = Asked { reattach: &reattach, proved: Some((&challenge, &proof)) };
            self.refuse(pending, denied, Some(&asked)).await;
        }
    }

    /// Says no, and signs for it where it is known what was asked: the client believes nobody else.
    async fn refuse(&self, mut pending: Pending, denied: Denied, asked: Option<&Asked<'_>>) {
        let refused = Refused::new(denied.refusal, &denied.text);
        let signed = asked.and_then(|asked| {
            sign(&self.config.credentials, |own| refusal_statement(asked, &refused, own))
                .inspect_err(|error| tracing::warn!(%error, "a refusal cannot be signed"))
                .ok()
        });
        // Whoever does not read it will find out.
        let _ = pending.write(&Frame::Refused(refused)).await;
        if let Some(signed) = signed {
            let _ = pending.write(&Frame::Refuser(signed)).await;
        }
        let _ = timeout(ANSWER_TIMEOUT, tokio::io::AsyncWriteExt::shutdown(&mut pending.connection)).await;
    }

    /// Who it is, if he knows the secret and is the stream's user.
    fn judge(
        &self,
        shared: &Shared,
        attempt: &Attempt,
        mac: &[u8; 32],
        signed: &Signed,
    ) -> Result<UserPrincipal, Denied> {
        let state = shared.lock();
        let Known::User(owner) = &state.known else {
            return Err(Denied::new(Refusal::Unknown, "the session is not there any more"));
        };
        if !owner.secret.is_client_mac(mac, attempt) {
            let reason = "the proof is not by the secret of this stream, or is an old one";
            return Err(Denied::noted("this is not your session", None, reason));
        }
        let statement = proof_statement(attempt, &signed.certificate);
        let now = self.config.clock.wall();
        let verified = self.config.trust.verify_statement(
            &signed.certificate,
            &signed.signature,
            &statement,
            Audience::Client,
            now,
        );
        let user = match verified {
            Ok(Principal::User(user)) => user,
            Ok(Principal::Host(_)) => {
                return Err(Denied::noted("this is not your session", None, "a process's certificate"));
            }
            Err(error) => {
                let reason = format!(
                    "{error}: {}",
                    std::error::Error::source(&error).map_or_else(String::new, |e| e.to_string())
                );
                return Err(Denied::noted("your certificate is not accepted: log in again", None, reason));
            }
        };
        if user.name != owner.user.name || user.cluster != owner.user.cluster {
            let reason =
                format!("the certificate is that of {}, the stream is {}'s", user.name, owner.user.name);
            return Err(Denied::noted("this is not your session", Some(&user.name), reason));
        }
        // Whoever served it may not listen any more: nobody is asked.
        if matches!(state.phase, Phase::Expiring | Phase::Ended(_)) {
            return Err(Denied::new(Refusal::Unknown, "the session is not there any more"));
        }
        Ok(user)
    }

    /// Verifies the client's hello and makes the agent's.
    fn greet(&self, hello: &ClientHello, max_detached: &MaxDetached) -> Result<(Owner, AgentHello), String> {
        let Signed { certificate, signature } = &hello.signed;
        let statement = client_statement(&hello.share, certificate);
        let now = self.config.clock.wall();
        let trust = &self.config.trust;
        let user = match trust.verify_statement(certificate, signature, &statement, Audience::Client, now) {
            Ok(Principal::User(user)) => user,
            Ok(Principal::Host(_)) => return Err("the certificate is that of a process".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let lifetime = wait_of(max_detached, &user)?;
        if self.count() >= STREAMS_MAX {
            return Err("too many sessions are open on this node".to_owned());
        }
        let ephemeral = Ephemeral::new(random_bytes()).map_err(|error| error.to_string())?;
        let mut answer = AgentHello {
            share: ephemeral.share(),
            stream: StreamId(random_bytes()),
            max_detached_ms: u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX),
            proxies: self.config.proxies.borrow().clone(),
            signed: Signed { certificate: Vec::new(), signature: Vec::new() },
        };
        let signed = sign(&self.config.credentials, |own| {
            answer.signed.certificate = own.to_vec();
            agent_statement(hello, &answer)
        });
        answer.signed = signed.map_err(|error| error.to_string())?;
        let secret = ephemeral.secret(&hello.share, hello, &answer).map_err(|error| error.to_string())?;
        Ok((Owner { stream: answer.stream, user, returned: None, secret }, answer))
    }

    /// Counts one more stream of the user that waits, if he may have one more.
    fn count_detached(&self, user: &UserName) -> bool {
        let mut detached = lock(&self.detached);
        let count = detached.entry(user.clone()).or_default();
        let may = *count < DETACHED_PER_USER_MAX;
        *count += u32::from(may);
        may
    }

    fn uncount_detached(&self, user: &UserName) {
        let mut detached = lock(&self.detached);
        if let Some(count) = detached.get_mut(user) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                detached.remove(user);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Asks whoever serves the stream whether it may go on; where nobody does any more, the policy alone.
    async fn ask(&self, user: UserPrincipal, client_address: Option<SocketAddr>) -> Result<(), Denied> {
        let name = user.name.clone();
        let denied = |text: String| Denied { refusal: Refusal::Denied, text, reason: None };
        if self.events.is_closed() {
            return wait_of(&self.max_detached, &user)
                .map(|_| ())
                .map_err(|text| Denied::noted(&text, Some(&name), text.clone()));
        }
        let (answer, answered) = oneshot::channel();
        let busy = || Denied::new(Refusal::Busy, "the node is busy: try again");
        let event = ResumptionEvent::Reattach { user, client_address, answer };
        self.events.try_send(event).map_err(|_| busy())?;
        match timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(answer)) => answer.map_err(denied),
            // It has just ended: what it wrote may still be fetched, by the same connection's next try.
            Ok(Err(_)) | Err(_) => Err(busy()),
        }
    }

    /// Takes the connection over, if no later one has done so.
    fn attach(
        &self,
        number: wayleave_resume::Attempt,
        attempt: &Attempt,
        user: UserPrincipal,
        pending: &mut Pending,
    ) -> Result<(), Denied> {
        let mut state = self.lock();
        let gone = || Denied::new(Refusal::Unknown, "the session is not there any more");
        let Known::User(owner) = &state.known else { return Err(gone()) };
        match &state.phase {
            Phase::Served | Phase::Lingering(_) => {}
            Phase::Expiring | Phase::Ended(_) => return Err(gone()),
        }
        let name = owner.user.name.clone();
        let received = state.link.machine.received();
        let mac = owner.secret.agent_mac(attempt, received);
        state
            .attachments
            .handle_proof(number)
            .map_err(|error| Denied::new(Refusal::Superseded, &error.to_string()))?;
        state.link.detach();
        let empty: BoxStream = Box::new(tokio::io::empty());
        let connection = std::mem::replace(&mut pending.connection, empty);
        let input = std::mem::take(&mut pending.input);
        if let Err(error) = state.link.attach(connection, input, attempt.client_received) {
            self.wakers.wake_one(Seat::Keeper);
            return Err(Denied::noted(
                "what is missing is not kept any more",
                Some(&name),
                error.to_string(),
            ));
        }
        state.link.say(&Frame::Attached(Attached { received, mac }));
        if let Known::User(owner) = &mut state.known {
            owner.returned = Some(user);
        }
        if std::mem::take(&mut state.is_counted) {
            self.owner.uncount_detached(&name);
        }
        // Whoever serves the stream may wait for something else, and the client for this.
        if let Err(event) = state.link.send(&mut Context::from_waker(&self.waker)) {
            self.on_event(&mut state, event);
        }
        drop(state);
        self.wakers.wake_all();
        Ok(())
    }

    /// Does one thing with the link for whoever serves the stream, and whatever has to be done before that.
    fn poll_with<T>(
        &self,
        seat: Seat,
        cx: &mut Context<'_>,
        mut step: impl FnMut(&mut Link, &mut Context<'_>) -> Poll<Result<io::Result<T>, LinkEvent>>,
    ) -> Poll<io::Result<T>> {
        self.wakers.register(seat, cx);
        let mut cx = Context::from_waker(&self.waker);
        let mut state = self.lock();
        loop {
            match step(&mut state.link, &mut cx) {
                Poll::Ready(Ok(result)) => return Poll::Ready(result),
                Poll::Ready(Err(event)) => self.on_event(&mut state, event),
                Poll::Pending => match &state.phase {
                    Phase::Ended(reason) => {
                        return Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::ConnectionAborted,
                            reason.clone(),
                        )));
                    }
                    Phase::Served | Phase::Expiring | Phase::Lingering(_) => return Poll::Pending,
                },
            }
        }
    }

    fn on_event(&self, state: &mut State, event: LinkEvent) {
        match event {
            LinkEvent::Lost(reason) => self.on_lost(state, reason),
            LinkEvent::Expired => {
                state.phase = match std::mem::replace(&mut state.phase, Phase::Expiring) {
                    Phase::Served | Phase::Expiring => Phase::Expiring,
                    Phase::Lingering(_) => Phase::Ended("nobody came back in time".to_owned()),
                    ended @ Phase::Ended(_) => ended,
                };
                self.wakers.wake_one(Seat::Keeper);
            }
            LinkEvent::Frame(frame) => match (*frame, &state.known) {
                (Frame::ClientHello(hello), Known::Nobody) => self.on_hello(state, &hello),
                _ => self.on_lost(state, "it carries what does not belong here".to_owned()),
            },
        }
    }

    fn on_hello(&self, state: &mut State, hello: &ClientHello) {
        match self.owner.greet(hello, &self.max_detached) {
            Ok((owner, answer)) => {
                let stream = owner.stream;
                state.known = Known::User(Box::new(owner));
                state.link.machine.handle_max_detached(Duration::from_millis(answer.max_detached_ms));
                state.link.say(&Frame::AgentHello(answer));
                if let Some(this) = self.this.upgrade() {
                    lock(&self.owner.streams).insert(stream, this);
                }
            }
            Err(text) => {
                tracing::debug!(reason = text, "a stream cannot be resumed");
                state.known = Known::Unresumable;
                state.link.say(&Frame::NotResumable { text });
            }
        }
    }

    fn on_lost(&self, state: &mut State, reason: String) {
        state.link.detach();
        if matches!(state.phase, Phase::Expiring | Phase::Ended(_)) {
            return;
        }
        let machine = &state.link.machine;
        if machine.is_aborted() || (machine.end() != End::Open && machine.is_settled()) {
            state.phase = Phase::Ended(reason);
            return self.wakers.wake_one(Seat::Keeper);
        }
        let waits = match &state.known {
            Known::Nobody | Known::Unresumable => Err(reason),
            Known::User(owner) => owner.wait(&self.max_detached).and_then(|lifetime| {
                if self.owner.count_detached(&owner.user.name) {
                    Ok(lifetime)
                } else {
                    Err("the connection was lost, and too many sessions of the user wait".to_owned())
                }
            }),
        };
        match waits {
            Ok(lifetime) => {
                state.is_counted = true;
                state.link.machine.handle_max_detached(lifetime);
                let _ = self.events.try_send(ResumptionEvent::Detached);
            }
            Err(reason) => state.phase = Phase::Ended(reason),
        }
        self.wakers.wake_one(Seat::Keeper);
    }

    fn poll_keep(&self, cx: &mut Context<'_>) -> Poll<Kept> {
        self.wakers.register(Seat::Keeper, cx);
        let mut cx = Context::from_waker(&self.waker);
        let mut state = self.lock();
        let State { link, phase, .. } = &mut *state;
        let event = match phase {
            Phase::Ended(_) => return Poll::Ready(Kept::Ended),
            Phase::Expiring => return Poll::Ready(Kept::Expired),
            Phase::Served => link.send(&mut cx).and_then(|()| link.poll_timer(&mut cx)).err(),
            Phase::Lingering(limit) => {
                let limit = limit.get_or_insert_with(|| Box::pin(sleep(LINGER_TIMEOUT)));
                if limit.as_mut().poll(&mut cx).is_ready() {
                    return Poll::Ready(Kept::Ended);
                }
                match link.poll_linger(&mut cx) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Kept::Ended),
                    Poll::Ready(Err(event)) => Some(event),
                    Poll::Pending => None,
                }
            }
        };
        if let Some(event) = event {
            self.on_event(&mut state, event);
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// It is over: nobody finds it any more, and its connection is closed.
    fn end(&self, reason: &str) {
        let mut state = self.lock();
        state.link.close(&mut Context::from_waker(Waker::noop()));
        if let Known::User(owner) = &state.known {
            lock(&self.owner.streams).remove(&owner.stream);
            if state.is_counted {
                self.owner.uncount_detached(&owner.user.name);
            }
        }
        state.is_counted = false;
        if !matches!(state.phase, Phase::Ended(_)) {
            state.phase = Phase::Ended(reason.to_owned());
        }
        state.known = Known::Unresumable;
        drop(state);
        self.wakers.wake_all();
    }
}

/// Runs beside whoever serves the stream, and after him until the client has everything.
async fn keep(keeping: Keeping) {
    let Keeping(shared) = &keeping;
    match poll_fn(|cx| shared.poll_keep(cx)).await {
        Kept::Ended => {}
        Kept::Expired => {
            let (answer, noted) = oneshot::channel();
            if shared.events.try_send(ResumptionEvent::Expired { answer }).is_ok() {
                // Whatever the answer is, the time is over.
                let _ = timeout(ANSWER_TIMEOUT, noted).await;
            }
        }
    }
}

/// A stream that is kept; it ends when this is dropped.
struct Keeping(Arc<Shared>);

impl Drop for Keeping {
    fn drop(&mut self) {
        self.0.end("the connection was lost, and nobody came back in time");
    }
}

impl AsyncRead for AgentStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_with(Seat::Reader, cx, |link, cx| link.poll_read(cx, buf))
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut is_ahead = false;
        let written = self.0.poll_with(Seat::Writer, cx, |link, cx| link.poll_write(cx, data, &mut is_ahead));
        if is_ahead {
            self.0.wakers.wake_one(Seat::Reader);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_with(Seat::Writer, cx, |link, cx| link.poll_flush(cx).map_ok(Ok))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_with(Seat::Writer, cx, |link, cx| link.poll_finish(cx).map_ok(Ok))
    }
}

impl Drop for AgentStream {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let machine = &mut state.link.machine;
        let lingers = machine.is_finished() && !machine.is_aborted();
        if !lingers {
            machine.handle_abort();
        }
        state.phase = match std::mem::replace(&mut state.phase, Phase::Expiring) {
            Phase::Served if lingers => Phase::Lingering(None),
            Phase::Served | Phase::Lingering(_) => Phase::Ended("nobody serves it any more".to_owned()),
            over @ (Phase::Expiring | Phase::Ended(_)) => over,
        };
        drop(state);
        self.0.wakers.wake_one(Seat::Keeper);
    }
}
