//! Random operations against a model that is nothing but a map.
#![expect(clippy::unwrap_used, reason = "a test, whose helpers panic as it does")]

use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use wayleave_runtime::ManualClock;
use wayleave_store::{
    Backend, Condition, Event, HistoryLimits, Item, Key, LeaseId, MemoryBackend, Operation, Revision,
    SqliteBackend, SqliteOptions, StoreError,
};
use wayleave_vocab::Wall;

const TTL: Duration = Duration::from_secs(10);

/// One step. Keys, values and leases are small numbers, so that steps meet each other.
#[derive(Debug, Clone)]
enum Step {
    Batch(Vec<(u8, Guess)>, Vec<(u8, Act)>),
    CompareAndSwap(u8, Guess),
    Grant,
    KeepAlive(u8),
    Revoke(u8),
    Advance(u8),
    Maintain,
    Range(u8, u8, u8),
    Reopen,
}

#[derive(Debug, Clone, Copy)]
enum Guess {
    Absent,
    Exists,
    Right,
    Stale,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Put(Option<u8>),
    Replace,
    Delete,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    value: u64,
    revision: u64,
    lease: Option<u64>,
}

/// The specification, as short as it can be said.
#[derive(Default)]
struct Model {
    items: BTreeMap<Key, Stored>,
    /// Granted leases: time left, or ended.
    leases: BTreeMap<u64, Option<Duration>>,
    revision: u64,
    writes: u64,
}

/// What a write may answer, without the details.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done { revision: u64, deleted: usize },
    AlreadyExists,
    NotFound,
    Conflict,
    LeaseNotFound,
    Invalid,
}

fn key(number: u8) -> Key {
    // Some below others, some beside with a prefix in common.
    let names = ["/a", "/a/b", "/a/b/c", "/a-b", "/a0", "/a/d", "/b", "/b/c"];
    Key::parse(names[usize::from(number) % names.len()]).unwrap()
}

impl Model {
    fn lease(&self, number: u8) -> Option<u64> {
        let count = self.leases.len();
        (count > 0).then(|| *self.leases.keys().nth(usize::from(number) % count).unwrap())
    }

    fn live(&self, lease: u64) -> bool {
        self.leases[&lease].is_some_and(|left| left > Duration::ZERO)
    }

    fn revision_for(&self, key: &Key, guess: Guess) -> u64 {
        let now = self.items.get(key).map_or(0, |stored| stored.revision);
        if matches!(guess, Guess::Right) { now } else { now + 1 }
    }

    fn check(&self, conditions: &[Condition]) -> Option<Answer> {
        conditions.iter().find_map(|condition| match condition {
            Condition::Absent(key) => self.items.contains_key(key).then_some(Answer::AlreadyExists),
            Condition::Exists(key) => (!self.items.contains_key(key)).then_some(Answer::NotFound),
            Condition::RevisionIs(key, expected) => match self.items.get(key) {
                None => Some(Answer::NotFound),
                Some(stored) => (stored.revision != expected.0).then_some(Answer::Conflict),
            },
        })
    }

    fn batch(&mut self, conditions: &[Condition], operations: &[Operation]) -> Answer {
        let keys: std::collections::BTreeSet<_> = operations.iter().map(Operation::key).collect();
        if keys.len() < operations.len() {
            return Answer::Invalid;
        }
        if let Some(refusal) = self.check(conditions) {
            return refusal;
        }
        let mut next = self.items.clone();
        let (mut deleted, revision) = (0, self.revision + 1);
        for operation in operations {
            match operation {
                Operation::Put { lease: Some(lease), .. } if !self.live(lease.0) => {
                    return Answer::LeaseNotFound;
                }
                Operation::Put { key, value, lease } => {
                    let lease = lease.map(|lease| lease.0);
                    next.insert(key.clone(), Stored { value: number(value), revision, lease });
                }
                Operation::Replace { key, value } => match next.get_mut(key) {
                    None => return Answer::NotFound,
                    Some(stored) => (stored.value, stored.revision) = (number(value), revision),
                },
                Operation::Delete { key } => deleted += usize::from(next.remove(key).is_some()),
            }
        }
        let writes = operations.iter().any(|operation| !matches!(operation, Operation::Delete { .. }));
        if writes || deleted > 0 {
            self.revision = revision;
            self.items = next;
        }
        Answer::Done { revision: self.revision, deleted }
    }

    fn end(&mut self, lease: u64) -> usize {
        let before = self.items.len();
        self.items.retain(|_, stored| stored.lease != Some(lease));
        self.leases.insert(lease, None);
        let deleted = before - self.items.len();
        self.revision += u64::from(deleted > 0);
        deleted
    }
}

fn number(value: &Bytes) -> u64 {
    String::from_utf8(value.to_vec()).unwrap().parse().unwrap()
}

