//! The backend in etcd (3.4 or newer), for clusters with several Auth instances.
//!
//! Everything is etcd's own: a revision is its revision, a batch is one transaction, a lease is a lease, a watch is a
//! watch. etcd forgets history for all its users at once, so it should serve nobody else. It takes requests of 1.5 MiB,
//! so [`Bounds`] are narrower than elsewhere. See `link` for members that do not answer, `fault` for what errors mean.

mod fault;
mod link;
mod txn;
mod watching;
#[expect(
    clippy::allow_attributes_without_reason,
    clippy::enum_variant_names,
    unreachable_pub,
    reason = "generated code"
)]
mod wire {
    tonic::include_proto!("etcdserverpb");
}

use crate::backend::{
    Backend, Bounds, Committed, Condition, Item, Operation, Page, RANGE_BYTES_MAX, Revision, StoreFuture,
    checked_limit,
};
use crate::error::StoreError;
use crate::history::HistoryLimits;
use crate::key::Key;
use crate::lease::{LeaseId, checked_ttl};
use crate::plan::Batch;
use crate::server_tls::{ServerTls, ServerTlsError};
use crate::watch::Watch;
use bytes::Bytes;
use fault::{Faults, is_about_lease, is_compacted};
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, StreamExt as _};
use link::{Call, Link};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use watching::EtcdWatch;
use wayleave_runtime::Clock;
use wayleave_vocab::{Mono, Secret};
use wire::kv_client::KvClient;
use wire::lease_client::LeaseClient;
use wire::{
    CompactionRequest, KeyValue, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, RangeRequest, RangeResponse,
};

/// Fits into a request of etcd's default size together with its keys.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Items of the first piece of a page, and of later ones. Values have at most [`BATCH_BYTES_MAX`].
const FIRST_PIECE_ITEMS: usize = 32;
const PIECE_ITEMS: usize = 200;
/// Largest answer that is taken.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// A page whose revision was forgotten while it was read is read again.
const PAGE_ATTEMPTS: usize = 3;
/// How often the revision is taken down, for forgetting history by age.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(60);

/// Which cluster of etcd, and where in it.
#[derive(Clone)]
pub struct EtcdOptions {
    /// Members: `https://host:2379`, or `http://` where nobody can listen.
    pub peers: Vec<String>,
    /// The path above all keys, such as `/wayleave`.
    pub prefix: Key,
    /// TLS; `None` for `http://` members.
    pub tls: Option<ServerTls>,
    /// User and password, where etcd asks for them.
    pub login: Option<EtcdLogin>,
    /// For watches to resume from; bytes are not counted.
    pub history: HistoryLimits,
}

/// A user of etcd.
#[derive(Clone)]
pub struct EtcdLogin {
    /// The name.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// Why the backend was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdOpenError {
    /// An address of a member is none.
    #[error("the address {given:?} of an etcd member cannot be used: {reason}")]
    Address {
        /// What was given.
        given: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No member answers, or it lets us not in.
    #[error("{server} cannot be used: check that it runs and has a leader, and the user and password")]
    Connect {
        /// Which.
        server: String,
        /// Why not.
        source: StoreError,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] ServerTlsError),
}

/// A backend in etcd.
pub struct EtcdBackend {
    link: Arc<Link>,
    root: Arc<str>,
    clock: Arc<dyn Clock>,
    history: HistoryLimits,
    /// Where etcd stood at some times.
    samples: Mutex<VecDeque<(Mono, Revision)>>,
    closed: watch::Sender<bool>,
}

impl EtcdBackend {
    /// Connects and asks once, so that a wrong address or password is known at once.
    ///
    /// # Errors
    /// See [`EtcdOpenError`].
    pub async fn open(options: EtcdOptions, clock: Arc<dyn Clock>) -> Result<Self, EtcdOpenError> {
        let server: Arc<str> = format!("etcd {}{}", options.peers.join(","), options.prefix).into();
        let link = Arc::new(Link::new(&options, Faults { server: server.clone() })?);
        let (closed, _) = watch::channel(false);
        let root = options.prefix.as_str().into();
        let (history, samples) = (options.history, Mutex::default());
        let backend = Self { link, root, clock, history, samples, closed };
        let connected = backend.revision().await;
        connected.map_err(|source| EtcdOpenError::Connect { server: server.to_string(), source })?;
        Ok(backend)
    }

