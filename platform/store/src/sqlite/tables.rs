//! The layout of the file and its statements.
//!
//! `log` has one row for each event, numbered by revision and position within it, and is the only
//! place where values are kept. `items` points from each key to its present row of the log. So a
//! value is written once, a watch resumes from the log, and forgetting history deletes the rows up to
//! `head.floor` that no key points to.

use crate::backend::{BATCH_OPERATIONS_MAX, Item, Page, RANGE_BYTES_MAX, Revision};
use crate::error::StoreError;
use crate::history::{Change, Event, Mark};
use crate::key::Key;
use crate::lease::LeaseId;
use crate::plan::Current;
use crate::watch::Past;
use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Row, params};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wayleave_vocab::Wall;

/// Rows of one revision in the log: more than a batch can have.
const ROWS_PER_REVISION: u64 = 1024;
const _: () = assert!(BATCH_OPERATIONS_MAX < ROWS_PER_REVISION as usize);

/// Rows and bytes after which a piece of history ends, at the next revision.
const PAST_ROWS_MAX: usize = 1024;
const PAST_BYTES_MAX: usize = 16 << 20;

/// "Wylv": the file is ours.
pub(super) const APPLICATION_ID: i64 = 0x5779_6c76;
/// Version of the layout below.
pub(super) const SCHEMA_VERSION: i64 = 1;

pub(super) const SCHEMA: &str = "
    CREATE TABLE head (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        revision INTEGER NOT NULL,
        floor INTEGER NOT NULL,
        lease_last INTEGER NOT NULL
    );
    INSERT INTO head VALUES (1, 0, 0, 0);
    CREATE TABLE log (
        id INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL,
        key TEXT NOT NULL,
        lease INTEGER,
        bytes INTEGER NOT NULL,
        value BLOB
    );
    CREATE TABLE items (
        key TEXT PRIMARY KEY,
        log_id INTEGER NOT NULL,
        lease INTEGER
    ) WITHOUT ROWID;
    CREATE INDEX items_by_lease ON items (lease) WHERE lease IS NOT NULL;
    CREATE TABLE leases (
        id INTEGER PRIMARY KEY,
        ttl_ms INTEGER NOT NULL
    );
";

/// Where the whole file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// The newest change.
    pub(super) revision: Revision,
    /// History is complete behind this revision.
    pub(super) floor: Revision,
    /// The newest lease id ever given.
    pub(super) lease_last: LeaseId,
}

pub(super) fn head(db: &Connection) -> rusqlite::Result<Head> {
    let mut select = db.prepare_cached("SELECT revision, floor, lease_last FROM head")?;
    select.query_row([], |row| {
        Ok(Head {
            revision: Revision(unsigned(row.get(0)?)),
            floor: Revision(unsigned(row.get(1)?)),
            lease_last: LeaseId(unsigned(row.get(2)?)),
        })
    })
}

pub(super) fn set_head(db: &Connection, head: Head) -> rusqlite::Result<()> {
    let mut update = db.prepare_cached("UPDATE head SET revision = ?1, floor = ?2, lease_last = ?3")?;
    update.execute(params![signed(head.revision.0), signed(head.floor.0), signed(head.lease_last.0)])?;
    Ok(())
}

pub(super) fn get(db: &Connection, key: &Key) -> rusqlite::Result<Option<Item>> {
    let mut select = db.prepare_cached(
        "SELECT items.key, log.id, items.lease, log.value
         FROM items JOIN log ON log.id = items.log_id WHERE items.key = ?1",
    )?;
    select.query_row([key.as_str()], item).optional()
}

pub(super) fn range(
    db: &Connection,
    prefix: &Key,
    after: Option<&Key>,
    limit: usize,
) -> rusqlite::Result<Page> {
    let mut page = Page { items: Vec::new(), revision: head(db)?.revision, more: false };
    if after.is_none_or(|after| after < prefix) {
        page.items.extend(get(db, prefix)?);
    }
    let (low, high) = prefix.below();
    let low = after.map_or(low.as_str(), |after| after.as_str().max(low.as_str()));
    let mut select = db.prepare_cached(
        "SELECT items.key, log.id, items.lease, log.value
         FROM items JOIN log ON log.id = items.log_id
         WHERE items.key > ?1 AND items.key < ?2 ORDER BY items.key",
    )?;
    let mut rows = select.query([low, high.as_str()])?;
    let mut bytes = page.items.iter().map(|item| item.value.len()).fold(0, usize::saturating_add);
    while let Some(row) = rows.next()? {
        if page.items.len() >= limit || bytes >= RANGE_BYTES_MAX {
            page.more = true;
            break;
        }
        let item = item(row)?;
        bytes = bytes.saturating_add(item.value.len());
        page.items.push(item);
    }
    Ok(page)
}

