//! One watch: a stream of etcd that is opened again, behind what was delivered, whenever it breaks.

use super::link::Link;
use super::wire::event::EventType;
use super::wire::watch_client::WatchClient;
use super::wire::watch_request::RequestUnion;
use super::wire::{WatchCreateRequest, WatchRequest, WatchResponse};
use super::{decode_key, item, key_range};
use crate::backend::Revision;
use crate::history::{Change, Event};
use crate::key::Key;
use crate::watch::{Source, WatchError};
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, StreamExt as _};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::{Status, Streaming};

/// Largest message of a watch; etcd cuts what is larger than its own bound on requests into fragments.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const OPEN_TIMEOUT: Duration = Duration::from_secs(6);
/// Pauses before a broken stream is opened again.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

pub(super) struct EtcdWatch {
    pub(super) link: Arc<Link>,
    pub(super) root: Arc<str>,
    pub(super) prefix: Key,
    pub(super) cursor: Revision,
    /// The beginning lies in the future: it belongs to other data.
    pub(super) is_foreign: bool,
    pub(super) closed: watch::Receiver<bool>,
    stream: Option<Streaming<WatchResponse>>,
    ready: VecDeque<Change>,
    /// The last change of a fragment, which may go on in the next one.
    partial: Option<Change>,
    failures: u32,
}

impl EtcdWatch {
    pub(super) fn new(
        link: Arc<Link>,
        root: Arc<str>,
        prefix: Key,
        from: (Revision, bool),
        closed: watch::Receiver<bool>,
    ) -> Self {
        let (cursor, is_foreign) = from;
        let (ready, partial) = (VecDeque::new(), None);
        Self { link, root, prefix, cursor, is_foreign, closed, stream: None, ready, partial, failures: 0 }
    }

    async fn next_change(&mut self) -> Result<Change, WatchError> {
        loop {
            if self.is_foreign {
                return Err(WatchError::Compacted { from: self.cursor });
            }
            if let Some(change) = self.ready.pop_front() {
                self.cursor = change.revision;
                return Ok(change);
            }
            if *self.closed.borrow() {
                return Err(WatchError::Closed);
            }
            let mut closed = self.closed.clone();
            let received = tokio::select! {
                received = self.receive() => received,
                // An error says that the backend is gone, which is the same.
                _ = closed.wait_for(|closed| *closed) => return Err(WatchError::Closed),
            };
            match received {
                Ok(Some(message)) if message.canceled => {
                    self.stream = None;
                    if message.compact_revision > 0 {
                        return Err(WatchError::Compacted { from: self.cursor });
                    }
                    self.failed(&Status::unavailable(message.cancel_reason));
                }
                Ok(Some(message)) => {
                    self.failures = 0;
                    self.take(message);
                }
                Ok(None) => self.failed(&Status::unavailable("the watch was ended by the server")),
                Err(status) => self.failed(&status),
            }
        }
    }

    /// The next message, of a stream that is opened if there is none. A dropped future loses nothing.
    async fn receive(&mut self) -> Result<Option<WatchResponse>, Status> {
        if self.stream.is_none() {
            if self.failures > 0 {
                let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(8)).min(PAUSE_MAX);
                tokio::time::sleep(pause).await;
            }
            let opened = tokio::time::timeout(OPEN_TIMEOUT, self.open()).await;
            self.stream =
                Some(opened.map_err(|_| Status::deadline_exceeded("etcd did not answer in time"))??);
        }
        match &mut self.stream {
            Some(stream) => stream.message().await,
            None => Ok(None),
        }
    }

    async fn open(&self) -> Result<Streaming<WatchResponse>, Status> {
        if self.failures > 0 {
            // A token may have run out; without a login this does nothing.
            self.link.log_in().await?;
        }
        let (key, range_end) = key_range(&self.root, &self.prefix);
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: wire_revision(self.cursor.next()),
            progress_notify: false,
            fragment: true,
        };
        let first = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The stream stays open for as long as nothing ends it.
        let mut request = self.link.request(stream::iter([first]).chain(stream::pending()));
        // A member that has lost its leader ends the stream instead of being silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut client = WatchClient::new(self.link.member()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(client.watch(request).await?.into_inner())
    }

    fn failed(&mut self, status: &Status) {
        self.stream = None;
        self.partial = None;
        self.failures = self.failures.saturating_add(1);
        self.link.turn();
        tracing::debug!(prefix = %self.prefix, error = %status, "a watch of etcd broke and is opened again");
    }

    fn take(&mut self, message: WatchResponse) {
        for event in message.events {
            let Some(kv) = event.kv else { continue };
            let revision = Revision(u64::try_from(kv.mod_revision).unwrap_or_default());
            if self.partial.as_ref().is_some_and(|partial| partial.revision != revision) {
                self.ready.extend(self.partial.take());
            }
            let Some(key) = decode_key(&self.root, &kv.key) else { continue };
            if !self.prefix.contains(&key) || revision <= self.cursor {
                continue;
            }
            let event = match event.r#type {
                kind if kind == wire_delete() => Event::Delete { key, revision },
                _ => Event::Put(item(key, kv)),
            };
            match &mut self.partial {
                Some(partial) => partial.events.push(event),
                None => self.partial = Some(Change { revision, events: vec![event] }),
            }
        }
        if !message.fragment {
            self.ready.extend(self.partial.take());
        }
    }
}

fn wire_delete() -> i32 {
    i32::from(EventType::Delete)
}

fn wire_revision(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

impl Source for EtcdWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Change, WatchError>> {
        self.next_change().boxed()
    }

    fn cursor(&self) -> Revision {
        self.cursor
    }

    fn prefix(&self) -> &Key {
        &self.prefix
    }
}