    /// The members and the prefix.
    pub fn server(&self) -> &str {
        &self.link.faults.server
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if *self.closed.borrow() { Err(StoreError::Closed) } else { Ok(()) }
    }

    async fn ask_range(&self, ask: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.check_open()?;
        let call = |member| {
            let request = self.link.request(ask.clone());
            async move { KvClient::new(member).max_decoding_message_size(ANSWER_BYTES_MAX).range(request).await }
        };
        self.link.call("read", Call::Read, call).await
    }

    /// Where etcd stands.
    async fn revision(&self) -> Result<Revision, StoreError> {
        let key = self.root.as_bytes().to_vec();
        let answer =
            self.ask_range(RangeRequest { key, count_only: true, ..RangeRequest::default() }).await?;
        Ok(header_revision(answer.header.as_ref()))
    }

    async fn read_page(&self, prefix: &Key, after: Option<&Key>, limit: usize) -> Result<Page, StoreError> {
        let limit = checked_limit(limit)?;
        for _ in 1..PAGE_ATTEMPTS {
            match self.try_page(prefix, after, limit).await {
                Err(error) if is_compacted(&error) => {}
                done => return done,
            }
        }
        self.try_page(prefix, after, limit).await
    }

    /// Reads the prefix itself and then what is below it, piece by piece, all at the revision of the first.
    async fn try_page(&self, prefix: &Key, after: Option<&Key>, limit: usize) -> Result<Page, StoreError> {
        let mut page = Page { items: Vec::new(), revision: Revision::ZERO, more: false };
        let (low, high) = prefix.below();
        let own = after.is_none_or(|after| after < prefix).then(|| prefix.as_str().as_bytes());
        let mut start = match after {
            Some(after) if after.as_str() >= low.as_str() => [after.as_str().as_bytes(), &[0]].concat(),
            Some(_) | None => low.into_bytes(),
        };
        // The prefix itself, or only where etcd stands.
        let key = [self.root.as_bytes(), own.unwrap_or_default()].concat();
        let first = RangeRequest { key, count_only: own.is_none(), ..RangeRequest::default() };
        let first = self.ask_range(first).await?;
        page.revision = header_revision(first.header.as_ref());
        let mut bytes = self.add(&mut page, first.kvs);
        let mut piece = FIRST_PIECE_ITEMS;
        loop {
            if start.as_slice() >= high.as_bytes() {
                return Ok(page);
            }
            let is_full = page.items.len() >= limit || bytes >= RANGE_BYTES_MAX;
            let room = if is_full { 1 } else { piece.min(limit - page.items.len()) };
            let ask = RangeRequest {
                key: [self.root.as_bytes(), &start].concat(),
                range_end: [self.root.as_bytes(), high.as_bytes()].concat(),
                limit: i64::try_from(room).unwrap_or(i64::MAX),
                revision: i64::try_from(page.revision.0).unwrap_or(i64::MAX),
                count_only: is_full,
                ..RangeRequest::default()
            };
            let answer = self.ask_range(ask).await?;
            if is_full {
                page.more = answer.count > 0;
                return Ok(page);
            }
            for kv in answer.kvs {
                if bytes >= RANGE_BYTES_MAX {
                    page.more = true;
                    return Ok(page);
                }
                start = [kv.key.get(self.root.len()..).unwrap_or_default(), &[0]].concat();
                bytes = bytes.saturating_add(self.add(&mut page, vec![kv]));
            }
            if !answer.more {
                return Ok(page);
            }
            piece = PIECE_ITEMS;
        }
    }

    /// Adds items to a page and says what their values weigh.
    fn add(&self, page: &mut Page, kvs: Vec<KeyValue>) -> usize {
        let mut bytes = 0_usize;
        for kv in kvs {
            if let Some(key) = decode_key(&self.root, &kv.key) {
                bytes = bytes.saturating_add(kv.value.len());
                page.items.push(item(key, kv));
            }
        }
        bytes
    }