fn answer<T>(result: Result<T, StoreError>, done: impl FnOnce(T) -> Answer) -> Answer {
    match result {
        Ok(value) => done(value),
        Err(StoreError::AlreadyExists { .. }) => Answer::AlreadyExists,
        Err(StoreError::NotFound { .. }) => Answer::NotFound,
        Err(StoreError::Conflict { .. }) => Answer::Conflict,
        Err(StoreError::LeaseNotFound { .. }) => Answer::LeaseNotFound,
        Err(StoreError::Invalid { .. }) => Answer::Invalid,
        Err(other) => panic!("{other:?}"),
    }
}

struct Run {
    model: Model,
    backend: Arc<dyn Backend>,
    clock: Arc<ManualClock>,
    /// None for the memory backend.
    directory: Option<TempDir>,
}

impl Run {
    fn new(on_disk: bool) -> Self {
        let clock = Arc::new(ManualClock::new(Wall::from_secs(1_700_000_000)));
        let directory = on_disk.then(|| TempDir::new().unwrap());
        let backend = open(directory.as_ref(), &clock);
        Self { model: Model::default(), backend, clock, directory }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Batch(conditions, acts) => {
                let conditions: Vec<_> =
                    conditions.iter().map(|(at, guess)| self.condition(*at, *guess)).collect();
                let operations: Vec<_> = acts.iter().map(|(at, act)| self.operation(*at, *act)).collect();
                let expected = self.model.batch(&conditions, &operations);
                let done = self.backend.batch(conditions, operations).await;
                let done =
                    answer(done, |done| Answer::Done { revision: done.revision.0, deleted: done.deleted });
                assert_eq!(done, expected);
            }
            Step::CompareAndSwap(at, guess) => {
                let (at, revision) = (key(at), self.model.revision_for(&key(at), guess));
                self.model.writes += 1;
                let value = Bytes::from(self.model.writes.to_string());
                let condition = Condition::RevisionIs(at.clone(), Revision(revision));
                let replace = Operation::Replace { key: at.clone(), value: value.clone() };
                let expected = self.model.batch(&[condition], &[replace]);
                let done = self.backend.compare_and_swap(&at, Revision(revision), value).await;
                assert_eq!(answer(done, |at| Answer::Done { revision: at.0, deleted: 0 }), expected);
            }
            Step::Grant => {
                let lease = self.backend.lease_grant(TTL).await.unwrap();
                assert_eq!(self.model.leases.insert(lease.0, Some(TTL)), None, "an id comes once");
            }
            Step::KeepAlive(lease) => self.keep_alive(lease).await,
            Step::Revoke(lease) => self.revoke(lease).await,
            Step::Advance(seconds) => {
                let by = Duration::from_secs(u64::from(seconds));
                self.clock.advance(by);
                for left in self.model.leases.values_mut().flatten() {
                    *left = left.saturating_sub(by);
                }
            }
            Step::Maintain => {
                let dead: Vec<_> =
                    self.model.leases.iter().filter(|(_, left)| **left == Some(Duration::ZERO)).collect();
                let dead: Vec<_> = dead.into_iter().map(|(lease, _)| *lease).collect();
                let expected: usize = dead.into_iter().map(|lease| self.model.end(lease)).sum();
                assert_eq!(self.backend.maintain().await.unwrap(), expected);
            }
            Step::Range(prefix, after, limit) => self.range(prefix, after, limit).await,
            Step::Reopen => self.reopen().await,
        }
    }

    fn condition(&self, at: u8, guess: Guess) -> Condition {
        match guess {
            Guess::Absent => Condition::Absent(key(at)),
            Guess::Exists => Condition::Exists(key(at)),
            Guess::Right | Guess::Stale => {
                Condition::RevisionIs(key(at), Revision(self.model.revision_for(&key(at), guess)))
            }
        }
    }

    fn operation(&mut self, at: u8, act: Act) -> Operation {
        self.model.writes += 1;
        let (key, value) = (key(at), Bytes::from(self.model.writes.to_string()));
        match act {
            Act::Put(lease) => {
                let lease = lease.and_then(|lease| self.model.lease(lease)).map(LeaseId);
                Operation::Put { key, value, lease }
            }
            Act::Replace => Operation::Replace { key, value },
            Act::Delete => Operation::Delete { key },
        }
    }

    async fn keep_alive(&mut self, lease: u8) {
        let Some(lease) = self.model.lease(lease) else {
            return;
        };
        let live = self.model.live(lease);
        assert_eq!(self.backend.lease_keep_alive(LeaseId(lease)).await.is_ok(), live);
        if live {
            self.model.leases.insert(lease, Some(TTL));
        }
    }

    async fn revoke(&mut self, lease: u8) {
        let Some(lease) = self.model.lease(lease) else {
            return;
        };
        let expected = self.model.live(lease).then(|| self.model.end(lease));
        assert_eq!(self.backend.lease_revoke(LeaseId(lease)).await.ok(), expected);
    }

    async fn range(&self, prefix: u8, after: u8, limit: u8) {
        let (prefix, after, limit) = (key(prefix), key(after), usize::from(limit));
        let page = self.backend.range(&prefix, Some(&after), limit).await.unwrap();
        let mut expected: Vec<_> =
            self.model.items.iter().filter(|(key, _)| **key > after && prefix.contains(key)).collect();
        let more = expected.len() > limit;
        expected.truncate(limit);
        let got: Vec<_> = page.items.iter().map(stored).collect();
        assert_eq!((got.iter().map(|(k, s)| (k, s)).collect::<Vec<_>>(), page.more), (expected, more));
        assert_eq!(page.revision.0, self.model.revision);
    }

    async fn reopen(&mut self) {
        if self.directory.is_none() {
            return;
        }
        self.backend.close().await;
        self.backend = open(self.directory.as_ref(), &self.clock);
        for left in self.model.leases.values_mut().flatten() {
            *left = TTL;
        }
    }

    /// The data is the model's, and the whole history leads to it.
    async fn finish(self) {
        let mut found = BTreeMap::new();
        for number in 0..8 {
            let item = self.backend.get(&key(number)).await.unwrap();
            found.extend(item.as_ref().map(stored));
        }
        assert_eq!(found, self.model.items);
        let mut replayed = BTreeMap::new();
        let mut revision = 0;
        for prefix in ["/a", "/a-b", "/a0", "/b"] {
            let mut watch =
                self.backend.watch(&Key::parse(prefix).unwrap(), Some(Revision::ZERO)).await.unwrap();
            let mut last = 0;
            // What there is comes before the end.
            let end = Key::parse(prefix).unwrap().child("end").unwrap();
            let end = self.backend.put(&end, Bytes::new(), None).await.unwrap();
            loop {
                let change = watch.next().await.unwrap();
                assert!(change.revision.0 > last);
                last = change.revision.0;
                if change.revision == end {
                    break;
                }
                revision = revision.max(last);
                for event in change.events {
                    match event {
                        Event::Put(item) if item.key.name() != "end" => replayed.extend([stored(&item)]),
                        Event::Put(_) => {}
                        Event::Delete { key, .. } => assert!(replayed.remove(&key).is_some()),
                    }
                }
            }
        }
        assert_eq!(replayed, self.model.items);
        assert_eq!(revision, self.model.revision);
        self.backend.close().await;
    }
}

