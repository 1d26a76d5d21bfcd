//! Writes the routes of one proxy for as long as its stream lives.
//!
//! The entries (`route_log.rs`) hang on a lease that this keeps alive; when the stream or this process ends, the lease
//! runs out and the routes become suspect everywhere. A second stream of the same proxy wins over the first if it is not
//! older.

use crate::auth_core::AuthCore;
use crate::connection::Identity;
use crate::keys;
use crate::request_error::RequestError;
use crate::route_log::{LogWrite, Place, RouteLog};
use crate::route_table::stored_update;
use futures::{FutureExt, Stream, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;
use wayleave_api::auth::{RouteAck, RouteUpdate};
use wayleave_identity::HostPrincipal;
use wayleave_runtime::Shutdown;
use wayleave_store::{Condition, LeaseId, Operation, Revision, StoreError};

/// How long routes are believed without a sign of life.
pub(crate) const ROUTE_LEASE_TTL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Updates that are taken together into one write.
const UPDATES_TOGETHER_MAX: usize = 256;

/// Publishes for one proxy.
pub(crate) struct RoutePublisher {
    core: Arc<AuthCore>,
    caller: HostPrincipal,
    lease: Option<LeaseId>,
    log: RouteLog,
    /// The proxy has left.
    is_withdrawn: bool,
}

/// What a failed write means for the stream.
enum WriteError {
    /// Try again at the next tick.
    Later(StoreError),
    /// A newer stream or life of the proxy has taken over.
    Superseded,
    Broken(RequestError),
}

impl RoutePublisher {
    pub(crate) fn new(core: Arc<AuthCore>, caller: HostPrincipal) -> Self {
        Self { core, caller, lease: None, log: RouteLog::default(), is_withdrawn: false }
    }

    /// Takes updates until the stream ends, the proxy has left, is superseded, or shutdown. Acknowledges what is written.
    pub(crate) async fn run(
        mut self,
        mut updates: impl Stream<Item = Result<RouteUpdate, Status>> + Unpin,
        acks: mpsc::Sender<Result<RouteAck, Status>>,
        shutdown: Shutdown,
    ) {
        let mut tick = tokio::time::interval(KEEP_ALIVE_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                () = shutdown.requested() => return,
                () = acks.closed() => return,
                next = updates.next() => match next {
                    Some(Ok(update)) => self.take(update, &mut updates),
                    Some(Err(_)) | None => return,
                },
                _ = tick.tick() => self.keep_alive().await,
            };
            if self.is_withdrawn {
                return self.withdraw().await;
            }
            let done = match done {
                Ok(()) => self.flush(&acks).await,
                Err(status) => Err(status),
            };
            if let Err(status) = done {
                let _ = acks.send(Err(status)).await;
                return;
            }
        }
    }

    /// Applies an update and those that have arrived behind it.
    fn take(
        &mut self,
        first: RouteUpdate,
        updates: &mut (impl Stream<Item = Result<RouteUpdate, Status>> + Unpin),
    ) -> Result<(), Status> {
        self.apply(&first)?;
        for _ in 0..UPDATES_TOGETHER_MAX {
            match updates.next().now_or_never() {
                Some(Some(Ok(update))) => self.apply(&update)?,
                // The end is seen again by the loop.
                Some(Some(Err(_)) | None) | None => break,
            }
        }
        Ok(())
    }

    fn apply(&mut self, update: &RouteUpdate) -> Result<(), Status> {
        if update.withdrawn {
            self.is_withdrawn = true;
            return Ok(());
        }
        self.log.apply(update).map_err(|error| Status::invalid_argument(format!("routes: {error}")))
    }

    /// Gives the lease its time again, while the caller may publish.
    async fn keep_alive(&mut self) -> Result<(), Status> {
        self.core.current(&Identity::Host(self.caller.clone()))?;
        let Some(lease) = self.lease else { return Ok(()) };
        match self.core.records.backend().lease_keep_alive(lease).await {
            Ok(()) => {}
            Err(StoreError::LeaseNotFound { .. }) => {
                self.lease = None;
                self.log.write_everything();
            }
            Err(error) => tracing::warn!(%error, "the lease of a proxy's routes cannot be kept alive"),
        }
        Ok(())
    }

    /// Deletes what this stream wrote, unless somebody newer has written since.
    async fn withdraw(&mut self) {
        let Some(written) = self.log.revision() else { return };
        let key = keys::routes_of(self.caller.host_id);
        let condition = Condition::RevisionIs(key.clone(), written);
        let deleted = self.core.records.commit(vec![condition], vec![Operation::Delete { key }]).await;
        if let Err(error) = deleted {
            tracing::debug!(%error, "the routes of a proxy that left stay until its lease ends");
        }
    }

    async fn flush(&mut self, acks: &mpsc::Sender<Result<RouteAck, Status>>) -> Result<(), Status> {
        match self.write().await {
            // A peer that does not read its answers gets no more of them; the routes are written all the same.
            Ok(Some(sequence)) => drop(acks.try_send(Ok(RouteAck { sequence }))),
            Ok(None) => {}
            Err(WriteError::Later(error)) => tracing::warn!(%error, "routes cannot be written now"),
            Err(WriteError::Superseded) => {
                return Err(Status::aborted("another stream publishes the routes of this proxy"));
            }
            Err(WriteError::Broken(error)) => return Err(error.into()),
        }
        Ok(())
    }

    /// Writes what is to be written, if anything, and gives the sequence up to which everything has been taken. One
    /// attempt as things seem to stand, and one after looking.
    async fn write(&mut self) -> Result<Option<u64>, WriteError> {
        match self.write_next().await {
            Err(WriteError::Later(error)) if self.must_look_again(&error) => self.write_next().await,
            done => done,
        }
    }

    async fn write_next(&mut self) -> Result<Option<u64>, WriteError> {
        let Some(write) = self.log.next() else { return Ok(self.log.take_part()) };
        let lease = self.lease().await?;
        let revision = self.commit(&write, lease).await?;
        self.log.note_written(&write, revision);
        Ok(Some(write.sequence))
    }

    /// The backend has something else than this stream thought, which is noted.
    fn must_look_again(&mut self, error: &StoreError) -> bool {
        match error {
            StoreError::LeaseNotFound { .. } => self.lease = None,
            StoreError::Conflict { .. } | StoreError::NotFound { .. } | StoreError::AlreadyExists { .. } => {}
            _ => return false,
        }
        self.log.write_everything();
        true
    }

    async fn commit(&self, write: &LogWrite, lease: LeaseId) -> Result<Revision, WriteError> {
        let whole = keys::routes_of(self.caller.host_id);
        let condition = match self.log.revision() {
            Some(revision) => Condition::RevisionIs(whole.clone(), revision),
            None => self.look().await?,
        };
        let key = match write.place {
            Place::Everything => whole,
            Place::Change(number) => keys::routes_change(self.caller.host_id, number),
        };
        let put = Operation::Put { key, value: write.value.clone(), lease: Some(lease) };
        Ok(self.core.records.commit(vec![condition], vec![put]).await?.revision)
    }

    async fn lease(&mut self) -> Result<LeaseId, WriteError> {
        if let Some(lease) = self.lease {
            return Ok(lease);
        }
        let lease = self.core.records.backend().lease_grant(ROUTE_LEASE_TTL).await?;
        self.lease = Some(lease);
        Ok(lease)
    }

    /// What must hold so that this stream may write everything: nobody newer has.
    async fn look(&self) -> Result<Condition, WriteError> {
        let key = keys::routes_of(self.caller.host_id);
        let Some(item) = self.core.records.backend().get(&key).await? else {
            return Ok(Condition::Absent(key));
        };
        let stored = stored_update(&item).map(|stored| (stored.incarnation, stored.sequence));
        if stored > self.log.table().map(|table| (table.incarnation.0, table.sequence)) {
            return Err(WriteError::Superseded);
        }
        Ok(Condition::RevisionIs(key, item.revision))
    }
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooLarge { .. } => Self::Broken(RequestError::store("write the routes")(error)),
            other => Self::Later(other),
        }
    }
}
