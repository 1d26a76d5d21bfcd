//! Watching: order, resumption, compaction, and no gap under concurrent writers.

use super::{Check, Outcome, Subject, bytes, equal, holds, key, list, next, refused, silent};
use crate::{Backend, Event, Operation, Revision, WatchError};
use futures::future::{FutureExt as _, join, join_all};
use std::collections::BTreeMap;

pub(super) const CHECKS: [(&str, Check); 6] = [
    ("a watch tells what happens below its prefix", |s| live(s).boxed()),
    ("a watch resumes behind a revision", |s| resume(s).boxed()),
    ("a watch resumes after opening again", |s| reopened(s).boxed()),
    ("a watch that is too old is told so", |s| compacted(s).boxed()),
    ("a watch ends when the backend closes", |s| closed(s).boxed()),
    ("list and watch see every write once", |s| concurrent(s).boxed()),
];

async fn live(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let nodes = key("/nodes")?;
    let (a, b, other) = (nodes.child("a")?, nodes.child("b")?, key("/nodes-old/a")?);
    backend.put(&a, bytes("before"), None).await?;
    let mut watch = backend.watch(&nodes, None).await?;
    silent(&*backend, &mut watch, &nodes).await?;
    let first = backend.put(&a, bytes("1"), None).await?;
    let unseen = backend.put(&other, bytes("2"), None).await?;
    let put = |key: &crate::Key, text| Operation::Put { key: key.clone(), value: bytes(text), lease: None };
    let batch = vec![put(&b, "3"), put(&other, "3"), Operation::Delete { key: a.clone() }];
    let second = backend.batch(vec![], batch).await?.revision;
    backend.delete(&a).await?;
    let third = backend.put(&nodes, bytes("4"), None).await?;
    holds("other keys take revisions too", first < unseen && unseen < second)?;
    equal("a put", next(&mut watch).await?, (first, "put /nodes/a=1".into()))?;
    let whole = (second, "put /nodes/b=3, delete /nodes/a".into());
    equal("a batch, whole, without the other key", next(&mut watch).await?, whole)?;
    equal("the prefix itself", next(&mut watch).await?, (third, "put /nodes=4".into()))?;
    backend.put(&other, bytes("5"), None).await?;
    silent(&*backend, &mut watch, &nodes).await
}

async fn resume(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let a = key("/a")?;
    let mut revisions = Vec::new();
    for n in 0..5 {
        revisions.push(backend.put(&a, bytes(&n.to_string()), None).await?);
    }
    for (start, from) in revisions.iter().enumerate() {
        let mut watch = backend.watch(&a, Some(*from)).await?;
        for (n, revision) in revisions.iter().enumerate().skip(start + 1) {
            equal("each later write", next(&mut watch).await?, (*revision, format!("put /a={n}")))?;
        }
        drop(watch);
    }
    let mut watch = backend.watch(&a, revisions.last().copied()).await?;
    silent(&*backend, &mut watch, &a).await?;
    let mut watch = backend.watch(&a, Some(Revision::ZERO)).await?;
    equal("from the beginning", next(&mut watch).await?.1, "put /a=0".into())?;
    // A revision from the future belongs to another life of the data.
    let ahead = Revision(revisions.last().map_or(0, |last| last.0) + 100);
    let mut watch = backend.watch(&a, Some(ahead)).await?;
    refused!("from the future", watch.next().await, WatchError::Compacted { from } if from == ahead)
}

async fn reopened(subject: &dyn Subject) -> Outcome {
    const WRITES: usize = 50;
    let backend = subject.open().await?;
    let a = key("/a")?;
    let start = backend.put(&a, bytes("start"), None).await?;
    for n in 0..WRITES {
        backend.put(&a.child(&n.to_string())?, bytes("x"), None).await?;
        backend.put(&key("/other")?, bytes("x"), None).await?;
    }
    let mut watch = backend.watch(&a, Some(start)).await?;
    next(&mut watch).await?;
    let half = watch.revision();
    drop(watch);
    let Some(backend) = subject.reopen(backend).await? else {
        return Ok(());
    };
    let mut watch = backend.watch(&a, Some(half)).await?;
    for n in 1..WRITES {
        equal("what came behind", next(&mut watch).await?.1, format!("put /a/{n}=x"))?;
    }
    silent(&*backend, &mut watch, &a).await?;
    let deleted = backend.delete(&a).await?;
    holds("and what comes now", deleted)?;
    equal("the delete", next(&mut watch).await?.1, "delete /a".into())
}

async fn compacted(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let a = key("/a")?;
    let first = backend.put(&a, bytes("1"), None).await?;
    backend.put(&key("/stays")?, bytes("kept"), None).await?;
    backend.put(&a, bytes("2"), None).await?;
    subject.forget(&*backend).await?;
    let mut watch = backend.watch(&a, Some(first)).await?;
    refused!("from before", watch.next().await, WatchError::Compacted { from } if from == first)?;
    let stays = backend.get(&key("/stays")?).await?.map(|item| item.value);
    equal("what was written before is still there", stays, Some(bytes("kept")))?;
    let now = backend.range(&a, None, 1).await?.revision;
    let mut watch = backend.watch(&a, Some(now)).await?;
    silent(&*backend, &mut watch, &a).await?;
    let now = watch.revision();
    let third = backend.put(&a, bytes("3"), None).await?;
    equal("from the newest", next(&mut watch).await?, (third, "put /a=3".into()))?;
    let Some(backend) = subject.reopen(backend).await? else {
        return Ok(());
    };
    let mut watch = backend.watch(&a, Some(first)).await?;
    refused!("still forgotten", watch.next().await, WatchError::Compacted { .. })?;
    let mut watch = backend.watch(&a, Some(now)).await?;
    equal("still there", next(&mut watch).await?, (third, "put /a=3".into()))
}