    async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        self.check_open()?;
        let txn = txn::of(&self.root, &batch)?;
        let call = |member| {
            let request = self.link.request(txn.clone());
            async move { KvClient::new(member).max_decoding_message_size(ANSWER_BYTES_MAX).txn(request).await }
        };
        match self.link.call("write", Call::Write, call).await {
            Ok(answer) => txn::outcome(&self.root, &batch, &answer),
            Err(error) if is_about_lease(&error) => Err(self.missing_lease(&batch, error).await),
            Err(error) => Err(error),
        }
    }

    /// Which lease of a refused batch has ended.
    async fn missing_lease(&self, batch: &Batch, error: StoreError) -> StoreError {
        let leases = batch.operations().iter().filter_map(|operation| match operation {
            Operation::Put { lease, .. } => *lease,
            Operation::Replace { .. } | Operation::Delete { .. } => None,
        });
        for lease in leases {
            match self.time_to_live(lease, false).await {
                Ok(answer) if answer.ttl > 0 => {}
                Ok(_) => return StoreError::LeaseNotFound { lease },
                Err(error) => return error,
            }
        }
        error
    }

    async fn time_to_live(&self, lease: LeaseId, keys: bool) -> Result<LeaseTimeToLiveResponse, StoreError> {
        let ask = LeaseTimeToLiveRequest { id: lease_id(lease), keys };
        let call = |member| {
            let request = self.link.request(ask);
            async move { LeaseClient::new(member).lease_time_to_live(request).await }
        };
        self.link.call("look at a lease", Call::Read, call).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.check_open()?;
        // etcd counts whole seconds.
        let seconds = checked_ttl(ttl)?.as_millis().div_ceil(1000);
        let ask = LeaseGrantRequest { ttl: i64::try_from(seconds).unwrap_or(i64::MAX), id: 0 };
        let call = |member| {
            let request = self.link.request(ask);
            async move { LeaseClient::new(member).lease_grant(request).await }
        };
        let granted = self.link.call("grant a lease", Call::Write, call).await?;
        Ok(LeaseId(u64::try_from(granted.id).unwrap_or_default()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.check_open()?;
        let ask = LeaseKeepAliveRequest { id: lease_id(lease) };
        let call = |member| {
            let request = self.link.request(stream::iter([ask]).chain(stream::pending()));
            async move {
                let mut answers = LeaseClient::new(member).lease_keep_alive(request).await?.into_inner();
                let answer = answers.message().await?;
                let ended = || tonic::Status::unavailable("etcd ended the stream without an answer");
                answer.map(tonic::Response::new).ok_or_else(ended)
            }
        };
        let answer = self.link.call("keep a lease alive", Call::Read, call).await?;
        if answer.ttl > 0 { Ok(()) } else { Err(StoreError::LeaseNotFound { lease }) }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<usize, StoreError> {
        self.check_open()?;
        let held = self.time_to_live(lease, true).await?;
        if held.ttl <= 0 {
            return Err(StoreError::LeaseNotFound { lease });
        }
        let ask = LeaseRevokeRequest { id: lease_id(lease) };
        let call = |member| {
            let request = self.link.request(ask);
            async move { LeaseClient::new(member).lease_revoke(request).await }
        };
        match self.link.call("revoke a lease", Call::Write, call).await {
            Ok(_) => Ok(held.keys.len()),
            Err(error) if is_about_lease(&error) => Err(StoreError::LeaseNotFound { lease }),
            Err(error) => Err(error),
        }
    }

    /// Forgets what is older than the bounds say.
    async fn forget(&self) -> Result<(), StoreError> {
        self.check_open()?;
        let now = self.clock.mono();
        let newest = self.lock_samples().back().copied();
        if newest.is_some_and(|(at, _)| now.since(at) < SAMPLE_INTERVAL) {
            return Ok(());
        }
        let revision = self.revision().await?;
        let due = {
            let mut samples = self.lock_samples();
            let mut due = None;
            while let Some((_, sampled)) =
                samples.pop_front_if(|(at, _)| now.since(*at) > self.history.age_max)
            {
                due = Some(sampled);
            }
            samples.push_back((now, revision));
            due
        };
        let changes_max = u64::try_from(self.history.changes_max).unwrap_or(u64::MAX);
        let due = due.unwrap_or_default().max(Revision(revision.0.saturating_sub(changes_max)));
        if due == Revision::ZERO {
            return Ok(());
        }
        let ask = CompactionRequest { revision: i64::try_from(due.0).unwrap_or(i64::MAX), physical: false };
        let call = |member| {
            let request = self.link.request(ask);
            async move { KvClient::new(member).compact(request).await }
        };
        match self.link.call("forget history", Call::Read, call).await {
            Err(error) if !is_compacted(&error) => Err(error),
            // Another instance was there first.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn lock_samples(&self) -> std::sync::MutexGuard<'_, VecDeque<(Mono, Revision)>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for EtcdBackend {
    fn bounds(&self) -> Bounds {
        Bounds { value_bytes_max: BATCH_BYTES_MAX, batch_bytes_max: BATCH_BYTES_MAX }
    }

    fn get(&self, key: &Key) -> StoreFuture<'_, Option<Item>> {
        let key = key.clone();
        async move {
            let at = encode_key(&self.root, &key);
            let answer = self.ask_range(RangeRequest { key: at, ..RangeRequest::default() }).await?;
            Ok(answer.kvs.into_iter().next().map(|kv| item(key, kv)))
        }
        .boxed()
    }

    fn range(&self, prefix: &Key, after: Option<&Key>, limit: usize) -> StoreFuture<'_, Page> {
        let (prefix, after) = (prefix.clone(), after.cloned());
        async move { self.read_page(&prefix, after.as_ref(), limit).await }.boxed()
    }

    fn batch(&self, conditions: Vec<Condition>, operations: Vec<Operation>) -> StoreFuture<'_, Committed> {
        async move { self.commit(Batch::within(self.bounds(), conditions, operations)?).await }.boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId> {
        async move { self.grant(ttl).await }.boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        async move { self.keep_alive(lease).await }.boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> StoreFuture<'_, usize> {
        async move { self.revoke(lease).await }.boxed()
    }

    fn watch(&self, prefix: &Key, from: Option<Revision>) -> StoreFuture<'_, Watch> {
        let prefix = prefix.clone();
        async move {
            let now = self.revision().await?;
            let from = (from.unwrap_or(now), from.is_some_and(|from| from > now));
            let (link, root) = (self.link.clone(), self.root.clone());
            Ok(Watch::over(EtcdWatch::new(link, root, prefix, from, self.closed.subscribe())))
        }
        .boxed()
    }

    fn maintain(&self) -> StoreFuture<'_, usize> {
        async move { self.forget().await.map(|()| 0) }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.closed.send_replace(true);
        }
        .boxed()
    }
}

