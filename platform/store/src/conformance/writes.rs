//! Reading, writing, conditions, batches and pages.

use super::{Check, Outcome, Subject, bytes, equal, holds, key, keys, list, refused, value};
use crate::{
    BATCH_OPERATIONS_MAX, Condition, Item, Key, Operation, RANGE_BYTES_MAX, RANGE_ITEMS_MAX, Revision,
    StoreError,
};
use bytes::Bytes;
use futures::future::{FutureExt as _, join_all};

pub(super) const CHECKS: [(&str, Check); 10] = [
    ("a put is read back", |s| put(s).boxed()),
    ("create only makes", |s| create(s).boxed()),
    ("compare and swap", |s| compare_and_swap(s).boxed()),
    ("deletes", |s| delete(s).boxed()),
    ("a batch is all or nothing", |s| batch(s).boxed()),
    ("bounds are kept", |s| bounds(s).boxed()),
    ("ranges and pages", |s| range(s).boxed()),
    ("large values", |s| large(s).boxed()),
    ("racing increments lose nothing", |s| racing(s).boxed()),
    ("close, and open again", |s| close(s).boxed()),
];

async fn put(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let a = key("/kind/a")?;
    equal("an absent key", backend.get(&a).await?, None)?;
    let first = backend.put(&a, bytes("one"), None).await?;
    let item = Item { key: a.clone(), value: bytes("one"), revision: first, lease: None };
    equal("the item", backend.get(&a).await?, Some(item))?;
    let second = backend.put(&a, bytes("two"), None).await?;
    holds("revisions grow", second > first)?;
    equal("the later value", value(&*backend, &a).await?.as_deref(), Some("two"))?;
    backend.put(&a, Bytes::new(), None).await?;
    equal("an empty value is a value", value(&*backend, &a).await?.as_deref(), Some(""))?;
    equal("a key below is another key", backend.get(&key("/kind/a/b")?).await?, None)
}

async fn create(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let a = key("/a")?;
    let made = backend.create(&a, bytes("one"), None).await?;
    let again = backend.create(&a, bytes("two"), None).await;
    refused!("creating again", again, StoreError::AlreadyExists { revision, .. } if revision == made)?;
    equal("the value stays", value(&*backend, &a).await?.as_deref(), Some("one"))?;
    backend.delete(&a).await?;
    backend.create(&a, bytes("three"), None).await?;
    equal("made anew", value(&*backend, &a).await?.as_deref(), Some("three"))
}

async fn compare_and_swap(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let a = key("/a")?;
    let absent = backend.compare_and_swap(&a, Revision::ZERO, bytes("x")).await;
    refused!("swapping what is absent", absent, StoreError::NotFound { .. })?;
    let first = backend.put(&a, bytes("one"), None).await?;
    let second = backend.compare_and_swap(&a, first, bytes("two")).await?;
    let stale = backend.compare_and_swap(&a, first, bytes("three")).await;
    refused!("a stale swap", stale, StoreError::Conflict { expected, actual, .. }
        if expected == first && actual == second)?;
    equal("the value", value(&*backend, &a).await?.as_deref(), Some("two"))
}

async fn delete(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let a = key("/a")?;
    equal("deleting what is absent", backend.delete(&a).await?, false)?;
    let first = backend.put(&a, bytes("one"), None).await?;
    let second = backend.put(&a, bytes("two"), None).await?;
    let stale = backend.compare_and_delete(&a, first).await;
    refused!("a stale delete", stale, StoreError::Conflict { actual, .. } if actual == second)?;
    let gone = backend.compare_and_delete(&a, second).await?;
    holds("a delete takes a revision", gone > second)?;
    equal("it is gone", backend.get(&a).await?, None)?;
    let again = backend.compare_and_delete(&a, second).await;
    refused!("deleting again", again, StoreError::NotFound { .. })?;
    backend.put(&a, bytes("three"), None).await?;
    equal("deleting what is there", backend.delete(&a).await?, true)?;
    let page = backend.range(&a, None, 1).await?;
    equal("an empty delete takes no revision", backend.delete(&a).await?, false)?;
    equal("the revision", backend.range(&a, None, 1).await?.revision, page.revision)
}