/// The history behind `cursor` up to `newest`; none if it does not reach back to `cursor`.
pub(super) fn past(
    db: &Connection,
    prefix: &Key,
    cursor: Revision,
    newest: Revision,
) -> rusqlite::Result<Option<Past>> {
    if cursor < head(db)?.floor {
        return Ok(None);
    }
    let (low, high) = prefix.below();
    let mut select = db.prepare_cached(
        "SELECT key, id, lease, value FROM log
         WHERE id >= ?1 AND id < ?2 AND (key = ?3 OR (key > ?4 AND key < ?5)) ORDER BY id",
    )?;
    let mut rows = select.query(params![
        first_row(cursor.next()),
        first_row(newest.next()),
        prefix.as_str(),
        low,
        high
    ])?;
    let mut past = Past { changes: Vec::<Change>::new(), upto: newest };
    let (mut count, mut bytes) = (0_usize, 0_usize);
    while let Some(row) = rows.next()? {
        let revision = revision_of(row.get(1)?);
        let is_new = past.changes.last().is_none_or(|change| change.revision != revision);
        if is_new && (count >= PAST_ROWS_MAX || bytes >= PAST_BYTES_MAX) {
            past.upto = past.changes.last().map_or(cursor, |change| change.revision);
            break;
        }
        let event = event(row)?;
        count = count.saturating_add(1);
        bytes = bytes.saturating_add(event.bytes());
        match past.changes.last_mut() {
            Some(change) if !is_new => change.events.push(event),
            Some(_) | None => past.changes.push(Change { revision, events: vec![event] }),
        }
    }
    Ok(Some(past))
}

pub(super) fn current(db: &Connection, key: &Key) -> rusqlite::Result<Option<Current>> {
    let mut select = db.prepare_cached("SELECT log_id, lease FROM items WHERE key = ?1")?;
    let current =
        |row: &Row<'_>| Ok(Current { revision: revision_of(row.get(0)?), lease: lease(row.get(1)?) });
    select.query_row([key.as_str()], current).optional()
}

/// Writes the events of one revision. Rows that they replace go at once if history does not need them.
pub(super) fn write(db: &Connection, change: &Change, floor: Revision, now: Wall) -> rusqlite::Result<()> {
    for (position, event) in (0..).zip(&change.events) {
        let key = event.key().as_str();
        let mut replaced = db.prepare_cached("SELECT log_id FROM items WHERE key = ?1")?;
        let replaced: Option<i64> = replaced.query_row([key], |row| row.get(0)).optional()?;
        let (value, lease) = match event {
            Event::Put(item) => (Some(&item.value[..]), item.lease.map(|lease| signed(lease.0))),
            Event::Delete { .. } => (None, None),
        };
        let id = first_row(change.revision).saturating_add(position);
        let bytes = i64::try_from(event.bytes()).unwrap_or(i64::MAX);
        db.prepare_cached(
            "INSERT INTO log (id, at_ms, key, lease, bytes, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![id, signed(now.as_ms()), key, lease, bytes, value])?;
        match event {
            Event::Put(_) => db
                .prepare_cached("INSERT OR REPLACE INTO items (key, log_id, lease) VALUES (?1, ?2, ?3)")?
                .execute(params![key, id, lease])?,
            Event::Delete { .. } => db.prepare_cached("DELETE FROM items WHERE key = ?1")?.execute([key])?,
        };
        if let Some(replaced) = replaced.filter(|id| revision_of(*id) <= floor) {
            db.prepare_cached("DELETE FROM log WHERE id = ?1")?.execute([replaced])?;
        }
    }
    Ok(())
}

/// Forgets the history behind `floor` up to `upto`, itself included.
pub(super) fn forget(db: &Connection, floor: Revision, upto: Revision) -> rusqlite::Result<()> {
    let mut delete = db.prepare_cached(
        "DELETE FROM log WHERE id >= ?1 AND id < ?2 AND NOT EXISTS
            (SELECT 1 FROM items WHERE items.key = log.key AND items.log_id = log.id)",
    )?;
    delete.execute([first_row(floor.next()), first_row(upto.next())])?;
    Ok(())
}

/// When the changes of the history were made and what they weigh, oldest first.
pub(super) fn marks(db: &Connection, head: Head) -> rusqlite::Result<Vec<Mark>> {
    let mut select = db.prepare("SELECT id, at_ms, bytes FROM log WHERE id >= ?1 ORDER BY id")?;
    let mut rows = select.query([first_row(head.floor.next())])?;
    let mut marks = Vec::<Mark>::new();
    while let Some(row) = rows.next()? {
        let revision = revision_of(row.get(0)?);
        let bytes = usize::try_from(row.get::<_, i64>(2)?).unwrap_or(0);
        match marks.last_mut() {
            Some(mark) if mark.revision == revision => mark.bytes = mark.bytes.saturating_add(bytes),
            Some(_) | None => {
                marks.push(Mark { revision, at: Wall::from_ms(unsigned(row.get(1)?)), bytes });
            }
        }
    }
    Ok(marks)
}

pub(super) fn leases(db: &Connection) -> rusqlite::Result<Vec<(LeaseId, Duration)>> {
    let mut select = db.prepare("SELECT id, ttl_ms FROM leases")?;
    let lease =
        |row: &Row<'_>| Ok((LeaseId(unsigned(row.get(0)?)), Duration::from_millis(unsigned(row.get(1)?))));
    select.query_map([], lease)?.collect()
}

pub(super) fn insert_lease(db: &Connection, lease: LeaseId, ttl: Duration) -> rusqlite::Result<()> {
    let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    let mut insert = db.prepare_cached("INSERT INTO leases (id, ttl_ms) VALUES (?1, ?2)")?;
    insert.execute([signed(lease.0), ttl_ms])?;
    Ok(())
}

pub(super) fn delete_lease(db: &Connection, lease: LeaseId) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM leases WHERE id = ?1")?.execute([signed(lease.0)])?;
    Ok(())
}

