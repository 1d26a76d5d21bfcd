//! Tasks that a service cannot do without: when one is gone, the service must not go on as if nothing were missing.

use crate::tasks::{Shutdown, TaskGroup};
use std::future::Future;
use tokio::sync::watch;

/// Starts such tasks in a group, and tells when one has ended that nobody had asked to.
#[derive(Debug, Clone)]
pub struct NeededTasks {
    tasks: TaskGroup,
    lost: watch::Sender<Option<TaskLost>>,
}

/// A task that ended without being asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TaskLost {
    /// It returned.
    #[error("the task \"{0}\" has ended, and nobody had asked it to")]
    Ended(&'static str),
    /// It panicked.
    #[error("the task \"{0}\" panicked, which is a bug: the log says where")]
    Panicked(&'static str),
}

impl NeededTasks {
    /// None yet; `tasks` will own them.
    pub fn new(tasks: TaskGroup) -> Self {
        Self { tasks, lost: watch::Sender::new(None) }
    }

    /// Starts a named task that may end once `asked` is requested, and not before.
    pub fn spawn<F>(&self, name: &'static str, asked: &Shutdown, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let why = TaskLost::Panicked(name);
        let mut watched = Watched { asked: asked.clone(), lost: self.lost.clone(), why };
        self.tasks.spawn(name, async move {
            task.await;
            watched.why = TaskLost::Ended(name);
            drop(watched);
        });
    }

    /// Waits for the first that is lost.
    pub async fn lost(&self) -> TaskLost {
        let mut told = self.lost.subscribe();
        loop {
            let lost = *told.borrow_and_update();
            match lost {
                Some(lost) => return lost,
                // It cannot fail: this holds a sender.
                None => drop(told.changed().await),
            }
        }
    }
}

/// Tells how a task has ended when it is dropped, which a panic does too.
struct Watched {
    asked: Shutdown,
    lost: watch::Sender<Option<TaskLost>>,
    why: TaskLost,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.asked.is_requested() {
            self.lost.send_if_modified(|lost| lost.replace(lost.unwrap_or(self.why)).is_none());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn check(task: impl Future<Output = ()> + Send + 'static, expected: TaskLost) {
        let (tasks, asked) = (TaskGroup::new(), Shutdown::new());
        let needed = NeededTasks::new(tasks);
        needed.spawn("test", &asked, task);
        needed.spawn("other", &asked, async {});
        assert_eq!(needed.lost().await, expected);
    }

    #[tokio::test]
    async fn a_task_that_ends_by_itself_is_told() {
        check(async {}, TaskLost::Ended("test")).await;
        check(async { panic!("on purpose") }, TaskLost::Panicked("test")).await;
    }

    #[tokio::test]
    async fn a_task_that_was_asked_to_end_is_not_lost() {
        let (tasks, asked) = (TaskGroup::new(), Shutdown::new());
        let needed = NeededTasks::new(tasks.clone());
        let signal = asked.clone();
        needed.spawn("test", &asked, async move { signal.requested().await });
        asked.request();
        assert!(tasks.finish(Duration::from_secs(10)).await);
        assert!(needed.lost.borrow().is_none());
    }
}
