//! One connection to Auth: who is at the other end, and HTTP/2 on it with its bounds.

use crate::gate::Gate;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wayleave_identity::{HostPrincipal, Principal, UserPrincipal};
use wayleave_runtime::TaskGroup;
use wayleave_vocab::SystemRole;

/// Streams at once on one connection.
const STREAMS_MAX: u32 = 256;
/// Streams at once on a connection without a certificate.
const STRANGER_STREAMS_MAX: u32 = 8;
/// Bytes of request headers.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Bytes that wait to be sent, per stream.
const SEND_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Bytes in flight towards us, per stream and per connection.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const STRANGER_WINDOW_BYTES: u32 = 64 * 1024;
/// Streams that a peer opened and reset before we looked at them.
const PENDING_RESETS_MAX: usize = 64;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Both for proxies: routes are believed for as long as a proxy's stream seems to live.
const PROXY_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// HTTP/2 must have begun this long after TLS.
const PREFACE_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of the HTTP/2 client preface.
const PREFACE_BYTES: u64 = 24;
/// A connection without a certificate is for a few calls.
const STRANGER_LIFETIME: Duration = Duration::from_secs(300);
/// How long calls may go on after shutdown was requested.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// No certificate.
    Stranger,
    /// A verified user certificate.
    User(UserPrincipal),
    /// A verified certificate of a process.
    Host(HostPrincipal),
}

impl From<Principal> for Identity {
    fn from(principal: Principal) -> Self {
        match principal {
            Principal::User(user) => Self::User(user),
            Principal::Host(host) => Self::Host(host),
        }
    }
}

/// What is known about a connection once TLS is up.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) identity: Identity,
    /// Where the client is: the socket's peer, or what the forwarding proxy said.
    pub(crate) client_address: SocketAddr,
}

/// Answers calls on a connection until it ends, shutdown is requested, or it is not worth its slot.
pub(crate) async fn serve<IO>(io: IO, connection: Connection, gate: Gate, group: TaskGroup)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stranger = connection.identity == Identity::Stranger;
    let address = connection.client_address;
    let received = Arc::new(AtomicU64::new(0));
    let io = TokioIo::new(Counted { io, received: received.clone() });
    let shutdown = group.shutdown();
    let builder = http2(&connection.identity, group);
    let mut http = std::pin::pin!(builder.serve_connection(io, gate.for_connection(connection)));

    let preface = async {
        tokio::time::sleep(PREFACE_DEADLINE).await;
        if received.load(Ordering::Relaxed) >= PREFACE_BYTES {
            std::future::pending::<()>().await;
        }
    };
    let lifetime = async {
        match stranger {
            true => tokio::time::sleep(STRANGER_LIFETIME).await,
            false => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        result = &mut http => result,
        () = preface => return tracing::debug!(%address, "closed: no HTTP/2 within the deadline"),
        () = lifetime => {
            http.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN_DEADLINE, http).await.unwrap_or(Ok(()))
        }
        () = shutdown.requested() => {
            http.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN_DEADLINE, http).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%address, %error, "connection ended");
    }
}

fn http2(identity: &Identity, group: TaskGroup) -> hyper::server::conn::http2::Builder<GroupExecutor> {
    let (streams, window, stream_window) = match identity {
        Identity::Stranger => (STRANGER_STREAMS_MAX, STRANGER_WINDOW_BYTES, STRANGER_WINDOW_BYTES),
        Identity::User(_) | Identity::Host(_) => (STREAMS_MAX, CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES),
    };
    let (interval, timeout) = match identity {
        Identity::Host(host) if host.system_roles.contains(&SystemRole::Proxy) => {
            (PROXY_KEEP_ALIVE, PROXY_KEEP_ALIVE)
        }
        Identity::Stranger | Identity::User(_) | Identity::Host(_) => {
            (KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT)
        }
    };
    let mut builder = hyper::server::conn::http2::Builder::new(GroupExecutor(group));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .initial_connection_window_size(window)
        .initial_stream_window_size(stream_window)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .keep_alive_interval(interval)
        .keep_alive_timeout(timeout);
    builder
}

/// Runs the streams of a connection in the task group.
#[derive(Clone)]
struct GroupExecutor(TaskGroup);

impl<F> hyper::rt::Executor<F> for GroupExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.spawn_many(async move {
            future.await;
        });
    }
}

/// Counts what was received, to tell a silent peer.
struct Counted<IO> {
    io: IO,
    received: Arc<AtomicU64>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let poll = std::pin::Pin::new(&mut self.io).poll_read(cx, buf);
        let count = u64::try_from(buf.filled().len().saturating_sub(before)).unwrap_or(u64::MAX);
        self.received.fetch_add(count, Ordering::Relaxed);
        poll
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
