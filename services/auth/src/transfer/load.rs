//! Filling a backend. A mark stands in it until it is whole, and Auth does not start before.

use super::{Copied, Progress, Record, Records, RestoredRecord, TransferError};
use crate::bootstrap::ClusterRecord;
use crate::keys;
use crate::records::{decode, encode};
use bytes::Bytes;
use wayleave_store::{BATCH_OPERATIONS_MAX, Backend, Key, Operation, RANGE_ITEMS_MAX};
use wayleave_vocab::Wall;

/// Bytes of values after which a batch is written.
const BATCH_BYTES: usize = 4 << 20;

/// What becomes of what the target holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and nothing is copied.
    Refuse,
    /// It is deleted first.
    Replace,
}

pub(super) async fn load(
    records: &mut dyn Records,
    target: &dyn Backend,
    existing: Existing,
    now: Wall,
    progress: Progress<'_>,
) -> Result<Copied, TransferError> {
    let before = look(target, existing).await?;
    target.put(&keys::restoring(), Bytes::new(), None).await.map_err(TransferError::target)?;
    clear(target).await?;
    let mut loader = Loader::new(target);
    let mut cluster = None;
    while let Some(record) = records.next().await? {
        match record {
            Record::Put(key, value) if key == keys::cluster() => cluster = Some(value),
            record => loader.take(record).await?,
        }
        progress(loader.records);
    }
    let cluster = cluster.and_then(|value| serde_json::from_slice::<ClusterRecord>(&value).ok());
    let mut cluster = cluster.ok_or(TransferError::NoCluster)?;
    // The time of day is above every generation that was given before, also those that nobody here knows of.
    let known = before.max(cluster.generation).saturating_add(1);
    cluster.generation = known.max(now.as_secs());
    loader.flush().await?;
    let restored = RestoredRecord { v: 1, generation: cluster.generation, at: now };
    let last = vec![
        Operation::Put { key: keys::cluster(), value: encode(&cluster), lease: None },
        Operation::Put { key: keys::restored(), value: encode(&restored), lease: None },
        Operation::Delete { key: keys::restoring() },
    ];
    target.batch(Vec::new(), last).await.map_err(TransferError::target)?;
    Ok(Copied { cluster: cluster.name, generation: cluster.generation, records: loader.records + 1 })
}

/// The generation of the cluster in the target, if one may be put in its place.
async fn look(target: &dyn Backend, existing: Existing) -> Result<u64, TransferError> {
    let read = |key| async move { target.get(&key).await.map_err(TransferError::target) };
    let running = target.range(&keys::auth_instances(), None, RANGE_ITEMS_MAX).await;
    let running = running.map_err(TransferError::target)?.items.len();
    if running > 0 {
        return Err(TransferError::InUse(running));
    }
    let is_begun = read(keys::restoring()).await?.is_some();
    let cluster = read(keys::cluster()).await?.and_then(|item| decode::<ClusterRecord>(&item).ok());
    let generation = cluster.as_ref().map_or(0, |cluster| cluster.value.generation);
    let page = target.range(&Key::root(), None, 1).await.map_err(TransferError::target)?;
    if page.items.is_empty() || is_begun || existing == Existing::Replace {
        return Ok(generation);
    }
    let what = match cluster {
        Some(cluster) => format!("the cluster {}", cluster.value.name),
        None => "something else".to_owned(),
    };
    Err(TransferError::NotEmpty { what })
}

/// Deletes everything but the mark.
async fn clear(target: &dyn Backend) -> Result<(), TransferError> {
    let mut after = None;
    loop {
        let page = target.range(&Key::root(), after.as_ref(), BATCH_OPERATIONS_MAX).await;
        let page = page.map_err(TransferError::target)?;
        let Some(last) = page.items.last() else { return Ok(()) };
        after = Some(last.key.clone());
        let gone = page.items.into_iter().filter(|item| item.key != keys::restoring());
        let gone = gone.map(|item| Operation::Delete { key: item.key }).collect();
        target.batch(Vec::new(), gone).await.map_err(TransferError::target)?;
    }
}

/// Writes records in batches; a batch touches a key once.
struct Loader<'a> {
    target: &'a dyn Backend,
    batch: Vec<Operation>,
    bytes: usize,
    records: u64,
}

impl<'a> Loader<'a> {
    fn new(target: &'a dyn Backend) -> Self {
        Self { target, batch: Vec::new(), bytes: 0, records: 0 }
    }

    async fn take(&mut self, record: Record) -> Result<(), TransferError> {
        let bounds = self.target.bounds();
        let (operation, bytes) = match record {
            Record::Put(key, value) if value.len() > bounds.value_bytes_max => {
                return Err(TransferError::TooLarge { key, bytes: value.len(), max: bounds.value_bytes_max });
            }
            Record::Put(key, value) => {
                let bytes = value.len();
                (Operation::Put { key, value, lease: None }, bytes)
            }
            Record::Delete(key) => (Operation::Delete { key }, 0),
        };
        let is_again = self.batch.iter().any(|waiting| waiting.key() == operation.key());
        let is_heavy = self.bytes.saturating_add(bytes) > BATCH_BYTES.min(bounds.batch_bytes_max);
        if is_again || is_heavy || self.batch.len() >= BATCH_OPERATIONS_MAX {
            self.flush().await?;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.batch.push(operation);
        self.records = self.records.saturating_add(1);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), TransferError> {
        self.bytes = 0;
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.target.batch(Vec::new(), batch).await.map(|_| ()).map_err(TransferError::target)
    }
}
