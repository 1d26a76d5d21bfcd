//! The layout of the tables and their statements.
//!
//! As in the SQLite file, `wayleave_log` has one row for each event, numbered by revision and position within it, and
//! is the only place where values are kept; `wayleave_items` points from each key to its present row. Every writer
//! locks the one row of `wayleave_head` first, so revisions are taken in the order in which transactions commit, and
//! whoever sees a revision in `wayleave_head` sees everything up to it in `wayleave_log`.

use crate::backend::{BATCH_OPERATIONS_MAX, Item, Revision};
use crate::history::Event;
use crate::key::Key;
use crate::lease::LeaseId;
use bytes::Bytes;
use std::error::Error;
use tokio_postgres::{Client, Row, Statement};

/// Rows of one revision in the log: more than a batch can have. The statements below say it as well.
pub(super) const ROWS_PER_REVISION: u64 = 1024;
const _: () = assert!(BATCH_OPERATIONS_MAX < ROWS_PER_REVISION as usize);
/// Rows after which a piece of history ends, and bytes after which it ends with the revision.
pub(super) const PAST_ROWS_MAX: i64 = 1024;
pub(super) const PAST_BYTES_MAX: i64 = 16 << 20;

/// Version of the layout.
pub(super) const SCHEMA_VERSION: i32 = 1;
/// The channel that wakes those who follow the log.
pub(super) const CHANNEL: &str = "wayleave";
/// Keeps two first starts from making the tables at once. "Wylv".
pub(super) const SCHEMA_LOCK: i64 = 0x5779_6c76;

/// Makes the tables where they are not. Keys sort by their bytes whatever the database's collation is, and values are
/// not compressed: they are read as often as they are written.
pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS wayleave_head (
        one integer PRIMARY KEY CHECK (one = 1),
        schema_version integer NOT NULL,
        life text NOT NULL,
        revision bigint NOT NULL,
        floor bigint NOT NULL,
        lease_last bigint NOT NULL
    );
    CREATE TABLE IF NOT EXISTS wayleave_log (
        id bigint PRIMARY KEY,
        at_ms bigint NOT NULL,
        key text COLLATE \"C\" NOT NULL,
        lease bigint,
        bytes bigint NOT NULL,
        value bytea
    );
    ALTER TABLE wayleave_log ALTER COLUMN value SET STORAGE EXTERNAL;
    CREATE TABLE IF NOT EXISTS wayleave_items (
        key text COLLATE \"C\" PRIMARY KEY,
        log_id bigint NOT NULL,
        lease bigint,
        bytes bigint NOT NULL
    );
    CREATE INDEX IF NOT EXISTS wayleave_items_by_lease ON wayleave_items (lease) WHERE lease IS NOT NULL;
    CREATE TABLE IF NOT EXISTS wayleave_leases (
        id bigint PRIMARY KEY,
        ttl_ms bigint NOT NULL,
        ends_at timestamptz NOT NULL
    );
";

const HEAD: &str = "SELECT revision, floor, lease_last, life FROM wayleave_head";
const LOCK_HEAD: &str = "SELECT revision, floor, lease_last, life FROM wayleave_head FOR UPDATE";
const SET_HEAD: &str = "UPDATE wayleave_head SET revision = $1, floor = $2, lease_last = $3";
const GET: &str = "
    SELECT i.key, i.log_id, i.lease, l.value
    FROM wayleave_items i JOIN wayleave_log l ON l.id = i.log_id WHERE i.key = $1";