fn write(key: &Key, text: &str) -> Operation {
    Operation::Put { key: key.clone(), value: bytes(text), lease: None }
}

async fn batch(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let (a, b, c) = (key("/a")?, key("/b")?, key("/c")?);
    let first = backend.batch(vec![], vec![write(&a, "1"), write(&b, "1")]).await?;
    for each in [&a, &b] {
        let revision = backend.get(each).await?.map(|item| item.revision);
        equal("one revision for all", revision, Some(first.revision))?;
    }
    let conditions = vec![Condition::Exists(a.clone()), Condition::Absent(c.clone())];
    let operations = vec![
        Operation::Delete { key: a.clone() },
        Operation::Replace { key: b.clone(), value: bytes("2") },
        Operation::Delete { key: key("/never")? },
        write(&c, "2"),
    ];
    let second = backend.batch(conditions.clone(), operations.clone()).await?;
    equal("what was there to delete", second.deleted, 1)?;
    holds("the next revision", second.revision > first.revision)?;

    let again = backend.batch(conditions, operations).await;
    refused!("the same conditions", again, StoreError::NotFound { key } if key == a)?;
    let stale = vec![Condition::RevisionIs(b.clone(), first.revision)];
    let failed = backend.batch(stale, vec![write(&a, "3"), write(&c, "3")]).await;
    refused!("one stale condition", failed, StoreError::Conflict { .. })?;
    let missing = vec![write(&a, "3"), Operation::Replace { key: key("/never")?, value: bytes("3") }];
    refused!("replacing what is absent", backend.batch(vec![], missing).await, StoreError::NotFound { .. })?;
    equal("nothing of it", backend.get(&a).await?, None)?;
    equal("the rest as it was", value(&*backend, &c).await?.as_deref(), Some("2"))?;
    let only_asked = backend.batch(vec![Condition::Exists(b)], vec![]).await?;
    equal("asking changes nothing", only_asked.revision, second.revision)
}

async fn bounds(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let a = key("/a")?;
    let twice = backend.batch(vec![], vec![write(&a, "1"), Operation::Delete { key: a.clone() }]).await;
    refused!("a key twice", twice, StoreError::Invalid { .. })?;
    let many = |count: usize| (0..count).map(|n| Ok(write(&a.child(&n.to_string())?, "x"))).collect();
    let most: Result<Vec<_>, super::Failure> = many(BATCH_OPERATIONS_MAX);
    backend.batch(vec![], most?).await?;
    let too_many: Result<Vec<_>, super::Failure> = many(BATCH_OPERATIONS_MAX + 1);
    refused!("too many", backend.batch(vec![], too_many?).await, StoreError::TooLarge { .. })?;
    let huge = Bytes::from(vec![0; backend.bounds().value_bytes_max + 1]);
    refused!("a huge value", backend.put(&a, huge, None).await, StoreError::TooLarge { .. })?;
    refused!("an empty page", backend.range(&a, None, 0).await, StoreError::Invalid { .. })?;
    equal("nothing was written", backend.get(&a).await?, None)
}

