//! What an error of the server means to the caller.

use super::tables::DamagedRow;
use crate::error::StoreError;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_postgres::error::SqlState;

/// Whose queue is full when the server is slow.
const SERVER: &str = "PostgreSQL";

/// Makes errors about one server.
#[derive(Clone)]
pub(super) struct Faults {
    /// The server and database, for messages.
    pub(super) server: Arc<str>,
}

/// The server did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("PostgreSQL did not answer in time")]
pub(super) struct NoAnswer;

impl Faults {
    pub(super) fn of(&self, doing: &'static str, error: tokio_postgres::Error) -> StoreError {
        let busy = [
            SqlState::QUERY_CANCELED,
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::TOO_MANY_CONNECTIONS,
            SqlState::OUT_OF_MEMORY,
            SqlState::INSUFFICIENT_RESOURCES,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ];
        match error.code() {
            Some(code) if busy.contains(code) => StoreError::Busy { queue: SERVER },
            Some(code) if *code == SqlState::DISK_FULL => {
                StoreError::Full { path: self.path(), source: Arc::new(error) }
            }
            Some(code) if [SqlState::DATA_CORRUPTED, SqlState::INDEX_CORRUPTED].contains(code) => {
                StoreError::Corrupt { path: self.path(), source: Arc::new(error) }
            }
            Some(_) | None => StoreError::Unavailable { doing, source: Arc::new(error) },
        }
    }

    pub(super) fn damaged(&self, error: DamagedRow) -> StoreError {
        tracing::error!(server = %self.server, %error, "the backend's tables are damaged");
        StoreError::Corrupt { path: self.path(), source: Arc::new(error) }
    }

    /// A read that took too long changed nothing.
    pub(super) fn slow_read(&self) -> StoreError {
        StoreError::Busy { queue: SERVER }
    }

    /// A write that took too long may have been stored.
    pub(super) fn slow_write(&self) -> StoreError {
        StoreError::Unavailable { doing: "write", source: Arc::new(NoAnswer) }
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(&*self.server)
    }
}
