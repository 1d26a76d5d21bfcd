//! Leases: keys that go when their owner does.

use super::{Check, Expiry, Outcome, Subject, bytes, equal, holds, key, keys, list, next, refused, silent};
use crate::{Backend, Key, LEASE_TTL_MAX, LeaseId, StoreError};
use futures::future::FutureExt as _;
use std::time::Duration;

pub(super) const CHECKS: [(&str, Check); 5] = [
    ("a lease that runs out takes its keys", |s| expiry(s).boxed()),
    ("a lease that is kept alive lives", |s| keep_alive(s).boxed()),
    ("a revoked lease takes its keys", |s| revoke(s).boxed()),
    ("keys change their lease", |s| rebinding(s).boxed()),
    ("leases live through opening again", |s| reopened(s).boxed()),
];

/// A little more than half of the time that a lease has.
fn half(subject: &dyn Subject) -> Duration {
    subject.lease_ttl() * 11 / 20
}

/// Sees to it that `count` keys of ended leases below `prefix` are gone, and all of them by this.
async fn wait_ended(
    subject: &dyn Subject,
    backend: &dyn Backend,
    prefix: &Key,
    count: usize,
    left: usize,
) -> Outcome {
    match subject.expiry() {
        Expiry::Maintain => equal("its keys go", backend.maintain().await?, count)?,
        Expiry::Server => {
            let mut watch = backend.watch(prefix, None).await?;
            while list(backend, prefix, 10).await?.len() > left {
                watch.next().await?;
            }
        }
    }
    equal("once", backend.maintain().await?, 0)
}

async fn expiry(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let routes = key("/routes")?;
    let stays = routes.child("stays")?;
    let lease = backend.lease_grant(subject.lease_ttl()).await?;
    for name in ["a", "b"] {
        backend.put(&routes.child(name)?, bytes("x"), Some(lease)).await?;
    }
    let last = backend.put(&stays, bytes("x"), None).await?;
    equal(
        "the item names its lease",
        backend.get(&routes.child("a")?).await?.and_then(|i| i.lease),
        Some(lease),
    )?;
    let mut watch = backend.watch(&routes, None).await?;
    equal("nothing to do yet", backend.maintain().await?, 0)?;
    subject.advance(half(subject)).await;
    equal("still nothing", backend.maintain().await?, 0)?;
    subject.advance(half(subject)).await;
    let dead = backend.lease_keep_alive(lease).await;
    refused!("reviving the dead", dead, StoreError::LeaseNotFound { lease: id } if id == lease)?;
    let late = backend.put(&stays, bytes("y"), Some(lease)).await;
    refused!("tying to the dead", late, StoreError::LeaseNotFound { .. })?;
    wait_ended(subject, &*backend, &routes, 2, 1).await?;
    equal("what is left", keys(&list(&*backend, &routes, 10).await?), vec![stays.as_str()])?;
    let (revision, events) = next(&mut watch).await?;
    holds("the end takes a revision", revision > last)?;
    equal("with events", events, "delete /routes/a, delete /routes/b".into())?;
    silent(&*backend, &mut watch, &routes).await
}

async fn keep_alive(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let a = key("/a")?;
    let (kept, left) =
        (backend.lease_grant(subject.lease_ttl()).await?, backend.lease_grant(subject.lease_ttl()).await?);
    holds("leases differ", kept != left)?;
    backend.put(&a.child("kept")?, bytes("x"), Some(kept)).await?;
    backend.put(&a.child("left")?, bytes("x"), Some(left)).await?;
    for _ in 0..5 {
        subject.advance(half(subject)).await;
        backend.lease_keep_alive(kept).await?;
        backend.maintain().await?;
    }
    equal("only one lives", keys(&list(&*backend, &a, 10).await?), vec!["/a/kept"])?;
    let unknown = backend.lease_keep_alive(LeaseId(u64::MAX >> 1)).await;
    refused!("an unknown lease", unknown, StoreError::LeaseNotFound { .. })?;
    refused!("no time", backend.lease_grant(Duration::ZERO).await, StoreError::Invalid { .. })?;
    let forever = backend.lease_grant(LEASE_TTL_MAX + Duration::from_secs(1)).await;
    refused!("for ever", forever, StoreError::TooLarge { .. })
}