/// Keys that hang on a lease, at most `limit`.
pub(super) fn lease_keys(db: &Connection, lease: LeaseId, limit: usize) -> rusqlite::Result<Vec<Key>> {
    let mut select = db.prepare_cached("SELECT key FROM items WHERE lease = ?1 ORDER BY key LIMIT ?2")?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    select.query_map([signed(lease.0), limit], |row| key(row, 0))?.collect()
}

/// What a failure of the database means to the caller.
pub(super) fn store_error(path: &Path, doing: &'static str, error: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    let (code, extended) = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => (failure.code, failure.extended_code),
        rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) => {
            return StoreError::Corrupt { path, source: Arc::new(error) };
        }
        _ => return StoreError::Unavailable { doing, source: Arc::new(error) },
    };
    match code {
        ErrorCode::DiskFull => StoreError::Full { path, source: Arc::new(error) },
        // The index of the log could not grow, which only a full disk causes.
        ErrorCode::SystemIoFailure if extended == rusqlite::ffi::SQLITE_IOERR_SHMSIZE => {
            StoreError::Full { path, source: Arc::new(error) }
        }
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            StoreError::Corrupt { path, source: Arc::new(error) }
        }
        _ => StoreError::Unavailable { doing, source: Arc::new(error) },
    }
}

/// An item from the columns key, log id, lease, value.
fn item(row: &Row<'_>) -> rusqlite::Result<Item> {
    let value = row.get_ref(3)?.as_blob().map(Bytes::copy_from_slice)?;
    Ok(Item { key: key(row, 0)?, value, revision: revision_of(row.get(1)?), lease: lease(row.get(2)?) })
}

/// An event from the same columns; one without a value is a deletion.
fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    match row.get_ref(3)? {
        rusqlite::types::ValueRef::Null => {
            Ok(Event::Delete { key: key(row, 0)?, revision: revision_of(row.get(1)?) })
        }
        _ => item(row).map(Event::Put),
    }
}

fn key(row: &Row<'_>, column: usize) -> rusqlite::Result<Key> {
    let text = row.get_ref(column)?.as_str()?;
    Key::parse(text).map_err(|error| {
        let kind = rusqlite::types::Type::Text;
        rusqlite::Error::FromSqlConversionFailure(column, kind, Box::new(error))
    })
}

fn lease(id: Option<i64>) -> Option<LeaseId> {
    id.map(|id| LeaseId(unsigned(id)))
}

fn first_row(revision: Revision) -> i64 {
    signed(revision.0.saturating_mul(ROWS_PER_REVISION))
}

fn revision_of(row: i64) -> Revision {
    Revision(unsigned(row) / ROWS_PER_REVISION)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
