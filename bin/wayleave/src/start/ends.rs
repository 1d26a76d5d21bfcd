//! Services that end by themselves: a process that lacks one of its services must not look healthy.

use anyhow::{Context, anyhow};
use tokio::sync::mpsc;
use wayleave_runtime::Shutdown;

/// Services of one process.
const SERVICES_MAX: usize = 8;

/// Notices services that end.
pub(crate) struct Ends(mpsc::Sender<anyhow::Error>);

/// Why services ended that should not have.
pub(crate) struct Failures {
    failed: mpsc::Receiver<anyhow::Error>,
    _more: mpsc::Sender<anyhow::Error>,
}

impl Ends {
    pub(crate) fn new() -> (Self, Failures) {
        let (sender, failed) = mpsc::channel(SERVICES_MAX);
        (Self(sender.clone()), Failures { failed, _more: sender })
    }

    /// Runs a service; it is a failure when it ends before shutdown was requested, by an error, or by a panic.
    pub(crate) fn notice<Service: Future<Output = anyhow::Result<()>>>(
        &self,
        name: &'static str,
        shutdown: &Shutdown,
        service: Service,
    ) -> impl Future<Output = ()> + use<Service> {
        let mut end = End {
            name,
            shutdown: shutdown.clone(),
            failed: self.0.clone(),
            result: Err(anyhow!("it panicked, which is a bug: the log says where")),
        };
        async move {
            end.result = service.await;
            drop(end);
        }
    }
}

impl Failures {
    /// The next one.
    pub(crate) async fn next(&mut self) -> anyhow::Error {
        match self.failed.recv().await {
            Some(failed) => failed,
            None => std::future::pending().await,
        }
    }
}

/// Tells how a service has ended when it is dropped, which a panic does too.
struct End {
    name: &'static str,
    shutdown: Shutdown,
    failed: mpsc::Sender<anyhow::Error>,
    result: anyhow::Result<()>,
}

impl Drop for End {
    fn drop(&mut self) {
        let result = match std::mem::replace(&mut self.result, Ok(())) {
            Ok(()) if !self.shutdown.is_requested() => Err(anyhow!("nobody had asked it to end")),
            result => result,
        };
        if let Err(error) = result.with_context(|| format!("{} has ended", self.name)) {
            let _ = self.failed.try_send(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wayleave_runtime::TaskGroup;

    async fn check(service: impl Future<Output = anyhow::Result<()>> + Send + 'static, told: &str) {
        let (ends, mut failures) = Ends::new();
        let (tasks, shutdown) = (TaskGroup::new(), Shutdown::new());
        tasks.spawn("service", ends.notice("the service", &shutdown, service));
        let failed = format!("{:#}", failures.next().await);
        assert!(failed.starts_with("the service has ended: ") && failed.contains(told), "{failed}");
    }

    #[tokio::test]
    async fn a_service_that_ends_by_itself_is_noticed() {
        check(async { Ok(()) }, "nobody had asked").await;
        check(async { Err(anyhow!("a port is taken")) }, "a port is taken").await;
        check(async { panic!("on purpose") }, "panicked").await;
    }

    #[tokio::test]
    async fn a_service_that_was_asked_to_end_is_no_failure() {
        let (ends, mut failures) = Ends::new();
        let (tasks, shutdown) = (TaskGroup::new(), Shutdown::new());
        let asked = shutdown.clone();
        let service = async move {
            asked.requested().await;
            Ok(())
        };
        tasks.spawn("service", ends.notice("the service", &shutdown, service));
        shutdown.request();
        assert!(tasks.drained(std::time::Duration::from_secs(10)).await);
        assert!(failures.failed.try_recv().is_err());
    }
}