/// The head, and the items that a page has room for; one row more, without its value, says that there are others.
const RANGE: &str = "
    SELECT h.revision, p.key, p.log_id, p.lease,
        CASE WHEN p.place <= $5::bigint AND p.before < $6::bigint THEN l.value END AS value,
        p.place <= $5::bigint AND p.before < $6::bigint AS fits
    FROM wayleave_head h
    LEFT JOIN LATERAL (
        SELECT key, log_id, lease,
            row_number() OVER w AS place,
            coalesce(sum(bytes) OVER (w ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)::bigint AS before
        FROM wayleave_items
        WHERE (key = $1 OR (key > $2 AND key < $3)) AND ($4::text IS NULL OR key > $4)
        WINDOW w AS (ORDER BY key)
        ORDER BY key LIMIT $5::bigint + 1
    ) p ON true
    LEFT JOIN wayleave_log l ON l.id = p.log_id AND p.place <= $5::bigint AND p.before < $6::bigint
    ORDER BY p.key";
/// The head, and events behind a row of the log; those that a piece has no room for come without their value.
const PAST: &str = "
    SELECT h.revision, h.floor, h.life, p.id, p.key, p.lease,
        CASE WHEN p.before < $6::bigint THEN p.value END AS value, p.deleted, p.before < $6::bigint AS fits
    FROM wayleave_head h
    LEFT JOIN LATERAL (
        SELECT id, key, lease, value, value IS NULL AS deleted,
            coalesce(sum(bytes) OVER
                (ORDER BY id / 1024 RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)::bigint AS before
        FROM (
            SELECT id, key, lease, value, bytes FROM wayleave_log
            WHERE id >= $1::bigint AND ($2::text IS NULL OR key = $2 OR (key > $3 AND key < $4))
            ORDER BY id LIMIT $5::bigint
        ) piece
    ) p ON true
    ORDER BY p.id";
const CURRENT: &str = "SELECT key, log_id, lease FROM wayleave_items WHERE key = ANY($1)";
const LIVE_LEASES: &str = "SELECT id FROM wayleave_leases WHERE id = ANY($1) AND ends_at > clock_timestamp()";
const COUNT_LEASES: &str = "SELECT count(*) FROM wayleave_leases";
const INSERT_LOG: &str = "
    INSERT INTO wayleave_log (id, at_ms, key, lease, bytes, value)
    SELECT id, $1::bigint, key, lease, bytes, value
    FROM unnest($2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bytea[])
        AS t (id, key, lease, bytes, value)";
const DELETE_LOG: &str = "DELETE FROM wayleave_log WHERE id = ANY($1)";
const PUT_ITEMS: &str = "
    INSERT INTO wayleave_items (key, log_id, lease, bytes)
    SELECT key, log_id, lease, bytes
    FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS t (key, log_id, lease, bytes)
    ON CONFLICT (key) DO UPDATE
        SET log_id = excluded.log_id, lease = excluded.lease, bytes = excluded.bytes";
const DELETE_ITEMS: &str = "DELETE FROM wayleave_items WHERE key = ANY($1)";
const INSERT_LEASES: &str = "
    INSERT INTO wayleave_leases (id, ttl_ms, ends_at)
    SELECT id, ttl_ms, clock_timestamp() + ttl_ms * interval '1 millisecond'
    FROM unnest($1::bigint[], $2::bigint[]) AS t (id, ttl_ms)";
const KEEP_ALIVE: &str = "
    UPDATE wayleave_leases SET ends_at = clock_timestamp() + ttl_ms * interval '1 millisecond'
    WHERE id = $1 AND ends_at > clock_timestamp()";
const ENDED_LEASES: &str =
    "SELECT id FROM wayleave_leases WHERE ends_at <= clock_timestamp() ORDER BY id LIMIT 64";
const LEASE_KEYS: &str =
    "SELECT key, log_id FROM wayleave_items WHERE lease = $1 ORDER BY key LIMIT $2::bigint";
const DELETE_LEASE: &str = "DELETE FROM wayleave_leases WHERE id = $1";
/// The highest revision behind row `$1` that is older than `$2` or has more than `$3` bytes of newer ones behind it.
const OVERDUE: &str = "
    SELECT coalesce(max(id / 1024), 0)::bigint FROM (
        SELECT id, at_ms, sum(bytes) OVER (ORDER BY id DESC) AS newer FROM wayleave_log WHERE id >= $1
    ) history
    WHERE at_ms < $2::bigint OR newer > $3::bigint";
const FORGET: &str = "
    DELETE FROM wayleave_log l WHERE id >= $1 AND id < $2 AND NOT EXISTS
        (SELECT 1 FROM wayleave_items i WHERE i.key = l.key AND i.log_id = l.id)";
const WAKE: &str = "SELECT pg_notify('wayleave', '')";

/// The statements of one connection, prepared.
pub(super) struct Statements {
    pub(super) head: Statement,
    pub(super) lock_head: Statement,
    pub(super) set_head: Statement,
    pub(super) get: Statement,
    pub(super) range: Statement,
    pub(super) past: Statement,
    pub(super) current: Statement,
    pub(super) live_leases: Statement,
    pub(super) count_leases: Statement,
    pub(super) insert_log: Statement,
    pub(super) delete_log: Statement,
    pub(super) put_items: Statement,
    pub(super) delete_items: Statement,
    pub(super) insert_leases: Statement,
    pub(super) keep_alive: Statement,
    pub(super) ended_leases: Statement,
    pub(super) lease_keys: Statement,
    pub(super) delete_lease: Statement,
    pub(super) overdue: Statement,
    pub(super) forget: Statement,
    pub(super) wake: Statement,
}

impl Statements {
    pub(super) async fn prepare(db: &Client) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            head: db.prepare(HEAD).await?,
            lock_head: db.prepare(LOCK_HEAD).await?,
            set_head: db.prepare(SET_HEAD).await?,
            get: db.prepare(GET).await?,
            range: db.prepare(RANGE).await?,
            past: db.prepare(PAST).await?,
            current: db.prepare(CURRENT).await?,
            live_leases: db.prepare(LIVE_LEASES).await?,
            count_leases: db.prepare(COUNT_LEASES).await?,
            insert_log: db.prepare(INSERT_LOG).await?,
            delete_log: db.prepare(DELETE_LOG).await?,
            put_items: db.prepare(PUT_ITEMS).await?,
            delete_items: db.prepare(DELETE_ITEMS).await?,
            insert_leases: db.prepare(INSERT_LEASES).await?,
            keep_alive: db.prepare(KEEP_ALIVE).await?,
            ended_leases: db.prepare(ENDED_LEASES).await?,
            lease_keys: db.prepare(LEASE_KEYS).await?,
            delete_lease: db.prepare(DELETE_LEASE).await?,
            overdue: db.prepare(OVERDUE).await?,
            forget: db.prepare(FORGET).await?,
            wake: db.prepare(WAKE).await?,
        })
    }
}

