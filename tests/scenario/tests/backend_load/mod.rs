//! Writers and a watcher that go on while a server is ill-treated.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use wayleave_runtime::TaskGroup;
use wayleave_store::{Backend, Event, Key, Revision};

const WRITERS: usize = 6;
const PATIENCE: Duration = Duration::from_secs(90);

/// What was acknowledged, and at which revision.
type Acknowledged = Arc<Mutex<BTreeMap<Key, Revision>>>;

/// Writers and a watcher.
pub(crate) struct Load {
    backend: Arc<dyn Backend>,
    acknowledged: Acknowledged,
    count: watch::Receiver<u64>,
    over: watch::Sender<bool>,
    writers: TaskGroup,
    _watcher: TaskGroup,
    told: oneshot::Receiver<BTreeMap<Key, Revision>>,
}

impl Load {
    /// Begins to write and to watch.
    pub(crate) async fn start(backend: &Arc<impl Backend + 'static>) -> Self {
        let backend: Arc<dyn Backend> = backend.clone();
        let root = Key::parse("/load").unwrap();
        let (over, is_over) = watch::channel(false);
        let (counter, count) = watch::channel(0);
        let acknowledged = Acknowledged::default();
        let mut watching = backend.watch(&root, None).await.unwrap();
        let (writers, watcher) = (TaskGroup::new(), TaskGroup::new());
        let (tell, told) = oneshot::channel();
        watcher.spawn("watcher", async move {
            let (mut told, mut at) = (BTreeMap::new(), Revision::ZERO);
            loop {
                // An outage must not end a watch, nor repeat or leave out anything.
                let change = watching.next().await.unwrap();
                assert!(change.revision > at, "{} comes after {at}", change.revision);
                at = change.revision;
                for event in change.events {
                    let Event::Put(item) = event else { panic!("nothing is deleted") };
                    if item.key.name() == "end" {
                        return tell.send(told).unwrap();
                    }
                    assert_eq!(told.insert(item.key, item.revision), None, "told twice");
                }
            }
        });
        for writer in 0..WRITERS {
            let (backend, is_over, counter) = (backend.clone(), is_over.clone(), counter.clone());
            let (acknowledged, root) = (acknowledged.clone(), root.clone());
            writers.spawn("writer", async move {
                for number in 0.. {
                    if *is_over.borrow() {
                        return;
                    }
                    let key = root.child(&format!("{writer}-{number}")).unwrap();
                    if let Ok(revision) = backend.put(&key, Bytes::from_static(b"x"), None).await {
                        acknowledged.lock().unwrap().insert(key, revision);
                        counter.send_modify(|count| *count += 1);
                    }
                }
            });
        }
        Self { backend, acknowledged, count, over, writers, _watcher: watcher, told }
    }

    /// Waits until so many writes were acknowledged.
    pub(crate) async fn wait_acknowledged(&self, count: u64) {
        let mut counted = self.count.clone();
        let reached = tokio::time::timeout(PATIENCE, counted.wait_for(|now| *now >= count)).await;
        assert!(reached.is_ok(), "{} of {count} writes were acknowledged", *self.count.borrow());
    }

    /// Ends the writers; everything that was acknowledged must be there and must have been told.
    pub(crate) async fn check(self) {
        self.over.send_replace(true);
        assert!(self.writers.drained(PATIENCE).await, "a writer hangs");
        let end = Key::parse("/load/end").unwrap();
        self.backend.put(&end, Bytes::new(), None).await.unwrap();
        let told = tokio::time::timeout(PATIENCE, self.told).await.expect("the watch hangs").unwrap();
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        for (key, revision) in &acknowledged {
            let item = self.backend.get(key).await.unwrap();
            assert_eq!(item.map(|item| item.revision), Some(*revision), "{key} was acknowledged");
            assert_eq!(told.get(key), Some(revision), "{key} was not told");
        }
    }
}
