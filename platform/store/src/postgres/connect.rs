//! Connections: each is kept by a task of its own, which makes it again after a loss, with growing pauses.

use super::address::PostgresAddress;
use super::tables::{CHANNEL, Statements};
use crate::error::{Source, StoreError};
use crate::server_tls::{ServerTlsError, client_config};
use futures::future::{BoxFuture, FutureExt as _, poll_fn};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Socket};
use wayleave_runtime::{Shutdown, random_u64};

/// How long a connection may take until it can be used.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long a request waits for a connection that is being made.
const CONNECTION_WAIT: Duration = Duration::from_secs(3);
/// Pauses between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What every connection is told. The server gives up a statement, a lock or an abandoned transaction before we give up
/// the answer, so that what took too long is known not to have been stored.
const SETTINGS: &str = "
    SET statement_timeout = '10s';
    SET lock_timeout = '5s';
    SET idle_in_transaction_session_timeout = '10s';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
";

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Write,
    Read,
    /// Hears of changes; keeps leases alive, which need not survive a crash of the server.
    Listen,
}

/// A connection that can be used.
pub(super) struct Session {
    pub(super) db: Client,
    pub(super) statements: Statements,
    broken: Shutdown,
}

impl Session {
    /// Ends the connection: what state it is in is not known.
    pub(super) fn give_up(&self) {
        self.broken.request();
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("could not connect to PostgreSQL")]
    Refused(#[source] tokio_postgres::Error),
    #[error("PostgreSQL did not answer in time")]
    Slow,
    #[error("the connection to PostgreSQL ended while it was set up")]
    Ended(#[source] Option<tokio_postgres::Error>),
    #[error("the connection to PostgreSQL is lost")]
    Lost,
}

type Driver = BoxFuture<'static, Option<tokio_postgres::Error>>;

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    address: PostgresAddress,
    tls: Option<Arc<ClientConfig>>,
    /// Rung by each notification.
    bell: Arc<Notify>,
}

impl Connector {
    pub(super) fn new(address: PostgresAddress, bell: Arc<Notify>) -> Result<Self, ServerTlsError> {
        let tls = address.tls.as_ref().map(|files| client_config(files, &[])).transpose()?;
        Ok(Self { address, tls, bell })
    }

    /// A connection without prepared statements, and what drives it.
    pub(super) async fn connect(&self) -> Result<(Client, Driver), ConnectError> {
        let connecting = async {
            let config = &self.address.config;
            Ok(match &self.tls {
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    (client, drive(connection, self.bell.clone()))
                }
                Some(tls) => {
                    let (client, connection) = config.connect(VerifiedTls(tls.clone())).await?;
                    (client, drive(connection, self.bell.clone()))
                }
            })
        };
        let connected = tokio::time::timeout(CONNECT_DEADLINE, connecting).await;
        connected.map_err(|_| ConnectError::Slow)?.map_err(ConnectError::Refused)
    }

    async fn establish(&self, purpose: Purpose) -> Result<(Session, Driver), ConnectError> {
        let (db, mut driver) = self.connect().await?;
        let setting_up = async {
            db.batch_execute(SETTINGS).await?;
            let statements = Statements::prepare(&db).await?;
            if purpose == Purpose::Listen {
                db.batch_execute("SET synchronous_commit = off").await?;
                db.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
            }
            Ok(statements)
        };
        let statements = tokio::select! {
            set_up = tokio::time::timeout(CONNECT_DEADLINE, setting_up) => {
                set_up.map_err(|_| ConnectError::Slow)?.map_err(ConnectError::Refused)?
            }
            ended = &mut driver => return Err(ConnectError::Ended(ended)),
        };
        Ok((Session { db, statements, broken: Shutdown::new() }, driver))
    }
}

fn drive<S>(mut connection: Connection<Socket, S>, bell: Arc<Notify>) -> Driver
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async move {
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(_))) => bell.notify_one(),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    }
    .boxed()
}

/// How a lane stands.
enum Link {
    Up(Arc<Session>),
    Down(Source),
    Closed,
}

/// A connection for one purpose, there whenever the server is.
#[derive(Clone)]
pub(super) struct Lane {
    link: watch::Receiver<Link>,
}