fn stored(item: &Item) -> (Key, Stored) {
    let lease = item.lease.map(|lease| lease.0);
    (item.key.clone(), Stored { value: number(&item.value), revision: item.revision.0, lease })
}

fn open(directory: Option<&TempDir>, clock: &Arc<ManualClock>) -> Arc<dyn Backend> {
    let Some(directory) = directory else {
        return Arc::new(MemoryBackend::new(HistoryLimits::default(), clock.clone()));
    };
    let options =
        SqliteOptions { recent_changes_max: 5, ..SqliteOptions::new(directory.path().join("backend")) };
    Arc::new(SqliteBackend::open(&options, clock.clone()).unwrap())
}

fn guess() -> impl Strategy<Value = Guess> {
    prop_oneof![1 => Just(Guess::Absent), 1 => Just(Guess::Exists), 3 => Just(Guess::Right), 1 => Just(Guess::Stale)]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![4 => prop::option::of(any::<u8>()).prop_map(Act::Put), 1 => Just(Act::Replace), 2 => Just(Act::Delete)]
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0_u8..8;
    let conditions = prop::collection::vec((at.clone(), guess()), 0..2);
    let acts = prop::collection::vec((at.clone(), act()), 0..4);
    prop_oneof![
        8 => (conditions, acts).prop_map(|(conditions, acts)| Step::Batch(conditions, acts)),
        2 => (at.clone(), guess()).prop_map(|(at, guess)| Step::CompareAndSwap(at, guess)),
        2 => Just(Step::Grant),
        1 => any::<u8>().prop_map(Step::KeepAlive),
        1 => any::<u8>().prop_map(Step::Revoke),
        1 => (0_u8..6).prop_map(Step::Advance),
        1 => Just(Step::Maintain),
        2 => (at.clone(), at, 1_u8..6).prop_map(|(prefix, after, limit)| Step::Range(prefix, after, limit)),
        1 => Just(Step::Reopen),
    ]
}

fn check(on_disk: bool, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut run = Run::new(on_disk);
        for step in steps {
            run.step(step).await;
        }
        run.finish().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_backend_is_the_model(steps in prop::collection::vec(step(), 1..60)) {
        check(false, steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_sqlite_backend_is_the_model(steps in prop::collection::vec(step(), 1..60)) {
        check(true, steps);
    }
}
