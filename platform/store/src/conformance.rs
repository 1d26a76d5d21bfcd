//! What every backend must do, as a suite that runs against any of them.
//!
//! A backend's tests implement [`Subject`] and call [`conformance`]. The suite uses nothing but the
//! [`Backend`] trait, so what is not tested here must not be relied on. Bounds, crashes, damaged files
//! and full disks differ by backend and are tested beside each.

mod history;
mod leases;
mod writes;

use crate::{Backend, Change, Event, Item, Key, Page, Revision, Watch};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// Why a check failed.
pub type Failure = Box<dyn Error + Send + Sync>;

/// How a check ends.
pub type Outcome = Result<(), Failure>;

/// A kind of backend and the means to put it through its paces.
pub trait Subject: Send + Sync {
    /// An empty backend, independent of those made before.
    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>>;

    /// Closes the backend and opens the same data again; none if it keeps nothing.
    fn reopen(&self, backend: Arc<dyn Backend>) -> BoxFuture<'_, Result<Option<Arc<dyn Backend>>, Failure>>;

    /// Lets time pass for leases.
    fn advance(&self, by: Duration) -> BoxFuture<'_, ()>;

    /// How long leases live here; a server that keeps its own time need not be waited for so long.
    fn lease_ttl(&self) -> Duration {
        Duration::from_secs(20)
    }

    /// Who ends leases whose time has run out, and counts their keys.
    fn expiry(&self) -> Expiry {
        Expiry::Maintain
    }

    /// Makes the backend forget the history that it has up to now.
    fn forget<'a>(&'a self, backend: &'a dyn Backend) -> BoxFuture<'a, Outcome>;
}

/// Who ends leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// [`Backend::maintain`], which says how many keys went.
    Maintain,
    /// The server, a little later.
    Server,
}

/// A backend that failed the suite.
#[derive(Debug, thiserror::Error)]
#[error("the backend does not conform: {check}")]
pub struct NotConforming {
    /// Which check failed.
    pub check: &'static str,
    /// What was expected and what came.
    pub source: Failure,
}

type Check = fn(&dyn Subject) -> BoxFuture<'_, Outcome>;

/// Runs every check, each on an empty backend, and stops at the first that fails.
pub async fn conformance(subject: &dyn Subject) -> Result<(), NotConforming> {
    let groups: [&[(&'static str, Check)]; 3] = [&writes::CHECKS, &history::CHECKS, &leases::CHECKS];
    for (check, run) in groups.into_iter().flatten() {
        tracing::debug!(check, "backend conformance");
        run(subject).await.map_err(|source| NotConforming { check, source })?;
    }
    Ok(())
}

fn key(text: &str) -> Result<Key, Failure> {
    Ok(Key::parse(text)?)
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn equal<T: PartialEq + Debug>(what: &str, actual: T, expected: T) -> Outcome {
    if actual == expected {
        return Ok(());
    }
    Err(format!("{what}: expected {expected:?}, got {actual:?}").into())
}

fn holds(what: &str, condition: bool) -> Outcome {
    if condition { Ok(()) } else { Err(format!("not so: {what}").into()) }
}

/// Asserts that an operation was refused, and in the right way.
macro_rules! refused {
    ($what:expr, $result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err($pattern) $(if $guard)? => Ok(()),
            other => Err($crate::conformance::Failure::from(format!(
                "{}: expected {}, got {other:?}",
                $what,
                stringify!($pattern $(if $guard)?)
            ))),
        }
    };
}
use refused;

/// The value of a key, as text.
async fn value(backend: &dyn Backend, at: &Key) -> Result<Option<String>, Failure> {
    let item = backend.get(at).await?;
    Ok(item.map(|item| String::from_utf8_lossy(&item.value).into_owned()))
}

/// The whole range, page by page.
async fn list(backend: &dyn Backend, prefix: &Key, limit: usize) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::<Item>::new();
    loop {
        let after = items.last().map(|item| item.key.clone());
        let page: Page = backend.range(prefix, after.as_ref(), limit).await?;
        holds("a page is no longer than asked for", page.items.len() <= limit)?;
        items.extend(page.items);
        if !page.more {
            return Ok(items);
        }
    }
}

/// The keys of items, for comparing.
fn keys(items: &[Item]) -> Vec<&str> {
    items.iter().map(|item| item.key.as_str()).collect()
}

/// A change as text: `3 put /a=x, delete /b`.
fn shown(change: &Change) -> String {
    let events = change.events.iter().map(|event| match event {
        Event::Put(item) => format!("put {}={}", item.key, String::from_utf8_lossy(&item.value)),
        Event::Delete { key, .. } => format!("delete {key}"),
    });
    events.collect::<Vec<_>>().join(", ")
}

/// The next change, which must carry the revision in every event.
async fn next(watch: &mut Watch) -> Result<(Revision, String), Failure> {
    let change = watch.next().await?;
    let same = change.events.iter().all(|event| match event {
        Event::Put(item) => item.revision == change.revision,
        Event::Delete { revision, .. } => *revision == change.revision,
    });
    holds("a change has events, and all of one revision", same && !change.events.is_empty())?;
    equal("the watch stands at the change it gave", watch.revision(), change.revision)?;
    Ok((change.revision, shown(&change)))
}

/// Asserts that the watch has nothing more to tell: the next it gives is what is done here.
async fn silent(backend: &dyn Backend, watch: &mut Watch, prefix: &Key) -> Outcome {
    let marker = prefix.child("marker")?;
    let put = backend.put(&marker, bytes("x"), None).await?;
    backend.delete(&marker).await?;
    equal("only the marker", next(watch).await?, (put, format!("put {marker}=x")))?;
    equal("and its end", next(watch).await?.1, format!("delete {marker}"))
}
