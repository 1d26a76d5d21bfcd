//! Calls to the members of an etcd cluster: the next member when one does not answer, a new token when one ran out, a
//! deadline for everything, and a bound on how much is under way.

use super::fault::Faults;
use super::wire::auth_client::AuthClient;
use super::wire::{AuthenticateRequest, AuthenticateResponse};
use super::{EtcdLogin, EtcdOpenError, EtcdOptions};
use crate::error::StoreError;
use crate::server_tls::client_config;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::error::Error as _;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

/// How long one member may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// etcd takes pings more often than every 5 s for an attack.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests under way; one more is answered [`StoreError::Busy`].
const CALLS_MAX: usize = 1024;
/// Pauses before a call is tried again, and how long it is: a new leader is found in a second or two.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
const RETRY_FOR: Duration = Duration::from_secs(8);

/// What may be asked twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    /// Only tried again when it is certain that the first attempt came to nothing.
    Write,
}

pub(super) struct Link {
    members: Vec<Channel>,
    current: AtomicUsize,
    login: Option<EtcdLogin>,
    token: Mutex<Option<MetadataValue<Ascii>>>,
    under_way: Semaphore,
    pub(super) faults: Faults,
}

impl Link {
    pub(super) fn new(options: &EtcdOptions, faults: Faults) -> Result<Self, EtcdOpenError> {
        if options.peers.is_empty() {
            return Err(EtcdOpenError::Address { given: String::new(), reason: "there is none" });
        }
        let tls = options.tls.as_ref().map(|files| client_config(files, &[b"h2"])).transpose()?;
        let members = options.peers.iter().map(|url| member(url, tls.as_ref()));
        Ok(Self {
            members: members.collect::<Result<_, _>>()?,
            current: AtomicUsize::new(0),
            login: options.login.clone(),
            token: Mutex::new(None),
            under_way: Semaphore::new(CALLS_MAX),
            faults,
        })
    }

    /// The member that is asked now.
    pub(super) fn member(&self) -> Channel {
        let current = self.current.load(Ordering::Relaxed) % self.members.len();
        self.members.get(current).cloned().expect("there is a member, and the index is below their number")
    }

    /// Asks another member from now on.
    pub(super) fn turn(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    /// A request with the token, if there is a login.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            request.metadata_mut().insert("authorization", token);
        }
        request
    }

    /// Asks one member after the other. `ask` is called anew for each attempt.
    pub(super) async fn call<T, F>(
        &self,
        doing: &'static str,
        call: Call,
        ask: impl Fn(Channel) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let _room = self.under_way.try_acquire().map_err(|_| self.faults.busy())?;
        if self.login.is_some() && self.token.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            self.log_in().await.map_err(|status| self.faults.of(doing, status))?;
        }
        let (begun, mut pause, mut has_logged_in) = (Instant::now(), PAUSE_MIN, false);
        loop {
            let answer = tokio::time::timeout(CALL_TIMEOUT, ask(self.member())).await;
            let status = match answer {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("etcd did not answer in time"),
            };
            if begun.elapsed() >= RETRY_FOR {
                return Err(self.faults.after(doing, call, status));
            }
            if is_about_token(&status) && self.login.is_some() && !has_logged_in {
                has_logged_in = true;
                self.log_in().await.map_err(|status| self.faults.of(doing, status))?;
                continue;
            }
            let is_elsewhere_better = match call {
                Call::Read => matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded),
                Call::Write => came_to_nothing(&status),
            };
            if !is_elsewhere_better {
                return Err(self.faults.after(doing, call, status));
            }
            self.turn();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Gets a new token.
    pub(super) async fn log_in(&self) -> Result<(), Status> {
        let Some(login) = &self.login else { return Ok(()) };
        let mut last = Status::unavailable("no member of etcd answers");
        for _ in 0..self.members.len() {
            let message = AuthenticateRequest {
                name: login.user.clone(),
                password: login.password.expose_secret().to_owned(),
            };
            let mut client = AuthClient::new(self.member());
            let answer = tokio::time::timeout(CALL_TIMEOUT, client.authenticate(message)).await;
            match answer {
                Ok(Ok(answer)) => {
                    let AuthenticateResponse { token, .. } = answer.into_inner();
                    let token = token.parse().map_err(|_| Status::internal("the token is no text"))?;
                    *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
                    return Ok(());
                }
                Ok(Err(status)) if status.code() == Code::Unavailable => last = status,
                Ok(Err(status)) => return Err(status),
                Err(_) => last = Status::deadline_exceeded("etcd did not answer in time"),
            }
            self.turn();
        }
        Err(last)
    }
}

fn is_about_token(status: &Status) -> bool {
    status.code() == Code::Unauthenticated || status.message().contains("invalid auth token")
}

/// True if the request cannot have been carried out: there was no connection, or no leader to take it.
fn came_to_nothing(status: &Status) -> bool {
    if status.code() != Code::Unavailable {
        return false;
    }
    if status.message() == "etcdserver: no leader" {
        return true;
    }
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn member(url: &str, tls: Option<&Arc<ClientConfig>>) -> Result<Channel, EtcdOpenError> {
    let refused = |reason| EtcdOpenError::Address { given: url.to_owned(), reason };
    let uri: Uri = url.parse().map_err(|_| refused("it is no URL"))?;
    let host = uri.host().ok_or_else(|| refused("it names no host"))?.to_owned();
    let port = uri.port_u16().unwrap_or(2379);
    let tls = match (uri.scheme_str(), tls) {
        (Some("http"), None) => None,
        (Some("https"), Some(tls)) => Some(tls.clone()),
        (Some("https"), None) => return Err(refused("https needs TLS, which is not set up")),
        (Some("http"), Some(_)) => return Err(refused("files for TLS are given, so it must be https")),
        _ => return Err(refused("it must begin with https:// or http://")),
    };
    // TLS is ours: the library must not begin another one.
    let endpoint =
        Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|_| refused("it is no URL"))?;
    let endpoint = endpoint
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connector = tower::service_fn(move |_: Uri| {
        let (host, tls) = (host.clone(), tls.clone());
        async move {
            let connecting = connect(host, port, tls);
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// A stream to a member.
trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(host: String, port: u16, tls: Option<Arc<ClientConfig>>) -> io::Result<Box<dyn Stream>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = TcpStream::connect((bare.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(bare).map_err(io::Error::other)?;
    Ok(Box::new(tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?))
}
