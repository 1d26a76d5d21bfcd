//! When this proxy listens for peers: while the cluster's strategy is `proxy_peering`, and a little longer.

use super::server::serve_peers;
use crate::service::{Shared, advertised};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use wayleave_net::{BindError, bind};
use wayleave_runtime::Shutdown;
use wayleave_vocab::TunnelStrategy;

const PURPOSE: &str = "peer_listen_addr";
/// How long peers are served after the strategy has changed: agents need time to connect to every proxy, those behind a
/// balancer several minutes.
const LEAVE_AFTER: Duration = Duration::from_secs(600);
/// Pause before a port that could not be had is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// The listener for peers, opened at once where the policy of before says that the cluster peers.
///
/// # Errors
/// [`BindError`].
pub(crate) async fn bind_early(shared: &Shared) -> Result<Option<TcpListener>, BindError> {
    let policy = shared.policy.watch().borrow().clone();
    let strategy = policy.map(|policy| policy.parts().networking.spec.tunnel_strategy);
    let is_peering = matches!(strategy, Some(TunnelStrategy::ProxyPeering { .. }));
    if !is_peering && shared.config.tunnel_listen.is_none() {
        return Ok(None);
    }
    bind(PURPOSE, shared.config.peer_listen).await.map(Some)
}

/// Follows the strategy until shutdown, at first with the listener that is open already.
///
/// # Errors
/// [`BindError`] when the cluster peers from the start and the port cannot be had. Later that is logged and tried again.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    mut early: Option<TcpListener>,
    shutdown: Shutdown,
) -> Result<(), BindError> {
    let (mut ready, mut peering) = (shared.cluster.ready.subscribe(), shared.cluster.has_peering.subscribe());
    if !wait(&mut ready, true, &shutdown).await {
        return Ok(());
    }
    let mut is_from_start = *peering.borrow();
    early = early.filter(|_| is_from_start);
    while wait(&mut peering, true, &shutdown).await {
        let bound = match early.take() {
            Some(listener) => Ok(listener),
            None => bind(PURPOSE, shared.config.peer_listen).await,
        };
        let bound = bound.and_then(|listener| {
            let address = listener.local_addr();
            let address = address.map_err(|source| BindError {
                what: PURPOSE,
                address: shared.config.peer_listen,
                source,
            });
            Ok((listener, address?))
        });
        let (listener, listening) = match bound {
            Ok(bound) => bound,
            Err(error) if is_from_start => return Err(error),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "peers cannot reach this proxy");
                let _ = shutdown.until(tokio::time::sleep(RETRY_PAUSE)).await;
                continue;
            }
        };
        is_from_start = false;
        let period = shutdown.child();
        shared.needed.spawn("peers", &period, serve_peers(shared.clone(), listener, period.clone()));
        let address = shared.config.peer_public.clone();
        let address = address.unwrap_or_else(|| advertised(&shared.config, listening));
        tracing::info!(%address, "peers reach this proxy");
        shared.cluster.peer_address.send_replace(Some(address));
        until_left(&mut peering, &shutdown).await;
        shared.cluster.peer_address.send_replace(None);
        period.request();
    }
    Ok(())
}

/// Waits until the strategy has been another one for a while.
async fn until_left(peering: &mut watch::Receiver<bool>, shutdown: &Shutdown) {
    while wait(peering, false, shutdown).await {
        match tokio::time::timeout(LEAVE_AFTER, wait(peering, true, shutdown)).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => {
                tracing::info!("the cluster does not peer any more: peers are not served");
                return;
            }
        }
    }
}

/// Waits for a value; false when shutdown came before.
async fn wait(watched: &mut watch::Receiver<bool>, wanted: bool, shutdown: &Shutdown) -> bool {
    let waiting = async { watched.wait_for(|value| *value == wanted).await.is_ok() };
    shutdown.until(waiting).await == Some(true)
}