async fn range(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let nodes = key("/nodes")?;
    // '-' and '!' sort before '/', and '0' behind it: none of them is below /nodes.
    let others = ["/nodes!", "/nodes-old/a", "/nodes0", "/node", "/nodes.b/c", "/o"];
    let inside = ["/nodes", "/nodes/a", "/nodes/a/b", "/nodes/a-b", "/nodes/z", "/nodes/ä"];
    for text in others.into_iter().chain(inside) {
        backend.put(&key(text)?, bytes(text), None).await?;
    }
    let mut sorted = inside;
    sorted.sort_unstable();
    for limit in [1, 2, 5, 6, 7, 100] {
        equal("all of them, in order", keys(&list(&*backend, &nodes, limit).await?), sorted.to_vec())?;
    }
    let everything = list(&*backend, &Key::root(), 5).await?;
    equal("all there is, below the root", everything.len(), inside.len() + others.len())?;
    let page = backend.range(&nodes, None, inside.len()).await?;
    holds("nothing is left behind a page that fits exactly", !page.more)?;
    let last = backend.put(&key("/elsewhere")?, bytes("x"), None).await?;
    let absent = backend.range(&key("/absent")?, None, 10).await?;
    equal("an empty range", (absent.items.len(), absent.more), (0, false))?;
    equal("its revision", absent.revision, last)?;
    let before = backend.range(&nodes, Some(&key("/a")?), 10).await?;
    equal("behind a key before the range", keys(&before.items), sorted.to_vec())?;
    let between = backend.range(&nodes, Some(&key("/nodes-zzz")?), 10).await?;
    equal(
        "behind a key within, but outside",
        keys(&between.items),
        sorted.get(1..).unwrap_or_default().to_vec(),
    )?;
    let behind = backend.range(&nodes, Some(&key("/o")?), 10).await?;
    equal("behind a key after the range", behind.items.len(), 0)
}

async fn large(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let snapshot = key("/snapshot")?;
    let whole = Bytes::from(vec![7; backend.bounds().value_bytes_max]);
    backend.put(&snapshot, whole.clone(), None).await?;
    let read = backend.get(&snapshot).await?.map(|item| item.value == whole);
    equal("the largest value comes back", read, Some(true))?;
    backend.delete(&snapshot).await?;
    let part = Bytes::from(vec![7; backend.bounds().value_bytes_max.min(RANGE_BYTES_MAX / 2 + 1)]);
    let fit = RANGE_BYTES_MAX.div_ceil(part.len());
    for number in 0..=fit {
        backend.put(&snapshot.child(&format!("{number:03}"))?, part.clone(), None).await?;
    }
    let page = backend.range(&snapshot, None, RANGE_ITEMS_MAX).await?;
    equal("a page ends when it is heavy", (page.items.len(), page.more), (fit, true))?;
    equal("the rest follows", list(&*backend, &snapshot, RANGE_ITEMS_MAX).await?.len(), fit + 1)
}

async fn racing(subject: &dyn Subject) -> Outcome {
    const WRITERS: usize = 8;
    const INCREMENTS: usize = 10;
    let backend = subject.open().await?;
    let counter = key("/counter")?;
    backend.put(&counter, bytes("0"), None).await?;
    let increment = || async {
        let gone = || super::Failure::from("the counter is gone");
        for _ in 0..INCREMENTS {
            loop {
                let item = backend.get(&counter).await?.ok_or_else(gone)?;
                let count: usize = String::from_utf8_lossy(&item.value).parse()?;
                let next = bytes(&(count + 1).to_string());
                match backend.compare_and_swap(&counter, item.revision, next).await {
                    Ok(_) => break,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(other) => return Err(super::Failure::from(other)),
                }
            }
        }
        Ok(())
    };
    for outcome in join_all((0..WRITERS).map(|_| increment())).await {
        outcome?;
    }
    let expected = (WRITERS * INCREMENTS).to_string();
    equal("the sum", value(&*backend, &counter).await?, Some(expected))
}

async fn close(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let (a, b) = (key("/a")?, key("/b")?);
    backend.put(&a, bytes("one"), None).await?;
    let last = backend.put(&b, bytes("two"), None).await?;
    let Some(backend) = subject.reopen(backend).await? else {
        let backend = subject.open().await?;
        backend.close().await;
        return refused!("a closed backend", backend.get(&a).await, StoreError::Closed);
    };
    equal("what was written", value(&*backend, &a).await?.as_deref(), Some("one"))?;
    equal("its revision", backend.get(&b).await?.map(|item| item.revision), Some(last))?;
    holds("revisions go on", backend.put(&a, bytes("three"), None).await? > last)?;
    backend.close().await;
    backend.close().await;
    refused!("reading when closed", backend.get(&a).await, StoreError::Closed)?;
    refused!("writing when closed", backend.put(&a, bytes("x"), None).await, StoreError::Closed)
}