async fn closed(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let mut watch = backend.watch(&key("/a")?, None).await?;
    let (ended, ()) = join(watch.next(), backend.close()).await;
    refused!("waiting while it closes", ended, WatchError::Closed)?;
    refused!("and again", watch.next().await, WatchError::Closed)?;
    refused!("a new one", backend.watch(&key("/a")?, None).await, crate::StoreError::Closed)
}

/// Followers that list and then watch, at different moments and cut off in between, end up with
/// exactly what the writers wrote.
async fn concurrent(subject: &dyn Subject) -> Outcome {
    const WRITERS: usize = 6;
    const WRITES: usize = 40;
    let backend = subject.open().await?;
    let root = key("/load")?;
    let write = |writer: usize| {
        let (backend, root) = (&backend, &root);
        async move {
            for n in 0..WRITES {
                let own = root.child(&writer.to_string())?;
                backend.put(&own, bytes(&n.to_string()), None).await?;
                // A backend that never waits would leave the followers nothing to follow.
                tokio::task::yield_now().await;
                let shared = root.child(&format!("shared-{}", n % 3))?;
                if n % 4 == 3 {
                    backend.delete(&shared).await?;
                } else {
                    backend.put(&shared, bytes(&format!("{writer}.{n}")), None).await?;
                }
            }
            Ok(())
        }
    };
    let followers = join_all((0..4).map(|n| follow(&*backend, &root, 5 + n * 7, WRITERS, WRITES - 1)));
    let (written, followed): (Vec<Outcome>, _) = join(join_all((0..WRITERS).map(write)), followers).await;
    written.into_iter().collect::<Outcome>()?;
    let mut expected = BTreeMap::new();
    for item in list(&*backend, &root, 100).await? {
        expected.insert(item.key.clone(), item.value);
    }
    let marker = root.child("shared-marker")?;
    let end = backend.put(&marker, bytes("x"), None).await?;
    for mut follower in followed {
        let follower = follower.as_mut().map_err(|error| error.to_string())?;
        // Each stopped when it had seen every writer's last own write; what is left is only shared keys.
        let mut watch = backend.watch(&root, Some(follower.at)).await?;
        while follower.at < end {
            follower.apply(watch.next().await?)?;
        }
        follower.seen.remove(&marker);
        equal("what the follower has", &follower.seen, &expected)?;
    }
    Ok(())
}

struct Seen {
    seen: BTreeMap<crate::Key, bytes::Bytes>,
    at: Revision,
}

impl Seen {
    fn apply(&mut self, change: crate::Change) -> Outcome {
        holds("revisions grow, none comes twice", change.revision > self.at)?;
        self.at = change.revision;
        for event in change.events {
            match event {
                Event::Put(item) => {
                    self.in_order(&item.key, &item.value)?;
                    self.seen.insert(item.key, item.value);
                }
                Event::Delete { key, .. } => {
                    holds("what is deleted was there", self.seen.remove(&key).is_some())?;
                }
            }
        }
        Ok(())
    }

    /// A writer's own key counts up by one: a gap or a repetition shows at once.
    fn in_order(&self, at: &crate::Key, value: &[u8]) -> Outcome {
        if at.name().starts_with("shared") {
            return Ok(());
        }
        let number = |bytes: &[u8]| String::from_utf8_lossy(bytes).parse::<usize>();
        let before = self.seen.get(at).map(|value| number(value)).transpose()?;
        equal("the next of its writer", number(value)?, before.map_or(0, |before| before + 1))
    }
}

/// Lists, then watches in legs of `leg` changes, until every writer's last write was seen.
async fn follow(
    backend: &dyn Backend,
    root: &crate::Key,
    leg: usize,
    writers: usize,
    last: usize,
) -> Result<Seen, super::Failure> {
    let mut followed = Seen { seen: BTreeMap::new(), at: Revision::ZERO };
    let page = backend.range(root, None, 1000).await?;
    followed.at = page.revision;
    followed.seen.extend(page.items.into_iter().map(|item| (item.key, item.value)));
    let last = bytes(&last.to_string());
    let unfinished = |followed: &Seen| {
        let own = followed.seen.iter().filter(|(key, _)| !key.name().starts_with("shared"));
        own.filter(|(_, value)| **value == last).count() < writers
    };
    while unfinished(&followed) {
        let mut watch = backend.watch(root, Some(followed.at)).await?;
        for _ in 0..leg {
            if unfinished(&followed) {
                followed.apply(watch.next().await?)?;
            }
        }
    }
    Ok(followed)
}
