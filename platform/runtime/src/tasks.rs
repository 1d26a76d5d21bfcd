//! Named tasks that are owned and end together.

use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Tells tasks that it is time to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A signal that nobody has given yet and that stands alone.
    pub fn new() -> Self {
        Self(CancellationToken::new())
    }

    /// Completes when shutdown was requested.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// True once shutdown was requested.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Requests it.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// A signal that is given with this one, and can be given alone.
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Runs a future until it ends or shutdown is requested (then `None`).
    pub fn until<F: Future>(&self, future: F) -> impl Future<Output = Option<F::Output>> {
        Until { requested: self.0.cancelled(), future }
    }
}

pin_project! {
    /// See [`Shutdown::until`]. An `async fn` would have room for its argument twice, and these are put into each other.
    struct Until<'a, F> {
        #[pin]
        requested: WaitForCancellationFuture<'a>,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Until<'_, F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.requested.poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        this.future.poll(cx).map(Some)
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

/// Owns tasks. Dropping the group requests shutdown; [`TaskGroup::finish`] waits for the tasks. A panic ends the one task
/// that it is in, and is counted.
#[derive(Debug, Clone)]
pub struct TaskGroup {
    tracker: TaskTracker,
    shutdown: Shutdown,
    panics: Panics,
}

impl TaskGroup {
    /// An empty group with its own signal.
    pub fn new() -> Self {
        Self::with_shutdown(Shutdown::new())
    }

    /// An empty group that ends with a signal of somebody else.
    pub fn with_shutdown(shutdown: Shutdown) -> Self {
        Self { tracker: TaskTracker::new(), shutdown, panics: Panics::default() }
    }

    /// Starts a named task. It should end soon after `shutdown` is requested.
    #[expect(clippy::disallowed_methods, reason = "this is the one place where tasks start")]
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = self.panics.noted(task).instrument(tracing::debug_span!("task", name));
        tokio::spawn(self.tracker.track_future(task));
    }

    /// Starts a task of which many run, without a span of its own (one for each connection or stream).
    #[expect(clippy::disallowed_methods, reason = "this is the one place where tasks start")]
    pub fn spawn_many<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.tracker.track_future(self.panics.noted(task)));
    }

    /// The signal of this group.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// How many tasks run.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }

    /// How many tasks have panicked.
    pub fn panics(&self) -> usize {
        self.panics.0.load(Ordering::Relaxed)
    }

    /// Requests shutdown and waits for all tasks, at most `grace`; false when some still ran then.
    pub async fn finish(&self, grace: Duration) -> bool {
        self.shutdown.request();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }

    /// Waits for all tasks without asking them to end, at most `grace`; false when some still ran then.
    pub async fn drained(&self, grace: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

impl Default for TaskGroup {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts the tasks of a group that panicked.
#[derive(Debug, Clone, Default)]
struct Panics(Arc<AtomicUsize>);

impl Panics {
    /// The task, noted here should it panic.
    fn noted<F: Future<Output = ()>>(&self, task: F) -> Noted<F> {
        Noted { task, unfinished: Unfinished(self.clone()) }
    }
}

pin_project! {
    /// A task, and who notes its panic. An `async` block would have room for the task twice.
    struct Noted<F> {
        #[pin]
        task: F,
        unfinished: Unfinished,
    }
}

impl<F: Future<Output = ()>> Future for Noted<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().task.poll(cx)
    }
}

/// Dropped while the task unwinds, it notes the panic.
struct Unfinished(Panics);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.0.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                "a task panicked, which is a bug: what it served has ended, standard error says where"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[tokio::test]
    async fn a_group_ends_its_tasks_and_waits_for_them() {
        let group = TaskGroup::new();
        let ended = Arc::new(AtomicBool::new(false));
        let (flag, shutdown) = (ended.clone(), group.shutdown());
        group.spawn("test", async move {
            shutdown.requested().await;
            flag.store(true, Ordering::SeqCst);
        });
        assert!(group.finish(Duration::from_secs(5)).await);
        assert!(ended.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn f_a_panic_ends_one_task_and_is_counted() {
        let group = TaskGroup::new();
        group.spawn_many(async { panic!("on purpose") });
        group.spawn("test", async { panic!("on purpose") });
        group.spawn_many(async {});
        assert!(group.drained(Duration::from_secs(10)).await);
        assert_eq!(group.panics(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_is_reported() {
        let group = TaskGroup::new();
        group.spawn("stuck", std::future::pending());
        assert!(!group.finish(Duration::from_secs(5)).await);
    }
}