fn encode_key(root: &str, key: &Key) -> Vec<u8> {
    format!("{root}{key}").into_bytes()
}

/// The key below the root; none for what nothing of ours wrote.
fn decode_key(root: &str, bytes: &[u8]) -> Option<Key> {
    let path = std::str::from_utf8(bytes).ok()?.strip_prefix(root)?;
    Key::parse(path).ok()
}

/// A half-open range that has the prefix and everything below it, and some that is neither.
fn key_range(root: &str, prefix: &Key) -> (Vec<u8>, Vec<u8>) {
    (encode_key(root, prefix), format!("{root}{}", prefix.below().1).into_bytes())
}

fn item(key: Key, kv: KeyValue) -> Item {
    let revision = Revision(u64::try_from(kv.mod_revision).unwrap_or_default());
    let lease = (kv.lease > 0).then(|| LeaseId(u64::try_from(kv.lease).unwrap_or_default()));
    Item { key, value: Bytes::from(kv.value), revision, lease }
}

fn lease_id(lease: LeaseId) -> i64 {
    i64::try_from(lease.0).unwrap_or(i64::MAX)
}

fn header_revision(header: Option<&wire::ResponseHeader>) -> Revision {
    Revision(header.and_then(|header| u64::try_from(header.revision).ok()).unwrap_or_default())
}