/// Where the backend stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// The newest change.
    pub(super) revision: Revision,
    /// History is complete behind this revision.
    pub(super) floor: Revision,
    /// The newest lease id ever given.
    pub(super) lease_last: LeaseId,
    /// Made with the tables: another one means that other data has taken their place.
    pub(super) life: String,
}

/// A row with a value that nothing of ours wrote.
#[derive(Debug, thiserror::Error)]
#[error("a row of the backend's tables cannot be read")]
pub(super) struct DamagedRow(#[source] Box<dyn Error + Send + Sync>);

impl From<tokio_postgres::Error> for DamagedRow {
    fn from(error: tokio_postgres::Error) -> Self {
        Self(Box::new(error))
    }
}

/// A head from the columns revision, floor, lease_last, life.
pub(super) fn head(row: &Row) -> Result<Head, DamagedRow> {
    Ok(Head {
        revision: Revision(unsigned(row.try_get(0)?)),
        floor: Revision(unsigned(row.try_get(1)?)),
        lease_last: LeaseId(unsigned(row.try_get(2)?)),
        life: row.try_get(3)?,
    })
}

/// An item from four columns: key, log id, lease, value.
pub(super) fn item(row: &Row, first: usize) -> Result<Item, DamagedRow> {
    let id: i64 = row.try_get(first + 1)?;
    let value: &[u8] = row.try_get(first + 3)?;
    Ok(Item {
        key: key(row, first)?,
        value: Bytes::copy_from_slice(value),
        revision: revision_of(id),
        lease: lease(row.try_get(first + 2)?),
    })
}

/// An event from the columns of the past: id, key, lease, value, deleted.
pub(super) fn event(row: &Row) -> Result<Event, DamagedRow> {
    let revision = revision_of(row.try_get("id")?);
    let column = row.columns().iter().position(|column| column.name() == "key").unwrap_or_default();
    let key = key(row, column)?;
    if row.try_get("deleted")? {
        return Ok(Event::Delete { key, revision });
    }
    let value: &[u8] = row.try_get("value")?;
    let lease = lease(row.try_get("lease")?);
    Ok(Event::Put(Item { key, value: Bytes::copy_from_slice(value), revision, lease }))
}

pub(super) fn key(row: &Row, column: usize) -> Result<Key, DamagedRow> {
    let text: &str = row.try_get(column)?;
    Key::parse(text).map_err(|error| DamagedRow(Box::new(error)))
}

pub(super) fn lease(id: Option<i64>) -> Option<LeaseId> {
    id.map(|id| LeaseId(unsigned(id)))
}

/// The first row that a revision can have.
pub(super) fn first_row(revision: Revision) -> i64 {
    signed(revision.0.saturating_mul(ROWS_PER_REVISION))
}

pub(super) fn revision_of(row: i64) -> Revision {
    Revision(unsigned(row) / ROWS_PER_REVISION)
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