async fn revoke(subject: &dyn Subject) -> Outcome {
    const KEYS: usize = 300;
    let backend = subject.open().await?;
    let a = key("/a")?;
    let lease = backend.lease_grant(subject.lease_ttl()).await?;
    for n in 0..KEYS {
        backend.put(&a.child(&n.to_string())?, bytes("x"), Some(lease)).await?;
    }
    let mut watch = backend.watch(&a, None).await?;
    equal("more keys than a batch holds", backend.lease_revoke(lease).await?, KEYS)?;
    equal("all gone", list(&*backend, &a, 10).await?.len(), 0)?;
    refused!("again", backend.lease_revoke(lease).await, StoreError::LeaseNotFound { .. })?;
    refused!("alive", backend.lease_keep_alive(lease).await, StoreError::LeaseNotFound { .. })?;
    let mut events = 0;
    while events < KEYS {
        events += watch.next().await?.events.len();
    }
    equal("an event for each", events, KEYS)?;
    silent(&*backend, &mut watch, &a).await?;
    let other = backend.lease_grant(subject.lease_ttl()).await?;
    holds("ids are never used again", other != lease)?;
    equal("a lease without keys", backend.lease_revoke(other).await?, 0)
}

async fn rebinding(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let a = key("/a")?;
    let (first, second) =
        (backend.lease_grant(subject.lease_ttl()).await?, backend.lease_grant(subject.lease_ttl()).await?);
    for name in ["moved", "freed", "swapped", "made-again"] {
        backend.put(&a.child(name)?, bytes("1"), Some(first)).await?;
    }
    backend.put(&a.child("moved")?, bytes("2"), Some(second)).await?;
    backend.put(&a.child("freed")?, bytes("2"), None).await?;
    backend.delete(&a.child("made-again")?).await?;
    backend.create(&a.child("made-again")?, bytes("2"), None).await?;
    let swapped = a.child("swapped")?;
    let Some(item) = backend.get(&swapped).await? else {
        return Err("the key is gone".into());
    };
    backend.compare_and_swap(&swapped, item.revision, bytes("2")).await?;
    let kept = backend.get(&swapped).await?.and_then(|item| item.lease);
    equal("a swap keeps the lease", kept, Some(first))?;
    equal("the first has one key left", backend.lease_revoke(first).await?, 1)?;
    let left = list(&*backend, &a, 10).await?;
    equal("the others stay", keys(&left), vec!["/a/freed", "/a/made-again", "/a/moved"])?;
    equal("the second has the moved one", backend.lease_revoke(second).await?, 1)
}

async fn reopened(subject: &dyn Subject) -> Outcome {
    let backend = subject.open().await?;
    let a = key("/a")?;
    let (kept, ended) =
        (backend.lease_grant(subject.lease_ttl()).await?, backend.lease_grant(subject.lease_ttl()).await?);
    backend.put(&a, bytes("x"), Some(kept)).await?;
    backend.lease_revoke(ended).await?;
    let Some(backend) = subject.reopen(backend).await? else {
        return Ok(());
    };
    refused!("the ended one", backend.lease_keep_alive(ended).await, StoreError::LeaseNotFound { .. })?;
    let next = backend.lease_grant(subject.lease_ttl()).await?;
    holds("ids go on", next != kept && next != ended)?;
    subject.advance(half(subject)).await;
    backend.maintain().await?;
    backend.lease_keep_alive(kept).await?;
    subject.advance(half(subject)).await;
    backend.maintain().await?;
    holds("it lives on", backend.get(&a).await?.is_some())?;
    subject.advance(half(subject)).await;
    wait_ended(subject, &*backend, &a, 1, 0).await
}
