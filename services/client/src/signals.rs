//! Ends that come from outside: the agent is told, so that it does not wait for a client that will not come back.

use std::future::Future;
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a command.
pub(crate) struct Ending(Vec<Signal>);

impl Ending {
    /// Watches for them from now on: they end this process no longer by themselves.
    pub(crate) fn watch() -> io::Result<Self> {
        let kinds = [SignalKind::hangup(), SignalKind::terminate(), SignalKind::interrupt()];
        kinds.into_iter().map(signal).collect::<io::Result<_>>().map(Self)
    }

    /// Runs a future to its end, or until a signal comes (then `None`).
    pub(crate) async fn until<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let signals = self.0.iter_mut().map(|signal| Box::pin(signal.recv()));
        tokio::select! {
            output = future => Some(output),
            _ = futures::future::select_all(signals) => None,
        }
    }
}
