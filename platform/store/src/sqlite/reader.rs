//! The reading thread: its own connection, which sees every acknowledged write.

use super::queue::Reply;
use super::tables;
use crate::backend::{Item, Page, Revision};
use crate::error::StoreError;
use crate::key::Key;
use crate::watch::Past;
use rusqlite::Connection;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;

/// A question to the file.
pub(super) enum Read {
    Get {
        key: Key,
        reply: Reply<Option<Item>>,
    },
    Range {
        prefix: Key,
        after: Option<Key>,
        limit: usize,
        reply: Reply<Page>,
    },
    /// Answered with none if the history does not reach back to the cursor.
    Past {
        prefix: Key,
        cursor: Revision,
        newest: Revision,
        reply: Reply<Option<Past>>,
    },
}

pub(super) struct Reader {
    pub(super) path: PathBuf,
    pub(super) connection: Connection,
}

impl Reader {
    /// Answers until the queue ends.
    pub(super) fn run(mut self, waiting: &Receiver<Read>) {
        while let Ok(read) = waiting.recv() {
            match read {
                Read::Get { key, reply } => self.answer(reply, |db| tables::get(db, &key)),
                Read::Range { prefix, after, limit, reply } => {
                    self.answer(reply, |db| tables::range(db, &prefix, after.as_ref(), limit));
                }
                Read::Past { prefix, cursor, newest, reply } => {
                    self.answer(reply, |db| tables::past(db, &prefix, cursor, newest));
                }
            }
        }
    }

    fn answer<T>(&mut self, reply: Reply<T>, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) {
        // A request whose caller has gone costs nothing.
        if reply.is_closed() {
            return;
        }
        // One transaction, so that what is read in several steps belongs together; dropped, it ends.
        let answer = self.connection.transaction().and_then(|transaction| read(&transaction));
        let answer = answer.map_err(|error| tables::store_error(&self.path, "read", error));
        if let Err(error @ StoreError::Corrupt { .. }) = &answer {
            tracing::error!(path = %self.path.display(), %error, "the backend's file is damaged");
        }
        // The caller may have gone meanwhile.
        let _ = reply.send(answer);
    }
}