/// Keeps a lane's connection.
pub(super) struct Keeper {
    connector: Connector,
    purpose: Purpose,
    link: watch::Sender<Link>,
}

pub(super) fn lane(connector: &Connector, purpose: Purpose) -> (Lane, Keeper) {
    let (sender, link) = watch::channel(Link::Down(Arc::new(ConnectError::Lost)));
    (Lane { link }, Keeper { connector: connector.clone(), purpose, link: sender })
}

impl Lane {
    /// The connection, waited for a little while it is being made.
    pub(super) async fn session(&self, doing: &'static str) -> Result<Arc<Session>, StoreError> {
        let mut link = self.link.clone();
        let is_settled = |link: &Link| !matches!(link, Link::Down(_));
        if let Ok(Ok(link)) = tokio::time::timeout(CONNECTION_WAIT, link.wait_for(is_settled)).await {
            return match &*link {
                Link::Up(session) => Ok(session.clone()),
                Link::Down(source) => Err(StoreError::Unavailable { doing, source: source.clone() }),
                Link::Closed => Err(StoreError::Closed),
            };
        }
        match &*self.link.borrow() {
            Link::Down(source) => Err(StoreError::Unavailable { doing, source: source.clone() }),
            Link::Up(session) => Ok(session.clone()),
            Link::Closed => Err(StoreError::Closed),
        }
    }
}

impl Keeper {
    /// Connects, and connects again, until shutdown.
    pub(super) async fn run(self, shutdown: Shutdown) {
        let mut failures = 0_u32;
        while !shutdown.is_requested() {
            let Some(established) = shutdown.until(self.connector.establish(self.purpose)).await else {
                break;
            };
            match established {
                Ok((session, driver)) => {
                    let session = Arc::new(session);
                    if failures > 0 {
                        tracing::info!(server = %self.connector.address, "PostgreSQL answers again");
                    }
                    failures = 0;
                    let given_up = session.broken.clone();
                    self.link.send_replace(Link::Up(session));
                    let ended = shutdown.until(given_up.until(driver)).await;
                    self.link.send_replace(Link::Down(Arc::new(ConnectError::Lost)));
                    match ended {
                        None => break,
                        Some(None) => tracing::debug!("a connection to PostgreSQL was given up"),
                        Some(Some(error)) => {
                            let error = error.map(|error| error.to_string());
                            tracing::warn!(error, "a connection to PostgreSQL is lost");
                        }
                    }
                }
                Err(error) => {
                    if failures == 0 {
                        let cause = std::error::Error::source(&error).map(ToString::to_string);
                        tracing::warn!(%error, cause, server = %self.connector.address, "PostgreSQL does not answer");
                    }
                    failures = failures.saturating_add(1);
                    self.link.send_replace(Link::Down(Arc::new(error)));
                }
            }
            if shutdown.until(tokio::time::sleep(pause(failures))).await.is_none() {
                break;
            }
        }
        self.link.send_replace(Link::Closed);
    }
}

/// Between half and the whole of a pause that doubles with each failure.
fn pause(failures: u32) -> Duration {
    let whole = PAUSE_MIN.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX);
    let half_ms = u64::try_from(whole.as_millis() / 2).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(half_ms.saturating_add(random_u64() % half_ms))
}

/// TLS by our own library.
#[derive(Clone)]
struct VerifiedTls(Arc<ClientConfig>);

/// TLS to one server.
struct VerifiedTlsTo {
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
}

/// A stream inside TLS.
struct Encrypted(tokio_rustls::client::TlsStream<Socket>);

impl MakeTlsConnect<Socket> for VerifiedTls {
    type Stream = Encrypted;
    type TlsConnect = VerifiedTlsTo;
    type Error = io::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<VerifiedTlsTo, io::Error> {
        let server = ServerName::try_from(domain.to_owned()).map_err(io::Error::other)?;
        Ok(VerifiedTlsTo { config: self.0.clone(), server })
    }
}

impl TlsConnect<Socket> for VerifiedTlsTo {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Encrypted>>;

    fn connect(self, stream: Socket) -> Self::Future {
        let connecting = tokio_rustls::TlsConnector::from(self.config).connect(self.server, stream);
        async move { connecting.await.map(Encrypted) }.boxed()
    }
}

impl TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
