//! The accept loop: never waits on a peer, bounded, and survives running out of file descriptors.

use crate::lobby::{Admission, Lobby, Slots};
use socket2::SockRef;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use wayleave_runtime::{Shutdown, TaskGroup};

/// How long to leave the listener alone when the system has no resources for another connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// How much unsent data may wait in the kernel, so that small messages do not queue behind bulk.
const NOT_SENT_LOW_BYTES: u32 = 128 * 1024;
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A listener that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {what}")]
pub struct BindError {
    /// What it was for.
    pub what: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// Opens a listener.
///
/// # Errors
/// [`BindError`] with the address and what it was for.
pub async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { what, address, source })
}

/// Accepts connections until shutdown, each served by a task of its own, as many at a time as there are slots. When those
/// are taken, a new connection takes the slot of the stranger that has waited longest, see [`Admission`].
pub async fn accept_loop<S, F>(
    what: &'static str,
    listener: TcpListener,
    slots: Slots,
    tasks: TaskGroup,
    shutdown: Shutdown,
    serve: S,
) where
    S: Fn(TcpStream, SocketAddr, Admission) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let lobby = Lobby::new(what, slots);
    while let Some(accepted) = shutdown.until(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(what, %error, "accepting a connection failed");
                let _ = shutdown.until(tokio::time::sleep(EXHAUSTED_PAUSE)).await;
                continue;
            }
        };
        let Some(admission) = lobby.admit(peer.ip(), Instant::now()) else { continue };
        tune(&stream);
        // An async block has room for what it captures twice.
        let served = Box::pin(serve(stream, peer, admission.clone()));
        tasks.spawn_many(async move {
            let _ = admission.evicted().until(served).await;
        });
    }
}

/// Sets what every connection of ours wants: no delay, little unsent data in the kernel, and a dead other side noticed.
///
/// `TCP_USER_TIMEOUT` is not among it: it also ends connections whose other side is well and only does not read for a
/// while (a terminal that is halted, a process that is stopped).
pub fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    let results =
        [stream.set_nodelay(true), socket.set_tcp_keepalive(&keepalive), set_linux_options(&socket)];
    for error in results.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "a socket option was not taken");
    }
}

#[cfg(target_os = "linux")]
fn set_linux_options(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_notsent_lowat(NOT_SENT_LOW_BYTES)
}

#[cfg(not(target_os = "linux"))]
fn set_linux_options(_: &SockRef<'_>) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_that_pauses_is_not_given_up() {
        let listener = bind("test", SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tune(&stream);
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }
}
